"""Tiny models of what the templates lack, and of what a sweep over other settings found worth keeping.

python more.py NAME OUT.gguf            writes one, as make_gguf.py does (needs numpy and gguf)
python more.py --expect /path/python    completes more.npz: of each model the logits that llama.cpp computes of every fourth of the 96 positions
                                        of expected.npz (by a Python with llama-cpp-python 0.3.36: CPU, one prefill, KV cache in F32, flash
                                        attention off)

Each is a template of templates.json.gz changed by a case of changes.py; its weights come from the template's own name and seed.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from changes import CASES
from llama_cpp_logits import run
from make_gguf import make
from make_gguf import templates as plain_templates

HERE = Path(__file__).parent
EXPECTED = HERE / "more.npz"
ROWS = slice(3, None, 4)
_LONGER = 430, slice(9, None, 10)  # of more tokens some would choose between two rows that are nearly worth the same
# Tokens, of a seed, and rows that are kept.
LONG = {"llama4-pieces": (8_400, slice(8_151, None, 10)), "deepseek4-long": _LONGER, "deepseek4-yarn": _LONGER, "glm5-next-long": _LONGER}
# Name: (template, case, label).
MODELS = {
    "deepseek2-one-piece": ("deepseek2", "old_latent", "one piece"),
    "deepseek2-lite-one-piece": ("deepseek2-lite", "old_latent", "one piece"),
    "deepseek2-heads": ("deepseek2", "latent_heads", "8 heads 16+64, 16, rank 32"),
    "deepseek2-rank-40": ("deepseek2", "latent_heads", "3 heads 20+64, 24, rank 40"),
    "deepseek2-leading": ("deepseek2", "leading", "2 instead of 1"),
    "deepseek2-further": ("deepseek2", "further", "with tensors"),
    "deepseek32-further": ("deepseek32", "further", "without"),
    "glm4moe-further": ("glm4moe", "further", "with tensors"),
    "glm4moe-groups": ("glm4moe", "experts", "6 of 32, groups (4, 2)"),
    "glm4-further": ("glm4", "further", "with tensors"),
    "exaone4-further": ("exaone4", "further", "with tensors"),
    "minimax-m2-fused": ("minimax-m2", "fused", "q, k, v"),
    "minimax-m2-experts": ("minimax-m2", "experts", "5 of 16, groups None"),
    "qwen3moe-arrays": ("qwen3moe", "arrays", "attention.head_count_kv"),
    "qwen3moe-all": ("qwen3moe", "experts", "12 of 12, groups None"),
    "gpt-oss-own-base": ("gpt-oss", "bases", "swa base"),
    "gpt-oss-heads": ("gpt-oss", "heads", "8 over 1"),
    "gemma2-own-base": ("gemma2", "bases", "swa base"),
    "command-r-norms": ("command-r", "head_norms", "in sequence"),
    "stablelm-norms": ("stablelm", "head_norms", "in sequence"),
    "stablelm-norms-beside": ("stablelm", "head_norms", "side by side"),
    "granite-without-positions": ("granite", "without_positions", "none"),
    "glm4-sections": ("glm4", "sections", "2, 3, 3"),
    "glm4moe-sections": ("glm4moe", "sections", "2, 3, 3"),
    "granite-longrope": ("granite", "long_rope", "original 64"),
    "granite-shortrope": ("granite", "long_rope", "original 600"),
    "grok-heads": ("grok", "heads", "4 over 1"),
    "llama4-pieces": ("llama4", "long_context", "16640"),
    "qwen3next-old": ("qwen3next", "old_delta", "one tensor"),
    "qwen3next-6-over-3": ("qwen3next", "delta_heads", "6 over 3 of 24, 3 taps"),
    "qwen3next-8-over-1": ("qwen3next", "delta_heads", "8 over 1 of 16, 2 taps"),
    "qwen3next-further": ("qwen3next", "further", "with tensors"),
    "qwen35-6-over-3": ("qwen35", "delta_heads", "6 over 3 of 24, 3 taps"),
    "qwen35-every-second": ("qwen35", "delta_layers", "every second"),
    "qwen35-further": ("qwen35", "further", "with tensors"),
    "qwen35moe-by-a-list": ("qwen35moe", "delta_layers", "by a list"),
    "qwen35moe-further": ("qwen35moe", "further", "with tensors"),
    "lfm2-5-taps": ("lfm2", "short_taps", "5 taps"),
    "kimi-linear-24": ("kimi-linear", "kda_widths", "24, 3 taps"),
    "kimi-k3-24": ("kimi-k3", "kda_widths", "24, 3 taps"),
    "kimi-k3-without-bound": ("kimi-k3", "kda_bound", "none"),
    "kimi-k3-every-layer": ("kimi-k3", "attention_residuals", "every 1"),
    "kimi-k3-every-third": ("kimi-k3", "attention_residuals", "every 3"),
    "kimi-k3-without-residuals": ("kimi-k3", "attention_residuals", "every 0"),
    "kimi-k3-whole-rows": ("kimi-k3", "not_latent", "whole rows"),
    "kimi-k3-without-norm": ("kimi-k3", "without_gates", "ffn_routed_norm"),
    "kimi-k3-without-gates": ("kimi-k3", "without_gates", "attn_gate"),
    "kimi-k3-one-limit": ("kimi-k3", "situ", "1.5, 0.0"),
    "kimi-k3-low-limits": ("kimi-k3", "situ", "0.75, 1.25"),
    "bailingmoe3-40": ("bailingmoe3", "kda_widths", "40, 5 taps"),
    "bailingmoe3-sections": ("bailingmoe3", "sections", "2, 3, 3"),
    "mamba2-16-over-4": ("mamba2", "mamba_heads", "16 over 4 of 24, 3 taps"),
    "granitehybrid-4-over-1": ("granitehybrid", "mamba_heads", "4 over 1 of 40, 4 taps"),
    "falcon-h1-8-over-8": ("falcon-h1", "mamba_heads", "8 over 8 of 16, 2 taps"),
    "falcon-h1-without-norm": ("falcon-h1", "mamba_without", "norm"),
    "nemotron_h-8-over-2": ("nemotron_h", "mamba_heads", "8 over 2 of 20, 5 taps"),
    "nemotron_h_moe-whole-rows": ("nemotron_h_moe", "not_latent", "whole rows"),
    "jamba-18": ("jamba", "scans", "state 18, rank 7, 3 taps"),
    "mamba": ("jamba", "scans", "alone, plain"),
    "falcon-mamba": ("jamba", "scans", "alone, normed"),
    "minimax-01-every-second": ("minimax-01", "lightning_layers", "every second"),
    "minimax-01-8-of-24": ("minimax-01", "lightning_layers", "8 heads of 24"),
    "deepseek4-long": ("deepseek4-top8", "longer", "640"),
    "deepseek4-yarn": ("deepseek4-top8", "longer", "640, yarn"),
    "glm5-next-long": ("glm5-next-top16", "longer", "640"),
    "minicpm3-short": ("minicpm3", "ends", "rope.scaling.original_context_length = 600"),
}


def templates():
    """Name -> (name of the template that its weights come from, template)."""
    plain, found = plain_templates(), {}
    for name, (base, case, label) in MODELS.items():
        found[name] = base, dict(CASES[case](plain[base]))[label].t
    return found


def prompt(name):
    """(ids, rows whose logits are kept)."""
    if name in LONG:
        return np.random.default_rng(3).integers(6, 120, LONG[name][0]).astype(np.int32), LONG[name][1]
    return np.load(HERE / "expected.npz")["ids"].astype(np.int32), ROWS


def expect(python):
    """Write more.npz, with what it has not yet."""
    found = dict(np.load(EXPECTED)) if EXPECTED.exists() else {}
    found = {name: logits for name, logits in found.items() if name in MODELS}
    with tempfile.TemporaryDirectory() as folder:
        for name, (base, t) in templates().items():
            if name in found:
                continue
            path = Path(folder) / f"{name}.gguf"
            make(base, str(path), t)
            ids, rows = prompt(name)
            logits = run(path, ids, python, max(512, len(ids)))
            if isinstance(logits, str):
                raise SystemExit(f"{name}: {logits}")
            found[name] = logits[rows]
            path.unlink()
    np.savez_compressed(EXPECTED, **found)


if __name__ == "__main__":
    if sys.argv[1] == "--expect":
        expect(sys.argv[2])
    else:
        chosen, template = templates()[sys.argv[1]]
        make(chosen, sys.argv[2], template)
