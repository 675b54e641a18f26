"""StableLM and StableLM 2 (arXiv:2402.17834): LayerNorm, a quarter of each head rotated, SwiGLU; beside attention where it has no norm."""

from .blocks import begin, end, gated, head_norm_attention, layers


def build(p, weights):
    """Append StableLM's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm=True)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        h = x.norm(w.attn_norm)
        x.add(head_norm_attention(p, h, w, a, rope))
        x.add(gated(p, h if w.get("ffn_norm") is None else x.norm(w.ffn_norm), w))
    end(p, weights, x)
