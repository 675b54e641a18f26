"""Nemotron 3 (its report of 2025): Nemotron-H with experts, whose up and down have no gate beside them, and what all tokens share.

In the larger ones the experts read a narrower row, which a matrix makes and another widens again; what is shared reads the whole.
"""

from .blocks import MIXTURE
from .nemotron_h import forward


def build(p, weights):
    """Append the forward pass of a Nemotron-H mixture to plan `p`."""
    forward(p, weights, network, heeds=MIXTURE)


def network(p, h, w, c):
    """What the chosen experts say, and what all tokens share."""
    ids, chosen = c.experts("sigmoid", normed=False).route(p, h, w, [w.ffn_up_exps, w.ffn_down_exps])
    narrow = p.matmul(h, w.ffn_latent_down) if w.get("ffn_latent_down") else None
    up = p.matmul_grouped(h if narrow is None else whole(p, narrow), ids, w.ffn_up_exps)
    y = p.mix(p.matmul_grouped(p.activate(up, "relu^2"), ids, w.ffn_down_exps), chosen)
    shared = p.matmul(p.activate(p.matmul(h, w.ffn_up_shexp), "relu^2"), w.ffn_down_shexp)
    return [y if narrow is None else p.matmul(whole(p, y), w.ffn_latent_up), shared]


def whole(p, x):
    """x on every node, in whatever form a matrix takes."""
    return p.join(1, (x, 0, x.width))
