"""Qwen 3 (arXiv:2505.09388), dense: GQA with q/k norms per head, SwiGLU, pre-norms."""

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Qwen 3's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
