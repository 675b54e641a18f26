"""DeepSeek V2, V3 and R1, Kimi K2, GLM-4.7-Flash, Mistral Large 3 (arXiv:2405.04434, 2412.19437): latent attention, fine experts.

Keys and values of all heads are made of one latent row c per position.  A head's W_k is not multiplied with c but with the head's query,
and its W_v with what it attended to: so all heads share one key (c, rotated part) and one value, c, of which the cache holds the key.
"""

import math
from dataclasses import replace

from ...errors import CorruptModel, UnsupportedModel
from ..ops import Attention
from .blocks import MIXTURE, Hyperparameters, Residual, embedding_matrix, end, network, trunk

HEEDS = (*MIXTURE, "attention.temperature_scale")
GLM_FLASH = {"layers": (47, 48), "vocabulary": 154880}  # whose first files have no expert_gating_func


def build(p, weights, gating="softmax"):
    """Append DeepSeek's forward pass to plan `p`; `gating` is what files without the key mean."""
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*HEEDS)
    eps = c.rms_eps()
    a, table = shape(c, eps), embedding_matrix(c, weights)
    blocks = trunk(c, weights)
    is_flash = len(blocks) in GLM_FLASH["layers"] and table.n == GLM_FLASH["vocabulary"]
    experts = c.experts("sigmoid" if is_flash else gating, normed=False)
    rope, x = rotary(c, p, weights, a), Residual(p, p.embed(table), eps)
    for i, w in enumerate(blocks):
        x.add(attention(p, x.norm(w.attn_norm), w, a, rope, c))
        x.add(network(p, x.norm(w.ffn_norm), w, experts, i))
    end(p, weights, x)


def shape(c, eps):
    """The Attention over latent rows: one kv-head, of which all heads are queries."""
    rank, rotated = c.int("attention.kv_lora_rank", high=65536), c.int("rope.dimension_count", high=65536)
    if c.prefix + "attention.key_length_mla" not in c.gguf.metadata:
        detail = "The file is of an old form, with attn_kv_b in one piece; convert the model anew"
        raise UnsupportedModel(c.prefix + "attention.key_length_mla", None, ["a width"], detail)
    key = c.int("attention.key_length_mla", high=65536)
    if rotated % 2 or rotated >= key:
        c.refuse("rope.dimension_count", rotated, f"an even number below {c.prefix}attention.key_length_mla = {key}")
    if rank % 16 or rotated % 16:
        raise UnsupportedModel(c.prefix + "attention.kv_lora_rank", rank, ["multiples of 16, and so rope.dimension_count"])
    scale = yarn(c) ** 2 / math.sqrt(key)
    a = Attention(c.int("attention.head_count", high=4096), 1, rank + rotated, rank, rotated, False, scale=scale, eps=eps,
                  rope_first=rank)
    temperature = c.float("attention.temperature_scale", default=0.0, low=0)
    return replace(a, temperature=temperature, floor=c.int("attention.temperature_length")) if temperature else a


def yarn(c):
    """The factor on queries and keys alike that goes with YaRN (arXiv:2309.00071); the key has a tenth of the published mscale_all_dim."""
    if c.str("rope.scaling.type", default="none") != "yarn":
        return 1.0
    multiplier = c.float("rope.scaling.yarn_log_multiplier", low=1e-6)
    if c.prefix != "deepseek2." and abs(multiplier - 0.1) > 1e-6:
        raise UnsupportedModel(c.prefix + "rope.scaling.yarn_log_multiplier", multiplier, [0.1])
    return 1.0 + multiplier * math.log(c.float("rope.scaling.factor", low=1.0))


def rotary(c, p, weights, a):
    """The table of rotations; cosines and sines have no factor of their own, for mscale and mscale_all_dim are equal."""
    if c.str("rope.scaling.type", default="none") != "yarn":
        return c.rope(p, weights, a)
    return p.rope_table(weights.constant("latent rope", c.yarn_frequencies(a.rope_dim)))


def attention(p, h, w, a, rope, c):
    """W_o of what each head attends to in the latent rows, times its W_v."""
    heads, rotated, rank = a.heads, a.rope_dim, a.value_length
    plain = c.int("attention.key_length_mla") - rotated
    for matrix in (w.attn_k_b, w.attn_v_b):
        found = getattr(matrix, "experts", 1)
        if found != heads:
            raise CorruptModel(c.gguf.path, f"{matrix.name} has {found} matrices, wanted {heads}, one per head")
    if w.get("attn_q_a"):
        q = p.matmul(p.normed(p.matmul(h, w.attn_q_a), w.attn_q_a_norm, a.eps), w.attn_q_b)
        latent, turned = p.matmul(h, *w.rows("attn_kv_a_mqa", rank, rotated))
    else:
        q, latent, turned = p.matmul(h, w.attn_q, *w.rows("attn_kv_a_mqa", rank, rotated))
    q_latent = p.matmul_grouped(p.join(heads, (q, 0, plain), apart=True), None, w.attn_k_b)
    latent = p.normed(latent, w.attn_kv_a_norm, a.eps)
    q, k = p.join(heads, (q_latent, 0, rank), (q, plain, rotated)), p.join(1, (latent, 0, rank), (turned, 0, rotated))
    o = p.matmul_grouped(p.join(heads, (p.attend(q, k, None, a, rope), 0, rank), apart=True), None, w.attn_v_b)
    return p.matmul(p.join(heads, (o, 0, o.width)), w.attn_output)
