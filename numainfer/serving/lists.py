"""Lists of prompts: all are handed to the loop at once, and the calling thread waits for their ends."""

import dataclasses
import functools
import logging
import queue
import time
import warnings


from ..errors import CancelledWarning, ForkedProcess, Interrupted, ModelClosed
from .masks import make_form
from ..progress import progress_bar
from .answer import Answer
from .requests import wait_for
from ..results import Completion, Completions
from .generation import not_begun
from .params import SamplingParams, resolve_params
from .sampling import Sampler
from .speculation import check_speculation
from ..summary import counted

log = logging.getLogger("numainfer")

ON_INTERRUPT = ("raise", "return")
_REPORT = 0.25  # seconds between two reports of progress


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
        All answers to a prompt before those to the next.
    """
    _check_lanes(runtime, mode)
    params = params_each(runtime, params, n, sampling)
    run = _Run(runtime, [(prompt_of, i, each) for i, own in enumerate(params) for each in own.each()], mode)
    with progress_bar(progress, "Generating", unit="prompts") as report:
        run.run(report)
    results = run.results()
    failed = [(i, done.error) for i, done in enumerate(results) if done.error is not None]
    if failed:
        i, error = failed[0]
        log.warning("%d of %d prompts failed; the first is %d: %s", len(failed), len(results), i, error)
    if run.interrupted:
        lost = sum(done.finish_reason == "cancelled" for done in results)
        all_ = counted(len(results), "prompt" if len(results) == n else "answer")
        says = f"interrupted: {lost} of {all_} {'was' if lost == 1 else 'were'} cancelled"
        if on_interrupt == "raise":
            raise Interrupted(says, results)
        warnings.warn(says, CancelledWarning, stacklevel=3)
    return results


def _check_lanes(runtime, mode):
    """Raise ValueError if lanes of single nodes are asked for where no node has all weights."""
    placement = runtime.engine.placement
    if mode == "throughput" and len(placement.nodes) > 1 and placement.policy != "replicate":
        raise ValueError(
            f"mode = 'throughput': every node works by itself then and needs its own copy of all weights, but the placement is "
            f"{placement.policy} on {placement.where}: {'of some weights ' * (len(placement.policies) > 1)}one copy in all. "
            "Load with placement='replicate', or leave mode to 'auto'"
        )


def params_each(runtime, params, n, sampling):
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
    for own in {id(own): own for own in each}.values():
        check_params(runtime, own)
    return each


def check_params(runtime, params):
    """Raise ValueError for token ids that do not exist, a draft that does not fit, and a form that does not compile: it takes a while."""
    n_vocab = min(runtime.n_vocab, runtime.tokenizer.n_vocab)
    Sampler(params, n_vocab, (), params.stop_token_ids)
    make_form(runtime.tokenizer, n_vocab, params, params.stop_token_ids)
    check_speculation(runtime, params.speculate)


class _Run:
    """A list of prompts on its way through the loop.

    Attributes
    ----------
    interrupted : bool
        Ctrl-C was pressed.
    """

    def __init__(self, runtime, prompts, mode):
        self._runtime, self._news, self.interrupted = runtime, queue.SimpleQueue(), False
        self._all = []  # of each prompt its Answer, or the Completion of one that cannot begin
        for prompt_of, i, own in prompts:
            try:
                ids, reader = prompt_of(i)
                notify = functools.partial(self._news.put, len(self._all))
                self._all.append(Answer(runtime, ids, own, reader=reader, prepare=False, notify=notify, mode=mode))
            except (TypeError, ValueError) as e:
                self._all.append(not_begun(own, 0, "error", e))
        self._requests = [one for one in self._all if isinstance(one, Answer)]
        self._ended = 0

    def run(self, report):
        """Have all computed. Ctrl-C ends it early: what is not finished is "cancelled" then.

        Raises
        ------
        BaseException
            What `report` raises, or what ended all of them: ModelClosed, ForkedProcess, a step that fails.
        """
        watch = (lambda: None) if report is None else _Watch(report, self._requests, len(self._all))
        try:
            self._runtime.submit(*self._requests)
            while self._ended < len(self._requests):
                for i in self._wait(None if report is None else _REPORT / 10):
                    request = self._all[i]
                    if request.broken or isinstance(request.error, (ModelClosed, ForkedProcess)):
                        raise request.error
                watch()
            self._runtime.check_process()  # in a fork that `watch` made no thread works
        except KeyboardInterrupt:
            self._stop()
            self.interrupted = True
        except BaseException:
            self._stop()
            raise
        watch()

    def _wait(self, seconds):
        """Numbers of those that ended meanwhile; all that came by now is one piece of news."""
        found = [wait_for(self._news, self._runtime, seconds)]
        while self._news.qsize():
            found.append(self._news.get())
        found = [i for i in found if i is not None]
        self._ended += len(found)
        return found

    def _stop(self):
        """Cancel all, and wait for that. Ctrl-C, pressed again meanwhile, ends the wait."""
        for request in self._requests:
            request.cancelled = True
        for request in self._requests:
            if not request.ended:
                request.cancel()
        # Not by `_ended`: an exception may have come between a piece of news and its count. A fork has none of the threads.
        while not (self._runtime.forked or all(request.ended for request in self._requests)):
            self._wait(None)

    def results(self):
        """Completions of all."""
        return Completions(_completion(one) for one in self._all)


def _completion(one):
    if isinstance(one, Completion):
        return one
    done = one.completion()
    return done if one.error is None else dataclasses.replace(done, finish_reason="error", error=one.error)


class _Watch:
    """Tells the progress of a run, from the thread that called for it."""

    def __init__(self, report, requests, n):
        self._report, self._requests, self._n = report, requests, n
        self._told, self._when, self._start = -1, 0.0, time.perf_counter()

    def __call__(self):
        now, done = time.perf_counter(), self._n - len(self._requests) + sum(s.ended for s in self._requests)
        if done == self._told and now - self._when < _REPORT:
            return
        n_tokens = sum(len(s.generation.token_ids) for s in self._requests if s.generation is not None)
        # How many prompts' worth of work the unfinished ones have behind them, had each the longest answer.
        part = sum(s.at / (s.most + 1) for s in self._requests if not s.ended)
        self._told, self._when = done, now
        note = f"{counted(n_tokens, 'token')}, {n_tokens / max(now - self._start, 1e-9):.1f} tokens/s"
        self._report(done, self._n, note, part)
