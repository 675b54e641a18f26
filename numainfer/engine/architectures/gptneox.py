"""GPT-NeoX and Pythia (arXiv:2204.06745, 2304.01373): LayerNorm, GELU, partial rotary; attention and feed-forward side by side or not.

The published GELU is the exact one, and ours, as llama.cpp's, the form by tanh, which is at most 5e-4 away.
"""

from .blocks import attention, begin, end, layers, plain


def build(p, weights):
    """Append GPT-NeoX's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, layer_norm=True)
    rope, parallel = c.rope(p, weights, a), c.gguf.get("gptneox.use_parallel_residual", bool)
    for w in layers(c, weights):
        h, of_ffn = x.norm(w.attn_norm), x.norm(w.ffn_norm) if parallel else None
        x.add(attention(p, h, w, a, rope))
        x.add(plain(p, of_ffn if parallel else x.norm(w.ffn_norm), w, "gelu"))
    end(p, weights, x)
