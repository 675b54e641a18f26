"""Ops of layers that read their past through a state: methods of `Plan`."""

from ..errors import PlanError
from ..summary import counted
from .memory import round_up
from .ops import PER_NODE, SHARED
from .weights import Matrix, Vector

_LANES, _ROWS = 16, 4  # of a block of columns; rows of a state are a multiple of the latter (csrc/isa/recurrence.h)
_KERNEL, _CHANNELS = 16, 32  # taps of a convolution, at most; channels of a unit of its state (csrc/ops/short_conv.c)
GATE_KINDS = {"sigmoid": 0, "softplus": 1, "decay": 2, "bounded": 3}
ACTS = {"silu": 0, "sigmoid": 1}


def _name(x):
    """Of a tensor: the matrix that made it, if one did."""
    return x.name if x.source is None else x.source.name


class Recurrent:
    """Methods of `Plan`."""

    def short_conv(self, x, w, taps, bias=None, silu=True):
        """Causal convolution of each channel along positions, then SiLU: (T, C), one copy per node.

        Parameters
        ----------
        x : Tensor
            (T, C).
        w : Vector
            (taps * C,) factors: all channels' of the oldest input first, those of the token itself last.
        taps : int
            Positions that are read, the token's own included.
        bias : Vector, optional
            (C,).
        silu : bool
        """
        self._check("short_conv", "x", x, x.width)
        if not 2 <= taps <= _KERNEL:
            raise PlanError(f"short_conv: {counted(taps, 'tap')}; wanted 2 to {_KERNEL}")
        self._is_vector("short_conv", "w", w, taps * x.width)
        if bias is not None:
            self._is_vector("short_conv", "bias", bias, x.width)
        state = self.kv.states.add(-(-x.width // _CHANNELS), 4 * _CHANNELS * (taps - 1), rows=taps - 1)
        out = self._tensor("conv", x.width, PER_NODE, "f", source=x.source)
        return self._add("short_conv", [x, out], [w, bias], (taps, int(silu)), state=state)

    def gates(self, x, kind, bias=None, factor=None, pieces=1, first=0, count=None, bound=0.0):
        """Numbers of heads: (T, heads), one copy per node.

        Parameters
        ----------
        x : Tensor
        kind : {"sigmoid", "softplus", "decay", "bounded"}
            Of y = x + bias: its sigmoid, log(1 + exp(y)), exp(factor log(1 + exp(y))), or exp(bound sigmoid(factor y)).
        bias, factor : Vector, optional
            (heads,).
        pieces, first, count : int
            A row of x is pieces of equal width, of each of which `count` values from `first` on are heads'; by default all are.
        bound : float
        """
        count = x.width // pieces - first if count is None else count
        self._check("gates", "x", x, x.width)
        if kind not in GATE_KINDS or (kind in ("decay", "bounded")) != (factor is not None):
            raise PlanError(f"gates: kind {kind!r}; wanted one of {', '.join(GATE_KINDS)}, and a factor for 'decay' and 'bounded' alone")
        if x.width % pieces or first < 0 or count < 1 or first + count > x.width // pieces:
            found = f"operand x ({_name(x)}) has {x.width} values"
            self._refuse(f"gates: {found}, wanted {counted(pieces, 'piece')} of at least {first + count}", x.source)
        for name, vector in (("bias", bias), ("factor", factor)):
            if vector is not None:
                self._is_vector("gates", name, vector, pieces * count)
        out = self._tensor("gate", pieces * count, PER_NODE, "f", source=x.source)
        return self._add("gates", [x, out], [bias, factor], (GATE_KINDS[kind], pieces, first, count), (bound,))

    def recur(self, q, k, v, decay, beta=None, *, heads, groups, key_length, value_length, scale=1.0, eps=None, tiled=False, delta=True,
              skip=None):  # fmt: skip
        """Advances a matrix of each head position by position and reads it by q: shared rows (T, heads * value_length).

        S = decay S + k e^T, and o = S^T q; e is v, or, with beta, beta (v - S^T k) of the decayed S: the gated delta rule
        (arXiv:2412.06464); or with beta and without `delta` beta v, as in Mamba-2 (arXiv:2405.21060).

        Parameters
        ----------
        q, k, v : (Tensor, int)
            What holds the heads side by side, and the first value of the first one: ``groups`` heads of key_length values of q and k,
            ``heads`` of value_length of v.
        decay : Tensor or Vector
            (T, heads), or (T, heads * key_length): of each row of the matrix; a Vector (heads,): the same for all tokens.
        beta : Tensor, optional
            (T, heads).
        scale : float
            Factor on q.
        eps : float, optional
            q and k are divided by sqrt(sum of squares + eps) first.
        tiled : bool
            Head h reads q and k number h % groups, instead of h // (heads / groups).
        delta : bool
        skip : Vector, optional
            (heads,) times which v is added to o.
        """
        if heads % groups:
            raise PlanError(f"recur: {heads} heads over {groups} of q and k; wanted a multiple")
        for name, (x, first), width in (("q", q, groups * key_length), ("k", k, groups * key_length), ("v", v, heads * value_length)):
            self._check("recur", name, x, x.width)
            if first < 0 or first + width > x.width:
                self._refuse(f"recur: operand {name} ({_name(x)}) has {x.width} values, wanted {width} from {first} on", x.source)
        fixed, decay = (decay, None) if isinstance(decay, Vector) else (None, decay)
        wide = decay is not None and decay.width != heads
        self._check("recur", "decay", fixed if decay is None else decay, heads * key_length if wide else heads)
        if beta is not None:
            self._check("recur", "beta", beta, heads)
        if skip is not None:
            self._is_vector("recur", "skip", skip, heads)
        state = self.kv.states.add(heads, 4 * round_up(key_length, _ROWS) * round_up(value_length, _LANES))
        out = self._tensor("heads", heads * value_length, SHARED, "f")
        return self._add("recur", [q[0], k[0], v[0], decay, beta, out], [skip, fixed],
                         (groups, int(tiled), key_length, value_length, q[1], k[1], v[1], int(wide), int(delta and beta is not None)),
                         (-1.0 if eps is None else eps, scale), state=state)  # fmt: skip

    def scan(self, x, dt, b, c, a, skip):
        """Selective scan (arXiv:2312.00752), a matrix of a column per channel, position by position: shared rows (T, D).

        With d = log(1 + exp(dt)), S becomes exp(d a) S + b (d x)^T, number by number, and the result is S^T c + skip x.

        Parameters
        ----------
        x, dt : Tensor
            (T, D).
        b, c : Tensor
            (T, N), the same for all channels.
        a : Vector
            (D, N) as `Catalog.in_blocks` lays it out.
        skip : Vector
            (D,).
        """
        for name, operand, like in (("x", x, x), ("dt", dt, x), ("b", b, b), ("c", c, b)):
            self._check("scan", name, operand, like.width)
        blocks, rows = -(-x.width // _LANES), round_up(b.width, _ROWS)
        self._is_vector("scan", "a", a, blocks * rows * _LANES)
        self._is_vector("scan", "skip", skip, x.width)
        b, c = self._near(b), self._near(c)
        state = self.kv.states.add(blocks, 4 * rows * _LANES)
        return self._add("scan", [x, dt, b, c, self._tensor("channels", x.width, SHARED, "f")], [a, skip], state=state)

    def head_norm(self, x, w, heads, eps, gate=None, act="silu", gate_first=False):
        """RMS norm of each of so many heads, times act(gate): (T, D), one copy per node.

        Parameters
        ----------
        w : Vector
            (D / heads,) for all heads, or (D,).
        gate : Tensor, optional
            (T, D).
        act : {"silu", "sigmoid"}
        gate_first : bool
            What is normed is x * act(gate).
        """
        self._check("head_norm", "x", x, x.width)
        if isinstance(w, Matrix) or w.n != x.width:
            self._is_vector("head_norm", "w", w, x.width // heads)
        if gate is not None:
            self._check("head_norm", "gate", gate, x.width)
        out = self._tensor("normed", x.width, PER_NODE)
        return self._add("head_norm", [x, gate, out], [w], (heads, ACTS[act], int(gate_first), int(w.n == x.width and heads > 1)), (eps,))
