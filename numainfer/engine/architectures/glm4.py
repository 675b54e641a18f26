"""GLM-4 of 2025 (GLM-4-0414, its model card): GQA with biases, half of each head rotated, SwiGLU fused, norms before and after."""

from .blocks import Hyperparameters, attention, begin, end, gated, layers


def build(p, weights):
    """Append GLM-4's forward pass to plan `p`."""
    neox = Hyperparameters(weights.gguf).sections()  # GLM-4V's text model
    c, a, x = begin(p, weights, neox=neox, heeds=("rope.dimension_sections",))
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope), post=w.post_attention_norm)
        x.add(gated(p, x.norm(w.ffn_norm), w), post=w.post_ffw_norm)
    end(p, weights, x)
