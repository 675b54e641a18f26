"""MiniMax M2: q/k norms over all heads together, half of each head rotated, sigmoid gating with a bias for choosing."""

from .blocks import MIXTURE, begin, end, layers, mixture, wide_norm_attention


def build(p, weights):
    """Append the forward pass of MiniMax M2 to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    experts, rope = c.experts("sigmoid", normed=True), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(wide_norm_attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(mixture(p, x.norm(w.ffn_norm), w, experts))
    end(p, weights, x)
