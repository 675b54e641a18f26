"""Grok 1 and 2 (their model code of 2024 and 2025): caps on scores and logits, norms before and after, experts with GELU; in Grok 2
beside a plain network, both times 1/sqrt(2).

The router's scores are not capped and the weights of the chosen are divided by their sum, as llama.cpp has it.
"""

import functools
import math
from dataclasses import replace

from .blocks import MIXTURE, Hyperparameters, attention, begin, end, gated, layers, mixture

HEEDS = (*MIXTURE, "attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping", "logit_scale", "embedding_scale",
         "attention.output_scale")  # fmt: skip
# What files of Grok 1 leave out; the embedding's and the logits' factors belong to a width of 6,144.
EMBEDDING, LOGITS, SCORES, CAP, BETA_FAST = 78.38367176906169, 0.5773502691896257, 0.08838834764831845, 30.0, 8.0


def build(p, weights):
    """Append Grok's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c, a, x = begin(p, weights, neox=True, heeds=HEEDS, scale=c.float("embedding_scale", default=EMBEDDING))
    a = replace(a, scale=c.float("attention.output_scale", default=SCORES, low=0),
                softcap=c.float("attn_logit_softcapping", default=CAP, low=1e-3))
    experts, rope = c.experts(normed=True), c.rope(p, weights, a, beta_fast=BETA_FAST)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope), post=w.attn_output_norm)
        h = x.norm(w.ffn_norm)
        beside = functools.partial(gated, p, h, w, "gelu") if w.get("ffn_up") else None
        y = mixture(p, h, w, experts, shared=beside, activation="gelu", scale=math.sqrt(0.5) if beside else 1.0)
        x.add(y, post=w.get("layer_output_norm") or w.post_ffw_norm)
    end(p, weights, x, scale=c.float("logit_scale", default=LOGITS), softcap=c.float("final_logit_softcapping", default=0.0, low=0))
