"""InternLM 2 and 2.5 (arXiv:2403.17297): GQA, SwiGLU, pre-norms."""

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append InternLM 2's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
