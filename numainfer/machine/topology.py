"""The machine as this process may use it: nodes, their CPUs and memory; and which CPUs a team's workers get."""

import os
from dataclasses import dataclass
from typing import Any

from .. import _core
from . import cpus as cpus_of, pages
from .cpus import ranges
from .limits import Limits, limits, listed, node_memory, online_nodes
from .policies import size
from ..summary import counted

FAKE_NODES = "NUMAINFER_FAKE_NODES"


@dataclass(frozen=True)
class Node:
    """One NUMA node that this process may use.

    Attributes
    ----------
    number : int
        The system's number of it; pretend nodes share one.
    cpus : tuple of int
        CPUs to run on: one per physical core, SMT siblings left out.
    total, free : int or None
        Bytes of memory: the node's, or the control group's where that allows less; None where the system does not tell.
    pretend : int or None
        Index of a pretend node.
    """

    number: int
    cpus: tuple[int, ...]
    total: int | None
    free: int | None
    pretend: int | None = None

    @property
    def label(self) -> int:
        """The number that ``load(..., nodes=)`` takes and that people see."""
        return self.number if self.pretend is None else self.pretend


@dataclass(frozen=True)
class Topology:
    """The machine as this process may use it.

    Attributes
    ----------
    nodes : tuple of Node
        Those with CPUs and memory.
    pretend : int
        Number of pretend nodes (NUMAINFER_FAKE_NODES), 0 for real ones.
    limits : Limits
        What the control group allows all nodes together, where it is less than they have.
    distances : tuple of tuple of int
        ``distances[i][j]``: the firmware's, of node i's CPUs from node j's memory; 10 is its own. Empty where the system does not tell.
    bandwidth : tuple of tuple of float
        ``bandwidth[i][j]``: bytes per second that node i's cores read from node j's memory. Empty: not measured.
    """

    nodes: tuple[Node, ...]
    pretend: int = 0
    limits: Limits = Limits()
    distances: tuple[tuple[int, ...], ...] = ()
    bandwidth: tuple[tuple[float, ...], ...] = ()

    def _head(self):
        return f"{counted(len(self.nodes), 'pretend NUMA node' if self.pretend else 'NUMA node')}, kernels: {_core.isa()}"

    def __str__(self) -> str:
        lines = [self._head()]
        for node in self.nodes:
            lines.append(f"  node {node.label}: {counted(len(node.cpus), 'core')} ({ranges(node.cpus)}), "
                         f"{'memory unknown' if node.free is None else f'{size(node.free)} free of {size(node.total)}'}")
        said = self.limits.describe()
        return "\n".join(lines + [f"  {said}"] * bool(said))

    def _repr_html_(self) -> str:
        from .. import looks

        rows = [(str(n.label), str(len(n.cpus)), ranges(n.cpus), size(n.free), size(n.total)) for n in self.nodes]
        title = "; ".join(filter(None, (self._head(), self.limits.describe())))
        shown = looks.table(("node", "cores", "CPUs", "free", "memory"), rows, title)
        used = [(n, {"others": max(n.total - n.free, 0)}) for n in self.nodes if n.total is not None and n.free is not None]
        shown += looks.bars([(f"node {n.label}", parts, n.total, f"{size(n.free)} free") for n, parts in used]) if used else ""
        for title, values, written, far in self._matrices():
            shown += looks.matrix(title, [n.label for n in self.nodes], values, written, far)
        return shown

    def _matrices(self):
        """What is known from node to node: title, values, how one is written, and whether more is worse."""
        found = [("distances", self.distances, str, True), ("GB/s read, by row from column", self.bandwidth, _gigabytes, False)]
        return [each for each in found if each[1]]

    def plot(self, ax: Any = None) -> Any:
        """A heat map of the distances, or of the bandwidth where it was measured; the numbers of both stand in it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure's by default.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            matplotlib is missing (``pip install 'numainfer[plot]'``).
        ValueError
            The system tells no distances, and nothing was measured.
        """
        from .. import looks

        known = self._matrices()
        if not known:
            raise ValueError("the system tells no distances between nodes, and no bandwidth was measured: numainfer.topology(measure=True)")
        n = range(len(self.nodes))
        texts = [["\n".join(f"{written(values[i][j])}{' GB/s' if values is self.bandwidth else ''}" for _, values, written, _ in known)
                  for j in n] for i in n]  # fmt: skip
        _, values, _, far = known[-1]
        names = " and ".join("read bandwidth" if v is self.bandwidth else "distance" for _, v, _, _ in known)
        labels = [f"node {node.label}" for node in self.nodes]
        return looks.draw_matrix(ax, f"{names}: the row's cores, the column's memory", labels, values, texts, far)


def _gigabytes(rate):
    return f"{rate / 1e9:.1f}"


def topology() -> Topology:
    """The nodes, cores and memory that this process may use, within its CPU affinity and cpuset.

    Returns
    -------
    Topology

    Raises
    ------
    ValueError
        NUMAINFER_FAKE_NODES is not a number from 1 to 64.
    """
    allowed = sorted(_allowed_cpus())
    by_node, seen, homes = {}, set(), {}
    for cpu in allowed:
        core = cpus_of.core(cpu)
        if core not in seen:
            seen.add(core)
            number = _node_of(cpu)
            home = homes[number] = homes[number] if number in homes else _memory_node(number)
            by_node.setdefault(home, []).append(cpu)
    found = limits().binding(len(seen), [node_memory(number) for number in by_node])
    nodes = tuple(Node(number, tuple(cpus), *node_memory(number, found.memory)) for number, cpus in sorted(by_node.items()))
    asked = os.environ.get(FAKE_NODES)
    if not asked:
        return Topology(nodes, limits=found, distances=distances(nodes))
    if not asked.isdecimal() or not 1 <= int(asked) <= 64:
        raise ValueError(f"{FAKE_NODES} = {asked!r}; wanted a number of nodes from 1 to 64")
    count, cpus = int(asked), [cpu for node in nodes for cpu in node.cpus]
    shares = [cpus[i * len(cpus) // count:(i + 1) * len(cpus) // count] or [cpus[i % len(cpus)]] for i in range(count)]
    real = [nodes[i % len(nodes)] for i in range(count)]
    made = tuple(Node(n.number, tuple(share), n.total, n.free, i) for i, (n, share) in enumerate(zip(real, shares)))
    return Topology(made, count, found, distances(made))


def distances(nodes):
    """From each node to each, as the firmware has them; () where the system does not tell."""
    online, rows = online_nodes(), []
    for node in nodes:
        told = pages.read(f"/sys/devices/system/node/node{node.number}/distance").split()
        known = {n: int(d) for n, d in zip(online, told)}
        if not all(other.number in known for other in nodes):
            return ()
        rows.append(tuple(known[other.number] for other in nodes))
    return tuple(rows)


def _allowed_cpus():
    """CPUs that this process may use.

    Under OMP_PROC_BIND OpenMP ties the thread that loads it to its first place; the other places count too then.
    """
    own, places = os.sched_getaffinity(0), _core.omp_places()
    return own.union(*places) if own in places else own


def node_cpus(number):
    """The node's CPUs that this thread may use, SMT siblings too; empty where the system does not tell."""
    return os.sched_getaffinity(0).intersection(listed(pages.read(f"/sys/devices/system/node/node{number}/cpulist")))


def _node_of(cpu):
    """The CPU's node; where the system does not tell, the first one."""
    number = _core.numa_node_of_cpu(cpu)
    return number if number >= 0 else next(iter(online_nodes()), 0)


def _memory_node(number):
    """The node itself, or the nearest one that has memory and lets this process (its cpuset) use it."""
    status = dict(line.partition(":")[::2] for line in pages.read("/proc/self/status").splitlines())
    online, allowed = online_nodes(), listed(status.get("Mems_allowed_list", "").strip()) or [number]
    usable = {n for n in online if n in allowed and node_memory(n)[0] != 0}
    told = pages.read(f"/sys/devices/system/node/node{number}/distance").split()
    if number in usable or not usable or not told:
        return number
    return min((int(d), n) for d, n in zip(told, online) if n in usable)[1]


def choose_workers(topology, threads=None, nodes=None, cpus=None, held=None):
    """CPUs for a team's workers.

    Parameters
    ----------
    topology : Topology
    threads : int or list of int, optional
        Workers in all, spread evenly, or on each node; by default one per core, or as many as the control group's quota feeds.
    nodes : list of int, optional
        Numbers of the nodes to use (indices of pretend ones); by default all.
    cpus : list of int, optional
        Exactly these CPUs.
    held : dict, optional
        CPUs that others hold (`cpus.holders`); they are taken last.

    Returns
    -------
    chosen : list of Node
    cpus, node_of : list of int
        Per worker: its CPU, and the index of its node in `chosen`. Within a node those of one L3 cache stand side by side.

    Raises
    ------
    ValueError
        An unknown node, or more threads than cores, or fewer than nodes; CPUs that are not there, or not for this process, or
        contradict threads or nodes.
    """
    if cpus is not None:
        return _named_workers(topology, threads, nodes, cpus)
    known = {node.label: node for node in topology.nodes}
    if nodes is not None:
        unknown = [n for n in nodes if n not in known]
        if unknown or not nodes or len(set(nodes)) != len(nodes):
            raise ValueError(f"nodes = {list(nodes)!r}; wanted different numbers among {sorted(known)}")
    chosen = [known[n] for n in (sorted(nodes) if nodes is not None else known)]
    cores = sum(len(node.cpus) for node in chosen)
    if isinstance(threads, (list, tuple)):
        if len(threads) != len(chosen) or any(not 1 <= n <= len(node.cpus) for n, node in zip(threads, chosen)):
            raise ValueError(f"threads = {list(threads)!r}; wanted a number for each of nodes {[n.label for n in chosen]}, from 1 to its "
                             f"cores, {[len(n.cpus) for n in chosen]}")
        return _workers(chosen, threads, held)
    if threads is None:
        threads = max(min(cores, int(topology.limits.cpus or cores)), len(chosen))
    if not len(chosen) <= threads <= cores:
        raise ValueError(f"threads = {threads}; wanted {len(chosen)} to {cores}: at least one per node, at most one per core")
    counts = [0] * len(chosen)
    for _ in range(threads):  # the next worker goes where the smallest share of cores is taken
        i = min((i for i, node in enumerate(chosen) if counts[i] < len(node.cpus)),
                key=lambda i: (counts[i] > 0, counts[i] / len(chosen[i].cpus), i))
        counts[i] += 1
    return _workers(chosen, counts, held)


def _workers(chosen, counts, held):
    cpus = [cpu for node, count in zip(chosen, counts) for cpu in cpus_of.pick(node.cpus, count, held or {})]
    return chosen, cpus, [i for i, count in enumerate(counts) for _ in range(count)]


def _named_workers(topology, threads, nodes, cpus):
    """`choose_workers` where the user names the CPUs."""
    def refuse(why):
        raise ValueError(f"cpus = {list(cpus)}: {why}")

    own = sorted({cpu for node in topology.nodes for cpu in node.cpus})
    node_of_core = {}
    for node in topology.nodes:
        for cpu in node.cpus:
            node_of_core.setdefault(cpus_of.core(cpu), node)
    if len(set(cpus)) < len(cpus):
        refuse(f"CPU {next(cpu for cpu in cpus if list(cpus).count(cpu) > 1)} stands there twice")
    others = set(cpus) - set(own)
    for cpu in sorted(others - _allowed_cpus() if others else others):  # a second CPU of a core is not in the topology
        refuse(f"this process may not run on CPU {cpu} (its affinity, or its cpuset); cores that it may use: {ranges(own)}"
               if cpus_of.exists(cpu) else f"there is no CPU {cpu}; cores that this process may use: {ranges(own)}")
    owner = {cpu: node_of_core[cpus_of.core(cpu)] for cpu in cpus}
    chosen = [node for node in topology.nodes if node in owner.values()]
    if nodes is not None and sorted(nodes) != sorted(node.label for node in chosen):
        refuse(f"they lie on nodes {[node.label for node in chosen]}, but nodes = {list(nodes)}; leave nodes out")
    per_node = [cpus_of.side_by_side(cpu for cpu in cpus if owner[cpu] is node) for node in chosen]
    counts = [len(group) for group in per_node]
    if threads is not None and threads not in (len(cpus), counts):
        refuse(f"they are for {counted(len(cpus), 'thread')}, but threads = {threads}; leave threads out")
    return chosen, [cpu for group in per_node for cpu in group], [i for i, group in enumerate(per_node) for _ in group]
