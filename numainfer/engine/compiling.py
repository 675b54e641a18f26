"""From ops in order to what csrc/plan.c runs: barriers, places of tensors in memory, arrays.

Two ops that touch the same bytes, one of them writing, need a barrier between them: within the node if each node has its own copy
of the bytes, across the team if they are shared.
"""

from bisect import bisect_right, insort

import numpy as np

from .. import _core
from .ops import NODE, NONE, OPS, PER_NODE, SHARED, TEAM


def insert_barriers(ops, tensors, n_batch):
    """Give each op the weakest barrier before it that keeps the order of reads and writes."""
    last = {NODE: -1, TEAM: -1}  # ops before which a barrier of at least that strength stands
    recent = []  # (op, first byte, end, writes, storage) since the last team barrier
    places = {id(t): _place(t, n_batch) for t in tensors}
    for i, op in enumerate(ops):
        op.barrier = NONE
        mine = [(*places[id(t)], mode == "w", t.storage) for (_, mode, _), t in zip(OPS[op.name][1], op.tensors) if t is not None]
        for j, start, end, writes, storage in recent:
            level = TEAM if storage == SHARED else NODE
            if last[level] <= j and op.barrier < level:
                for first, behind, writes_too, own in mine:
                    if (writes or writes_too) and own == storage and start < behind and first < end:
                        op.barrier = level
        if op.barrier:
            last[NODE] = i
        if op.barrier == TEAM:
            last[TEAM] = i
            recent = []
        recent += [(i, *access) for access in mine]


def _place(tensor, n_batch):
    """(first byte, end) of a tensor; one that is not laid out yet, or a sequence's KV memory, has a place of its own."""
    if tensor.offset < 0:
        return -2 - id(tensor), -1 - id(tensor)
    return tensor.offset, tensor.offset + tensor.parts(n_batch)[1]


def lay_out(ops, tensors, n_batch):
    """First fit over lifetimes: a tensor takes the lowest place that none of those alive with it holds.

    A tensor lives until a barrier after its last reader: memory is never reused at the price of a barrier.

    Returns
    -------
    list of int
        Bytes of memory, shared and per node.
    """
    level, arena_bytes = {SHARED: TEAM, PER_NODE: NODE}, [0, 0]
    barriers = {s: [i for i, op in enumerate(ops) if op.barrier >= level[s]] for s in (SHARED, PER_NODE)}

    def dies(t):
        after = bisect_right(barriers[t.storage], t.last)
        return (barriers[t.storage][after] if after < len(barriers[t.storage]) else len(ops)) - 1

    placed = {SHARED: [], PER_NODE: []}  # (first byte, end, last op before whose end it may not be overwritten)
    for tensor in sorted(tensors, key=lambda t: t.first):
        _, size = tensor.parts(n_batch)
        if not size:
            continue
        at, mine = 0, placed[tensor.storage]
        mine[:] = [entry for entry in mine if entry[2] >= tensor.first]
        for start, end, _ in mine:
            if start < at + size and at < end:
                at = end
        tensor.offset = at
        insort(mine, (at, at + size, dies(tensor)))
        arena_bytes[tensor.storage] = max(arena_bytes[tensor.storage], at + size)
    return arena_bytes


def arrays(ops, tensors, weights, n_batch):
    """(ops, tensors) as `_core.Plan` takes them, in its dtypes."""
    number = {id(t): i for i, t in enumerate(tensors)}
    weight = {id(w): i for i, w in enumerate(weights)}
    op_rows = np.zeros(len(ops), _core.OP_DTYPE)
    op_rows["t"], op_rows["w"] = -1, -1
    for name, values in (("code", (OPS[op.name][0] for op in ops)), ("barrier", (op.barrier for op in ops)),
                         ("selected", (op.selected for op in ops))):  # fmt: skip
        op_rows[name] = list(values)
    t, w, ints, floats = op_rows["t"], op_rows["w"], op_rows["i"], op_rows["f"]
    for i, op in enumerate(ops):
        t[i, : len(op.tensors)] = [-1 if x is None else number[id(x)] for x in op.tensors]
        w[i, : len(op.weights)] = [-1 if x is None else weight[id(x)] for x in op.weights]
        ints[i, : len(op.ints)], floats[i, : len(op.floats)] = op.ints, op.floats
    rows = np.full(len(tensors), -1, _core.TENSOR_DTYPE)
    for name in ("storage", "width", "per_token"):
        rows[name] = [getattr(tensor, name) for tensor in tensors]
    for i, tensor in enumerate(tensors):
        for form, offset in tensor.parts(n_batch)[0].items():
            rows[form][i] = tensor.offset + offset
    return op_rows, rows
