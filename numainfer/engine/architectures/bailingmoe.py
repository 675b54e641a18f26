"""Ling (arXiv:2503.05139): experts weighed by softmax, shared experts."""

from .blocks import MIXTURE, attention, begin, end, layers, network


def build(p, weights):
    """Append the forward pass of Ling to plan `p`."""
    c, a, x = begin(p, weights, neox=False, heeds=MIXTURE)
    experts, rope = c.experts(normed=False), c.rope(p, weights, a)
    for i, w in enumerate(layers(c, weights)):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)
