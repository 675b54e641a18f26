"""MiniCPM 3 (arXiv:2404.06395): DeepSeek's latent attention, a plain network, MiniCPM's factors, longrope.

The factors are those of the published model, whatever its size: files have no keys for them.
"""

import math

from .blocks import Hyperparameters, Residual, embedding_matrix, end, gated, layers
from .deepseek2 import attention, shape

EMBEDDING, DEPTH, WIDTH = 12.0, 1.4, 256


def build(p, weights):
    """Append MiniCPM 3's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral()
    eps, table, blocks = c.rms_eps(), embedding_matrix(c, weights), layers(c, weights)
    a, x, scale = shape(c, eps, neox=True), Residual(p, p.embed(table, EMBEDDING), eps), DEPTH / math.sqrt(len(blocks))
    rope = c.rope(p, weights, a)
    for w in blocks:
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, c, scale=scale))
        x.add(gated(p, x.norm(w.ffn_norm), w, scale=scale))
    end(p, weights, x, scale=WIDTH / table.k)
