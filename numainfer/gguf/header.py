"""Parses the header of one GGUF file: version, metadata, tensor infos.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.  Its numbers (value types, tensor types, block
sizes) come from the ``gguf`` package; its reader is not used, because it takes seconds on real vocabularies.

A file is hostile until proved otherwise: no count is believed before the bytes it promises are known to be there.
"""

import functools
import importlib.util
import itertools
import math
import os
import struct
import sys
from array import array
from collections import namedtuple
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from ..errors import CorruptModel, UnsupportedModel

MAX_HEADER = 128 << 20  # bytes before the tensor data; the largest real ones have about 20 MB
MAX_ENTRIES = 1 << 18  # metadata keys, and tensors, of one file; the largest real ones have about 60,000
_FIRST = 1 << 20  # bytes that are read at first
MAX_NAME = 65535  # bytes of a key or a tensor name
VERSIONS = (2, 3)

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_NUMPY = {"UINT8": "u1", "INT8": "i1", "UINT16": "<u2", "INT16": "<i2", "UINT32": "<u4", "INT32": "<i4",
          "UINT64": "<u8", "INT64": "<i8", "FLOAT32": "<f4", "FLOAT64": "<f8", "BOOL": "u1"}  # fmt: skip
REQUIRED = object()

# Where a tensor lies: shape in NumPy's order, type name, absolute offset and length in bytes.
TensorInfo = namedtuple("TensorInfo", "name shape type offset n_bytes")


# Types that ggml has and releases of the gguf package may lack: number -> name, values and bytes of a block.
_LATER_TENSORS = {39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18)}
# Types of ik_llama.cpp: number -> the same; and those that are refused, with what to take instead.
_IK_TENSORS = {133: ("Q6_0", 32, 26), 137: ("IQ2_K", 256, 76), 138: ("IQ3_K", 256, 110), 139: ("IQ4_K", 256, 144),
               140: ("IQ5_K", 256, 176), 141: ("IQ6_K", 256, 212), 144: ("IQ4_KS", 256, 136), 145: ("IQ2_KS", 256, 70),
               146: ("IQ4_KSS", 256, 128), 152: ("IQ5_KS", 256, 168), 153: ("IQ2_KT", 256, 68), 154: ("IQ3_KT", 256, 100),
               155: ("IQ4_KT", 256, 128), 156: ("IQ3_KS", 256, 102), 157: ("IQ2_KL", 256, 86), 158: ("IQ1_KT", 256, 56)}  # fmt: skip
_IK_HEADS = {"IQ4_KS": 4, "IQ5_KS": 4, "IQ3_KS": 2, "IQ2_KS": 2, "IQ2_KL": 2, "IQ4_KSS": 4,
             "IQ1_KT": 4, "IQ2_KT": 4, "IQ3_KT": 4, "IQ4_KT": 4}  # fmt: skip  # bytes that a row begins with
_IK_REFUSED = {36: ("I2_S", "TQ2_0"), 134: ("IQ1_BN", "TQ1_0"), 135: ("IQ2_BN", "TQ2_0"),
               **{n: (name, "Q8_0") for n, name in ((97, "Q8_0_X4"), (98, "Q8_1_X4"), (99, "Q8_2_X4"), (136, "Q8_K64"), (147, "Q8_K16"),
                                                    (148, "Q8_K32"), (149, "Q8_KR8"), (150, "Q8_K128"), (151, "Q8_KV"))}}  # fmt: skip
# Types whose rows are interleaved, 4, 8 or 16 of them, have the number of the plain one plus 200, but for some.
_IK_INTERLEAVED = 200
_IK_INTERLEAVED_OTHERS = {31: ("Q4_0", "Q4_0"), 32: ("Q4_0", "Q4_0"), 33: ("Q4_0", "Q4_0"), 233: ("Q6_0", "Q6_0"),
                          397: ("Q8_K", "Q8_0"), 398: ("Q8_KV", "Q8_0"), 399: ("Q8_K", "Q8_0")}  # fmt: skip


@functools.cache
def tables():
    """Value types and tensor types of the ``gguf`` package.

    Its ``__init__`` costs 70 ms (yaml, writers, quants), so ``constants.py``, which needs only the standard
    library, is loaded alone.
    """
    constants = sys.modules.get("gguf.constants")
    if constants is None:
        package = importlib.util.find_spec("gguf")
        if package.submodule_search_locations is None:  # a file gguf.py, beside the user's script, is found first
            from importlib.metadata import distribution

            where = str(distribution("gguf").locate_file("gguf/constants.py"))
        else:
            where = os.path.join(package.submodule_search_locations[0], "constants.py")
        spec = importlib.util.spec_from_file_location("numainfer._gguf_constants", where)
        constants = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(constants)
    return SimpleNamespace(
        values={int(v): v.name for v in constants.GGUFValueType},
        tensors=_LATER_TENSORS | _IK_TENSORS | {int(t): (t.name, *constants.GGML_QUANT_SIZES[t]) for t in constants.GGMLQuantizationType},
        alignment=constants.GGUF_DEFAULT_ALIGNMENT,
    )


class Strings(Sequence):
    """A string array of the metadata, decoded when asked for.  ``list(x)`` decodes all (262,144 pieces: 0.1 s).

    Bytes that are not UTF-8 become lone surrogates: ``s.encode("utf-8", "surrogateescape")`` gives them back.
    """

    __slots__ = ("_blob", "_starts")

    def __init__(self, blob, starts):
        self._blob = blob  # length-prefixed strings, one after another
        self._starts = starts  # where each length stands, then the end: len(self) + 1 numbers

    def __len__(self):
        return len(self._starts) - 1

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self._blob[self._starts[i] + 8 : self._starts[i + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self):
        blob = self._blob
        for a, b in itertools.pairwise(self._starts):
            yield blob[a + 8 : b].decode("utf-8", "surrogateescape")

    def __eq__(self, other):
        if isinstance(other, Strings):
            return self._blob == other._blob
        return list(self) == list(other) if isinstance(other, (list, tuple)) else NotImplemented

    __hash__ = None

    def __repr__(self):
        more = ", ..." if len(self) > 4 else ""
        return f"<{len(self)} strings: {', '.join(map(repr, self[:4]))}{more}>"


def _looks_like(head, size):
    """What a file that is no GGUF file seems to be: the end of an error message."""
    text = head.lstrip().lower()
    for start, what in ((b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
                        (b"<!doctype html", "an HTML page, perhaps a login or error page saved by a download"),
                        (b"<html", "an HTML page, perhaps a login or error page saved by a download"),
                        (b"<", "XML"), (b"{", "JSON")):  # fmt: skip
        if text.startswith(start):
            return f" and looks like {what}"
    for start, what in ((b"PK\3\4", "a zip archive (PyTorch checkpoints are such)"), (b"\x1f\x8b", "gzip"),
                        (b"(\xb5/\xfd", "zstd"), (b"FUGG", "a GGUF file with its bytes swapped"),
                        (b"lmgg", "GGML, the predecessor of GGUF"), (b"fmgg", "GGML, the predecessor of GGUF"),
                        (b"tjgg", "GGML, the predecessor of GGUF")):  # fmt: skip
        if head.startswith(start):
            return f" and looks like {what}"
    if head[8:9] == b"{" and _U64.unpack_from(head)[0] < size:
        return " and looks like safetensors: convert it to GGUF first"
    return " and looks like zeros, perhaps a download that did not finish" if not head.strip(b"\0") else ", wanted b'GGUF'"


class Header:
    """The parsed header of one file.

    Parameters
    ----------
    path : str
        For messages.
    size : int
        Bytes of the file.
    read : callable
        ``read(offset, n_bytes, what)`` gives these bytes of it, or raises CorruptModel, which names what could not be read.

    Attributes
    ----------
    metadata : dict[str, int | float | bool | str | numpy.ndarray | Strings]
    tensors : list of TensorInfo
    version, alignment : int
    """

    def __init__(self, path, size, read):
        self.path, self.size, self.buf, self._read = path, size, b"", read
        self.pos, self.limit = 0, min(self.size, MAX_HEADER)
        self.metadata, self.where, self.types = {}, {}, {}
        known = tables()
        self.fetch(min(self.size, 64))
        head = self.buf[:64]
        if len(head) < 4:
            self.fail(f"not a GGUF file: it has {len(head)} bytes, wanted a header of 24 or more", 0)
        if head[:4] != b"GGUF":
            self.fail(f"not a GGUF file: it starts with {head[:4]!r}{_looks_like(head, self.size)}", 0)
        self.pos = 4
        self.version = self.u32("the version")
        if self.version not in VERSIONS:
            swapped = int.from_bytes(self.version.to_bytes(4, "little"), "big")
            if swapped in (1, *VERSIONS):
                self.unsupported("byte order", "big-endian", "little-endian")
            if self.version == 0 or self.version > 1000:
                self.fail(f"version {self.version}, wanted 2 or 3", 4)
            self.unsupported("GGUF version", self.version, *VERSIONS)
        n_tensors = self.count("tensors", 24, MAX_ENTRIES)  # empty name, no dims, type, offset
        n_keys = self.count("metadata keys", 13, MAX_ENTRIES)  # empty name, type, one byte
        for _ in range(n_keys):
            self.read_pair(known.values)
        self.alignment = self.get("general.alignment", int, default=known.alignment)
        if self.types.get("general.alignment", "UINT32") != "UINT32" or self.alignment.bit_count() != 1:
            self.fail(f"general.alignment is {self.alignment} ({self.types['general.alignment']}), "
                      "wanted a power of two (UINT32)", self.where["general.alignment"])  # fmt: skip
        infos = {}
        for _ in range(n_tensors):
            self.read_info(infos, known.tensors)
        self.tensors = self.place(infos)
        del self.buf, self._read

    def fetch(self, end):
        """Have the file's first `end` bytes in ``buf``, and some more: twice as many as before, so that all is copied once or twice."""
        have = len(self.buf)
        if end > have:
            self.buf += self._read(have, max(end, min(self.limit, max(2 * have, _FIRST))) - have, "the header")

    def fail(self, message, offset):
        raise CorruptModel(self.path, message, offset)

    def unsupported(self, key, value, *supported):
        raise UnsupportedModel(key, value, supported, f"The file is {self.path}")

    def room(self, n, what):
        """n more bytes are there, and within the limit."""
        if n > self.size - self.pos:
            self.fail(f"{what} needs {n} bytes, {self.size - self.pos} are left: is the file cut off?", self.pos)
        if n > self.limit - self.pos:
            self.unsupported("length of the header", self.pos + n, f"up to {MAX_HEADER} bytes")

    def need(self, n, what):
        """Position of the next n bytes, which are now consumed."""
        self.room(n, what)
        self.fetch(self.pos + n)
        self.pos += n
        return self.pos - n

    def u32(self, what):
        at = self.need(4, what)  # first: it may put another buffer in the place of this one
        return _U32.unpack_from(self.buf, at)[0]

    def u64(self, what):
        at = self.need(8, what)
        return _U64.unpack_from(self.buf, at)[0]

    def count(self, what, least, most):
        """A number of things, each of which takes at least ``least`` bytes of the rest of the header."""
        n = self.u64(f"the number of {what}")
        self.room(n * least, f"{n} {what}")
        if n > most:
            self.unsupported(f"number of {what}", n, f"up to {most}")
        return n

    def string(self, what):
        n = self.u64(f"the length of {what}")
        at = self.need(n, what)
        return self.buf[at : at + n]

    def name(self, what, seen):
        """A key or tensor name: UTF-8, not empty, not seen before."""
        at, n = self.pos, self.u64(f"the length of {what}")
        if not 0 < n <= MAX_NAME:
            self.fail(f"{what} of {n} bytes, wanted 1 to {MAX_NAME}", at)
        start = self.need(n, what)
        try:
            name = self.buf[start : self.pos].decode()
        except UnicodeDecodeError as e:
            self.fail(f"{what} is not UTF-8: {e.reason}", start + e.start)
        if name in seen:
            self.fail(f"{what} {name!r:.99} occurs twice", at)
        return name

    def read_pair(self, value_types):
        key = self.name("the key of a metadata pair", self.metadata)
        at, what = self.pos, f"{key!r:.99}"
        kind = self.value_type(what, value_types)
        self.where[key], self.types[key] = at, kind
        if kind == "STRING":
            value = self.string(f"the value of {what}").decode("utf-8", "surrogateescape")
        elif kind == "ARRAY":
            kind = self.value_type(what, value_types)
            if kind == "ARRAY":
                self.unsupported(key[:99], "an array of arrays", "arrays of numbers", "arrays of strings")
            value = self.strings(what) if kind == "STRING" else self.numbers(what, kind, None)
        else:
            value = self.numbers(what, kind, 1)[0].item()
        self.metadata[key] = value

    def value_type(self, what, value_types):
        at, number = self.pos, self.u32(f"the value type of {what}")
        if number not in value_types:
            self.fail(f"{what} has the unknown value type {number}, wanted 0 to {max(value_types)}", at)
        return value_types[number]

    def numbers(self, what, kind, n):
        """An array (n,) of its own memory; n is in the file if None."""
        dtype = np.dtype(_NUMPY[kind])
        if n is None:
            n = self.count(f"elements of {what}", dtype.itemsize, MAX_HEADER)
        at = self.need(n * dtype.itemsize, f"the value of {what}")
        values = np.frombuffer(self.buf[at : self.pos], dtype)  # of a bytes copy: read-only, survives close()
        if kind == "BOOL":
            wrong = np.flatnonzero(values > 1)
            if wrong.size:
                self.fail(f"{what} holds the bool {values[wrong[0]]}, wanted 0 or 1", at + int(wrong[0]))
            values = values.view(np.bool_)
        return values

    def strings(self, what):
        n = self.count(f"strings of {what}", 8, MAX_HEADER)
        base = pos = self.pos
        starts, unpack = array("q"), _U64.unpack_from
        while len(starts) < n and pos <= self.limit - 8:
            self.fetch(pos + 8)
            buf, append = self.buf, starts.append
            try:
                for _ in range(n - len(starts)):  # each length tells where the next one stands, so this is a walk: 0.2 us a string
                    length = unpack(buf, pos)[0]
                    append(pos - base)
                    pos += 8 + length
            except (struct.error, OverflowError, IndexError):
                pass  # walked out of what has been read
        if len(starts) < n or pos > self.limit:
            # The last string whose length is there, or the length after it, is what does not fit: this raises.
            self.pos = base + starts[-1]
            self.string(f"string {len(starts) - 1} of {what}")
            self.u64(f"the length of string {len(starts)} of {what}")
        starts.append(pos - base)
        self.pos = pos
        self.fetch(pos)
        return Strings(self.buf[base:pos], starts)

    def read_info(self, infos, tensor_types):
        """One tensor's name, dims, type and offset, into infos."""
        name = self.name("the name of a tensor", infos)
        what = f"tensor {name!r:.99}"
        at, n_dims = self.pos, self.u32(f"the number of dimensions of {what}")
        if n_dims > 4:
            self.fail(f"{what} has {n_dims} dimensions, wanted at most 4", at)
        at = self.need(8 * n_dims, f"the dimensions of {what}")
        dims = struct.unpack_from(f"<{n_dims}Q", self.buf, at)
        if any(not 0 < d < 1 << 63 for d in dims) or math.prod(dims) >= 1 << 63:
            self.fail(f"{what} has the dimensions {dims}, wanted 1 or more each, below 2**63 in all", at)
        type_at, number = self.pos, self.u32(f"the type of {what}")
        if number not in tensor_types:
            self.of_ik(what, number, tensor_types)
            self.unsupported(f"type of {what}", number, *(t[0] for t in tensor_types.values()))
        kind, block, block_bytes = tensor_types[number]
        if (dims[0] if dims else 1) % block:
            self.fail(f"{what} has rows of {dims[0] if dims else 1} values, "
                      f"wanted a multiple of {block} for {kind}", at if dims else type_at)  # fmt: skip
        at, offset = self.pos, self.u64(f"the offset of {what}")
        if offset % self.alignment:
            self.fail(f"{what} has the offset {offset}, wanted a multiple of {self.alignment}", at)
        n_bytes = math.prod(dims) // block * block_bytes + math.prod(dims[1:]) * _IK_HEADS.get(kind, 0)
        infos[name] = dims[::-1], kind, offset, n_bytes, at

    def of_ik(self, what, number, tensor_types):
        """Refuses a type of ik_llama.cpp by its name, with what to take instead."""
        if number in _IK_REFUSED:
            name, instead = _IK_REFUSED[number]
            raise UnsupportedModel(f"type of {what}", f"{name} of ik_llama.cpp", (), f"Take a file of {instead} instead of {self.path}")
        plain = {n + _IK_INTERLEAVED: (t[0], t[0]) for n, t in tensor_types.items()}
        plain |= {n + _IK_INTERLEAVED: t for n, t in _IK_REFUSED.items()} | _IK_INTERLEAVED_OTHERS
        if number in plain:
            name, instead = plain[number]
            raise UnsupportedModel(f"type of {what}", f"{name} of ik_llama.cpp, with rows interleaved (number {number})", (),
                                   f"Take a file of {instead} that was not repacked instead of {self.path}")  # fmt: skip

    def place(self, infos):
        """TensorInfos, their offsets absolute, their data within the file and apart from each other."""
        base = -(-self.pos // self.alignment) * self.alignment
        tensors = []
        for name, (shape, kind, offset, n_bytes, at) in infos.items():
            if base + offset + n_bytes > self.size:
                self.fail(f"tensor {name!r:.99} should lie in bytes {base + offset} to {base + offset + n_bytes}, "
                          f"the file ends at {self.size}: is it cut off?", at)  # fmt: skip
            tensors.append(TensorInfo(name, shape, kind, base + offset, n_bytes))
        for a, b in itertools.pairwise(sorted(tensors, key=lambda t: t.offset)):
            if a.offset + a.n_bytes > b.offset:
                self.fail(f"tensor {b.name!r:.99} starts at byte {b.offset}, inside tensor {a.name!r:.99}, which ends at "
                          f"{a.offset + a.n_bytes}", infos[b.name][-1])  # fmt: skip
        return tensors

    def get(self, key, type=None, default=REQUIRED):
        """See GGUFFile.get."""
        wanted = type if isinstance(type, tuple) else (type,)
        names = " or ".join(_type_name(t) for t in wanted)
        if key not in self.metadata:
            if default is REQUIRED:
                raise CorruptModel(self.path, f"the metadata has no key {key}, wanted {names}")
            return default
        value = self.metadata[key]
        for t in wanted:
            if t is None or _is(value, t):
                return float(value) if t is float else value
        found = f"{value.dtype} array" if isinstance(value, np.ndarray) else _type_name(value.__class__)
        self.fail(f"metadata {key} = {value!r:.100} is {found}, wanted {names}", self.where[key])

    def expect(self, key, wanted):
        found = self.get(key, int)
        if found != wanted:
            self.fail(f"{key} is {found}, wanted {wanted}", self.where[key])


_KINDS = {int: "iu", float: "iuf", bool: "b"}  # NumPy's letters of the arrays that list[...] accepts


def _is(value, t):
    if t is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(t, type):
        return isinstance(value, t) and (t is bool or not isinstance(value, bool))
    (item,) = t.__args__
    return isinstance(value, Strings) if item is str else getattr(value, "dtype", np.dtype("V")).kind in _KINDS[item]


def _type_name(t):
    return "any value" if t is None else t.__name__ if isinstance(t, type) and not hasattr(t, "__args__") else str(t)
