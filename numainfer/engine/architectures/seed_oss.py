"""Seed-OSS (its model card of 2025): GQA with biases on q, k and v, SwiGLU, pre-norms, of which files call the second a post-norm."""

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Seed-OSS's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(gated(p, x.norm(w.post_attention_norm), w))
    end(p, weights, x)
