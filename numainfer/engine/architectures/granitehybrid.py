"""Granite 4 (its model cards of 2025), H: Granite's factors, Mamba-2 in most layers, experts beside a shared one, or a plain network.

``rope.scaling.finetuned`` says whether the layers with attention rotate.
"""

from .blocks import MIXTURE, Hyperparameters, Residual, attention, embedding_matrix, end, gated, layers, network
from .granite import HEEDS
from .mamba2 import is_recurrent, mamba, recurrent


def build(p, weights):
    """Append the forward pass of a Granite hybrid to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*HEEDS, *MIXTURE)
    eps, residual = c.rms_eps(), c.float("residual_scale", default=0.0) or 1.0
    x = Residual(p, p.embed(embedding_matrix(c, weights), c.float("embedding_scale", default=0.0) or 1.0), eps)
    m, turned, ropes = mamba(c, eps), c.bool("rope.scaling.finetuned", True), {}
    for i, w in enumerate(layers(c, weights)):
        h = x.norm(w.attn_norm)
        if is_recurrent(c, i):
            x.add(recurrent(p, h, w, m, residual))
        else:
            a = c.attention(neox=False, eps=eps, layer=i, turned=turned)
            if a.rope_dim not in ropes:
                ropes[a.rope_dim] = c.rope(p, weights, a)
            x.add(attention(p, h, w, a, ropes[a.rope_dim], scale=residual))
        h = x.norm(w.ffn_norm)
        x.add(network(p, h, w, c.experts(), i, residual) if w.get("ffn_gate_inp") else gated(p, h, w, scale=residual))
    end(p, weights, x, scale=1.0 / (c.float("logit_scale", default=0.0, low=0) or 1.0))
