"""Nemotron-H (arXiv:2504.03624): a layer is Mamba-2, attention without positions, or a network of squared ReLUs, each behind its norm."""

from .blocks import Hyperparameters, Residual, attention, embedding_matrix, end, layers, plain
from .mamba2 import is_recurrent, mamba, recurrent


def build(p, weights):
    """Append Nemotron-H's forward pass to plan `p`."""
    forward(p, weights, lambda p, h, w, c: [plain(p, h, w, "relu^2")])


def forward(p, weights, network, heeds=()):
    """`build` with ``network(p, h, w, hyperparameters)``: a list of what a layer adds that has neither a state nor heads."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*heeds)
    key = "attention.layer_norm_rms_epsilon"
    eps = c.rms_eps() if c.prefix + key in c.gguf.metadata else c.float("attention.layer_norm_epsilon", low=0, high=1)
    x, m = Residual(p, p.embed(embedding_matrix(c, weights)), eps), mamba(c, eps)
    for i, w in enumerate(layers(c, weights)):
        h = x.norm(w.attn_norm)
        if c.int("feed_forward_length", low=0, layer=i):
            for y in network(p, h, w, c):
                x.add(y)
        elif is_recurrent(c, i):
            x.add(recurrent(p, h, w, m))
        else:
            x.add(attention(p, h, w, c.attention(neox=True, eps=eps, layer=i, turned=False), None))
    end(p, weights, x)
