"""Layers of Kimi Delta Attention (arXiv:2510.26692): the gated delta rule, whose states forget row by row."""

from dataclasses import dataclass

from ...errors import CorruptModel


@dataclass(frozen=True)
class KDA:
    """Shape of the recurrent layers.

    Attributes
    ----------
    taps : int
        Of the convolutions.
    heads, width : int
        Heads, each with a query, a key, a value and a gate for each row of its state, all of that width.
    eps : float
        Of all norms.
    bound : float
        Logarithm of what a row keeps at least, a negative number; 0 where there is no such bound.
    negated : bool
        The file holds the negative of the factor that a gate with a bound takes.
    unit : float or None
        What is added to a sum of squares before queries and keys are divided by its root; None: `eps`.
    """

    taps: int
    heads: int
    width: int
    eps: float
    bound: float
    negated: bool = False
    unit: float | None = None


def kda(c, eps, bound=0.0, negated=False):
    """The KDA that the keys describe, with that bound."""
    heads, width = c.int("attention.head_count", high=4096), c.int("kda.head_dim", high=65536)
    return KDA(c.int("ssm.conv_kernel", low=2, high=16), heads, width, eps, bound, negated)


def recurs(c, i):
    """Whether layer i is recurrent: it has no kv-heads."""
    return c.int("attention.head_count_kv", low=0, layer=i) == 0


def recurrent(p, h, w, net):
    """W_o of the delta rule over what convolutions make of q, k and v, each head normed, times a sigmoid."""
    inner = net.heads * net.width
    matrices = w.rows("attn_qkv", inner, inner, inner) if w.get("attn_qkv") else [w.attn_q, w.attn_k, w.attn_v]
    for matrix in matrices:
        if matrix.n != inner:
            raise CorruptModel(w.path, f"{matrix.name} has {matrix.n} rows, wanted {inner}: {net.heads} heads of {net.width}")
    q, k, v = (p.short_conv(x, w.columns(f"ssm_conv1d_{name}"), net.taps) for x, name in zip(p.matmul(h, *matrices), "qkv"))
    f, g, beta = p.matmul(h, w.ssm_f_a, w.get("ssm_g") or w.ssm_g_a, w.ssm_beta)
    f, g = (p.matmul(p.join(1, (x, 0, x.width)), up) if up else x for x, up in ((f, w.get("ssm_f_b")), (g, w.get("ssm_g_b"))))
    bias, factor = w.bias("ssm_dt") or w.exactly("ssm_dt.bias"), w.repeated("ssm_a", net.width, -1 if net.negated else 1)
    decay = p.gates(f, "bounded" if net.bound else "decay", bias, factor, bound=net.bound)
    o = p.recur((q, 0), (k, 0), (v, 0), decay, p.gates(beta, "sigmoid"), heads=net.heads, groups=net.heads, key_length=net.width,
                value_length=net.width, scale=net.width**-0.5, eps=net.eps if net.unit is None else net.unit)  # fmt: skip
    return p.matmul(p.head_norm(o, w.ssm_norm, net.heads, net.eps, gate=g, act="sigmoid"), w.attn_output)
