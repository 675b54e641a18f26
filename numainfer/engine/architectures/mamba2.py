"""Mamba-2 (arXiv:2405.21060): nothing but its recurrent layers, whose matrix of each head decays by one number per position.

Other architectures have such layers between theirs, by the functions of this file.
"""

from dataclasses import dataclass

from ...errors import CorruptModel
from .blocks import Hyperparameters, Residual, embedding_matrix, end, layers


@dataclass(frozen=True)
class Mamba:
    """Shape of the recurrent layers.

    Attributes
    ----------
    taps : int
        Of the convolution.
    heads, groups : int
        Heads, and groups of neighbouring ones that share B and C; each group is normed for itself.
    state : int
        Values of a group's B, and of its C.
    inner : int
        Values of all heads together.
    eps : float
        Of the norm.
    """

    taps: int
    heads: int
    groups: int
    state: int
    inner: int
    eps: float


def mamba(c, eps, least_groups=1):
    """The Mamba that the keys describe; 0 groups, where files may say so, are one."""
    heads = c.int("ssm.time_step_rank", high=4096)
    groups, inner = c.int("ssm.group_count", low=least_groups, high=4096) or 1, c.int("ssm.inner_size")
    if heads % groups:
        c.refuse("ssm.time_step_rank", heads, f"a multiple of {c.prefix}ssm.group_count = {groups}")
    if inner % heads:
        c.refuse("ssm.inner_size", inner, f"a multiple of {c.prefix}ssm.time_step_rank = {heads}")
    taps, state = c.int("ssm.conv_kernel", low=2, high=16), c.int("ssm.state_size", high=65536)
    return Mamba(taps, heads, groups, state, inner, eps)


def recurrent(p, h, w, m, scale=1.0):
    """W_out of what the heads read from their states, gated, then normed where the file has a norm.

    With dt = softplus(W_dt h + bias), and x, B and C out of a convolution, a head's state becomes exp(A dt) S + B (dt x)^T, of which it
    reads S^T C + D x.
    """
    shared = m.groups * m.state
    z, xbc, dt = p.matmul(h, *w.rows("ssm_in", m.inner, m.inner + 2 * shared, m.heads))
    bias = w.bias("ssm_dt") or w.exactly("ssm_dt.bias")
    decay, dt = p.gates(dt, "decay", bias, w.flatly("ssm_a")), p.gates(dt, "softplus", bias)
    xbc = p.short_conv(xbc, w.columns("ssm_conv1d"), m.taps, w.bias("ssm_conv1d"))
    y = p.recur((xbc, m.inner + shared), (xbc, m.inner), (xbc, 0), decay, dt, delta=False, skip=w.flatly("ssm_d"), heads=m.heads,
                groups=m.groups, key_length=m.state, value_length=m.inner // m.heads)  # fmt: skip
    norm = w.flat("ssm_norm")
    if norm is None:
        return p.matmul(p.gated(z, y, "silu"), w.ssm_out, scale=scale)
    if norm.n != m.inner:
        raise CorruptModel(w.path, f"{norm.name} has {norm.n} values, wanted {m.inner}")
    return p.matmul(p.head_norm(y, norm, m.groups, m.eps, gate=z, gate_first=True), w.ssm_out, scale=scale)


def is_recurrent(c, i):
    """Whether layer i has no heads of keys and values, as files say it."""
    return c.int("attention.head_count_kv", low=0, high=4096, layer=i) == 0


def build(p, weights):
    """Append Mamba-2's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral()
    x = Residual(p, p.embed(embedding_matrix(c, weights)), c.rms_eps())
    m = mamba(c, c.rms_eps())
    for w in layers(c, weights):
        x.add(recurrent(p, x.norm(w.attn_norm), w, m))
    end(p, weights, x)
