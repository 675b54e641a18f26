"""Make tests/golden/blocks.npz: random blocks of types and the floats that llama.cpp decodes them to.

    pip install llama-cpp-python==0.3.36
    python tests/make_block_goldens.py

For types that the ``gguf`` package decodes, a second witness; for Q1_0 and Q2_0 the only one. Arrays: ``NAME`` uint8 (n, bytes of a
block) and ``NAME values`` float32 (n, values of a block), from ``ggml_get_type_traits(type)->to_float``.
"""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

FOLDER = Path(__file__).resolve().parent / "golden"
# number, values and bytes of a block, where its half floats are
TYPES = {"Q2_K": (10, 256, 84, (80, 82)), "Q3_K": (11, 256, 110, (108,)), "TQ1_0": (34, 256, 54, (52,)), "TQ2_0": (35, 256, 66, (64,)),
         "Q1_0": (41, 128, 18, (0,)), "Q2_0": (42, 64, 18, (0,))}  # fmt: skip
SCALES = np.array([0.0123, -0.37, 1, 65504, -65504, 6e-8, 0, -0.0], np.float16)
N_BLOCKS = 24


class Traits(ctypes.Structure):
    """The head of ggml_type_traits."""

    _fields_ = [
        ("name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64), ("bytes", ctypes.c_size_t),
        ("quantised", ctypes.c_bool), ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]  # fmt: skip


def main():
    """Write the file."""
    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    rng, arrays = np.random.default_rng(2), {}
    for name, (number, block, size, scales) in TYPES.items():
        traits = ggml.ggml_get_type_traits(number).contents
        assert (traits.name.decode().upper(), traits.block, traits.bytes) == (name, block, size)
        blocks = rng.integers(0, 256, (N_BLOCKS, size), np.uint8)
        for at in scales:
            blocks[:, at : at + 2] = rng.choice(SCALES, N_BLOCKS)[:, None].view(np.uint8)
        values = np.empty((N_BLOCKS, block), np.float32)
        traits.to_float(blocks.ctypes.data, values.ctypes.data, values.size)
        arrays |= {name: blocks, f"{name} values": values}
    np.savez_compressed(FOLDER / "blocks.npz", **arrays)


if __name__ == "__main__":
    main()
