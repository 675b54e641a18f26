"""Helpers of the tests of the core: small files of chosen tensors, plans of one or two ops, teams of any shape."""

import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import reference as ref
from reference_models import ReferenceModel

from numainfer import _core
from numainfer.machine import policies, topology as topologies
from numainfer.engine.cache import Caches
from numainfer.engine.engine import Engine
from numainfer.engine.layout import KV_TYPES
from numainfer.gguf.file import GGUFFile
from numainfer.engine.plan import Plan
from numainfer.engine.copies import Replicas
from numainfer.engine.weights import Catalog, Matrix

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "golden"
CPUS = tuple(sorted(os.sched_getaffinity(0)))


class Sheet:
    """A GGUF file of named tensors, as the plan sees it and as float64 arrays.

    Parameters
    ----------
    path : Path
        Where to write it.
    tensors : dict
        Name -> float array (F32), or (stored array, type name).
    """

    def __init__(self, path, tensors):
        writer = gguf.GGUFWriter(path, "sheet")
        self.exact = {}
        for name, value in tensors.items():
            data, kind = value if isinstance(value, tuple) else (np.asarray(value, np.float32), "F32")
            kind = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, data, raw_dtype=kind)
            self.exact[name] = data if data.dtype == np.int32 else ref.dequantise(data, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self.file = GGUFFile(path)
        self.catalog = Catalog(self.file)

    def __getitem__(self, name):
        """The Matrix or Vector for a plan."""
        return self.catalog[name]

    def close(self):
        self.file.close()


def team_shape(n_nodes, workers):
    """(cpus, node of each) for `workers` workers on each of `n_nodes` pretend nodes (or a number for each), on the CPUs there are."""
    workers = [workers] * n_nodes if isinstance(workers, int) else workers
    nodes = [node for node in range(n_nodes) for _ in range(workers[node])]
    return [CPUS[i % len(CPUS)] for i in range(len(nodes))], nodes


@contextmanager
def open_team(n_nodes=1, workers=1):
    team = _core.Team(*team_shape(n_nodes, workers))
    try:
        yield team
    finally:
        team.close()


class Rig:
    """A plan with its weights in memory and its team.

    Parameters
    ----------
    sheet : Sheet
    team : _core.Team
    build : callable
        ``build(plan, sheet)`` appends the ops; the last is ``logits`` or ``emit``.
    edit : callable, optional
        ``edit(ops)`` may change the array of ops before the core sees it; ``edit_all(ops, tensors)`` that of tensors, too.
    policy : str
        "shard": the nodes hold unequal parts of every matrix of experts, and the others whole.
    shard : list of int, optional
        Workers of each node: it holds only the rows that they multiply.
    sizes : dict, optional
        How finely work is cut (`_core.SIZES`).
    """

    def __init__(self, sheet, team, build, n_batch=40, n_ctx=64, hidden=False, edit=None, edit_all=None, policy="replicate", shard=None,
                 sizes=None, **more):  # fmt: skip
        n = team.n_nodes
        self.team = team
        self.plan = Plan(n, n_batch, n_ctx, hidden=hidden, **more)
        build(self.plan, sheet)
        for tensor in self.plan.tensors:
            tensor.is_read = True  # a part of a plan may leave what the whole would read
        self.plan.compile()
        bounds = {w.name: _core.node_cut(w.n, shard) for w in self.plan.weights if shard and isinstance(w, Matrix)}
        if policy == "shard":
            bounds = {w.name: [-(-w.n // _core.ROWS) * i**2 // n**2 for i in range(n + 1)] for w in self.plan.weights
                      if isinstance(w, Matrix) and w.experts > 1}  # fmt: skip
        self.replicas = Replicas(self.plan.weights, [0] * n, "shard" if bounds else policy, bounds or None)
        self.replicas.fill(team, sheet.file)
        ops, tensors = self.plan.arrays()
        if edit:
            edit(ops)
        if edit_all:
            edit_all(ops, tensors)
        self.core = _core.Plan(team, ops, tensors, [self.replicas.entry(w) for w in self.plan.weights], self.plan.arena_bytes,
                               n_batch, range(n), [0] * n, sizes)  # fmt: skip
        self.caches = Caches(self.plan.kv)

    def new_kv(self):
        return self.caches.new()

    def run(self, ids, segments=None, rows=None, seed=0, fill=True):
        """Result (rows, width); segments: (cache, n, pos0) each, one at position 0 by default; rows: all by default.

        The plan's memory holds NaN before: what nobody writes, or only after it was read, shows in the result (``fill`` False: not
        where another thread may be in the midst of a step).
        """
        ids = np.asarray(ids, np.int32)
        table = np.zeros(len(segments or [0]), _core.SEGMENT_DTYPE)
        row, coming = 0, []
        segments = segments or [(self.new_kv(), len(ids), 0)]
        for record, (cache, n, pos0) in zip(table, segments):
            coming.append(fill_segment(record, cache, row, n, pos0))
            row += n
        assert row == len(ids)
        rows = np.arange(len(ids), dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
        out = np.full((len(rows), self.plan.out_width), np.nan, np.float32)
        if fill:
            self.core.fill(np.nan)
        self.core.run(ids, table, rows, out, seed)
        for states, (cache, n, pos0) in zip(coming, segments):
            cache.states.done(pos0, pos0 + n, states)
        return out

    def close(self):
        self.core.close()
        self.replicas.close()
        self.caches.close()


def fill_segment(record, cache, row0, n, pos0):
    """A segment for the core, over blocks that hold its positions; those before need not have been computed."""
    cache._tables.prepare(pos0, pos0 + n)
    record["tables"], record["row0"], record["n"], record["pos0"] = cache.address, row0, n, pos0
    coming = cache.states.prepare(pos0, pos0 + n)
    if coming is not None:
        coming.fill(record)
    return coming


@contextmanager
def rig(*args, **more):
    made = Rig(*args, **more)
    try:
        yield made
    finally:
        made.close()


def thinned(*axes, one_in=3):
    """One in so many combinations of values; still each pair of values of two axes, if each other axis has at least `one_in` values."""
    return [tuple(axis[i] for axis, i in zip(axes, at)) for at in product(*(range(len(axis)) for axis in axes)) if sum(at) % one_in == 0]


@contextmanager
def instruction_set(name):
    """The kernels of this table, as long as the context lasts."""
    used = _core.isa()
    _core.isa_select(name)
    try:
        yield
    finally:
        _core.isa_select(used)


def pretend(monkeypatch, n_nodes, workers):
    """Make `topology` show `n_nodes` nodes of `workers` cores each (or a number for each), on the CPUs and the memory there are."""
    real = topologies.topology()
    cpus, nodes = team_shape(n_nodes, workers)
    shown = tuple(topologies.Node(real.nodes[0].number, tuple(c for c, n in zip(cpus, nodes) if n == node),
                                 real.nodes[0].total, real.nodes[0].free, node) for node in range(n_nodes))  # fmt: skip
    monkeypatch.setattr(topologies, "topology", lambda: topologies.Topology(shown, n_nodes))


def choose(asked, nodes, weights, others, standing=(), limit=None):
    """`choose_policy` for a model without experts, of so many bytes, on nodes of as many workers each."""
    part = [-(-weights // len(nodes))] * len(nodes)
    need = {"replicate": [weights] * len(nodes), "local": [weights], "shard": part, "interleave": part}
    return policies.choose_policy(asked, nodes, need, others, standing, limit)


@contextmanager
def open_engine(path, **options):
    with GGUFFile(path) as file:
        engine = Engine(file, **options)
    try:
        yield engine
    finally:
        engine.close()


def logits(engine, ids, chunks=None, kv=None, start=0, **more):
    """Logits after every one of `ids`, fed in steps of the sizes in `chunks` (the last repeats); n_batch at once by default."""
    ids, own = np.asarray(ids, np.int32), kv is None
    kv = kv or engine.new_kv()
    sizes = list(chunks or [engine.n_batch])
    out, at = [], 0
    while at < len(ids):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        part = ids[at : at + size]
        out.append(engine.step([(kv, part, start + at)], range(len(part)), **more))
        at += len(part)
    if own:
        kv.close()
    return np.concatenate(out)


def logits_by_kv_type(path, ids, **options):
    """{type of the KV memory: logits after each of `ids`}, by one thread."""
    found = {}
    for kv_type in KV_TYPES:
        with open_engine(path, threads=1, kv_type=kv_type, **options) as engine:
            found[kv_type] = logits(engine, ids)
    return found


def twin_logits(path, ids, kv_type="f16"):
    """Logits (n, n_vocab) in float64 of a model whose keys and values are kept in a type of KV memory, as the engine keeps them."""
    exact = ref.attention

    def attention(q, k, v, *args, **more):
        return exact(q, *(ref.stored(x, kv_type) for x in (k, v)), *args, **more)

    with patch.object(ref, "attention", attention):
        return ReferenceModel(path, dtype=np.float64).logits(ids)


def same_bits(found, wanted, what=""):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == np.float32
    differ = found.view(np.uint32) != wanted.view(np.uint32)
    assert not differ.any(), (f"{what}: {differ.sum()} of {differ.size} differ, first at {tuple(np.argwhere(differ)[0])}: "
                              f"{found[differ][0]!r}, wanted {wanted[differ][0]!r}")  # fmt: skip
    assert np.isfinite(found).all(), what


def python(code, *arguments, timeout=60, **environment):
    """Run code in a fresh interpreter that finds the tests' helpers; returns its stdout."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), **environment}
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=False, capture_output=True, text=True,
                          env=env, timeout=timeout)  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
