"""Hunyuan-A13B: q/k norms per head behind the rotation, softmax gating, a shared expert."""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, layers, mixture, shared_expert


def build(p, weights):
    """Append Hunyuan's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    a, experts, rope = replace(a, norm_last=True), c.experts(normed=True), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        h = x.norm(w.ffn_norm)
        x.add(mixture(p, h, w, experts, shared=shared_expert(p, h, w)))
    end(p, weights, x)
