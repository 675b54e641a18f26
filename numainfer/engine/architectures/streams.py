"""Residual streams of hyper-connections (arXiv:2409.19606; held to doubly stochastic mixing: arXiv:2512.24880)."""


class Streams:
    """Several residual streams; every block reads a weighted sum of them, and what it says goes to all, as it is worth to each.

    Parameters
    ----------
    plan : Plan
    c : Hyperparameters
    x : Tensor
        The embedded tokens, with which all streams begin.
    eps : float
        Of every norm.
    mixing : bool
        The streams are mixed as well, by as many rounds of Sinkhorn's normalisation as the file says.
    how : dict
        `factor` and `more` of `Plan.hyper_pre`.
    """

    def __init__(self, plan, c, x, eps, *, mixing, **how):
        self._plan, self._eps = plan, eps
        self._n = c.int("hyper_connection.count", high=16)
        self._how = {"small": c.float("hyper_connection.epsilon", low=0, high=1)} | how
        if mixing:
            self._how["rounds"] = c.int("hyper_connection.sinkhorn_iterations", high=1000)
        self._c, self._rows = c, (2 + self._n) * self._n if mixing else 2 * self._n
        self._x, self._coef = plan.streams(x, self._n), None

    def norm(self, w, kind):
        """What block "attn" or "ffn" of layer w reads; then `add` what it says."""
        fn, scale, base = (getattr(w, f"hc_{kind}_{name}") for name in ("fn", "scale", "base"))
        self._is_of(fn, self._rows)
        norm = getattr(w, f"{kind}_norm")
        h, self._coef = self._plan.hyper_pre(self._x, self._n, norm, self._eps, fn, scale, base, **self._how)
        return h

    def add(self, y):
        """What the block says."""
        self._x, self._coef = self._plan.hyper_post(y, self._x, self._coef, self._n), None

    def last(self, weights):
        """What the logits are made of: a weighted sum of the streams, or their mean where the file has no weights."""
        fn = scale = base = None
        if "output_hc_fn.weight" in weights:
            fn, scale, base = (weights[f"output_hc_{name}.weight"] for name in ("fn", "scale", "base"))
            self._is_of(fn, self._n)
        norm = weights["output_norm.weight"]
        return self._plan.hyper_pre(self._x, self._n, norm, self._eps, fn, scale, base, small=self._how["small"], selected=True)[0]

    def _is_of(self, fn, rows):
        """Whether a matrix makes as many numbers as these streams take."""
        if fn.n != rows:
            self._c.refuse("hyper_connection.count", self._n, f"a number that goes with {fn.name}, which has {fn.n} rows, not {rows}")
