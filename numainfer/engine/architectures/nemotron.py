"""Nemotron 4 and Minitron (arXiv:2402.16819, 2407.14679): LayerNorm, squared ReLU (arXiv:2109.08668), half of each head rotated.

The file's norm weights already hold the published 1 + w.
"""

from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append Nemotron's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm=True)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(plain(p, x.norm(w.ffn_norm), w, "relu^2"))
    end(p, weights, x)
