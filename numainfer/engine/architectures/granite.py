"""Granite 3 and 4 (their model cards of 2024 and 2025), dense: Llama's blocks with factors on embedding, scores, residuals and logits."""

from ...errors import UnsupportedModel
from .blocks import Hyperparameters, attention, begin, end, gated, layers

HEEDS = ("embedding_scale", "residual_scale", "logit_scale")


def build(p, weights):
    """Append Granite's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    if not c.gguf.get("granite.rope.scaling.finetuned", bool, default=True):
        raise UnsupportedModel("granite.rope.scaling.finetuned", False, [True], "False would mean layers without rotary positions")
    build_scaled(p, weights, c.float("embedding_scale", default=0.0) or 1.0, c.float("residual_scale", default=0.0) or 1.0,
                 c.float("logit_scale", low=1e-6))


def build_scaled(p, weights, embedding, residual, logits):
    """`build` with the factors on embedding and residuals and the divisor of the logits."""
    c, a, x = begin(p, weights, neox=False, heeds=HEEDS, scale=embedding)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, scale=residual))
        x.add(gated(p, x.norm(w.ffn_norm), w, scale=residual))
    end(p, weights, x, scale=1.0 / logits)
