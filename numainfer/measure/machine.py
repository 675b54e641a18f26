"""Machine: what the nodes of a server can hold, read and compute; measured here, or written down for one that is elsewhere."""

import contextlib
import math
import os
import re
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import numpy as np

from .. import _core
from ..machine import topology as topologies
from ..machine.cpus import domains
from ..machine.limits import Limits
from .bandwidth import least_free, probe_bytes, read_rate
from ..engine.plan import Plan
from ..engine.copies import Replicas
from ..engine.weights import FORMATS, Matrix, Vector

GRAMMAR = "NODESxCORESc,MEMORY,READ[,link=RATE][,barrier=TIME][,macs=RATE], such as 2x32c,256GB,300GB/s,link=90GB/s"
BARRIER = 2e-6  # seconds; of machines that are written down without one
_READ_BYTES = 128 << 20  # per node at least
_TRIES = 5
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}  # fmt: skip
_PREFIX, _MOST = "(?:[kmgt]i?)?", 10**21  # of bytes, or of anything in a second; keeps sums finite
_ANY_CASE = re.IGNORECASE | re.ASCII
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3}


@dataclass(frozen=True)
class Site:
    """One node.

    Attributes
    ----------
    number : int
        The system's number; pretend nodes share one, and its memory.
    cores : int
        Workers there.
    total, free : int or None
        Bytes of memory, as `topology.Node` has them; None: not known.
    read : float or None
        Bytes per second that its workers read from its own memory; None: not measured.
    macs : float or None
        Multiply-adds per second of its workers in a matmul for 32 tokens; None: not known.
    """

    number: int
    cores: int
    total: int | None
    free: int | None
    read: float | None = None
    macs: float | None = None


@dataclass(frozen=True)
class Machine:
    """Nodes and what is between them.

    Attributes
    ----------
    sites : tuple of Site
    link : float or None
        Bytes per second that one node's workers read from another node's memory.
    barrier, node_barrier : float or None
        Seconds for all workers to meet, and for those of one node.
    source : str
        "measured", "given" or "not measured".
    limits : Limits
        What the control group allows all nodes together, where it is less than they have.
    """

    sites: tuple
    link: float | None = None
    barrier: float | None = None
    node_barrier: float | None = None
    source: str = "given"
    limits: Limits = Limits()

    @property
    def measured(self):
        """Whether anything can be said about speed."""
        return all(site.read for site in self.sites)

    def __str__(self):
        """The machine in `parse_machine`'s grammar; unequal nodes are written as so many of the smallest."""
        low = [min((getattr(s, name) or 0) for s in self.sites) for name in ("cores", "total", "read", "macs")]
        parts = [f"{len(self.sites)}x{low[0]}c", _rate(low[1], "B") if low[1] else "?GB", _rate(low[2], "B/s") if low[2] else "?GB/s"]
        if self.link and len(self.sites) > 1:
            parts.append(f"link={_rate(self.link, 'B/s')}")
        if self.barrier:
            parts.append(f"barrier={self.barrier * 1e9:.0f}ns" if self.barrier < 1e-6 else f"barrier={self.barrier * 1e6:.3g}us")
        if low[3]:
            parts.append(f"macs={_rate(low[3], '')}")
        return ",".join(parts)

    def to_dict(self):
        """A dict that ``json`` can write."""
        return asdict(self) | {"sites": [asdict(site) for site in self.sites]}


def _rate(value, unit):
    """3 digits and a decimal unit: "300GB/s", "2.62T"."""
    value = float(f"{value:.3g}")  # first: 999.7 GB are 1 TB, not 1e+03 GB
    power = min(max(int(math.log10(value)) // 3 if value >= 1 else 0, 0), 4)
    return f"{value / 1000**power:.7g}{('', 'K', 'M', 'G', 'T')[power]}{unit}"


def parse_machine(text):
    """A Machine from its description.

    Parameters
    ----------
    text : str
        ``NODESxCORESc,MEMORY,READ[,link=RATE][,barrier=TIME][,macs=RATE]``: equal nodes; memory and read bandwidth of each
        (its own cores from its own memory); what one node reads from the others (with two or more, and only then); seconds
        of a barrier (2us); multiply-adds per second of each node. Units: KB, MB, GB, TB (powers of 1000), KiB ... (of 1024),
        a rate ends in /s; ns, us or ms; ``macs`` takes K, M, G, T. Spaces and case do not matter, but a small b after a
        capital letter means bits and is refused.

    Returns
    -------
    Machine

    Raises
    ------
    ValueError
        Naming the part that is wrong, and what was wanted.
    """

    def fail(part, wanted):
        raise ValueError(f"topology {text!r}: found {part!r}, wanted {wanted}; the form is {GRAMMAR}")

    def number(part, unit, wanted):
        """(value, unit as it was typed) of a part; both are checked for being something that a machine can have."""
        found = re.fullmatch(rf"(?:\w+=)?(\d+(?:\.\d+)?)({unit})", re.sub(r"\s+", "", part), _ANY_CASE)
        return (float(found[1]), found[2]) if found and math.isfinite(float(found[1])) else fail(part, wanted)

    def quantity(part, prefix, unit, wanted):
        value, typed = number(part, prefix + unit, wanted)
        scale = typed[: len(typed) - len(unit)]
        if unit and scale[:1].isupper() and typed[len(scale)] == "b":
            fail(part, f"{wanted}, with B for bytes: {scale}b are bits")
        value *= _UNITS[scale.lower()]
        return value if 0 < value < _MOST else fail(part, wanted)

    positional, named = [], {}
    for part in map(str.strip, text.split(",")):
        name, sign, _ = part.partition("=")
        name = name.strip().lower()
        if not sign:
            if named:
                fail(part, "link=, barrier= and macs= at the end")
            positional.append(part)
        elif name not in ("link", "barrier", "macs"):
            fail(part, "link=RATE, barrier=TIME or macs=RATE")
        elif name in named:
            fail(part, f"{name}= once")
        else:
            named[name] = part
    if not positional:
        fail(text, "nodes and cores of each at the beginning, such as 2x32c")
    shape = re.fullmatch(r"(\d{1,4})x(\d{1,5})c", re.sub(r"\s+", "", positional[0]), _ANY_CASE)
    if not shape or not int(shape[1]) or not int(shape[2]):
        fail(positional[0], "nodes and cores of each, such as 2x32c")
    if len(positional) != 3:
        fail(",".join(positional[1:]), "memory and read bandwidth of each node, such as 256GB,300GB/s")
    n, cores = int(shape[1]), int(shape[2])
    memory = int(quantity(positional[1], _PREFIX, "b", "bytes of memory, such as 256GB"))
    read = quantity(positional[2], _PREFIX, "b/s", "a read bandwidth, such as 300GB/s")
    link, macs, barrier = None, None, BARRIER
    if "link" in named:
        link = quantity(named["link"], _PREFIX, "b/s", "a bandwidth, such as link=90GB/s")
    if "macs" in named:  # a bare number would be a slip: nobody counts them one by one
        macs = quantity(named["macs"], "[kmgt]", "", "multiply-adds per second in K, M, G or T, such as macs=2.5T")
    if "barrier" in named:
        value, unit = number(named["barrier"], "|".join(_TIMES), "a time such as barrier=2us")
        barrier = value * _TIMES[unit.lower()]
    if n > 1 and link is None:
        fail("no link=", "the bandwidth between the nodes, such as link=90GB/s")
    if n == 1 and link is not None:
        fail(named["link"], "no link= with one node")
    sites = tuple(Site(i, cores, memory, memory, read, macs) for i in range(n))
    return Machine(sites, link, barrier, barrier, "given")


def survey(threads=None, nodes=None):
    """This machine's nodes, without measuring; arguments and errors as for `topology.choose_workers`."""
    return _survey(threads, nodes)[0]


def _survey(threads, nodes):
    machine = topologies.topology()
    chosen, cpus, node_of = topologies.choose_workers(machine, threads, nodes)
    sites = tuple(Site(n.number, node_of.count(i), n.total, n.free) for i, n in enumerate(chosen))
    return Machine(sites, source="not measured", limits=machine.limits), cpus, node_of


def measure(threads=None, nodes=None, weight_type="Q4_K"):
    """This machine as its workers find it, best of a few tries; about half a second.

    Parameters
    ----------
    threads, nodes :
        As for `topology.choose_workers`.
    weight_type : str
        GGUF type of the matrices that multiply-adds are counted with.

    Returns
    -------
    Machine

    Raises
    ------
    ValueError
        As `topology.choose_workers`.
    """
    with probing(threads, nodes) as probe:
        machine, teams, sites = probe.machine, probe.teams, []
        count = len(teams)
        for i, site in enumerate(machine.sites):
            sharers = sum(other.number == site.number for other in machine.sites)  # pretend nodes have one memory
            sites.append(replace(site, read=probe.rate(i, i) / sharers, macs=_macs(teams[i], site, weight_type)))
        link = min(probe.rate(i, i - 1) for i in range(count)) if count > 1 else None
        inner = max(barrier_seconds(team) for team in teams)
    cpus, node_of = probe.cpus, probe.node_of
    team = _core.Team(cpus, node_of, domains(cpus))
    try:
        outer = barrier_seconds(team)
    finally:
        team.close()
    return Machine(tuple(sites), link, outer, inner, "measured", machine.limits)


@contextlib.contextmanager
def probing(threads=None, nodes=None):
    """A team and an arena of its own on each node, while the block runs; arguments and errors as for `topology.choose_workers`.

    The block gets ``machine`` (Machine, not measured), ``cpus`` and ``node_of`` of the workers, ``teams``, and ``rate(i, j)``: bytes per
    second that the workers of node i read from the memory of node j.
    """
    machine, cpus, node_of = _survey(threads, nodes)
    n_bytes = probe_bytes(_READ_BYTES, least_free(site.free for site in machine.sites), len(machine.sites))
    arenas, teams = [], []
    try:
        for i, site in enumerate(machine.sites):
            own = [c for c, n in zip(cpus, node_of) if n == i]
            teams.append(_core.Team(own, [0] * site.cores, domains(own)))
            arenas.append(_core.Arena(n_bytes, [site.number], huge=True))
            teams[i].read_time([arenas[i].address], n_bytes, 0)  # writes: first touch by its own node's workers
        yield SimpleNamespace(machine=machine, cpus=cpus, node_of=node_of, teams=teams,
                              rate=lambda i, j: read_rate(teams[i], [arenas[j].address], n_bytes, _TRIES))  # fmt: skip
    finally:
        for thing in (*arenas, *teams):
            thing.close()


def barrier_seconds(team, whole=True, n=500):
    """Seconds of one barrier, back to back, best of a few runs of n; of the team, or of its nodes each for itself."""
    first = team.barrier_time(16, whole) / 16
    n = max(min(n, int(5e6 / max(first, 1))), 16)  # sleepers on shared CPUs need a thousand times longer
    return min(team.barrier_time(n, whole) for _ in range(_TRIES)) / n / 1e9


def _macs(team, site, weight_type):
    """Multiply-adds per second of a team in one matmul for 32 tokens; zeros multiply as fast as anything."""
    tokens, rows, k = 32, 1024 * site.cores, 2048
    table, weight = Matrix("table", weight_type, _core.ROWS, k), Matrix("weight", weight_type, rows, k)
    plan = Plan(1, tokens, _core.CHUNK)
    _, h = plan.norm(plan.embed(table), Vector("norm", np.ones(k, np.float32)), 1e-5, selected=True)
    plan.logits(h, weight)
    ops, tensors = plan.compile().arrays()
    replicas, core = Replicas(plan.weights, [site.number], "local"), None
    try:
        row_bytes = k // FORMATS[weight_type]["block"] * FORMATS[weight_type]["block_bytes"] + FORMATS[weight_type]["head_bytes"]
        with open(os.memfd_create("zeros"), "r+b", buffering=0) as zeros:
            zeros.truncate(rows * row_bytes)
            pieces = [(replicas.entry(w), *((w.values.ctypes.data, w.packed_bytes) if isinstance(w, Vector) else
                                            ((zeros.fileno(), 0), row_bytes))) for w in plan.weights]  # fmt: skip
            team.fill(pieces, np.zeros(len(pieces), np.uint8))
        core = _core.Plan(team, ops, tensors, [replicas.entry(w) for w in plan.weights], plan.arena_bytes, tokens, [0], [site.number])
        ids, wanted = np.zeros(tokens, np.int32), np.arange(tokens, dtype=np.int32)
        segments = np.zeros(1, _core.SEGMENT_DTYPE)
        segments["n"] = tokens
        out, matmul = np.empty((tokens, rows), np.float32), len(plan.ops) - 1
        core.set_timing(True)
        best = math.inf
        for _ in range(_TRIES + 1):
            core.run(ids, segments, wanted, out)
            best = min(best, int(core.times()[0][matmul]))
    finally:
        if core is not None:
            core.close()
        replicas.close()
    return tokens * rows * k / best * 1e9
