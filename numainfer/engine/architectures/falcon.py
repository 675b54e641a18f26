"""Falcon (arXiv:2311.16867): attention and a feed-forward network with GELU side by side; the larger models norm for each of them.

The published GELU is the exact one, and ours, as llama.cpp's, the form by tanh, which is at most 5e-4 away.
"""

from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append Falcon's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm=True)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        h = x.norm(w.attn_norm)
        x.add(attention(p, h if w.get("attn_norm_2") is None else x.norm(w.attn_norm_2), w, a, rope))
        x.add(plain(p, h, w, "gelu"))
    end(p, weights, x)
