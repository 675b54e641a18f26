"""Saved sessions: token ids and their keys and values in a file, for a later process.

A file, all numbers little-endian::

    "numainfer prefix"  16 bytes
    header              uint32 length, uint32 CRC-32, JSON: `_about`, beside it "n", "n_ids" and "first"
    ids                 uint32 CRC-32, int32 (n_ids,)
    for every kind of blocks, for every chunk from its "first" on:
                        uint32 CRC-32, the chunks of its layers, of each layer head by head
    where there are recurrent layers and positions:
                        uint32 CRC-32, their state at position n, as `engine.states` reads it

A chunk lies as in memory (csrc/isa/kv_layout.h), with zeros behind position n; how blocks are laid out, which depends on the number of
nodes, is not in it. So a file fits the same model in any placement, on any instruction set.
"""

import contextlib
import json
import os
import secrets
import stat
import zlib

import numpy as np

from .. import _core
from ..engine.layout import KV_TYPES, chunks
from ..engine.states import Kept
from ..errors import ContextOverflow, SavedSessionError

VERSION = 1
"""To be raised with every change of what stands in KV memory, or of the numbers that the model's ops compute."""
_MAGIC = b"numainfer prefix"
_MOST_HEADER = 1 << 20
_WHY = {
    "version": "it was written by another version of numainfer",
    "chunk": "it was written by another version of numainfer",
    "model": "it was saved from another model file",
    "kinds": "its layers are others (with mtp=True a model has one more)",
    "states": "its recurrent layers are others",
    "kv_type": "load the model with kv_type={found!r} to restore it",
    "rope": "positions are counted otherwise: load the model with an n_ctx on the same side of its original context",
}


def _about(engine):
    """What a file must agree in with the model that it is restored to; as JSON has it."""
    layout = engine.plan.kv
    kinds = [[kind.window, [[layer.kv_heads, layer.key_length, layer.value_length] for layer in kind.layers]] for kind in layout.kinds]
    return {
        "version": VERSION,
        "chunk": _core.CHUNK,
        "kv_type": KV_TYPES[layout.type],
        "model": engine.digest,
        "rope": [[op.weights[0].name, *map(float, op.floats)] for op in engine.plan.ops if op.name == "rope_table"],
        "kinds": kinds,
        "states": [[part.units, part.unit_bytes, part.rows] for part in layout.states.parts],
    }


def save(path, engine, cache, ids):
    """Write a sequence: its ids, and what the cache holds of them.

    The file appears under its name when it is complete; one that stood there before is replaced.

    Parameters
    ----------
    path : str or os.PathLike
    engine : Engine
    cache : Cache
        No step may work on it.
    ids : list of int

    Raises
    ------
    OSError
        The file cannot be written.
    """
    path, layout = os.fsdecode(path), engine.plan.kv
    about = _about(engine) | {"n": cache.n, "n_ids": len(ids), "first": [_held(cache, kind)[0] for kind in layout.kinds]}
    header = json.dumps(about).encode()
    new = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    file = open(new, "xb", buffering=1 << 20)
    try:
        with file:
            file.write(_MAGIC + len(header).to_bytes(4, "little"))
            _write(file, [header])
            _write(file, [np.asarray(ids, "<i4").tobytes()])
            for kind in layout.kinds:
                for chunk in range(*_held(cache, kind)):
                    _write(file, [_chunk(cache, kind, layer, head, chunk) for layer in kind.layers for head in range(layer.kv_heads)])
            if layout.states.parts and cache.n:
                _write(file, [layout.states.read(cache.states.lend(cache.n).block.address)])
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def _held(cache, kind):
    """The range of chunks of a kind that a cache has, of its n positions."""
    found = [chunk for own, chunk, *_ in cache.blocks() if own is kind and chunk < chunks(cache.n)]
    return (found[0], found[-1] + 1) if found else (0, 0)


def _write(file, pieces):
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    file.write(crc.to_bytes(4, "little"))
    file.writelines(pieces)


def _chunk(cache, kind, layer, head, chunk):
    """A chunk of a kv-head as it lies in memory; what stands behind the cache's positions is nobody's, and so becomes zeros (but where
    layers share a chunk)."""
    out = np.empty(layer.chunk_bytes, np.uint8)
    cache.read(kind, chunk, layer.offset + head * layer.stride, out)
    if not layer.lists:
        _core.kv_clear(layer.type, layer.key_length, layer.value_length, out, min(cache.n - chunk * _core.CHUNK, _core.CHUNK))
    return out


def restore(path, engine):
    """Read what `save` wrote.

    Parameters
    ----------
    path : str or os.PathLike
    engine : Engine
        Nobody may be in a step of its lane of all nodes, whose workers place the pages.

    Returns
    -------
    Cache, list of int

    Raises
    ------
    OSError
        The file cannot be read.
    SavedSessionError
        It is damaged, or of another model, KV type or version.
    ContextOverflow
        It holds more positions than the context.
    """
    path = os.fsdecode(path)
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:  # opening a FIFO must not wait
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SavedSessionError(path, "is no regular file, wanted a saved session")
        reader = _Reader(path, file)
        about = reader.header()
        n, n_ids, first = _check(reader, about, engine)
        ids = np.frombuffer(reader.record(4 * n_ids, "the token ids"), "<i4")
        if len(ids) and not 0 <= ids.min() <= ids.max() < engine.n_vocab:
            raise SavedSessionError(path, f"holds a token id that is not from 0 to {engine.n_vocab - 1}", reader.at - 4 * n_ids)
        return _fill(reader, engine, n, first), ids.tolist()


def _check(reader, about, engine):
    """n, n_ids and first of a header that fits the model."""
    wanted, kinds = _about(engine), engine.plan.kv.kinds
    for key, why in _WHY.items():
        found = about.get(key)
        if found != wanted[key]:
            raise SavedSessionError(reader.path, f"{key}: found {_short(found)}, wanted {_short(wanted[key])}: {why.format(found=found)}",
                                    reader.body)  # fmt: skip
    n, n_ids, first = (about.get(key) for key in ("n", "n_ids", "first"))
    if not (all(type(x) is int for x in (n, n_ids)) and 0 <= n <= n_ids < 2**31 and isinstance(first, list) and len(first) == len(kinds)
            and all(type(x) is int and 0 <= x <= chunks(n) for x in first)):  # fmt: skip
        raise SavedSessionError(reader.path, f"n = {n!r}, n_ids = {n_ids!r}, first = {first!r}: numbers that cannot be", reader.body)
    if n_ids > engine.n_ctx:
        raise ContextOverflow(f"{reader.path}: holds {n_ids} tokens, but the context holds n_ctx = {engine.n_ctx}")
    if any(begin > (max(n - kind.window + 1, 0) // _core.CHUNK if kind.window else 0) for kind, begin in zip(kinds, first)):
        raise SavedSessionError(reader.path, f"first = {first}: chunks are missing that the next token sees", reader.body)
    size = reader.at + 4 + 4 * n_ids
    size += sum((chunks(n) - begin) * (4 + _record_bytes(kind)) for kind, begin in zip(kinds, first))
    size += 4 + engine.plan.kv.states.read_bytes if engine.plan.kv.states.parts and n else 0
    if reader.size != size:
        says = "the file was cut: it has" if reader.size < size else "something follows: the file has"
        raise SavedSessionError(reader.path, f"{says} {reader.size} bytes, wanted {size}", min(reader.size, size))
    return n, n_ids, first


def _record_bytes(kind):
    return sum(layer.kv_heads * layer.chunk_bytes for layer in kind.layers)


def _short(value):
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _fill(reader, engine, n, first):
    """A Cache of the n positions that the rest of the file holds."""
    layout, blocks, cache, state = engine.plan.kv, [], engine.new_kv(), None
    try:
        for kind, begin in zip(layout.kinds, first):
            records, staged = layout.records(kind), np.zeros(kind.block_bytes, np.uint8)
            for chunk in range(begin, chunks(n)):
                what = f"positions {chunk * _core.CHUNK} to {min((chunk + 1) * _core.CHUNK, n) - 1}"
                data = np.frombuffer(reader.record(_record_bytes(kind), what), np.uint8)
                at = 0
                for layer in kind.layers:
                    for head in range(layer.kv_heads):
                        to = layer.offset + head * layer.stride
                        staged[to : to + layer.chunk_bytes] = data[at : at + layer.chunk_bytes]
                        at += layer.chunk_bytes
                block = _core.Block(engine.caches.pools[kind.index])
                engine.lane.team.copy_kv(records, chunk, staged.ctypes.data, block.address)
                blocks.append((kind.index, chunk, block))
        if layout.states.parts and n:
            state = Kept(_core.Block(engine.caches.state_pool))
            data = reader.record(layout.states.read_bytes, f"the state at position {n}")
            layout.states.write(state.block.address, np.frombuffer(data, np.uint8))
        cache.adopt(blocks, n, engine.lane.nodes, state)
    except BaseException:
        cache.close()
        raise
    finally:
        for *_, block in blocks:
            block.close()  # the cache has its own reference
    return cache


class _Reader:
    """A file's records one after the other.

    Attributes
    ----------
    at : int
        Byte offset of the next one.
    body : int
        Of the header's JSON.
    """

    body = len(_MAGIC) + 8

    def __init__(self, path, file):
        self.path, self._file, self.at = path, file, 0
        self.size = os.fstat(file.fileno()).st_size

    def take(self, n, what):
        data = self._file.read(n)
        if len(data) < n:
            raise SavedSessionError(self.path, f"the file ends in {what}: {n} bytes were wanted, {len(data)} are there", self.at)
        self.at += n
        return data

    def header(self):
        if self.take(min(len(_MAGIC), self.size), "its first bytes") != _MAGIC:
            raise SavedSessionError(self.path, "is no saved session of numainfer", 0)
        n = int.from_bytes(self.take(4, "the header's length"), "little")
        if n > _MOST_HEADER:
            raise SavedSessionError(self.path, f"a header of {n} bytes, wanted at most {_MOST_HEADER}", self.at - 4)
        try:
            about = json.loads(self.record(n, "the header"))
        except (ValueError, RecursionError) as e:
            if isinstance(e, SavedSessionError):
                raise
            raise SavedSessionError(self.path, f"the header is no JSON: {e}", self.body) from None
        if not isinstance(about, dict):
            raise SavedSessionError(self.path, f"the header is a {type(about).__name__}, wanted an object", self.body)
        return about

    def record(self, n, what):
        """n bytes behind their checksum."""
        crc, start = int.from_bytes(self.take(4, f"the checksum of {what}"), "little"), self.at
        data = self.take(n, what)
        if zlib.crc32(data) != crc:
            raise SavedSessionError(self.path, f"{what}: the bytes do not fit their checksum, so the file is damaged", start)
        return data
