"""KV caches: what each attention layer keeps of a sequence, in which blocks, and whose they are.

A block holds one chunk of positions (256) of all layers of one kind: layers that see everything before a token make a kind, and
layers with the same window another.  Within a block a kv-head's layers lie side by side, so that what one node owns is one piece.
A sequence finds its blocks by tables (csrc/blocks.c), and several sequences may have a block in common: who writes behind all that
the others have of it goes on in it, and anybody else gets a copy first.
"""

import contextlib
import math
import os
import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .. import _core
from ..errors import ModelClosed
from .states import States, StateLayout

KV_TYPES = _core.kv_types()
UNIT = _core.CHUNK  # sizes and places within a block are multiples of it: NI_KV_UNIT of csrc/ops/attention.h
_PAGE = os.sysconf("SC_PAGESIZE")
_HUGE = 2 << 20
_MOST_PADDING = 1 / 8  # of a head's part of a block, for the sake of huge pages
_RESIDENT = 0b11 << 62  # of an entry of /proc/self/pagemap: in memory, or swapped out


def chunks(n):
    """Chunks that n positions touch."""
    return -(-n // _core.CHUNK)


def _round_up(n, step):
    return -(-n // step) * step


@dataclass(eq=False)
class LayerCache:
    """What one attention layer keeps: keys and values of every position that a later token may see.

    Attributes
    ----------
    kind : BlockKind
    kv_heads, key_length, value_length : int
        Widths of what is stored: keys none of their own, and values the keys' whole width, where rows are latent.
    chunk_bytes : int
        Of a chunk of one kv-head.
    chosen : int
        Of the positions that a token sees, it reads so many, which an indexer chose; 0: all.
    readers : int
        Layers that attend to it.
    indexes : bool
        These are the indexer's keys, which a token reads that sees more than ``chosen`` positions.
    offset, stride : int
        Chunk j of kv-head g lies ``offset + g * stride`` bytes behind the beginning of block j.
    """

    kind: "BlockKind"
    kv_heads: int
    key_length: int
    value_length: int
    chunk_bytes: int
    chosen: int = 0
    indexes: bool = False
    readers: int = 1
    offset: int = 0
    stride: int = 0

    @property
    def window(self) -> int:
        return self.kind.window

    @property
    def position_bytes(self) -> int:
        """Bytes of a position, all kv-heads together."""
        return self.kv_heads * self.chunk_bytes // _core.CHUNK

    def seen(self, n):
        """Positions that the n-th token reads, itself included; n may be an array."""
        if self.indexes:
            return np.where(np.asarray(n) > self.chosen, n, 0)
        most = self.window or self.chosen
        return np.minimum(n, most) if most else n


@dataclass(eq=False)
class BlockKind:
    """Layers whose blocks come and go together: a block for every chunk of positions.

    Attributes
    ----------
    index : int
        Its place in ``Layout.kinds``, and of its table in a sequence.
    window : int
        Positions that a token sees, itself included; 0 for all before it.
    layers : list of LayerCache
    block_bytes : int
    huge : bool
        Whether blocks lie on huge pages: where none would be two nodes'.  With 8,000 positions behind it attention is 1.1 to 1.2 times as
        fast then; a sequence's first token takes the whole block's memory.
    """

    index: int
    window: int
    layers: list = field(default_factory=list, repr=False)
    block_bytes: int = 0
    huge: bool = False

    @property
    def name(self) -> str:
        return "ring" if self.window else "chunks"

    def n_blocks(self, n, n_batch):
        """Most blocks that a sequence has on its way to n positions, in steps of at most n_batch."""
        if not self.window:
            return chunks(n)
        return min(chunks(n), chunks(self.window + n_batch - 2) + 1)

    def place(self, n_nodes):
        """Lay the layers out: first those of the most kv-heads, and of these a head after the other; no page is two nodes'."""
        by_heads = {heads: [layer for layer in self.layers if layer.kv_heads == heads]
                    for heads in sorted({layer.kv_heads for layer in self.layers}, reverse=True)}  # fmt: skip
        sizes = {heads: sum(layer.chunk_bytes for layer in alike) for heads, alike in by_heads.items()}
        steps = {heads: _HUGE // math.gcd(_HUGE, heads // n_nodes if heads % n_nodes == 0 else 1) for heads in sizes}
        self.huge = all(_round_up(size, steps[heads]) <= (1 + _MOST_PADDING) * size for heads, size in sizes.items())
        self.block_bytes = 0
        for heads, alike in by_heads.items():
            stride, offset = _round_up(sizes[heads], steps[heads] if self.huge else _PAGE), self.block_bytes
            for layer in alike:
                layer.offset, layer.stride = offset, stride
                offset += layer.chunk_bytes
            self.block_bytes += heads * stride


class Layout:
    """The caches of a model's layers, and what a sequence takes in all.

    Parameters
    ----------
    kv_type : str
        One of `KV_TYPES`.
    n_batch : int
        Most tokens of a step.
    n_nodes : int
        Of the model.  A lane of less nodes has the same layout, so that a sequence can go from one to another.
    turn : int
        Chunks in a row that one node holds of a kv-head where heads do not divide evenly.

    Attributes
    ----------
    layers : list of LayerCache
        In the model's order; an indexer's keys are one of their own.
    kinds : list of BlockKind
    states : StateLayout
        Of the recurrent layers.
    """

    def __init__(self, kv_type, n_batch, n_nodes, turn=1):
        self.type, self.n_batch, self.n_nodes, self.turn = KV_TYPES.index(kv_type), n_batch, n_nodes, turn
        self.layers, self.kinds, self.states = [], [], StateLayout(n_nodes, n_batch)

    @property
    def rewinds(self):
        """Whether a sequence can go back by as many positions as a step has: a state cannot."""
        return not self.states.parts

    def add(self, kv_heads, key_length, value_length, window, chosen=0, indexes=False):
        """The LayerCache of the model's next attention layer, or indexer; its place is settled by `place`."""
        kind = next((k for k in self.kinds if k.window == window), None)
        if kind is None:
            kind = BlockKind(len(self.kinds), window)
            self.kinds.append(kind)
        layer = LayerCache(kind, kv_heads, key_length, value_length, _core.kv_chunk_bytes(self.type, key_length, value_length),
                           chosen, indexes)  # fmt: skip
        kind.layers.append(layer)
        self.layers.append(layer)
        return layer

    def place(self):
        """Settle where everything lies, once all layers are there."""
        for kind in self.kinds:
            kind.place(self.n_nodes)
        self.states.place()

    def records(self, kind):
        """A kind's layers as `Team.copy_kv` takes them."""
        return np.array([(layer.offset, layer.stride, layer.kv_heads, layer.key_length, layer.value_length, self.type, self.turn)
                         for layer in kind.layers], _core.KV_LAYER_DTYPE)  # fmt: skip

    def bytes(self, n):
        """Most bytes that a sequence takes on its way to n positions."""
        return sum(kind.n_blocks(n, self.n_batch) * kind.block_bytes for kind in self.kinds) + self.states.bytes(n)

    @property
    def bytes_per_token(self):
        """Bytes that a position takes as long as the sequence lives; windows are not in it."""
        return sum(kind.block_bytes for kind in self.kinds if not kind.window) // _core.CHUNK

    def window_bytes(self, n):
        """Of `bytes`, those of layers with windows."""
        return sum(kind.n_blocks(n, self.n_batch) * kind.block_bytes for kind in self.kinds if kind.window)

    def read_bytes(self, n):
        """Bytes of keys, values and state that the n-th token reads; n may be an array."""
        read = sum(layer.readers * layer.position_bytes * layer.seen(n) for layer in self.layers)
        return read + self.states.read_bytes + 0 * n


class Slab(NamedTuple):
    """Address space of many blocks; ``machine.pages`` looks at it as at an Arena."""

    address: int
    bytes: int


class Caches:
    """The memory of an engine's caches: a pool of blocks for each kind.

    Parameters
    ----------
    layout : Layout

    Attributes
    ----------
    kept : serving.prefix.Prefixes or None
        Who keeps blocks when their sequences have ended.
    """

    def __init__(self, layout):
        self.layout = layout
        self.pools = [_core.Pool(kind.block_bytes, kind.huge) for kind in layout.kinds]
        states = layout.states
        self.state_pool = _core.Pool(states.block_bytes, states.huge) if states.parts else None
        self.alive, self.kept = weakref.WeakSet(), None

    def new(self):
        """A Cache for one sequence."""
        return Cache(self)

    def slabs(self):
        """All address space that is reserved: list of Slab."""
        return [Slab(*slab) for pool in self._all() for slab in pool.slabs()]

    def _all(self):
        return [*self.pools, *filter(None, [self.state_pool])]

    def bytes_by_owner(self):
        """Resident bytes by index of the node whose workers append to them; None where the kernel does not tell.

        What several sequences share counts once, what is kept of those that have ended counts too.
        """
        found, seen = dict.fromkeys(range(self.layout.n_nodes), 0), set()
        parts = [cache.bytes_by_owner(seen) for cache in list(self.alive)]
        parts += [_resident(self.layout, blocks, nodes, seen) for nodes, blocks in (self.kept.blocks() if self.kept else ())]
        for own in parts:
            if own is None:
                return None
            for node, n in own.items():
                found[node] += n
        return found

    def close(self):
        """Give the memory back: now, or with the last cache."""
        if self.kept is not None:
            self.kept.close()
        for pool in self._all():
            pool.close()


class Cache:
    """The KV cache of one sequence: blocks of memory, of which pages are taken as they fill.

    Its layout is every lane's; the lane that appends to it places its pages.  Closed while a step works on it (by another
    thread, a signal handler), it goes with the end of that step.

    Attributes
    ----------
    n : int
        Positions that are in it.
    nodes : list of int
        Indices of the nodes of the lane that appended last.
    states : States
        Of recurrent layers.
    """

    def __init__(self, caches):
        self._caches, self.n = caches, 0
        self.nodes = list(range(caches.layout.n_nodes))
        layout = caches.layout
        self._tables = _core.Tables(caches.pools, [kind.window for kind in layout.kinds], layout.n_batch)
        self.states = States(caches.state_pool, layout.states)
        caches.alive.add(self)

    @property
    def address(self):
        """Of its tables, as a step's segment names them."""
        return self._tables.address

    @property
    def closed(self):
        return self._tables.closed

    @property
    def n_blocks(self):
        """Blocks that it has, shared ones too."""
        return sum(len(self._tables.blocks(kind.index)) for kind in self._caches.layout.kinds)

    def blocks(self):
        """(kind, chunk, address, references) of each block."""
        return [(kind, *block) for kind in self._caches.layout.kinds for block in self._tables.blocks(kind.index)]

    def read(self, kind, chunk, offset, into):
        """Copy bytes of a block, from an offset on, into a uint8 array."""
        self._tables.read(kind.index, chunk, offset, into)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def hold(self):
        """Keep the memory until the end of what is returned (``release``).

        Raises
        ------
        ModelClosed
            It is given up already.
        """
        found = self._tables.hold()
        if found is None:
            raise ModelClosed("the session was closed")
        return found

    def prepare(self, lane, pos0, end):
        """Make room for positions pos0 to end - 1, which a step of the lane will write; what stood there and behind is given up.

        It may be done again, after a step that was cancelled.

        Returns
        -------
        Coming or None
            What the step reads and leaves of recurrent state; for `done`.

        Raises
        ------
        ValueError
            Positions before pos0 are missing.
        OutOfNodeMemory
            What stood before pos0 is as it was.
        """
        if self.rewindable(pos0) != pos0:
            raise ValueError(f"a segment at position {pos0} needs those before it; the cache holds {self.n} positions, of layers with a "
                             f"window their last alone, and recurrent state of few")
        if self.nodes != lane.nodes:
            self.states.moved()
        self.n, self.nodes = pos0, lane.nodes
        for i in self._tables.prepare(pos0, end) or ():
            self._own(lane.team, i, pos0 // _core.CHUNK)
        return self.states.prepare(pos0, end)

    def done(self, pos0, end, coming):
        """The step that `prepare` made room for, and whose states it named, has succeeded."""
        self.states.done(pos0, end, coming)
        self.n = end

    def _own(self, team, i, chunk):
        """Replace a block that is another sequence's too by a copy, which the workers of the nodes make to whom it belongs."""
        layout, shared = self._caches.layout, self._tables.address_of(i, chunk)
        with contextlib.closing(_core.Block(self._caches.pools[i])) as block:
            team.copy_kv(layout.records(layout.kinds[i]), chunk, shared, block.address)
            self._tables.swap(i, chunk, block)

    # ---- its length --------------------------------------------------------------------------------------------------

    def rewindable(self, n):
        """How many of the first n positions can be kept: as many as are there, but 0 if a window's part of them is gone; of recurrent
        layers as many as the nearest state has seen."""
        return next((pos for pos in self.states.reach(min(n, self.n)) if self._tables.reaches(pos)), 0)

    def rewind(self, n):
        """Forget all but the first n positions; the number that is left, as `rewindable` says.

        Raises
        ------
        RuntimeError
            A step works on it.
        """
        if self._tables.held:
            raise RuntimeError("the session is busy: a step works on its KV cache just now")
        n = self.n = self.rewindable(n)
        self._tables.cut(n)
        self.states.cut(n)
        return n

    def copy(self, n):
        """A Cache with the first n positions; it shares their blocks.

        Raises
        ------
        ValueError
            They are not all there.
        ModelClosed
            It is given up already.
        """
        if self.closed:
            raise ModelClosed("the session was closed")
        other = self._caches.new()
        other.share(self, n)
        return other

    def share(self, other, n):
        """Begin with the first n positions of another Cache, in place of what it has; raises as `copy`."""
        if self.closed:
            raise ModelClosed("the session was closed")
        if other.rewindable(n) != n:
            raise ValueError(f"a copy of {n} positions was asked for; the cache can be cut to {other.rewindable(n)}")
        self.rewind(0)
        self._tables.share(other._tables, n)
        self.states.share(other.states, n)
        self.n, self.nodes = n, other.nodes

    def lend(self, chunk):
        """References to a chunk's blocks: dict of Block by the kind's index; a window may have left it behind."""
        found = {kind.index: self._tables.block(kind.index, chunk) for kind in self._caches.layout.kinds}
        return {i: block for i, block in found.items() if block is not None}

    def adopt(self, blocks, n, nodes, state=None):
        """Begin with n positions that lie in blocks of others, in place of what it has.

        Parameters
        ----------
        blocks : list of (int, int, Block)
            Kind, chunk and block, in the order of the chunks: of each kind those of all positions that the token at n sees.
        n : int
        nodes : list of int
            Of the lane that appended to them.
        state : states.Kept or None
            Of recurrent layers, at position n.

        Raises
        ------
        ModelClosed
            It is given up already.
        RuntimeError
            A step works on it.
        """
        if self.closed:
            raise ModelClosed("the session was closed")
        self.rewind(0)
        try:
            for kind, chunk, block in blocks:
                self._tables.put(kind, chunk, block, min(n - chunk * _core.CHUNK, _core.CHUNK))
            if state is not None:
                self.states.adopt(n, state)
            self.n, self.nodes = n, list(nodes)
            if self.rewindable(n) != n:
                raise ValueError(f"the blocks do not hold what a token at position {n} sees")
        except BaseException:
            self.n = 0
            self._tables.cut(0)
            self.states.cut(0)
            raise

    def settle(self, lane):
        """Replace all blocks by copies that a lane's workers have placed, so that what it reads from now on is near.

        Raises
        ------
        Cancelled, OutOfNodeMemory
            Some of them are replaced, and all hold the same.
        """
        for kind, chunk, *_ in self.blocks():
            self._own(lane.team, kind.index, chunk)
        self.nodes = lane.nodes

    # ---- looking -----------------------------------------------------------------------------------------------------

    def bytes_by_owner(self, seen=()):
        """Resident bytes by index of the node whose workers append to them; None where the kernel does not tell.

        Parameters
        ----------
        seen : set, optional
            Addresses of blocks that do not count; those that did are added.
        """
        seen = set() if seen == () else seen
        found = _resident(self._caches.layout, [block[:3] for block in self.blocks()], self.nodes, seen)
        if found is None:
            return None
        states = self.states.resident(len(self.nodes), seen)
        return {node: n + int(more) for (node, n), more in zip(found.items(), states)}

    def close(self):
        """Give the memory back, now or when the step that works on it has ended."""
        self._tables.close()
        self.states.close()


def _resident(layout, blocks, nodes, seen):
    """`Cache.bytes_by_owner` of blocks (kind, chunk, address), whose pages the workers of these nodes placed."""
    found = np.zeros(len(nodes), np.int64)
    try:
        with open("/proc/self/pagemap", "rb") as pagemap:
            for kind, chunk, address in blocks:
                if address in seen:
                    continue
                seen.add(address)
                pagemap.seek(address // _PAGE * 8)
                entries = np.frombuffer(pagemap.read(kind.block_bytes // _PAGE * 8), np.uint64)
                if len(entries) < kind.block_bytes // _PAGE:
                    return None
                pages = np.flatnonzero(entries & np.uint64(_RESIDENT))
                owners = owner_of_pages(kind, chunk, layout.turn, len(nodes))
                found += np.bincount(owners[pages], minlength=len(found)) * _PAGE
    except OSError:
        return None
    return dict(zip(nodes, found.tolist()))


def owner_of_pages(kind, chunk, turn, n_nodes):
    """The node that owns each page of a block, int64 array (pages,)."""
    found = np.zeros(kind.block_bytes // _PAGE, np.int64)
    for layer in kind.layers:
        for head in range(layer.kv_heads):
            first = layer.offset + head * layer.stride
            found[first // _PAGE : -(-(first + layer.chunk_bytes) // _PAGE)] = owner(head, chunk, layer.kv_heads, turn, n_nodes)
    return found


def owner(head, chunk, n_heads, turn, n_nodes):
    """The node that appends a chunk of a kv-head: ``ni_kv_node`` of csrc/ni.h."""
    return head * n_nodes // n_heads if n_heads % n_nodes == 0 else (head + chunk // turn) % n_nodes
