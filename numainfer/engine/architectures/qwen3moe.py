"""Qwen3 with experts (arXiv:2505.09388): q/k norms per head, weights of the chosen divided by their sum."""

from .blocks import MIXTURE, attention, begin, end, layers, mixture


def build(p, weights):
    """Append the forward pass of a Qwen3 mixture to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    experts, rope = c.experts(normed=True), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        x.add(mixture(p, x.norm(w.ffn_norm), w, experts))
    end(p, weights, x)
