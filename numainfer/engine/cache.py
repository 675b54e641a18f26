"""KV caches: the memory of sequences, in blocks.

A sequence finds its blocks (`layout.py`) by tables (csrc/blocks.c), and several sequences may have a block in common: who writes behind all
that the others have of it goes on in it, and anybody else gets a copy first.
"""

import contextlib
import weakref
from typing import NamedTuple

from .. import _core
from ..errors import ModelClosed
from . import memory
from .layout import owner_of_pages
from .heads import Hidden
from .states import States


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
        for nodes, addresses in self.kept.states() if self.kept else ():
            own = self.layout.states.resident(addresses, len(nodes), seen)
            parts.append(None if own is None else dict(zip(nodes, own.tolist())))
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
    hidden : Hidden
        Of the model's last hidden states those that a head needs; nothing without one.
    """

    def __init__(self, caches):
        self._caches, self.n = caches, 0
        self.nodes = list(range(caches.layout.n_nodes))
        layout = caches.layout
        self._tables = _core.Tables(caches.pools, [kind.window for kind in layout.kinds], layout.n_batch)
        self.states, self.hidden = States(caches.state_pool, layout.states), Hidden()
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

    def prepare(self, lane, pos0, end, states=True):
        """Make room for positions pos0 to end - 1, which a step of the lane will write; what stood there and behind is given up.

        It may be done again, after a step that was cancelled. Without `states` the step leaves recurrent state alone, which stays that of
        the positions before.

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
        if pos0 > self.n or not (self._tables.reaches(pos0) and (not states or self.states.reaches(pos0))):
            raise ValueError(f"a segment at position {pos0} needs those before it; the cache holds {self.n} positions, of layers with a "
                             f"window their last alone, and recurrent state of few")
        if self.nodes != lane.nodes:
            self.states.moved()
        self.n, self.nodes = pos0, lane.nodes
        for i in self._tables.prepare(pos0, end) or ():
            self._own(lane.team, i, pos0 // _core.CHUNK)
        return self.states.prepare(pos0, end) if states else None

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
        self.hidden.share(other.hidden)
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
        self.hidden = Hidden()
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
        if states is None:
            return None
        return {node: n + int(more) for (node, n), more in zip(found.items(), states)}

    def close(self):
        """Give the memory back, now or when the step that works on it has ended."""
        self._tables.close()
        self.states.close()


def _resident(layout, blocks, nodes, seen):
    """`Cache.bytes_by_owner` of blocks (kind, chunk, address), whose pages the workers of these nodes placed."""
    own = ((address, owner_of_pages(kind, chunk, layout.turn, len(nodes))) for kind, chunk, address in blocks if address not in seen)
    found = memory.bytes_by_owner(own, len(nodes), seen)
    return None if found is None else dict(zip(nodes, found.tolist()))
