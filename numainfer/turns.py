"""Turns: who may run a step of a model now."""

import contextlib
import threading

from ._core import Cancelled

_LOOK = 0.02  # seconds between two looks at whether a job that waits was cancelled


class Turns:
    """The lock around steps: of all lanes (``with turns:``), or of one node's lane (``with turns.of(lane):``).

    Lanes of different nodes may be held at the same time; all lanes together exclude everything else, for their workers
    sit on the same CPUs. First come, first served, so that a loop of steps in one thread does not keep others waiting.

    A thread that holds a turn gets no other: it would wait for ever (a signal handler can come to that), so it raises.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._holders = {}  # lane, or None for all of them: thread
        self._tickets = []  # of those that wait, in order of arrival

    def check(self):
        """Raise RuntimeError in a thread that holds a turn."""
        if threading.get_ident() in list(self._holders.values()):
            raise RuntimeError(
                "this thread is in the midst of a step of the model: a signal handler can neither use nor close it "
                "(TokenStream.cancel is fine)"
            )

    @contextlib.contextmanager
    def of(self, lane=None, job=None):
        """A turn of one lane, or of all.

        Parameters
        ----------
        lane : Lane or None
        job : object with ``cancelled``, or None
            Once it is cancelled, waiting ends.

        Raises
        ------
        Cancelled
        """
        self.check()
        try:
            self._take(_Ticket(lane), job)
            yield
        finally:
            self._give_back(lane)

    def __enter__(self):
        self.check()
        self._take(_Ticket(None), None)

    def __exit__(self, *_):
        self._give_back(None)

    def _take(self, ticket, job):
        with self._changed:
            self._tickets.append(ticket)
            try:
                while not self._is_next(ticket):
                    self._changed.wait(None if job is None else _LOOK)
                    if job is not None and job.cancelled:
                        raise Cancelled("the job was cancelled while it waited for its turn")
                self._holders[ticket.lane] = ticket.thread
            except BaseException:
                self._give_back(ticket.lane)
                raise
            finally:
                self._tickets.remove(ticket)

    def _is_next(self, ticket):
        # An older ticket of the same thread waits further down the stack, below a signal handler: it does not count.
        return not any(ticket.excludes(lane) for lane in self._holders) and not any(
            ticket.excludes(other.lane) and other.thread != ticket.thread
            for other in self._tickets[: self._tickets.index(ticket)]
        )

    def _give_back(self, lane):
        with self._changed:
            if self._holders.get(lane) == threading.get_ident():
                del self._holders[lane]
            self._changed.notify_all()


class _Ticket:
    def __init__(self, lane):
        self.lane, self.thread = lane, threading.get_ident()

    def excludes(self, lane):
        return self.lane is None or lane is None or lane is self.lane
