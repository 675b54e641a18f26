"""ERNIE 4.5 with experts: softmax gating with a bias for choosing, weights divided by their sum, shared experts."""

from .blocks import MIXTURE, attention, begin, end, layers, network


def build(p, weights):
    """Append the forward pass of an ERNIE 4.5 mixture to plan `p`."""
    c, a, x = begin(p, weights, neox=False, heeds=MIXTURE)
    experts, rope = c.experts(normed=True), c.rope(p, weights, a)
    for i, w in enumerate(layers(c, weights)):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)
