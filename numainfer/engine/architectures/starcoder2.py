"""StarCoder 2 (arXiv:2402.19173): GQA, LayerNorm, a feed-forward network with GELU and without a gate, biases everywhere.

Files do not tell the published window of 4,096 positions; where a key does, it is heeded.
"""

from dataclasses import replace

from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append StarCoder 2's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm=True, heeds=("attention.sliding_window",))
    a, rope = replace(a, window=c.int("attention.sliding_window", default=0, low=0)), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(plain(p, x.norm(w.ffn_norm), w, "gelu"))
    end(p, weights, x)
