"""SmolLM3 (its model card of 2025): Llama's blocks; every fourth layer does without rotary positions (arXiv:2501.18795)."""

from .blocks import attention, begin, end, gated, layers


def build(p, weights):
    """Append SmolLM3's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False)
    rope = c.rope(p, weights, a)
    for i, w in enumerate(layers(c, weights)):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope if (i + 1) % 4 else None))
        x.add(gated(p, x.norm(w.ffn_norm), w))
    end(p, weights, x)
