"""Qwen3.5 and 3.6, dense: gated delta nets and gated attention as in Qwen3-Next, of which heads of values stand in another order."""

from .blocks import Hyperparameters
from .deltanet import forward


def build(p, weights):
    """Append Qwen3.5's forward pass to plan `p`."""
    Hyperparameters(weights.gguf).sections()  # positions of pictures: in text all are the same
    forward(p, weights, tiled=True, heeds=("rope.dimension_sections",))
