"""Command R (its model card of 2024): attention and SwiGLU side by side on one LayerNorm without bias, a factor on the logits."""

from .blocks import begin, end, gated, head_norm_attention, layers


def build(p, weights):
    """Append Command R's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False, layer_norm=True, heeds=("logit_scale",))
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        h = x.norm(w.attn_norm)
        x.add(head_norm_attention(p, h, w, a, rope))
        x.add(gated(p, h, w))
    end(p, weights, x, scale=c.float("logit_scale", default=0.0) or 1.0)
