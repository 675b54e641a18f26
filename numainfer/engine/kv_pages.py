"""Which pages of a KV cache are resident, and whose they are where the system cannot tell: pretend nodes share a real one's memory."""

import os

import numpy as np

from .. import _core

_PAGE = os.sysconf("SC_PAGESIZE")
_RESIDENT = 0b11 << 62  # in memory, or swapped out


def bytes_by_owner(arena, layers, n_nodes):
    """Resident bytes of one sequence's KV memory by the node of the team whose workers append to them.

    Parameters
    ----------
    arena : Arena
    layers : list of tuple
        ``Plan.kv_layers``.
    n_nodes : int
        Nodes of the team that appended.

    Returns
    -------
    int64 array (n_nodes,), or None
        None where the kernel does not say which pages are resident. A page of two owners counts as the first one's.
    """
    found = np.zeros(n_nodes, np.int64)
    try:
        with open("/proc/self/pagemap", "rb") as pagemap:
            for offset, heads, key_width, value_width, kv_type, n_chunks, turn in layers:
                chunk = _core.kv_chunk_bytes(kv_type, key_width, value_width)
                n_pages = -(-heads * n_chunks * chunk // _PAGE)
                pagemap.seek((arena.address + offset) // _PAGE * 8)
                entries = np.frombuffer(pagemap.read(8 * n_pages), np.uint64)
                if len(entries) < n_pages:
                    return None
                first = np.flatnonzero(entries & np.uint64(_RESIDENT)) * _PAGE // chunk  # chunk of the page's first byte
                found += np.bincount(owners(first // n_chunks, first % n_chunks, heads, turn, n_nodes), minlength=n_nodes) * _PAGE
    except OSError:
        return None
    return found


def owners(head, chunk, n_heads, turn, n_nodes):
    """The node that appends chunks of kv-heads (arrays of integers): ``ni_kv_node`` of csrc/ni.h."""
    return head * n_nodes // n_heads if n_heads % n_nodes == 0 else (head + chunk // turn) % n_nodes
