"""Gemma 4 (its model card of 2026): Gemma 3's layers, of which the last attend to keys and values of earlier ones; each layer of the small
models has an input of its own, and layers of the 26 B model have experts beside their network.

Values are normed, too, and may be what the keys are made of.  The layers' own inputs come of the token, by a table, and of its embedding.
"""

import math

import numpy as np

from ..ops import Attention
from ..weights import Vector
from .blocks import MIXTURE, Hyperparameters, Residual, embedding_matrix, end, gated, layers, project
from .experts import mixture

HEEDS = (*MIXTURE, "attention.sliding_window", "attention.shared_kv_layers", "final_logit_softcapping")


def build(p, weights):
    """Append Gemma 4's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*HEEDS)
    c.no_scaling()
    eps, table = c.rms_eps(), embedding_matrix(c, weights)
    embedded = p.embed(table, math.sqrt(table.k))
    blocks, windowed, x = layers(c, weights), c.windowed(6), Residual(p, embedded, eps)
    shared = c.int("attention.shared_kv_layers", default=0, low=0, high=len(blocks) - 1)
    of_layers = inputs(p, c, weights, embedded, eps, len(blocks))
    ropes, kept = {}, {}
    for i, (w, local) in enumerate(zip(blocks, windowed)):
        a = shape(c, eps, i, local)
        if local not in ropes:
            ropes[local] = rotation(p, c, weights, a, local)
        is_own = i < len(blocks) - shared
        if not is_own and local not in kept:
            c.refuse("attention.shared_kv_layers", shared, f"fewer: layer {i} has no earlier one of its kind")
        o = attend(p, x.norm(w.attn_norm), w, a, ropes[local], None if is_own else kept[local], weights)
        if is_own:
            kept[local] = o
        x.add(p.matmul(o, w.attn_output), post=w.post_attention_norm)
        network(p, x, w, c, eps, weights)
        if of_layers is not None:
            width = of_layers.width
            gate = p.matmul(x.value(), w.inp_gate)
            x.add(p.matmul(p.gated(gate, p.join(1, (of_layers, i * width, width)), "gelu"), w.proj), post=w.post_norm)
        factor = weights.values(f"blk.{i}.layer_output_scale.weight")
        if factor is not None:
            x.scale(float(factor[0]))
    end(p, weights, x, softcap=c.float("final_logit_softcapping", default=0.0, low=0))


def shape(c, eps, i, local):
    """The Attention of layer i; scores are not scaled, for queries and keys are normed."""
    kind = "_swa" if local else ""
    heads, kv_heads = (c.int(f"attention.{name}", high=4096, layer=i) for name in ("head_count", "head_count_kv"))
    key, value = (c.int(f"attention.{name}_length{kind}", high=65536) for name in ("key", "value"))
    rotated = c.int(f"rope.dimension_count{kind}", default=key, high=65536)
    if heads % kv_heads:
        c.refuse("attention.head_count", heads, f"a multiple of {c.prefix}attention.head_count_kv = {kv_heads}")
    if rotated % 2 or rotated > key or value != key:
        c.refuse(f"rope.dimension_count{kind}", rotated, f"an even number up to the width of keys, {key}, and of values, {value}")
    window = c.int("attention.sliding_window") if local else 0
    return Attention(heads, kv_heads, key, value, rotated, True, scale=1.0, eps=eps, window=window)


def rotation(p, c, weights, a, local):
    """The table of rotations: layers with a window have a base of their own, the others factors on their frequencies."""
    base = c.float("rope.freq_base", default=10000.0, low=1)
    base = c.float("rope.freq_base_swa", default=base, low=1) if local else base
    frequencies = base ** (-2.0 * np.arange(a.rope_dim // 2) / a.rope_dim)
    if not local:
        frequencies = c.divided(frequencies, weights.values("rope_freqs.weight"))
    return p.rope_table(weights.constant(f"rope {a.rope_dim} {base} {local}", frequencies))


def attend(p, h, w, a, rope, kept, weights):
    """What the heads attend to: new keys and values, or those that an earlier layer, whose result was `kept`, has."""
    if kept is not None:
        weights.skip([f"blk.{w.index}.{name}." for name in ("attn_k", "attn_v", "attn_k_norm")])
        return p.attend(p.matmul(h, w.attn_q), None, None, a, rope, q_norm=w.attn_q_norm, kept=kept)
    if w.get("attn_v") or w.get("attn_qkv"):
        q, k, v = project(p, h, w, a)
    else:
        q, k = p.matmul(h, w.attn_q, w.attn_k)
        v = k
    v = p.norm(p.join(a.kv_heads, (v, 0, a.value_length), apart=True), None, a.eps)[1]
    return p.attend(q, k, p.join(a.kv_heads, (v, 0, a.value_length)), a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm)


def inputs(p, c, weights, embedded, eps, n):
    """Each layer's own input, rows (n, E) of each token, or None: of a table, plus norm(W x) of the embedded token x, by the root of 2."""
    width = c.int("embedding_length_per_layer_input", default=0, low=0)
    if not width:
        return None
    own = p.embed(weights["per_layer_token_embd.weight"], math.sqrt(width / 2))
    norm = Vector("per_layer_proj_norm / sqrt(2)", weights.values("per_layer_proj_norm.weight") / np.float32(math.sqrt(2)))
    made = p.matmul(embedded, weights["per_layer_model_proj.weight"], scale=1 / math.sqrt(embedded.width))
    made = p.norm(p.join(n, (made, 0, width), apart=True), norm, eps)[1]
    return p.add(made, p.join(n, (own, 0, width), apart=True))


def network(p, x, w, c, eps, weights):
    """Adds the layer's network, and what its experts say where it has some."""
    if not w.get("ffn_gate_inp"):
        x.add(gated(p, x.norm(w.ffn_norm), w, "gelu"), post=w.post_ffw_norm)
        return
    stream, experts = x.value(), c.experts("softmax")
    y = p.normed(gated(p, p.norm(stream, w.ffn_norm, eps)[1], w, "gelu"), w.post_ffw_norm_1, eps)
    name = f"blk.{w.index}.ffn_gate_inp.scale"
    by = p.norm(stream, Vector(f"{name} / sqrt(D)", weights.values(name) / np.float32(math.sqrt(stream.width))), eps)[1]
    z = mixture(p, p.norm(stream, w.pre_ffw_norm_2, eps)[1], w, experts, by=by, factors=weights.get(f"blk.{w.index}.ffn_down_exps.scale"),
                activation="gelu")
    x.add(p.add(y, p.normed(z, w.post_ffw_norm_2, eps)), post=w.post_ffw_norm)
