"""Mixtures of experts: which of them a token chooses, what these say, and what is added to it."""

from dataclasses import dataclass

from ...errors import CorruptModel

GATINGS = {1: "softmax", 2: "sigmoid", 3: "chosen", 4: "sqrtsoftplus"}  # expert_gating_func, as `Plan.route` names it


@dataclass(frozen=True)
class Experts:
    """How tokens choose experts, and how these are weighed (arXiv:1701.06538; groups and the bias for choosing: arXiv:2412.19437).

    Attributes
    ----------
    c : Hyperparameters
        They know how many experts a token chooses, perhaps another number in each layer.
    gating : str
        As `Plan.route` has it, and so for the rest.
    normed : bool
    scale : float
    groups, groups_used, group_best : int
    """

    c: object
    gating: str
    normed: bool
    scale: float
    groups: int
    groups_used: int
    group_best: int = 2

    def route(self, p, h, w, matrices, factors=None, sharing=0, hashed=None):
        """(ids, weights) of a layer's router, for such matrices of its experts; factors, sharing: of `Plan.route`; hashed: name of the
        tensor that has the experts of each token of the vocabulary."""
        router = w.ffn_gate_inp
        for matrix in matrices:
            found = getattr(matrix, "experts", 1)
            if found != router.n:
                says = f"{matrix.name} has {found} experts, wanted {router.n}, one for each row of {router.name}"
                raise CorruptModel(self.c.gguf.path, says)
        if router.n % self.groups:
            self.c.refuse("expert_group_count", self.groups, f"a divisor of the {router.n} experts")
        used, most = self.c.int("expert_used_count", layer=w.index), router.n // self.groups * self.groups_used
        if used > most:
            self.c.refuse("expert_used_count", used, f"at most {most}")
        bias = None if self.gating == "sparse" or hashed else w.bias("exp_probs_b")
        table = w.ids(hashed, used, router.n) if hashed else None
        return p.route(p.score(h, router), used, gating=self.gating, bias=bias, factors=factors, table=table, normed=self.normed,
                       scale=self.scale, groups=self.groups, groups_used=self.groups_used, group_best=self.group_best,
                       sharing=sharing)


def shared_expert(p, h, w, activation="silu", **how):
    """What every token adds to what its chosen experts say: a function that ends it, so that `mixture` can have one barrier for both."""
    gate, up = p.matmul(h, w.ffn_gate_shexp, w.ffn_up_shexp)
    return lambda: p.matmul(p.gated(gate, up, activation, **how), w.ffn_down_shexp)


def mixture(p, h, w, e, shared=None, gate=None, scale=1.0, by=None, factors=None, hashed=None, **how):
    """Feed-forward networks of the chosen experts, weighed and summed, plus `shared`, times sigmoid(gate) where there is one.

    Parameters
    ----------
    p : Plan
    h : Tensor
    w : _Block
        Tensors of the layer; gate and up may be one tensor, ``ffn_gate_up_exps``.
    e : Experts
    shared : callable or Tensor, optional
        As `shared_expert` returns it; or what it adds.
    gate : Tensor, optional
    scale : float
        Factor on all of it.
    by : Tensor, optional
        What the router reads instead of h.
    factors : Vector, optional
        Each expert's own on its weight.
    hashed : str, optional
        Of `Experts.route`.
    how : dict
        For `Plan.gated`.
    """
    fused = w.get("ffn_gate_up_exps")
    into, out = [fused] if fused else [w.ffn_gate_exps, w.ffn_up_exps], w.ffn_down_exps
    ids, weights = e.route(p, h if by is None else by, w, [*into, out], factors, hashed=hashed)
    pair = p.matmul_grouped(h, ids, *into)
    a = p.gated(*([pair, None] if fused else pair), **({"activation": "silu"} | how))
    also = shared() if callable(shared) else shared
    return p.mix(p.matmul_grouped(a, ids, out), weights, also=also, gate=gate, scale=scale)
