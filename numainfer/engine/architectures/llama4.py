"""Llama 4 (its model card of 2025): three layers with rotary positions and norms of q and k to one without either, where queries grow with
their position; experts in some layers, one shared, which read what their weight was multiplied to.

The layers with positions attend within pieces of 8,192: contexts that end before the first does are supported.
"""

from dataclasses import replace

from ...errors import UnsupportedModel
from .blocks import MIXTURE, attention, begin, end, gated, layers, shared_expert

PIECE = 8192
WITHOUT_NORMS = 128  # experts: Maverick


def build(p, weights):
    """Append Llama 4's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False, heeds=(*MIXTURE, "attention.sliding_window"))
    if c.int("attention.sliding_window", default=PIECE, low=0) != PIECE:
        raise UnsupportedModel("llama4.attention.sliding_window", c.int("attention.sliding_window", low=0), [PIECE])
    if p.n_ctx >= PIECE:
        raise UnsupportedModel("n_ctx", p.n_ctx, [f"up to {PIECE - 1}"], "Beyond, Llama 4 attends in pieces, which numainfer does not; "
                                                                         "pass a smaller n_ctx")
    experts, rope, step = c.experts("late", normed=False), c.rope(p, weights, a, local=True), c.int("interleave_moe_layer_step", low=0)
    if experts.gating == "sigmoid":
        experts = replace(experts, gating="late")  # by score, which tells more apart than its sigmoid
    count, ones = c.int("expert_count"), weights.ones(a.key_length)
    norms = {} if count == WITHOUT_NORMS else {"q_norm": ones, "k_norm": ones}
    blocks = layers(c, weights)
    rotated = c.windowed(4)
    for i, w in enumerate(blocks):
        h = x.norm(w.attn_norm)
        x.add(attention(p, h, w, replace(a, norm_last=True), rope, **norms) if rotated[i] else attention(p, h, w, a, None))
        h = x.norm(w.ffn_norm)
        x.add(mixture(p, h, w, experts) if step and (i + 1) % step == 0 else gated(p, h, w))
    end(p, weights, x)


def mixture(p, h, w, e):
    """What the shared and the chosen experts say, the latter to h times their weight."""
    ids, weights = e.route(p, h, w, [w.ffn_gate_exps, w.ffn_up_exps, w.ffn_down_exps])
    gate, up = p.matmul_grouped(p.weigh(h, weights), ids, w.ffn_gate_exps, w.ffn_up_exps)
    return p.mix(p.matmul_grouped(p.gated(gate, up, "silu"), ids, w.ffn_down_exps), None, also=shared_expert(p, h, w))
