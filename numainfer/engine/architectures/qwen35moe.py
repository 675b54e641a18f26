"""Qwen3.5 and 3.6 with experts: gated delta nets and gated attention; many small experts, one shared behind a gate."""

from .blocks import MIXTURE, Hyperparameters
from .deltanet import forward


def build(p, weights):
    """Append the forward pass of a Qwen3.5 mixture to plan `p`."""
    Hyperparameters(weights.gguf).sections()
    forward(p, weights, tiled=True, heeds=(*MIXTURE, "rope.dimension_sections"))
