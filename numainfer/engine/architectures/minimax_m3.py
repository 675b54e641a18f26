"""MiniMax M3 (its model card of 2026): MiniMax M2's attention with norms of each head, over blocks of positions that an indexer chooses for
each kv-head; leading dense layers, a shared expert, clamped SwiGLU.

While a context has at most as many blocks as are chosen, all are: such contexts do without the indexer.
"""

from ..ops import Attention
from .blocks import MIXTURE, begin, end, layers, project
from .experts import mixture, shared_expert

HOW = {"activation": "clamped", "alpha": 1.702, "limit": 7.0}  # of the gate
CHUNK = 256  # positions that blocks have to divide


def build(p, weights):
    """Append the forward pass of MiniMax M3 to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    blocks, lead = layers(c, weights), c.int("leading_dense_block_count", default=0, low=0)
    experts, rope = c.experts("sigmoid"), c.rope(p, weights, a)
    most, block = c.int("attention.indexer.top_k", high=(1 << 31) - 1), c.int("attention.indexer.block_size", high=CHUNK)
    last = c.int("attention.indexer.local_blocks", default=0, low=0)
    if CHUNK % block:
        c.unsupported("attention.indexer.block_size", block, [f"divisors of {CHUNK}"])
    chooses = p.n_ctx > most * block
    index = indexer(c, a) if chooses else None
    if not chooses:
        weights.skip([f"blk.{i}.indexer." for i in range(len(blocks))])
    for i, w in enumerate(blocks):
        h, chosen = x.norm(w.attn_norm), None
        if chooses and i >= lead:
            q, k = p.matmul(h, getattr(w, "indexer.q_proj"), getattr(w, "indexer.k_proj"))
            norms = {f"{name}_norm": getattr(w, f"indexer.{name}_norm") for name in "qk"}
            chosen = p.index(q, k, None, index, most, rope, **norms, block=block, last=last)
        q, k, v = project(p, h, w, a)
        o = p.attend(q, k, v, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm, chosen=chosen)
        x.add(p.matmul(o, w.attn_output))
        h = x.norm(w.ffn_norm)
        if i < lead:
            gate, up = p.matmul(h, w.ffn_gate, w.ffn_up)
            x.add(p.matmul(p.gated(gate, up, **HOW), w.ffn_down))
        else:
            x.add(mixture(p, h, w, experts, shared=shared_expert(p, h, w, **HOW), **HOW))
    end(p, weights, x)


def indexer(c, a):
    """The shape of the indexer: a head for each kv-head."""
    heads, width = c.int("attention.indexer.head_count", high=4096), c.int("attention.indexer.key_length", high=65536)
    if heads != a.kv_heads:
        c.unsupported("attention.indexer.head_count", heads, [f"{a.kv_heads}, as many as kv-heads"])
    if a.rope_dim > width:
        c.refuse("attention.indexer.key_length", width, f"at least {c.prefix}rope.dimension_count = {a.rope_dim}")
    return Attention(heads, 1, width, 0, a.rope_dim, a.neox, scale=1.0, eps=a.eps)
