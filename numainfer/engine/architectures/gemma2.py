"""Gemma 2 (arXiv:2408.00118): every other layer sees a window, scores and logits are capped, norms before and after, GeGLU.

The file's norm weights already hold the published 1 + w.
"""

import math
from dataclasses import replace

from .blocks import attention, begin, end, gated, layers

HEEDS = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def build(p, weights):
    """Append Gemma 2's forward pass to plan `p`."""
    width = weights.gguf.get("gemma2.embedding_length", int)
    c, a, x = begin(p, weights, neox=True, scale=math.sqrt(width), heeds=HEEDS)
    blocks = layers(c, weights)
    a = replace(a, softcap=c.float("attn_logit_softcapping", default=50.0, low=0))
    if len(blocks) == 46:  # the 27 B model scales by the width per head, not by the head's own width
        a = replace(a, scale=1.0 / math.sqrt(width // a.heads))
    local = replace(a, window=c.int("attention.sliding_window", default=4096))
    rope, local_rope = c.rope(p, weights, a, local=False), c.rope(p, weights, a, local=True)
    for w, windowed in zip(blocks, c.windowed(2)):
        x.add(attention(p, x.norm(w.attn_norm), w, *((local, local_rope) if windowed else (a, rope))), post=w.post_attention_norm)
        x.add(gated(p, x.norm(w.ffn_norm), w, "gelu"), post=w.post_ffw_norm)
    end(p, weights, x, softcap=c.float("final_logit_softcapping", default=30.0, low=0))
