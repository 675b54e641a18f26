"""Where the kernel says that memory lies: pages of address ranges, by node and by size."""

import os
import re
from collections import Counter
from pathlib import Path

ROOT = "/"
"""What the paths of the kernel's files begin with; tests make up a system in a folder of their own."""
HUGE = 2 << 20  # bytes: what the core asks the kernel for, and where arenas begin
_HUGE = ("AnonHugePages", "ShmemPmdMapped")
_HEADER = re.compile(r"([0-9a-f]+)-[0-9a-f]+ ")


def read(path):
    """Text of a file of the kernel, "" if there is none."""
    try:
        return Path(ROOT, path.lstrip("/")).read_text(errors="replace").strip()
    except OSError:
        return ""


def _within(start, arenas):
    # A page behind it that nobody may touch keeps an arena from merging with the next, so its mappings begin inside it.
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
    """(resident bytes, bytes of those in huge pages) of each arena, from ``/proc/self/smaps``; zeros where there is none."""
    found = [[0, 0] for _ in arenas]
    own = None
    for line in read("/proc/self/smaps").splitlines():
        header = _HEADER.match(line)
        if header:
            start = int(header[1], 16)
            own = next((sizes for sizes, arena in zip(found, arenas) if _within(start, [arena])), None)
        elif own is not None:
            name, _, value = line.partition(":")
            if name in ("Rss", *_HUGE):
                own[name in _HUGE] += int(value.split()[0]) * 1024
    return found


def all_huge(arenas):
    """Of each arena, whether every whole 2 MiB of it is a huge page."""
    return [huge >= arena.bytes // HUGE * HUGE for arena, (_, huge) in zip(arenas, resident(arenas))]
