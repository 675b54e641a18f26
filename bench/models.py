"""Models that the benches know: whatever ``numainfer.load`` takes, and random shapes such as "1b-q4_k"."""

import sys
from pathlib import Path

import random_gguf

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "models"
LAYERS = {("1b", kind): 8 for kind in ("F16", "BF16", "F32")}  # fewer than the shape's own: the file would be huge

sys.path.insert(0, str(ROOT))

from numainfer.gguf.sources import resolve


def find_model(name):
    """Path of the GGUF file behind ``name``; ModelNotFound where there is none.

    Random shapes ("SHAPE-TYPE", shapes of ``random_gguf.SHAPES``) are written on first use, into ``build/models``.
    """
    shape, _, weight_type = name.partition("-")
    if shape not in random_gguf.SHAPES or weight_type.upper() not in random_gguf.TYPES:
        return resolve(name)
    path = CACHE / f"{name.lower()}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        layers = LAYERS.get((shape, weight_type.upper()))
        random_gguf.write(path, shape, weight_type, layers=layers, tokenizer_from=resolve("smollm2"))
    return path
