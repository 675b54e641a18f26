"""Granite 3 and 4 (their model cards of 2024 and 2025), dense: Llama's blocks with factors on embedding, scores, residuals and logits."""

from .blocks import Hyperparameters, attention, begin, end, gated, layers

HEEDS = ("embedding_scale", "residual_scale", "logit_scale")


def build(p, weights):
    """Append Granite's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    build_scaled(p, weights, c.float("embedding_scale", default=0.0) or 1.0, c.float("residual_scale", default=0.0) or 1.0,
                 c.float("logit_scale", low=1e-6), turned=c.bool("rope.scaling.finetuned", True))


def build_scaled(p, weights, embedding, residual, logits, turned=True):
    """`build` with the factors on embedding and residuals and the divisor of the logits; ``turned=False``: without rotary positions."""
    c, a, x = begin(p, weights, neox=False, heeds=HEEDS, scale=embedding)
    rope = c.rope(p, weights, a) if turned else None
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, scale=residual))
        x.add(gated(p, x.norm(w.ffn_norm), w, scale=residual))
    end(p, weights, x, scale=1.0 / logits)
