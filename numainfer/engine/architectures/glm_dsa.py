"""GLM-5 (its model card of 2026): DeepSeek V3.2's layers, of which some attend to what an earlier one chose."""

from . import deepseek32
from .blocks import Hyperparameters

LONG = 1 << 20  # contexts of GLM-5.2, whose first files do not say which layers choose: 0, 1, and every fourth from 2 on


def build(p, weights):
    """Append GLM-5's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    key, n = "attention.indexer.types", c.int("block_count", high=4096)
    if c.prefix + key in c.gguf.metadata:
        own = [bool(c.int(key, low=0, high=1, layer=i)) for i in range(n - c.int("nextn_predict_layers", default=0, low=0, high=n))]
        if not own[0]:
            c.refuse(key, 0, "1 for the first layer: no layer before it has chosen")
        own += [False] * (n - len(own))
    else:
        own = [c.int("context_length") < LONG or i < 2 or i % 4 == 2 for i in range(n)]
    deepseek32.build(p, weights, gating="sigmoid", neox=False, own=own)
