"""Kimi K3 (its model card of 2026): Kimi Linear's layers, KDA within a bound, latent attention with a gate per value, experts that read a
narrower row; each block reads what the streams of earlier layers and its own say together (attention residuals).

Every so many layers the stream is banked, and begins anew with what that layer's attention says.
"""

from ...errors import CorruptModel
from . import deepseek2
from .blocks import MIXTURE, Hyperparameters, Residual, embedding_matrix, end, layers, mixture, shared_expert
from .kda import kda, recurrent, recurs


def build(p, weights):
    """Append the forward pass of Kimi K3 to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE)
    c.no_scaling()
    eps, experts, act, limit = c.rms_eps(), c.experts("sigmoid", normed=False), gate(c), bound(c)
    a, net, every = deepseek2.shape(c, eps), kda(c, eps, limit, negated=limit < 0), c.int("attn_res.block_size", low=0)
    leading, values = c.int("leading_dense_block_count", default=0, low=0), a.heads * c.int("attention.value_length_mla")
    x, bank = p.embed(embedding_matrix(c, weights)), None
    if every:
        weights.skip(["blk.0.attn_res_score."])  # nothing is banked before it
    for i, w in enumerate(layers(c, weights)):
        h = p.norm(x if bank is None else p.recall(bank, x, w.attn_res_score, eps), w.attn_norm, eps)[1]
        y = recurrent(p, h, w, net) if recurs(c, i) else deepseek2.attention(p, h, w, a, None, c, gate=output_gate(p, h, w, values))
        if every and i % every == 0:
            bank = x if bank is None else p.join(1, (bank, 0, bank.width), (x, 0, x.width))
            x = whole(p, y)
        else:
            x = p.add(x, y)
        h = p.norm(x if bank is None else p.recall(bank, x, w.ffn_res_score, eps), w.ffn_norm, eps)[1]
        x = p.add(x, **(dense(p, h, w, act) if i < leading else latent(p, h, w, experts, act, eps)))
    end(p, weights, Residual(p, x if bank is None else p.recall(bank, x, weights["output_res_score.weight"], eps), eps))


def bound(c):
    """Logarithm of what a row of a state keeps at least, or 0 where the file has no bound."""
    key = "kda.gate_lower_bound"
    if c.prefix + key not in c.gguf.metadata:
        return 0.0
    found = c.float(key)
    if found >= 0:
        c.refuse(key, found, "a negative number")
    return found


def gate(c):
    """The activation of all networks, as `Plan.gated` takes it."""
    alpha, limit = c.float("activation.situ_beta"), c.float("activation.situ_linear_beta")
    if alpha <= 0:
        c.refuse("activation.situ_beta", alpha, "a positive number")
    return {"activation": "situ", "alpha": alpha, "limit": max(limit, 0.0)}


def output_gate(p, h, w, values):
    """Of latent attention, one for each of so many values of its heads, where the layer has any."""
    if not w.get("attn_gate"):
        return None
    if w.attn_gate.n != values:
        raise CorruptModel(w.path, f"{w.attn_gate.name} has {w.attn_gate.n} rows, wanted {values}, one for each value of a head")
    return p.matmul(h, w.attn_gate)


def dense(p, h, w, act):
    """What a layer without experts adds, as `Plan.add` takes it."""
    return {"y": p.matmul(p.gated(*p.matmul(h, w.ffn_gate, w.ffn_up), **act), w.ffn_down)}


def latent(p, h, w, experts, act, eps):
    """What a layer's experts add, and what all tokens share.  The chosen ones may read, and make, a narrower row."""
    shared = shared_expert(p, h, w, **act) if w.get("ffn_gate_shexp") else None
    if not w.get("ffn_routed_down"):
        return {"y": mixture(p, h, w, experts, shared=shared, **act)}
    y = mixture(p, whole(p, p.matmul(h, w.ffn_routed_down)), w, experts, by=h, **act)
    y = p.normed(y, w.ffn_routed_norm, eps) if w.get("ffn_routed_norm") else y
    return {"y": p.matmul(y, w.ffn_routed_up), "z": shared and shared()}


def whole(p, x):
    """x on every node, in whatever form a matrix takes."""
    return p.join(1, (x, 0, x.width))
