"""Replicas that several models of a process share: a second load of the same file attaches to those that stand.

A notebook cell that is run again loads the same model while the old one is still referenced; two copies of it would not fit.
"""

import os
import threading
import weakref

_lock = threading.RLock()  # the garbage collector may close a model in a thread that holds it
_entries = weakref.WeakValueDictionary()


class _Entry:
    """Replicas and who uses them, which is whom they live by: nothing else keeps an entry."""

    def __init__(self):
        self.users, self.replicas, self.filling, self.filler = weakref.WeakSet(), None, threading.Lock(), None


def stands(key):
    """Whether somebody has these replicas, or is making them."""
    return key in _entries


def _after_fork():
    """The lock may be held, and replicas be filled, by threads that the child does not have."""
    global _lock
    _lock = threading.RLock()
    for key in [key for key, entry in _entries.items() if entry.replicas is None]:
        del _entries[key]


os.register_at_fork(after_in_child=_after_fork)


class Share:
    """One user's part in the replicas under a key; given up by `close`, or with the object.

    Ctrl-C may come between any two calls, and is lost in a ``__del__``: so there is none, a share that is forgotten counts no
    longer, and replicas that nobody shares free themselves.

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

    def __init__(self, key, make):
        self._key, self.replicas = key, None
        with _lock:
            self._entry = _entries.setdefault(key, _Entry())
            self._entry.users.add(self)
        try:
            if self._entry.filler == threading.get_ident():
                raise RuntimeError("this thread is in the midst of loading the same file: neither the progress callback nor a signal "
                                   "handler can load it too")
            with self._entry.filling:
                if self._entry.replicas is None:
                    self._entry.filler = threading.get_ident()
                    try:
                        self._entry.replicas = make()
                    finally:
                        self._entry.filler = None
                self.replicas = self._entry.replicas
        except BaseException:
            self.close()
            raise

    def close(self):
        """Give up the share; the last one frees the memory, whoever else may hold the replicas."""
        entry = self._entry
        if entry is None:
            return
        with _lock:
            entry.users.discard(self)
            last = not any(True for _ in entry.users)  # len() may count what was collected
            if last and _entries.get(self._key) is entry:
                del _entries[self._key]
        if last and entry.replicas is not None:
            entry.replicas.close()
        self._entry = self.replicas = None  # at the end: interrupted, it can be called again
