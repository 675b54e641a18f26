"""Layers of gated delta nets (arXiv:2412.06464), and of attention behind a gate, as Qwen3-Next and Qwen3.5 have them."""

from dataclasses import dataclass

import numpy as np

from ...errors import CorruptModel
from . import nextn
from .blocks import begin, end, gated, layers, mixture, shared_expert


@dataclass(frozen=True)
class DeltaNet:
    """Shape of the recurrent layers.

    Attributes
    ----------
    taps : int
        Of the convolution.
    heads, groups : int
        Heads of values, and of keys and queries: each of these serves some of those.
    key_length, value_length : int
    eps : float
        Of all norms.
    tiled : bool
        Head h reads the keys of number h % groups; else neighbours share.
    """

    taps: int
    heads: int
    groups: int
    key_length: int
    value_length: int
    eps: float
    tiled: bool

    @property
    def widths(self):
        """Rows of q, k and v."""
        return self.groups * self.key_length, self.groups * self.key_length, self.heads * self.value_length


def delta_net(c, eps, tiled):
    """The DeltaNet that the keys describe."""
    heads = c.int("ssm.time_step_rank", high=4096)
    groups, inner = c.int("ssm.group_count", high=4096), c.int("ssm.inner_size")
    if heads % groups:
        c.refuse("ssm.time_step_rank", heads, f"a multiple of {c.prefix}ssm.group_count = {groups}")
    if inner % heads:
        c.refuse("ssm.inner_size", inner, f"a multiple of {c.prefix}ssm.time_step_rank = {heads}")
    taps, keys = c.int("ssm.conv_kernel", low=2, high=16), c.int("ssm.state_size", high=65536)
    return DeltaNet(taps, heads, groups, keys, inner // heads, eps, tiled)


def recurrent_layers(c, n, interval=4):
    """Which of the first n layers are recurrent: ``attention.recurrent_layers`` has a flag per layer; else all but every
    ``full_attention_interval``-th, `interval` by default."""
    key = "attention.recurrent_layers"
    flags = c.gguf.get(c.prefix + key, default=None)
    if isinstance(flags, np.ndarray):
        if len(flags) < n:
            c.refuse(key, f"{len(flags)} values", f"{n}, one per layer")
        return [bool(flag) for flag in flags[:n]]
    interval = c.int("full_attention_interval", default=interval)
    return [(i + 1) % interval != 0 for i in range(n)]


def recurrent(p, h, w, net):
    """W_out of the gated delta rule over what a convolution makes of q, k and v, each head normed and gated."""
    (qkv, z), (decay, beta) = _projected(p, h, w, net)
    mixed = p.short_conv(qkv, w.columns("ssm_conv1d"), net.taps)
    nq, nk, _ = net.widths
    o = p.recur((mixed, 0), (mixed, nq), (mixed, nq + nk), decay, beta, heads=net.heads, groups=net.groups, key_length=net.key_length,
                value_length=net.value_length, scale=net.key_length**-0.5, eps=net.eps, tiled=net.tiled)  # fmt: skip
    return p.matmul(p.head_norm(o, w.ssm_norm, net.heads, net.eps, gate=z), w.ssm_out)


def _projected(p, h, w, net):
    """(q, k and v side by side, the gate of the output), (decay, beta) of a layer."""
    if w.get("ssm_in") is None:
        matrices = [w.attn_qkv, w.attn_gate]
    else:  # older files: a head of keys after the other, with all that belongs to it
        size = 2 * net.key_length + 2 * net.heads // net.groups * net.value_length
        heads = np.arange(net.groups * size).reshape(net.groups, size)
        ends = np.cumsum([net.key_length, net.key_length, net.heads // net.groups * net.value_length])
        q, k, v, z = (part.ravel() for part in np.split(heads, ends, axis=1))
        matrices = w.picked("ssm_in", {"qkv": np.concatenate([q, k, v]), "gate": z})
    for matrix, rows in zip(matrices, (sum(net.widths), net.widths[2])):
        if matrix.n != rows:
            raise CorruptModel(w.path, f"{matrix.name} has {matrix.n} rows, wanted {rows}")
    bias, factor = w.bias("ssm_dt") or w.exactly("ssm_dt.bias"), w.exactly("ssm_a")
    if w.get("ssm_ba") is None:
        qkv_z = p.matmul(h, *matrices)
        beta, alpha = p.matmul(h, w.ssm_beta, w.ssm_alpha)
        return qkv_z, (p.gates(alpha, "decay", bias, factor), p.gates(beta, "sigmoid"))
    *qkv_z, both = p.matmul(h, *matrices, w.ssm_ba)
    each = net.heads // net.groups
    return qkv_z, (p.gates(both, "decay", bias, factor, net.groups, each, each), p.gates(both, "sigmoid", None, None, net.groups, 0, each))


def attention(p, h, w, a, rope):
    """W_o of (attention times a sigmoid); rows of a head's query and of its gate stand one behind the other in ``attn_q``."""
    q, k, v = p.matmul(h, *_projections(w, a))
    o = p.attend(p.join(a.heads, (q, 0, a.key_length)), k, v, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm)
    return p.matmul(p.gated(p.join(a.heads, (q, a.key_length, a.key_length)), o, "sigmoid"), w.attn_output)


def _projections(w, a):
    """The matrices of queries and gates, of keys, and of values."""
    counts = 2 * a.heads * a.key_length, a.kv_heads * a.key_length, a.kv_heads * a.value_length
    q, k, v = w.rows("attn_qkv", *counts) if w.get("attn_qkv") else (w.attn_q, w.attn_k, w.attn_v)
    if q.n != counts[0]:
        raise CorruptModel(w.path, f"{q.name} has {q.n} rows, wanted {counts[0]}: queries and gates of {a.heads} heads of {a.key_length}")
    return q, k, v


def network(p, h, w, experts):
    """Experts, with one that all tokens share behind a gate; or a plain network."""
    if w.get("ffn_gate_inp") is None:
        return gated(p, h, w)
    if w.get("ffn_up_shexp") is None:
        return mixture(p, h, w, experts)
    return mixture(p, h, w, experts, shared=shared_expert(p, h, w), gate=p.score(h, w.row("ffn_gate_inp_shexp")))


def forward(p, weights, *, tiled, heeds=()):
    """Append the forward pass of recurrent layers, with attention between them, to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=heeds)
    experts = c.experts() if "expert_count" in heeds else None
    net, rope, blocks = delta_net(c, a.eps, tiled), c.rope(p, weights, a), layers(c, weights)

    def layer(p, x, w, rope, recurs=False):
        h = x.norm(w.attn_norm)
        x.add(recurrent(p, h, w, net) if recurs else attention(p, h, w, a, rope))
        x.add(network(p, x.norm(w.post_attention_norm), w, experts))

    for w, recurs in zip(blocks, recurrent_layers(c, len(blocks))):
        layer(p, x, w, rope, recurs)
    nextn.head(p, weights, c, x, a.eps, lambda q, x, w: layer(q, x, w, c.rope(q, weights, a)),
               lambda p, h, w: p.keep(*p.matmul(h, *_projections(w, a)[1:]), a, rope, k_norm=w.attn_k_norm))
    end(p, weights, x)
