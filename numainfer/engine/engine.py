"""The engine: packed weights on every node, and lanes of workers that run steps over them.  Internal; `Model` is its user."""

import contextlib
import functools
import logging
import os

import numpy as np

from .. import _core
from . import keep as keeping, store
from ..machine import cpus as cpus_of, placement, topology as topologies
from ..machine.limits import RESERVE
from ..machine.policies import EXPERTS, HYBRID, REST, canonical, choose_policy, of_group, without
from .._core import Cancelled
from .architectures import build, context_length
from .cache import Caches
from .heads import Drafting
from .layout import KV_TYPES
from ..errors import CorruptModel, ModelClosed, OutOfNodeMemory, PlanError
from ..gguf.file import GGUFFile
from .plan import Plan
from ..summary import short_bytes
from .copies import Replicas, bytes_on_nodes
from .weights import Catalog, Matrix

__all__ = ["KV_TYPES", "Cancelled", "Engine", "Lane"]

log = logging.getLogger("numainfer")
log.addHandler(logging.NullHandler())


def _report_runtimes():
    """Log the OpenMP runtimes of the process where there are others beside ours: their pools may want the same CPUs."""
    if not log.isEnabledFor(logging.INFO):
        return
    from threadpoolctl import threadpool_info  # takes 20 ms to import

    found = [info for info in threadpool_info() if info["user_api"] == "openmp"]
    if len(found) > 1:
        log.info("%d OpenMP runtimes are in this process: %s. Workers are pinned one by one and do not depend on them, but threads "
                 "of theirs that spin take CPU time from a step", len(found),
                 ", ".join(f"{info['filepath']} ({info['num_threads']} threads)" for info in found))


class Lane(Drafting):
    """A team of workers on some of the engine's nodes, and the plan it runs: one step at a time.

    Parameters
    ----------
    engine : Engine
    nodes : list of int
        Indices in the engine's list of nodes.
    """

    def __init__(self, engine, nodes):
        self._engine, self.nodes, self._plans, self._hidden = engine, nodes, {}, None
        self._workers = [(cpu, nodes.index(node)) for cpu, node in zip(engine.cpus, engine.node_of) if node in nodes]
        self._cpus, self.n_workers = {cpu for cpu, _ in self._workers}, len(self._workers)
        self.team = self._new_team()

    def _new_team(self):
        cpus = [cpu for cpu, _ in self._workers]
        return _core.Team(cpus, [node for _, node in self._workers], cpus_of.domains(cpus))

    @functools.cached_property
    def team(self):
        """The workers; after `rest` new ones, on the same CPUs."""
        return self._new_team()

    def rest(self):
        """End the workers and free the plans, until the next step makes both again; nobody may be in a step."""
        while self._plans:
            _, core = self._plans.popitem()
            self._count(core.bytes, -1)
            core.close()
        team = vars(self).pop("team", None)
        if team is not None:
            if team.scratch is not None:
                self._count(team.scratch.bytes, -1)
            team.close()

    def _count(self, n_bytes, sign=1):
        """Tell the placement of memory that the lane's nodes have more (or less, -1), in equal parts."""
        for i in self.nodes:
            self._engine.placement.nodes[i].scratch += sign * (n_bytes // len(self.nodes))

    def cancel(self):
        """Ask the running step to end; from any thread."""
        team = vars(self).get("team")  # there is one in a step
        if team is not None:
            team.cancel()

    def keep_caller(self):
        """Keep the calling thread on the lane's nodes: what it reads and what memory it takes from now on is near then."""
        near = self._cpus.union(*(topologies.node_cpus(self._engine.nodes[i]) for i in self.nodes))
        with contextlib.suppress(OSError):  # refused, it only reads from further away
            os.sched_setaffinity(0, near)

    def core_plan(self, hidden=False):
        """The plan as the core runs it; made when first wanted. hidden: whether it ends in hidden states; or "head", for the head's own."""
        if hidden not in self._plans:
            self._make_plan(hidden)
        return self._plans[hidden]

    @_core.in_default_floats
    def _make_plan(self, hidden):
        engine = self._engine
        same = hidden is not True and len(self.nodes) == engine.plan.n_nodes
        plan = engine.plan if same else engine.build(len(self.nodes), hidden is True)
        plan = plan.head if hidden == "head" else plan
        ops, tensors = plan.arrays()
        core = _core.Plan(self.team, ops, tensors, [engine.replicas.entry(w) for w in plan.weights], plan.arena_bytes,
                          plan.n_batch, self.nodes, [engine.nodes[i] for i in self.nodes])
        self._plans[hidden] = core
        self._count(core.bytes)
        if self.team.scratch is None:
            self.team.scratch = _core.SampleScratch(engine.n_vocab, len(self.team))
            self._count(self.team.scratch.bytes)

    def step(self, segments, out_rows, *, hidden=False, shuffle_seed=0, stop=None, out=None):
        """Run tokens of one or more sequences through the model.

        Parameters
        ----------
        segments : list of (Cache, ids, pos0)
            ids (n,) int32 of a sequence, standing at positions pos0 ...; together at most n_batch.
        out_rows : sequence of int
            Rows (of all segments' ids, in order) whose result is wanted.
        hidden : bool
            The normed hidden states instead of the logits.
        stop : callable, optional
            Asked now and then, from this thread: once it says True the step is cancelled.
        out : float32 array (len(out_rows), n_vocab or n_embd), optional
            Where the results go; by default into new memory, whose pages cost as much as the last matmul of a small model.

        Returns
        -------
        ndarray (len(out_rows), n_vocab or n_embd) float32

        Raises
        ------
        Cancelled, KeyboardInterrupt
            The KV memory of these positions is undefined then; what stood before them is not touched.
        """
        holds = []
        try:
            for kv, _, _ in segments:
                holds.append(kv.hold())
            return self._step(segments, out_rows, hidden, shuffle_seed, stop, out)
        finally:
            for hold in holds:
                hold.release()

    def _step(self, segments, out_rows, hidden, shuffle_seed, stop, out):
        engine = self._engine
        engine.check_open()
        ids, table, rows = _core.step_arrays(segments, out_rows, engine.n_ctx, engine.n_batch, engine.n_vocab)
        if out is None:
            out = np.empty((len(rows), engine.n_embd if hidden else engine.n_vocab), np.float32)
        coming = [kv.prepare(self, first, first + len(own)) for kv, own, first in segments]  # held until the step has ended
        if engine.plan.kv.states.parts:
            for record, states in zip(table, coming):
                states.fill(record)
        room = self._room_for_hidden(len(ids))
        if room is not None:
            before = [kv.hidden.before(first) for kv, _, first in segments]  # held until the step has ended
            table["hidden"] = [0 if one is None else one.ctypes.data for one in before]
        self.core_plan(hidden).run(ids, table, rows, out, shuffle_seed, stop, room)
        for states, (kv, own, first) in zip(coming, segments):
            kv.done(first, first + len(own), states)
        if room is not None:
            for at, (kv, own, first) in zip(table["row0"].tolist(), segments):
                kv.hidden.came(first, room[at : at + len(own)])
        return out

    def close(self):
        for plan in self._plans.values():
            plan.close()
        self._plans = {}
        team = vars(self).get("team")
        if team is not None:
            team.close()


class Engine:
    """Loads a GGUF file's weights onto the nodes.

    Parameters
    ----------
    gguf : GGUFFile
        Its tensors are read during construction only.
    n_ctx : int, optional
        Most positions per sequence; the model's own by default.
    n_batch : int
        Most tokens per step.
    threads, nodes, cpus :
        See `topology.choose_workers`.
    placement : str or mapping
        As `policies.canonical` takes it.
    kv_type : str
        One of `plan.KV_TYPES`.
    progress : callable, optional
        ``progress(done_bytes, total_bytes)``.
    verify : bool or "warn"
        Check every page after loading: raise PlacementError, or only warn, if pages lie wrong.
    keep : str, optional
        Name under which the weights lie in shared memory: there already, or from now on.
    mtp : bool
        With the file's layer that predicts a further token.

    Attributes
    ----------
    lane : Lane
        All nodes together: the latency mode.
    """

    @_core.in_default_floats
    def __init__(self, gguf, *, n_ctx=None, n_batch=512, threads=None, nodes=None, placement="auto", kv_type="f16",
                 progress=None, verify=True, cpus=None, keep=None, mtp=False):
        self.lane = self.replicas = self.caches = self._node_lanes = self._share = None
        self._hold = cpus_of.Hold()
        if kv_type not in KV_TYPES:
            raise ValueError(f"kv_type = {kv_type!r}; wanted one of {', '.join(KV_TYPES)}")
        self.kv_type = kv_type
        try:
            with contextlib.ExitStack() as stack:
                if keep is not None:
                    name = gguf.get("general.name", object, default=None)
                    model = name if isinstance(name, str) and name.isprintable() else os.path.basename(gguf.path)
                    keep = stack.enter_context(contextlib.closing(keeping.Keeper(keep, gguf, model)))
                self._open(gguf, n_ctx, n_batch, threads, nodes, cpus, placement, progress, verify, keep, mtp)
        except BaseException:
            self.close()
            raise

    def _open(self, gguf, n_ctx, n_batch, threads, nodes, named, policy, progress, verify, keeper, mtp):
        asked = canonical(policy)
        machine = topologies.topology()
        chosen, cpus, node_of, story = self._choose_workers(machine, threads, nodes, named, asked == "local")
        self.cpus, self.node_of, self.threads = cpus, node_of, len(cpus)
        self.nodes, self.isa = [n.number for n in chosen], _core.isa()
        trained = context_length(gguf)
        self._catalog, self._files = Catalog(gguf, mtp), (gguf.path, list(gguf.files))
        wanted, bounds, keys, need, layouts = n_ctx, {}, {}, {}, {}

        def fit(n_ctx):
            """Plan for a context of so many tokens; policy and reason if it fits."""
            self.n_ctx, self.n_batch = n_ctx, min(n_batch, n_ctx)
            self.plan = self.build(len(chosen))
            kv_bytes = self.plan.kv.bytes(n_ctx if wanted else 1)  # the model's own context is no promise, but a token can always be
            arenas = sum(self.plan.arena_bytes) + (sum(self.plan.head.arena_bytes) if mtp else 0)
            others = arenas + kv_bytes // len(chosen)
            for policy in self._candidates(asked) if not keys else ():  # weights do not depend on the context
                bounds[policy] = self._bounds(policy)
                keys[policy] = self._store_key(gguf, policy, bounds[policy])
                need[policy] = bytes_on_nodes(self.plan.weights, len(chosen), policy, bounds[policy])
            if keeper is None:
                standing = {policy for policy, key in keys.items() if store.stands(key)}
            else:
                layouts.update((p, keeper.layout(self.plan.weights, self.nodes, p, bounds[p])) for p in keys)
                standing = {policy for policy, layout in layouts.items() if keeper.holds(layout)}
                if standing and asked == "auto":
                    (policy,) = standing
                    return choose_policy(policy, chosen, need, others, standing, machine.limits.memory)[0], "such copies are kept"
            return choose_policy(self._settled(asked), chosen, need, others, standing, machine.limits.memory)

        try:
            policy, reason = fit(n_ctx or trained)
        except (OutOfNodeMemory, PlanError) as error:
            if n_ctx:
                self._refuse_context(n_ctx, fit, error)
            raise
        if self.n_ctx > trained:
            log.warning("n_ctx = %d is more than the %d positions that the model was trained for", self.n_ctx, trained)
        self.n_vocab = self.plan.out_width
        self.n_embd = gguf.get(f"{gguf.architecture}.embedding_length", int)
        self.bytes_per_token = self.plan.bytes_per_token
        self.lane = Lane(self, list(range(len(chosen))))
        if keeper is None:
            self._share = store.Share(keys[policy], lambda: self._fill(gguf, policy, bounds[policy], progress))
        else:
            on = [[cpu for cpu, i in zip(cpus, node_of) if i == j] for j in range(len(chosen))]
            self._share = keeper.share(layouts[policy], self.plan.weights, bounds[policy], [n.label for n in chosen], on,
                                       lambda replicas, progress: replicas.fill(self.lane.team, gguf, progress), verify is True,
                                       progress)  # fmt: skip
        self.replicas = self._share.replicas
        sizes = [arena.bytes for arena in self.replicas.arenas]
        if policy == "interleave":
            sizes = [sizes[0] // len(chosen)] * len(chosen)
        self.caches = Caches(self.plan.kv)
        _report_runtimes()
        experts, head = (bytes_on_nodes([w for w in self.plan.weights if w in group], len(chosen), policy, bounds[policy])
                         for group in (self.plan.experts, self.plan.only_head()))
        self.placement = placement.Placement(
            policy, reason,
            [placement.NodePlacement(n.number, tuple(c for c, i in zip(cpus, node_of) if i == j), sizes[j], 0, pretend=n.pretend,
                                     experts=experts[j], mtp=head[j])
             for j, n in enumerate(chosen)],
            self.plan.kv.bytes_per_token, self.replicas, self.caches, story, self.plan.kv.window_bytes(self.n_ctx),
            self.replicas.kept.describe() if self.replicas.kept else "", self.plan.kv.states.bytes(self.n_ctx))
        log.info("%s: placement %s%s", gguf.path, policy, f": {reason}" if reason else "")
        self.lane.core_plan()
        if verify:
            self.placement.verify(strict=verify != "warn")

    def _choose_workers(self, machine, threads, nodes, named, local):
        """What `topology.choose_workers` returns, held from now on, and in words what others hold of it."""

        def choose(held):
            chosen, cpus, node_of = topologies.choose_workers(machine, threads, nodes, named, held)
            if not local:
                return chosen, cpus, node_of
            if named is not None and len(chosen) > 1:
                raise ValueError(f"cpus = {named}: they lie on nodes {[node.label for node in chosen]}, but placement = 'local' is on one")
            cpus = [cpu for cpu, node in zip(cpus, node_of) if node == 0]  # one copy, one node: the first, if none was named
            return chosen[:1], cpus, [0] * len(cpus)

        first = choose({})[1]
        with cpus_of.choosing():
            held = cpus_of.holders({cpu for node in machine.nodes for cpu in node.cpus}.union(first))
            chosen, cpus, node_of = choose(held)
            self._hold.take(cpus)
        return chosen, cpus, node_of, cpus_of.story(first, cpus, held)

    def _refuse_context(self, n_ctx, fit, error):
        """Raise OutOfNodeMemory with the most tokens that fit, if less would, and with the error's table of need and free."""
        low, high = 0, -(-n_ctx // _core.CHUNK)  # chunks that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            try:
                fit(middle * _core.CHUNK)
                low = middle
            except (OutOfNodeMemory, PlanError):
                high = middle
        if low:
            each = f"{short_bytes(self.plan.kv.bytes_per_token)} each"
            if self.plan.kv.window_bytes(n_ctx):
                each += f" and {short_bytes(self.plan.kv.window_bytes(n_ctx))} for windows"
            if self.plan.kv.states.parts:
                each += f" and {short_bytes(self.plan.kv.states.bytes(n_ctx))} of recurrent state"
            raise OutOfNodeMemory(
                f"n_ctx = {n_ctx}: the KV cache of so many tokens takes {short_bytes(self.plan.kv.bytes(n_ctx))} ({each}, "
                f"{self.kv_type}); beside the weights, and with {RESERVE:.0%} of each node kept free, there is room for at most "
                f"n_ctx = {low * _core.CHUNK}" + (f"\n{error}" if isinstance(error, OutOfNodeMemory) else "")) from None

    def _fill(self, gguf, policy, bounds, progress):
        replicas = Replicas(self.plan.weights, self.nodes, policy, bounds)
        try:
            replicas.fill(self.lane.team, gguf, progress)
        except BaseException:
            replicas.close()
            raise
        return replicas

    @_core.in_default_floats
    def build(self, n_nodes, hidden=False):
        """The model's plan for a team on n_nodes nodes."""
        return build(Plan(n_nodes, self.n_batch, self.n_ctx, hidden=hidden, kv_type=self.kv_type,
                          kv_nodes=len(self.nodes)), self._catalog)

    def _settled(self, asked):
        """The policy for this model: of groups of weights that it has."""
        return asked if self.plan.experts else without(asked, EXPERTS)

    def _candidates(self, asked):
        """Policies that `choose_policy` may take."""
        asked = self._settled(asked)
        if len(self.nodes) == 1:
            return ["local"]
        if asked != "auto":
            return [asked]
        return [policy for policy in ("replicate", HYBRID, "shard") if self._settled(policy) == policy]

    def _bounds(self, policy):
        """Row groups of each matrix that the policy cuts where the nodes' rows begin, in every matmul that reads it (csrc/cut.h): by name,
        (n_nodes + 1,)."""
        workers = [self.node_of.count(i) for i in range(len(self.nodes))]
        return {w.name: _core.node_cut(w.n, workers) for w in self.plan.weights
                if isinstance(w, Matrix) and w not in self.plan.whole and of_group(policy, self._group(w)) == "shard"}  # fmt: skip

    def _group(self, w):
        return EXPERTS if w in self.plan.experts else REST

    def _store_key(self, gguf, policy, bounds):
        """What the replicas' bytes and places depend on."""
        cuts = tuple((name, *b) for name, b in bounds.items())
        return tuple(gguf.files), policy, tuple(self.nodes), cuts, tuple(w.name for w in self.plan.weights)

    @functools.cached_property
    def digest(self):
        """`GGUFFile.digest` of the model's file, read when it is first wanted.

        Raises
        ------
        ModelNotFound, CorruptModel
            The file is not there any more, or is another one now.
        """
        path, files = self._files
        with GGUFFile(path) as gguf:
            if [file[:-1] for file in gguf.files] != [file[:-1] for file in files]:
                raise CorruptModel(path, "the file is not the one that was loaded: it was written to or replaced since")
            return gguf.digest()

    def node_lanes(self):
        """A lane per node, for work that needs no other node: the throughput mode.  One lane where there is one copy."""
        if self._node_lanes is None:
            whole = self.placement.policy != "replicate"
            self._node_lanes = [self.lane] if whole else [Lane(self, [i]) for i in range(len(self.nodes))]
        return self._node_lanes

    def _lanes(self):
        """Every lane there is, once: on one node the two modes share theirs."""
        return list(dict.fromkeys(lane for lane in [self.lane, *(self._node_lanes or [])] if lane))

    def check_open(self):
        """Raise ModelClosed or ForkedProcess if the engine cannot run."""
        if self.lane is None:
            raise ModelClosed("the model is closed; load it again")
        len(self.lane.team)

    @property
    def closed(self):
        return self.lane is None

    def new_kv(self):
        """A Cache for one sequence."""
        self.check_open()
        return self.caches.new()

    def step(self, segments, out_rows, **options):
        """`Lane.step` on all nodes."""
        self.check_open()
        return self.lane.step(segments, out_rows, **options)

    def cancel(self):
        """Ask the running steps to end; from any thread."""
        for lane in self._lanes():
            lane.cancel()

    def rest(self):
        """Keep the weights, but no threads and no memory for activations, until the next step; nobody may be in one."""
        for lane in self._lanes():
            lane.rest()

    def leave_cpus(self):
        """Let others have the workers' CPUs, for nobody will run a step any more."""
        self._hold.close()

    def close(self):
        """End the workers and give all memory back."""
        lanes = self._lanes()
        self.lane = self._node_lanes = None
        try:
            for lane in lanes:
                lane.close()
            self.replicas = None
            if self.caches is not None:
                self.caches.close()
            if self._share is not None:
                self._share.close()
        finally:
            self.leave_cpus()
