"""Qwen3-Next: three layers of gated delta nets (arXiv:2412.06464) to one of attention behind a gate, a quarter of each head rotated; many
small experts, one shared behind a gate."""

from .blocks import MIXTURE
from .deltanet import forward


def build(p, weights):
    """Append Qwen3-Next's forward pass to plan `p`."""
    forward(p, weights, tiled=False, heeds=MIXTURE)
