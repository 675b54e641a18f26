"""Gemma 3 (arXiv:2503.19786): five sliding-window layers to one global one, q/k norms, norms before and after, GeGLU.

The file's norm weights already hold the published 1 + w.
"""

import math
from dataclasses import replace

from .blocks import Hyperparameters, Residual, embedding_matrix, output_matrix


def build(p, weights):
    """Append Gemma 3's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral("attention.sliding_window")
    eps = c.float("attention.layer_norm_rms_epsilon", low=0, high=1)
    blocks = c.int("block_count", high=4096)
    a = c.attention(neox=True, eps=eps)
    if blocks == 62:  # the 27 B model scales by the width per head, not by the head's own width
        a = replace(a, scale=1.0 / math.sqrt(c.int("embedding_length") / a.heads))
    local = replace(a, window=c.int("attention.sliding_window", default=0, low=0))
    period = c.int("attention.sliding_window_pattern", default=6)  # every sixth layer is global; all are without a window
    is_global = [(i + 1) % period == 0 or not local.window for i in range(blocks)]
    frequencies = c.rope_frequencies(a.rope_dim, c.float("rope.freq_base", default=1e6, low=1))
    # Local layers keep their own base, and positions that are never scaled.
    local_frequencies = c.rope_frequencies(a.rope_dim, c.float("rope.freq_base_swa", default=10000.0, low=1)) * c.rope_scale()
    rope = p.rope_table(weights.constant("rope", frequencies)) if any(is_global) else None
    local_rope = p.rope_table(weights.constant("local rope", local_frequencies)) if not all(is_global) else None
    x = Residual(p, p.embed(embedding_matrix(c, weights), scale=math.sqrt(c.int("embedding_length"))), eps)
    for i in range(blocks):
        layer(p, x, weights.block(i), a if is_global[i] else local, rope if is_global[i] else local_rope)
    p.logits(x.norm(weights["output_norm.weight"], selected=True), output_matrix(weights))


def layer(p, x, w, a, rope):
    """One block on residual stream x."""
    h = x.norm(w.attn_norm)
    q, k, v = p.matmul(h, w.attn_q, w.attn_k, w.attn_v)
    o = p.attend(q, k, v, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm)
    x.add(p.matmul(o, w.attn_output), post=w.post_attention_norm)
    h = x.norm(w.ffn_norm)
    gate, up = p.matmul(h, w.ffn_gate, w.ffn_up)
    x.add(p.matmul(p.gated(gate, up, "gelu"), w.ffn_down), post=w.post_ffw_norm)
