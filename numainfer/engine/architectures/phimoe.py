"""Phi-3.5-MoE (arXiv:2404.14219): LayerNorms, biases everywhere, longrope; two experts, chosen and weighed one after the other by
SparseMixer (arXiv:2310.00811).

Each of the two counts with its softmax among those that are nearly as good, so that weights sum up to almost two.  llama.cpp divides
softmaxes of all experts by their sum instead, and has RMS norms: neither is what these models were trained with.
"""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, layers, mixture

CHOSEN = 2  # what SparseMixer is defined for


def build(p, weights):
    """Append Phi-3.5-MoE's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm="rms", heeds=(*MIXTURE, "attention.sliding_window"))
    if c.int("expert_used_count") != CHOSEN:
        c.unsupported("expert_used_count", c.int("expert_used_count"), [CHOSEN])
    a, rope = replace(a, window=c.int("attention.sliding_window", default=0, low=0)), c.rope(p, weights, a)
    experts = replace(c.experts(), gating="sparse", normed=False)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(mixture(p, x.norm(w.ffn_norm), w, experts))
    end(p, weights, x)
