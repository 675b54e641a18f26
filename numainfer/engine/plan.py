"""The plan: a model's forward pass as a list of typed ops, checked, with the weakest barriers that keep it right.

An architecture calls the methods of `Plan` in the order of the paper's equations.  Each checks its operands and appends one op
of csrc/ops/ops.def.  `compile` then computes the barriers and lays tensors out in memory, reusing what is no longer read.
"""

from .. import _core
from ..errors import CorruptModel, PlanError, UnsupportedModel
from ..summary import counted
from .attending import Attending, longest_run
from .compiling import arrays, insert_barriers, lay_out
from .compressing import Compressing
from .hyper import Hyper
from .layout import UNIT, Layout
from .mixing import Mixing
from .ops import (ACTIVATIONS, ATTENTION_INTS, FLOAT, GATES, NODE, OPS, PER_NODE, SHARED, SUMS, TEAM, Op,
                  Tensor)  # fmt: skip
from .recurrent import Recurrent
from .streams import Streams
from .weights import Matrix, Vector

HEAD_ROWS = 16  # most rows of a step of a head that predicts further tokens: as many answers as are speculated for at once


class Plan(Attending, Compressing, Mixing, Recurrent, Streams, Hyper):
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
    head : Plan or None
        Of the layer that predicts a further token, where the file's is wanted; its weights count among this plan's.
    """

    def __init__(self, n_nodes, n_batch, n_ctx, hidden=False, kv_type="f16", kv_nodes=None):
        self.n_nodes, self.n_batch, self.n_ctx = n_nodes, n_batch, n_ctx
        self.n_chunks = -(-n_ctx // _core.CHUNK)
        self._hidden = hidden
        self.kv = Layout(kv_type, n_batch, kv_nodes or n_nodes, longest_run(n_ctx))  # no run is longer, so none has two owners
        self._least_parts = 0  # pieces of the longest list of chosen positions
        self.ops, self.tensors, self.weights = [], [], []
        self.spared = []  # weights that this plan was given and has no use for: those of the logits, for hidden states
        self.whole = set()  # matrices that every node needs whole
        self.experts = set()  # those among which a token's ids choose
        self._known = set()  # ids of `weights`
        self._lists = {}  # what `index` returned: how many of which blocks, for how many kv-heads
        self._compressed = {}  # what `compress` returned, and then `index`: the Rows that are attended to, or among which was chosen
        self._kept = {}  # what `attend` returned: its LayerCache, the tensor that stands for its memory, and the shape of that
        self.head = None  # Plan of the layer that predicts a further token, of the same `kv`; `make_head`
        self._for_head = self._of_head = None  # its LayerCache: what `keep` appends to; in the head's own plan, what `attend` reads
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
        """cos and sin of position * frequency: (T, rope_dim), for the `attend` ops that share it; left out if there are none."""
        table = self._tensor("rope", 2 * frequencies.n, PER_NODE, "f")
        return self._add("rope_table", [table], [frequencies], floats=(factor,))

    def norm(self, x, w, eps, y=None, post=None, selected=False, *, z=None, z_post=None, layer=False, kept=True):
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
        kept : bool
            False: nobody wants x', which is None then.
        """
        if y is None and z is not None:
            raise PlanError("norm: operand z without y")
        added = self._joining("norm", x, (y, z), (w, post, z_post), selected)
        out = x if y is None or selected else self._like(x, "x", "f") if kept else None
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
        self._add("norm", [x, *added, out, h], [*vectors, *biases], ints=(int(selected), int(layer), 1), floats=(eps,), selected=selected)

    def normed(self, x, w, eps):
        """RMS norm of what a matrix made, whole rows: (T, D), one copy per node."""
        h = self.norm(self._near(x), w, eps)[1]
        h.forms.add("f")
        h.source = x.source  # whose rows it still has, should they not fit what reads them
        return h

    def layer_normed(self, x, w, eps):
        """LayerNorm of what a matrix made, whole rows: (T, D), one copy per node."""
        h = self.norm(self._near(x), w, eps, layer=True)[1]
        h.forms.add("f")
        h.source = x.source
        return h

    def normed_heads(self, x, w, eps, heads):
        """LayerNorm of each of so many heads by its own part of w (heads * E,): (T, heads * E), one copy per node."""
        self._check("norm", "x", x, x.width)
        self._is_vector("norm", "w", w, x.width)
        x = self.join(heads, (x, 0, x.width // heads), apart=True)
        h = self._like(x, "h", "f")
        self._add("norm", [x, None, None, None, h], [w], ints=(0, 1, heads), floats=(eps,))
        return self.join(heads, (h, 0, h.width))

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

    def before(self, h, width):
        """The hidden state before each token, (T, width), one copy per node: the row before it of h, but of the first token of a segment
        what the step brings, or zeros.  Without h (None) each segment has one token."""
        if h is not None:
            self._check("before", "h", h, width)
        return self._add("before", [h, self._tensor("before", width, PER_NODE, "f")], [])

    def hand_out(self, h):
        """Give each token's row of h (T, D) to whoever runs the step, beside the result."""
        self._check("emit", "h", h, h.width)
        self._add("emit", [h], [], ints=(1,))

    def make_head(self):
        """The plan of a layer that predicts a further token: it attends to what `keep` has appended, and runs steps of few rows."""
        self.head = head = Plan(self.n_nodes, min(self.n_batch, HEAD_ROWS), self.n_ctx)
        head.kv, head._of_head = self.kv, self._for_head
        return head

    def _multiply(self, h, outs, matrices, selected=False, scale=1.0, softcap=0.0):
        none = [None] * (3 - len(matrices))
        self._add("matmul", [h, *outs], [*matrices, *none, *(w.bias for w in matrices)], floats=(scale, softcap), selected=selected,
                  matrices=matrices, per_token=h.per_token)

    def gated(self, gate, up, activation, alpha=1.0, limit=0.0):
        """activation(gate) * up: one copy per node.

        Parameters
        ----------
        gate, up : Tensor
            up None: gate's rows hold both, one half behind the other.
        activation : {"silu", "gelu", "sigmoid", "clamped", "limited", "capped", "relu", "product", "situ"}
            "clamped" is a / (1 + exp(-alpha a)) (b + 1), a being min(gate, limit) and b `up` from -limit to limit (arXiv:2508.10925);
            "limited" is min(silu(gate), limit) b; "capped" silu(a) b; "relu" max(gate, 0) up; "product" gate up; "situ" is
            alpha tanh(gate / alpha) sigmoid(gate) b, b being limit tanh(up / limit), or up where the limit is 0.
        alpha, limit : float
        """
        self._check("gated", "gate", gate, gate.width, gate.per_token)
        if activation not in GATES:
            raise PlanError(f"gated: activation {activation!r}; wanted one of {', '.join(GATES)}")
        if up is None and gate.width % 2:
            self._refuse(f"gated: operand gate ({gate.name}) has width {gate.width}, wanted an even one, two halves", gate.source)
        if up is not None and up.source is None and gate.width != up.width:  # then the gate's matrix is at fault
            self._check("gated", "gate", gate, up.width, gate.per_token)
        if up is not None:
            self._check("gated", "up", up, gate.width, gate.per_token)
        a = self._tensor("a", gate.width // (2 if up is None else 1), PER_NODE, per_token=gate.per_token)
        return self._add("gated", [gate, up, a], [], ints=(GATES[activation],), floats=(alpha, limit))

    def activate(self, x, activation, constants=()):
        """activation(x), one copy per node: "gelu", "relu^2", "xielu" with its four constants (csrc/ops/activate.c), "clamp" with one:
        what lies beyond it, or beyond its negative, becomes that; or "above" with one: what a value has more than its row's mean and so
        many standard deviations (of n - 1), or 0."""
        self._check("activate", "x", x, x.width, x.per_token)
        if activation not in ACTIVATIONS or len(constants) != {"xielu": 4, "clamp": 1, "above": 1}.get(activation, 0):
            raise PlanError(f"activate: activation {activation!r} with {counted(len(constants), 'constant')}; wanted 'gelu', 'relu^2', "
                            "'xielu' with four, 'clamp' or 'above' with one")
        if activation == "above":  # each worker reads whole rows
            if x.width < 2:
                self._refuse(f"activate: operand x ({x.name}) has width 1, of which there is no deviation", x.source)
            x = self._near(x)
        a = self._tensor("a", x.width, PER_NODE, per_token=x.per_token)
        return self._add("activate", [x, a], [], ints=(ACTIVATIONS[activation],), floats=constants)

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

    # ---- building ------------------------------------------------------------------------------------------------

    def _tensor(self, name, width, storage, *forms, **more):
        tensor = Tensor(name, width, storage, set(forms), **more)
        self.tensors.append(tensor)
        return tensor

    def _like(self, x, name, *forms):
        """A tensor of x's shape on every node."""
        return self._tensor(name, x.width, PER_NODE, *forms, per_token=x.per_token)

    def _add(self, name, tensors, weights, ints=(), floats=(), selected=False, matrices=(), per_token=1, cache=None,
             rows=None, state=None):
        while weights and weights[-1] is None:
            weights.pop()
        for w in weights:
            if w is not None and id(w) not in self._known:
                self._known.add(id(w))
                self.weights.append(w)
        index = len(self.ops)
        for (operand, mode, _), tensor in zip(OPS[name][1], tensors):
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
        self.ops.append(Op(name, tensors, weights, tuple(ints), tuple(floats), selected, tuple(matrices), per_token, cache, rows, state))
        return next((t for (_, mode, _), t in reversed(list(zip(OPS[name][1], tensors))) if mode == "w"), None)

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

    def gathered(self, x):
        """What a matrix made, one copy per node."""
        return self._near(x)

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
        elif h.storage == SHARED:
            raise PlanError(f"{op}: operand h ({h.name}) is a matrix's product, which nobody quantises; wanted it on every node, as `join` "
                            "puts it")
        else:
            h.forms |= {"q"} | ({SUMS[w.kind]} if w.kind in SUMS else set())

    # ---- compiling -----------------------------------------------------------------------------------------------

    def _leave_out(self, places):
        """Remove ops whose results nobody reads, with these, and with weights that no other op has."""
        for i in reversed(places):
            op = self.ops.pop(i)
            self.tensors = [t for t in self.tensors if t not in op.tensors]
            self.weights = [w for w in self.weights if w not in op.weights or any(w in other.weights for other in self.ops)]
            for tensor in self.tensors:
                tensor.first, tensor.last = (at - (at > i) for at in (tensor.first, tensor.last))

    def take(self, other):
        """Count another plan's weights as this one's, so that they are placed together."""
        self.weights += [w for w in other.weights if w not in self.weights]
        self.spared += other.spared
        self.whole |= other.whole
        self.experts |= other.experts

    def only_head(self):
        """Weights that are there for the head's sake: what its plan reads, and what is made for it of this one's rows."""
        if self.head is None:
            return set()
        at = next(i for i, op in enumerate(self.ops) if op.name == "before")
        model = {w for i, op in enumerate(self.ops) if i < at or op.selected for w in op.weights}
        return set(self.weights) - model - set(self.spared)

    def compile(self):
        """Lay out the tensors and compute the barriers; call once, after the last op.  Returns self.

        Raises
        ------
        PlanError
            No op reads a tensor that another writes.
        """
        self._leave_out([i for i, op in enumerate(self.ops) if op.name == "rope_table" and not op.tensors[0].is_read])
        for tensor in self.tensors:
            if not tensor.is_read:
                raise PlanError(f"op {tensor.first} ({self.ops[tensor.first].name}) writes {tensor.name} of width {tensor.width}, but "
                                f"no op reads it")
        self.kv.place()
        for op in self.ops:
            if op.state is not None:
                op.ints = self.kv.states.ints(op.state) + op.ints
            if op.cache is not None:
                named = op.attention | {"table": op.cache.kind.index, "offset": op.cache.offset // UNIT, "stride": op.cache.stride // UNIT,
                                        **self._room(), **_of_rows(op.rows)}  # fmt: skip
                if op.name == "attend":
                    op.tensors[3].n_bytes = named["part_runs"] * named["heads"] * (named["ev"] + 16) * 4
                op.ints = tuple(named[name] for name in ATTENTION_INTS)
        insert_barriers(self.ops, self.tensors, self.n_batch)  # what the flow of data needs
        self.arena_bytes = lay_out(self.ops, self.tensors, self.n_batch)  # reuses memory only across those
        insert_barriers(self.ops, self.tensors, self.n_batch)  # and is not taken at its word
        return self

    def arrays(self):
        """(ops, tensors) as `_core.Plan` takes them."""
        return arrays(self.ops, self.tensors, self.weights, self.n_batch)
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
        layers = max(sum(not layer.indexes and layer.readers > 0 and not layer.lists for layer in self.kv.layers), 1)
        node, team = self.barriers()
        lines = [f"{counted(len(self.ops), 'op')}, {counted(len(self.kv.layers), 'layer')}, {counted(self.n_nodes, 'node')}; "
                 f"barriers per step: {team} team, {node} node "
                 f"({team / layers:.1f} and {node / layers:.1f} per layer)",
                 f"activations: {self.arena_bytes[SHARED]:,} bytes shared, {self.arena_bytes[PER_NODE]:,} per node, "
                 f"{counted(self.n_batch, 'token')} a step"]
        rows = self._rows()
        name, operands = (max((len(row[i]) for row in rows), default=0) for i in (2, 3))
        lines += [f"{i:4d} {barrier:4} {op:{name}}  {what:{operands}}  {weights}".rstrip() for i, barrier, op, what, weights in rows]
        return "\n".join(lines)

    def _rows(self):
        """Per op: its place, the barrier before it, its name, its operands and its weights."""
        return [(i, ("", "node", "TEAM")[op.barrier], op.name,
                 " ".join(f"{operand}={t.name}[{_shown(t)}]" for (operand, _, _), t in zip(OPS[op.name][1], op.tensors) if t),
                 " ".join(w.name for w in op.weights if w is not None)) for i, op in enumerate(self.ops)]  # fmt: skip

    def __repr__(self) -> str:
        return f"<Plan of {counted(len(self.ops), 'op')}, {counted(len(self.kv.layers), 'layer')}>"

    def _repr_html_(self) -> str:
        from .. import looks

        first, second, *_ = str(self).split("\n", 2)
        ops = looks.table(("", "barrier", "op", "operands", "weights"), self._rows(), second, left=(1, 2, 3, 4))
        return looks.foldable(first, looks.Html(f'<div style="max-height:30em;overflow:auto">{ops}</div>'))


def _of_rows(rows):
    """The integers of attention's ops that say where a layer's compressed rows lie."""
    if rows is None:
        return {}
    at = rows.cache.kind.index, rows.cache.offset // UNIT, rows.first
    return dict(zip(("rows_table", "rows_offset", "rows_first"), at), ratio=rows.ratio)


def _shown(tensor):
    """"128", or "8x128" for eight rows per token."""
    return str(tensor.width) if tensor.per_token == 1 else f"{tensor.per_token}x{tensor.width}"
