"""A complete mixture of experts of a few megabytes, with quantised matrices and a tokenizer: ``tiny_mixture(folder)``."""

from pathlib import Path

import gguf
import numpy as np
from random_blocks import random_weights
from tiny_models import add_bpe_tokenizer


def tiny_mixture(folder, weight_type="Q8_0", *, layers=2, width=256, heads=4, kv_heads=2, experts=8, used=3, expert_width=256, seed=0,
                 name=None):
    """Write a Qwen3 mixture with random weights; its matrices are of one type, its routers F32.

    Parameters
    ----------
    folder : path-like
    weight_type : str
        Whose blocks divide rows of `width` and `expert_width`.
    experts, used, expert_width : int
        Experts of a layer, those that a token chooses, and rows of their gates.

    Returns
    -------
    Path
    """
    rng, head_width = np.random.default_rng(seed), 64
    path = Path(folder) / f"{name or f'tiny-mixture-{weight_type}'}.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("tiny mixture")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(expert_width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(used)
    writer.add_expert_feed_forward_length(expert_width)
    n_vocab = add_bpe_tokenizer(writer)

    def matrix(name, rows, columns, n=None):
        std = columns**-0.5 if name == "token_embd" else 1.5 * columns**-0.5
        found = [random_weights(rng, rows, columns, weight_type, std) for _ in range(n or 1)]
        writer.add_tensor(f"{name}.weight", found[0] if n is None else np.stack(found), raw_dtype=gguf.GGMLQuantizationType[weight_type])

    def vector(name, n, low=0.5, high=1.5):
        writer.add_tensor(f"{name}.weight", rng.uniform(low, high, n).astype(np.float32))

    matrix("token_embd", n_vocab, width)
    vector("output_norm", width, 1.0, 3.0)
    for i in range(layers):
        b = f"blk.{i}"
        for norm, n in (("attn_norm", width), ("ffn_norm", width), ("attn_q_norm", head_width), ("attn_k_norm", head_width)):
            vector(f"{b}.{norm}", n)
        for part, rows in (("attn_q", heads), ("attn_k", kv_heads), ("attn_v", kv_heads)):
            matrix(f"{b}.{part}", rows * head_width, width)
        matrix(f"{b}.attn_output", width, heads * head_width)
        writer.add_tensor(f"{b}.ffn_gate_inp.weight", (2.5 * width**-0.5 * rng.standard_normal((experts, width))).astype(np.float32))
        for part, rows, columns in (("gate", expert_width, width), ("up", expert_width, width), ("down", width, expert_width)):
            matrix(f"{b}.ffn_{part}_exps", rows, columns, experts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
