"""DBRX (its model card of 2024): LayerNorms without biases, q, k, v within limits, weights of the chosen divided by their sum."""

from .blocks import MIXTURE, begin, end, layers, mixture, project


def build(p, weights):
    """Append DBRX's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm=True, heeds=(*MIXTURE, "attention.clamp_kqv"))
    experts, rope, limit = c.experts(normed=True), c.rope(p, weights, a), c.float("attention.clamp_kqv", low=1e-6)
    for w in layers(c, weights):
        q, k, v = (p.activate(y, "clamp", (limit,)) for y in project(p, x.norm(w.attn_norm), w, a))
        x.add(p.matmul(p.attend(q, k, v, a, rope), w.attn_output))
        x.add(mixture(p, x.norm(w.attn_output_norm), w, experts))
    end(p, weights, x)
