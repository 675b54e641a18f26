"""How much memory and CPU time there is for this process: what the nodes have, and what its control groups allow of it.

Only what the kernel says in files is read here.  CPU sets need no reading: affinity and ``Mems_allowed`` have them in already.
Formats: proc(5); the kernel's admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from . import pages
from ..arguments import number_list
from ..summary import counted, short_bytes

log = logging.getLogger("numainfer")

RESERVE = 0.05  # of a node's memory, or of what a control group allows, that a model leaves free
_NODES = "/sys/devices/system/node"
_NO_LIMIT = 1 << 60  # v1 has no word for none: the most that it can count, rounded to pages


def spare(total, free):
    """Bytes that a model may take of so many free ones: all but the reserve; None where that is not known."""
    return None if free is None else max(int(free - RESERVE * total), 0)


@dataclass(frozen=True)
class Allowance:
    """Memory that a control group allows its processes, on all nodes together.

    Attributes
    ----------
    total, free : int
        The limit, and what is left of it.
    file : str
        Where the limit stands.
    """

    total: int
    free: int
    file: str

    @property
    def spare(self) -> int:
        """What a model may take."""
        return spare(self.total, self.free)


@dataclass(frozen=True)
class Limits:
    """What the control groups of this process allow: the least of its own and of all that it lies in.

    Attributes
    ----------
    cpus : float or None
        CPUs' worth of time, at least 1; None: no limit, or none that can be seen.
    memory : Allowance or None
        Of the group that has the least left.
    cores : int
        Of how many `cpus` are, where that is known.
    """

    cpus: float | None = None
    memory: Allowance | None = None
    cores: int = 0

    def binding(self, cores, nodes) -> "Limits":
        """Those that allow less than a machine has: so many cores, and nodes with such (total, free) bytes."""
        rooms = [spare(*node) for node in nodes]
        less = self.memory is not None and (None in rooms or self.memory.spare < sum(rooms))
        return Limits(self.cpus if self.cpus is not None and self.cpus < cores else None, self.memory if less else None, cores)

    def describe(self) -> str | None:
        """A line about them; None where there is no limit."""
        said = [] if self.cpus is None else [f"{self.cpus:.3g} of {counted(self.cores, 'core')}"]
        if self.memory is not None:
            said.append(f"{short_bytes(self.memory.total)} of memory, {short_bytes(self.memory.free)} of it free ({self.memory.file})")
        return f"control group allows {' and '.join(said)}" if said else None


def limits() -> Limits:
    """The limits now.  What cannot be read or understood is no limit; what cannot be understood is logged."""
    folders, allowed, cpus = _folders(), [], []
    for folder in folders["memory"]:
        allowed += _memory(folder)
    for folder in folders["cpu"]:
        cpus += _cpus(folder)
    memory = min(allowed, key=lambda a: (a.spare, a.total, a.file.endswith("stat")), default=None)  # a stat repeats another's limit
    return Limits(max(min(cpus), 1.0) if cpus else None, memory)


def node_memory(number, memory=None):
    """(total, free) bytes of a node, or those of an Allowance where it leaves less; (None, None) where the system does not tell.

    Pages of files count as free, recently used ones too, except those still to be written: the kernel gives them up when asked
    for memory.  Memory shared between processes (tmpfs) is not among them.
    """
    total, free = _available(_fields(f"{_NODES}/node{number}/meminfo"))
    if total is None and len(online_nodes()) < 2:  # the machine's memory is the one node's
        total, free = _available(_fields("/proc/meminfo"))
        if total is None:
            total, free = _sysconf()
    if memory is not None and (total is None or memory.spare < spare(total, free)):
        return memory.total, memory.free
    return total, free


def online_nodes():
    """Numbers of the nodes; empty where the system does not tell."""
    return listed(pages.read(f"{_NODES}/online"))


def listed(text):
    """The numbers of a list that the kernel wrote, such as ``0-3,8``; empty if it is none."""
    try:
        return number_list("list", text) if text else []
    except ValueError:
        return []


def _fields(path):
    """{name: bytes} of a meminfo file, whose lines read ``Node 0 MemFree:  1024 kB`` or without the node."""
    return {name: int(count) << 10 for name, count in re.findall(r"(\w+(?:\(\w+\))?):[ \t]+([0-9]{1,20}) kB", pages.read(path))}


def _available(fields):
    total = fields.get("MemTotal")
    if total is None:
        return None, None
    free = fields.get("MemAvailable")  # of the whole machine: the kernel's own sum
    if free is None:
        unwritten = fields.get("Dirty", 0) + fields.get("Writeback", 0)
        files = fields.get("Active(file)", 0) + fields.get("Inactive(file)", 0)
        free = fields.get("MemFree", 0) + max(files - unwritten, 0)
    return total, min(free, total)


def _sysconf():
    sizes = [os.sysconf(name) for name in ("SC_PAGESIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES")]
    return (sizes[0] * sizes[1], sizes[0] * sizes[2]) if min(sizes) > 0 else (None, None)


# ---- control groups ----------------------------------------------------------------------------------------------------


def _folders():
    """{"memory" or "cpu": folders of the groups that this process lies in}, the innermost first.

    A line of ``/proc/self/cgroup`` names a group by its path in a hierarchy, a line of ``mountinfo`` says which part of that hierarchy
    is seen where.  Version 1 has a hierarchy per set of controllers, version 2 one without names; a machine may have both.
    A container often sees its own group only, mounted as if it were the top, while ``cgroup`` still tells the path from outside:
    then the mount itself is taken.
    """
    mounts = []
    for line in pages.read("/proc/self/mountinfo").splitlines():
        words = line.split()
        if "-" in words[6:]:
            kind, _, options = (words[words.index("-", 6) + 1 :] + ["", "", ""])[:3]
            if kind in ("cgroup", "cgroup2") and len(words) > 4:
                names = {""} if kind == "cgroup2" else set(options.split(","))
                mounts.append((names, _unescaped(words[3]), _unescaped(words[4])))
    found = {"memory": [], "cpu": []}
    for line in pages.read("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for wanted, folders in found.items():
            if not controllers or wanted in controllers.split(","):
                own = "" if not controllers else wanted
                seen = [(root, point) for names, root, point in mounts if own in names]
                inside = [group for root, point in seen for group in _between(path, root, point)]
                folders += inside or [point for _, point in seen]
    return {name: list(dict.fromkeys(folders)) for name, folders in found.items()}


def _unescaped(word):
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _between(path, root, point):
    """Folders from a group's up to the mount that shows it; none if the mount shows another part of the hierarchy."""
    own, top = PurePosixPath(path), PurePosixPath(root)
    if ".." in own.parts or not own.is_relative_to(top):
        return []
    inner = own.relative_to(top)
    return [str(PurePosixPath(point, part)) for part in (inner, *inner.parents)]


def _number(path):
    """The number in a file, or None: there is no such file, it says that there is no limit, or it says something else."""
    text = pages.read(path)
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    if text not in ("", "max"):
        log.warning("%s says %r, wanted a number; it is taken as no limit", path, text[:40])
    return None


def _memory(folder):
    """The Allowances that a group's files set.

    ``memory.high`` counts as ``memory.max`` does: nobody is killed there, but what goes beyond is slowed to a crawl.
    ``hierarchical_memory_limit`` is the least of a version 1 group's ancestors, seen from here or not.
    """
    stat = dict(re.findall(r"^(\w+) ([0-9]{1,20})$", pages.read(f"{folder}/memory.stat"), re.MULTILINE))
    found = {name: _number(f"{folder}/{name}") for name in ("memory.max", "memory.high", "memory.limit_in_bytes")}
    if "hierarchical_memory_limit" in stat:
        found["memory.stat"] = int(stat["hierarchical_memory_limit"])
    found = {name: n for name, n in found.items() if n is not None and 0 <= n < _NO_LIMIT}
    if not found:
        return []
    old = "memory.limit_in_bytes" in found or "memory.stat" in found
    used = _number(f"{folder}/{'memory.usage_in_bytes' if old else 'memory.current'}") or 0
    names = ("total_inactive_file", "total_active_file", "total_dirty", "total_writeback") if old else \
            ("inactive_file", "active_file", "file_dirty", "file_writeback")  # fmt: skip
    inactive, active, dirty, writing = (int(stat.get(name, 0)) for name in names)
    used -= max(inactive + active - dirty - writing, 0)
    return [Allowance(n, min(max(n - used, 0), n), f"{folder}/{name}") for name, n in found.items()]


def _cpus(folder):
    """CPUs' worth of time by a group's files: ``cpu.max`` ("50000 100000" or "max 100000"), or a quota and a period; in microseconds."""
    found, text = [], pages.read(f"{folder}/cpu.max")
    if match := re.fullmatch(r"([0-9]{1,18}) ([0-9]{1,18})", text):
        found.append((int(match[1]), int(match[2])))
    elif text and not text.startswith("max"):
        log.warning("%s/cpu.max says %r, wanted a quota and a period; it is taken as no limit", folder, text[:40])
    found.append((_number(f"{folder}/cpu.cfs_quota_us"), _number(f"{folder}/cpu.cfs_period_us")))
    return [quota / period for quota, period in found if quota is not None and period is not None and quota > 0 and period > 0]
