"""Llama (arXiv:2302.13971, 2407.21783) and what is built like it: GQA, rotary positions, SwiGLU, pre-norms; biases where there are any."""

from dataclasses import replace

from .blocks import Hyperparameters, Residual, embedding_matrix, output_matrix


def build(p, weights):
    """Append Llama's forward pass to plan `p`."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral("attention.sliding_window")
    eps = c.float("attention.layer_norm_rms_epsilon", low=0, high=1)
    a = replace(c.attention(neox=False, eps=eps), window=c.int("attention.sliding_window", default=0, low=0))  # Mistral 7B v0.1
    base, factors = c.float("rope.freq_base", default=10000.0, low=1), weights.values("rope_freqs.weight")
    frequencies = c.rope_frequencies(a.rope_dim, base, factors)
    rope = p.rope_table(weights.constant("rope", frequencies))
    x = Residual(p, p.embed(embedding_matrix(c, weights)), eps)
    for i in range(c.int("block_count", high=4096)):
        layer(p, x, weights.block(i), a, rope)
    p.logits(x.norm(weights["output_norm.weight"], selected=True), output_matrix(weights))


def layer(p, x, w, a, rope):
    """One block on residual stream x."""
    h = x.norm(w.attn_norm)
    q, k, v = p.matmul(h, w.attn_q, w.attn_k, w.attn_v)
    x.add(p.matmul(p.attend(q, k, v, a, rope), w.attn_output))
    h = x.norm(w.ffn_norm)
    gate, up = p.matmul(h, w.ffn_gate, w.ffn_up)
    x.add(p.matmul(p.gated(gate, up, "silu"), w.ffn_down))
