"""MiMo-V2 (arXiv:2601.02780): layers with a window, sinks and a base of their own, and more kv-heads, between layers that see all.

Values count times a factor; sigmoid gating with a bias for choosing, weights divided by their sum; layers without a router are plain.
"""

from dataclasses import replace

from . import nextn
from .blocks import MIXTURE, Hyperparameters, Residual, attention, embedding_matrix, end, gated, keep, layers, mixture


def build(p, weights):
    """Append the forward pass of MiMo-V2 to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE, "attention.sliding_window", "attention.value_scale")
    eps, experts, window = c.rms_eps(), c.experts("sigmoid", normed=True), c.int("attention.sliding_window")
    scale = c.float("attention.value_scale", default=0.0) or 1.0
    blocks, x, windows = layers(c, weights), Residual(p, p.embed(embedding_matrix(c, weights)), eps), c.windowed(6)

    def shape(p, w, ropes):
        local = windows[w.index]
        a = replace(c.attention(neox=True, eps=eps, layer=w.index), window=window if local else 0)
        if local not in ropes:
            ropes[local] = c.rope(p, weights, a, scaled=not local, local=local)
        return a, ropes[local]

    def layer(p, x, w, ropes):
        x.add(attention(p, x.norm(w.attn_norm), w, *shape(p, w, ropes), scale=scale, sinks=w.get("attn_sinks")))
        h = x.norm(w.ffn_norm)
        x.add(mixture(p, h, w, experts) if w.get("ffn_gate_inp") else gated(p, h, w))

    ropes = {}
    for w in blocks:
        layer(p, x, w, ropes)
    nextn.head(p, weights, c, x, eps, lambda q, x, w: layer(q, x, w, {}), lambda p, h, w: keep(p, h, w, *shape(p, w, ropes)), normed=False)
    end(p, weights, x)
