"""GLM-4.5 to 4.7 (arXiv:2508.06471): biases on q, k, v, q/k norms in some, half of each head rotated, DeepSeek V3's experts."""

from . import nextn
from .blocks import MIXTURE, attention, begin, end, keep, layers, network


def build(p, weights):
    """Append the forward pass of GLM-4.5 to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=(*MIXTURE, "rope.dimension_sections"))
    c.sections()
    experts, rope = c.experts("sigmoid", normed=False), c.rope(p, weights, a)

    def layer(p, x, w, rope):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, q_norm=w.get("attn_q_norm"), k_norm=w.get("attn_k_norm")))
        x.add(network(p, x.norm(w.post_attention_norm), w, experts, w.index))

    for w in layers(c, weights):
        layer(p, x, w, rope)
    nextn.head(p, weights, c, x, a.eps, lambda q, x, w: layer(q, x, w, c.rope(q, weights, a)),
               lambda p, h, w: keep(p, h, w, a, rope, k_norm=w.get("attn_k_norm")))
    end(p, weights, x)
