"""Where things are: the machine's nodes and CPUs, and a model's memory on them."""

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _core
from . import cpus as cpus_of, pages
from .cpus import ranges as _ranges
from ..errors import PlacementError, PlacementWarning
from .limits import Limits, limits, listed, node_memory, online_nodes
from .policies import EXPERTS, by_group, size
from ..summary import counted

SAMPLES = 4096  # pages of each kept copy that are looked up
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
            lines.append(f"  node {node.label}: {counted(len(node.cpus), 'core')} ({_ranges(node.cpus)}), "
                         f"{'memory unknown' if node.free is None else f'{size(node.free)} free of {size(node.total)}'}")
        said = self.limits.describe()
        return "\n".join(lines + [f"  {said}"] * bool(said))

    def _repr_html_(self) -> str:
        from .. import looks

        rows = [(str(n.label), str(len(n.cpus)), _ranges(n.cpus), size(n.free), size(n.total)) for n in self.nodes]
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
        core = _siblings(cpu)
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


def _siblings(cpu):
    return pages.read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


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
        refuse(f"this process may not run on CPU {cpu} (its affinity, or its cpuset); cores that it may use: {_ranges(own)}"
               if cpus_of.exists(cpu) else f"there is no CPU {cpu}; cores that this process may use: {_ranges(own)}")
    owner = {cpu: node_of_core[cpus_of.core(cpu)] for cpu in cpus}
    chosen = [node for node in topology.nodes if node in owner.values()]
    if nodes is not None and sorted(nodes) != sorted(node.label for node in chosen):
        refuse(f"they lie on nodes {[node.label for node in chosen]}, but nodes = {list(nodes)}; leave nodes out")
    per_node = [cpus_of.side_by_side(cpu for cpu in cpus if owner[cpu] is node) for node in chosen]
    counts = [len(group) for group in per_node]
    if threads is not None and threads not in (len(cpus), counts):
        refuse(f"they are for {counted(len(cpus), 'thread')}, but threads = {threads}; leave threads out")
    return chosen, [cpu for group in per_node for cpu in group], [i for i, group in enumerate(per_node) for _ in group]


@dataclass
class NodePlacement:
    """One node's share of a model.

    Attributes
    ----------
    number : int
        The system's number of the node.
    cpus : tuple of int
        Where its workers run.
    weights, scratch : int
        Bytes of weights, and of activations and scratch memory.
    verified : float or None
        Share of the weights' pages that was found on the node, 0 to 1; None: not checked.
    pretend : int or None
        Index of a pretend node.
    experts : int
        Of the weights, the bytes that are experts', of which a token reads a few.
    """

    number: int
    cpus: tuple[int, ...]
    weights: int
    scratch: int
    verified: float | None = None
    pretend: int | None = None
    experts: int = 0

    @property
    def label(self) -> int:
        """The node's number as people see it."""
        return self.number if self.pretend is None else self.pretend


_COLUMNS = ("cores", "CPUs", "weights", "experts", "huge pages", "verified", "KV", "scratch")


@dataclass
class Placement:
    """A model's memory on the nodes.

    Attributes
    ----------
    policy : str
        "replicate", "shard", "interleave" or "local"; or a policy for each group of weights, such as "experts=shard,*=replicate".
    reason : str
        Why, if "auto" chose it.
    nodes : list of NodePlacement
    kv_bytes_per_token : int
        KV memory per token of context, touched as it fills, of layers that see all of it.
    cpus : str
        Which CPUs the workers have and why, if others hold some: ``"CPU 1 (0 is held by another model of this process)"``.
    kv_window_bytes : int
        Most KV memory of a sequence's layers with windows.
    kv_state_bytes : int
        Most memory of a sequence's recurrent state, checkpoints included.
    kept : str
        Of weights in shared memory: under which name, since when, and why not in huge pages.
    """

    policy: str
    reason: str
    nodes: list[NodePlacement]
    kv_bytes_per_token: int
    _replicas: Any = field(repr=False, default=None)
    _caches: Any = field(repr=False, default=None)
    cpus: str = ""
    kv_window_bytes: int = 0
    kept: str = ""
    kv_state_bytes: int = 0
    _seen: Any = field(repr=False, default=None)  # of a copy, which looks up nothing any more: KV bytes, huge shares, memory, prefixes

    def __getstate__(self):
        """A copy, here or in another process, says what was so when it was made."""
        seen = self._seen or (self.kv_bytes(), [self.huge_share(node) for node in self.nodes], self._memory(), self.prefix_bytes())
        return vars(self) | {"_replicas": None, "_caches": None, "_seen": seen}

    @property
    def policies(self) -> dict[str, str]:
        """The policy by group of weights, as `load` takes it: ``{"experts": "shard", "*": "replicate"}``, or of all ``{"*": "shard"}``."""
        return by_group(self.policy)

    @property
    def where(self) -> str:
        """``"2 nodes"``, or ``"2 pretend nodes"`` (NUMAINFER_FAKE_NODES), which prove nothing about two real ones."""
        return counted(len(self.nodes), "pretend node" if self._pretend else "node")

    @property
    def _pretend(self):
        return any(node.pretend is not None for node in self.nodes)

    def kv_bytes(self) -> dict[int, int]:
        """Bytes of KV cache in use now, by the node's number (index of a pretend one); empty where the kernel does not tell.

        Pretend nodes share a real one's memory: there it is the node whose workers append to a page that has it.
        """
        if self._seen:
            return dict(self._seen[0])
        found = Counter({node.label: 0 for node in self.nodes})
        if self._caches is None:
            return dict(found)
        if not self._pretend and _core.numa_max_node() > 0:
            found.update(pages.bytes_by_node(self._caches.slabs()))
            return dict(found)
        own = self._caches.bytes_by_owner()
        return {} if own is None else {self.nodes[i].label: n for i, n in own.items()}

    def prefix_bytes(self) -> tuple[int, int]:
        """Bytes of KV cache in which beginnings of sequences are kept for others, part of `kv_bytes` as far as their pages are touched,
        and the most that may be: ``prefix_cache`` of `load`.  What sequences share that are going on counts too."""
        if self._seen:
            return self._seen[3]
        kept = None if self._caches is None else self._caches.kept
        return (0, 0) if kept is None else (kept.bytes, kept.most)

    def huge_share(self, node: NodePlacement) -> float:
        """Share of a node's weights that lies in huge pages, 0 to 1."""
        if self._seen:
            return self._seen[1][self.nodes.index(node)]
        arenas = self._replicas.arenas
        ((total, huge),) = pages.resident([arenas[self.nodes.index(node) % len(arenas)]])
        return huge / max(total, 1)

    def verify(self, strict: bool = True) -> "Placement":
        """Look up the node of every resident page of the weights; move those that stray.  Returns self.

        A huge page is asked about once, where all of a node's weights lie in such pages.  Ctrl-C ends it between two slices of 32 MiB.
        Of weights that are kept (``load(..., keep=)``) every page was looked up when they were filled; now `SAMPLES` pages of each
        copy are.

        Where the kernel refuses ``move_pages``, ``/proc/self/numa_maps`` tells instead, and strays stay where they are.

        Raises
        ------
        PlacementError
            Pages lie on another node and cannot be moved (with `strict`; else PlacementWarning).

        Warns
        -----
        PlacementWarning
            Once, of all in the system that keeps pages from being bound or checked, and how to mend it.
        """
        if self._seen:
            raise PlacementError("this placement is a copy: it tells what was so when it was made; verify model.placement itself")
        notes, refused, kept = [], 0, self._replicas.kept
        arenas, spread = self._replicas.arenas, self.policy == "interleave"
        all_huge = pages.all_huge(arenas) if kept is None else [True] * len(arenas)  # a sample needs not know
        for i, (node, arena, huge) in enumerate(zip(self.nodes, arenas, all_huge)):
            found, errno = look_up(arena, -1 if spread else node.number, huge, kept is not None)
            refused = refused or errno
            if found is None:
                notes.append(f"the kernel does not tell where pages lie ({os.strerror(errno)}); in a container add the SYS_NICE "
                             "capability")
                break
            if spread:  # one copy, on all of the nodes
                for each in self.nodes:
                    each.verified = float(sum(found[n] for n in {n.number for n in self.nodes}) / max(found.sum(), 1))
                    each.verified = _least(each.verified, kept and kept.verified[0])
                break
            stray = int(found.sum() - found[node.number])
            node.verified = float(found[node.number] / max(found.sum(), 1))
            node.verified = _least(node.verified, kept and kept.verified[i])
            if stray or node.verified < 1:
                message = f"{stray} bytes of node {node.label}'s weights lie on other nodes and could not be moved"
                if kept is not None:
                    message = (f"{1 - node.verified:.1%} of node {node.label}'s weights, kept as {kept.name!r}, lie on other nodes; "
                               f"drop them and load again: numainfer keep --drop {kept.name}")  # fmt: skip
                if strict:
                    raise PlacementError(message)
                notes.append(message)
        unbound = _core.numa_available() and not all(kept.bound if kept else (arena.bound for arena in arenas))
        if unbound or refused:
            done = ["the threads' first touch placed the pages"] * unbound
            done += ["/proc/self/numa_maps told where they lie"] * bool(refused)
            notes.append(f"the kernel refuses {' and '.join(['mbind'] * unbound + ['move_pages'] * bool(refused))}: {', '.join(done)}; "
                         "in a container add the SYS_NICE capability (docker run --cap-add SYS_NICE)")
        if pages.read("/proc/sys/kernel/numa_balancing") not in ("", "0") and len(self.nodes) > 1:
            notes.append("kernel.numa_balancing is on: it moves pages that are not bound, and costs time; "
                         "switch it off with: sysctl kernel.numa_balancing=0")
        if notes:
            warnings.warn("; ".join(notes), PlacementWarning, stacklevel=2)
        return self

    def rows(self) -> list[tuple[str, ...]]:
        """Per node: number, cores, CPUs, weights, of them experts' (where there are any), their share in huge pages, share found on the
        node, KV cache, scratch, as text."""
        kv = self.kv_bytes()
        return [(str(n.label), str(len(n.cpus)), _ranges(sorted(n.cpus)), size(n.weights),
                 *[size(n.experts)] * self._has_experts, f"{self.huge_share(n):.0%}",
                 "not checked" if n.verified is None else f"{n.verified:.1%}",
                 size(kv[n.label]) if kv else "-", size(n.scratch)) for n in self.nodes]

    def _head(self):
        reason = f" ({self.reason})" if self.reason else ""
        sizes = [f"{size(self.kv_bytes_per_token)} per token"] * bool(self.kv_bytes_per_token or not self.kv_window_bytes)
        sizes += [f"at most {size(self.kv_window_bytes)} for windows"] * bool(self.kv_window_bytes)
        used, most = self.prefix_bytes()
        sizes[-1:] = [f"{sizes[-1]}, {size(used)} of at most {size(most)} for prefixes"] if most else sizes[-1:]
        sizes += [f"at most {size(self.kv_state_bytes)} of recurrent state"] * bool(self.kv_state_bytes)
        cpus = f"; {self.cpus}" if self.cpus else ""
        kept = f"; {self.kept}" if self.kept else ""
        return f"{self.policy} on {self.where}{reason}; KV cache {' and '.join(sizes)}{cpus}{kept}"

    def _columns(self):
        return ("pretend node" if self._pretend else "node", *(name for name in _COLUMNS if name != EXPERTS or self._has_experts))

    @property
    def _has_experts(self):
        return any(node.experts for node in self.nodes)

    def __str__(self) -> str:
        rows = [self._columns(), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows)]
        table = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)
        return f"{self._head()}\n{table}"

    def _memory(self):
        """(total, free) bytes of each node, None where the system does not tell."""
        return self._seen[2] if self._seen else [node_memory(n.number, limits().memory) for n in self.nodes]

    def _bars(self):
        """Per node: label, what holds how much of its memory, all of that, and a word on it."""
        kv, memory, rows = self.kv_bytes(), self._memory(), []
        own = [{"weights": n.weights, "KV": kv.get(n.label, 0), "scratch": n.scratch} for n in self.nodes]
        for n, parts, (total, free) in zip(self.nodes, own, memory):
            note = "not checked" if n.verified is None else f"{n.verified:.1%} of the weights verified here"
            if total is not None and free is not None:
                ours = sum(sum(p.values()) for p, other in zip(own, self.nodes) if other.number == n.number)  # pretend nodes share it
                parts, note = parts | {"others": max(total - free - ours, 0)}, f"{size(free)} of {size(total)} free; {note}"
            rows.append((f"node {n.label}", parts, total, note))
        return rows

    def _repr_html_(self) -> str:
        from .. import looks

        return looks.table(self._columns(), self.rows(), self._head()) + looks.bars(self._bars())

    def plot(self, ax: Any = None) -> Any:
        """A bar for each node: weights, KV memory, scratch, what others use, and what is free.

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
        """
        from .. import looks

        return looks.draw_bars(ax, self._bars(), f"{self.policy} on {self.where}")


def _least(*shares):
    """Of those that are known."""
    return min(share for share in shares if share is not None)


def look_up(arena, home, huge, sample=False):
    """Resident bytes by node (None if nothing tells), strays moved `home` first; and the errno if move_pages was refused.

    ``sample``: of `SAMPLES` pages, which are moved nowhere.
    """
    n_nodes = _core.numa_max_node() + 1
    found = arena.sample(n_nodes, SAMPLES) if sample else arena.count(n_nodes, home, huge)
    if not isinstance(found, int):
        return found, 0
    counts = np.zeros(n_nodes, np.int64)
    for node, n_bytes in pages.bytes_by_node([arena]).items():
        counts[node] = n_bytes
    return counts if counts.any() else None, found
