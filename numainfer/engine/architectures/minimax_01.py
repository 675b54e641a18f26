"""MiniMax Text-01 and M1 (arXiv:2501.08313): lightning attention, whose heads each forget at a fixed pace, in seven layers of eight;
experts; each block's result is added to a multiple of what its norm gave it.
"""

import numpy as np

from ...errors import CorruptModel
from .blocks import MIXTURE, Residual, attention, begin, end, layers, mixture
from .deltanet import recurrent_layers


def build(p, weights):
    """Append MiniMax 01's forward pass to plan `p`.

    What is added to a times h is the stream only for the next norm: so that is taken of h plus 1 / a of it, with eps / a^2, which comes to
    the same.
    """
    c, a, x = begin(p, weights, neox=True, heeds=(*MIXTURE, "residual_scale"))
    factor, experts, rope, blocks = c.float("residual_scale", low=1e-3), c.experts(normed=True), c.rope(p, weights, a), layers(c, weights)
    for i, (w, recurs) in enumerate(zip(blocks, recurrent_layers(c, len(blocks), 8))):
        h, scale = x.norm(w.attn_norm, kept=False), 1.0 / factor
        x = Residual(p, h, a.eps / factor**2)
        x.add(lightning(p, h, w, a, decay(weights, a.heads, i, len(blocks)), scale) if recurs else attention(p, h, w, a, rope, scale))
        h = x.norm(w.ffn_norm, kept=False)
        x = Residual(p, h, a.eps / factor**2)
        x.add(mixture(p, h, w, experts, scale=scale))
    end(p, weights, x)


def decay(weights, heads, i, n):
    """What each head of layer i of n keeps from one position to the next: exp(-2^(-8 (head + 1) / heads)), more of it further up."""
    slopes = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)
    return weights.constant(f"blk.{i} decay", np.exp(-slopes * (1.0 - i / max(n - 1, 1) + 1e-5)), np.float32)


def lightning(p, h, w, a, kept, scale):
    """W_o of what heads read from their states, normed over all of them, times a sigmoid.

    Rows of ``attn_qkv`` are a head's query, key and value, head after head.
    """
    e, inner = a.key_length, a.heads * a.key_length
    if a.value_length != e:
        raise CorruptModel(w.path, f"heads have keys of {e} values and values of {a.value_length}; wanted as many")
    rows = np.arange(3 * inner).reshape(a.heads, 3, e).transpose(1, 0, 2)
    qkv, g = p.matmul(h, *w.picked("attn_qkv", {"qkv": rows.ravel()}), w.attn_gate)
    qkv = p.gated(qkv, qkv, "sigmoid")  # SiLU
    o = p.recur((qkv, 0), (qkv, inner), (qkv, 2 * inner), kept, heads=a.heads, groups=a.heads, key_length=e, value_length=e)
    return p.matmul(p.head_norm(o, w.attn_norm_2, 1, a.eps, gate=g, act="sigmoid"), w.attn_output, scale=scale)
