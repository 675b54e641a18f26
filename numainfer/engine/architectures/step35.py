"""Step-3.5 Flash (its report of 2026): windows in most layers, which have more heads and rotate all of them; gates per head, with limits.

Layers that see all rotate half of what the file says, by its factors.
"""

from dataclasses import replace

import numpy as np

from ...errors import UnsupportedModel
from .blocks import MIXTURE, PER_LAYER, Hyperparameters, Residual, embedding_matrix, end, gated, layers, mixture, project, shared_expert


def build(p, weights):
    """Append Step-3.5's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, *PER_LAYER, "attention.sliding_window")
    eps, experts, window = c.rms_eps(), c.experts("sigmoid", normed=False), c.int("attention.sliding_window")
    x, ropes = Residual(p, p.embed(embedding_matrix(c, weights)), eps), {}
    for i, (w, local) in enumerate(zip(layers(c, weights), c.windowed(4))):
        a = c.attention(neox=True, eps=eps, layer=i)
        n_rot = c.int("rope.dimension_count_swa", default=a.rope_dim, high=a.key_length) if local else a.rope_dim // 2
        if n_rot % 2:
            c.refuse("rope.dimension_count", a.rope_dim, "a multiple of 4")
        a = replace(a, window=window if local else 0, rope_dim=n_rot)
        if local not in ropes:
            ropes[local] = rotary(p, weights, c, n_rot, local)
        x.add(attention(p, x.norm(w.attn_norm), w, a, ropes[local]))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)


def rotary(p, weights, c, n_rot, local):
    """The table of layers with a window, or of the others."""
    c.no_scaling()
    base, factors = c.float("rope.freq_base", default=10000.0, low=1), None if local else weights.values("rope_freqs.weight")
    base = c.float("rope.freq_base_swa", default=base, low=1) if local else base
    frequencies = base ** (-2.0 * np.arange(n_rot // 2) / n_rot)
    if factors is not None:
        frequencies = c.divided(frequencies, factors[: n_rot // 2])
    return p.rope_table(weights.constant("local rope" if local else "rope", frequencies))


def attention(p, h, w, a, rope, gate="sigmoid"):
    """W_o of each head times what is made of its gate."""
    q, k, v = project(p, h, w, a)
    o = p.attend(q, k, v, a, rope, q_norm=w.get("attn_q_norm"), k_norm=w.get("attn_k_norm"))
    if w.get("attn_gate"):
        if w.attn_gate.n != a.heads:
            shape = w.attn_gate.n, getattr(w.attn_gate, "k", 1)
            raise UnsupportedModel(f"shape of tensor {w.attn_gate.name}", shape, [f"{a.heads} rows, a gate per head"])
        o = p.weigh(p.join(a.heads, (o, 0, a.value_length), apart=True), p.score(h, w.attn_gate), gate)
        o = p.join(a.heads, (o, 0, a.value_length))
    return p.matmul(o, w.attn_output)


def network(p, h, w, e, i):
    """Experts and what they share, or a plain network, within the limits of layer i."""
    chosen, shared = (limits(e.c.float(key, default=0.0, low=0, layer=i)) for key in PER_LAYER)
    if w.get("ffn_gate_inp"):
        return mixture(p, h, w, e, shared=shared_expert(p, h, w, **shared), **chosen)
    if shared:
        raise UnsupportedModel(f"{e.c.prefix}swiglu_clamp_shexp of layer {i}", shared["limit"], [0.0], "The layer has no experts")
    return gated(p, h, w)


def limits(limit):
    """How `Plan.gated` gates within a limit; 0 for none."""
    return {"activation": "limited", "limit": limit} if limit > 1e-6 else {}
