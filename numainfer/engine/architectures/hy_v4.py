"""Hy 4 (its model card of 2026): DeepSeek V3.2's latent attention, with sinks and a gate for each value, some layers attending to what an
earlier one chose; DeepSeek V3's experts, gated within limits; residual streams that do not mix.
"""

from . import deepseek2
from .blocks import MIXTURE, Hyperparameters, embedding_matrix, gated, layers, mixture, output_matrix, shared_expert
from .deepseek32 import Indexer
from .streams import Streams

CLAMP = "swiglu_clamp_exp"


def build(p, weights):
    """Append the forward pass of Hy 4 to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, CLAMP)
    c.no_scaling()
    eps, experts, blocks = c.rms_eps(), c.experts("sigmoid", normed=False), layers(c, weights)
    a, lead = deepseek2.shape(c, eps), c.int("leading_dense_block_count", default=0, low=0)
    small, magnitude = (c.float(f"hyper_connection.{name}", low=0) for name in ("epsilon", "magnitude"))
    x = Streams(p, c, p.embed(embedding_matrix(c, weights)), eps, mixing=False, factor=magnitude, more=small)
    rope, indexer = c.rope(p, weights, a), choosing(p, c, weights, eps, len(blocks))
    for i, w in enumerate(blocks):
        h = x.norm(w, "attn")
        x.add(deepseek2.attention(p, h, w, a, rope, c, indexer=indexer, gate=p.matmul(h, w.attn_gate), sinks=w.attn_sinks))
        h = x.norm(w, "ffn")
        x.add(gated(p, h, w) if i < lead else mixture(p, h, w, experts, shared=shared_expert(p, h, w), **limits(c, i)))
    p.logits(x.last(weights), output_matrix(weights))


def limits(c, i, key=CLAMP):
    """How `Plan.gated` gates in layer i."""
    limit = c.float(key, default=0.0, low=0, layer=i)
    return {"activation": "capped", "limit": limit} if limit > 1e-6 else {}


def choosing(p, c, weights, eps, n):
    """The Indexer of the layers that have one; None where all positions are attended to, or a context is no longer than what is chosen."""
    key, most = "attention.indexer.types", c.int("attention.indexer.top_k", default=0, low=0, high=(1 << 31) - 1)
    own = [bool(c.int(key, default=1, low=0, high=1, layer=i)) for i in range(n)]
    chooses = most and p.n_ctx > most
    if most and not own[0]:
        c.refuse(key, 0, "1 for the first layer: no layer before it has chosen")
    weights.skip([f"blk.{i}.indexer." for i in range(n) if most and not (chooses and own[i])])
    return Indexer(c, most, False, own, last=True, eps=eps) if chooses else None
