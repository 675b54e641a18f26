"""Where the kernel says that memory lies: pages of address ranges, by node and by size."""

import os
import re
from collections import Counter
from pathlib import Path

ROOT = "/"
"""What the paths of the kernel's files begin with; tests make up a system in a folder of their own."""
_HEADER = re.compile(r"([0-9a-f]+)-[0-9a-f]+ ")


def read(path):
    """Text of a file of the kernel, "" if there is none."""
    try:
        return Path(ROOT, path.lstrip("/")).read_text(errors="replace").strip()
    except OSError:
        return ""


def _within(start, arenas):
    # An arena's flags keep it from merging with its neighbours, so its mappings begin inside it.
    return any(arena.address <= start < arena.address + arena.bytes for arena in arenas)


def bytes_by_node(arenas):
    """Resident bytes of some arenas by the system's node number; empty where the kernel does not tell.

    From ``/proc/self/numa_maps``, which needs no rights and no system call that containers refuse.
    """
    found = Counter()
    for line in read("/proc/self/numa_maps").splitlines():
        start, *words = line.split()
        if _within(int(start, 16), arenas):
            values = dict(word.partition("=")[::2] for word in words)
            page = int(values.get("kernelpagesize_kB", os.sysconf("SC_PAGESIZE") // 1024)) * 1024
            for name, count in values.items():
                if name[0] == "N" and name[1:].isdecimal():
                    found[int(name[1:])] += int(count) * page
    return found


def resident(arenas):
    """(resident bytes, bytes of those in huge pages) of some arenas, from ``/proc/self/smaps``."""
    total = huge = 0
    inside = False
    for line in read("/proc/self/smaps").splitlines():
        header = _HEADER.match(line)
        if header:
            inside = _within(int(header[1], 16), arenas)
        elif inside:
            name, _, value = line.partition(":")
            if name == "Rss":
                total += int(value.split()[0]) * 1024
            elif name == "AnonHugePages":
                huge += int(value.split()[0]) * 1024
    return total, huge
