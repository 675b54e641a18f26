"""Tensor types by name: number, block, decoding; those that the ``gguf`` package lacks, too."""

import gguf
import numpy as np
from gguf.quants import dequantize as _dequantize

_NUMBERS = {"Q2_0": 42}  # not known to gguf 0.19
_SIZES = {"Q1_0": (128, 18), "Q2_0": (64, 18)}  # values, bytes


def number(name):
    """What stands in a file for the type: an int, gguf's own where it has one."""
    return gguf.GGMLQuantizationType[name] if name in gguf.GGMLQuantizationType.__members__ else _NUMBERS[name]


def sizes(name):
    """(values, bytes) of a block."""
    return _SIZES[name] if name in _SIZES else gguf.GGML_QUANT_SIZES[number(name)]


def dequantise(rows, name):
    """Decode stored rows of a type: float32, the last axis values."""
    if name not in _SIZES:
        return _dequantize(rows, number(name))
    block, size = _SIZES[name]
    blocks = np.ascontiguousarray(rows).reshape(-1, size)
    width = size - 2
    bits = 8 * width // block
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    q = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").reshape(len(blocks), block, bits) @ (1 << np.arange(bits))
    values = d * (2 * q - 1 if bits == 1 else q - 1).astype(np.float32)
    return values.reshape(*rows.shape[:-1], -1)
