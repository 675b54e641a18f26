"""DeepSeek V3.2 (arXiv:2512.02556): DeepSeek V3's layers, with an indexer that chooses which positions are attended to.

While a context is at most as long as what it chooses, it chooses all: such contexts are supported, without the indexer.
"""

from ...errors import UnsupportedModel
from . import deepseek2
from .blocks import Hyperparameters


def build(p, weights, gating="softmax"):
    """Append DeepSeek V3.2's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    most = c.int("attention.indexer.top_k", high=1 << 32)
    if p.n_ctx > most:
        detail = "Beyond, the model chooses what it attends to, which numainfer does not; pass a smaller n_ctx"
        raise UnsupportedModel("n_ctx", p.n_ctx, [f"up to {c.prefix}attention.indexer.top_k = {most}"], detail)
    weights.skip([f"blk.{i}.indexer." for i in range(c.int("block_count", high=4096))])
    deepseek2.build(p, weights, gating)
