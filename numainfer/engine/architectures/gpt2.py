"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, a feed-forward network with GELU, biases everywhere."""

from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append GPT-2's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False, layer_norm=True, positions=weights["position_embd.weight"])
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, None))
        x.add(plain(p, x.norm(w.ffn_norm), w, "gelu"))
    end(p, weights, x)
