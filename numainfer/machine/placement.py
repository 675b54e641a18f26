"""Where a model's memory lies: told, looked up, and put right."""

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _core
from . import pages
from .cpus import ranges
from ..errors import PlacementError, PlacementWarning
from .limits import limits, node_memory
from .policies import EXPERTS, by_group, size
from ..summary import counted

SAMPLES = 4096  # pages of each kept copy that are looked up


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
    mtp : int
        Of the weights, the bytes that are there for the layer that predicts a further token, its experts among them: ``mtp`` of `load`.
    """

    number: int
    cpus: tuple[int, ...]
    weights: int
    scratch: int
    verified: float | None = None
    pretend: int | None = None
    experts: int = 0
    mtp: int = 0

    @property
    def label(self) -> int:
        """The node's number as people see it."""
        return self.number if self.pretend is None else self.pretend


_COLUMNS = ("cores", "CPUs", "weights", "experts", "MTP", "huge pages", "verified", "KV", "scratch")


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

    @property
    def _freed(self):
        """Whether the model was closed: what it had is told, but nothing of it is there."""
        return None in self._seen[1] if self._seen else self._replicas is not None and not self._replicas.arenas

    def huge_share(self, node: NodePlacement) -> float | None:
        """Share of a node's weights that lies in huge pages, 0 to 1; None once the model was closed."""
        if self._seen:
            return self._seen[1][self.nodes.index(node)]
        if self._freed:
            return None
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
        if self._freed:
            raise PlacementError("the model of this placement was closed: its weights are freed")
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
        """Per node: number, cores, CPUs, weights, of them experts' and the predicting layer's (where there are any), their share in huge
        pages, share found on the node, KV cache, scratch, as text."""
        kv, huge = self.kv_bytes(), [self.huge_share(n) for n in self.nodes]
        return [(str(n.label), str(len(n.cpus)), ranges(sorted(n.cpus)), size(n.weights),
                 *[size(n.experts)] * self._has_experts, *[size(n.mtp)] * self._has_head, "-" if share is None else f"{share:.0%}",
                 "not checked" if n.verified is None else f"{n.verified:.1%}",
                 size(kv[n.label]) if kv else "-", size(n.scratch)) for n, share in zip(self.nodes, huge)]

    def _head(self):
        reason = f" ({self.reason})" if self.reason else ""
        sizes = [f"{size(self.kv_bytes_per_token)} per token"] * bool(self.kv_bytes_per_token or not self.kv_window_bytes)
        sizes += [f"at most {size(self.kv_window_bytes)} for windows"] * bool(self.kv_window_bytes)
        used, most = self.prefix_bytes()
        sizes[-1:] = [f"{sizes[-1]}, {size(used)} of at most {size(most)} for prefixes"] if most else sizes[-1:]
        sizes += [f"at most {size(self.kv_state_bytes)} of recurrent state"] * bool(self.kv_state_bytes)
        cpus = f"; {self.cpus}" if self.cpus else ""
        kept = f"; {self.kept}" if self.kept else ""
        kept += "; the model was closed" if self._freed else ""
        return f"{self.policy} on {self.where}{reason}; KV cache {' and '.join(sizes)}{cpus}{kept}"

    def _columns(self):
        without = {EXPERTS: not self._has_experts, "MTP": not self._has_head}
        return ("pretend node" if self._pretend else "node", *(name for name in _COLUMNS if not without.get(name)))

    @property
    def _has_experts(self):
        return any(node.experts for node in self.nodes)

    @property
    def _has_head(self):
        return any(node.mtp for node in self.nodes)

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
        own = [{} if self._freed else {"weights": n.weights, "KV": kv.get(n.label, 0), "scratch": n.scratch} for n in self.nodes]
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
