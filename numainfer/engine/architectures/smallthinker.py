"""SmallThinker (arXiv:2507.20984): every fourth layer sees all, without positions, the others a window; routers read the stream before
attention; ReGLU experts.
"""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, layers, mixture


def build(p, weights):
    """Append SmallThinker's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=(*MIXTURE, "attention.sliding_window"))
    window, experts = c.int("attention.sliding_window", default=0, low=0), c.experts("softmax")
    local, rope = replace(a, window=window), c.rope(p, weights, a, local=bool(window))
    for w, windowed in zip(layers(c, weights), c.windowed(4, first=True)):
        stream, h = x.value(), x.norm(w.attn_norm)
        x.add(attention(p, h, w, local, rope) if windowed or not window else attention(p, h, w, a, None))
        x.add(mixture(p, x.norm(w.ffn_norm), w, experts, by=stream, activation="relu"))
    end(p, weights, x)
