"""Llama 4 (its model card of 2025): three layers with rotary positions and norms of q and k, which attend within pieces of 8,192
positions, to one without any of it, where queries grow with their position; experts in some layers, one shared, which read what their
weight was multiplied to.
"""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, gated, layers, shared_expert

PIECE = 8192
TEMPERATURE = 0.1
WITHOUT_NORMS = 128  # experts: Maverick
PERIOD = 4  # of layers without positions


def build(p, weights):
    """Append Llama 4's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False, heeds=(*MIXTURE, "attention.sliding_window"))
    if c.int("attention.sliding_window", default=PIECE, low=0) != PIECE:
        c.unsupported("attention.sliding_window", c.int("attention.sliding_window", low=0), [PIECE])
    experts, rope, step = c.experts("late", normed=False), c.rope(p, weights, a, local=True), c.int("interleave_moe_layer_step", low=0)
    if experts.gating == "sigmoid":
        experts = replace(experts, gating="late")  # by score, which tells more apart than its sigmoid
    count, ones = c.int("expert_count"), weights.ones(a.key_length)
    norms = {} if count == WITHOUT_NORMS else {"q_norm": ones, "k_norm": ones}
    turned, growing = replace(a, norm_last=True), replace(a, temperature=TEMPERATURE, floor=PIECE, ahead=1)
    for i, (w, local) in enumerate(zip(layers(c, weights), c.windowed(PERIOD))):
        window, h = {"window": PIECE, "pieces": True} if local else {}, x.norm(w.attn_norm)
        if (i + 1) % PERIOD:
            x.add(attention(p, h, w, replace(turned, **window), rope, **norms))
        else:
            x.add(attention(p, h, w, replace(growing, **window), None))
        h = x.norm(w.ffn_norm)
        x.add(mixture(p, h, w, experts) if step and (i + 1) % step == 0 else gated(p, h, w))
    end(p, weights, x)


def mixture(p, h, w, e):
    """What the shared and the chosen experts say, the latter to h times their weight."""
    fused = w.get("ffn_gate_up_exps")
    into = [fused] if fused else [w.ffn_gate_exps, w.ffn_up_exps]
    ids, weights = e.route(p, h, w, [*into, w.ffn_down_exps])
    pair = p.matmul_grouped(p.weigh(h, weights), ids, *into)
    a = p.gated(*([pair, None] if fused else pair), "silu")
    return p.mix(p.matmul_grouped(a, ids, w.ffn_down_exps), None, also=shared_expert(p, h, w)())
