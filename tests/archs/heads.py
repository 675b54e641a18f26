"""Tiny models of widths that the templates lack: heads that are no multiples of 16, keys and values of unequal width, rows that no block divides.

python heads.py NAME OUT.gguf    writes one, as make_gguf.py does (needs numpy and gguf)
python heads.py --expect         writes heads.npz: `ids`, those of expected.npz, and of each model llama.cpp's logits of all positions
                                 (needs llama-cpp-python; that of 0.3.36 was used: CPU, one prefill, KV cache in F32, flash attention off)

Each is a template of templates.json.gz with other sizes; its weights come from its own name and that template's seed.
"""

import copy
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from make_gguf import make
from make_gguf import templates as plain_templates

HERE = Path(__file__).parent
EXPECTED = HERE / "heads.npz"
# Name: (template, sizes).  Where a template has no keys for the widths of heads they follow from embedding_length / head_count.
MODELS = {
    "llama-24": ("llama", {"key": 24}),
    "llama-40": ("llama", {"key": 40, "width": 72, "feed_forward": 100}),
    "llama-100": ("llama", {"key": 100}),
    "llama-120": ("llama", {"key": 120, "heads": 3, "kv_heads": 1, "vocabulary": 131}),
    "gemma2-20": ("gemma2", {"key": 20, "feed_forward": 90}),
    "gemma3-24": ("gemma3", {"key": 24, "width": 40, "vocabulary": 131}),
    "gpt2-20": ("gpt2", {"width": 100, "heads": 5, "kv_heads": 5, "feed_forward": 77}),
    "gptneox-40": ("gptneox", {"width": 120, "heads": 3, "kv_heads": 3, "rotated": 10}),
    "qwen3-40": ("qwen3", {"key": 40, "width": 99}),
    "qwen3-8": ("qwen3", {"key": 8, "heads": 6, "kv_heads": 2}),
    "qwen3moe-100": ("qwen3moe", {"key": 100, "width": 72, "expert_feed_forward": 40}),
    "gpt-oss-24": ("gpt-oss", {"key": 24, "rotated": 24, "width": 90, "expert_feed_forward": 50}),
    "mimo2-40-24": ("mimo2", {"key": 40, "value": 24, "rotated": 14}),
    "mimo2-24-40": ("mimo2", {"key": 24, "value": 40, "rotated": 8, "expert_feed_forward": 33}),
}
KEYS = {"width": "embedding_length", "feed_forward": "feed_forward_length", "expert_feed_forward": "expert_feed_forward_length",
        "heads": "attention.head_count", "kv_heads": "attention.head_count_kv", "rotated": "rope.dimension_count",
        "key": "attention.key_length", "value": "attention.value_length", "vocabulary": "vocab_size"}  # fmt: skip


def template(base, sizes):
    """A template with other sizes."""
    t = copy.deepcopy(base)
    kv = t["kv"]
    kv |= {KEYS[name]: value for name, value in sizes.items()}
    if "key" in sizes:
        kv[KEYS["value"]] = sizes.get("value", sizes["key"])
        if KEYS["rotated"] in kv and "rotated" not in sizes:
            kv[KEYS["rotated"]] = sizes["key"]
    t["tensors"] = [[name, _shape(name, kv), kind] for name, _, kind in t["tensors"]]
    return t


def _shape(name, kv):
    """A tensor's shape, as GGUF has it."""
    d, f, x, n = (kv.get(KEYS[key], 0) for key in ("width", "feed_forward", "expert_feed_forward", "vocabulary"))
    heads, groups, experts = kv[KEYS["heads"]], kv[KEYS["kv_heads"]], kv.get("expert_count")
    e = kv.get(KEYS["key"], d // heads)
    ev = kv.get(KEYS["value"], e)
    layer = re.match(r"blk\.(\d+)\.", name)
    if isinstance(groups, list):
        groups = groups[int(layer[1])] if layer else 0
    weights = {
        "token_embd": [d, n], "output": [d, n], "position_embd": [d, kv["context_length"]], "rope_freqs": [kv.get(KEYS["rotated"], e) // 2],
        "attn_q": [d, heads * e], "attn_k": [d, groups * e], "attn_v": [d, groups * ev],
        "attn_qkv": [d, (heads + groups) * e + groups * ev], "attn_output": [heads * ev, d], "attn_sinks": [heads],
        "attn_q_norm": [e], "attn_k_norm": [e], "ffn_gate": [d, f], "ffn_up": [d, f], "ffn_down": [f, d],
        "ffn_gate_inp": [d, experts], "ffn_gate_exps": [d, x, experts], "ffn_up_exps": [d, x, experts], "ffn_down_exps": [x, d, experts],
        "exp_probs_b": [None, experts],
    }  # fmt: skip
    part, kind = name.removeprefix(layer[0] if layer else "").rsplit(".", 1)
    shape = weights[part] if part in weights else [d]  # other vectors are norms of the stream
    return shape[1:] if kind == "bias" and len(shape) > 1 else shape


def templates():
    """Name -> template."""
    plain = plain_templates()
    return {name: template(plain[base], sizes) for name, (base, sizes) in MODELS.items()}


def expect():
    """Write heads.npz."""
    from llama_cpp import GGML_TYPE_F32, Llama

    ids = np.load(HERE / "expected.npz")["ids"]
    found = {"ids": ids}
    with tempfile.TemporaryDirectory() as folder:
        for name, t in templates().items():
            path = str(Path(folder) / f"{name}.gguf")
            make(name, path, t)
            model = Llama(path, n_ctx=512, n_batch=512, n_ubatch=512, logits_all=True, flash_attn=False, type_k=GGML_TYPE_F32,
                          type_v=GGML_TYPE_F32, n_threads=1, verbose=False)  # fmt: skip
            model.eval(ids.tolist())
            found[name] = np.array(model.scores[: len(ids)], np.float32)
            model.close()
    np.savez(EXPECTED, **found)


if __name__ == "__main__":
    if sys.argv[1:] == ["--expect"]:
        expect()
    else:
        make(sys.argv[1], sys.argv[2], templates()[sys.argv[1]])
