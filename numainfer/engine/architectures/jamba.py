"""Jamba (arXiv:2403.19887): Mamba with norms of what steers it, attention without positions in some layers, experts in some, SwiGLU."""

from .blocks import MIXTURE, Hyperparameters, Residual, attention, embedding_matrix, end, gated, layers, mixture
from .mamba import recurrent, scan
from .mamba2 import is_recurrent


def build(p, weights):
    """Append Jamba's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*MIXTURE)
    eps = c.rms_eps()
    x, m = Residual(p, p.embed(embedding_matrix(c, weights)), eps), scan(c, eps)
    for i, w in enumerate(layers(c, weights)):
        h = x.norm(w.attn_norm)
        if is_recurrent(c, i):
            x.add(recurrent(p, h, w, m, (w.ssm_dt_norm, w.ssm_b_norm, w.ssm_c_norm)))
        else:
            x.add(attention(p, h, w, c.attention(neox=True, eps=eps, layer=i, turned=False), None))
        h = x.norm(w.ffn_norm)
        x.add(mixture(p, h, w, c.experts(normed=False)) if w.get("ffn_gate_inp") else gated(p, h, w))
    end(p, weights, x)
