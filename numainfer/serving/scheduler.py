"""Lists of prompts: whose tokens run in which lane's next step.

Every lane has a thread that takes sequences from one queue, first come first served, and runs steps over those it has
taken (continuous batching): sequences join and leave between steps; a step holds the next token of every answer and, up
to ``n_batch`` rows in all, chunks of the prompts that came last. Lanes never wait for one another. The calling thread
only watches: signals reach it, and it cancels the lanes.

KV memory is reserved when a sequence is taken, for its prompt and its longest possible answer, so a sequence that has
begun can always end; the next one waits until there is room.
"""

import collections
import dataclasses
import functools
import logging
import sys
import threading
import time
import warnings

import numpy as np

from .choosing import choose_step
from .crew import Crew
from ..errors import CancelledWarning, ForkedProcess, Interrupted, ModelClosed
from .generation import Clock, Generation
from ..machine.limits import limits, node_memory, spare
from ..progress import progress_bar
from ..results import Completion, Completions, Logprobs, Timings, Usage
from .masks import make_form
from .sampling import Sampler, SamplingParams, resolve_params
from ..summary import counted

log = logging.getLogger("numainfer")

MODES = ("auto", "latency", "throughput")
ON_INTERRUPT = ("raise", "return")
MAX_ACTIVE = 64
"""Most sequences that share a lane's steps: the logits of 64 rows of 262,144 take 64 MiB a lane."""
_REPORT = 0.25  # seconds between two reports of progress
_CALIBRATION_ROWS = 16


def generate_list(runtime, n, prompt_of, params, mode, progress, on_interrupt, sampling):
    """``Model.generate`` of a list of prompts.

    Parameters
    ----------
    runtime : Runtime
    n : int
        Number of prompts.
    prompt_of : callable
        ``prompt_of(i)``: ids of prompt i, int32, and the Reader of its answer or None; what it raises of TypeError and ValueError
        ends that answer alone.
    params, mode, progress, sampling
        As for ``Model.generate``.
    on_interrupt : str
        One of `ON_INTERRUPT`.

    Returns
    -------
    Completions
    """
    _check_lanes(runtime, mode)
    params = _params_each(runtime, params, n, sampling)
    sequences = [_Sequence(runtime, i, prompt_of, own) for i, own in enumerate(params)]
    run = _Run(runtime, sequences)
    with progress_bar(progress, "Generating", unit="prompts") as report:
        run.run(mode, report)
    failed = [(i, done.error) for i, done in enumerate(run.results) if done.error is not None]
    if failed:
        i, error = failed[0]
        log.warning("%d of %d prompts failed; the first is %d: %s", len(failed), n, i, error)
    if run.interrupted:
        lost = sum(done.finish_reason == "cancelled" for done in run.results)
        says = f"interrupted: {lost} of {counted(n, 'prompt')} {'was' if lost == 1 else 'were'} cancelled"
        if on_interrupt == "raise":
            raise Interrupted(says, Completions(run.results))
        warnings.warn(says, CancelledWarning, stacklevel=3)
    return Completions(run.results)


def _check_lanes(runtime, mode):
    """Raise ValueError if lanes of single nodes are asked for where no node has all weights."""
    placement = runtime.engine.placement
    if mode == "throughput" and len(placement.nodes) > 1 and placement.policy != "replicate":
        raise ValueError(
            f"mode = 'throughput': every node works by itself then and needs its own copy of all weights, but the placement is "
            f"{placement.policy} on {placement.where}: {'of some weights ' * (len(placement.policies) > 1)}one copy in all. "
            "Load with placement='replicate', or leave mode to 'auto'"
        )


def _params_each(runtime, params, n, sampling):
    """SamplingParams for each of n prompts; what is wrong with them is wrong with the call."""
    if isinstance(params, (list, tuple)):
        if len(params) != n:
            raise ValueError(f"params: found {len(params)} SamplingParams for {n} prompts, wanted one for each")
        for i, own in enumerate(params):
            if not isinstance(own, SamplingParams):
                raise TypeError(f"params[{i}]: found {type(own).__name__}, wanted SamplingParams")
        each = [resolve_params(own, **sampling) for own in params]
    else:
        each = [resolve_params(params, **sampling)] * n
    for own in {id(own): own for own in each}.values():  # refuses token ids that do not exist, and forms
        n_vocab = min(runtime.n_vocab, runtime.tokenizer.n_vocab)
        Sampler(own, n_vocab, (), own.stop_token_ids)
        make_form(runtime.tokenizer, n_vocab, own, own.stop_token_ids)
    return each


class _Sequence:
    """One of the prompts and what becomes of it."""

    def __init__(self, runtime, index, prompt_of, params):
        self.index, self.params, self.clock = index, params, Clock(mode=None)
        self.ids, self.error, self.n_bytes = np.empty(0, np.int32), None, 0
        self.reader = self.generation = self.kv = None
        self.at = 0  # positions computed
        try:
            self.ids, self.reader = prompt_of(index)
        except (TypeError, ValueError) as e:
            self.error = e
            return
        self.room = runtime.n_ctx - len(self.ids) + 1  # the last token needs no place: it is never fed back
        answer = self.room if params.max_tokens is None else min(self.room, params.max_tokens)
        self.most = len(self.ids) + answer - 1  # positions of the longest answer
        self.n_bytes = runtime.engine.plan.kv.bytes(self.most)

    def start(self, runtime, lane, mode):
        """Get what it takes to compute it."""
        self.clock.mode = mode
        self.generation = Generation(runtime.tokenizer, runtime.n_vocab, self.ids, self.params, self.room, self.reader)
        self.kv = runtime.new_cache(lane)

    def next_rows(self, most):
        """Ids for the next step, at most so many, and whether the logits of the last one are wanted."""
        if self.at < len(self.ids):
            ids = self.ids[self.at : self.at + most]
            return ids, self.at + len(ids) == len(self.ids)
        return np.array(self.generation.token_ids[-1:], np.int32), True

    def end(self, error=None):
        """Free what it holds; the Completion."""
        kv, self.kv = self.kv, None
        if kv is not None:
            kv.close()
        error = error or self.error
        if self.generation is None:
            reason, logprobs = "error" if error else "cancelled", None if self.params.logprobs is None else Logprobs()
            return Completion("", (), reason, logprobs, Usage(len(self.ids), 0), Timings(0, 0.0, 0, 0.0, None), error)
        self.generation.cancel()  # unless it has ended
        done, self.generation = self.generation.completion(self.clock, 0), None
        return dataclasses.replace(done, finish_reason="error", error=error) if error else done


class _Run:
    """A list of sequences on its way through the lanes.

    Attributes
    ----------
    results : list of Completion, or None where there is none yet
    interrupted : bool
        Ctrl-C was pressed.
    """

    def __init__(self, runtime, sequences):
        self.runtime, self.crew, self.start = runtime, Crew(runtime), time.perf_counter()
        self.results, self.interrupted = [None] * len(sequences), False
        self._sequences = sequences
        self._waiting = collections.deque(s for s in sequences if s.error is None)
        self._lock = threading.Lock()
        self._unfinished = len(self._waiting)
        for s in sequences:
            if s.error is not None:
                self.results[s.index] = s.end()

    def run(self, mode, report):
        """Compute all results. Ctrl-C ends it early: what is not finished is "cancelled" then.

        Raises
        ------
        ModelClosed, ForkedProcess
        """
        watch = (lambda: None) if report is None else _Watch(self, report)
        try:
            if self._waiting:
                lanes = choose_lanes(self.runtime, mode, len(self._waiting), self.crew)
                if mode == "auto":
                    mode = "throughput" if len(lanes) > 1 else "latency"
                workers = sum(lane.n_workers for lane in lanes)
                works = [_LaneWork(self, lane, mode, lane.n_workers / workers, kv_budget(self.runtime, lane)) for lane in lanes]
                if report is not None:
                    watch.works = works
                self.crew.run(works, watch)
        except KeyboardInterrupt:
            if self.crew.working:  # pressed again while the lanes came to their end
                raise
            self.interrupted = True
        for s in self._sequences:
            if self.results[s.index] is None:
                self.results[s.index] = s.end()
        watch()

    @property
    def waiting(self):
        return bool(self._waiting)

    @property
    def done(self):
        return len(self.results) - self._unfinished

    def take(self, n_active, share, room):
        """The next sequence for a lane, or None.

        Parameters
        ----------
        n_active : int
            Sequences that the lane has. Without any it gets one in any case: alone it may take what memory there is.
        share : float
            The lane's part of all unfinished sequences, so that the fastest thread does not take them all.
        room : int
            Bytes of KV memory.
        """
        with self._lock:
            if not self._waiting:
                return None
            if n_active and (n_active >= share * self._unfinished or self._waiting[0].n_bytes > room):
                return None
            return self._waiting.popleft()

    def finish(self, sequence, error=None):
        self.results[sequence.index] = sequence.end(error)
        with self._lock:
            self._unfinished -= 1
        self.crew.tell()


class _LaneWork:
    """What the thread of a lane does.

    Parameters
    ----------
    run : _Run
    lane : Lane
    mode : str
        "latency" or "throughput", for the timings.
    share : float
        This lane's part of all workers.
    budget : int
        Bytes of KV memory.
    """

    def __init__(self, run, lane, mode, share, budget):
        self._mode = mode
        self._run, self._runtime, self._share, self._budget = run, run.runtime, share, budget
        self._lane = lane if lane is not run.runtime.engine.lane else None  # None: all nodes
        self._active, self._most = [], min(MAX_ACTIVE, run.runtime.n_batch)
        self.n_tokens = 0

    @property
    def part(self):
        """How many prompts' worth of work the unfinished ones have behind them, had each the longest answer."""
        return sum(s.at / (s.most + 1) for s in tuple(self._active))

    def __call__(self):
        if self._lane is not None:
            self._lane.keep_caller()
        try:
            while self._admit():
                self._step()
        finally:
            for s in self._active:
                self._run.finish(s)

    def _admit(self):
        """Take sequences while there is room; whether there is any work."""
        while self._run.waiting and len(self._active) < self._most:
            room = self._budget - sum(s.n_bytes for s in self._active)
            s = self._run.take(len(self._active), self._share, room)
            if s is None:
                break
            self._active.append(s)
            try:
                s.start(self._runtime, self._lane, self._mode)
            except (ModelClosed, ForkedProcess):
                raise
            except Exception as e:
                self._finish(s, e)
        return bool(self._active)

    def _finish(self, s, error=None):
        self._active.remove(s)
        self._run.finish(s, error)

    def _step(self):
        start = time.perf_counter()
        segments, parts, wanted, row = [], [], [], 0
        # In order of arrival, in which prompts are read too: sequences that answer stand before those whose prompts are still being read,
        # so that only these wait when n_batch rows are full.
        for s in self._active:
            ids, is_last = s.next_rows(self._runtime.n_batch - row)
            if not len(ids):
                break
            segments.append((s.kv, ids, s.at))
            parts.append((s, len(ids), s.at < len(s.ids)))
            row += len(ids)
            if is_last:
                wanted.append((s, row - 1))
        logits = self._runtime.step(segments, [at for _, at in wanted], job=self._run.crew, lane=self._lane)
        seconds = time.perf_counter() - start
        for s, n, is_prompt in parts:
            s.at += n
            if is_prompt:
                s.clock.prompt += seconds
                s.clock.prompt_tokens = s.at
        if wanted and not self._run.crew.cancelled:
            self._choose([s for s, _ in wanted], logits, start)

    def _choose(self, sequences, logits, start):
        lane, firsts = self._lane or self._runtime.engine.lane, [not s.generation.token_ids for s in sequences]
        turn = functools.partial(self._runtime.turn, self._lane, self._run.crew)
        errors = choose_step(lane.team, [s.generation for s in sequences], logits, turn=turn)
        now = time.perf_counter()
        for s, error, is_first in zip(sequences, errors, firsts):
            if isinstance(error, (ModelClosed, ForkedProcess)):  # a logits processor may have met them, and the run ends with them
                raise error
            self.n_tokens += error is None
            self._chosen(s, error, is_first, now, start)

    def _chosen(self, s, error, is_first, now, start):
        if not is_first:
            s.clock.generation += now - start
        elif error is None:
            s.clock.first_token = now - self._run.start
        if error is not None or s.generation.finish_reason is not None:
            self._finish(s, error)


class _Watch:
    """Tells the progress of a run, from the thread that called for it."""

    def __init__(self, run, report):
        self._run, self._report, self.works = run, report, ()
        self._told, self._when, self._start = -1, 0.0, time.perf_counter()

    def __call__(self):
        now, done = time.perf_counter(), self._run.done
        if done == self._told and now - self._when < _REPORT:
            return
        n_tokens = sum(work.n_tokens for work in self.works)
        self._told, self._when = done, now
        note = f"{counted(n_tokens, 'token')}, {n_tokens / max(now - self._start, 1e-9):.1f} tokens/s"
        self._report(done, len(self._run.results), note, sum(work.part for work in self.works))


# ---- lanes -----------------------------------------------------------------------------------------------------------


def choose_lanes(runtime, mode, n, crew):
    """The lanes for n sequences: that of all nodes, or each node's own.

    Parameters
    ----------
    mode : str
        "auto" takes what gives more tokens per second by `_measure`, made once per model; one sequence gets all nodes.

    Returns
    -------
    list of Lane
    """
    whole = [runtime.engine.lane]
    if mode == "latency" or mode == "auto" and n == 1:
        return whole
    lanes = runtime.node_lanes()
    if mode == "throughput" or len(lanes) == 1:
        return lanes
    if runtime.step_seconds is None:
        runtime.step_seconds = {"latency": _measure(runtime, [None], crew), "throughput": _measure(runtime, lanes, crew)}
        log.info("seconds per step, by rows: %s", runtime.step_seconds)

    def rate(mode, n_lanes):
        rows = min(-(-n // n_lanes), MAX_ACTIVE, runtime.n_batch)
        (a, t_a), (b, t_b) = runtime.step_seconds[mode]
        seconds = t_a + (t_b - t_a) * (rows - a) / max(b - a, 1)
        return min(rows * n_lanes, n) / seconds

    return lanes if rate("throughput", len(lanes)) > rate("latency", 1) else whole


def _measure(runtime, lanes, crew):
    """Seconds of a step of one row and of several, on all of these lanes at the same time: two (rows, seconds)."""
    found = []
    for rows in (1, min(_CALIBRATION_ROWS, runtime.n_batch, runtime.n_ctx)):
        seconds = [0.0] * len(lanes)

        def work(i, rows=rows, seconds=seconds):
            if lanes[i] is not None:
                lanes[i].keep_caller()
            kv, times = runtime.new_cache(lanes[i]), []
            try:
                for _ in range(4):
                    start = time.perf_counter()
                    runtime.step([(kv, np.zeros(rows, np.int32), 0)], range(rows), job=crew, lane=lanes[i])
                    times.append(time.perf_counter() - start)
            finally:
                kv.close()
            seconds[i] = min(times[1:])  # the first touches new memory

        crew.run([lambda i=i, work=work: work(i) for i in range(len(lanes))], lambda: None)
        found.append((rows, max(seconds)))
    return tuple(found)


def kv_budget(runtime, lane):
    """Bytes of KV memory that sequences in this lane may fill: what its nodes have free now, but for the reserve, and no more than the
    lane's part of what the control group allows all nodes together.  What nobody knows does not bind.

    Pretend nodes share the memory of the real one.
    """
    engine, memory, most = runtime.engine, limits().memory, sys.maxsize
    for i in lane.nodes:
        room = spare(*node_memory(engine.nodes[i]))
        if room is not None:
            most = min(most, room * len(lane.nodes) // engine.nodes.count(engine.nodes[i]))
    return most if memory is None else min(most, memory.spare * len(lane.nodes) // len(engine.nodes))
