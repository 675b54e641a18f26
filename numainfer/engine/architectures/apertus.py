"""Apertus (arXiv:2509.14233): GQA with q/k norms per head, xIELU (arXiv:2411.13010), pre-norms."""

import math

import numpy as np

from ...errors import CorruptModel
from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append Apertus's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True)
    rope = c.rope(p, weights, a)
    blocks = layers(c, weights)
    learned = (per_layer(c.gguf, f"xielu.{name}", len(blocks)) for name in ("alpha_p", "alpha_n", "beta", "eps"))
    for w, alpha_p, alpha_n, beta, eps in zip(blocks, *learned):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        x.add(plain(p, x.norm(w.ffn_norm), w, "xielu", (softplus(alpha_p), beta + softplus(alpha_n), beta, eps)))
    end(p, weights, x)


def per_layer(gguf, key, blocks):
    """A finite number for each layer, where the key, which has no prefix, may also hold one for all."""
    value = gguf.get(key, (float, list[float]))
    values = np.broadcast_to(value, blocks) if np.size(value) == 1 else np.asarray(value)
    if len(values) != blocks or not np.isfinite(values).all():
        raise CorruptModel(gguf.path, f"{key} = {values}; wanted {blocks} finite numbers, one per layer")
    return [float(x) for x in values]


def softplus(x):
    """log(1 + exp(x)), which keeps the paper's alphas positive."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
