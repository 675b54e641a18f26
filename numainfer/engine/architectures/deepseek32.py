"""DeepSeek V3.2 (arXiv:2512.02556): DeepSeek V3's layers, with an indexer that chooses which positions are attended to.

The indexer is a small attention of its own, whose heads share one key per position and have no values: a position is worth the sum of
relu(q . k) of the heads, times weights that come of the token.  While a context is at most as long as what it chooses, it chooses all: such
contexts do without it, and without its keys.  The published code turns queries and keys by a Hadamard matrix first, for the sake of 8-bit
floats; that changes no product.
"""

import math

from ..ops import Attention
from . import deepseek2
from .blocks import Hyperparameters

EPS = 1e-6  # of the LayerNorm of the indexer's keys


def build(p, weights, gating="softmax", neox=True, own=None):
    """Append DeepSeek V3.2's forward pass to plan `p`.

    gating : what files without the key mean.
    neox : how the indexer's heads are rotated.
    own : whether each layer has an indexer of its own, or chooses as the layer before it; None: all have.
    """
    c = Hyperparameters(weights.gguf)
    n = c.int("block_count", high=4096)
    most = c.int("attention.indexer.top_k", high=(1 << 31) - 1)
    own = own or [True] * n
    without = [i for i in range(n) if p.n_ctx <= most or not own[i]]
    weights.skip([f"blk.{i}.indexer." for i in without])
    deepseek2.build(p, weights, gating, Indexer(c, most, neox, own) if p.n_ctx > most else None)


class Indexer:
    """What layers attend to.

    Parameters
    ----------
    c : Hyperparameters
    most : int
        Positions that are chosen.
    neox : bool
        Of `Attention`.
    own : list of bool
        Which layers choose; the others attend to what the one before them does.
    last : bool
        What is rotated are the last values of a head, not the first.
    eps : float
        Of the norm of its keys.
    """

    def __init__(self, c, most, neox, own, last=False, eps=EPS):
        self.most, self.own, self.last = most, own, None
        heads, width = c.int("attention.indexer.head_count", high=4096), c.int("attention.indexer.key_length", high=65536)
        rotated = c.int("rope.dimension_count", high=65536)
        if rotated > width:
            c.refuse("attention.indexer.key_length", width, f"at least {c.prefix}rope.dimension_count = {rotated}")
        self.shape = Attention(heads, 1, width, 0, rotated, neox, scale=1 / math.sqrt(heads * width), eps=eps,
                               rope_first=width - rotated if last else 0)

    def choose(self, p, h, q_low, w, rope):
        """The positions that layer w's tokens attend to, by its input h (T, D) and its queries before W_q_b (T, rank)."""
        if not self.own[w.index]:
            return self.last
        names = [f"indexer.{name}" for name in ("attn_q_b", "attn_k", "proj", "k_norm")]
        of_queries, of_keys, of_weights, norm = (getattr(w, name) for name in names)
        q = p.matmul(q_low, of_queries)
        k, weights = p.matmul(h, of_keys, of_weights)
        self.last = p.index(q, p.layer_normed(k, norm, self.shape.eps), weights, self.shape, self.most, rope)
        return self.last
