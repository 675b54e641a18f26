"""Poolside's Laguna (its model cards of 2026): a softplus gate per head, YaRN in layers that see all, other bases and widths of rotation in
those with a window; DeepSeek V3's experts."""

from dataclasses import replace

from .blocks import MIXTURE, Hyperparameters, Residual, embedding_matrix, end, layers, network
from .step35 import attention


def build(p, weights):
    """Append Laguna's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, "attention.sliding_window")
    eps, experts, window = c.rms_eps(), c.experts("sigmoid", normed=False), c.int("attention.sliding_window", default=0, low=0)
    x, ropes = Residual(p, p.embed(embedding_matrix(c, weights)), eps), {}
    for i, (w, local) in enumerate(zip(layers(c, weights), c.windowed(4, first=True))):
        local, a = local and window > 0, c.attention(neox=True, eps=eps, layer=i)
        if local:
            n_rot = c.int("rope.dimension_count_swa", default=a.rope_dim, high=a.key_length)
            if n_rot % 2:
                c.refuse("rope.dimension_count_swa", n_rot, "an even number")
            a = replace(a, window=window, rope_dim=n_rot)
        if local not in ropes:
            ropes[local] = c.rope(p, weights, a, scaled=not local, local=local)
        x.add(attention(p, x.norm(w.attn_norm), w, a, ropes[local], "softplus"))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)
