"""Crew: functions that work in a thread each, and the calling thread's wait for them."""

import os
import threading

from ._core import Cancelled

_LOOK = 0.02  # seconds between two looks at the signals


class Crew:
    """Runs steps of a model in several threads, as one job that can be cancelled.

    Only the main thread gets Ctrl-C, and it must not be in a step of one lane then, for all are to end.

    Attributes
    ----------
    cancelled : bool
    working : int
        Number of threads that have not come to their end.
    """

    def __init__(self, model):
        self._model, self._error = model, None
        self._lock, self._news = threading.Lock(), threading.Event()
        self.cancelled, self.working = False, 0

    def run(self, works, watch):
        """Run all functions, each in a thread of its own, and wait for them.

        Parameters
        ----------
        works : list of callable
            Their steps must name this crew as their job.
        watch : callable
            Called in this thread every 20 ms and after `tell`.

        Raises
        ------
        BaseException
            The first that one of them raised, or `watch`, or a signal; the others have been cancelled.
        """
        self._error = None
        try:
            for i, work in enumerate(works):
                thread = threading.Thread(target=self._work, args=(work,), name=f"numainfer-lane-{i}")
                with self._lock:
                    self.working += 1
                try:
                    thread.start()
                except RuntimeError:  # the system has no thread left
                    self._end()
                    raise
            while self.working:
                self._news.wait(_LOOK)
                self._news.clear()
                self._model._check_process()
                watch()
        except BaseException:
            self._stop()
            raise
        if self._error is not None:
            raise self._error

    def tell(self):
        """Wake the thread that watches."""
        self._news.set()

    def _work(self, work):
        try:
            work()
        except Cancelled as e:
            if not self.cancelled:
                self._fail(e)
        except BaseException as e:  # noqa: BLE001 - it goes on in the thread that waits
            self._fail(e)
        finally:
            self._end()

    def _fail(self, error):
        if self._error is None:
            self._error = error
        self._cancel()

    def _end(self):
        with self._lock:
            self.working -= 1
        self._news.set()

    def _cancel(self):
        self.cancelled = True
        self._model._cancel(self)

    def _stop(self):
        """Cancel and wait. Again and again: a step that is just beginning does not see it."""
        while self.working and os.getpid() == self._model._pid:  # a fork has none of the threads
            self._cancel()
            self._news.wait(_LOOK / 4)
            self._news.clear()
