"""Where a model's time goes: per kind of op, in barriers, and outside the plan; and as a trace of every worker."""

import dataclasses
import json
import statistics

import numpy as np

from .bandwidth import ReadProbe
from .benchmark import GEN, PROMPT, Runner, Stopped, Trial, summarise

TRACED = 8  # generated tokens, the last ones, that the trace shows
_PENDING_BYTES = 64 << 20  # stamps that wait to be looked at
_BARRIERS = ("", "node barrier", "team barrier")
_OUTSIDE = "outside the plan"


@dataclasses.dataclass(slots=True)
class Row:
    """One line of a stage.

    Attributes
    ----------
    name : str
        An op with the matrices that it multiplies by, a kind of barrier, or what is outside the plan (Python, waking the
        workers, waiting for the last of them).
    calls : float
        Per prompt, or per generated token.
    seconds : float
        Likewise; mean over the workers.
    bytes, macs : int
        Weight bytes read and multiply-adds done, likewise, by all workers; 0 for what multiplies nothing.
    """

    name: str
    calls: float = 0
    seconds: float = 0.0
    bytes: int = 0
    macs: int = 0

    def add(self, seconds, n_bytes, macs):
        self.calls += 1
        self.seconds += seconds
        self.bytes += n_bytes
        self.macs += macs

    def scale(self, factor):
        return Row(self.name, self.calls * factor, self.seconds * factor, round(self.bytes * factor), round(self.macs * factor))


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """The repeat of a trial that took the median time: rows of ops, largest first, then barriers, then the rest.

    Attributes
    ----------
    trial : Trial
    seconds : float
        Per prompt, or per generated token; the rows' seconds add up to it.
    rows : tuple of Row
    """

    trial: Trial
    seconds: float
    rows: tuple

    def to_dict(self):
        """A dict that ``json`` can write."""
        kinds = {PROMPT: "prefill", GEN: "decode"}
        return {"stage": kinds[self.trial.kind], "n": self.trial.n, "depth": self.trial.depth, "seconds": self.seconds,
                "rows": [dataclasses.asdict(row) for row in self.rows]}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """Stages of one model.

    Attributes
    ----------
    bench : Bench
        The model, the team and the read limit; no speeds, for the clock is looked at twice per op.
    stages : tuple of Stage
    events : tuple of dict
        Chrome trace events of the last repeat of each stage; of a decoding stage its last ``TRACED`` tokens.
    """

    bench: object
    stages: tuple
    events: tuple

    def to_dict(self):
        """The object that ``numainfer bench --profile --json`` prints."""
        about = {k: v for k, v in self.bench.to_dict().items() if k not in ("pp", "tg")}
        return about | {"stages": [stage.to_dict() for stage in self.stages]}


def profile(model, trials, repeats):
    """Run trials with the core's clock on.

    Parameters
    ----------
    model : Model
    trials : sequence of Trial
    repeats : int

    Returns
    -------
    Profile

    Raises
    ------
    ContextOverflow
        A trial does not fit; the message names its argument.
    Stopped
        After Ctrl-C, if any repeat of any trial had ended; with a Profile of the trials that have repeats.
    """
    engine = model.runtime.engine
    ops, core, limits = [_describe(op) for op in engine.plan.ops], engine.lane.core_plan(), []
    taken, events, stopped = [[] for _ in trials], [], False
    with Runner(model, trials) as runner, ReadProbe(model.runtime) as probe:
        core.set_timing(True)
        try:
            for repeat in range(repeats):
                limits.append(probe.sample())
                for i, trial in enumerate(trials):
                    clock = _Clock(core, ops, trial)
                    seconds = runner.run(trial, clock.after_step)
                    taken[i].append((seconds, clock.sums()))
                    if repeat == repeats - 1:
                        events += _events(ops, clock.traced)
        except KeyboardInterrupt:
            if not any(taken):
                raise
            stopped = True
        finally:
            core.set_timing(False)
    stages = tuple(_stage(trial, sorted(found, key=lambda f: f[0])[(len(found) - 1) // 2])
                   for trial, found in zip(trials, taken) if found)  # fmt: skip
    found = Profile(summarise(model, None, None, statistics.median(limits)), stages, tuple(_names(engine) + events))
    if stopped:
        raise Stopped(found)
    return found


class _Clock:
    """Collects the stamps of one run of a trial.

    Between steps it only copies them: while anyone computes there, the workers fall asleep, and the next step would be
    charged with waking them.
    """

    def __init__(self, core, ops, trial):
        self._core, self._ops, self._trial = core, ops, trial
        self._sums, self._pending = {}, []
        self.traced = []  # (name, stamps) of the steps that a trace shows

    def after_step(self, first, end, seconds):
        stamps = self._core.stamps()
        self._pending.append((first, end, seconds, stamps))
        if len(self._pending) * stamps.nbytes > _PENDING_BYTES:
            self.sums()

    def sums(self):
        """Rows of all steps so far, by (0 op, 1 barrier, 2 outside; name)."""
        gen, last = self._trial.kind == GEN, self._trial.end
        for first, end, seconds, stamps in self._pending:
            _account(self._sums, self._ops, stamps, seconds, end - first, int(gen or end == last))
            if not gen or end > last - TRACED:
                self.traced.append((f"decode position {first}" if gen else f"prefill {first} to {end}", stamps))
        self._pending = []
        return self._sums


def _describe(op):
    """(name, layer or None, cost by number of rows, whether only wanted rows count, barrier) of a plan's op."""
    matrices = [w for w in op.weights if hasattr(w, "k")]
    name = " ".join([op.name, *(w.short_name for w in matrices)])
    parts = matrices[0].name.split(".") if matrices else []
    layer = int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else None
    return name, layer, op.cost, op.selected, op.barrier


def _intervals(stamps):
    """Seconds (workers, ops) before each op, and in it."""
    begin, end = stamps[:, 1::2], stamps[:, 2::2]
    before = begin - np.concatenate([stamps[:, :1], end[:, :-1]], axis=1)
    return before / 1e9, (end - begin) / 1e9


def _account(sums, ops, stamps, seconds, tokens, wanted):
    """Add a step of ``tokens`` tokens, of which ``wanted`` results are wanted, to the sums of rows by name."""
    before, within = (x.mean(axis=0) for x in _intervals(stamps))
    for (name, _, cost, selected, barrier), wait, work in zip(ops, before.tolist(), within.tolist()):
        found = cost(wanted if selected else tokens)
        if barrier:
            sums.setdefault((1, _BARRIERS[barrier]), Row(_BARRIERS[barrier])).add(wait, 0, 0)
        else:
            work += wait  # the clock's own time
        sums.setdefault((0, name), Row(name)).add(work, found.n_bytes, found.macs)
    outside = seconds - (stamps[:, -1] - stamps[:, 0]).mean() / 1e9
    sums.setdefault((2, _OUTSIDE), Row(_OUTSIDE)).add(outside, 0, 0)


def _stage(trial, found):
    seconds, sums = found
    factor = 1 / trial.n if trial.kind == GEN else 1
    order = sorted(sums, key=lambda key: (key[0], -sums[key].seconds))
    return Stage(trial, seconds * factor, tuple(sums[key].scale(factor) for key in order))


# ---- the trace ---------------------------------------------------------------------------------


def _names(engine):
    """Metadata events that name the tracks: one per worker, and one for steps."""
    tracks = ["steps"] + [f"worker {w}, node {engine.nodes[node]}, CPU {cpu}"
                          for w, (cpu, node) in enumerate(zip(engine.cpus, engine.node_of))]  # fmt: skip
    events = [{"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "numainfer"}}]
    for track, name in enumerate(tracks):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": name}})
        events.append({"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": track, "args": {"sort_index": track}})
    return events


def _events(ops, steps):
    """Complete events of some steps [(name, stamps)]: worker w on track w + 1; times in microseconds of the monotonic clock."""

    def event(name, kind, track, start, end, **more):
        return {"name": name, "cat": kind, "ph": "X", "pid": 1, "tid": track, "ts": int(start) / 1e3,
                "dur": int(end - start) / 1e3} | more  # fmt: skip

    found = []
    for name, stamps in steps:
        found.append(event(name, "step", 0, stamps[:, 0].min(), stamps[:, -1].max()))
        for worker, row in enumerate(stamps, 1):
            done = row[0]
            for i, (op, layer, *_, barrier) in enumerate(ops):
                start, end = row[1 + 2 * i], row[2 + 2 * i]
                if barrier:
                    found.append(event(_BARRIERS[barrier], "barrier", worker, done, start))
                args = {"op": i} if layer is None else {"op": i, "layer": layer}
                found.append(event(op, "op", worker, start, end, args=args))
                done = end
    return found


def write_trace(path, profiles):
    """Write the events of profiles, one process each, as Chrome's trace format (ui.perfetto.dev reads it, too).

    Source: "Trace Event Format", the JSON object form.

    Raises
    ------
    OSError
    """
    events, start = [], min((e["ts"] for p in profiles for e in p.events if "ts" in e), default=0)
    for pid, p in enumerate(profiles, 1):
        for event in p.events:
            event = event | {"pid": pid}
            if event["name"] == "process_name":
                event["args"] = {"name": f"{p.bench.model}, {p.bench.threads} threads"}
            if "ts" in event:
                event["ts"] = round(event["ts"] - start, 3)
            events.append(event)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": events, "displayTimeUnit": "ns"}, file, separators=(",", ":"))
