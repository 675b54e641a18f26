"""gpt-oss (arXiv:2508.10925): sinks, a window in every second layer, biases everywhere, clamped SwiGLU, softmax of the chosen scores."""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, layers, mixture

ALPHA, LIMIT = 1.702, 7.0  # of the gate


def build(p, weights):
    """Append gpt-oss's forward pass to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=(*MIXTURE, "attention.sliding_window"))
    local, experts = replace(a, window=c.int("attention.sliding_window")), c.experts("chosen", normed=False)
    rope, local_rope = c.rope(p, weights, a, local=False), c.rope(p, weights, a, local=True)
    for w, windowed in zip(layers(c, weights), c.windowed(2)):
        shape, table = (local, local_rope) if windowed else (a, rope)
        x.add(attention(p, x.norm(w.attn_norm), w, shape, table, sinks=w.attn_sinks))
        x.add(mixture(p, x.norm(w.post_attention_norm), w, experts, activation="clamped", alpha=ALPHA, limit=LIMIT))
    end(p, weights, x)
