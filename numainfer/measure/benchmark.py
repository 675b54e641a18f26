"""How fast a model runs here, beside what the memory could give.

Speeds are of the model alone: ids in, logits out, without sampling and text.
"""

import contextlib
import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import integer
from .bandwidth import ReadProbe, cache_bytes
from ..errors import ContextOverflow
from ..summary import counted

if TYPE_CHECKING:
    from ..model import Model

PROMPT, GEN = "pp", "tg"  # as llama-bench names them: prompt processing, text generation
_ARGUMENT = {PROMPT: "n_prompt", GEN: "n_gen"}


class Stopped(KeyboardInterrupt):
    """Ctrl-C while something was measured; ``found`` is what would have been returned, of the repeats that had ended."""

    def __init__(self, found):
        super().__init__()
        self.found = found


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What is timed: ``n`` tokens at positions ``depth`` to ``depth + n``, as a prompt or one by one."""

    kind: str
    n: int
    depth: int = 0

    def __str__(self):
        return f"{self.kind}{self.n}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def end(self) -> int:
        return self.depth + self.n


@dataclasses.dataclass(frozen=True, slots=True)
class Speed:
    """A trial's outcome.

    Attributes
    ----------
    trial : Trial
    samples : tuple of float
        Tokens per second of each repeat.
    bytes_per_token : int
        Of weights, keys and values that a generated token reads, on average over the run; 0 for a prompt.
    limits : tuple of float
        Bytes per second that could be read: for each repeat the mean of a sample before and one after it. Empty for a
        prompt.
    """

    trial: Trial
    samples: tuple[float, ...]
    bytes_per_token: int = 0
    limits: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Standard deviation of the samples; 0 of a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def gb_per_second(self) -> float:
        """10^9 bytes read per second, by the median."""
        return self.median * self.bytes_per_token / 1e9

    @property
    def share(self) -> float | None:
        """Median over the repeats of bytes read per second, as a part of what could be read then; None for a prompt."""
        if not self.limits:
            return None
        return statistics.median(rate * self.bytes_per_token / limit for rate, limit in zip(self.samples, self.limits))

    def to_dict(self) -> dict[str, Any]:
        """Part of the object that ``numainfer bench --json`` prints."""
        found = {"n": self.trial.n, "depth": self.trial.depth, "tokens_per_second": self.median, "mean": self.mean,
                 "stdev": self.deviation, "samples": list(self.samples)}  # fmt: skip
        if self.trial.kind == GEN:
            found |= {"bytes_per_token": self.bytes_per_token, "gb_per_second": self.gb_per_second,
                      "share_of_read_limit": self.share}  # fmt: skip
        return found


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Bench:
    """Speeds of a model in one run.

    Attributes
    ----------
    model, isa, placement : str
    threads, nodes : int
    prompt, gen : Speed or None
        None: not measured.
    read_limit : float
        Bytes per second that the same threads read at best, each from its own node; median over the run.
    """

    model: str
    isa: str
    threads: int
    nodes: int
    placement: str
    prompt: Speed | None
    gen: Speed | None
    read_limit: float

    @property
    def prompt_tokens_per_second(self) -> float:
        """Median, float."""
        return self.prompt.median

    @property
    def gen_tokens_per_second(self) -> float:
        """Median, float."""
        return self.gen.median

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights, keys and values that a generated token reads."""
        return self.gen.bytes_per_token

    @property
    def gb_per_second(self) -> float:
        """10^9 bytes per second that generation reads, float."""
        return self.gen.gb_per_second

    def to_dict(self) -> dict[str, Any]:
        """The object that ``numainfer bench --json`` prints."""
        return {
            "model": self.model,
            "isa": self.isa,
            "threads": self.threads,
            "nodes": self.nodes,
            "placement": self.placement,
            "pp": self.prompt and self.prompt.to_dict(),
            "tg": self.gen and self.gen.to_dict(),
            "read_limit_gb_per_second": self.read_limit / 1e9,
        }

    def __repr__(self) -> str:
        lines = [f"{self.model}: {self.isa}, {counted(self.threads, 'thread')} on {counted(self.nodes, 'node')}, "
                 f"{self.placement}"]  # fmt: skip
        for name, speed in (("prompt", self.prompt), ("decode", self.gen)):
            if speed is not None:
                depth = f" after {speed.trial.depth}" if speed.trial.depth else ""
                lines.append(f"  {name} {speed.trial.n:6} tokens{depth} {speed.median:10.1f} tokens/s")
        if self.gen is not None:
            lines[-1] += (f" {self.gb_per_second:8.1f} GB/s, {self.gen.share:.0%} of the {self.read_limit / 1e9:.1f} GB/s "
                          "that can be read")  # fmt: skip
            why = above_limit(self.gen.share, self.gen.bytes_per_token)
            lines += [f"  {why}"] if why else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from .. import looks

        title, *_ = repr(self).splitlines()
        rows = []
        for name, speed in (("prompt", self.prompt), ("decode", self.gen)):
            if speed is not None:
                rows.append((name, speed.trial.n, speed.trial.depth, f"{speed.median:.1f}", f"{speed.deviation:.1f}",
                             *(("", "") if speed.share is None else (f"{speed.gb_per_second:.1f}", f"{speed.share:.0%}"))))  # fmt: skip
        limit = f"of {self.read_limit / 1e9:.1f} GB/s"
        return looks.table(("", "tokens", "after", "tokens/s", "±", "GB/s", limit), rows, title)


def above_limit(share, n_bytes):
    """What a share of the read limit above 100 % means for a token that reads ``n_bytes``; None for other shares."""
    if round(share, 2) <= 1:
        return None
    cache = cache_bytes()
    if n_bytes <= cache:
        return (f"more than 100% of the limit: the {n_bytes / 1e6:.1f} MB of a token fit in the caches of {cache / 1e6:.0f} MB, "
                "which are faster than the memory")  # fmt: skip
    return ("more than 100% of the limit: it was measured while others used the memory, so shares are too high; run again "
            "on a quiet machine")  # fmt: skip


def bench(model: "Model", n_prompt: int = 512, n_gen: int = 128, repeats: int = 3) -> Bench:
    """Measure prefill, decode and the memory's read limit in one run, taking turns.

    Parameters
    ----------
    model : Model
    n_prompt, n_gen : int
        Tokens of the prompt, and tokens generated after an empty context.
    repeats : int

    Returns
    -------
    Bench

    Raises
    ------
    TypeError, ValueError, ContextOverflow
        A number out of range; the message names it.
    """
    from ..model import Model

    if not isinstance(model, Model):
        raise TypeError(f"model: found {type(model).__name__}, wanted a Model (numainfer.load gives one)")
    trials = [Trial(PROMPT, integer("n_prompt", n_prompt, 1)), Trial(GEN, integer("n_gen", n_gen, 1))]
    (prompt, gen), limit = measure(model, trials, integer("repeats", repeats, 1))
    return summarise(model, prompt, gen, limit)


def summarise(model, prompt, gen, limit):
    """Bench of two of a model's Speeds, either of which may be None."""
    engine = model.runtime.engine
    return Bench(model.path.name, engine.isa, engine.threads, len(engine.nodes), engine.placement.policy, prompt, gen, limit)


def measure(model, trials, repeats):
    """Time trials in turns, so that what disturbs the machine for a while disturbs all of them.

    Parameters
    ----------
    model : Model
    trials : sequence of Trial
    repeats : int

    Returns
    -------
    list of Speed, float
        In the trials' order; and the read limit in bytes per second, median of all samples.

    Raises
    ------
    ContextOverflow
        A trial does not fit; the message names its argument.
    Stopped
        After Ctrl-C, if any repeat of any trial had ended; with the same pair, of the trials that have repeats.
    """
    bytes_read = [round(bytes_per_token(model, trial)) if trial.kind == GEN else 0 for trial in trials]
    samples, limits, seen = [[] for _ in trials], [[] for _ in trials], []
    stopped = False
    with Runner(model, trials) as runner, ReadProbe(model.runtime) as probe:
        try:
            for _ in range(repeats):
                before = None
                for i, trial in enumerate(trials):
                    if trial.kind == PROMPT:
                        before = None  # by the end of a long prompt it is old
                    elif before is None:
                        before = probe.sample()
                        seen.append(before)
                    speed = trial.n / runner.run(trial)
                    if trial.kind == GEN:
                        after = probe.sample()
                        limits[i].append((before + after) / 2)
                        seen.append(after)
                        before = after
                    samples[i].append(speed)
                if before is None:
                    seen.append(probe.sample())
        except KeyboardInterrupt:
            if not any(samples):
                raise
            stopped = True
            if not seen:
                seen.append(probe.sample())
    speeds = [Speed(trial, tuple(found), bytes_read[i], tuple(limits[i][: len(found)]))
              for i, (trial, found) in enumerate(zip(trials, samples)) if found]  # fmt: skip
    found = speeds, statistics.median(seen)
    if stopped:
        raise Stopped(found)
    return found


class Runner:
    """A sequence of random ids on which trials run, with a cache for each depth, filled up to it and warmed up.

    Parameters
    ----------
    model : Model
    trials : sequence of Trial
        Those that will run.

    Raises
    ------
    ContextOverflow
    """

    def __init__(self, model, trials):
        for trial in trials:
            if trial.end > model.n_ctx:
                depth = f" at depth {trial.depth}" if trial.depth else ""
                raise ContextOverflow(f"{_ARGUMENT[trial.kind]} = {trial.n}{depth}, but the context holds n_ctx = {model.n_ctx}")
        self._runtime, self._caches = model.runtime, {}
        self._ids = np.random.default_rng(0).integers(0, model.n_vocab, max(trial.end for trial in trials), dtype=np.int32)
        try:
            self._fill(sorted({trial.depth for trial in trials}))
            for depth in self._caches:  # first touches and page faults are over then
                self.run(Trial(PROMPT, max(trial.n for trial in trials if trial.depth == depth), depth))
            if any(trial.kind == GEN for trial in trials):
                self.run(Trial(GEN, min(4, *(trial.n for trial in trials)), trials[0].depth))
        except BaseException:
            self.close()
            raise

    def _fill(self, depths):
        with contextlib.closing(self._runtime.new_cache()) as cache:
            for first, depth in zip([0, *depths], depths):
                for a in range(first, depth, self._runtime.n_batch):
                    self._runtime.step([(cache, self._ids[a : min(a + self._runtime.n_batch, depth)], a)], [])
                self._caches[depth] = self._runtime.copy_cache(cache, depth)

    def run(self, trial, after_step=None):
        """Seconds of a trial.

        Parameters
        ----------
        trial : Trial
        after_step : callable, optional
            ``after_step(first, end, seconds)`` is called after each step with its positions and time; its own time does
            not count.
        """
        total, size = 0.0, self._runtime.n_batch if trial.kind == PROMPT else 1
        for a in range(trial.depth, trial.end, size):
            b = min(a + size, trial.end)
            rows = [b - a - 1] if trial.kind == GEN or b == trial.end else []
            start = time.perf_counter()
            self._runtime.step([(self._caches[trial.depth], self._ids[a:b], a)], rows)
            seconds = time.perf_counter() - start
            total += seconds
            if after_step is not None:
                after_step(a, b, seconds)
        return total

    def close(self):
        for cache in self._caches.values():
            cache.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def bytes_per_token(model, trial):
    """Bytes of weights, keys and values that a token of a decoding trial reads, on average over its positions; float."""
    engine = model.runtime.engine
    tokens = np.arange(trial.depth, trial.end) + 1
    return engine.bytes_per_token + float(engine.plan.kv.read_bytes(tokens).mean())
