"""Prefixes: the beginnings of sequences that were computed, found again by their ids, and whose memory they share.

What is known makes a tree.  A node stands for a chunk of positions (`_core.CHUNK`): its key is their ids, which begin where its
parent's end, and it holds references to the blocks of keys and values (`engine.cache`).  Leaves may hold less than a chunk. The longest
known beginning of a prompt is a way down from the root, token by token to its end: ids are compared, not hashes of them. Blocks are
shared by reference; who goes on in the midst of one that others went on from gets a copy of it (`Cache`).

Each set of nodes that work together has a tree of its own, for their workers placed the blocks' pages; what is found in another's should be
copied (`Cache.settle`), which takes a hundredth of the time of computing it.

Of layers with a window a node has blocks only if its sequence had them when it was offered: those before its end; of recurrent layers
it has the states that its sequence kept, at a few positions.  A prompt can begin only where a window's blocks and a state are there.
Both leave by themselves; the other blocks of a node leave when it is a leaf.
"""

import bisect
import collections
import contextlib
import threading

import numpy as np

from .. import _core
from ..engine.layout import chunks
from ..machine.limits import limits, node_memory, spare
from ..results import PrefixStats

CHUNK = _core.CHUNK
LEAST = 16
"""Fewest positions that are worth sharing: to begin in the midst of a block costs a copy of it."""
AUTO_SHARE, AUTO_CONTEXTS = 8, 64
_ID = np.dtype(np.int32)


def in_common(a, b):
    """How many ids, from the first on, two sequences share.

    Parameters
    ----------
    a, b : int32 array (n,), (m,)
    """
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


class _Part:
    """Blocks of a node that leave together.

    Attributes
    ----------
    node : _Node
    blocks : dict
        (Block, positions that it holds of the node's) by the kind's index; of states (states.Kept, position in the chunk) by that position.
    """

    __slots__ = ("blocks", "node")

    def __init__(self, node):
        self.node, self.blocks = node, {}


class _Node:
    """A chunk of ids.

    Attributes
    ----------
    parent : _Node, or None for a root
    key : bytes
        The ids, `_ID`.
    keys, children : list of bytes, list of _Node
        Sorted; a node of less than a chunk has none.
    all, windows, states : _Part
        Blocks of the kinds that see everything, of those that have a window, and of recurrent layers.
    chunk : int
        How far from the root; a root's is -1.
    nodes : tuple of int
        Which nodes' workers placed the pages.
    """

    __slots__ = ("all", "children", "chunk", "key", "keys", "nodes", "parent", "states", "windows")

    def __init__(self, parent, key, chunk, nodes):
        self.parent, self.key, self.chunk, self.nodes = parent, key, chunk, nodes
        self.keys, self.children = [], []
        self.all, self.windows, self.states = _Part(self), _Part(self), _Part(self)

    def nearest(self, key):
        """(positions in common, child) of the child whose ids begin most like a key; (0, None) where none has its first id.

        It is one of the two beside the key's place among the sorted ones.
        """
        at = bisect.bisect_left(self.keys, key)
        best, found = 0, None
        for child in self.children[max(at - 1, 0) : at + 1]:
            n = _keys_in_common(child.key, key)
            if n > best:
                best, found = n, child
        return best, found

    def add(self, key):
        at = bisect.bisect_left(self.keys, key)
        child = _Node(self, key, self.chunk + 1, self.nodes)
        self.keys.insert(at, key)
        self.children.insert(at, child)
        return child

    def lengthen(self, key):
        """Take more ids; no other child of the parent begins with the present ones, so the order stays."""
        self.parent.keys[bisect.bisect_left(self.parent.keys, self.key)] = key
        self.key = key

    def remove(self):
        at = bisect.bisect_left(self.parent.keys, self.key)
        del self.parent.keys[at], self.parent.children[at]
        self.parent = None


def _keys_in_common(a, b):
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n // _ID.itemsize
    return in_common(np.frombuffer(a, _ID, n // _ID.itemsize), np.frombuffer(b, _ID, n // _ID.itemsize))


def bytes_to_keep(engine, wanted):
    """The bound that a caller wants, in bytes; "auto": an eighth of what the model's nodes have free now but for the reserve, and no more
    than 64 whole contexts take.

    Parameters
    ----------
    engine : Engine
    wanted : int or "auto"
    """
    if wanted != "auto":
        return wanted
    memory, free = limits().memory, [spare(*node_memory(number)) for number in set(engine.nodes)]
    most = [] if None in free else [sum(free)]
    most += [] if memory is None else [memory.spare]
    return min([n // AUTO_SHARE for n in most] + [AUTO_CONTEXTS * engine.plan.kv_bytes])


class Prefixes:
    """What a model remembers of sequences, in at most so many bytes; the least recently used leave first.

    Its methods may be called from any thread.

    Parameters
    ----------
    caches : Caches
    most : int
        Bytes of blocks that are remembered, those of sequences that go on included; 0: nothing is.

    Attributes
    ----------
    bytes : int
        Of all blocks that are remembered.
    queries, hits : int
        Calls of `attach`, and those that found something.
    positions : int
        That those found, in all.
    """

    def __init__(self, caches, most):
        self._layout, self.most = caches.layout, most
        self._recurrent = bool(caches.layout.states.parts)
        self._kinds = caches.layout.kinds
        self._roots = {}  # by nodes
        self._used = collections.OrderedDict()  # every _Part that has blocks, or whose node has children: least recently used first
        self._states = collections.Counter()  # parts that have a state: sequences that went apart behind it have it in common
        self._lock, self._inside = threading.RLock(), False
        self.bytes = self.queries = self.hits = self.positions = 0
        caches.kept = self

    # ---- using -------------------------------------------------------------------------------------------------------

    def attach(self, cache, ids, nodes=None, others=(), have=0):
        """Fill a cache with the longest known beginning of a prompt, in place of what it has; nothing is copied.

        Parameters
        ----------
        cache : Cache
        ids : int32 array (n,)
        nodes : sequence of int, optional
            Of the lane that will compute the rest; the cache's by default.
        others : iterable of (Cache, int32 array, int)
            Sequences of that lane that are being computed: cache, ids, and how many of them are in it.
        have : int
            Of the prompt's positions, those that the cache has.

        Returns
        -------
        int
            Positions that need not be computed: less than n, for the last gives the logits.  If it is `have`, the cache is as it was. If
            they are other nodes', ``cache.nodes`` tells.
        """
        nodes = tuple(cache.nodes if nodes is None else nodes)
        with self._entered():
            self.queries += 1
            n, way, donor = self._best(nodes, ids, others)
            if n <= have:
                return have
            if donor is None:
                cache.adopt(self._blocks(way, n), n, way[0].nodes, self._state(way, n))
                self._touch(way, n)
            else:
                try:
                    cache.share(donor, n)
                except ValueError:  # another thread has closed it meanwhile
                    self.queries -= 1
                    return self.attach(cache, ids, nodes)
            self.hits += 1
            self.positions += n
            return n

    def known(self, ids, nodes, others=()):
        """How many positions `attach` would find."""
        with self._entered():
            return self._best(tuple(nodes), ids, others)[0]

    def _best(self, nodes, ids, others):
        """Positions that are known, and where: the way in the tree, or one of the others."""
        way, n = self._find(nodes, ids)
        donor = None
        for other, its, computed in others:
            m = self._worth(min(in_common(its[:computed], ids), len(ids) - 1))
            m = other.rewindable(m) if m > n and not other.closed else 0  # windows and recurrent state may reach less far
            if m > n:
                donor, n = other, m
        for far in self._roots:
            if far != nodes:
                far_way, m = self._find(far, ids)
                if m >= n + LEAST:
                    way, n, donor = far_way, m, None
        return n, way, donor

    def offer(self, cache, ids, n):
        """Remember the first n positions of a sequence, as many as its cache holds.

        Parameters
        ----------
        cache : Cache
            It is shared, not taken: its sequence may go on and may end.
        ids : int32 array, or list of int
            At least n.
        n : int
        """
        n = min(n, cache.n)
        n -= n % CHUNK if n % CHUNK < LEAST else 0
        if not self.most or cache.closed or not n:
            return
        key = np.asarray(ids[:n], _ID).tobytes()
        with self._entered() as again:
            if not again:  # else the garbage collector has come to the end of a sequence while this thread is in the midst of something
                self._remember(cache, key, n)

    @contextlib.contextmanager
    def _entered(self):
        with self._lock:
            again, self._inside = self._inside, True
            try:
                yield again
            finally:
                self._inside = again

    def _remember(self, cache, key, n):
        nodes = tuple(cache.nodes)
        node, way = self._roots.setdefault(nodes, _Node(None, b"", -1, nodes)), []
        for chunk in range(chunks(n)):
            lent = cache.lend(chunk)
            if any(kind.index not in lent for kind in self._kinds if not kind.window):
                break  # another thread has closed it meanwhile
            own = key[chunk * CHUNK * _ID.itemsize :][: CHUNK * _ID.itemsize]
            common, child = node.nearest(own)
            if child is None or common * _ID.itemsize < min(len(own), len(child.key)):
                child = node.add(own)
            elif len(own) > len(child.key):
                child.lengthen(own)
            self._take(child, lent, len(own) // _ID.itemsize)
            way.append(child)
            node = child
        for pos in cache.states.positions():
            if 0 < pos <= n:
                node = way[(pos - 1) // CHUNK]
                self._put(node.states, pos - node.chunk * CHUNK, cache.states.lend(pos), pos - node.chunk * CHUNK)
        self._touch(way)
        self._keep_to(self.most)

    def _find(self, nodes, ids):
        """Nodes from the root on, and how many positions of the ids can be had from them."""
        root, way, n = self._roots.get(nodes), [], 0
        if root is None or len(ids) <= LEAST:
            return way, 0
        key, node = np.asarray(ids[:-1], _ID).tobytes(), root
        while n < len(ids) - 1:
            common, child = node.nearest(key[n * _ID.itemsize :][: CHUNK * _ID.itemsize])
            if child is None:
                break
            way.append(child)
            n, node = n + common, child
            if common < CHUNK:
                break
        return way, self._reach(way, n)

    def _reach(self, way, n):
        """The most positions, of the n that a way's ids have in common with a prompt's, with which a sequence can begin."""
        windows = [kind for kind in self._kinds if kind.window]
        for last in reversed(range(len(way))):
            m = min([n, (last + 1) * CHUNK] + [last * CHUNK + way[last].windows.blocks.get(kind.index, (None, 0))[1] for kind in windows])
            if self._recurrent:
                places = sorted((last * CHUNK + at for at in way[last].states.blocks if last * CHUNK + at <= m), reverse=True)
            else:
                places = [self._worth(m)]
            for place in places:
                if place > last * CHUNK and place >= LEAST and all(self._has_window(way, kind, place) for kind in windows):
                    return place
        return 0

    def _has_window(self, way, kind, n):
        """Whether all that the token at position n sees is there of a kind."""
        return all(way[chunk].windows.blocks.get(kind.index, (None, 0))[1] >= min(n - chunk * CHUNK, CHUNK)
                   for chunk in range(_first(kind, n), chunks(n)))  # fmt: skip

    @staticmethod
    def _worth(n):
        """n, or less where its last positions are not worth a copy of their block."""
        return n - n % CHUNK if n % CHUNK < LEAST else n

    def _blocks(self, way, n):
        """What `Cache.adopt` takes for n positions."""
        found = []
        for kind in self._kinds:
            for chunk in range(_first(kind, n), chunks(n)):
                part = way[chunk].windows if kind.window else way[chunk].all
                found.append((kind.index, chunk, part.blocks[kind.index][0]))
        return found

    def _state(self, way, n):
        """The state at position n, or None for a model without recurrent layers."""
        return way[(n - 1) // CHUNK].states.blocks[(n - 1) % CHUNK + 1][0] if self._recurrent else None

    def _take(self, node, lent, n):
        """Let a node have blocks that hold n of its positions, where those that it has hold less."""
        for i, block in lent.items():
            self._put(node.windows if self._kinds[i].window else node.all, i, block, n)

    def _put(self, part, i, block, n):
        old = part.blocks.get(i)
        if old is None or old[1] < n:
            part.blocks[i] = block, n
            self._used[part] = None
            if part is part.node.states:
                self._states[block] += 1
                self.bytes += self._size(part, i) if self._states[block] == 1 else 0
            else:
                self.bytes += self._size(part, i) if old is None else 0

    def _size(self, part, i):
        return self._layout.states.block_bytes if part is part.node.states else self._kinds[i].block_bytes

    def _touch(self, way, n=None):
        """Make a way the most recently used; of windows and states what a sequence of n positions begins with, or all.

        A node is used after its children, and after its own windows and states: those leave before it.
        """
        first = 0 if n is None else min([_first(kind, n) for kind in self._kinds if kind.window], default=0)
        for node in reversed(way):
            for part in (node.windows, node.states, node.all):
                if part is node.windows and node.chunk < first:
                    continue
                if part is node.states and n is not None and node.chunk != (n - 1) // CHUNK:
                    continue
                if part is node.all or part.blocks:
                    self._used[part] = None
                    self._used.move_to_end(part)

    def stats(self):
        """PrefixStats."""
        return PrefixStats(self.bytes, self.most, self.queries, self.hits, self.positions)

    # ---- memory ------------------------------------------------------------------------------------------------------

    def blocks(self):
        """Of every part: its nodes, and (kind, chunk, address) of its blocks; of recurrent layers: `states`."""
        with self._entered():
            return [(part.node.nodes, [(self._kinds[i], part.node.chunk, block.address) for i, (block, _) in part.blocks.items()])
                    for part in self._used if part is not part.node.states]  # fmt: skip

    def states(self):
        """Of every part that has states: its nodes, and their addresses."""
        with self._entered():
            return [(part.node.nodes, [kept.block.address for kept, _ in part.blocks.values()])
                    for part in self._used if part is part.node.states]  # fmt: skip

    @property
    def reclaimable(self):
        """Bytes of blocks that no sequence has: what `reclaim` can give back."""
        with self._entered():
            return sum(self._alone(part) for part in self._used)

    def reclaim(self, n_bytes=None, nodes=None):
        """Forget what was used least recently until so many bytes are free, but not what sequences go on in, for that frees none; by
        default forget everything.

        Parameters
        ----------
        n_bytes : int, optional
        nodes : sequence of int, optional
            Only what lies on one of these; on any by default.

        Returns
        -------
        int
            Bytes that are free now; sequences go on in blocks that they share.
        """
        freed = 0
        with self._entered():
            for part in list(self._used):
                if n_bytes is not None and freed >= n_bytes:
                    break
                if part not in self._used or nodes is not None and set(nodes).isdisjoint(part.node.nodes):
                    continue
                if n_bytes is None or self._is_spare(part):
                    freed += self._forget(part)
        return freed

    def _is_spare(self, part):
        """Whether a part may leave, and gives memory back. What hangs from it may have stayed, because sequences have it."""
        node = part.node
        if part is node.all and (node.children or node.windows.blocks or node.states.blocks):
            return False
        return not part.blocks or self._alone(part) > 0

    def close(self):
        """Forget everything, for good."""
        self.most = 0
        self.reclaim()

    def _keep_to(self, most):
        while self.bytes > most:
            self._forget(next(iter(self._used)))

    def _alone(self, part):
        if part is part.node.states:
            return sum(self._size(part, i) for i, (kept, _) in part.blocks.items() if not kept.holders and self._states[kept] == 1)
        return sum(self._size(part, i) for i, (block, _) in part.blocks.items() if block.references == 1)

    def _forget(self, part):
        """Let a part's blocks go; bytes that are free by that.  With `all` goes the node: it is a leaf, whose other parts went before."""
        freed, node = self._alone(part), part.node
        self._used.pop(part, None)
        blocks, part.blocks = part.blocks, {}
        for i, (block, _) in blocks.items():
            if part is node.states:  # it goes with the last who has it
                self._states[block] -= 1
                if not self._states[block]:
                    del self._states[block]
                    self.bytes -= self._size(part, i)
            else:
                self.bytes -= self._size(part, i)
                block.close()
        if part is node.all:
            node.remove()
        return freed


def _first(kind, n):
    """First chunk that the token at position n sees."""
    return max(n - kind.window + 1, 0) // CHUNK if kind.window else 0
