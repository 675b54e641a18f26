"""The engine: packed weights on every node, a team of workers, and the plan that they run.  Internal; `Model` is its user."""

import logging

import numpy as np

from . import _core, placement
from ._core import Cancelled
from .architectures import build
from .architectures.blocks import Hyperparameters
from .errors import ModelClosed
from .plan import Plan
from .weights import Catalog, Replicas

__all__ = ["KV", "Cancelled", "Engine"]

log = logging.getLogger("numainfer")
KV_TYPES = ("f16",)


class KV:
    """The KV cache of one sequence: address space for n_ctx positions, of which pages are taken as they fill."""

    def __init__(self, engine):
        self._engine = engine
        self.arena = _core.Arena(max(engine.plan.kv_bytes, 1))

    @property
    def address(self):
        return self.arena.address

    def copy(self, n_pos):
        """A new KV with the first n_pos positions."""
        other = KV(self._engine)
        if n_pos:
            self._engine.check_open()
            self._engine.team.copy_kv(np.array(self._engine.plan.kv_layers, _core.KV_LAYER_DTYPE), self.address, other.address, n_pos)
        return other

    def close(self):
        self.arena.close()


class Engine:
    """Loads a GGUF file's weights onto the nodes and runs steps.

    Parameters
    ----------
    gguf : GGUFFile
        Read during construction only.
    n_ctx : int, optional
        Most positions per sequence; the model's own by default.
    n_batch : int
        Most tokens per step.
    threads, nodes :
        See `placement.choose_workers`.
    placement : str
        "auto", "replicate", "interleave" or "local".
    kv_type : str
        "f16".
    progress : callable, optional
        ``progress(done_bytes, total_bytes)``.
    verify : bool or "warn"
        Check every page after loading: raise PlacementError, or only warn, if pages lie wrong.
    """

    def __init__(self, gguf, *, n_ctx=None, n_batch=512, threads=None, nodes=None, placement="auto", kv_type="f16",
                 progress=None, verify=True):
        self.team = self._replicas = None
        self._plans = {}
        if kv_type not in KV_TYPES:
            raise ValueError(f"kv_type = {kv_type!r}; wanted one of {', '.join(KV_TYPES)}")
        try:
            self._open(gguf, n_ctx, n_batch, threads, nodes, placement, progress, verify)
        except BaseException:
            self.close()
            raise

    def _open(self, gguf, n_ctx, n_batch, threads, nodes, policy, progress, verify):
        if policy not in placement.POLICIES:
            raise ValueError(f"placement = {policy!r}; wanted one of {', '.join(placement.POLICIES)}")
        chosen, cpus, node_of = placement.choose_workers(placement.topology(), threads, nodes)
        if policy == "local":  # one copy, one node: the first, if none was named
            cpus = [cpu for cpu, node in zip(cpus, node_of) if node == 0]
            chosen, node_of = chosen[:1], [0] * len(cpus)
        self.threads, self.nodes, self.isa = len(cpus), [n.number for n in chosen], _core.isa()
        trained = Hyperparameters(gguf).int("context_length")
        self.n_ctx, self.n_batch = n_ctx or trained, min(n_batch, n_ctx or trained)
        if self.n_ctx > trained:
            log.warning("n_ctx = %d is more than the %d positions that the model was trained for", self.n_ctx, trained)
        self._catalog = Catalog(gguf)
        self.plan = self._build(len(chosen))
        self.n_vocab = self.plan.out_width
        self.n_embd = gguf.get(f"{gguf.architecture}.embedding_length", int)
        self.bytes_per_token = self.plan.bytes_per_token
        weights = self.plan.weights
        weight_bytes = sum(w.packed_bytes for w in weights)
        kv_bytes = self.plan.kv_bytes if n_ctx else 0  # the model's own context is address space, not a promise
        others = sum(self.plan.arena_bytes) + kv_bytes // len(chosen)
        policy, reason = placement.choose_policy(policy, chosen, weight_bytes, others)
        self.team = _core.Team(cpus, node_of)
        self._replicas = Replicas(weights, self.nodes, interleave=policy == "interleave")
        self._replicas.fill(self.team, gguf, progress)
        core = self._core_plan(False)
        share = 1 if policy != "interleave" else len(chosen)
        self.placement = placement.Placement(
            policy, reason,
            [placement.NodePlacement(n.number, tuple(c for c, i in zip(cpus, node_of) if i == j), weight_bytes // share,
                                     core.bytes // len(chosen)) for j, n in enumerate(chosen)],
            self.plan.kv_bytes // max(self.n_ctx, 1), self._replicas)
        if verify:
            self.placement.verify(strict=verify != "warn")

    def _build(self, n_nodes, hidden=False):
        return build(Plan(n_nodes, self.n_batch, self.n_ctx, hidden=hidden), self._catalog)

    def _core_plan(self, hidden):
        """The plan as the core runs it; the one for hidden states is made when first wanted."""
        if hidden not in self._plans:
            plan = self.plan if not hidden else self._build(len(self.nodes), hidden=True)
            ops, tensors = plan.arrays()
            n = len(self.nodes)
            self._plans[hidden] = _core.Plan(self.team, ops, tensors, self._replicas.table(plan.weights), plan.arena_bytes,
                                             self.n_batch, range(n), self.nodes)
        return self._plans[hidden]

    def check_open(self):
        """Raise ModelClosed or ForkedProcess if the engine cannot run."""
        if self.team is None:
            raise ModelClosed("the model is closed; load it again")
        len(self.team)

    @property
    def closed(self):
        return self.team is None

    def new_kv(self):
        """KV memory for one sequence."""
        self.check_open()
        return KV(self)

    def step(self, segments, out_rows, *, hidden=False, shuffle_seed=0):
        """Run tokens of one or more sequences through the model.

        Parameters
        ----------
        segments : list of (KV, ids, pos0)
            ids (n,) int32 of a sequence, standing at positions pos0 ...; together at most n_batch.
        out_rows : sequence of int
            Rows (of all segments' ids, in order) whose result is wanted.
        hidden : bool
            The normed hidden states instead of the logits.

        Returns
        -------
        ndarray (len(out_rows), n_vocab or n_embd) float32

        Raises
        ------
        Cancelled, KeyboardInterrupt
            The KV memory of these positions is undefined then; what stood before them is not touched.
        """
        self.check_open()
        ids = np.concatenate([np.asarray(s[1], np.int32) for s in segments])
        table = np.zeros(len(segments), _core.SEGMENT_DTYPE)
        row = 0
        for record, (kv, own, pos0) in zip(table, segments):
            if pos0 < 0 or pos0 + len(own) > self.n_ctx or not len(own):
                raise ValueError(f"a segment of {len(own)} tokens at position {pos0} does not lie within the context of {self.n_ctx}")
            record["base"], record["row0"], record["n"], record["pos0"] = kv.address, row, len(own), pos0
            row += len(own)
        if row > self.n_batch or ids.min() < 0 or ids.max() >= self.n_vocab:
            raise ValueError(f"a step takes at most {self.n_batch} tokens with ids from 0 to {self.n_vocab - 1}; "
                             f"found {row} tokens with ids from {ids.min()} to {ids.max()}")
        rows = np.asarray(out_rows, np.int32)
        if rows.size and not (0 <= rows.min() and rows.max() < row and rows.size <= self.n_batch):
            raise ValueError(f"wanted rows must lie in 0 to {row - 1}, at most {self.n_batch} of them; found {rows}")
        out = np.empty((len(rows), self.n_embd if hidden else self.n_vocab), np.float32)
        self._core_plan(hidden).run(ids, table, rows, out, shuffle_seed)
        return out

    def cancel(self):
        """Ask the running step to end; from any thread."""
        if self.team is not None:
            self.team.cancel()

    def close(self):
        """End the workers and give all memory back."""
        for plan in self._plans.values():
            plan.close()
        self._plans = {}
        if self._replicas is not None:
            self._replicas.close()
        self._replicas, team, self.team = None, self.team, None
        if team is not None:
            team.close()


log.addHandler(logging.NullHandler())
