"""Falcon H1 (arXiv:2507.22448): in each layer heads of attention and of Mamba-2 side by side, whose results are added.

The file's matrices already hold the published multipliers.
"""

from .blocks import attention, begin, end, gated, layers
from .mamba2 import mamba, recurrent


def build(p, weights):
    """Append Falcon H1's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True)
    m, rope = mamba(c, a.eps), c.rope(p, weights, a)
    for w in layers(c, weights):
        h = x.norm(w.attn_norm)
        x.add(attention(p, h, w, a, rope))
        x.add(recurrent(p, h, w, m))
        x.add(gated(p, x.norm(w.either("ffn_norm")), w))
    end(p, weights, x)
