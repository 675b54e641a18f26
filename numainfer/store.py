"""Replicas that several models of a process share: a second load of the same file attaches to those that stand.

A notebook cell that is run again loads the same model while the old one is still referenced; two copies of it would not fit.
"""

import os
import threading

_lock = threading.RLock()  # the garbage collector may close a model in a thread that holds it
_entries = {}


class _Entry:
    def __init__(self):
        self.users, self.replicas, self.filling = 0, None, threading.Lock()


def stands(key):
    """Whether somebody has these replicas, or is making them."""
    with _lock:
        return key in _entries and _entries[key].users > 0


def _after_fork():
    """The lock may be held, and replicas be filled, by threads that the child does not have."""
    global _lock
    _lock = threading.RLock()
    for key in [key for key, entry in _entries.items() if entry.replicas is None]:
        del _entries[key]


os.register_at_fork(after_in_child=_after_fork)


class Share:
    """One user's part in the replicas under a key; given up by `close`, or with the object.

    Ctrl-C may come between any two calls, so a share is counted and owned in lines without any.

    Parameters
    ----------
    key : hashable
        All that the bytes and their places depend on.
    make : callable
        Returns filled Replicas, for the first user; if it raises, nothing stays behind.  A second user waits for it.

    Attributes
    ----------
    replicas : Replicas
    """

    _key = _entry = replicas = None  # for __del__, should Ctrl-C come before __init__ does anything

    def __init__(self, key, make):
        self._key = key
        try:
            with _lock:
                self._join()
            with self._entry.filling:
                if self._entry.replicas is None:
                    self._entry.replicas = make()
                self.replicas = self._entry.replicas
        except BaseException:
            self.close()
            raise

    def _join(self):
        while True:
            entry = _entries.setdefault(self._key, _Entry())
            entry.users += 1
            self._entry = entry
            if _entries.get(self._key) is entry:  # else its last user was collected meanwhile
                return
            self._entry = None

    def close(self):
        """Give up the share; the last one frees the memory."""
        with _lock:
            entry, self.replicas = self._entry, None
            if entry is None:  # interrupted in _join, perhaps just after the entry was made
                if self._key in _entries and not _entries[self._key].users:
                    del _entries[self._key]
                return
            listed = _entries.get(self._key) is entry
            entry.users -= 1
            self._entry = None
            if entry.users:
                return
            if listed:
                del _entries[self._key]
        if entry.replicas is not None:
            entry.replicas.close()

    def __del__(self):
        try:
            self.close()
        except KeyboardInterrupt:  # it would be ignored here, and the share kept for ever
            self.close()
            raise
