"""Qwen1.5 and Qwen2 with experts (arXiv:2407.10671): biases on q, k, v; weights as softmax gives them; a shared expert with a gate."""

from .blocks import MIXTURE, attention, begin, end, layers, mixture, shared_expert


def build(p, weights):
    """Append the forward pass of a Qwen2 mixture to plan `p`."""
    c, a, x = begin(p, weights, neox=True, heeds=MIXTURE)
    experts, rope = c.experts(normed=False), c.rope(p, weights, a)
    for w in layers(c, weights):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope))
        h = x.norm(w.ffn_norm)
        x.add(mixture(p, h, w, experts, shared=shared_expert(p, h, w), gate=p.score(h, w.row("ffn_gate_inp_shexp"))))
    end(p, weights, x)
