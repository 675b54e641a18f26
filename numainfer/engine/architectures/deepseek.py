"""DeepSeek's first mixtures (arXiv:2401.06066): fine experts, of which some are shared; the first layers without."""

from .blocks import MIXTURE, attention, begin, end, layers, network


def build(p, weights):
    """Append the forward pass of DeepSeekMoE to plan `p`."""
    c, a, x = begin(p, weights, neox=False, heeds=MIXTURE)
    experts, rope = c.experts(normed=False), c.rope(p, weights, a)
    for i, w in enumerate(layers(c, weights)):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)
