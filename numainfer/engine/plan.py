"""The plan: a model's forward pass as a list of typed ops, checked, with the weakest barriers that keep it right.

An architecture calls the methods of `Plan` in the order of the paper's equations.  Each checks its operands and appends one op
of csrc/ops/ops.def.  `compile` then lays tensors out in memory (reusing what is no longer read) and computes the barriers: two
ops that touch the same bytes, one of them writing, need a barrier between them: within the node if each node has its own copy of
the bytes, across the team if they are shared.
"""

import html
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from .. import _core
from ..errors import PlanError
from ..summary import counted
from .cache import KV_TYPES, UNIT, LayerCache, Layout
from .weights import Matrix, Vector

SHARED, PER_NODE = 0, 1
NONE, NODE, TEAM = 0, 1, 2
FLOAT, OFFSET, MINIMUM, SIGNED, NESTED = range(5)  # panel kinds of csrc/formats/formats.h
_SUMS = {OFFSET: "s", MINIMUM: "m", NESTED: "s"}  # the form beside "q" that a kind needs
_ALIGN = 64
_ATTENTION_INTS = _core.attention_ints()
MOST_RUNS = 64  # of chunks, that a query's attention is summed in: bits depend on it beyond so many chunks
PART_SEQUENCES = 16  # of the longest kind, whose attention can be spread over workers run by run; of shorter ones, more


@dataclass(eq=False)
class Tensor:
    """An activation: `width` float32 values per token, written once.

    Forms are what its readers need: ``f`` floats, ``q`` quants with their scales, ``m`` and ``s`` sums of quants.
    """

    name: str
    width: int
    storage: int
    forms: set = field(default_factory=set)
    n_bytes: int = 0  # set for tensors that are not [tokens][width]
    first: int = -1  # ops that write and last read it
    last: int = -1
    offset: int = -1


@dataclass(frozen=True)
class Attention:
    """Shape of one attention layer.

    Attributes
    ----------
    heads, kv_heads : int
        H and G; H is a multiple of G.
    key_length, value_length : int
        Head widths, multiples of 16.
    rope_dim : int
        Leading values of a head that are rotated; 0 for none.
    neox : bool
        Pairs (i, i + rope_dim/2) instead of (2i, 2i+1).
    scale : float
        Factor on q . k.
    window : int
        Positions that a query sees, itself included; 0 for all before it.
    eps : float
        Of the q/k norms, where there are any.
    softcap : float
        Scores become softcap * tanh(score / softcap); 0 for none.
    """

    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    rope_dim: int
    neox: bool
    scale: float
    window: int = 0
    eps: float = 0.0
    softcap: float = 0.0


@dataclass
class _Op:
    name: str
    tensors: list
    weights: list
    ints: tuple = ()
    floats: tuple = ()
    selected: bool = False
    cache: LayerCache | None = None  # of attention's ops
    barrier: int = NONE

    @property
    def attention(self):
        """The integers of attention's ops by the names of csrc/ops/attention.def."""
        return dict(zip(_ATTENTION_INTS, self.ints, strict=True))


def _signatures():
    """Op name -> (code, [(operand, mode, optional)])."""
    found = {}
    for code, (name, signature) in enumerate(_core.ops()):
        operands = [part.partition(":")[::2] for part in signature.split()]
        found[name] = code, [(operand, mode[0], mode.endswith("?")) for operand, mode in operands]
    return found


_OPS = _signatures()


class Plan:
    """Builds and holds the ops of one forward pass.

    Parameters
    ----------
    n_nodes : int
        Nodes of the team that will run it.
    n_batch : int
        Most tokens per step.
    n_ctx : int
        Most positions per sequence.
    hidden : bool
        The result is the last normed hidden state, not the logits.
    kv_type : str
        One of `KV_TYPES`.
    kv_nodes : int, optional
        Nodes of the model, if it has more than this team.

    Attributes
    ----------
    kv : Layout
        What the attention layers keep of a sequence.
    """

    def __init__(self, n_nodes, n_batch, n_ctx, hidden=False, kv_type="f16", kv_nodes=None):
        self.n_nodes, self.n_batch, self.n_ctx = n_nodes, n_batch, n_ctx
        self.n_chunks = -(-n_ctx // _core.CHUNK)
        self._hidden = hidden
        *_, shift = _core.attention_runs(0, n_ctx - 1, MOST_RUNS)
        turn = 1 << shift  # no run is longer, so none has two owners
        self.kv = Layout(kv_type, n_batch, kv_nodes or n_nodes, turn)
        self._part_runs = min(PART_SEQUENCES, n_batch) * min(self.n_chunks, MOST_RUNS)
        self.ops, self.tensors, self.weights = [], [], []
        self.arena_bytes = [0, 0]
        self.out_width = 0

    # ---- ops -----------------------------------------------------------------------------------------------------

    def embed(self, table, scale=1.0):
        """Rows of the embedding table (V, D), scaled: x, one copy per node."""
        self._is_matrix("embed", table)
        x = self._tensor("x", table.k, PER_NODE, "f")
        return self._add("embed", [x], [table], floats=(scale,))

    def rope_table(self, frequencies, factor=1.0):
        """cos and sin of position * frequency: (T, rope_dim), for the `attend` ops that share it."""
        table = self._tensor("rope", 2 * frequencies.n, PER_NODE, "f")
        return self._add("rope_table", [table], [frequencies], floats=(factor,))

    def norm(self, x, w, eps, y=None, post=None, selected=False):
        """RMS norm of a residual stream: returns (x', h), x' = x + y or x + norm(y, post), h = norm(x', w).

        Without `y`, x' is x.  `selected`: h for the rows alone whose logits are wanted, no x'.
        """
        for name, vector in (("w", w), ("post", post)):
            if vector is not None:
                self._is_vector("norm", name, vector, x.width)
        out = x
        if y is not None:
            self._check("norm", "y", y.name, y.width, x.width)
            y = self._near(y)
            if not selected:
                out = self._tensor("x", x.width, PER_NODE, "f")
        h = self._tensor("h", x.width, PER_NODE)
        written = out if out is not x else None
        self._add("norm", [x, y, written, h], [w, post], ints=(int(selected),), floats=(eps,), selected=selected)
        return out, h

    def matmul(self, h, *matrices, names=()):
        """y_j = W_j h for matrices (N_j, K): shared tensors of width N_j; up to three make one stage."""
        if not 1 <= len(matrices) <= 3:
            raise PlanError(f"matmul: takes one to three matrices, found {len(matrices)}")
        for w in matrices:
            self._reads(h, w)
        outs = [self._tensor(w.short_name, w.n, SHARED, "f") for w in matrices]
        self._add("matmul", [h, *outs], list(matrices))
        return outs[0] if len(outs) == 1 else outs

    def logits(self, h, w):
        """The plan's result: W h for the selected rows; or h itself, if that was asked for."""
        if self._hidden:
            h.forms.add("f")
            self.out_width = h.width
            self._add("emit", [h], [], selected=True)
            return
        self._reads(h, w)
        self.out_width = w.n
        self._add("matmul", [h], [w], selected=True)

    def attend(self, q, k, v, a, rope=None, q_norm=None, k_norm=None):
        """Appends k, v to the sequence's KV memory and attends: o, one copy per node, width H * value_length."""
        for name, tensor, wanted in (("q", q, a.heads * a.key_length), ("k", k, a.kv_heads * a.key_length),
                                     ("v", v, a.kv_heads * a.value_length)):
            self._check("attend", name, tensor.name, tensor.width, wanted)
        if a.heads % a.kv_heads or a.key_length % 16 or a.value_length % 16 or a.rope_dim % 2 or a.rope_dim > a.key_length:
            raise PlanError(f"attend: heads must be a multiple of kv-heads, head widths multiples of 16, rope_dim even and at "
                            f"most the key width; found {a}")
        if rope is not None:
            self._check("attend", "rope", rope.name, rope.width, a.rope_dim)
        for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
            if norm is not None:
                self._is_vector("attend", name, norm, a.key_length)
        q = self._near(q)
        if self.n_chunks >= 2**31:
            raise PlanError(f"attend: a context of {self.n_ctx} tokens; wanted less than {2**31 * _core.CHUNK}")
        cache = self.kv.add(a.kv_heads, a.key_length, a.value_length, a.window)
        named = {"heads": a.heads, "kv_heads": a.kv_heads, "e": a.key_length, "ev": a.value_length,
                 "n_rot": a.rope_dim if rope is not None else 0, "neox": int(a.neox), "window": a.window, "kv_type": self.kv.type,
                 "most_runs": MOST_RUNS, "part_runs": self._part_runs, "turn": self.kv.turn,
                 "table": 0, "offset": 0, "stride": 0}  # fmt: skip  # these three come with `compile`
        ints = [named[name] for name in _ATTENTION_INTS]
        # Each head stays with one node where heads divide evenly; else its chunks go round, and all nodes read them.
        kv = self._tensor(f"kv {len(self.kv.layers) - 1}", 0, PER_NODE if a.kv_heads % self.n_nodes == 0 else SHARED)
        parts = self._tensor("parts", 0, SHARED, "f")
        parts.n_bytes = self._part_runs * a.heads * (a.value_length + 16) * 4
        rows = self._tensor("rows", a.heads * a.value_length, SHARED, "f")
        o = self._tensor("o", rows.width, PER_NODE)
        self._add("kv_append", [k, v, rope, kv], [k_norm], ints, (a.eps,), cache=cache)
        self._add("attend", [q, rope, kv, parts, rows], [q_norm], ints, (a.eps, a.scale, a.softcap), cache=cache)
        return self._add("combine", [parts, rows, o], [], ints, cache=cache)

    def gated(self, gate, up, activation):
        """activation(gate) * up, "silu" or "gelu": one copy per node."""
        self._check("gated", "up", up.name, up.width, gate.width)
        if activation not in ("silu", "gelu"):
            raise PlanError(f"gated: activation {activation!r}; wanted 'silu' or 'gelu'")
        a = self._tensor("a", gate.width, PER_NODE)
        return self._add("gated", [gate, up, a], [], ints=(int(activation == "gelu"),))

    # ---- building ------------------------------------------------------------------------------------------------

    def _tensor(self, name, width, storage, *forms):
        tensor = Tensor(name, width, storage, set(forms))
        self.tensors.append(tensor)
        return tensor

    def _add(self, name, tensors, weights, ints=(), floats=(), selected=False, cache=None):
        for w in weights:
            if w is not None and w not in self.weights:
                self.weights.append(w)
        index = len(self.ops)
        for (operand, mode, _), tensor in zip(_OPS[name][1], tensors):
            if tensor is None:
                continue
            tensor.last = index
            if mode == "w" and tensor.first < 0:
                tensor.first = index
            elif tensor.first < 0:
                raise PlanError(f"{name}: operand {operand} ({tensor.name}) is read before any op writes it")
        self.ops.append(_Op(name, tensors, weights, tuple(ints), tuple(floats), selected, cache))
        return next((t for (_, mode, _), t in reversed(list(zip(_OPS[name][1], tensors))) if mode == "w"), None)

    @staticmethod
    def _check(op, operand, name, found, wanted):
        if found != wanted:
            raise PlanError(f"{op}: operand {operand} ({name}) has width {found}, wanted {wanted}")

    @staticmethod
    def _is_matrix(op, w):
        if not isinstance(w, Matrix):
            raise PlanError(f"{op}: operand {w.name} is a vector of {w.n} values, wanted a matrix")

    def _is_vector(self, op, operand, w, n):
        if not isinstance(w, Vector):
            raise PlanError(f"{op}: operand {operand} ({w.name}) is a matrix of {w.n} x {w.k} values, wanted a vector of {n}")
        self._check(op, operand, w.name, w.n, n)

    def _near(self, tensor):
        """The tensor on every node, for an op whose workers each read all of it."""
        if tensor.storage == PER_NODE or self.n_nodes == 1:
            return tensor
        near = self._tensor(tensor.name, tensor.width, PER_NODE, "f")
        return self._add("gather", [tensor, near], [])

    def _reads(self, h, w):
        self._is_matrix("matmul", w)
        self._check("matmul", "W", w.name, w.k, h.width)
        if w.kind == FLOAT:
            h.forms.add("f")
        else:
            h.forms |= {"q"} | ({_SUMS[w.kind]} if w.kind in _SUMS else set())

    # ---- compiling -----------------------------------------------------------------------------------------------

    def compile(self):
        """Lay out the tensors and compute the barriers; call once, after the last op.  Returns self."""
        self.kv.place()
        for op in self.ops:
            if op.cache is not None:
                named = op.attention | {"table": op.cache.kind.index, "offset": op.cache.offset // UNIT, "stride": op.cache.stride // UNIT}
                op.ints = tuple(named[name] for name in _ATTENTION_INTS)
        self._insert_barriers()  # what the flow of data needs
        self._lay_out()  # reuses memory only across those
        self._insert_barriers()  # and is not taken at its word
        return self

    def _parts_of(self, tensor):
        """Byte offset of each form within the tensor, and its size."""
        rows, at, offsets = self.n_batch, 0, {}
        if tensor.n_bytes:
            return {"f": 0}, tensor.n_bytes
        sizes = {"f": 4 * tensor.width, "q": tensor.width, "d": tensor.width // 8, "m": tensor.width // 8, "s": tensor.width // 8}
        for form in ("f", "q", "d", "m", "s"):
            if form in tensor.forms or (form == "d" and "q" in tensor.forms):
                offsets[form] = at
                at += -(-rows * sizes[form] // _ALIGN) * _ALIGN
        return offsets, at

    def _lay_out(self):
        """First fit over lifetimes: a tensor takes the lowest place that none of those alive with it holds.

        A tensor lives until a barrier after its last reader: memory is never reused at the price of a barrier.
        """
        level = {SHARED: TEAM, PER_NODE: NODE}
        barriers = {s: [i for i, op in enumerate(self.ops) if op.barrier >= level[s]] for s in (SHARED, PER_NODE)}

        def dies(t):
            after = bisect_right(barriers[t.storage], t.last)
            return (barriers[t.storage][after] if after < len(barriers[t.storage]) else len(self.ops)) - 1

        placed = {SHARED: [], PER_NODE: []}
        for tensor in sorted(self.tensors, key=lambda t: t.first):
            _, size = self._parts_of(tensor)
            at, mine = 0, placed[tensor.storage]
            mine[:] = [entry for entry in mine if dies(entry[0]) >= tensor.first]
            for _, start, end in sorted(mine, key=lambda entry: entry[1]):
                if start < at + size and at < end:
                    at = end
            if size:
                tensor.offset = at
                placed[tensor.storage].append((tensor, at, at + size))
                self.arena_bytes[tensor.storage] = max(self.arena_bytes[tensor.storage], at + size)

    def _insert_barriers(self):
        last = {NODE: -1, TEAM: -1}  # ops before which a barrier of at least that strength stands
        recent = []  # (op, bytes, writes, storage) since the last team barrier
        for i, op in enumerate(self.ops):
            op.barrier = NONE
            mine = list(self._accesses(op))
            for j, place, writes, storage in recent:
                level = TEAM if storage == SHARED else NODE
                if last[level] > j:
                    continue
                if any((writes or w) and s == storage and place[0] < p[1] and p[0] < place[1] for p, w, s in mine):
                    op.barrier = max(op.barrier, level)
            if op.barrier:
                last[NODE] = i
            if op.barrier == TEAM:
                last[TEAM] = i
                recent = []
            recent += [(i, *access) for access in mine]

    def _accesses(self, op):
        for (_, mode, _), tensor in zip(_OPS[op.name][1], op.tensors):
            if tensor is None:
                continue
            place = (tensor.offset, tensor.offset + self._parts_of(tensor)[1])
            if tensor.offset < 0:  # not laid out yet, or a sequence's KV memory: a place of its own
                place = (-2 - id(tensor), -1 - id(tensor))
            yield place, mode == "w", tensor.storage

    def arrays(self):
        """(ops, tensors) as `_core.Plan` takes them."""
        number = {id(t): i for i, t in enumerate(self.tensors)}
        weight = {id(w): i for i, w in enumerate(self.weights)}
        ops = np.zeros(len(self.ops), _core.OP_DTYPE)
        ops["t"], ops["w"] = -1, -1
        for record, op in zip(ops, self.ops):
            record["code"], record["barrier"], record["selected"] = _OPS[op.name][0], op.barrier, op.selected
            for field_name, values in (("t", [-1 if t is None else number[id(t)] for t in op.tensors]),
                                       ("w", [-1 if w is None else weight[id(w)] for w in op.weights]),
                                       ("i", op.ints), ("f", op.floats)):
                record[field_name][: len(values)] = values
        tensors = np.full(len(self.tensors), -1, _core.TENSOR_DTYPE)
        for record, tensor in zip(tensors, self.tensors):
            record["storage"], record["width"] = tensor.storage, tensor.width
            for form, offset in self._parts_of(tensor)[0].items():
                record[form] = tensor.offset + offset
        return ops, tensors

    # ---- looking -------------------------------------------------------------------------------------------------

    @property
    def kv_bytes(self) -> int:
        """Most bytes of KV memory that a sequence takes on its way to n_ctx positions."""
        return self.kv.bytes(self.n_ctx)

    @property
    def bytes_per_token(self) -> int:
        """Packed weight bytes that decoding one token reads, all nodes together."""
        return sum(w.packed_bytes for op in self.ops if op.name == "matmul" for w in op.weights)

    def barriers(self):
        """Number of barriers per step: (node, team)."""
        return tuple(sum(op.barrier == level for op in self.ops) for level in (NODE, TEAM))

    def __str__(self) -> str:
        layers = max(len(self.kv.layers), 1)
        node, team = self.barriers()
        lines = [f"{counted(len(self.ops), 'op')}, {counted(len(self.kv.layers), 'layer')}, {counted(self.n_nodes, 'node')}; "
                 f"barriers per step: {team} team, {node} node "
                 f"({team / layers:.1f} and {node / layers:.1f} per layer)",
                 f"activations: {self.arena_bytes[SHARED]:,} bytes shared, {self.arena_bytes[PER_NODE]:,} per node, "
                 f"{counted(self.n_batch, 'token')} a step"]
        for i, op in enumerate(self.ops):
            operands = " ".join(
                f"{operand}={tensor.name}[{tensor.width}]" for (operand, _, _), tensor in zip(_OPS[op.name][1], op.tensors) if tensor)
            weights = " ".join(w.name for w in op.weights if w is not None)
            lines.append(f"{i:4d} {('', 'node', 'TEAM')[op.barrier]:4} {op.name:10} {operands}  {weights}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Plan of {counted(len(self.ops), 'op')}, {counted(len(self.kv.layers), 'layer')}>"

    def _repr_html_(self) -> str:
        *head, ops = str(self).split("\n", 2)
        shown = "<br>".join(map(html.escape, head))
        return f'<p>{shown}</p><pre style="max-height: 30em; overflow: auto">{html.escape(ops)}</pre>'


__all__ = ["KV_TYPES", "Attention", "Plan", "Tensor", "Vector"]
