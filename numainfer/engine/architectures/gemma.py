"""Gemma (arXiv:2403.08295): GQA or a single kv-head, GeGLU, pre-norms, a scaled embedding.

The file's norm weights already hold the published 1 + w.
"""

import math

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Gemma's forward pass to plan `p`."""
    width = weights.gguf.get("gemma.embedding_length", int)
    c, a, x = begin(p, weights, neox=True, scale=math.sqrt(width))
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(gated(p, x.norm(w.ffn_norm), w, "gelu"))
    end(p, weights, x)
