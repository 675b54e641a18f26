"""Blocks of memory: sizes in whole pages, and how much of whose pages is there."""

import os

import numpy as np

PAGE = os.sysconf("SC_PAGESIZE")
HUGE = 2 << 20
_MOST_PADDING = 1 / 8  # of a stretch, for the sake of huge pages
_PRESENT = 0b11 << 62  # of an entry of /proc/self/pagemap: in memory, or swapped out


def round_up(n, step):
    """The first multiple of `step` from n on."""
    return -(-n // step) * step


def may_be_huge(n_bytes, step=HUGE):
    """Whether a stretch of so many bytes may take a whole multiple of `step`, so that its huge pages are its own."""
    return round_up(n_bytes, step) <= (1 + _MOST_PADDING) * n_bytes


def bytes_by_owner(blocks, n_nodes, seen):
    """Bytes in memory of some blocks, by whose their pages are; None where the kernel does not tell.

    Parameters
    ----------
    blocks : iterable of (int, int64 array (pages,))
        Address, and the owner of each page, 0 to n_nodes - 1.
    n_nodes : int
    seen : set of int
        Addresses of blocks that do not count; those that did are added.

    Returns
    -------
    int64 array (n_nodes,), or None
    """
    found = np.zeros(n_nodes, np.int64)
    try:
        with open("/proc/self/pagemap", "rb") as pagemap:
            for address, owners in blocks:
                if address in seen:
                    continue
                seen.add(address)
                pagemap.seek(address // PAGE * 8)
                entries = np.frombuffer(pagemap.read(len(owners) * 8), np.uint64)
                if len(entries) < len(owners):
                    return None
                pages = np.flatnonzero(entries & np.uint64(_PRESENT))
                found += np.bincount(owners[pages], minlength=n_nodes) * PAGE
    except OSError:
        return None
    return found
