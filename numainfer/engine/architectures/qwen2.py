"""Qwen 2 and 2.5 (arXiv:2407.10671, 2412.15115): GQA with biases on q, k and v, SwiGLU, pre-norms."""

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Qwen 2's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
