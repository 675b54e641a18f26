"""Granite 3 with experts: Granite's factors, softmax of the chosen, in some a shared expert."""

from .blocks import MIXTURE, Hyperparameters, attention, begin, end, layers, network
from .granite import HEEDS


def build(p, weights):
    """Append the forward pass of a Granite mixture to plan `p`."""
    c = Hyperparameters(weights.gguf)
    residual = c.float("residual_scale", default=0.0) or 1.0
    c, a, x = begin(p, weights, neox=False, heeds=(*HEEDS, *MIXTURE), scale=c.float("embedding_scale", default=0.0) or 1.0)
    experts, rope = c.experts(normed=True), c.rope(p, weights, a)
    for i, w in enumerate(layers(c, weights)):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, scale=residual))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i, scale=residual))
    end(p, weights, x, scale=1.0 / c.float("logit_scale", low=1e-6))
