"""LFM2 (arXiv:2511.23404): short convolutions between two gates, with GQA with q/k norms per head in some layers; SwiGLU, pre-norms."""

from .blocks import Hyperparameters, Residual, attention, embedding_matrix, gated, layers, mixture, output_matrix


def build(p, weights, heeds=()):
    """Append the forward pass of LFM2 to plan `p`; heeds: keys of the mixture's."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*heeds)
    eps, taps = c.rms_eps(), c.int("shortconv.l_cache", low=2, high=16)
    x, blocks, rope = Residual(p, p.embed(embedding_matrix(c, weights)), eps), layers(c, weights), None
    experts = c.experts("sigmoid") if heeds else None
    plain = c.int("leading_dense_block_count", default=0, low=0) if heeds else len(blocks)
    for i, w in enumerate(blocks):
        h = x.norm(w.attn_norm)
        if c.int("attention.head_count_kv", low=0, layer=i):
            a = c.attention(neox=True, eps=eps, layer=i)
            rope = rope or c.rope(p, weights, a)
            x.add(attention(p, h, w, a, rope, q_norm=w.attn_q_norm, k_norm=w.attn_k_norm))
        else:
            x.add(convolution(p, h, w, taps))
        h = x.norm(w.ffn_norm)
        x.add(gated(p, h, w) if i < plain else mixture(p, h, w, experts))
    p.logits(x.norm(weights["token_embd_norm.weight"], selected=True), output_matrix(weights))  # so files call the last norm


def convolution(p, h, w, taps):
    """W_out (c * convolution of (b * x)), b, c and x being thirds of what W_in makes of h."""
    b, c, x = p.matmul(h, *w.rows("shortconv.in_proj", h.width, h.width, h.width))
    mixed = p.short_conv(p.gated(b, x, "product"), w.columns("shortconv.conv"), taps, silu=False)
    return p.matmul(p.gated(c, mixed, "product"), getattr(w, "shortconv.out_proj"))
