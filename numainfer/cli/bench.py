"""The command ``numainfer bench``: lists of models, threads, prompts and answers, as a table, as CSV or as JSON."""

import argparse
import csv
import itertools
import sys

from .answering import print_json
from .load import add_load, load
from .report import report

_CSV = ("model", "isa", "threads", "nodes", "placement", "test", "n", "depth", "repeats", "tokens_per_second", "mean", "stdev",
        "bytes_per_token", "gb_per_second", "share_of_read_limit", "read_limit_gb_per_second")  # fmt: skip
_PROFILE_CSV = ("model", "isa", "threads", "nodes", "placement", "stage", "n", "depth", "name", "calls", "seconds", "share",
                "gb_per_second", "multiply_adds_per_second", "read_limit_gb_per_second")  # fmt: skip


def add_bench(parser):
    """Arguments of ``bench``."""
    listed = {"type": _numbers, "action": "extend", "metavar": "LIST"}
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("-p", "--n-prompt", **listed, help="prompt tokens, such as 128,512 (default 512; 0: no prompt)")
    parser.add_argument("-n", "--n-gen", **listed, help="tokens to generate, such as 32,128 (default 128; 0: none)")
    parser.add_argument("-d", "--depth", **listed, help="tokens in the context before (default 0)")
    parser.add_argument("-r", "--repeats", type=int, default=3, metavar="N", help="runs of each test, in turns (default 3)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object, or a list of them")
    form.add_argument("--csv", action="store_true", help="print comma-separated values, a line per test")
    help_ = "write a page about this machine and one model on it, to post: nodes, links, speed by threads, nodes and placement, forecasts"
    form.add_argument("--report", metavar="FILE", help=help_)
    parser.add_argument("--profile", action="store_true", help="show where the time goes: per op and stage, barriers apart")
    parser.add_argument("--trace", metavar="FILE", help="with --profile: write what each worker did, for ui.perfetto.dev")
    add_load(parser, listed | {"help": "worker threads, such as 1,2 (default: one per core)"})


def _numbers(text):
    """A list of numbers with commas between them."""
    numbers = []
    for part in text.split(","):
        if not (part.isascii() and part.isdigit() and len(part) < 10):
            raise argparse.ArgumentTypeError(f"found {part!r} in {text!r}, wanted numbers with commas between them, such as 1,2")
        numbers.append(int(part))
    return numbers


def bench(args):
    """Measure."""
    from ..measure.benchmark import GEN, PROMPT, Trial
    from ..gguf.sources import resolve

    lists = {"n_prompt": [512], "n_gen": [128], "depth": [0], "threads": [None]}
    for name, default in lists.items():
        lists[name] = given = getattr(args, name) or default
        twice = sorted({n for n in given if given.count(n) > 1}, key=given.index)
        if twice:
            args.parser.error(f"argument --{name.replace('_', '-')}: found {twice[0]} more than once in {given}")
    if 0 in lists["threads"]:
        args.parser.error("argument -t/--threads: found 0, wanted 1 or more")
    if args.repeats < 1:
        args.parser.error(f"argument -r/--repeats: found {args.repeats}, wanted 1 or more")
    if args.trace is not None and not args.profile:
        args.parser.error("--trace goes with --profile")
    if args.report is not None:
        if args.profile or len(args.models) > 1:
            args.parser.error("--report is of one model, and without --profile")
        open(args.report, "a").close()  # a path that cannot be written is told of before anything is measured
    kinds = ((PROMPT, lists["n_prompt"]), (GEN, lists["n_gen"]))
    trials = [Trial(kind, n, depth) for depth in lists["depth"] for kind, sizes in kinds for n in sizes if n]
    if not trials:
        args.parser.error("nothing to measure: --n-prompt and --n-gen are both 0")
    args.models = [resolve(source) for source in args.models]  # one that is missing is told of before others are measured
    if args.trace is not None:
        open(args.trace, "w").close()  # and so is a path that cannot be written
    if args.report is not None:
        report(args, lists, trials)
        return 0
    run = _profile if args.profile else _measure
    run(args, lists, trials, "json" if args.json else "csv" if args.csv else "table")
    return 0


def _models(args, threads):
    """Every model with every number of threads, loaded; the next team attaches to weights that are still in place."""
    from ..machine.policies import cuts

    for path in args.models:
        model = None
        try:
            for n in threads:
                before, model = model, None
                try:
                    if before is not None and cuts(before.placement.policy):  # they follow the threads: nothing to share
                        before.close()
                    elif before is not None:
                        before.runtime.engine.leave_cpus()  # the same for all numbers of threads
                    model = load(args, path, threads=n)
                finally:
                    if before is not None:
                        before.close()
                yield model
        finally:
            if model is not None:
                model.close()


def _name(path):
    return path.name.removesuffix(".gguf")


def _widest(things):
    return max(len(str(thing)) for thing in things)


def _about(model):
    """(name, size, parameters, threads) as a table shows them."""
    from ..summary import short_bytes, short_count

    return _name(model.path), short_bytes(model.config.n_bytes), short_count(model.config.parameters), str(model.runtime.engine.threads)


def _note(found):
    nodes = f"{found.nodes} node{'s' * (found.nodes > 1)}"
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}"
    return f"{found.model}: {found.isa}, {threads} on {nodes}, {found.placement}; they can read {found.read_limit / 1e9:.1f} GB/s"


def _early(args, found):
    return f"stopped by Ctrl-C, before all of {args.repeats} repeat{'s' * (args.repeats > 1)} of {found.model} had ended"


# ---- speeds ------------------------------------------------------------------------------------


def _measure(args, lists, trials, form):
    from ..measure.benchmark import GEN, PROMPT, Stopped, Trial, above_limit, measure, summarise

    objects, notes = [], []
    combinations = [c for c in itertools.product(lists["n_prompt"], lists["n_gen"], lists["depth"]) if c[0] or c[1]]
    head = ("model", "size", "params", "threads", "test", "tokens/s", "median", "MB/token", "GB/s", "of limit")
    table = _Table(form, head, 5, (_widest(map(_name, args.models)), 8, 6, 7, _widest(trials), 17, 7))
    lines = _lines(form, _CSV)
    try:
        for model in _models(args, lists["threads"]):
            stopped = None
            try:
                speeds, limit = measure(model, trials, args.repeats)
            except Stopped as e:
                (speeds, limit), stopped = e.found, e
            by_trial = {speed.trial: speed for speed in speeds}
            for p, n, depth in combinations:
                prompt, gen = by_trial.get(Trial(PROMPT, p, depth)), by_trial.get(Trial(GEN, n, depth))
                if prompt or gen:
                    objects.append(summarise(model, prompt, gen, limit).to_dict())
            plain = summarise(model, None, None, limit)
            notes.append(_note(plain))
            for speed in speeds:
                row = [str(speed.trial), f"{speed.mean:.2f} ± {speed.deviation:.2f}", f"{speed.median:.2f}", "", "", ""]
                if speed.trial.kind == GEN:
                    row[3:] = f"{speed.bytes_per_token / 1e6:.1f}", f"{speed.gb_per_second:.1f}", f"{speed.share:.0%}"
                    notes.append(above_limit(speed.share, speed.bytes_per_token))
                table.add(*_about(model), *row)
                lines(plain.to_dict() | speed.to_dict() | {"test": str(speed.trial), "repeats": len(speed.samples)})
            table.flush()
            if stopped:
                notes.append(_early(args, plain))
                raise stopped
    finally:  # after Ctrl-C or an error, too: what is measured is shown
        _finish(form, objects, notes, len(args.models) * len(lists["threads"]) * len(combinations))


# ---- profiles ----------------------------------------------------------------------------------


def _profile(args, lists, trials, form):
    from ..measure.benchmark import GEN, Stopped, above_limit
    from ..measure.profiling import profile, write_trace

    profiles, notes = [], []
    head = ("model", "threads", "stage", "op", "calls", "ms", "share", "GB/s", "of limit", "G macs/s")
    table = _Table(form, head, 4, (_widest(map(_name, args.models)), 7, _widest(trials), 30, 5, 8))
    lines = _lines(form, _PROFILE_CSV)
    try:
        for model in _models(args, lists["threads"]):
            stopped = None
            try:
                found = profile(model, trials, args.repeats)
            except Stopped as e:
                found, stopped = e.found, e
            profiles.append(found)
            notes.append(_note(found.bench))
            name, _, _, threads = _about(model)
            for stage in found.stages:
                shares = [0.0]
                for row in stage.rows:
                    gbs, macs = (n / row.seconds if n else 0.0 for n in (row.bytes / 1e9, row.macs))
                    share = ""
                    if row.bytes and stage.trial.kind == GEN:  # a prompt is arithmetic
                        shares.append(gbs * 1e9 / found.bench.read_limit)
                        share = f"{shares[-1]:.0%}"
                    table.add(name, threads, str(stage.trial), row.name, f"{row.calls:.0f}", f"{row.seconds * 1e3:.3f}",
                              f"{row.seconds / stage.seconds:.1%}", f"{gbs:.1f}" if share else "", share,
                              f"{macs / 1e9:.1f}" if row.macs else "")  # fmt: skip
                    lines(found.bench.to_dict() | stage.to_dict() | {
                        "name": row.name, "calls": row.calls, "seconds": row.seconds, "share": row.seconds / stage.seconds,
                        "gb_per_second": gbs, "multiply_adds_per_second": macs})  # fmt: skip
                notes.append(above_limit(max(shares), sum(row.bytes for row in stage.rows)))
                unit = "a token" if stage.trial.kind == GEN else "the prompt"
                table.add(name, threads, str(stage.trial), f"all of {unit}", "", f"{stage.seconds * 1e3:.3f}", "100.0%", "", "", "")
            table.flush()
            if stopped:
                notes.append(_early(args, found.bench))
                raise stopped
    finally:  # after Ctrl-C or an error, too: what is measured is shown
        if args.trace is not None and profiles:
            write_trace(args.trace, profiles)
        notes.append("ms: of a whole prompt, or of one token; means over the workers, of the repeat with the median time")
        _finish(form, [found.to_dict() for found in profiles], notes, len(args.models) * len(lists["threads"]))


# ---- output ------------------------------------------------------------------------------------


def _finish(form, objects, notes, asked):
    """Print the objects, as a list if more than one was asked for, or the notes; nothing where nothing was measured."""
    if form == "json" and objects:
        print_json(objects[0] if asked == 1 else objects)
    elif form == "table" and objects:
        print("\n" + "\n".join(dict.fromkeys(filter(None, notes))))


def _lines(form, columns):
    """A function that prints a dict's values as a line of CSV; without that form, one that does nothing."""
    if form != "csv":
        return lambda found: None
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    return writer.writerow


class _Table:
    """A table in Markdown, printed block by block.

    Parameters
    ----------
    form : str
        Anything but "table" prints nothing.
    head : sequence of str
    left : int
        Columns aligned left; the others are numbers.
    least : sequence of int
        Widths that the first columns have at least: the first block cannot know those of later ones.
    """

    def __init__(self, form, head, left, least):
        self._shown, self._head, self._left = form == "table", head, left
        self._widths = [max(len(h), 4, n) for h, n in itertools.zip_longest(head, least, fillvalue=0)]
        self._rows, self._begun = [], False

    def add(self, *cells):
        self._rows.append(cells)

    def flush(self):
        """Print the rows so far."""
        if not self._shown:
            sys.stdout.flush()  # lines of CSV
            return
        for row in self._rows:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row)]
        if not self._begun:
            self._line(self._head)
            self._line(["-" * w if i < self._left else "-" * (w - 1) + ":" for i, w in enumerate(self._widths)])
        self._begun = True
        for row in self._rows:
            self._line(row)
        self._rows = []
        sys.stdout.flush()

    def _line(self, cells):
        padded = (c.ljust(w) if i < self._left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, self._widths)))
        print(f"| {' | '.join(padded)} |")
