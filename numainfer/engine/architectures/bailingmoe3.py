"""Ling 3 (its model cards of 2026): Kimi Delta Attention, which forgets within a bound, in layers between those of latent attention with a
gate per head; DeepSeek V3's experts, gated within limits in some models.
"""

from ...errors import UnsupportedModel
from . import deepseek2
from .blocks import MIXTURE, PER_LAYER, Hyperparameters, Residual, embedding_matrix, end, layers
from .kda import kda, recurrent, recurs
from .step35 import network


def build(p, weights):
    """Append the forward pass of Ling 3 to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, *PER_LAYER, "rope.dimension_sections")
    c.no_scaling()
    if not c.bool("kda.safe_gate", True):
        c.unsupported("kda.safe_gate", False, [True])
    bound = c.float("kda.gate_lower_bound")
    if bound >= 0:
        c.refuse("kda.gate_lower_bound", bound, "a negative number")
    eps, experts = c.rms_eps(), c.experts("sigmoid", normed=False)
    a, net, x = deepseek2.shape(c, eps, neox=c.sections()), kda(c, eps, bound), Residual(p, p.embed(embedding_matrix(c, weights)), eps)
    rope = c.rope(p, weights, a)
    for i, w in enumerate(layers(c, weights)):
        h = x.norm(w.attn_norm)
        x.add(recurrent(p, h, w, net) if recurs(c, i) else attention(p, h, w, a, rope, c))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)


def attention(p, h, w, a, rope, c):
    """Latent attention, each head times the sigmoid of its gate."""
    if w.attn_gate.n != a.heads:
        raise UnsupportedModel(f"shape of tensor {w.attn_gate.name}", (w.attn_gate.n,), [f"{a.heads} rows, a gate per head"])
    return deepseek2.attention(p, h, w, a, rope, c, gate=p.score(h, w.attn_gate))
