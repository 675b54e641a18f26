"""Kimi Linear (arXiv:2510.26692): three layers of Kimi Delta Attention (KDA) to one of latent attention without positions; fine experts,
one shared.
"""

from . import deepseek2
from .blocks import MIXTURE, Hyperparameters, Residual, embedding_matrix, end, layers, network
from .kda import kda, recurrent, recurs


def build(p, weights):
    """Append the forward pass of Kimi Linear to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE)
    c.no_scaling()
    if c.float("kda.gate_lower_bound", default=0.0):
        c.unsupported("kda.gate_lower_bound", c.float("kda.gate_lower_bound"), ["none"])
    eps, experts = c.rms_eps(), c.experts("sigmoid")
    a, net, x = deepseek2.shape(c, eps), kda(c, eps), Residual(p, p.embed(embedding_matrix(c, weights)), eps)
    for i, w in enumerate(layers(c, weights)):
        h = x.norm(w.attn_norm)
        x.add(recurrent(p, h, w, net) if recurs(c, i) else deepseek2.attention(p, h, w, a, None, c))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)
