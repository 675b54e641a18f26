"""DeepSeek V4 (its report of 2026): one key per position, which is its value too, seen through a window and, in compressed rows, of all
positions, among which an indexer chooses; mixed residual streams; experts that in the first layers go by the token; output in groups.

Keys are rotated, and so are values: what a head attended to is turned back by its own position's angles.
"""

import math

import numpy as np

from ..ops import Attention
from .blocks import MIXTURE, PER_LAYER, Hyperparameters, embedding_matrix, layers, mixture, output_matrix, shared_expert
from .hy_v4 import limits
from .streams import Streams

SHARED = "swiglu_clamp_shexp"  # without the key what holds for the other experts
OVERLAPPING, APART = 4, 128  # positions of a compressed row; of four, each counts in two rows, and there is an indexer


def build(p, weights):
    """Append DeepSeek V4's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, *PER_LAYER, "attention.sliding_window")
    eps, experts, blocks = c.rms_eps(), c.experts("sqrtsoftplus"), layers(c, weights)
    weights.skip([f"blk.{i}.exp_probs_b_vl" for i in range(len(blocks))])  # for choosing by tokens of pictures
    a, hashed = shape(c, eps), c.int("hash_layer_count", default=0, low=0)
    x = Streams(p, c, p.embed(embedding_matrix(c, weights)), eps, mixing=True, factor=2.0)
    attention = Compressed(p, c, weights, a)
    for i, w in enumerate(blocks):
        x.add(attention(x.norm(w, "attn"), w))
        h, chosen = x.norm(w, "ffn"), limits(c, i)
        shared = shared_expert(p, h, w, **(limits(c, i, SHARED) if c.prefix + SHARED in c.gguf.metadata else chosen))
        x.add(mixture(p, h, w, experts, shared=shared, hashed="ffn_gate_tid2eid" if i < hashed else None, **chosen))
    p.logits(x.last(weights), output_matrix(weights))


def shape(c, eps):
    """The Attention of the window: one kv-head, whose values are its keys."""
    width, rotated = c.int("attention.key_length", high=65536), c.int("rope.dimension_count", low=0, high=65536)
    for key, found, wanted in (("attention.value_length", c.int("attention.value_length", default=width), width),
                               ("attention.head_count_kv", c.int("attention.head_count_kv", default=1), 1)):  # fmt: skip
        if found != wanted:
            c.unsupported(key, found, [wanted])
    if rotated % 2 or rotated > width:
        c.refuse("rope.dimension_count", rotated, f"an even number up to {c.prefix}attention.key_length = {width}")
    return Attention(c.int("attention.head_count", high=4096), 1, width, width, rotated, False, scale=1 / math.sqrt(width), eps=eps,
                     window=c.int("attention.sliding_window"), rope_first=width - rotated)  # fmt: skip


class Compressed:
    """Attention of all layers.

    Parameters
    ----------
    p : Plan
    c : Hyperparameters
    weights : Catalog
    a : Attention
        Of the window.
    """

    def __init__(self, p, c, weights, a):
        self._p, self._c, self._weights, self._a = p, c, weights, a
        self._groups = c.int("attention.output_group_count", high=a.heads)
        if a.heads % self._groups:
            c.refuse("attention.output_group_count", self._groups, f"a divisor of {c.prefix}attention.head_count = {a.heads}")
        self._most = c.int("attention.indexer.top_k", high=(1 << 31) - 1)
        self._tables = {}

    def __call__(self, h, w):
        """W_o_b W_o_a of what each head attends to."""
        p, a, c = self._p, self._a, self._c
        ratio = c.int("attention.compress_ratios", low=0, layer=w.index)
        if ratio not in (0, OVERLAPPING, APART):
            c.unsupported("attention.compress_ratios", ratio, [0, OVERLAPPING, APART])
        frequencies, rope = self._rotation(bool(ratio))
        q_low, kv = p.matmul(h, w.attn_q_a, w.attn_kv)
        q_low = p.normed(q_low, w.attn_q_a_norm, a.eps)
        q, rows, chosen = p.matmul(q_low, w.attn_q_b), None, None
        if ratio:
            chooses = ratio == OVERLAPPING and p.n_ctx // ratio > self._most
            if ratio == OVERLAPPING and not chooses:
                self._weights.skip([f"blk.{w.index}.indexer"])
            rows = self._rows(h, w, "attn_compressor", ratio, frequencies, self._most if chooses else 0)
            chosen = self._choose(h, q_low, w, frequencies, rope) if chooses else None
        o = p.attend(q, kv, None, a, rope, self._weights.ones(a.key_length), w.attn_kv_a_norm, w.attn_sinks, chosen=chosen, rows=rows)
        if rope is not None:
            o = p.turn(o, rope, a.heads, a.rope_first)
        each = a.heads // self._groups * a.value_length
        o = p.matmul_grouped(p.join(self._groups, (o, 0, each), apart=True), None, w.stacked("attn_output_a", self._groups))
        return p.matmul(p.join(self._groups, (o, 0, o.width)), w.attn_output_b)

    def _rows(self, h, w, name, ratio, frequencies, chosen, indexes=False):
        """What `Plan.compress` makes of h."""
        p, a = self._p, self._a
        kv, gate = p.matmul(h, getattr(w, f"{name}_kv"), getattr(w, f"{name}_gate"))
        overlaps, width = ratio == OVERLAPPING, getattr(w, f"{name}_norm").n
        window = max(a.window, ratio * (1 + overlaps))
        return p.compress(kv, gate, w.flat(f"{name}_ape") or getattr(w, f"{name}_ape"), getattr(w, f"{name}_norm"), ratio, a.eps,
                          overlaps=overlaps, window=window, frequencies=frequencies, first=width - a.rope_dim, indexes=indexes,
                          chosen=chosen)  # fmt: skip

    def _choose(self, h, q_low, w, frequencies, rope):
        """The compressed rows that tokens attend to."""
        p, c, a = self._p, self._c, self._a
        heads, width = c.int("attention.indexer.head_count", high=4096), c.int("attention.indexer.key_length", high=65536)
        if a.rope_dim > width:
            c.refuse("attention.indexer.key_length", width, f"at least {c.prefix}rope.dimension_count = {a.rope_dim}")
        index = Attention(heads, 1, width, 0, a.rope_dim, False, scale=1 / math.sqrt(heads * width), eps=a.eps,
                          rope_first=width - a.rope_dim)
        q, weights = p.matmul(q_low, getattr(w, "indexer.attn_q_b")), p.matmul(h, getattr(w, "indexer.proj"))
        keys = self._rows(h, w, "indexer_compressor", OVERLAPPING, frequencies, self._most, indexes=True)
        return p.index(q, None, weights, index, self._most, rope, rows=keys)

    def _rotation(self, compressed):
        """(frequencies, table of rotations) of layers with compressed rows, which have a base of their own and the file's scaling; or of
        the others.  YaRN's factor on cosines is left out, as published."""
        p, c, a = self._p, self._c, self._a
        if compressed not in self._tables:
            base = c.float("attention.compress_rope_freq_base" if compressed else "rope.freq_base", default=10000.0, low=1)
            frequencies = base ** (-2.0 * np.arange(a.rope_dim // 2) / a.rope_dim) if a.rope_dim else np.zeros(0)
            if c.str("rope.scaling.type", default="none") == "yarn":
                frequencies = c.yarn(frequencies, base)[0] if compressed else frequencies
            else:
                c.no_scaling()
            vector = self._weights.constant(f"rope {base} {compressed}", frequencies) if a.rope_dim else None
            self._tables[compressed] = vector, p.rope_table(vector) if a.rope_dim else None
        return self._tables[compressed]
