"""Arcee's AFM (its model card of 2025): Llama's attention, a feed-forward network with squared ReLU (arXiv:2109.08668), YaRN."""

from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append AFM's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=False)
    rope = c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        x.add(plain(p, x.norm(w.ffn_norm), w, "relu^2"))
    end(p, weights, x)
