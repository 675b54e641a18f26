"""MiniCPM (arXiv:2404.06395): Granite's blocks; old files leave the factors out, which then are those of the paper."""

import math

from .blocks import Hyperparameters
from .granite import build_scaled


def build(p, weights):
    """Append MiniCPM's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    depth, width = c.int("block_count", high=4096), c.int("embedding_length")
    build_scaled(p, weights, c.float("embedding_scale", default=12.0), c.float("residual_scale", default=1.4 / math.sqrt(depth)),
                 c.float("logit_scale", default=width / 256, low=1e-6))
