"""Ops of experts: methods of `Plan`."""

from .. import _core
from ..errors import PlanError
from .ops import GATING, PER_NODE, SHARED
from .weights import Matrix


class Mixing:
    """Methods of `Plan`."""

    def score(self, h, w):
        """W h, plus W's bias, on every node for itself: for a matrix so small that a barrier of the team would cost more, as a router's.

        A long row is summed in parts, and these are added: else there would be nothing to do for most of a node's workers.
        """
        self._reads("score", h, w)
        self.whole.add(w)
        parts = 1 if h.per_token > 1 else -(-w.k // _core.SLAB)
        y = self._tensor(w.short_name, w.n, PER_NODE, "f", per_token=h.per_token * parts, source=w)
        self._add("score", [h, y], [w, None, None, w.bias], matrices=[w], per_token=h.per_token)
        if parts > 1:
            y = self.mix(y, None)
            y.source = w
        return y

    def route(self, scores, used, *, gating="softmax", bias=None, factors=None, table=None, normed=False, scale=1.0, groups=1,
              groups_used=1, group_best=2, sharing=0):
        """Chooses experts: (ids, weights), both (T, used), the best first, of equal ones that with the lower index.

        Parameters
        ----------
        scores : Tensor
            (T, E), one copy per node.
        used : int
            Experts per token.
        gating : {"softmax", "sigmoid", "chosen", "sqrtsoftplus", "late", "sparse"}
            Weights are the softmax of all scores, their sigmoids, the softmax of the chosen scores alone, sqrt(log(1 + exp(score))),
            "late": sigmoids of the chosen scores, which differ in the choice where sigmoids round to 1, or "sparse": each chosen score's
            softmax among those, not yet chosen, that are less than 2 % below it (arXiv:2310.00811).
        bias : Vector, optional
            (E,) added for choosing, not for weighing.
        factors : Vector, optional
            (E,) each expert's own on its weight.
        table : Vector, optional
            (V * used,) int32: the experts of each token of the vocabulary, which are weighed and not chosen.
        normed : bool
            Weights are divided by their sum.
        scale : float
            Factor on the weights.
        groups, groups_used : int
            The experts stand in groups, of which those with the highest sums of their two best are chosen from;
        group_best : {1, 2}
            or with the highest single one.
        sharing : int
            So many neighbours share another expert: (ids, weights, ids of those), where it is not 0.
        """
        self._check("route", "scores", scores, scores.width)
        if gating not in GATING:
            raise PlanError(f"route: gating {gating!r}; wanted one of {', '.join(GATING)}")
        if gating == "sparse" and bias is not None:
            raise PlanError(f"route: gating {gating!r} takes no bias")
        if scores.storage != PER_NODE or not (0 < groups <= 64 and scores.width % groups == 0 and 0 < groups_used <= groups
                                              and 0 < used <= scores.width // groups * groups_used):  # fmt: skip
            raise PlanError(f"route: {used} of {scores.width} experts, in {groups_used} of {groups} groups, by scores of {scores.name}; "
                            f"wanted groups of equal size, at most 64, with enough experts, and scores on every node")
        if sharing and scores.width % sharing:
            raise PlanError(f"route: {scores.width} experts, of which {sharing} share another; wanted a divisor")
        if bias is not None:
            self._is_vector("route", "bias", bias, scores.width)
        if factors is not None:
            self._is_vector("route", "factors", factors, scores.width)
        if table is not None and (table.values.dtype != "i4" or table.n % used or gating == "sparse"):
            self._refuse(f"route: operand table ({table.name}) has {table.n} values, wanted ids, {used} for each token", table)
        ids, weights = self._tensor("ids", used, PER_NODE, "i"), self._tensor("weights", used, PER_NODE, "f")
        shared = self._tensor("shared", used, PER_NODE, "i") if sharing else None
        self._add("route", [scores, ids, weights, shared], [bias, factors, table],
                  (GATING[gating], int(normed), groups, groups_used, group_best, sharing), (scale,))  # fmt: skip
        return (ids, weights, shared) if sharing else (ids, weights)

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
        self.experts.update(() if ids is None else matrices)
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
        out = self._tensor("mix", y.width, PER_NODE, "f", source=y.source)
        return self._add("mix", [y, weights, also, gate, out], [], floats=(scale,))
