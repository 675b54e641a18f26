"""Writes models that one does not have: a header as real files have it, and holes for the data, which take no room on the disk.

``python tests/hollow_gguf.py OUT.gguf`` writes DeepSeek V3's (671 billion parameters, 404 GB, of which the disk holds some MB).
``numainfer info`` reads such a file as any other; ``load`` refuses it, for its data are zeros.
"""

import os
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf_tools import info, pair


def hollow(path, architecture, keys, tensors, vocabulary=0):
    """Write a file of holes.

    Parameters
    ----------
    path : path-like
    architecture : str
    keys : dict
        Metadata, without the architecture's prefix: int, float, bool or str.
    tensors : iterable of (str, str, tuple of int)
        Name, type, and dimensions in the file's order, the innermost first.
    vocabulary : int
        Tokens of a byte-level BPE tokenizer whose words are made up, with as many merges; 0: no tokenizer.

    Returns
    -------
    Path
    """
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    pairs = [pair("general.architecture", "STRING", architecture), pair("general.name", "STRING", f"hollow {architecture}")]
    pairs += [pair(f"{architecture}.{key}", kinds[type(value)], value) for key, value in keys.items()]
    if vocabulary:
        letters = list("w0123456789abcdef")
        words = [f"w{i:x}" for i in range(vocabulary - len(letters))]
        pairs += [pair("tokenizer.ggml.model", "STRING", "gpt2"), pair("tokenizer.ggml.pre", "STRING", "deepseek-v3"),
                  pair("tokenizer.ggml.tokens", ("ARRAY", "STRING"), letters + words),
                  pair("tokenizer.ggml.token_type", ("ARRAY", "INT32"), [1] * vocabulary),
                  pair("tokenizer.ggml.merges", ("ARRAY", "STRING"), [f"{word[:-1]} {word[-1]}" for word in words])]  # fmt: skip
    infos, at = [], 0
    for name, kind, dims in tensors:
        kind = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        assert dims[0] % block == 0, (name, kind, dims)
        infos.append(info(name, dims, int(kind), at))
        at += -(-int(np.prod(dims)) // block * size // 32) * 32
    head = b"GGUF" + np.array([3], "<u4").tobytes() + np.array([len(infos), len(pairs)], "<u8").tobytes() + b"".join(pairs + infos)
    head += bytes(-len(head) % 32)
    with open(path, "wb") as file:
        file.write(head)
        os.truncate(file.fileno(), len(head) + at)
    return Path(path)


def deepseek_v3(path, *, layers=61, dense=3, width=7168, heads=128, experts=256, expert_width=2048, vocabulary=129280,
                architecture="deepseek2", more=()):
    """DeepSeek V3 (arXiv:2412.19437) in the mixture of types that Q4_K_M files have: more bits for some layers' ffn_down.

    more : iterable
        Further tensors.
    """
    q, kv, rotated, plain, value = 1536, 512, 64, 128, 128
    keys = {"context_length": 163840, "embedding_length": width, "block_count": layers, "feed_forward_length": 18432,
            "attention.head_count": heads, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.q_lora_rank": q, "attention.kv_lora_rank": kv, "attention.key_length": kv + rotated, "attention.value_length": kv,
            "attention.key_length_mla": plain + rotated, "attention.value_length_mla": value, "rope.dimension_count": rotated,
            "rope.freq_base": 10000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
            "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_log_multiplier": 0.1,
            "leading_dense_block_count": dense, "expert_count": experts, "expert_used_count": 8, "expert_shared_count": 1,
            "expert_feed_forward_length": expert_width, "expert_group_count": 8, "expert_group_used_count": 4, "expert_gating_func": 2,
            "expert_weights_norm": True, "expert_weights_scale": 2.5, "vocab_size": vocabulary}  # fmt: skip

    def tensors():
        yield "token_embd.weight", "Q4_K", (width, vocabulary)
        yield "output_norm.weight", "F32", (width,)
        yield "output.weight", "Q6_K", (width, vocabulary)
        for i in range(layers):
            down = "Q6_K" if i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2 else "Q4_K"
            block = [("attn_norm", "F32", (width,)), ("attn_q_a", "Q4_K", (width, q)), ("attn_q_a_norm", "F32", (q,)),
                     ("attn_q_b", "Q4_K", (q, heads * (plain + rotated))), ("attn_kv_a_mqa", "Q4_K", (width, kv + rotated)),
                     ("attn_kv_a_norm", "F32", (kv,)), ("attn_k_b", "Q8_0", (plain, kv, heads)), ("attn_v_b", "Q4_K", (kv, value, heads)),
                     ("attn_output", "Q4_K", (heads * value, width)), ("ffn_norm", "F32", (width,))]  # fmt: skip
            if i < dense:
                block += [("ffn_gate", "Q4_K", (width, 18432)), ("ffn_up", "Q4_K", (width, 18432)), ("ffn_down", down, (18432, width))]
            else:
                block += [("ffn_gate_inp", "F32", (width, experts)), ("exp_probs_b.bias", "F32", (experts,))]
                for end, n in (("exps", (experts,)), ("shexp", ())):
                    block += [(f"ffn_gate_{end}", "Q4_K", (width, expert_width, *n)), (f"ffn_up_{end}", "Q4_K", (width, expert_width, *n)),
                              (f"ffn_down_{end}", down, (expert_width, width, *n))]  # fmt: skip
            for name, kind, dims in block:
                yield f"blk.{i}.{name}" + ("" if name.endswith("bias") else ".weight"), kind, dims
        yield from more

    return hollow(path, architecture, keys, tensors(), vocabulary)


if __name__ == "__main__":
    print(deepseek_v3(sys.argv[1]))
