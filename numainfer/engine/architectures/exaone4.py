"""EXAONE 4.0 (arXiv:2507.11407): norms after each block alone, q/k norms per head, SwiGLU.

The 32 B model has a window in three of four layers, and no rotary positions in the others.
"""

from dataclasses import replace

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append EXAONE's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=("attention.sliding_window",))
    blocks = layers(c, weights)
    window = c.int("attention.sliding_window", default=4096 if len(blocks) == 64 else 0, low=0)
    windowed = c.windowed(4) if window else [False] * len(blocks)
    local, rope = replace(a, window=window), c.rope(p, weights, a, local=window > 0)
    for w, is_local in zip(blocks, windowed):
        o = attention(p, x.value(), w, local if is_local else a, rope if is_local or not window else None, q_norm=w.attn_q_norm,
                      k_norm=w.attn_k_norm)
        x.add(o, post=w.post_attention_norm)
        x.add(gated(p, x.value(), w), post=w.post_ffw_norm)
    end(p, weights, x)
