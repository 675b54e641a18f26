"""EXAONE with experts (K-EXAONE): q/k norms per head, three layers with a window and rotary positions to one with neither."""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, layers, network


def build(p, weights):
    """Append the forward pass of an EXAONE mixture to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=(*MIXTURE, "attention.sliding_window"))
    local, rope = replace(a, window=c.int("attention.sliding_window")), c.rope(p, weights, a, local=True)
    experts = c.experts("sigmoid", normed=False)
    for i, (w, windowed) in enumerate(zip(layers(c, weights), c.windowed(4))):
        norms = {"q_norm": w.attn_q_norm, "k_norm": w.attn_k_norm}
        h = x.norm(w.attn_norm)
        x.add(attention(p, h, w, local, rope, **norms) if windowed else attention(p, h, w, a, None, **norms))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)
