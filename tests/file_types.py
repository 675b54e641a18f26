"""Tensor types that the ``gguf`` package does not decode, or not know yet: importing this teaches it to read, write and decode them.

gguf 0.19 has of Q1_0 the number alone and nothing of Q2_0 and ik_llama.cpp's types. What stands here is checked against llama.cpp and
ik_llama.cpp (test_formats.py).
"""

import math

import gguf
import numpy as np
from gguf import quants
from ik_types import HEADS, IK_TYPES

_MISSING = {"Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18)}  # number, values and bytes of a block


def _member(name, number):
    """The member of gguf's enumeration of types, added where it lacks one."""
    cls = gguf.GGMLQuantizationType
    if name not in cls.__members__:
        member = int.__new__(cls, number)
        member._name_, member._value_ = name, number
        cls._member_names_.append(name)
        cls._member_map_[name] = cls._value2member_map_[number] = member
    return cls[name]


def _teach(name, number, block, size):
    kind = _member(name, number)
    gguf.GGML_QUANT_SIZES.setdefault(kind, (block, size))
    if kind in quants._type_traits:
        return
    bits = 8 * (size - 2) // block

    class Type(getattr(quants, "__Quant"), qtype=kind):
        @classmethod
        def dequantize_blocks(cls, blocks):
            """Values from the lowest bit on: of 1 bit -d or d, of 2 bits -d to 2 d."""
            d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            each = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").reshape(len(blocks), block, bits)
            q = each @ (1 << np.arange(bits))
            return d * (2 * q - 1 if bits == 1 else q - 1).astype(np.float32)


for _name, _sizes in _MISSING.items():
    _teach(_name, *_sizes)


def _teach_ik(name, number, block, size, decode):
    kind = _member(name, number)
    gguf.GGML_QUANT_SIZES[kind] = (block, size)

    class Type(getattr(quants, "__Quant"), qtype=kind):
        @classmethod
        def dequantize_blocks(cls, blocks):
            return decode(blocks)

        @classmethod
        def dequantize_rows(cls, rows):
            """Of rows (n, bytes): a head goes with each block of its row."""
            head = HEADS.get(name, 0)
            if not head:
                return super().dequantize_rows(rows)
            blocks = np.ascontiguousarray(rows[:, head:]).reshape(-1, size)
            return decode(blocks, rows[:, :head].repeat(len(blocks) // len(rows), 0)).reshape(len(rows), -1)


def _shape(shape, kind, of=quants.quant_shape_from_byte_shape):
    """The shape in values, from that in bytes, in which rows may have heads."""
    return of((*shape[:-1], shape[-1] - HEADS.get(kind.name, 0)), kind)


quants.quant_shape_from_byte_shape = gguf.gguf_writer.quant_shape_from_byte_shape = _shape
for _name, (_number, _block, _size, _decode) in IK_TYPES.items():
    _teach_ik(_name, _number, _block, _size, _decode)


def data_of(reader, tensor):
    """A tensor's bytes, rows with their heads, of which the package's reader knows nothing."""
    head = HEADS.get(tensor.tensor_type.name, 0)
    if not head:
        return tensor.data
    rows, columns = tensor.shape[:0:-1].tolist(), int(tensor.shape[0])
    block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    width = columns // block * size + head
    start = int(tensor.data_offset)
    return reader.data[start : start + math.prod(rows) * width].reshape(*rows, width)
