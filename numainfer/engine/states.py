"""Recurrent state: what layers that read their past through a state keep of a sequence, at which positions, and whose it is.

A block holds the state of all recurrent layers at one position.  It is written once and then only read: a step reads the block of the
position where it begins and writes others, so one that is cancelled does no harm, and a fork shares blocks without a copy.  Where a step
has ended its block becomes the sequence's newest, and the one before it is room for the next step's, unless somebody else reads it.

Beside the newest some older ones are kept (`StateLayout.spacing`, `most`), for a state cannot go back: a sequence is cut to the nearest.
A step whose last positions may be taken back at once, because they were only proposed, leaves a state at each of them (`States.expect`).
"""

import ctypes
import weakref
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .. import _core
from .memory import HUGE, PAGE, bytes_by_owner, may_be_huge, round_up

UNIT = 64  # bytes: NI_STATE_UNIT of csrc/ops/state.h
SPACING, MOST = 1024, 4  # of checkpoints: whole chunks apart, so that a beginning that others share ends there


@dataclass(eq=False)
class StatePart:
    """What one op keeps: units of equal size, which are dealt to nodes in runs.

    Attributes
    ----------
    units : int
        Of all nodes together.
    unit_bytes : int
        A multiple of `UNIT`.
    rows : int
        A node's units are no runs of bytes but columns of so many rows, which lie one behind the other.
    offset : int
        Of each node's first unit, from the beginning of its stretch of a block.
    """

    units: int
    unit_bytes: int
    rows: int = 1
    offset: int = 0


class StateLayout:
    """The state of a model's recurrent layers, and what a sequence takes of it.

    Parameters
    ----------
    n_nodes : int
        Of the model: each has a stretch of every block, with the units that it computes.
    n_batch : int
        Most tokens of a step.

    Attributes
    ----------
    parts : list of StatePart
        In the model's order; none of a model without recurrent layers.
    block_bytes : int
        Of the state at one position.
    stride : int
        Bytes of each node's stretch.
    spacing : int
        Positions between checkpoints, as long as there are at most `most`; then every other one goes, and the spacing of that sequence is
        twice as long.
    most : int
        Checkpoints of a sequence, but for the newest state and the one before the end of the last prompt.
    """

    def __init__(self, n_nodes, n_batch):
        self.n_nodes, self.n_batch, self.parts, self.block_bytes, self.stride, self.huge = n_nodes, n_batch, [], 0, 0, False
        self.spacing, self.most = SPACING, MOST

    def add(self, units, unit_bytes, rows=1):
        """The StatePart of the model's next op with state; its place is settled by `place`."""
        part = StatePart(units, round_up(unit_bytes, UNIT), rows)
        self.parts.append(part)
        return part

    def place(self):
        """Settle where everything lies, once all parts are there; no page is two nodes'."""
        at = 0
        for part in self.parts:
            part.offset = at
            at += -(-part.units // self.n_nodes) * part.unit_bytes
        self.huge = bool(at) and may_be_huge(at)
        self.stride = round_up(at, HUGE if self.huge else PAGE)
        self.block_bytes = self.n_nodes * self.stride

    def ints(self, part):
        """The first integers of the part's op: csrc/ops/state.h."""
        return part.units, part.unit_bytes // UNIT, part.offset // UNIT, self.stride // UNIT, self.n_nodes

    def blocks(self, n):
        """Most blocks that a sequence has on its way to n positions: what a step reads and writes, the last prompt's and, while it is
        replaced, the next one's, checkpoints and those that a step adds."""
        return 2 + 2 * (n > _core.CHUNK) + min(n // self.spacing, self.most + -(-self.n_batch // self.spacing))

    def back_bytes(self, n):
        """Bytes that a sequence takes more whose steps leave states at their last n positions."""
        return n * self.block_bytes if self.parts else 0

    def bytes(self, n):
        """Most bytes that a sequence takes on its way to n positions."""
        return self.blocks(n) * self.block_bytes if self.parts else 0

    @property
    def read_bytes(self):
        """Bytes that a token reads, and writes."""
        return sum(part.units * part.unit_bytes for part in self.parts)

    def _stretches(self, address):
        """Views of a block: of each part, and of each node, the rows of its units, uint8 array (rows, bytes)."""
        block = np.ctypeslib.as_array((ctypes.c_uint8 * self.block_bytes).from_address(address))
        for part in self.parts:
            ends = [part.units * node // self.n_nodes for node in range(self.n_nodes + 1)]
            yield [block[node * self.stride + part.offset :][: (end - first) * part.unit_bytes].reshape(part.rows, -1)
                   for node, (first, end) in enumerate(pairwise(ends)) if end > first]  # fmt: skip

    def read(self, address):
        """The state in a block, whatever the nodes: uint8 array (read_bytes,)."""
        return np.concatenate([np.concatenate(stretches, axis=1).ravel() for stretches in self._stretches(address)])

    def write(self, address, data):
        """Put what `read` gave into a block."""
        at = 0
        for part, stretches in zip(self.parts, self._stretches(address)):
            size = part.units * part.unit_bytes
            rows, first = data[at : at + size].reshape(part.rows, -1), 0
            for stretch in stretches:
                stretch[:] = rows[:, first : first + stretch.shape[1]]
                first += stretch.shape[1]
            at += size

    def owners(self, n_nodes):
        """Which of a lane's nodes has each page of a block, int64 array (pages,); a lane is on all nodes or on one."""
        return np.repeat(np.arange(self.n_nodes) * n_nodes // self.n_nodes, self.stride // PAGE)

    def resident(self, addresses, n_nodes, seen):
        """`memory.bytes_by_owner` of blocks that a lane on n_nodes wrote."""
        owners = self.owners(n_nodes)
        return bytes_by_owner(((address, owners) for address in addresses), n_nodes, seen)


class Kept:
    """A state that is kept.

    Attributes
    ----------
    block : _core.Block
    shared : bool
        Somebody else may read it, too: then nobody writes to it any more.
    holders : weakref.WeakSet
        Of one that is shared, the sequences that have it.
    """

    __slots__ = ("block", "holders", "shared")

    def __init__(self, block):
        self.block, self.shared, self.holders = block, False, ()

    def share(self, *states):
        """Let these `States` have it, and others read it."""
        if not self.shared:
            self.shared, self.holders = True, weakref.WeakSet()
        self.holders.update(states)


class Coming:
    """What a step will leave; it keeps the blocks that the step reads and writes, whoever closes the sequence meanwhile.

    Attributes
    ----------
    state : int
        Address of the state that the step begins with; 0 at position 0.
    stops : array of _core.STOP_DTYPE
        Where it leaves states.
    back : int
        At its last so many positions, and behind them.
    """

    def __init__(self, begin, blocks, back):
        self.begin, self.blocks, self.back = begin, blocks, back  # blocks: {position: Kept}
        self.state = begin.block.address if begin else 0
        self.stops = np.array([(pos, kept.block.address) for pos, kept in sorted(blocks.items())], _core.STOP_DTYPE)

    def fill(self, record):
        """Name them in a segment (_core.SEGMENT_DTYPE)."""
        record["state"], record["stops"], record["n_stops"] = self.state, self.stops.ctypes.data, len(self.stops)


class States:
    """The states of one sequence.

    Parameters
    ----------
    pool : _core.Pool or None
        None for a model without recurrent layers, which has no use for them.
    layout : StateLayout
    """

    def __init__(self, pool, layout):
        self._pool, self._layout = pool, layout
        self._kept, self._spare = {}, []  # _spare: blocks for the next step
        self._spacing, self._prompt = layout.spacing, 0  # _prompt: position of the state near the end of the last long prompt
        self._back, self._loose = 0, ()  # of the next step; positions whose states are there for the sake of the next cut
        self.closed = False

    def positions(self):
        """Positions whose state is there, ascending; position 0 needs none."""
        return sorted(self._kept)

    def reach(self, n):
        """Numbers of positions, at most n, to which a sequence of n can be cut, the largest first."""
        if self._pool is None:
            return [n]
        return [*(pos for pos in reversed(self.positions()) if pos <= n), 0]

    def reaches(self, n):
        """Whether a step may begin at position n."""
        return self._pool is None or not n or n in self._kept

    def expect(self, n):
        """The last n positions of the next step may be taken back, any number of them, by a cut that comes next."""
        self._back = n

    def cut(self, n):
        """Forget states behind the first n positions, and those before them that were there for such a cut."""
        loose, self._loose = [pos for pos in self._loose if pos < n], ()
        for pos in [*loose, *(pos for pos in self._kept if pos > n)]:
            self._drop(pos)

    def _drop(self, pos):
        kept = self._kept.pop(pos, None)
        if kept is not None and kept.shared:
            kept.holders.discard(self)
        elif kept is not None:
            self._spare.append(kept)

    def moved(self):
        """Other workers go on: they get blocks of their own, whose pages their first touch places."""
        self._spare = []
        for kept in self._kept.values():
            kept.share(self)

    def prepare(self, pos0, end):
        """What a step of tokens pos0 to end - 1 begins with and leaves: a Coming, or None for a model without recurrent layers.

        Raises
        ------
        OutOfNodeMemory
        """
        if self._pool is None:
            return None
        self.cut(pos0)
        back, self._back = min(self._back, end - pos0 - 1), 0
        stops = {end, *range(end - back, end)}
        if end - pos0 > 1:
            stops.update(range(pos0 // self._spacing * self._spacing + self._spacing, end, self._spacing))
            last = (end - 1) // _core.CHUNK * _core.CHUNK  # a prompt that differs near its end is computed from here
            if last > pos0 and not back:
                stops.add(last)
        return Coming(self._kept.get(pos0), {pos: self._room() for pos in sorted(stops)}, back)

    def _room(self):
        return self._spare.pop() if self._spare else Kept(_core.Block(self._pool))

    def done(self, pos0, end, coming):
        """The step that `prepare` spoke of has succeeded."""
        if coming is None or self.closed:
            return
        self._kept.update(coming.blocks)
        if end - pos0 == 1 and pos0 % self._spacing and end % self._spacing:  # nothing but the newest changes
            if pos0 != self._prompt:
                self._drop(pos0)
            return
        last = (end - 1) // _core.CHUNK * _core.CHUNK
        if end - pos0 > 1 and last >= pos0 and not coming.back:
            self._prompt = last
        while len(self._regular(end)) > self._layout.most:
            self._spacing *= 2
        wanted = {*self._regular(end), self._prompt, end}
        self._loose = [pos for pos in range(end - coming.back, end) if pos not in wanted]
        wanted.update(self._loose)
        for pos in [pos for pos in self.positions() if pos not in wanted]:
            self._drop(pos)
        del self._spare[coming.back + 1 :]

    def _regular(self, end):
        return [pos for pos in self._kept if pos % self._spacing == 0 and pos < end]

    def share(self, other, n):
        """Become the states of the first n positions of `other`; nothing is copied."""
        for pos, kept in list(other._kept.items()):
            if pos <= n:
                kept.share(self, other)
                self._kept[pos] = kept
        self._spacing, self._prompt = other._spacing, other._prompt if other._prompt <= n else 0

    def lend(self, pos):
        """The Kept of a position, for somebody who may give it to others; None where there is none."""
        kept = self._kept.get(pos)
        if kept is not None:
            kept.share(self)
        return kept

    def adopt(self, pos, kept):
        """Begin with a state that somebody was lent, in place of what it has."""
        self.cut(-1)
        kept.share(self)
        self._kept[pos] = kept

    def addresses(self):
        """Of the blocks that it has, those shared with other sequences too."""
        kept = [*list(self._kept.values()), *self._spare]
        return [one.block.address for one in kept]

    def resident(self, n_nodes, seen):
        """`memory.bytes_by_owner` of its blocks, of a lane on n_nodes."""
        if self._pool is None:
            return np.zeros(n_nodes, np.int64)
        return self._layout.resident(self.addresses(), n_nodes, seen)

    def close(self):
        """Give the memory back: now, or with the step that works on it."""
        self.closed = True
        for kept in list(self._kept.values()):
            if kept.shared:
                kept.holders.discard(self)
        self._kept, self._spare, self._loose = {}, [], ()
