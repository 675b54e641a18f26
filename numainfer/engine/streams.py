"""Ops of models with several residual streams: methods of `Plan`."""

from ..errors import PlanError
from .ops import PER_NODE

_STREAMS = 16  # of AltUp, at most (csrc/ops/altup.c)


class Streams:
    """Methods of `Plan`."""

    def altup(self, x, n, *, z=None, eps=0.0, y=None, norm=None, router=None, coefficients=None, scale=None):
        """AltUp (arXiv:2301.13310): the n streams that a layer begins with, or ends with: (out, row).

        Parameters
        ----------
        x : Tensor
            (T, n * D), one stream behind the other; the layer computes the first.
        n : int
        z : Tensor, optional
            (T, D), which is added to every stream but the first, before anything else.
        eps : float
            Of the norm.
        y : Tensor, optional
            (T, D): what the layer made of the first stream.  With it out_j = x_j + (1 + c_j) (y - x_0), without it
            out_j = x_j + sum over i of c_ji x_i, where c = C tanh(R norm(v)) and v is y, or x_0.
        norm, router, coefficients : Vector, optional
            (D,), R (n * D,), C (n * n,) with y, (n * n * n,) without, row after row.  Without a router out is x + z.
        scale : Vector, optional
            (D,) on row.

        Returns
        -------
        out : Tensor
            (T, n * D), one copy per node.
        row : Tensor or None
            (T, D): the first of out, times the scale; None without a router.
        """
        self._check("altup", "x", x, x.width)
        if not 2 <= n <= _STREAMS or x.width % n:
            raise PlanError(f"altup: {n} streams in rows of {x.width} values; wanted 2 to {_STREAMS} of equal width")
        width = x.width // n
        for name, tensor in (("y", y), ("z", z)):
            if tensor is not None:
                self._check("altup", name, tensor, width)
        if router is None and (y is not None or norm is not None or coefficients is not None or scale is not None):
            raise PlanError("altup: operand y, norm, coefficients or scale without a router")
        if router is not None:
            for name, vector, size in (("norm", norm, width), ("router", router, n * width),
                                       ("coefficients", coefficients, n * n * (1 if y is not None else n)), ("scale", scale, width)):
                if vector is not None or name == "coefficients":
                    self._is_vector("altup", name, vector, size)
        y = y if y is None else self._near(y)
        out = self._tensor("streams", x.width, PER_NODE, "f")
        row = None if router is None else self._tensor("stream", width, PER_NODE)
        self._add("altup", [x, y, z, out, row], [norm, router, coefficients, scale], (n,), (eps,))
        return out, row

    def level(self, x, y, least=0.0):
        """Rows of y (T, n, D), each made as long as x (T, D), one copy per node: y rms(x) / rms(y).

        least : a mean square of y below it counts as that much.
        """
        self._check("level", "x", x, x.width)
        self._check("level", "y", y, x.width, y.per_token)
        x, y = self._near(x), self._near(y)
        out = self._tensor("level", x.width, PER_NODE, per_token=y.per_token)
        return self._add("level", [x, y, out], [], floats=(least,))

    def recall(self, bank, x, w, eps):
        """What earlier layers' streams and this one say together: their sum, weighed by the softmax of the sums of norm(v) w.

        Parameters
        ----------
        bank : Tensor
            (T, m * D): m streams of earlier layers, one behind the other.
        x : Tensor
            (T, D).
        w : Vector
            (D,).
        eps : float
            Of the RMS norms.

        Returns
        -------
        Tensor
            (T, D), one copy per node.
        """
        self._check("recall", "x", x, x.width)
        self._is_vector("recall", "w", w, x.width)
        self._check("recall", "bank", bank, bank.width)
        if bank.width % x.width:
            raise PlanError(f"recall: a bank of {bank.width} values for streams of {x.width}; wanted a multiple")
        x, bank = self._near(x), self._near(bank)
        scores = self._tensor("scores", bank.width // x.width + 1, PER_NODE, "f")
        self._add("res_score", [bank, x, scores], [w], floats=(eps,))
        return self._add("res_mix", [bank, x, scores, self._tensor("recalled", x.width, PER_NODE, "f")], [])
