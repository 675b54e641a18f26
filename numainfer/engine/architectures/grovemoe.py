"""GroveMoE (arXiv:2508.07785): Qwen3 with experts, of which neighbours share a small one, an adjugate, that each of them adds to itself.

A token that chooses two neighbours meets their adjugate with both of their weights.
"""

from ...errors import CorruptModel
from .blocks import MIXTURE, attention, begin, end, layers


def build(p, weights):
    """Append GroveMoE's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    experts, rope = c.experts(normed=True), c.rope(p, weights, a)
    each, scale = c.int("experts_per_group", high=4096), c.float("expert_group_scale")
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        x.add(mixture(p, x.norm(w.ffn_norm), w, experts, each, scale))
    end(p, weights, x)


def mixture(p, h, w, e, each, scale):
    """Sum over the chosen experts of weight * (expert(h) + scale * its adjugate(h)); `each` neighbours share one."""
    chosen, adjugates = ([getattr(w, f"ffn_{part}_{kind}") for part in ("gate", "up", "down")] for kind in ("exps", "chexps"))
    for matrix in adjugates:
        found = getattr(matrix, "experts", 1)
        if found * each != w.ffn_gate_inp.n:
            says = f"{matrix.name} has {found} experts, wanted one for each {e.c.prefix}experts_per_group = {each} of {w.ffn_gate_inp.n}"
            raise CorruptModel(w.path, says)
    ids, weights, shared = e.route(p, h, w, chosen, sharing=each)
    pairs = [p.matmul_grouped(h, which, gate, up) for which, (gate, up, _) in ((ids, chosen), (shared, adjugates))]
    a, b = (p.gated(*pair, "silu") for pair in pairs)
    y, z = (p.matmul_grouped(said, which, down) for said, which, (*_, down) in ((a, ids, chosen), (b, shared, adjugates)))
    return p.mix(y, weights, also=p.mix(z, weights, scale=scale))
