"""The layout of caches: what each attention layer keeps of a position, where it lies in a block, and whose it is.

A block holds one chunk of positions (256) of all layers of one kind: layers that see everything before a token make a kind, and
layers with the same window another.  Within a block a kv-head's layers lie side by side, so that what one node owns is one piece.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from .. import _core
from .memory import HUGE, PAGE, may_be_huge, round_up
from .states import StateLayout

KV_TYPES = _core.kv_types()
UNIT = _core.CHUNK  # sizes and places within a block are multiples of it: NI_KV_UNIT of csrc/ops/attention.h


def chunks(n):
    """Chunks that n positions touch."""
    return -(-n // _core.CHUNK)


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
    type : int
        Of the values: a place in `KV_TYPES`.
    chosen : int
        Of the positions that a token sees, it reads so many, which an indexer chose; 0: all.
    readers : int
        Layers that attend to it.
    lists : list of Rows
        Of layers that share it: it holds compressed rows of each, not positions of one.
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
    type: int
    chosen: int = 0
    indexes: bool = False
    readers: int = 1
    offset: int = 0
    stride: int = 0
    lists: list = field(default_factory=list, repr=False)

    @property
    def window(self) -> int:
        return self.kind.window

    @property
    def position_bytes(self) -> int:
        """Bytes of a position, all kv-heads together."""
        return self.kv_heads * self.chunk_bytes // _core.CHUNK

    def seen(self, n):
        """Positions, or rows, that the n-th token reads, itself included; n may be an array."""
        if self.lists:
            return sum(rows.seen(n) for rows in self.lists)
        if self.indexes:
            return np.where(np.asarray(n) > self.chosen, n, 0)
        most = self.window or self.chosen
        return np.minimum(n, most) if most else n


@dataclass(frozen=True)
class Rows:
    """Compressed rows of a layer, one for every `ratio` positions: of each chunk those from `first` on.

    Attributes
    ----------
    cache : LayerCache
        That holds them, with other layers' rows beside them.
    first : int
    ratio : int
        A divisor of the positions of a chunk.
    chosen : int
        A token reads so many, which an indexer chose; 0: all.
    """

    cache: LayerCache
    first: int
    ratio: int
    chosen: int = 0

    def seen(self, n):
        """Rows that the n-th token reads, or, of an indexer's, has to choose among; n may be an array."""
        rows = np.asarray(n) // self.ratio
        if self.cache.indexes:
            return np.where(rows > self.chosen, rows, 0)
        return np.minimum(rows, self.chosen) if self.chosen else rows


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
        steps = {heads: HUGE // math.gcd(HUGE, heads // n_nodes if heads % n_nodes == 0 else 1) for heads in sizes}
        self.huge = all(may_be_huge(size, steps[heads]) for heads, size in sizes.items())
        self.block_bytes = 0
        for heads, alike in by_heads.items():
            stride, offset = round_up(sizes[heads], steps[heads] if self.huge else PAGE), self.block_bytes
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
        """Whether a sequence can go back by as many positions as a step has: a state can where the step was told (`States.expect`)."""
        return not self.states.parts

    def add(self, kv_heads, key_length, value_length, window, chosen=0, indexes=False, kv_type=None, readers=1):
        """The LayerCache of the model's next attention layer, or indexer; its place is settled by `place`.  Its values are of the model's
        type, if of none of its own."""
        kv_type = self.type if kv_type is None else KV_TYPES.index(kv_type)
        kind = next((k for k in self.kinds if k.window == window), None)
        if kind is None:
            kind = BlockKind(len(self.kinds), window)
            self.kinds.append(kind)
        layer = LayerCache(kind, kv_heads, key_length, value_length, _core.kv_chunk_bytes(kv_type, key_length, value_length),
                           kv_type, chosen, indexes, readers)  # fmt: skip
        kind.layers.append(layer)
        self.layers.append(layer)
        return layer

    def add_rows(self, width, ratio, chosen=0, indexes=False):
        """`Rows` of the next layer, of such width, or of its indexer's keys: in what is free of a chunk of the kind, else in a new one."""
        count = round_up(_core.CHUNK // ratio, 16 if indexes else 1)  # keys lie in blocks of 16
        widths = (width, 0) if indexes else (0, width)
        for layer in self.layers:
            first = sum(round_up(_core.CHUNK // rows.ratio, 16 if indexes else 1) for rows in layer.lists)
            if layer.lists and (layer.key_length, layer.value_length) == widths and first + count <= _core.CHUNK:
                break
        else:
            layer, first = self.add(1, *widths, 0, indexes=indexes), 0
        layer.lists.append(Rows(layer, first, ratio, chosen))
        return layer.lists[-1]

    def place(self):
        """Settle where everything lies, once all layers are there."""
        for kind in self.kinds:
            kind.place(self.n_nodes)
        self.states.place()

    def records(self, kind):
        """A kind's layers as `Team.copy_kv` takes them."""
        return np.array([(layer.offset, layer.stride, layer.kv_heads, layer.key_length, layer.value_length, layer.type, self.turn)
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


def owner_of_pages(kind, chunk, turn, n_nodes):
    """The node that owns each page of a block, int64 array (pages,)."""
    found = np.zeros(kind.block_bytes // PAGE, np.int64)
    for layer in kind.layers:
        for head in range(layer.kv_heads):
            first = layer.offset + head * layer.stride
            found[first // PAGE : -(-(first + layer.chunk_bytes) // PAGE)] = owner(head, chunk, layer.kv_heads, turn, n_nodes)
    return found


def owner(head, chunk, n_heads, turn, n_nodes):
    """The node that appends a chunk of a kv-head: ``ni_kv_node`` of csrc/ni.h."""
    return head * n_nodes // n_heads if n_heads % n_nodes == 0 else (head + chunk // turn) % n_nodes
