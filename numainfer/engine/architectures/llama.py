"""Llama (arXiv:2302.13971, 2407.21783) and what is built like it: GQA, rotary positions, SwiGLU, pre-norms; biases where there are any.

With experts: Mixtral (arXiv:2401.04088), whose softmax of the chosen is that of all, divided by the sum of the chosen.
"""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, gated, layers, mixture


def build(p, weights):
    """Append Llama's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False, heeds=(*MIXTURE, "attention.sliding_window"))
    a, rope = replace(a, window=c.int("attention.sliding_window", default=0, low=0)), c.rope(p, weights, a)  # Mistral 7B v0.1
    experts = c.experts() if c.int("expert_count", default=0, low=0) else None
    for w in layers(c, weights):
        layer(p, x, w, a, rope, experts)
    end(p, weights, x)


def layer(p, x, w, a, rope, experts):
    """One block on residual stream x; experts None: a plain one."""
    x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
    h = x.norm(w.ffn_norm)
    x.add(mixture(p, h, w, experts) if experts else gated(p, h, w))
