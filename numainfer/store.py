"""Replicas that several models of a process share: a second load of the same file attaches to those that stand.

A notebook cell that is run again loads the same model while the old one is still referenced; two copies of it would not fit.
"""

import threading

_lock = threading.Lock()
_entries = {}


class _Entry:
    def __init__(self):
        self.users, self.replicas, self.filling = 0, None, threading.Lock()


def stands(key):
    """Whether somebody has these replicas, or is making them."""
    with _lock:
        return key in _entries


def attach(key, make):
    """The replicas under `key`, made by `make()` for the first user.  Each user calls `detach` once.

    Parameters
    ----------
    key : hashable
        All that the bytes and their places depend on.
    make : callable
        Returns filled Replicas; if it raises, nothing stays behind.  A second user waits for it.
    """
    with _lock:
        entry = _entries.setdefault(key, _Entry())
        entry.users += 1
    try:
        with entry.filling:
            if entry.replicas is None:
                entry.replicas = make()
            return entry.replicas
    except BaseException:
        detach(key)
        raise


def detach(key):
    """Give up one use; the last one frees the memory."""
    with _lock:
        entry = _entries[key]
        entry.users -= 1
        if entry.users:
            return
        del _entries[key]
    if entry.replicas is not None:
        entry.replicas.close()
