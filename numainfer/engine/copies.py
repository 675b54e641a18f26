"""How weights get into the nodes' memory: `Replicas` packs them into one arena per node, by that node's own threads."""

import contextlib
import logging
import math
from itertools import accumulate

import numpy as np

from .. import _core
from ..errors import CorruptModel
from .weights import Matrix, Vector

log = logging.getLogger("numainfer")
_ALIGN = 64
_BEHIND = 64 << 20  # bytes of the file that are packed before their pages are given back: that costs the same for few as for many


def bytes_on_nodes(weights, n_nodes, policy, bounds=None):
    """Bytes of packed weights on each node, as `Replicas` of the same arguments hold them."""
    if policy == "interleave":
        return [-(-_lay_out(weights, {}, 0)[1] // n_nodes)] * n_nodes
    return [_lay_out(weights, bounds or {}, node)[1] for node in range(n_nodes)]


def copies_of(weights, n_nodes, policy, bounds=None):
    """Of each copy: where each weight's row group 0 would lie behind its beginning, {name: bytes}, and its size."""
    return [_lay_out(weights, bounds or {}, copy) for copy in range(1 if policy == "interleave" else n_nodes)]


def _lay_out(weights, bounds, node):
    """Of a node's copy: where each weight's row group 0 would lie behind its beginning, and its size; bounds: as of `Replicas`."""
    at, offsets = 0, {}
    for w in weights:
        first, size = 0, w.packed_bytes
        if w.name in bounds:
            group = _core.packed_bytes(w.code, 1, w.k)
            first = int(bounds[w.name][node]) * group
            size = w.experts * (int(bounds[w.name][node + 1]) * group - first)
        offsets[w.name] = at - first
        at += -(-size // _ALIGN) * _ALIGN
    return offsets, at


class Replicas:
    """Packed copies of weights: where each lies on each node.

    Parameters
    ----------
    weights : list of Matrix or Vector
        In the order they shall lie in memory.
    os_nodes : list of int
        System numbers of the nodes.
    policy : str
        "interleave": one copy, page by page over the nodes; else each node has its own memory, with a copy in it, but for `bounds`.
    bounds : dict
        Matrices of which a node holds its own rows alone: row groups (of each expert) where each node's rows begin and the last end,
        (n_nodes + 1,) by name of the matrix.
    open_arena : callable, optional
        ``open_arena(copy, bytes, nodes)`` returns the memory of a copy; by default an Arena of this process's own.

    Attributes
    ----------
    kept : KeptCopies or None
        Where they lie in shared memory, what is known of them (`keep`).
    """

    kept = None

    def __init__(self, weights, os_nodes, policy, bounds=None, open_arena=None):
        self.weights, self.n_nodes, self.policy = list(weights), len(os_nodes), policy
        self._bounds = bounds or {}
        laid_out = copies_of(self.weights, self.n_nodes, policy, bounds)
        self.offsets = [offsets for offsets, _ in laid_out]  # per copy: from the arena's start to the weight's row group 0
        self.arenas = []
        try:
            for copy, (_, size) in enumerate(laid_out):
                on = os_nodes if len(laid_out) < self.n_nodes else [os_nodes[copy]]
                self.arenas.append(open_arena(copy, size, on) if open_arena else _core.Arena(size, on, huge=True))
        except BaseException:
            self.close()
            raise

    def entry(self, w):
        """(code, n, k, addresses, bounds, experts) as the core takes them; code -1 for vectors."""
        addresses = [arena.address + offsets[w.name] for arena, offsets in zip(self.arenas, self.offsets)]
        addresses = addresses * self.n_nodes if len(addresses) < self.n_nodes else addresses
        code, n, k, experts = (w.code, w.n, w.k, w.experts) if isinstance(w, Matrix) else (-1, 1, w.n, 1)
        return code, n, k, addresses, self._bounds.get(w.name), experts

    def read_bytes(self, gguf):
        """How much of the file `fill` reads, int."""
        return _Reading(gguf, [w for w in self.weights if isinstance(w, Matrix) and not w.make], None, None).total

    def fill(self, team, gguf, progress=None):
        """Read the file once, in its order, and pack every weight on every node, by that node's own threads.

        Pages of the file are given back to the system behind the reader.  `progress(done, total)` counts bytes of the file.

        Raises
        ------
        CorruptModel
            The file was cut or written to while it was read, cannot be read, or ends in zeros.
        """
        gguf.check_complete()
        matrices = sorted((w for w in self.weights if isinstance(w, Matrix) and not w.make),
                          key=lambda w: (gguf.tensors[w.in_file].shard, gguf.tensors[w.in_file].offset, w.first))
        made = [w for w in self.weights if isinstance(w, Matrix) and w.make]
        vectors = [w for w in self.weights if isinstance(w, Vector)]
        nonzero = np.zeros(len(self.weights), np.uint8)
        reading = _Reading(gguf, matrices, nonzero, progress)
        with contextlib.ExitStack() as files:
            fds = {t.shard: files.enter_context(t.open()).fileno() for t in reading.last.values()}
            pieces = [(self.entry(w), (fds[t.shard], t.offset + w.first * row_bytes), row_bytes)
                      for w, t, row_bytes in zip(matrices, reading.tensors, reading.row_bytes)]
            made_bytes = [w.make(gguf.tensors[w.in_file].data) for w in made]
            pieces += [(self.entry(w), data.ctypes.data, data.nbytes // (w.experts * w.n)) for w, data in zip(made, made_bytes)]
            # Vectors last, for then the huge pages around them are there: each would cost one thread the clearing of such a page.
            pieces += [(self.entry(w), w.values.ctypes.data, w.packed_bytes) for w in vectors]
            reading.check()
            reading.end(team.fill(pieces, nonzero, reading.tick))

    def close(self):
        """Give the memory back."""
        for arena in self.arenas:
            arena.close()
        self.arenas = []


class _Reading:
    """What the caller's thread does while workers pack the file: reports, looks after the file, gives its pages back."""

    def __init__(self, gguf, matrices, nonzero, progress):
        self._gguf, self._nonzero, self._progress = gguf, nonzero, progress
        self.matrices, self.tensors = matrices, [gguf.tensors[w.in_file] for w in matrices]
        self.row_bytes = [t.n_bytes // math.prod(t.shape[:-1]) for t in self.tensors]
        self._before = [0, *accumulate(row * w.n * w.experts for row, w in zip(self.row_bytes, matrices))]
        self.total = self._before[-1]
        self._seen, self._done, self._shard, self._released = 0, 0, 0, 0
        self.last = {t.shard: t for t in sorted(gguf.tensors.values(), key=lambda t: (t.shard, t.offset))}  # one of each shard

    def check(self):
        """Raise CorruptModel if a file became shorter than it was."""
        for tensor in self.last.values():
            tensor.check()

    def tick(self, piece, row):
        """All matrices before `piece`, and its rows before `row`, are packed."""
        seen = min(piece, len(self.tensors))
        self._seen, done = seen, self._before[seen]
        if seen < len(self.tensors):
            tensor = self.tensors[seen]
            done += row * self.row_bytes[seen]
            self._give_back(tensor, (self.matrices[seen].first + row) * self.row_bytes[seen])
        if done > self._done:
            self._done = done
            if self._progress:
                self._progress(done, self.total)
        self.check()  # after the caller's turn, and often: someone may be writing the file

    def end(self, unreadable):
        """Everything is packed, but where the piece `unreadable` is not -1."""
        if unreadable >= 0:
            self.check()
            tensor = self.tensors[unreadable]
            raise CorruptModel(self._gguf.paths[tensor.shard], f"tensor {tensor.name!r}: not all of its {tensor.n_bytes} bytes can be "
                               "read from the disk", tensor.offset)
        self.tick(len(self._nonzero), 0)
        self._gguf.check_unchanged()
        zeros = [w.name for w, nonzero in zip(self.matrices, self._nonzero) if not nonzero]
        if zeros:
            more = f" and {len(zeros) - 3} more" if len(zeros) > 3 else ""
            log.warning("%s: all values of tensor %s%s are zero; the model runs, but is that meant?", self._gguf.path,
                        ", ".join(zeros[:3]), more)
        self._give_back_shards(len(self._gguf.paths))

    def _give_back(self, tensor, start):
        if tensor.shard > self._shard:
            self._give_back_shards(tensor.shard)
        if tensor.offset + start - self._released >= _BEHIND:
            tensor.release(self._released - tensor.offset, tensor.offset + start - self._released)
            self._released = tensor.offset + start

    def _give_back_shards(self, end):
        """Shards before `end`, whole: the page cache holds runs of pages that straddle the pieces, which only that drops."""
        for shard, last in self.last.items():
            if self._shard <= shard < end:
                last.release(-last.offset, last.offset + last.n_bytes)
        self._shard, self._released = end, 0
