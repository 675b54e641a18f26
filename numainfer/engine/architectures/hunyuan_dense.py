"""Hunyuan's dense models (their model cards of 2025): GQA, SwiGLU, pre-norms; q and k are normed per head after they are rotated."""

from dataclasses import replace

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Hunyuan's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True)
    a, rope = replace(a, norm_last=True), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
