"""Arcee's Trinity: windows as EXAONE has them, attention behind a gate, norms before and after, embeddings times sqrt(D)."""

import math
from dataclasses import replace

from .blocks import MIXTURE, Hyperparameters, begin, end, layers, network, project


def build(p, weights):
    """Append the forward pass of AFMoE to plan `p`."""
    scale = math.sqrt(Hyperparameters(weights.gguf).int("embedding_length"))
    c, a, x = begin(p, weights, neox=True, heeds=(*MIXTURE, "attention.sliding_window"), scale=scale)
    local, rope = replace(a, window=c.int("attention.sliding_window", default=0, low=0)), c.rope(p, weights, a, local=True)
    experts = c.experts("sigmoid", normed=False)
    for i, (w, windowed) in enumerate(zip(layers(c, weights), c.windowed(4))):
        h = x.norm(w.attn_norm)
        x.add(attention(p, h, w, local, rope) if windowed else attention(p, h, w, a, None), w.post_attention_norm)
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i), w.post_ffw_norm)
    end(p, weights, x)


def attention(p, h, w, a, rope):
    """W_o (o * sigmoid(W_g h))."""
    q, k, v = project(p, h, w, a)
    o = p.attend(q, k, v, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm)
    return p.matmul(p.gated(p.matmul(h, w.attn_gate), o, "sigmoid"), w.attn_output)
