"""Cohere's mixtures: Command A's blocks, the leading layers with rotary positions and a plain network, the mean of chosen and shared."""

from dataclasses import replace

from .blocks import MIXTURE, attention, begin, end, gated, layers, mixture, shared_expert

HEEDS = (*MIXTURE, "logit_scale", "attention.sliding_window")


def build(p, weights):
    """Append the forward pass of a Cohere mixture to plan `p`."""
    rms = f"{weights.gguf.architecture}.attention.layer_norm_rms_epsilon" in weights.gguf.metadata
    c, a, x = begin(p, weights, neox=False, layer_norm=not rms, heeds=HEEDS)
    local, experts = replace(a, window=c.int("attention.sliding_window")), c.experts("sigmoid", normed=False)
    rope, local_rope = c.rope(p, weights, a, local=False), c.rope(p, weights, a, local=True)
    blocks, leading, shared = layers(c, weights), c.int("leading_dense_block_count", low=0), c.int("expert_shared_count", default=0, low=0)
    for i, (w, windowed) in enumerate(zip(blocks, c.windowed(4, first=True))):
        h = x.norm(w.attn_norm)
        y = attention(p, h, w, local if windowed else a, local_rope if windowed else rope if i < leading else None)
        if i < leading:
            x.add(gated(p, h, w))
        else:
            x.add(mixture(p, h, w, experts, shared=shared_expert(p, h, w) if shared else None, scale=0.5 if shared else 1.0))
        x.add(y)
    end(p, weights, x, scale=c.float("logit_scale", low=1e-6))
