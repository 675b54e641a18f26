"""A complete model with recurrent layers of a megabyte, with quantised matrices and a tokenizer: ``tiny_recurrent(folder)``."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / "bench"))

import random_gguf  # noqa: E402


def tiny_recurrent(folder, architecture="qwen3next", weight_type="Q8_0", *, layers=4, heads=6, groups=3, state=20, value=36, taps=4):
    """Write a model with random weights, every fourth layer attention; with experts, but for qwen35.

    Parameters
    ----------
    folder : path-like
    architecture : {"qwen3next", "qwen35moe", "qwen35"}
    heads, groups : int
        Heads of values, and of keys and queries.
    state, value : int
        Widths of a head of keys and of values.

    Returns
    -------
    Path
    """
    path = Path(folder) / f"tiny-{architecture}-{weight_type}.gguf"
    delta = random_gguf.Delta(architecture, 32, heads, groups, state, taps, 64, value)
    experts = {} if architecture == "qwen35" else {"experts": 4, "used": 2}
    shape = random_gguf.Shape(96, layers, 4, 2, 64, delta=delta, **experts)
    random_gguf.write(path, shape, weight_type, tokenizer_from=TESTS / "golden" / "llama.gguf")
    return path
