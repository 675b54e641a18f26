"""Phi-1.5 and Phi-2 (arXiv:2309.05463): attention and a feed-forward network with GELU side by side on one LayerNorm, biases everywhere."""

from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append Phi-2's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm=True)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        h = x.norm(w.attn_norm)
        x.add(attention(p, h, w, a, rope))
        x.add(plain(p, h, w, "gelu"))
    end(p, weights, x)
