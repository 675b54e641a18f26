"""GLM-5.3 (its model card of 2026): Kimi Delta Attention between layers of latent attention without positions, to pools of positions that
an indexer chooses by compressed keys; DeepSeek V3's experts, gated within limits; mixed residual streams, which end as their mean.
"""

import math
from dataclasses import replace

from ..ops import Attention
from .blocks import MIXTURE, PER_LAYER, Hyperparameters, embedding_matrix, gated, layers, mixture, output_matrix, shared_expert
from .hy_v4 import limits
from .kda import kda, recurrent, recurs
from .streams import Streams

SHARED = "swiglu_clamp_shexp"  # without the key what holds for the other experts
UNIT = 1e-6  # beside the sums of squares of KDA's queries and keys
CHUNK = 256  # positions that pools have to divide


def build(p, weights):
    """Append GLM-5.3's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, *PER_LAYER)
    c.no_scaling()
    if c.int("rope.dimension_count", default=0, low=0):
        c.unsupported("rope.dimension_count", c.int("rope.dimension_count"), [0])
    bound = c.float("kda.gate_lower_bound", default=0.0, high=0.0)
    eps, experts, blocks = c.rms_eps(), c.experts("sigmoid", normed=False), layers(c, weights)
    net, lead = replace(kda(c, eps, bound, negated=bool(bound)), unit=UNIT), c.int("leading_dense_block_count", default=0, low=0)
    x, pools = Streams(p, c, p.embed(embedding_matrix(c, weights)), eps, mixing=True, factor=2.0), Pools(p, c, weights, eps, blocks)
    for i, w in enumerate(blocks):
        h = x.norm(w, "attn")
        x.add(recurrent(p, h, w, net) if recurs(c, i) else pools.attention(h, w))
        h, chosen = x.norm(w, "ffn"), limits(c, i)
        shared = limits(c, i, SHARED) if c.prefix + SHARED in c.gguf.metadata else chosen
        x.add(plain(p, h, w, shared) if i < lead else mixture(p, h, w, experts, shared=shared_expert(p, h, w, **shared), **chosen))
    p.logits(x.last(weights), output_matrix(weights))


def plain(p, h, w, within):
    """The network of a leading layer, within the limits of shared experts."""
    if not within:
        return gated(p, h, w)
    gate, up = p.matmul(h, w.ffn_gate, w.ffn_up)
    return p.matmul(p.gated(gate, up, **within), w.ffn_down)


class Pools:
    """Attention of layers that have any.

    Parameters
    ----------
    p : Plan
    c : Hyperparameters
    weights : Catalog
    eps : float
        Of all norms but that of the indexer's keys.
    blocks : list
        Tensors of the layers.
    """

    def __init__(self, p, c, weights, eps, blocks):
        self._p, self._c, self._last = p, c, None
        rank, self._key = c.int("attention.kv_lora_rank", high=65536), c.int("attention.key_length_mla", high=65536)
        self._a = Attention(c.int("attention.head_count", high=4096), 1, rank, rank, 0, False, scale=1 / math.sqrt(self._key), eps=eps)
        self._size, most = c.int("attention.indexer.kpool", low=2), c.int("attention.indexer.top_k", high=(1 << 31) - 1)
        if not c.bool("attention.indexer.kpool_select_tail", False):
            c.unsupported("attention.indexer.kpool_select_tail", False, [True])
        if CHUNK % self._size or self._size > CHUNK // 16:
            c.unsupported("attention.indexer.kpool", self._size, [2, 4, 8, 16])
        if most % self._size:
            c.refuse("attention.indexer.top_k", most, f"a multiple of {c.prefix}attention.indexer.kpool = {self._size}")
        self._most, key = most // self._size, "attention.indexer.types"
        self._own = [bool(c.int(key, default=1, low=0, high=1, layer=w.index)) for w in blocks]
        attending = [w.index for w in blocks if not recurs(c, w.index)]
        if attending and not self._own[attending[0]]:
            c.refuse(key, 0, f"1 for layer {attending[0]}: no layer before it has chosen")
        self._chooses = p.n_ctx // self._size > self._most
        weights.skip([f"blk.{i}.indexer" for i in attending if not (self._chooses and self._own[i])])

    def attention(self, h, w):
        """W_o of what each head attends to in the latent rows, times its W_v."""
        p, a = self._p, self._a
        q_low, latent = p.matmul(h, w.attn_q_a, w.attn_kv_a_mqa)
        q_low = p.normed(q_low, w.attn_q_a_norm, a.eps)
        q = p.matmul_grouped(p.join(a.heads, (p.matmul(q_low, w.attn_q_b), 0, self._key), apart=True), None, w.attn_k_b)
        if self._chooses and self._own[w.index]:
            self._last = self._choose(h, q_low, w)
        k = p.normed(latent, w.attn_kv_a_norm, a.eps)
        o = p.attend(p.join(a.heads, (q, 0, a.key_length)), k, None, a, chosen=self._last)
        o = p.matmul_grouped(p.join(a.heads, (o, 0, a.value_length), apart=True), None, w.attn_v_b)
        return p.matmul(p.join(a.heads, (o, 0, o.width)), w.attn_output)

    def _choose(self, h, q_low, w):
        """The pools that tokens attend to, by keys that are sums over a pool, weighed column by column."""
        p, c = self._p, self._c
        heads, width = c.int("attention.indexer.head_count", high=4096), c.int("attention.indexer.key_length", high=65536)
        index = Attention(heads, 1, width, 0, 0, False, scale=1 / math.sqrt(heads * width), eps=self._a.eps)
        q = p.matmul(q_low, getattr(w, "indexer.attn_q_b"))
        k, gate, weights = p.matmul(h, getattr(w, "indexer.attn_k"), w.indexer_compressor_gate, getattr(w, "indexer.proj"))
        k = p.layer_normed(k, getattr(w, "indexer.k_norm"), c.float("attention.layer_norm_epsilon", default=1e-6, low=0, high=1))
        bias = w.flat("indexer_compressor_ape") or w.indexer_compressor_ape
        keys = p.compress(k, gate, bias, None, self._size, index.eps, window=self._size, indexes=True, chosen=self._most)
        return p.index(q, None, weights, index, self._most, rows=keys)
