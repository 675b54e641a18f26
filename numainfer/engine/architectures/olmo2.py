"""OLMo 2 and 3 (arXiv:2501.00656, 2512.13961): norms after each block alone, q/k norms over all heads together; OLMo 3 has windows.

Where there is a window, three of four layers have it, and their positions are not scaled.
"""

from dataclasses import replace

from .blocks import begin, end, gated, layers, project


def build(p, weights):
    """Append OLMo's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=("attention.sliding_window",))
    blocks, window = layers(c, weights), c.int("attention.sliding_window", default=0, low=0)
    windowed = c.windowed(4) if window else [False] * len(blocks)
    rope = None if all(windowed) else c.rope(p, weights, a, local=False)
    local, local_rope = replace(a, window=window), c.rope(p, weights, a, scaled=False, local=True) if any(windowed) else None
    for w, is_local in zip(blocks, windowed):
        layer(p, x, w, local if is_local else a, local_rope if is_local else rope)
    end(p, weights, x)


def layer(p, x, w, a, rope):
    """One block on residual stream x."""
    q, k, v = project(p, x.value(), w, a)
    q, k = p.normed(q, w.attn_q_norm, a.eps), p.normed(k, w.attn_k_norm, a.eps)
    x.add(p.matmul(p.attend(q, k, v, a, rope), w.attn_output), post=w.post_attention_norm)
    x.add(gated(p, x.value(), w), post=w.post_ffw_norm)
