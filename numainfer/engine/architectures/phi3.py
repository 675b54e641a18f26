"""Phi-3, 3.5 and 4 (arXiv:2404.14219, 2412.08905): GQA and SwiGLU with fused matrices, longrope.

The window of Phi-3-mini (2047) is heeded, as the published model does; llama.cpp leaves it out.
"""

from dataclasses import replace

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Phi-3's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=("attention.sliding_window",))
    a, rope = replace(a, window=c.int("attention.sliding_window", default=0, low=0)), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
