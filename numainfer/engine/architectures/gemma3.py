"""Gemma 3 (arXiv:2503.19786): five sliding-window layers to one global one, q/k norms, norms before and after, GeGLU.

The file's norm weights already hold the published 1 + w.
"""

import math
from dataclasses import replace

from .blocks import Hyperparameters, attention, begin, end, gated, layers


def build(p, weights):
    """Append Gemma 3's forward pass to plan `p`."""
    scale = math.sqrt(Hyperparameters(weights.gguf).int("embedding_length"))
    c, a, x = begin(p, weights, neox=True, scale=scale, heeds=("attention.sliding_window", "final_logit_softcapping"))
    blocks, window = layers(c, weights), c.int("attention.sliding_window", default=0, low=0)
    if len(blocks) == 62:  # the 27 B model scales by the width per head, not by the head's own width
        a = replace(a, scale=1.0 / math.sqrt(c.int("embedding_length") // a.heads))
    local, windowed = replace(a, window=window), c.windowed(6) if window else [False] * len(blocks)
    # Local layers keep their own base, and positions that are never scaled.
    rope, local_rope = c.rope(p, weights, a, local=False), c.rope(p, weights, a, scaled=False, local=True, local_base=10000.0)
    for w, is_local in zip(blocks, windowed):
        h, norms = x.norm(w.attn_norm), {"q_norm": w.attn_q_norm, "k_norm": w.attn_k_norm}
        o = attention(p, h, w, local, local_rope, **norms) if is_local else attention(p, h, w, a, rope, **norms)
        x.add(o, post=w.post_attention_norm)
        x.add(gated(p, x.norm(w.ffn_norm), w, "gelu"), post=w.post_ffw_norm)
    end(p, weights, x, softcap=c.float("final_logit_softcapping", default=0.0, low=0))
