"""dots3.note (its model card of 2026): DeepSeek V3.2's layers between those that see a window, which have latent rows of their own width;
a gate per head.
"""

import math

import numpy as np

from ...errors import UnsupportedModel
from ..ops import Attention
from . import deepseek2
from .blocks import MIXTURE, Hyperparameters, Residual, embedding_matrix, end, layers, network
from .deepseek32 import Indexer


def build(p, weights):
    """Append the forward pass of dots3.note to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, "attention.sliding_window")
    c.no_scaling()
    eps, experts = c.rms_eps(), c.experts("sigmoid", normed=False)
    x, blocks, windowed = Residual(p, p.embed(embedding_matrix(c, weights)), eps), layers(c, weights), c.windowed(4)
    most = c.int("attention.indexer.top_k", high=(1 << 31) - 1)
    chooses, ropes = p.n_ctx > most, {}
    indexer = Indexer(c, most, True, [True] * len(blocks)) if chooses else None
    if not chooses:
        weights.skip([f"blk.{i}.indexer." for i in range(len(blocks))])
    for i, (w, local) in enumerate(zip(blocks, windowed)):
        a, key = shape(c, eps, i, local)
        if local not in ropes:
            ropes[local] = rotation(p, c, weights, a, local)
        h = x.norm(w.attn_norm)
        if w.attn_gate.n != a.heads:
            raise UnsupportedModel(f"shape of tensor {w.attn_gate.name}", (w.attn_gate.n,), [f"{a.heads} rows, a gate per head"])
        x.add(deepseek2.attention(p, h, w, a, ropes[local], c, indexer=None if local else indexer, key=key, k_norm=w.attn_k_norm,
                                  gate=p.score(h, w.attn_gate)))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)


def shape(c, eps, i, local):
    """The Attention over the latent rows of layer i, and the width of a head's key."""
    kind, rotated = "_swa" if local else "", c.int("rope.dimension_count", high=65536)
    rank, key = c.int(f"attention.kv_lora_rank{kind}", high=65536), c.int(f"attention.key_length_mla{kind}", high=65536)
    if rotated % 2 or rotated >= key:
        c.refuse("rope.dimension_count", rotated, f"an even number below the heads' key width of {key}")
    window = c.int("attention.sliding_window") if local else 0
    return Attention(c.int("attention.head_count", high=4096, layer=i), 1, rank + rotated, rank, rotated, False, scale=1 / math.sqrt(key),
                     eps=eps, window=window, rope_first=rank), key  # fmt: skip


def rotation(p, c, weights, a, local):
    """The table of rotations; layers with a window have a base of their own."""
    base = c.float("rope.freq_base_swa" if local else "rope.freq_base", low=1)
    return p.rope_table(weights.constant(f"rope {base}", base ** (-2.0 * np.arange(a.rope_dim // 2) / a.rope_dim)))
