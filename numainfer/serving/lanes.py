"""A lane's loop: the thread that runs steps over the requests that the lane has taken.

Sequences join and leave between steps. A step holds the next token of every answer, and chunks of prompts in order of arrival, up to
``n_batch`` rows in all; but while somebody waits for the next piece of an answer only as much of prompts as can be read in so short a time
that he hardly notices (`_Pace`). What is cancelled ends at once; a step that goes on for long is broken off then, and run
again without it: the same steps over fewer sequences give the same bits.
"""

import collections
import contextlib
import functools
import logging
import queue
import threading
import time
from _thread import allocate_lock, get_ident

import numpy as np

from .._core import Cancelled
from .answer import Answer
from .choosing import choose_step
from ..errors import ForkedProcess, ModelClosed, OutOfNodeMemory
from .modes import MAX_ACTIVE
from .speculation import FEW, Costs

log = logging.getLogger("numainfer")

_LINGER = 0.25  # seconds that a thread without work waits for more before it ends: to begin one takes 0.1 ms
_STEP = 0.07  # seconds of a step with rows of prompts in it, while somebody waits for the next piece of an answer ...
_LEAST = 0.04  # ... of which prompts get at least so many
_HAND = 0.001  # seconds at most in which first pieces are taken before the next step begins
_SOON = 0.02  # seconds: a step that ends so soon is not broken off
_RATED = 5.0  # seconds over which tokens per second are told


class _Pace:
    """How many rows of prompts a step may have, by how long steps took.

    Attributes
    ----------
    rows : int
    """

    def __init__(self, most):
        self.rows, self._most = min(32, most), most
        self._bare = 0.0  # seconds of a step without prompts

    def took(self, rows, seconds):
        """A step with so many rows of prompts has taken so long."""
        if not rows:
            self._bare = seconds if not self._bare else 0.8 * self._bare + 0.2 * seconds
            return
        bare = min(self._bare, 0.75 * seconds)
        fit = int(rows * max(_STEP - bare, _LEAST) / (seconds - bare))
        if fit < self.rows or rows >= self.rows:
            self.rows = max(min(fit, 2 * self.rows, self._most), 1)

    def seconds(self, rows):
        """About how long a step takes."""
        return self._bare + rows / self.rows * max(_STEP - self._bare, _LEAST)


class LaneLoop:
    """The requests of one lane, and its thread while there is work.

    Parameters
    ----------
    loop : Loop
    lane : Lane
    number : int
        For the thread's name.
    whole : bool
        Whether it is the lane of all nodes.

    Attributes
    ----------
    ident : int or None
        The thread's.
    n_tokens : int
        Chosen so far.
    n_proposed, n_accepted : int
        Tokens that were proposed, and those of them that were chosen.
    """

    def __init__(self, loop, lane, number, whole):
        self.lane, self.whole, self.ident, self.n_tokens = lane, whole, None, 0
        self.n_proposed = self.n_accepted = 0
        self._loop, self._name = loop, f"numainfer-lane-{number}"
        self._bell = queue.SimpleQueue()  # requests to look at, or None for nothing in particular
        self._working = allocate_lock()  # held by the thread
        self._answering, self._reading = [], []  # answers whose prompts are read; in order of arrival, all others
        self._pace, self._broke_off, self._hidden = None, False, False
        self._costs = Costs()
        self._out, self._ending = None, False
        self._marks = collections.deque(maxlen=256)  # (seconds, n_tokens) after the last steps

    @property
    def n_active(self):
        """Requests that steps are run for."""
        return len(self._answering) + len(self._reading)

    @property
    def rate(self):
        """Tokens per second of the last steps; 0 where there were none in the last second."""
        marks = [mark for mark in list(self._marks) if time.perf_counter() - mark[0] < _RATED]
        if len(marks) < 2 or time.perf_counter() - marks[-1][0] > 1:
            return 0.0
        return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])

    # ---- from other threads ------------------------------------------------------------------------------------------

    def wake(self, request=None):
        """Have the thread look at a request, or at what there is; it is started if there is none."""
        self._bell.put(request)
        if not self._working.locked():  # of two that are started one ends at once
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def nudge(self):
        """Have the thread look, if there is one. For the garbage collector, which must not start any."""
        if self._working.locked():
            self._bell.put(None)

    def finish(self, seconds):
        """Let the thread end in the midst of what it does, and wait for that."""
        self._ending = True
        self.nudge()
        if self.ident != get_ident() and self._working.acquire(timeout=seconds):
            self._working.release()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _work(self):
        while self._working.acquire(blocking=False):
            try:
                self.ident = get_ident()
                if not self.whole:
                    self.lane.keep_caller()
                self._serve()
            finally:
                self.ident = self._out = None
                self._working.release()
            if not self._bell.qsize() or self._ending:  # else somebody came while it was ending
                return

    def _serve(self):
        while not self._ending:
            try:
                while self._advance():
                    pass
            except BaseException as e:
                log.exception("the loop of a model failed, and all that it computed with it")
                self._fail(e, broken=True)
                self._loop.fail(e, broken=True)
            try:
                self._heard(self._bell.get(timeout=None if self._loop.n_waiting else _LINGER))
            except queue.Empty:
                return

    def _advance(self):
        """Take what came, and run a step; False if there is nothing to do."""
        runtime = self._loop.runtime()
        self._listen()
        if runtime is None or self._ending:
            return False
        try:
            runtime.check()
            self._answering = [s for s in self._answering if self._goes_on(s)]
            self._reading = [s for s in self._reading if self._goes_on(s)]
            self._admit(runtime)
            batch = self._batch(runtime)
            if batch:
                self._step(runtime, batch)
            return bool(batch)
        except (ModelClosed, ForkedProcess) as e:
            self._fail(e)
            self._loop.fail(e)
            return False

    def _listen(self, wait=True):
        while self._bell.qsize():  # first: who puts a request there rings afterwards, and is heard at the latest next time
            self._heard(self._bell.get())
        self._loop.sort_in(wait)

    def _heard(self, request):
        if request is None or request.ended:
            return
        if request.cancelled:
            if request.sequence is None or request.paused:
                request.end()  # one whose cache is kept ends when no step works on it
        elif request.paused and not request.full:
            request.paused = False
            (self._reading if request.reading else self._answering).append(request)

    def _fail(self, error, broken=False):
        """End all that were taken."""
        for request in [*self._answering, *self._reading]:
            request.end(error, broken)
        self._answering, self._reading = [], []

    def _admit(self, runtime):
        """Take requests while there is room."""
        while self._loop.n_waiting and self.n_active < min(MAX_ACTIVE, runtime.n_batch):
            try:
                request, label = self._loop.take(self, runtime)
            except (ModelClosed, ForkedProcess):
                raise
            except Exception as e:  # there are no threads for lanes of nodes, or no memory to measure them; what was begun goes on
                self._loop.fail(e, broken=True)
                break
            if request is None:
                break
            self._begin(request, label)

    def _begin(self, request, label):
        try:
            request.start(self, label)
        except (ModelClosed, ForkedProcess) as e:
            request.end(e)
            self._loop.runtime().check()
        except Exception as e:
            request.end(e)
        else:
            self._reading.append(request)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def _batch(self, runtime):
        """Requests of the next step, each with its ids and how many of their rows are wanted; none if there is nothing to do."""
        if not self.n_active:
            return []
        if self._pace is None:
            self._pace = _Pace(runtime.n_batch)
        hidden = [s for s in self._reading if s.hidden]
        self._hidden = bool(hidden) and not (self._hidden and self.n_active > len(hidden))  # the two kinds of steps alternate
        if self._hidden:
            answering, reading = [], hidden
        else:
            answering, reading = self._answering, [s for s in self._reading if not s.hidden]
        room = runtime.n_batch - bool(reading)
        if len(answering) > room:  # only where streams go on that were not waited for
            answering, self._answering = answering[:room], answering[room:] + answering[:room]
        self._speculate(answering, 0 if reading else runtime.n_batch)
        batch = [(s, *s.next_ids(1)) for s in answering]
        if reading:
            room = runtime.n_batch - len(batch)
            if self._broke_off or self._loop.watched():
                room = min(room, self._pace.rows)
            for s in reading:
                if room <= 0:
                    break
                if not s.begun and not self._begins(s):
                    continue
                ids, n_wanted = s.next_ids(room)
                batch.append((s, ids, n_wanted))
                room -= len(ids)
        return batch

    def _begins(self, s):
        """`Request.begins` with those before it; what goes wrong there is its own end."""
        have = s.at
        try:
            begun = s.begins(self.lane.nodes, [*self._answering, *self._reading[: self._reading.index(s)]])
            if s.at > have and s.cache.nodes != self.lane.nodes:
                with contextlib.suppress(Cancelled, OutOfNodeMemory), s.runtime.turn(None if self.whole else self.lane):
                    s.runtime.check()
                    s.cache.settle(self.lane)
            return begun
        except Exception as e:
            s.end(e)
            return False

    def _speculate(self, answering, most):
        """Let tokens be proposed for answers, in a step of at most so many rows: not in one that reads prompts, for who waits for that
        waits longer, and not where there are many."""
        if len(answering) > FEW:
            most = 0
        if not any(s.speculates for s in answering):
            return
        chances = [s.chances() if most else [] for s in answering]
        counts = self._costs.allot(chances, [s.proposal_cost for s in answering], most)
        Answer.propose_all(answering, counts, self._loop.runtime(), None if self.whole else self.lane)

    def _goes_on(self, s):
        """Whether steps are run for a request; it ends here where it was cancelled or its session closed."""
        if s.cancelled:
            s.end()
        elif not s.ended and s.cache.closed:
            s.end(ModelClosed("the session was closed"))
        elif s.full:
            s.paused = True
            if s.cancelled:  # whoever did that may not have seen it
                s.end()
            elif s.full:
                return False
            s.paused = False
        return not s.ended

    def run_here(self, requests):
        """Compute requests, in the lane's own thread, in the midst of what it does between two steps."""
        runtime, out = self._loop.runtime(), self._out
        self._out = None  # the logits in it are still wanted
        for request in requests:
            try:
                request.start(self, "latency" if self.whole else "throughput")
            except Exception as e:
                request.end(e)
            while not request.ended:
                if request.cancelled or self._ending:
                    request.end()
                    break
                ids, n_wanted = request.next_ids(runtime.n_batch)
                self._step(runtime, [(request, ids, n_wanted)])
        self._out = out

    def _step(self, runtime, batch):
        """Run a step, and give each request what it brought."""
        start, breakable, self._broke_off = time.perf_counter(), not self._broke_off, False
        n_read = sum(len(ids) for s, ids, _ in batch if s.reading)
        expected = self._pace.seconds(n_read) if self._pace else 0.0
        answers = [(s, ids) for s, ids, n in batch if n and isinstance(s, Answer)]
        rows, parts, segments, row = [], [], [], 0
        for s, ids, n_wanted in batch:
            segments.append((s.cache, ids, s.at))
            row += len(ids)
            if n_wanted and isinstance(s, Answer):
                rows.extend(range(row - n_wanted, row))
            else:
                parts.append((s, n_wanted, row))
        n_answers = len(rows)
        for _, n_wanted, end in parts:
            rows.extend(range(end - n_wanted, end))

        def look():
            """Whether the step is to be broken off; asked every 10 ms."""
            self._listen(wait=False)
            gone = [s for s, _, _ in batch if s.cancelled or s.ended]
            for s in gone:
                if s.sequence is None:
                    s.end()
            if len(gone) == len(batch) or self._ending:
                return True
            self._broke_off = bool(gone) and breakable and time.perf_counter() - begun < expected - _SOON
            return self._broke_off

        begun = start
        lane = None if self.whole else self.lane
        try:
            with runtime.turn(lane, look):
                begun = time.perf_counter()
                out = None if batch[0][0].hidden else self._logits(len(rows), runtime.n_vocab)
                out = runtime.run(lane, segments, rows, hidden=batch[0][0].hidden, look=look, out=out)
        except Cancelled:
            return
        except (ModelClosed, ForkedProcess):
            runtime.check()
            return  # a session was closed, which the next step leaves out
        except OutOfNodeMemory as e:
            max((s for s, _, _ in reversed(batch)), key=lambda s: s.arrived).end(e)  # the last that came; the others go on
            return
        except BaseException as e:
            for s, _, _ in batch:
                s.end(e, broken=True)
            return
        now = time.perf_counter()
        n_proposed = sum(len(s.proposal) for s, _ in answers)
        if self._pace and not n_proposed:
            self._pace.took(n_read, now - begun)
        if not n_read and any(s.speculates for s, _ in answers):
            self._costs.took(row, now - begun)
        for s, ids, _ in batch:
            if not s.ended:
                s.computed(len(ids) - (len(s.proposal) if isinstance(s, Answer) else 0), now - start)
        for s, n_wanted, _ in parts:
            if not s.ended and not isinstance(s, Answer):
                s.came(out[n_answers : n_answers + n_wanted].copy())
            n_answers += n_wanted
        if answers:
            self._choose(runtime, lane, [s for s, _ in answers], out, start)

    def _logits(self, n, n_vocab):
        """Room for n rows, the same for all steps: new pages take time."""
        if self._out is None or len(self._out) < n:
            self._out = np.empty((n, n_vocab), np.float32)
        return self._out[:n]

    def _choose(self, runtime, lane, answers, logits, start):
        """Choose the next tokens of each answer; the logits begin with its rows, one and one more for each token proposed, in order."""
        n_rows = [1 + len(s.proposal) for s in answers]
        logits = logits[: sum(n_rows)]
        if any(s.ended for s in answers):
            logits = logits[np.repeat([not s.ended for s in answers], n_rows)]
            answers = [s for s in answers if not s.ended]
        if not answers:
            return
        proposals = [np.array(s.proposal, np.int32) if s.proposal else None for s in answers]
        before = [len(s.generation.token_ids) for s in answers]
        try:
            errors = choose_step(self.lane.team, [s.generation for s in answers], logits, proposals, functools.partial(runtime.turn, lane))
        except BaseException as e:  # a logits processor that exits
            runtime.check()
            errors = [e] * len(answers)
        now = time.perf_counter()
        self._marks.append((now, self.n_tokens))
        begun = []
        for s, n, error in zip(answers, before, errors):
            n = len(s.generation.token_ids) - n
            self.n_tokens += n
            self.n_proposed += len(s.proposal)
            self.n_accepted += max(n - 1, 0)
            if s.clock.first_token is None:
                if s in self._reading:
                    self._reading.remove(s)
                    self._answering.append(s)
                if s.streamed:
                    self._loop.begin_stream(s)
                    begun.append(s)
            if not s.ended:
                s.chosen(now, start, error)
        for s in begun:
            s.hand_over(max(now + _HAND - time.perf_counter(), 0))
