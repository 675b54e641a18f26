"""Builds the formats and kernels alone and binds them with ctypes, so that tests reach every table without the package.

``library()`` is ``csrc/formats/*.c``, ``csrc/isa/*.c`` and a hook, for this machine.
"""

import contextlib
import ctypes
import functools
import pathlib
import re
import subprocess
import tempfile

import numpy as np
from _objects import MACHINE, compile_all

CSRC = pathlib.Path(__file__).resolve().parents[1] / "csrc"
SOURCES = sorted([*CSRC.glob("formats/*.c"), *CSRC.glob("isa/*.c")])

TYPES = tuple(re.findall(r"^NI_FORMAT\((\w+)", (CSRC / "formats" / "formats.def").read_text(), re.MULTILINE))  # order of ni_type
ROWS, SLAB, LONG_SLAB, SLAB_BYTES, DOTS = 16, 256, 512, 640, 4
FLOAT, OFFSET, MIN, SIGNED, NESTED, NESTED_MIN = range(6)  # ni_panel_kind

# Completes a table without some slots of the types in a mask: 1 dot, 2 unpack, 4 gather and gemm.
HOOK = """
#include "isa/kernels.h"
void complete_without(ni_kernels *table, const ni_own_kernels *own, uint64_t types, int slots);
void complete_without(ni_kernels *table, const ni_own_kernels *own, uint64_t types, int slots) {
    ni_own_kernels part = *own;
    for (int t = 0; t < NI_N_TYPES; t++) {
        if (!(types >> t & 1)) continue;
        if (slots & 1) part.types[t].dot = NULL;
        if (slots & 2) part.types[t].unpack = NULL;
        if (slots & 4) part.types[t].gather = NULL, part.types[t].gemm = NULL;
    }
    ni_complete(table, &part);
}
"""

_ptr, _i64, _int, _size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_size_t


class Act(ctypes.Structure):
    """ni_act"""

    _fields_ = [("k", _i64), ("f", _ptr), ("q", _ptr), ("d", _ptr), ("m", _ptr), ("s", _ptr), ("words", _ptr), ("start", _ptr)]


class Panel(ctypes.Structure):
    """ni_panel"""

    _fields_ = [("q", _ptr), ("scale", _ptr), ("min", _ptr), ("f", _ptr)]


class Format(ctypes.Structure):
    """ni_format"""

    _fields_ = [
        ("name", ctypes.c_char_p), ("ggml_type", _int), ("block", _int), ("block_bytes", _int), ("record_bytes", _int),
        ("kind", _int), ("sub", _int), ("offset", _int), ("max_q", _int), ("head_bytes", _int),
        ("decode", ctypes.CFUNCTYPE(None, _ptr, _i64, _ptr)),
        ("pack", ctypes.CFUNCTYPE(None, _ptr, _size, _int, _i64, _ptr)),
        ("unpack_row", ctypes.CFUNCTYPE(None, _ptr, _int, _i64, _ptr)),
    ]  # fmt: skip


_SLOTS = [
    ("dot", ctypes.CFUNCTYPE(None, _ptr, _i64, ctypes.POINTER(Act), _ptr)),
    ("dots", ctypes.CFUNCTYPE(None, _ptr, _i64, ctypes.POINTER(Act), _int, ctypes.POINTER(_ptr))),
    ("unpack", ctypes.CFUNCTYPE(None, _ptr, _i64, _i64, ctypes.POINTER(Panel))),
    ("gather", ctypes.CFUNCTYPE(None, ctypes.POINTER(Act), _i64, _i64, _int, _ptr, ctypes.POINTER(Act))),
    ("gemm", ctypes.CFUNCTYPE(None, ctypes.POINTER(Panel), _i64, _i64, ctypes.POINTER(Act), _int, _ptr, _ptr)),
    ("few", _int),
    ("slab", _int),
]

class Kernels(ctypes.Structure):
    """The head of ni_kernels; the vector kernels that follow have their own test."""

    _fields_ = [("name", ctypes.c_char_p)] + [(slot, kind * len(TYPES)) for slot, kind in _SLOTS]




def load_library(sources, *flags):
    """Compiles C files for this machine; returns them as a ctypes library."""
    objects = compile_all("gcc", sources, *MACHINE, *flags)
    with tempfile.TemporaryDirectory() as folder:  # the loader keeps what it mapped
        path = pathlib.Path(folder) / "library.so"
        subprocess.run(["gcc", "-shared", "-o", str(path), *objects, "-lm"], check=True)
        return ctypes.CDLL(str(path))


@functools.cache
def library():
    """The formats and kernels as a ctypes library."""
    with tempfile.TemporaryDirectory() as folder:
        hook = pathlib.Path(folder) / "hook.c"
        hook.write_text(HOOK)
        lib = load_library([*SOURCES, hook], f"-I{CSRC}")
    lib.ni_isa_available.restype = ctypes.c_char_p
    lib.ni_isa_select.argtypes = [ctypes.c_char_p]
    return lib


@functools.cache
def formats():
    """Name -> Format."""
    return dict(zip(TYPES, (Format * len(TYPES)).in_dll(library(), "ni_formats")))


@functools.cache
def tables():
    """Name -> Kernels, for every table that this CPU runs."""
    names = library().ni_isa_available().decode().split(",")
    return {name: Kernels.in_dll(library(), f"ni_kernels_{name}") for name in names}


@contextlib.contextmanager
def without(isa, slots, names):
    """While the context lasts, the table of `isa` is as if its file left `slots` ("dot", "unpack", "gemm": with gather) of types empty."""
    lib = library()
    own = ctypes.c_char.in_dll(lib, f"ni_own_{isa}")
    bits = sum(1 << ("dot", "unpack", "gemm").index(slot) for slot in slots)
    lib.complete_without(ctypes.byref(tables()[isa]), ctypes.byref(own), ctypes.c_uint64(sum(1 << TYPES.index(n) for n in names)), bits)
    try:
        yield tables()[isa]
    finally:
        lib.complete_without(ctypes.byref(tables()[isa]), ctypes.byref(own), ctypes.c_uint64(0), 0)


def address(array):
    """Address of a NumPy array's first byte; None stays None."""
    return None if array is None else array.ctypes.data


def aligned(n_bytes, alignment=64):
    """uint8 array (n_bytes,) whose first byte is aligned, filled with 0xa5."""
    raw = np.full(n_bytes + alignment, 0xA5, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + n_bytes]


def pack(type_name, rows):
    """Packs raw file rows.

    Parameters
    ----------
    type_name : str
    rows : uint8 array (n, bytes per row)

    Returns
    -------
    uint8 array (groups, bytes per group)
    """
    fmt = formats()[type_name]
    n, row_bytes = rows.shape
    k = (row_bytes - fmt.head_bytes) // fmt.block_bytes * fmt.block
    groups = -(-n // ROWS)
    group_bytes = k // fmt.block * fmt.record_bytes
    out = aligned(groups * group_bytes).reshape(groups, group_bytes)
    for g in range(groups):
        part = np.ascontiguousarray(rows[g * ROWS : (g + 1) * ROWS])
        fmt.pack(address(part), row_bytes, len(part), k, address(out[g]))
    return out


def random_blocks(rng, type_name, n_rows, k, scales=None):
    """Raw file rows of random bits with sane scales.

    Parameters
    ----------
    scales : sequence of float16, optional
        Drawn from for every d, dmin and m (MXFP4: their powers of two); by default normal numbers around 0.01 of both signs.

    Returns
    -------
    uint8 array (n_rows, bytes per row)
    """
    if type_name == "F32":
        return rng.normal(size=(n_rows, k)).astype(np.float32).view(np.uint8)
    if type_name == "F16":
        return rng.normal(size=(n_rows, k)).astype(np.float16).view(np.uint8)
    if type_name == "BF16":
        return (rng.normal(size=(n_rows, k)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    fmt = formats()[type_name]
    blocks = rng.integers(0, 256, (n_rows * k // fmt.block, fmt.block_bytes), np.uint8)
    for i in range(len(scales_of(type_name, blocks))):
        d = rng.normal(0, 0.01, len(blocks)) if scales is None else rng.choice(np.asarray(scales), len(blocks))
        if type_name == "MXFP4":
            blocks[:, scale_offsets(type_name)[i]] = power_of_two(d)
        else:
            put_scale(type_name, blocks, i, d.astype(np.float16))
    rows = blocks.reshape(n_rows, -1)
    if not fmt.head_bytes:
        return rows
    d = rng.normal(0, 0.01, (n_rows, 1)) if scales is None else rng.choice(np.asarray(scales), (n_rows, 1))
    return np.concatenate([d.astype(np.float32 if fmt.head_bytes == 4 else np.float16).view(np.uint8), rows], axis=1)


def blocks_of(type_name, rows):
    """The blocks of rows (n, bytes per row), a view of them: (n * blocks per row, bytes per block), or 3-dimensional if rows have heads."""
    fmt = formats()[type_name]
    if not fmt.head_bytes:
        return rows.reshape(-1, fmt.block_bytes)
    shape = len(rows), (rows.shape[1] - fmt.head_bytes) // fmt.block_bytes, fmt.block_bytes
    return np.lib.stride_tricks.as_strided(rows[:, fmt.head_bytes :], shape, (rows.strides[0], fmt.block_bytes, 1))


def power_of_two(d):
    """MXFP4's scale: the byte of the power of two that is next below |d|, 0 for 0."""
    exponent = np.frexp(np.abs(np.asarray(d, np.float64)))[1] - 1
    return np.where(np.asarray(d) == 0, 0, np.clip(exponent + 128, 0, 255)).astype(np.uint8)


def scale_offsets(type_name):
    """Byte offsets of the scales in a file block: half floats, but MXFP4's power of two.  NVFP4's are any bytes."""
    return () if formats()[type_name].head_bytes else _SCALES.get(type_name, (0,))


_SCALES = {
    "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,),
    "NVFP4": (), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


_NIBBLES = np.arange(49, 56, 2)  # IQ1_M: bytes of a block whose upper halves make up d, the lowest first


def scales_of(type_name, blocks):
    """The half floats of file blocks (n, bytes per block): a float16 array (n,) for each."""
    if type_name == "IQ1_M":
        return [(blocks[:, _NIBBLES].astype(np.uint16) >> 4 << 4 * np.arange(4, dtype=np.uint16)).sum(-1, dtype=np.uint16).view(np.float16)]
    return [blocks[:, at : at + 2].copy().view(np.float16)[:, 0] for at in scale_offsets(type_name)]


def put_scale(type_name, blocks, i, d):
    """Sets half float i of file blocks (n, bytes per block) to d, float16 (n,)."""
    if type_name == "IQ1_M":
        nibbles = d.view(np.uint16)[:, None] >> 4 * np.arange(4, dtype=np.uint16) & 15
        blocks[:, _NIBBLES] = blocks[:, _NIBBLES] & 15 | (nibbles << 4).astype(np.uint8)
    else:
        at = scale_offsets(type_name)[i]
        blocks[:, at : at + 2] = d[:, None].view(np.uint8)
