"""DeepSeek V2, V3 and R1, Kimi K2, GLM-4.7-Flash, Mistral Large 3 (arXiv:2405.04434, 2412.19437): latent attention, fine experts.

Keys and values of all heads are made of one latent row c per position.  A head's W_k is not multiplied with c but with the head's query,
and its W_v with what it attended to: so all heads share one key (c, rotated part) and one value, c, of which the cache holds the key.
"""

import math
from dataclasses import replace

import numpy as np

from ...errors import CorruptModel
from ..ops import Attention
from . import nextn
from .blocks import MIXTURE, Hyperparameters, Residual, embedding_matrix, end, layers, network

HEEDS = (*MIXTURE, "attention.temperature_scale")
GLM_FLASH = {"layers": (47, 48), "vocabulary": 154880}  # whose first files have no expert_gating_func


def build(p, weights, gating="softmax", indexer=None):
    """Append DeepSeek's forward pass to plan `p`.

    gating : what files without the key mean.
    indexer : of DeepSeek V3.2; None where every position is attended to.
    """
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*HEEDS)
    eps = c.rms_eps()
    a, table = shape(c, eps), embedding_matrix(c, weights)
    blocks = layers(c, weights)
    is_flash = len(blocks) in GLM_FLASH["layers"] and table.n == GLM_FLASH["vocabulary"]
    experts = c.experts("sigmoid" if is_flash else gating, normed=False)
    if c.prefix == "deepseek2." and experts.gating == "softmax" and "blk.%d.exp_probs_b.bias" % (len(blocks) - 1) not in weights:
        experts = replace(experts, group_best=1)  # DeepSeek V2, whose groups count as their best expert does
    rope, x = rotary(c, p, weights, a), Residual(p, p.embed(table), eps)

    def layer(p, x, w, rope):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, c, indexer=indexer))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, w.index))

    for w in blocks:
        layer(p, x, w, rope)
    nextn.head(p, weights, c, x, eps, lambda q, x, w: layer(q, x, w, rotary(c, q, weights, a)),
               lambda p, h, w: keep(p, h, w, a, rope))
    end(p, weights, x)


def shape(c, eps, neox=False):
    """The Attention over latent rows: one kv-head, of which all heads are queries."""
    rank, rotated = c.int("attention.kv_lora_rank", high=65536), c.int("rope.dimension_count", high=65536)
    key = key_length(c)
    if rotated % 2 or rotated >= key:
        c.refuse("rope.dimension_count", rotated, f"an even number below the heads' key width of {key}")
    scale = yarn(c) ** 2 / math.sqrt(key)
    a = Attention(c.int("attention.head_count", high=4096), 1, rank + rotated, rank, rotated, neox, scale=scale, eps=eps,
                  rope_first=rank)
    temperature = c.float("attention.temperature_scale", default=0.0, low=0)
    return replace(a, temperature=temperature, floor=c.int("attention.temperature_length")) if temperature else a


def key_length(c):
    """Width of a head's key, a part of it rotated.  Files whose attn_kv_b is in one piece have it under another name."""
    name = "attention.key_length_mla"
    return c.int(name if c.prefix + name in c.gguf.metadata else "attention.key_length", high=65536)


def yarn(c):
    """The factor on queries and keys alike that goes with YaRN (arXiv:2309.00071); the key has a tenth of the published mscale_all_dim."""
    if c.str("rope.scaling.type", default="none") != "yarn":
        return 1.0
    multiplier = c.float("rope.scaling.yarn_log_multiplier", default=0.0, low=0)
    if c.prefix != "deepseek2." and multiplier and abs(multiplier - 0.1) > 1e-6:
        c.unsupported("rope.scaling.yarn_log_multiplier", multiplier, [0.1])
    return 1.0 + multiplier * math.log(c.float("rope.scaling.factor", low=1.0))


def rotary(c, p, weights, a):
    """The table of rotations; with the multiplier cosines have no factor of their own, for mscale and mscale_all_dim are equal."""
    if not yarn(c) > 1.0:
        return c.rope(p, weights, a)
    base = c.float("rope.freq_base", default=10000.0, low=1)
    frequencies, _ = c.yarn(base ** (-2.0 * np.arange(a.rope_dim // 2) / a.rope_dim), base, log_multiplier=True)
    return p.rope_table(weights.constant("latent rope", frequencies))


def attention(p, h, w, a, rope, c, scale=1.0, indexer=None, key=None, k_norm=None, gate=None, sinks=None):
    """W_o of what each head attends to in the latent rows, times its W_v.

    Parameters
    ----------
    indexer : Indexer, optional
        Of `deepseek32`.
    key : int, optional
        Width of a head's key where it is not the file's one.
    k_norm : Vector, optional
        Norms the rotated part of keys, before it is rotated.
    gate : Tensor, optional
        (T, H), or (T, H * value_length): what a head says, or each value of it, is multiplied by its sigmoid.
    sinks : Vector, optional
        Of `Plan.attend`.
    """
    heads, rotated, rank = a.heads, a.rope_dim, a.value_length
    plain = (key or key_length(c)) - rotated
    of_keys, of_values = (w.attn_k_b, w.attn_v_b) if w.get("attn_k_b") else w.split_heads("attn_kv_b", heads, plain)
    for matrix in (of_keys, of_values):
        found = getattr(matrix, "experts", 1)
        if found != heads:
            raise CorruptModel(c.gguf.path, f"{matrix.name} has {found} matrices, wanted {heads}, one per head")
    if w.get("attn_q_a"):
        q, latent, turned = p.matmul(h, w.attn_q_a, *w.rows("attn_kv_a_mqa", rank, rotated))
        q_low = p.normed(q, w.attn_q_a_norm, a.eps)
        q = p.matmul(q_low, w.attn_q_b)
    else:
        q, latent, turned = p.matmul(h, w.attn_q, *w.rows("attn_kv_a_mqa", rank, rotated))
    q_latent = p.matmul_grouped(p.join(heads, (q, 0, plain), apart=True), None, of_keys)
    latent, turned = p.normed(latent, w.attn_kv_a_norm, a.eps), turned if k_norm is None else p.normed(turned, k_norm, a.eps)
    chosen = indexer.choose(p, h, q_low, w, rope) if indexer else None
    q, k = p.join(heads, (q_latent, 0, rank), (q, plain, rotated)), p.join(1, (latent, 0, rank), (turned, 0, rotated))
    o = p.attend(q, k, None, a, rope, chosen=chosen, sinks=sinks)
    o = p.matmul_grouped(p.join(heads, (o, 0, rank), apart=True), None, of_values)
    if gate is not None and gate.width == heads:
        o = p.weigh(o, gate, "sigmoid")
    o = p.join(heads, (o, 0, o.width))
    return p.matmul(o if gate is None or gate.width == heads else p.gated(gate, o, "sigmoid"), w.attn_output, scale=scale)


def keep(p, h, w, a, rope):
    """The latent rows of `attention` alone, for a head's plan."""
    latent, turned = p.matmul(h, *w.rows("attn_kv_a_mqa", a.value_length, a.rope_dim))
    latent = p.normed(latent, w.attn_kv_a_norm, a.eps)
    p.keep(p.join(1, (latent, 0, latent.width), (turned, 0, turned.width)), None, a, rope)
