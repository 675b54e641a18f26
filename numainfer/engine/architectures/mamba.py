"""Mamba (arXiv:2312.00752): nothing but selective scans, where each number of a channel's state forgets at a pace of its own; and Falcon
Mamba (arXiv:2410.05355), which norms what steers them.

Jamba has such layers between its others, by the functions of this file.
"""

from dataclasses import dataclass

from .blocks import Hyperparameters, Residual, embedding_matrix, end, layers


@dataclass(frozen=True)
class Scan:
    """Shape of the recurrent layers.

    Attributes
    ----------
    taps : int
        Of the convolution.
    inner : int
        Channels.
    state : int
        Numbers of a channel's state, and values of B and of C, which all channels share.
    rank : int
        Values of which all channels' paces are made.
    eps : float
        Of all norms.
    """

    taps: int
    inner: int
    state: int
    rank: int
    eps: float


def scan(c, eps):
    """The Scan that the keys describe."""
    taps, state = c.int("ssm.conv_kernel", low=2, high=16), c.int("ssm.state_size", high=65536)
    return Scan(taps, c.int("ssm.inner_size"), state, c.int("ssm.time_step_rank"), eps)


def recurrent(p, h, w, m, norms=None):
    """W_out of what the channels read from their states, gated.

    With dt = log(1 + exp(W_dt r + bias)), where r, B and C are made of what a convolution left of x, a channel's state becomes
    exp(A dt) S + B dt x, of which it reads S . C + D x.

    norms : weights of the norms of r, B and C, or None each; without, there are no norms.
    """
    x, z = p.matmul(h, *w.rows("ssm_in", m.inner, m.inner))
    x = p.short_conv(x, w.columns("ssm_conv1d"), m.taps, w.bias("ssm_conv1d"))
    r, b, c = p.matmul(x, *w.rows("ssm_x", m.rank, m.state, m.state))
    if norms is None:
        r = p.join(1, (r, 0, m.rank))
    else:
        r, b, c = (p.normed(y, norm, m.eps) for y, norm in zip((r, b, c), norms))
    y = p.scan(x, p.matmul(r, w.ssm_dt), b, c, w.in_blocks("ssm_a", m.inner, m.state), w.flatly("ssm_d"))
    return p.matmul(p.gated(z, y, "silu"), w.ssm_out)


def build(p, weights):
    """Append Mamba's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral()
    x = Residual(p, p.embed(embedding_matrix(c, weights)), c.rms_eps())
    m, norms = scan(c, c.rms_eps()), (None,) * 3 if c.bool("ssm.dt_b_c_rms", False) else None
    for w in layers(c, weights):
        x.add(recurrent(p, x.norm(w.attn_norm), w, m, norms))
    end(p, weights, x)
