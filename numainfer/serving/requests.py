"""Requests: what callers want computed of a sequence, as they and the loop that computes it (`loop.py`) see it.

A caller makes a request, hands it to the runtime (`submit`), waits for news of it and takes what is new. The loop's thread computes it and
ends it; but for `ended`, `error` and what is taken, a request is the loop's from then on. Nothing that a caller does can be left
half done by Ctrl-C: it sets a flag, puts something into a `queue.SimpleQueue`, or waits.
"""

import collections
import functools
import logging
import queue
import threading
from _thread import allocate_lock, get_ident

from .prefix import LEAST, in_common

log = logging.getLogger("numainfer")

_LOOK = 0.02  # seconds between two looks of the main thread: a signal that another thread was given does not wake it
_OUT_BYTES = 48 << 20  # most bytes of rows that a step gives one request, of which three may exist: a 262k vocabulary takes 1 MiB a row


def wait_for(news, runtime, seconds=None):
    """What is put into a SimpleQueue next; None if nothing came.

    Parameters
    ----------
    news : queue.SimpleQueue
    runtime : Runtime
    seconds : float or None
        How long; None: for ever, but in the main thread 20 ms, in which signals are looked at.

    Raises
    ------
    ForkedProcess
        Who would put it there is in another process.
    """
    if seconds is None and threading.current_thread() is threading.main_thread():
        seconds = _LOOK
    try:
        return news.get(timeout=seconds)
    except queue.Empty:
        return None
    finally:
        runtime.check_process()


class Request:
    """A sequence of which something is wanted.

    Parameters
    ----------
    runtime : Runtime
    ids : int32 array (n,)
        To be computed, from the first on; of an answer the prompt.
    most : int
        Positions that it may come to have: memory for them is reserved.
    sequence : Sequence, optional
        Whose cache is used and kept; by default a cache ends with the request.
    reuse : bool
        Whether what was computed before counts, for the sequence or for others.
    notify : callable, optional
        ``notify()`` is called after each step that brought something new, if somebody takes it piece by piece, and when the request has
        ended (then ``ended`` is already true). It is called in the thread of the loop, or in the one that ends the request, between two
        steps: it must be quick, must not wait, and must not raise. By default it wakes `wait`.
    mode : {"auto", "latency", "throughput"}
        Which lanes may compute it: that of all nodes, those of single nodes, or either.

    Attributes
    ----------
    at : int
        Positions that are computed.
    cached : int
        Of those, how many were there before.
    begun : bool
        Steps compute it, and it does not wait for another's prompt any more.
    ended : bool
        Nothing more will come.
    error : BaseException or None
        What ended it early.
    broken : bool
        The error is not the request's own: steps fail.
    cancelled : bool
        Somebody wants it to end.
    paused : bool
        What there is has not been taken, and no step computes more of it until it is.
    in_use : lock
        Held by the caller that waits for it.
    lane : LaneLoop or None
        Who has taken it.
    """

    hidden, streamed = False, False

    def __init__(self, runtime, ids, most, *, sequence=None, reuse=True, notify=None, mode="auto"):
        runtime.check()
        self.runtime, self.ids, self.mode = runtime, ids, mode
        self.sequence, self.lane, self.cache = sequence, None, None
        self.ended = self.cancelled = self.paused = self.broken = False
        self.error, self.arrived = None, 0.0
        self.in_use, self._latch, self._over = allocate_lock(), allocate_lock(), allocate_lock()
        self._over.acquire()  # until the end
        self._news, self._waits = None, False
        if notify is None:
            self._news = queue.SimpleQueue()
            notify = functools.partial(self._news.put, True)  # it does not hold the request, so that one whose owner is gone goes too
        self._notify = notify
        self.cached = self.at = sequence.begin(ids, self, reuse) if sequence is not None else 0
        self.begun, self._behind = not reuse, None
        self.most, self.label = most, None
        self.n_bytes = runtime.engine.plan.kv.bytes(most)

    # ---- for the caller ----------------------------------------------------------------------------------------------

    def cancel(self):
        """Ask for an early end, from any thread, also in a signal handler; it has ended within 50 ms, and its memory is free."""
        self.cancelled = True
        if not self.ended:
            self.runtime.loop.look_at(self)

    def drop(self):
        """The same when nobody is there any more to take anything, from the garbage collector, where no thread can be started."""
        self.cancelled = True
        if self.paused or self.arrived == 0.0:
            self.end()

    def wait(self):
        """Wait until there is news, or a signal was handled."""
        self._waits = True
        wait_for(self._news, self.runtime)
        self._waits = False

    def join(self):
        """Wait until it has ended; in the loop's own thread, which would have to end it, not at all."""
        if not self.runtime.loop.is_mine():
            while not self.ended:
                if self._over.acquire(timeout=_LOOK):
                    self._over.release()
                self.runtime.check_process()

    def finish(self):
        """Have it computed, and wait for its end.

        Raises
        ------
        BaseException
            What ended it early; or a signal's handler, and then it is cancelled.
        """
        try:
            with self.in_use:
                self.runtime.submit(self)
                while not self.ended:
                    self.wait()
        except BaseException:
            self.cancel()
            raise
        if self.error is not None:
            raise self.error

    # ---- for the loop ------------------------------------------------------------------------------------------------

    def start(self, lane, label):
        """Get what it takes to compute it.

        Parameters
        ----------
        lane : LaneLoop
        label : str
            "latency" or "throughput".
        """
        self.lane, self.label = lane, label
        self.cache = self.runtime.new_cache() if self.sequence is None else self.sequence.cache

    @property
    def reading(self):
        """Whether some of the ids are not computed."""
        return self.at < len(self.ids)

    @property
    def held_bytes(self):
        """Bytes of KV memory that it has, about."""
        return self.runtime.engine.plan.kv.bytes(self.at) if self.at else 0

    def begins(self, nodes, before):
        """Whether steps may compute it, from what is known of its beginning on; not while one before it computes more of that.

        Parameters
        ----------
        nodes : list of int
            The lane's.
        before : list of Request
            That the lane computes and that came before it.

        Raises
        ------
        ModelClosed
            Its session was closed.
        """
        if self._behind is not None:
            other, n = self._behind
            if other.at < n and not (other.ended or other.paused):
                return False
        prefixes, most = self.runtime.prefixes, len(self.ids) - 1
        others = [(cache, other.ids, other.at) for other in before if other.at and (cache := other.cache) is not None]
        self._behind, coming = None, []
        for other in before:
            # One whose steps are of the other kind may have to wait for these.
            if other.reading and other.hidden == self.hidden and not other.ended:
                n = min(in_common(other.ids, self.ids), most)
                if n >= self.at + LEAST and n > other.at:
                    coming.append((other, n))
        if coming:
            ahead = max(coming, key=lambda one: one[1])  # of equal ones the first
            if ahead[1] >= prefixes.known(self.ids, nodes, others) + LEAST:
                self._behind = ahead
        if self._behind is None:
            self.at = self.cached = prefixes.attach(self.cache, self.ids, nodes, others, self.at)
            self.begun = True
        return self.begun

    def computed(self, n, seconds):
        """n more positions are in the cache, after a step of so many seconds."""
        was_reading = self.reading
        self.at += n
        if self.sequence is not None:
            self.sequence.grown(self)
        if was_reading and not self.reading:
            self.runtime.prefixes.offer(self.cache, self.ids, self.at)

    def told(self):
        """Something is new."""
        try:
            self._notify()
        except BaseException:
            log.exception("notify of a request raised, which it must not")

    def end(self, error=None, broken=False):
        """Nothing more will come; the first end counts."""
        if not self._latch.acquire(blocking=False):
            return
        try:
            self.error, self.broken = error, broken
            self._settle()
            if self.cache is not None and not broken and self.lane.ident == get_ident():
                self.runtime.prefixes.offer(self.cache, self._computed_ids(), self.at)
        finally:
            cache, self.cache = self.cache, None
            if self.sequence is None and cache is not None:
                cache.close()
            self.runtime.loop.left(self)
            self.ended = True
            self._over.release()
            self.told()

    def _settle(self):
        """Put what there is in order."""
        if self.sequence is not None:
            self.sequence.ended(self, self.ids.tolist())

    def _computed_ids(self):
        """Of the positions that are computed."""
        return self.ids[: self.at]


class Rows(Request):
    """Logits, or hidden states, of positions.

    Parameters
    ----------
    runtime, ids, sequence, notify :
        As for `Request`.
    all : bool
        Of each position, in parts that `take` gives in order, and so all are computed; else of the last.
    hidden : bool
    """

    def __init__(self, runtime, ids, *, all=False, hidden=False, **options):
        self.hidden, self._all, self._parts = hidden, all, collections.deque()
        self._size = max(_OUT_BYTES // (4 * (runtime.n_embd if hidden else runtime.n_vocab)), 1) if all else runtime.n_batch
        super().__init__(runtime, ids, len(ids), mode="latency", reuse=not all, **options)

    # ---- for the caller ----------------------------------------------------------------------------------------------

    def take(self):
        """(first position, float32 array (n, n_vocab or n_embd)) of the next part, or None."""
        try:
            part = self._parts.popleft()
        except IndexError:
            return None
        if self.paused:
            self.runtime.loop.look_at(self)
        return part

    def parts(self):
        """Have them computed, unless they are already; yields what `take` gives, in order, and raises as `finish`."""
        try:
            with self.in_use:
                if not self.arrived:
                    self.runtime.submit(self)
                while True:
                    ended = self.ended  # before the look: what comes between the two is found at the next
                    part = self.take()
                    if part is not None:
                        yield part
                    elif ended:
                        break
                    else:
                        self.wait()
        except BaseException:
            self.cancel()
            raise
        if self.error is not None:
            raise self.error

    def last(self):
        """Have them computed; float32 array (n_vocab or n_embd,) of the last position."""
        ((_, rows),) = self.parts()
        return rows[-1]

    # ---- for the loop ------------------------------------------------------------------------------------------------

    @property
    def full(self):
        return len(self._parts) > 0

    def next_ids(self, most):
        ids = self.ids[self.at : self.at + min(most, self._size)]
        return ids, len(ids) if self._all else int(self.at + len(ids) == len(self.ids))

    def came(self, rows):
        """Rows of a step, whose positions end where `at` is."""
        if len(rows):
            self._parts.append((self.at - len(rows), rows))
        if not self.reading:
            self.end()
        elif len(rows):
            self.told()
