"""Mistral 3, Ministral 3 and Devstral 2 (their model cards of 2025): Llama's blocks, YaRN, queries that grow with their position."""

from dataclasses import replace

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append Mistral 3's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False, heeds=("attention.temperature_scale",))
    temperature = c.float("attention.temperature_scale", default=0.0, low=0)
    if temperature:
        a = replace(a, temperature=temperature, floor=c.int("rope.scaling.original_context_length", default=c.int("context_length")))
    rope = c.rope(p, weights, a, log_multiplier=True)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
