"""The plan: a model's forward pass as a list of typed ops, checked, with the weakest barriers that keep it right.

An architecture calls the methods of `Plan` in the order of the paper's equations.  Each checks its operands and appends one op
of csrc/ops/ops.def.  `compile` then lays tensors out in memory (reusing what is no longer read) and computes the barriers: two
ops that touch the same bytes, one of them writing, need a barrier between them: within the node if each node has its own copy of
the bytes, across the team if they are shared.
"""

import html
from bisect import bisect_right, insort
from dataclasses import dataclass, field

import numpy as np

from .. import _core
from ..errors import CorruptModel, PlanError, UnsupportedModel
from ..summary import counted
from .cache import KV_TYPES, UNIT, LayerCache, Layout
from .weights import Matrix, Vector

SHARED, PER_NODE = 0, 1
NONE, NODE, TEAM = 0, 1, 2
FLOAT, OFFSET, MINIMUM, SIGNED, NESTED = range(5)  # panel kinds of csrc/formats/formats.h
_SUMS = {OFFSET: "s", MINIMUM: "m", NESTED: "s"}  # the form beside "q" that a kind needs
_ACTIVATIONS = {"gelu": 0, "relu^2": 1, "xielu": 2, "clamp": 3}
_GATING = {"softmax": 0, "sigmoid": 1, "chosen": 2, "sqrtsoftplus": 3, "late": 4}
_GATES = {"silu": 0, "gelu": 1, "sigmoid": 2, "clamped": 3, "limited": 4}
_ALIGN = 64
_ATTENTION_INTS = _core.attention_ints()
MOST_RUNS = 64  # of chunks, that a query's attention is summed in: bits depend on it beyond so many chunks
PART_SEQUENCES = 16  # of the longest kind, whose attention can be spread over workers run by run; of shorter ones, more


@dataclass(eq=False)
class Tensor:
    """An activation: for each token of a step `per_token` rows of `width` values, written once.

    Forms are what its readers need: ``f`` floats, ``q`` quants with their scales, ``m`` and ``s`` sums of quants; or ``i`` alone:
    the values are not float32 but int32 ids.
    """

    name: str
    width: int
    storage: int
    forms: set = field(default_factory=set)
    per_token: int = 1
    source: Matrix | None = None  # of the rows that a matrix made
    n_bytes: int = 0  # set for tensors that are not [tokens][per_token][width]
    first: int = -1  # ops that write and last touch it
    last: int = -1
    is_read: bool = False
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
    norm_last : bool
        Where there are q/k norms, they come after the rotation.
    temperature : float
    floor : int
        Queries at position p are multiplied by 1 + temperature * log(floor(p / floor) + 1); 0 positions: by nothing.
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
    norm_last: bool = False
    temperature: float = 0.0
    floor: int = 0


@dataclass(frozen=True)
class Cost:
    """What an op asks of the machine in one step, all nodes together.

    Attributes
    ----------
    n_bytes : int
        Packed weight bytes that are read.
    macs : int
        Multiply-adds.
    exchanged : int
        Bytes of matrices' results that every node reads, its own share among them.
    """

    n_bytes: int = 0
    macs: int = 0
    exchanged: int = 0


@dataclass
class _Op:
    name: str
    tensors: list
    weights: list
    ints: tuple = ()
    floats: tuple = ()
    selected: bool = False
    matrices: tuple = ()  # of the weights, those that it multiplies its rows by
    per_token: int = 1  # rows that each of them meets for a row of the step
    cache: LayerCache | None = None  # of attention's ops
    barrier: int = NONE

    @property
    def attention(self):
        """The integers of attention's ops by the names of csrc/ops/attention.def."""
        return dict(zip(_ATTENTION_INTS, self.ints, strict=True))

    def products(self, rows):
        """(matrix, bytes read, multiply-adds) of what the op multiplies in a step of so many rows.

        Of experts at most as many are read as rows meet one each: those of a single token exactly.
        """
        met = rows * self.per_token
        return [(w, w.packed_bytes // w.experts * min(w.experts, met), met * w.n * w.k) for w in self.matrices]

    def cost(self, rows):
        """`Cost` in a step of so many rows: tokens, or those whose logits are wanted where the op is `selected`."""
        found = self.products(rows)
        read = (t for (_, mode, _), t in zip(_OPS[self.name][1], self.tensors) if t is not None and mode == "r")
        exchanged = sum(4 * rows * t.per_token * t.width for t in read if t.source is not None and t.storage == SHARED)
        return Cost(sum(n_bytes for _, n_bytes, _ in found), sum(macs for *_, macs in found), exchanged)


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
        self.spared = []  # weights that this plan was given and has no use for: those of the logits, for hidden states
        self.whole = set()  # matrices that every node needs whole
        self._known = set()  # ids of `weights`
        self.arena_bytes = [0, 0]
        self.out_width = 0

    # ---- ops -----------------------------------------------------------------------------------------------------

    def embed(self, table, scale=1.0, positions=None):
        """Rows of the embedding table (V, D), scaled, plus the row of each token's position (P, D), if any: x, one copy per node.

        Raises
        ------
        UnsupportedModel
            The context is longer than the table of positions.
        """
        self._is_matrix("embed", table)
        x = self._tensor("x", table.k, PER_NODE, "f")
        if positions is not None:
            self._is_matrix("embed", positions)
            if positions.k != table.k:
                self._refuse(f"embed: operand positions ({positions.name}) has width {positions.k}, wanted {table.k}", positions)
            if positions.n < self.n_ctx:
                raise UnsupportedModel("n_ctx", self.n_ctx, [f"up to {positions.n}, as many rows as {positions.name} has"])
        return self._add("embed", [x], [table, positions], floats=(scale,))

    def rope_table(self, frequencies, factor=1.0):
        """cos and sin of position * frequency: (T, rope_dim), for the `attend` ops that share it."""
        table = self._tensor("rope", 2 * frequencies.n, PER_NODE, "f")
        return self._add("rope_table", [table], [frequencies], floats=(factor,))

    def norm(self, x, w, eps, y=None, post=None, selected=False, *, z=None, z_post=None, layer=False):
        """RMS norm, or LayerNorm, of a residual stream: returns (x', h), x' = x + y + z and h = norm(x') * w, plus w's bias if it has one.

        Parameters
        ----------
        x : Tensor
            The stream, one copy per node.
        w : Vector or None
            None: h = norm(x').
        eps : float
            Added to the mean of squares.
        y, z : Tensor, optional
            What joins the stream, y first; without, x' is x.
        post, z_post : Vector, optional
            y, or z, is normed by it (and its bias) before it is added.
        selected : bool
            h for the rows alone whose logits are wanted, no x'.
        layer : bool
            LayerNorm (arXiv:1607.06450), which subtracts the mean; all norms of the op are of one kind.
        """
        if y is None and z is not None:
            raise PlanError("norm: operand z without y")
        added = self._joining("norm", x, (y, z), (w, post, z_post), selected)
        out = x if y is None or selected else self._like(x, "x", "f")
        h = self._like(x, "h")
        self._normed(x, added, out if out is not x else None, h, (w, post, z_post), eps, selected, layer)
        return out, h

    def add(self, x, y, post=None, *, z=None, z_post=None, eps=0.0, layer=False):
        """x' alone of what `norm` returns."""
        added = self._joining("add", x, (y, z), (None, post, z_post))
        out = self._like(x, "x", "f")
        self._normed(x, added, out, None, (None, post, z_post), eps, False, layer)
        return out

    def _joining(self, op, x, added, vectors, selected=False):
        """Checks what a norm is given; what is added to the stream, on every node."""
        self._check(op, "x", x, x.width, 1 if selected else x.per_token)
        for name, vector in zip(("w", "post", "z_post"), vectors):
            if vector is not None:
                self._is_vector(op, name, vector, x.width)
        for name, tensor in zip("yz", added):
            if tensor is not None:
                self._check(op, name, tensor, x.width, x.per_token)
        return [t if t is None else self._near(t) for t in added]

    def _normed(self, x, added, out, h, vectors, eps, selected, layer):
        biases = [None if v is None else v.bias for v in vectors]
        self._add("norm", [x, *added, out, h], [*vectors, *biases], ints=(int(selected), int(layer)), floats=(eps,), selected=selected)

    def normed(self, x, w, eps):
        """RMS norm of what a matrix made, whole rows: (T, D), one copy per node."""
        h = self.norm(self._near(x), w, eps)[1]
        h.forms.add("f")
        return h

    def matmul(self, h, *matrices, scale=1.0):
        """y_j = scale * (W_j h + W_j's bias) for matrices (N_j, K): shared tensors of width N_j; up to three make one stage."""
        if not 1 <= len(matrices) <= 3:
            raise PlanError(f"matmul: takes one to three matrices, found {len(matrices)}")
        for w in matrices:
            self._reads("matmul", h, w)
        outs = [self._tensor(w.short_name, w.n, SHARED, "f", per_token=h.per_token, source=w) for w in matrices]
        self._multiply(h, outs, matrices, scale=scale)
        return outs[0] if len(outs) == 1 else outs

    def logits(self, h, w, scale=1.0, softcap=0.0):
        """The plan's result for the selected rows: y = scale * (W h + W's bias), or softcap * tanh(y / softcap); or h itself, if that
        was asked for."""
        self._check("logits", "h", h, h.width)
        if self._hidden:
            h.forms.add("f")
            self.out_width = h.width
            self.spared += [] if w is None else [w] if w.bias is None else [w, w.bias]
            self._add("emit", [h], [], selected=True)
            return
        self._reads("matmul", h, w)
        self.out_width = w.n
        self._multiply(h, [], [w], selected=True, scale=scale, softcap=softcap)

    def _multiply(self, h, outs, matrices, selected=False, scale=1.0, softcap=0.0):
        none = [None] * (3 - len(matrices))
        self._add("matmul", [h, *outs], [*matrices, *none, *(w.bias for w in matrices)], floats=(scale, softcap), selected=selected,
                  matrices=matrices, per_token=h.per_token)

    def attend(self, q, k, v, a, rope=None, q_norm=None, k_norm=None, sinks=None):
        """Appends k, v to the sequence's KV memory and attends: o, one copy per node, width H * value_length.

        sinks : Vector, optional
            (H,) a score of each head that takes part in its softmax and adds nothing (arXiv:2309.17453).
        """
        for name, tensor, heads, count, key, width in (("q", q, "head_count", a.heads, "key_length", a.key_length),
                                                       ("k", k, "head_count_kv", a.kv_heads, "key_length", a.key_length),
                                                       ("v", v, "head_count_kv", a.kv_heads, "value_length", a.value_length)):
            self._check("attend", name, tensor, count * width, of=f" (attention.{heads} = {count} of {key} {width})")
        if a.heads % a.kv_heads or a.key_length % 16 or a.value_length % 16 or a.rope_dim % 2 or a.rope_dim > a.key_length:
            raise PlanError(f"attend: heads must be a multiple of kv-heads, head widths multiples of 16, rope_dim even and at "
                            f"most the key width; found {a}")
        if rope is not None:
            self._check("attend", "rope", rope, a.rope_dim)
        for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
            if norm is not None:
                self._is_vector("attend", name, norm, a.key_length)
        if sinks is not None:
            self._is_vector("attend", "sinks", sinks, a.heads)
        q = self._near(q)
        if self.n_chunks >= 2**31:
            raise PlanError(f"attend: a context of {self.n_ctx} tokens; wanted less than {2**31 * _core.CHUNK}")
        cache = self.kv.add(a.kv_heads, a.key_length, a.value_length, a.window)
        named = {"heads": a.heads, "kv_heads": a.kv_heads, "e": a.key_length, "ev": a.value_length,
                 "n_rot": a.rope_dim if rope is not None else 0, "neox": int(a.neox), "window": a.window, "kv_type": self.kv.type,
                 "most_runs": MOST_RUNS, "part_runs": self._part_runs, "turn": self.kv.turn,
                 "norm_last": int(a.norm_last), "floor": a.floor,
                 "table": 0, "offset": 0, "stride": 0}  # fmt: skip  # these three come with `compile`
        ints = [named[name] for name in _ATTENTION_INTS]
        # Each head stays with one node where heads divide evenly; else its chunks go round, and all nodes read them.
        kv = self._tensor(f"kv {len(self.kv.layers) - 1}", 0, PER_NODE if a.kv_heads % self.n_nodes == 0 else SHARED)
        parts = self._tensor("parts", 0, SHARED, "f")
        parts.n_bytes = self._part_runs * a.heads * (a.value_length + 16) * 4
        rows = self._tensor("rows", a.heads * a.value_length, SHARED, "f")
        o = self._tensor("o", rows.width, PER_NODE)
        self._add("kv_append", [k, v, rope, kv], [k_norm], ints, (a.eps,), cache=cache)
        self._add("attend", [q, rope, kv, parts, rows], [q_norm, sinks], ints, (a.eps, a.scale, a.softcap, a.temperature), cache=cache)
        return self._add("combine", [parts, rows, o], [sinks], ints, cache=cache)

    def gated(self, gate, up, activation, alpha=1.0, limit=0.0):
        """activation(gate) * up: one copy per node.

        Parameters
        ----------
        gate, up : Tensor
            up None: gate's rows hold both, one half behind the other.
        activation : {"silu", "gelu", "sigmoid", "clamped", "limited"}
            "clamped" is a / (1 + exp(-alpha a)) (b + 1), a being min(gate, limit) and b `up` from -limit to limit (arXiv:2508.10925);
            "limited" is min(silu(gate), limit) b.
        alpha, limit : float
        """
        self._check("gated", "gate", gate, gate.width, gate.per_token)
        if activation not in _GATES:
            raise PlanError(f"gated: activation {activation!r}; wanted one of {', '.join(_GATES)}")
        if up is None and gate.width % 2:
            self._refuse(f"gated: operand gate ({gate.name}) has width {gate.width}, wanted an even one, two halves", gate.source)
        if up is not None:
            self._check("gated", "up", up, gate.width, gate.per_token)
        a = self._tensor("a", gate.width // (2 if up is None else 1), PER_NODE, per_token=gate.per_token)
        return self._add("gated", [gate, up, a], [], ints=(_GATES[activation],), floats=(alpha, limit))

    def activate(self, x, activation, constants=()):
        """activation(x), one copy per node: "gelu", "relu^2", "xielu" with its four constants (csrc/ops/activate.c), or "clamp" with one:
        what lies beyond it, or beyond its negative, becomes that."""
        self._check("activate", "x", x, x.width, x.per_token)
        if activation not in _ACTIVATIONS or len(constants) != {"xielu": 4, "clamp": 1}.get(activation, 0):
            raise PlanError(f"activate: activation {activation!r} with {counted(len(constants), 'constant')}; wanted 'gelu', 'relu^2', "
                            "'xielu' with four, or 'clamp' with one")
        a = self._tensor("a", x.width, PER_NODE, per_token=x.per_token)
        return self._add("activate", [x, a], [], ints=(_ACTIVATIONS[activation],), floats=constants)

    def score(self, h, w):
        """W h, plus W's bias, on every node for itself: for a matrix so small that a barrier of the team would cost more, as a router's."""
        self._reads("score", h, w)
        self.whole.add(w)
        y = self._tensor(w.short_name, w.n, PER_NODE, "f", per_token=h.per_token, source=w)
        return self._add("score", [h, y], [w, None, None, w.bias], matrices=[w], per_token=h.per_token)

    def route(self, scores, used, *, gating="softmax", bias=None, normed=False, scale=1.0, groups=1, groups_used=1):
        """Chooses experts: (ids, weights), both (T, used), the best first, of equal ones that with the lower index.

        Parameters
        ----------
        scores : Tensor
            (T, E), one copy per node.
        used : int
            Experts per token.
        gating : {"softmax", "sigmoid", "chosen", "sqrtsoftplus", "late"}
            Weights are the softmax of all scores, their sigmoids, the softmax of the chosen scores alone, sqrt(log(1 + exp(score))), or
            "late": sigmoids of the chosen scores, which differ in the choice where sigmoids round to 1.
        bias : Vector, optional
            (E,) added for choosing, not for weighing.
        normed : bool
            Weights are divided by their sum.
        scale : float
            Factor on the weights.
        groups, groups_used : int
            The experts stand in groups, of which those with the highest sums of their two best are chosen from.
        """
        self._check("route", "scores", scores, scores.width)
        if gating not in _GATING:
            raise PlanError(f"route: gating {gating!r}; wanted one of {', '.join(_GATING)}")
        if scores.storage != PER_NODE or not (0 < groups <= 64 and scores.width % groups == 0 and 0 < groups_used <= groups
                                              and 0 < used <= scores.width // groups * groups_used):  # fmt: skip
            raise PlanError(f"route: {used} of {scores.width} experts, in {groups_used} of {groups} groups, by scores of {scores.name}; "
                            f"wanted groups of equal size, at most 64, with enough experts, and scores on every node")
        if bias is not None:
            self._is_vector("route", "bias", bias, scores.width)
        ids, weights = self._tensor("ids", used, PER_NODE, "i"), self._tensor("weights", used, PER_NODE, "f")
        self._add("route", [scores, ids, weights], [bias], (_GATING[gating], int(normed), groups, groups_used), (scale,))
        return ids, weights

    def matmul_grouped(self, h, ids, *matrices):
        """y_j of row (t, s): W_j[ids[t, s]] h, plus that expert's bias, for matrices (E, N_j, K): shared tensors of `used` rows per token.

        h has one row per token, or `used`.  Without ids slot s of every token meets matrix s, of all E.
        """
        if not 1 <= len(matrices) <= 3:
            raise PlanError(f"matmul_grouped: takes one to three matrices, found {len(matrices)}")
        experts = matrices[0].experts if isinstance(matrices[0], Matrix) else 1
        if ids is not None and (ids.forms != {"i"} or ids.storage != PER_NODE):
            raise PlanError(f"matmul_grouped: operand ids ({ids.name}) holds floats, wanted ids")
        used = experts if ids is None else ids.width
        if h.per_token not in (1, used):
            raise PlanError(f"matmul_grouped: operand h ({h.name}) has {h.per_token} rows per token, wanted 1 or {used}")
        for w in matrices:
            self._reads("matmul_grouped", h, w, experts)
        outs = [self._tensor(w.short_name, w.n, SHARED, "f", per_token=used, source=w) for w in matrices]
        none = [None] * (3 - len(matrices))
        self._add("matmul_grouped", [h, ids, *outs], [*matrices, *none, *(w.bias for w in matrices)], matrices=matrices, per_token=used)
        return outs[0] if len(outs) == 1 else outs

    def weigh(self, h, weights, gate=None):
        """(T, used, D): h, (T, D) or (T, used, D), times each of a token's weights (T, used), one copy per node.

        gate : {None, "sigmoid", "softplus"}
            What is made of the weights first.
        """
        self._check("weigh", "weights", weights, weights.width)
        self._check("weigh", "h", h, h.width, 1 if h.per_token == 1 else weights.width)
        h = self._near(h)
        return self._add("weigh", [h, weights, self._tensor("weighed", h.width, PER_NODE, per_token=weights.width)], [],
                         ints=((None, "sigmoid", "softplus").index(gate),))

    def join(self, heads, a, b=None, apart=False):
        """Parts of each of so many heads, that of a first, one copy per node: (T, heads * width), or (T, heads, width) if `apart`.

        Parameters
        ----------
        heads : int
            Pieces of equal width that a token's values are, in rows of their own or not.
        a, b : (Tensor, int, int)
            What is cut, and of every piece the first value and how many.
        apart : bool
        """
        ints, tensors, width = [heads], [], 0
        for operand, (tensor, first, count) in zip("ab", (a, b or (None, 0, 0))):
            if tensor is not None:
                self._check("join", operand, tensor, tensor.width, tensor.per_token)
                piece, left = divmod(tensor.width * tensor.per_token, heads)
                if left or first < 0 or count < 1 or first + count > piece:
                    self._refuse(f"join: operand {operand} ({tensor.name}) has {tensor.per_token} x {tensor.width} values, wanted {heads} "
                                 f"pieces of at least {first + count}", tensor.source)
            ints, tensors, width = [*ints, first, count], [*tensors, tensor], width + count
        shape = {"per_token": heads} if apart else {}
        out = self._tensor("join", width if apart else heads * width, PER_NODE, **shape)
        return self._add("join", [*tensors, out], [], ints=ints)

    def mix(self, y, weights, also=None, gate=None, scale=1.0):
        """Sum of a token's rows of y (T, used, D) times weights (T, used), in order; plus `also` (T, D), times sigmoid(gate (T, 1)).

        weights : None for 1.
        scale : a factor on all of it.
        """
        self._check("mix", "y", y, y.width, y.per_token)
        if weights is not None:
            self._check("mix", "weights", weights, y.per_token)
        if also is not None:
            self._check("mix", "also", also, y.width)
        if gate is not None:
            self._check("mix", "gate", gate, 1)
        out = self._tensor("mix", y.width, PER_NODE, "f")
        return self._add("mix", [y, weights, also, gate, out], [], floats=(scale,))

    # ---- building ------------------------------------------------------------------------------------------------

    def _tensor(self, name, width, storage, *forms, **more):
        tensor = Tensor(name, width, storage, set(forms), **more)
        self.tensors.append(tensor)
        return tensor

    def _like(self, x, name, *forms):
        """A tensor of x's shape on every node."""
        return self._tensor(name, x.width, PER_NODE, *forms, per_token=x.per_token)

    def _add(self, name, tensors, weights, ints=(), floats=(), selected=False, matrices=(), per_token=1, cache=None):
        while weights and weights[-1] is None:
            weights.pop()
        for w in weights:
            if w is not None and id(w) not in self._known:
                self._known.add(id(w))
                self.weights.append(w)
        index = len(self.ops)
        for (operand, mode, _), tensor in zip(_OPS[name][1], tensors):
            if tensor is None:
                continue
            tensor.last = index
            tensor.is_read |= mode == "r"
            if mode == "r" and not matrices and "i" not in tensor.forms:
                tensor.forms.add("f")  # what multiplies matrices has asked for the forms that these take
            if mode == "w" and tensor.first < 0:
                tensor.first = index
            elif tensor.first < 0:
                raise PlanError(f"{name}: operand {operand} ({tensor.name}) is read before any op writes it")
        self.ops.append(_Op(name, tensors, weights, tuple(ints), tuple(floats), selected, tuple(matrices), per_token, cache))
        return next((t for (_, mode, _), t in reversed(list(zip(_OPS[name][1], tensors))) if mode == "w"), None)

    @staticmethod
    def _refuse(says, weight=None):
        """Raise CorruptModel where the weight is a file's, which then does not fit the others; else PlanError."""
        if weight is not None and weight.path is not None:
            raise CorruptModel(weight.path, says)
        raise PlanError(says)

    def _check(self, op, operand, x, width, rows=1, of=""):
        """Whether an operand (Tensor or Vector) has that width, and a Tensor floats and so many rows per token; of: why that width."""
        weight = x.source if isinstance(x, Tensor) else x
        name = x.name if weight is None else weight.name
        found = x.width if isinstance(x, Tensor) else x.n
        if found != width:
            self._refuse(f"{op}: operand {operand} ({name}) has width {found}, wanted {width}{of}", weight)
        if isinstance(x, Tensor) and "i" in x.forms:
            raise PlanError(f"{op}: operand {operand} ({name}) holds ids, wanted floats")
        if isinstance(x, Tensor) and x.per_token != rows:
            raise PlanError(f"{op}: operand {operand} ({name}) has {counted(x.per_token, 'row')} per token, wanted {rows}")

    def _is_matrix(self, op, w, experts=1):
        if not isinstance(w, Matrix):
            self._refuse(f"{op}: operand {w.name} is a vector of {w.n} values, wanted a matrix", w)
        if w.experts != experts:
            self._refuse(f"{op}: operand {w.name} has {counted(w.experts, 'matrix', 'matrices')} of {w.n} x {w.k} values, "
                         f"wanted {experts}", w)

    def _is_vector(self, op, operand, w, n):
        if not isinstance(w, Vector):
            self._refuse(f"{op}: operand {operand} ({w.name}) is a matrix of {w.n} x {w.k} values, wanted a vector of {n}", w)
        self._check(op, operand, w, n)

    def _near(self, tensor):
        """The tensor on every node, for an op whose workers each read all of it."""
        if tensor.storage == PER_NODE or self.n_nodes == 1:
            return tensor
        near = self._tensor(tensor.name, tensor.width, PER_NODE, "f", per_token=tensor.per_token, source=tensor.source)
        return self._add("gather", [tensor, near], [])

    def _reads(self, op, h, w, experts=1):
        self._is_matrix(op, w, experts)
        self._check(op, "h", h, h.width, h.per_token)
        if w.k != h.width:
            self._refuse(f"{op}: operand W ({w.name}) has width {w.k}, wanted {h.width}", w)
        if w.kind == FLOAT:
            h.forms.add("f")
        else:
            h.forms |= {"q"} | ({_SUMS[w.kind]} if w.kind in _SUMS else set())

    # ---- compiling -----------------------------------------------------------------------------------------------

    def compile(self):
        """Lay out the tensors and compute the barriers; call once, after the last op.  Returns self.

        Raises
        ------
        PlanError
            No op reads a tensor that another writes.
        """
        for tensor in self.tensors:
            if not tensor.is_read:
                raise PlanError(f"op {tensor.first} ({self.ops[tensor.first].name}) writes {tensor.name} of width {tensor.width}, but "
                                f"no op reads it")
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
        rows, at, offsets = self.n_batch * tensor.per_token, 0, {}
        if tensor.n_bytes:
            return {"f": 0}, tensor.n_bytes
        sizes = {"f": 4 * tensor.width, "q": tensor.width, "d": tensor.width // 8, "m": tensor.width // 8, "s": tensor.width // 8,
                 "i": 4 * tensor.width}
        for form in ("f", "q", "d", "m", "s", "i"):
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

        placed = {SHARED: [], PER_NODE: []}  # (first byte, end, last op before whose end it may not be overwritten)
        for tensor in sorted(self.tensors, key=lambda t: t.first):
            _, size = self._parts_of(tensor)
            if not size:
                continue
            at, mine = 0, placed[tensor.storage]
            mine[:] = [entry for entry in mine if entry[2] >= tensor.first]
            for start, end, _ in mine:
                if start < at + size and at < end:
                    at = end
            tensor.offset = at
            insort(mine, (at, at + size, dies(tensor)))
            self.arena_bytes[tensor.storage] = max(self.arena_bytes[tensor.storage], at + size)

    def _insert_barriers(self):
        last = {NODE: -1, TEAM: -1}  # ops before which a barrier of at least that strength stands
        recent = []  # (op, first byte, end, writes, storage) since the last team barrier
        places = {id(t): self._place(t) for t in self.tensors}
        for i, op in enumerate(self.ops):
            op.barrier = NONE
            mine = [(*places[id(t)], mode == "w", t.storage) for (_, mode, _), t in zip(_OPS[op.name][1], op.tensors) if t is not None]
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

    def _place(self, tensor):
        """(first byte, end) of a tensor; one that is not laid out yet, or a sequence's KV memory, has a place of its own."""
        if tensor.offset < 0:
            return -2 - id(tensor), -1 - id(tensor)
        return tensor.offset, tensor.offset + self._parts_of(tensor)[1]

    def arrays(self):
        """(ops, tensors) as `_core.Plan` takes them."""
        number = {id(t): i for i, t in enumerate(self.tensors)}
        weight = {id(w): i for i, w in enumerate(self.weights)}
        ops = np.zeros(len(self.ops), _core.OP_DTYPE)
        ops["t"], ops["w"] = -1, -1
        for name, values in (("code", (_OPS[op.name][0] for op in self.ops)), ("barrier", (op.barrier for op in self.ops)),
                             ("selected", (op.selected for op in self.ops))):  # fmt: skip
            ops[name] = list(values)
        t, w, ints, floats = ops["t"], ops["w"], ops["i"], ops["f"]
        for i, op in enumerate(self.ops):
            t[i, : len(op.tensors)] = [-1 if x is None else number[id(x)] for x in op.tensors]
            w[i, : len(op.weights)] = [-1 if x is None else weight[id(x)] for x in op.weights]
            ints[i, : len(op.ints)], floats[i, : len(op.floats)] = op.ints, op.floats
        tensors = np.full(len(self.tensors), -1, _core.TENSOR_DTYPE)
        for name in ("storage", "width", "per_token"):
            tensors[name] = [getattr(tensor, name) for tensor in self.tensors]
        for i, tensor in enumerate(self.tensors):
            for form, offset in self._parts_of(tensor)[0].items():
                tensors[form][i] = tensor.offset + offset
        return ops, tensors

    # ---- looking -------------------------------------------------------------------------------------------------

    @property
    def kv_bytes(self) -> int:
        """Most bytes of KV memory that a sequence takes on its way to n_ctx positions."""
        return self.kv.bytes(self.n_ctx)

    @property
    def bytes_per_token(self) -> int:
        """Packed weight bytes that decoding one token reads, all nodes together."""
        return sum(op.cost(1).n_bytes for op in self.ops)

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
                f"{operand}={tensor.name}[{_shown(tensor)}]" for (operand, _, _), tensor in zip(_OPS[op.name][1], op.tensors) if tensor)
            weights = " ".join(w.name for w in op.weights if w is not None)
            lines.append(f"{i:4d} {('', 'node', 'TEAM')[op.barrier]:4} {op.name:10} {operands}  {weights}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Plan of {counted(len(self.ops), 'op')}, {counted(len(self.kv.layers), 'layer')}>"

    def _repr_html_(self) -> str:
        *head, ops = str(self).split("\n", 2)
        shown = "<br>".join(map(html.escape, head))
        return f'<p>{shown}</p><pre style="max-height: 30em; overflow: auto">{html.escape(ops)}</pre>'


def _shown(tensor):
    """"128", or "8x128" for eight rows per token."""
    return str(tensor.width) if tensor.per_token == 1 else f"{tensor.per_token}x{tensor.width}"


__all__ = ["KV_TYPES", "Attention", "Cost", "Plan", "Tensor", "Vector"]
