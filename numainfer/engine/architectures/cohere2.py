"""Command R7B and Command A (arXiv:2504.00698): Command R's blocks; three of four layers see a window and rotate, the others do neither."""

from dataclasses import replace

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Command A's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False, layer_norm=True, heeds=("logit_scale", "attention.sliding_window"))
    local, rope = replace(a, window=c.int("attention.sliding_window")), c.rope(p, weights, a, local=True)
    blocks = layers(c, weights)
    for w, windowed in zip(blocks, c.windowed(4)):
        h = x.norm(w.attn_norm)
        x.add(attention(p, h, w, local, rope) if windowed else attention(p, h, w, a, None))
        x.add(gated(p, h, w))
    end(p, weights, x, scale=c.float("logit_scale", low=1e-6))
