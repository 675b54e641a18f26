"""GLM-5 (its model card of 2026): DeepSeek V3.2's layers.

Contexts are supported up to the positions that the indexer chooses, without it.
"""

from . import deepseek32


def build(p, weights):
    """Append GLM-5's forward pass to plan `p`."""
    deepseek32.build(p, weights, gating="sigmoid")
