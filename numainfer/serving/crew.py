"""Crew: functions that work in a thread each, and the calling thread's wait for them."""

import contextlib
import queue
import threading

from .._core import Cancelled

_LOOK = 0.02  # seconds between two looks at the signals


class Crew:
    """Runs steps of a model in several threads, as one job that can be cancelled.

    Only the main thread gets Ctrl-C, and it must not be in a step of one lane then, for all are to end.

    Attributes
    ----------
    cancelled : bool
    """

    def __init__(self, runtime):
        self._runtime, self._error, self.cancelled = runtime, None, False
        # Not an Event: Ctrl-C in the midst of its Python would leave its lock locked.
        self._threads, self._ended, self._news = [], set(), queue.SimpleQueue()

    @property
    def working(self):
        """Number of threads that have not come to their end."""
        return sum(thread.is_alive() and thread not in self._ended for thread in self._threads)

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
        self._threads = [threading.Thread(target=self._work, args=(work,), name=f"numainfer-lane-{i}")
                         for i, work in enumerate(works)]  # fmt: skip
        try:
            for thread in self._threads:
                thread.start()
            while self.working:
                self._wait(_LOOK)
                self._runtime.check_process()
                watch()
            for thread in self._threads:
                thread.join()
            self._runtime.check_process()  # in a fork that `watch` made no thread works
        except BaseException:
            self._stop()
            raise
        if self._error is not None:
            raise self._error

    def tell(self):
        """Wake the thread that watches."""
        self._news.put(None)

    def _wait(self, seconds):
        with contextlib.suppress(queue.Empty):
            self._news.get(timeout=seconds)
            while True:  # all that was told by now is one piece of news
                self._news.get_nowait()

    def _work(self, work):
        try:
            if not self.cancelled:
                work()
        except Cancelled as e:
            if not self.cancelled:
                self._fail(e)
        except BaseException as e:  # noqa: BLE001 - it goes on in the thread that waits
            self._fail(e)
        finally:
            self._ended.add(threading.current_thread())
            self._news.put(None)

    def _fail(self, error):
        if self._error is None:
            self._error = error
        self._cancel()

    def _cancel(self):
        self.cancelled = True
        self._runtime.cancel(self)

    def _stop(self):
        """Cancel and wait. Again and again: a step that is just beginning does not see it."""
        while self.working and not self._runtime.forked:  # a fork has none of the threads
            self._cancel()
            self._wait(_LOOK / 4)
