"""Writes small GGUF files, sound and broken, for tests: a few lines of struct, independent of the reader under test."""

import struct
from dataclasses import dataclass, field

TYPES = {"UINT8": (0, "B"), "INT8": (1, "b"), "UINT16": (2, "H"), "INT16": (3, "h"), "UINT32": (4, "I"),
         "INT32": (5, "i"), "FLOAT32": (6, "f"), "BOOL": (7, "B"), "STRING": (8, None), "ARRAY": (9, None),
         "UINT64": (10, "Q"), "INT64": (11, "q"), "FLOAT64": (12, "d")}  # fmt: skip


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, x):
    """``x`` as the GGUF type ``kind``; ``kind`` = ("ARRAY", item type) for arrays."""
    if isinstance(kind, tuple):
        item = kind[1]
        return struct.pack("<IQ", TYPES[item][0], len(x)) + b"".join(value(item, v) for v in x)
    return string(x) if kind == "STRING" else struct.pack("<" + TYPES[kind][1], x)


def pair(key, kind, x):
    """One metadata pair, as bytes."""
    number = TYPES[kind[0] if isinstance(kind, tuple) else kind][0]
    return string(key) + struct.pack("<I", number) + value(kind, x)


def info(name, dims, number, offset):
    """One tensor info, as bytes; ``dims`` in ggml's order, ``number`` of the tensor type."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)


@dataclass
class GGUF:
    """A file in the making: everything can be set wrong on purpose; ``bytes(g)`` is the file."""

    pairs: list = field(default_factory=lambda: [pair("general.architecture", "STRING", "llama")])
    infos: list = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int = None
    n_pairs: int = None
    alignment: int = 32
    order: str = "<"

    def pair(self, key, kind, x):
        self.pairs.append(pair(key, kind, x))
        return self

    def tensor(self, name, dims, number, data):
        """A tensor after those there are; padded as the format wants."""
        self.infos.append(info(name, dims, number, len(self.data)))
        self.data += data + bytes(-len(data) % self.alignment)
        return self

    def __bytes__(self):
        n_tensors = len(self.infos) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        head = self.magic + struct.pack(self.order + "IQQ", self.version, n_tensors, n_pairs)
        head += b"".join(self.pairs + self.infos)
        return head + bytes(-len(head) % self.alignment) + self.data

    def write(self, path):
        path.write_bytes(bytes(self))
        return path


def small():
    """A sound file with a pair of every kind and tensors of three types; 2 KB."""
    g = GGUF()
    for kind, x in (("UINT8", 255), ("INT8", -128), ("UINT16", 65535), ("INT16", -32768), ("UINT32", 2**32 - 1),
                    ("INT32", -(2**31)), ("FLOAT32", 0.5), ("BOOL", 1), ("STRING", "häß ▁"), ("UINT64", 2**64 - 1),
                    ("INT64", -(2**63)), ("FLOAT64", 1e300)):  # fmt: skip
        g.pair(f"one.{kind.lower()}", kind, x)
        many = [0, x, x] if kind != "STRING" else ["", x, b"\xff\xfe"]
        g.pair(f"many.{kind.lower()}", ("ARRAY", kind), many)
        g.pair(f"none.{kind.lower()}", ("ARRAY", kind), [])
    g.tensor("token_embd.weight", (32, 3), 2, bytes(range(54)))  # Q4_0
    g.tensor("output_norm.weight", (5,), 0, struct.pack("<5f", *range(5)))
    return g.tensor("cube", (2, 3, 4), 1, bytes(range(48)))  # F16


def part(no, count, total, **changes):
    """Part ``no`` (from 0) of a split model with one F32 tensor ``t{no}`` in each part."""
    g = GGUF(**changes) if no == 0 else GGUF(pairs=[], **changes)
    g.pair("split.no", "UINT16", no).pair("split.count", "UINT16", count).pair("split.tensors.count", "INT32", total)
    return g.tensor(f"t{no}", (2,), 0, struct.pack("<2f", no, -no))
