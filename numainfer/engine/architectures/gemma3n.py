"""Gemma 3n (its model card of 2025): Gemma 3's layers over several residual streams (AltUp, arXiv:2301.13310), with a low-rank path beside
attention (Laurel, arXiv:2411.07501), sparse gates in the first layers, an input of each layer's own, and keys and values that the last
layers share.

Layers compute the first stream; the others are predicted and corrected by it.  Values are normed.
"""

import math
from dataclasses import replace

import numpy as np

from ...errors import CorruptModel
from ..weights import Vector
from .blocks import Hyperparameters, Residual, embedding_matrix, end, layers
from .gemma4 import attend, inputs

HEEDS = ("attention.sliding_window", "attention.shared_kv_layers", "final_logit_softcapping")
SHORTEST = 1e-5  # mean square that a stream counts as having at least, where it is divided by its root
NONE = (0.0, -math.inf)  # deviations in `activation_sparsity_scale` of layers whose gates are not sparse


def build(p, weights):
    """Append Gemma 3n's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*HEEDS)
    if c.int("altup.active_idx", default=0, low=0):
        c.unsupported("altup.active_idx", c.int("altup.active_idx"), [0])
    eps, table, n = c.rms_eps(), embedding_matrix(c, weights), c.int("altup.num_inputs", low=2, high=16)
    a = replace(c.attention(neox=True, eps=eps), scale=1.0)  # queries and keys are normed
    blocks, windowed = layers(c, weights), c.windowed(5)
    shared, sparse = c.int("attention.shared_kv_layers", default=0, low=0, high=len(blocks) - 1), deviations(c, len(blocks))
    embedded = p.embed(table, math.sqrt(table.k))
    of_layers = inputs(p, c, weights, embedded, eps, len(blocks))
    if of_layers is None:
        c.refuse("embedding_length_per_layer_input", 0, "at least 1")
    local = replace(a, window=c.int("attention.sliding_window"))
    ropes = c.rope(p, weights, a, local=False), c.rope(p, weights, a, scaled=False, local=True, local_base=10000.0)
    x, z, kept = streams(p, weights, embedded, n), None, {}
    for i, (w, is_local) in enumerate(zip(blocks, windowed)):
        is_own, how = i < len(blocks) - shared, router(weights, w, eps, table.k)
        if not is_own and is_local not in kept:
            c.refuse("attention.shared_kv_layers", shared, f"fewer: layer {i} has no earlier one of its kind")
        x, active = p.altup(x, n, z=z, coefficients=flat(w, "altup_predict_coef"), **how)
        h = p.norm(active, w.attn_norm, eps)[1]
        low = p.matmul(h, w.laurel_l)
        o = attend(p, h, w, local if is_local else a, ropes[is_local], None if is_own else kept[is_local], weights)
        if is_own:
            kept[is_local] = o
        laurel = p.matmul(p.join(1, (low, 0, low.width)), w.laurel_r)
        y = p.add(active, p.matmul(o, w.attn_output), w.post_attention_norm, z=laurel, z_post=w.laurel_post_norm, eps=eps)
        y = p.mix(y, None, also=h, scale=1 / math.sqrt(2))
        y = p.add(y, network(p, p.norm(y, w.ffn_norm, eps)[1], w, sparse[i]), w.post_ffw_norm, eps=eps)
        x, active = p.altup(x, n, y=y, coefficients=flat(w, "altup_correct_coef"), scale=w.altup_correct_scale, **how)
        own = p.join(1, (of_layers, i * of_layers.width, of_layers.width))
        z = p.normed(p.matmul(p.gated(p.matmul(active, w.inp_gate), own, "gelu"), w.proj), w.post_norm, eps)
    merged = Residual(p, merge(p, weights, x, z, n), eps)
    end(p, weights, merged, softcap=c.float("final_logit_softcapping", default=30.0, low=0))


def deviations(c, n):
    """Of each layer: only what its gates have more than their mean and so many standard deviations counts; None: all."""
    key = "activation_sparsity_scale"
    found = c.gguf.get(c.prefix + key, list[float])
    if len(found) != n or np.isnan(found).any() or (found == math.inf).any():
        c.refuse(key, found.tolist(), f"{n} numbers, one per layer")
    return [None if value in NONE else float(value) for value in found]


def router(weights, w, eps, width):
    """What makes the coefficients of a layer's streams, as `Plan.altup` takes it; what it reads is divided by the streams' width."""
    name, norm = f"blk.{w.index}.altup_router_norm.weight", w.altup_router_norm
    norm = Vector(f"{name} / D", weights.values(name) / np.float32(width), path=norm.path)
    return {"eps": eps, "norm": norm, "router": flat(w, "altup_router")}


def flat(w, name):
    """The values of a small matrix, row after row; it must be there."""
    return w.flat(name) or getattr(w, name)


def stacked(weights, name, n, width):
    """The matrices (n - 1, D, D) of all streams but the first."""
    matrix = weights[name]
    found = (getattr(matrix, "experts", 1), matrix.n, getattr(matrix, "k", 1))
    if found != (n - 1, width, width):
        raise CorruptModel(weights.gguf.path, f"tensor {name!r} has the shape {found}, wanted {(n - 1, width, width)}")
    return matrix


def streams(p, weights, embedded, n):
    """The first streams: the embedded token, and what matrices make of it, as long as it is; rows of n * D values."""
    width = embedded.width
    others = p.matmul_grouped(embedded, None, stacked(weights, "altup_proj.weight", n, width))
    return p.join(1, (embedded, 0, width), (p.level(embedded, others, SHORTEST), 0, (n - 1) * width))


def merge(p, weights, x, z, n):
    """The mean of the first stream and of what matrices make of the others, as long as the first is."""
    width = x.width // n
    x, _ = p.altup(x, n, z=z)
    first, others = p.join(1, (x, 0, width)), p.join(1, (x, width, (n - 1) * width))
    others = p.matmul_grouped(p.join(n - 1, (others, 0, width), apart=True), None, stacked(weights, "altup_unembd_proj.weight", n, width))
    return p.mix(p.level(first, others, SHORTEST), None, also=first, scale=1 / n)


def network(p, h, w, sparse):
    """W_down (gelu(g) * W_up h), g being W_gate h, or what of it lies far above its mean."""
    gate, up = p.matmul(h, w.ffn_gate, w.ffn_up)
    gate = gate if sparse is None else p.activate(gate, "above", (sparse,))
    return p.matmul(p.gated(gate, up, "gelu"), w.ffn_down)
