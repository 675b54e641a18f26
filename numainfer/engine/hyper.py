"""Ops of hyper-connections, which keep several residual streams of a token: methods of `Plan`."""

from ..errors import PlanError
from .ops import PER_NODE


class Hyper:
    """Methods of `Plan`."""

    def streams(self, y, n):
        """n residual streams that all begin as y (T, D): (T, n * D), one copy per node."""
        self._check("hyper_post", "y", y, y.width)
        y = self._near(y)
        return self._add("hyper_post", [y, None, None, self._tensor("x", n * y.width, PER_NODE, "f")], [], (n,))

    def hyper_pre(self, x, n, w, eps, fn=None, scale=None, base=None, *, small=0.0, factor=1.0, more=0.0, rounds=0, selected=False):
        """What a layer reads of n streams, and how they take up what it says: (h (T, D), coef), both one copy per node.

        h is the norm of a weighted sum of the streams; coef is for `hyper_post`, None where there is none (arXiv:2409.19606, 2512.24880).

        Parameters
        ----------
        x : Tensor
            (T, n * D).
        w : Vector
            (D,) of the norm.
        eps : float
            Of it, and of the mean of squares by whose root products with `fn` are divided.
        fn : Matrix, optional
            (m, n * D), m being n: weights alone; 2 n: and factors; or (2 + n) n: and what streams give to each other.  Without it the
            sum is the mean, and there is no coef.
        scale, base : Vector, optional
            (m / n,), at most three, and (m,): of what is made of the products.
        small, factor, more : float
            Weights are sigmoids + small, factors are factor * sigmoids + more.
        rounds : int
            Of Sinkhorn's normalisation.
        selected : bool
            For the rows alone whose logits are wanted.
        """
        self._check("hyper_pre", "x", x, x.width)
        if n < 1 or x.width % n:
            raise PlanError(f"hyper_pre: operand x ({x.name}) has {x.width} values; wanted {n} streams of equal width")
        self._is_vector("hyper_pre", "w", w, x.width // n)
        mixes, coef = None, None
        if fn is not None:
            self._is_matrix("hyper_pre", fn)
            if fn.n not in (n, 2 * n, (2 + n) * n):
                self._refuse(f"hyper_pre: operand fn ({fn.name}) has {fn.n} rows, wanted {n}, {2 * n} or {(2 + n) * n} for {n} streams", fn)
            self._is_vector("hyper_pre", "scale", scale, min(fn.n // n, 3))
            self._is_vector("hyper_pre", "base", base, fn.n)
            mixes = self.score(x, fn)
            coef = self._tensor("coef", fn.n - n, PER_NODE, "f") if fn.n > n else None
        h = self._tensor("h", x.width // n, PER_NODE)
        self._add("hyper_pre", [x, mixes, h, coef], [scale, base, w], (int(selected), n, rounds), (eps, small, factor, more),
                  selected=selected)  # fmt: skip
        return h, coef

    def hyper_post(self, y, x, coef, n):
        """The streams with what a layer says, y (T, D), in each: (T, n * D), one copy per node."""
        self._check("hyper_post", "y", y, x.width // n)
        self._check("hyper_post", "x", x, n * y.width)
        if coef.width not in (n, n + n * n):
            raise PlanError(f"hyper_post: operand coef ({coef.name}) has width {coef.width}, wanted {n} or {n + n * n} for {n} streams")
        out = self._tensor("x", x.width, PER_NODE, "f")
        return self._add("hyper_post", [self._near(y), x, coef, out], [], (n,))
