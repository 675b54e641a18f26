"""ERNIE 4.5, the dense model of 0.3 B (its technical report of 2025): GQA, SwiGLU, pre-norms; embedding and output are one matrix."""

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append ERNIE 4.5's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
