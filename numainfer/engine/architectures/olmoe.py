"""OLMoE (arXiv:2409.02060): q/k norms over all heads together, weights as softmax gives them."""

from .blocks import MIXTURE, begin, end, layers, mixture, wide_norm_attention


def build(p, weights):
    """Append the forward pass of OLMoE to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    experts, rope = c.experts(normed=False), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(wide_norm_attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(mixture(p, x.norm(w.ffn_norm), w, experts))
    end(p, weights, x)
