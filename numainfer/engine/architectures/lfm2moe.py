"""LFM2 with experts (arXiv:2511.23404): LFM2's layers; sigmoid gating with a bias for choosing, the first layers plain."""

from . import lfm2
from .blocks import MIXTURE


def build(p, weights):
    """Append the forward pass of an LFM2 mixture to plan `p`."""
    lfm2.build(p, weights, heeds=MIXTURE)
