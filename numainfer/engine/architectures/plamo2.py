"""PLaMo 2 (arXiv:2509.04897): Mamba-2 and attention in turns, norms before and behind each block, norms per head of queries and keys.

B, C and dt are made of what the convolution left of x, and normed; all heads share one B and one C.
"""

import numpy as np

from .blocks import Hyperparameters, Residual, embedding_matrix, end, gated, layers, project
from .mamba2 import is_recurrent, mamba


def build(p, weights):
    """Append PLaMo 2's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral()
    eps = c.rms_eps()
    x, m, ropes = Residual(p, p.embed(embedding_matrix(c, weights)), eps), mamba(c, eps, least_groups=0), {}
    for i, w in enumerate(layers(c, weights)):
        h = x.norm(w.attn_norm)
        if is_recurrent(c, i):
            y = recurrent(p, h, w, m)
        else:
            a = c.attention(neox=True, eps=eps, layer=i)
            if a.rope_dim not in ropes:
                ropes[a.rope_dim] = c.rope(p, weights, a)
            y = attention(p, h, w, a, ropes[a.rope_dim])
        x.add(y, post=w.either("post_attention_norm"))
        x.add(gated(p, x.norm(w.ffn_norm), w), post=w.either("post_ffw_norm"))
    end(p, weights, x)


def recurrent(p, h, w, m):
    """W_out of what the heads read from their states, gated.  Rows of ``ssm_in`` are a head's gate and its x, head after head."""
    width = m.inner // m.heads
    rows = np.arange(2 * m.inner).reshape(m.heads, 2, width)
    z, x = p.matmul(h, *w.picked("ssm_in", {"gate": rows[:, 0].ravel(), "x": rows[:, 1].ravel()}))
    x = p.short_conv(x, w.columns("ssm_conv1d"), m.taps, w.bias("ssm_conv1d"))
    b, c, dt = p.matmul(p.join(1, (x, 0, m.inner)), *w.rows("ssm_x", m.state, m.state, getattr(w.ssm_dt, "k", 1)))
    b, c, dt = (p.normed(t, w.either(f"ssm_{name}_norm"), m.eps) for name, t in (("b", b), ("c", c), ("dt", dt)))
    dt = p.matmul(dt, *w.rows("ssm_dt", m.heads))
    decay, dt = p.gates(dt, "decay", None, w.flatly("ssm_a")), p.gates(dt, "softplus")
    y = p.recur((c, 0), (b, 0), (x, 0), decay, dt, delta=False, skip=w.flatly("ssm_d"), heads=m.heads, groups=1, key_length=m.state,
                value_length=width)  # fmt: skip
    return p.matmul(p.gated(z, y, "silu"), w.ssm_out)


def attention(p, h, w, a, rope):
    """W_o of attention, whose queries and keys are normed head by head."""
    q, k, v = project(p, h, w, a)
    q_norm, k_norm = w.flat("attn_q_norm") or w.attn_q_norm, w.flat("attn_k_norm") or w.attn_k_norm
    q, k = p.head_norm(q, q_norm, a.heads, a.eps), p.head_norm(k, k_norm, a.kv_heads, a.eps)
    return p.matmul(p.attend(q, k, v, a, rope), w.attn_output)
