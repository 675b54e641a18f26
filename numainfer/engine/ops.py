"""The vocabulary of a plan: activations, ops with their operands and costs, and the names of their choices.

What an op is called and which operands it takes is declared in csrc/ops/ops.def; the integers of attention's ops in attention.def.
"""

from dataclasses import dataclass, field

from .. import _core
from .layout import LayerCache, Rows
from .states import StatePart
from .weights import Matrix

SHARED, PER_NODE = 0, 1
NONE, NODE, TEAM = 0, 1, 2
FLOAT, OFFSET, MINIMUM, SIGNED, NESTED, NESTED_MINIMUM = range(6)  # panel kinds of csrc/formats/formats.h
SUMS = {OFFSET: "s", MINIMUM: "m", NESTED: "s", NESTED_MINIMUM: "s"}  # the form beside "q" that a kind needs
ACTIVATIONS = {"gelu": 0, "relu^2": 1, "xielu": 2, "clamp": 3, "above": 4}
GATING = {"softmax": 0, "sigmoid": 1, "chosen": 2, "sqrtsoftplus": 3, "late": 4, "sparse": 5}
GATES = {"silu": 0, "gelu": 1, "sigmoid": 2, "clamped": 3, "limited": 4, "relu": 5, "product": 6, "situ": 7, "capped": 8}
ATTENTION_INTS = _core.attention_ints()
_ALIGN = 64  # bytes: a line of the cache, and the widest vector


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

    def parts(self, n_batch):
        """({form: byte offset within the tensor}, its size) for steps of at most so many tokens."""
        rows, at, offsets = n_batch * self.per_token, 0, {}
        if self.n_bytes:
            return {"f": 0}, self.n_bytes
        sizes = {"f": 4 * self.width, "q": self.width, "d": self.width // 8, "m": self.width // 8, "s": self.width // 8,
                 "i": 4 * self.width}
        for form in ("f", "q", "d", "m", "s", "i"):
            if form in self.forms or (form == "d" and "q" in self.forms):
                offsets[form] = at
                at += -(-rows * sizes[form] // _ALIGN) * _ALIGN
        return offsets, at


@dataclass(frozen=True)
class Attention:
    """Shape of one attention layer.

    Attributes
    ----------
    heads, kv_heads : int
        H and G; H is a multiple of G.
    key_length, value_length : int
        Head widths; KV memory pads them with zeros to multiples of 16.
    rope_dim : int
        Values of a head that are rotated; 0 for none.
    neox : bool
        Pairs (i, i + rope_dim/2) instead of (2i, 2i+1).
    scale : float
        Factor on q . k.
    window : int
        Positions that a query sees, itself included; 0 for all before it.
    pieces : bool
        The window is cut at its multiples: a query sees from the last of them on.
    eps : float
        Of the q/k norms, where there are any.
    softcap : float
        Scores become softcap * tanh(score / softcap); 0 for none.
    norm_last : bool
        Where there are q/k norms, they come after the rotation.
    temperature : float
    floor, ahead : int
        Queries at position p are multiplied by 1 + temperature * log(floor((p + ahead) / floor) + 1); 0 positions: by nothing.
    rope_first : int
        The first of the values that are rotated.
    """

    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    rope_dim: int
    neox: bool
    scale: float
    window: int = 0
    pieces: bool = False
    eps: float = 0.0
    softcap: float = 0.0
    norm_last: bool = False
    temperature: float = 0.0
    floor: int = 0
    ahead: int = 0
    rope_first: int = 0


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
class Op:
    name: str
    tensors: list
    weights: list
    ints: tuple = ()
    floats: tuple = ()
    selected: bool = False
    matrices: tuple = ()  # of the weights, those that it multiplies its rows by
    per_token: int = 1  # rows that each of them meets for a row of the step
    cache: LayerCache | None = None  # of attention's ops
    rows: Rows | None = None  # compressed ones, of attention's ops
    state: StatePart | None = None  # of recurrent layers' ops
    barrier: int = NONE

    @property
    def attention(self):
        """The integers of attention's ops by the names of csrc/ops/attention.def."""
        return dict(zip(ATTENTION_INTS, self.ints, strict=True))

    def products(self, rows):
        """(matrix, bytes read, multiply-adds) of what the op multiplies in a step of so many rows.

        Of experts at most as many are read as rows meet one each: those of a single token exactly.
        """
        met = rows * self.per_token
        return [(w, w.packed_bytes // w.experts * min(w.experts, met), met * w.n * w.k) for w in self.matrices]

    def cost(self, rows):
        """`Cost` in a step of so many rows: tokens, or those whose logits are wanted where the op is `selected`."""
        found = self.products(rows)
        read = (t for (_, mode, _), t in zip(OPS[self.name][1], self.tensors) if t is not None and mode == "r")
        exchanged = sum(4 * rows * t.per_token * t.width for t in read if t.source is not None and t.storage == SHARED)
        return Cost(sum(n_bytes for _, n_bytes, _ in found), sum(macs for *_, macs in found), exchanged)


def _signatures():
    """Op name -> (code, [(operand, mode, optional)])."""
    found = {}
    for code, (name, signature) in enumerate(_core.ops()):
        operands = [part.partition(":")[::2] for part in signature.split()]
        found[name] = code, [(operand, mode[0], mode.endswith("?")) for operand, mode in operands]
    return found


OPS = _signatures()
