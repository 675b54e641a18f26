"""Hunyuan V3: q/k norms per head, the first layers without experts, sigmoid gating with a bias for choosing."""

from .blocks import MIXTURE, attention, begin, end, layers, network


def build(p, weights):
    """Append the forward pass of Hunyuan V3 to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    experts, rope = c.experts("sigmoid", normed=False), c.rope(p, weights, a)
    for i, w in enumerate(layers(c, weights)):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)
