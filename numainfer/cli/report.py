"""``numainfer bench MODEL --report FILE``: one page about a machine and a model on it, which its owner can post.

It names neither the machine nor its user, and of the model the file's name alone.
"""

import dataclasses
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from .load import load, nodes_of


@dataclasses.dataclass
class Run:
    """One load of the model, and how fast it was.

    Attributes
    ----------
    asked : str
        The placement that was asked for.
    nodes, threads : list of int or None, int or None
        As asked for; None: all.
    forecast : Forecast or None
        What ``info`` says of it.
    placement : str
        What the placement was, as `Placement` prints it.
    verified : float or None
        The least share of a node's pages that was found on it.
    speeds : list of Speed
    limit : float
        Bytes per second that its threads could read.
    error : str
        Why there is nothing of all that.
    """

    asked: str
    nodes: list | None
    threads: int | None
    forecast: Any = None
    policy: str = ""
    placement: str = ""
    n_nodes: int = 0
    n_threads: int = 0
    verified: float | None = None
    speeds: list = dataclasses.field(default_factory=list)
    limit: float = 0.0
    error: str = ""


def report(args, lists, trials):
    """Measure, and write the page; after Ctrl-C, of what was measured."""
    from ..gguf.file import GGUFFile
    from ..machine.topology import distances, topology
    from ..measure.links import read_matrix
    from ..measure.machine import measure
    from ..summary import ModelConfig, counted

    nodes, machine_of = nodes_of(args), {}
    with GGUFFile(args.models[0]) as gguf:
        config = ModelConfig.from_gguf(gguf)
        seen = [node for node in topology().nodes if nodes is None or node.label in nodes]
        need = _demand(args, gguf, len(seen))
        machine_of[None, None] = machine = measure(None, nodes, need.weight_type)
        facts = [*_system(), ("nodes", str(topology()).replace("\n ", ";").replace("  ", " "))]
        rates, far = read_matrix(None, nodes), distances(seen)
        page = [_head(args.models[0].name, config), _table(("", ""), facts), *_links(seen, machine, rates, far)]
        runs = []
        try:
            for asked, some, threads in _plan(args, lists, need, seen):
                print(f"numainfer: {asked}, {_listed(some, 'nodes')}, {counted(threads, 'thread') if threads else 'all threads'}",
                      file=sys.stderr)  # fmt: skip
                runs.append(Run(asked, some, threads))
                _run(args, gguf, runs[-1], trials, machine_of)
        finally:
            page += [*_speeds([run for run in runs if run.speeds or run.error], trials, args.repeats), *_placements(runs)]
            Path(args.report).write_text("\n".join(page) + "\n", encoding="utf-8", errors="backslashreplace")
    print(f"numainfer: wrote {args.report}", file=sys.stderr)


def _demand(args, gguf, n_nodes):
    from ..measure.capacity import demand

    return demand(gguf, n_nodes, args.n_ctx, args.n_batch, args.kv_type)


def _plan(args, lists, need, nodes):
    """[(placement, nodes, threads)], None for all: every placement on all nodes; fewer threads; half of the nodes (a socket?); one node."""
    given = None if args.nodes is None else [node.label for node in nodes]
    policies = [args.placement]
    if args.placement == "auto" and len(nodes) > 1:
        policies = [policy for policy in need.policies() if policy != "local"]
    threads = lists["threads"]
    if threads == [None]:
        cores = sum(len(node.cpus) for node in nodes)
        threads = [None, *sorted({max(cores // 2, len(nodes)), max(cores // 4, len(nodes))} - {cores}, reverse=True)]
    plan = [(policy, given, n) for i, n in enumerate(threads) for policy in (policies if i == 0 else policies[:1])]
    if args.placement == "auto":
        labels, counts = [node.label for node in nodes], {len(nodes) // 2, 1} - {len(nodes), 0}
        plan += [(policies[0] if n > 1 else "local", labels[:n], None) for n in sorted(counts, reverse=True)]
    return plan


def _run(args, gguf, run, trials, machine_of):
    """Load, measure, and fill in what was found."""
    from ..errors import NumaInferError
    from ..measure import benchmark
    from ..measure.capacity import forecast
    from ..measure.machine import measure

    try:
        with load(args, args.models[0], placement=run.asked, nodes=run.nodes, threads=run.threads) as model:
            run.policy, run.placement = model.placement.policy, str(model.placement)
            shares = [node.verified for node in model.placement.nodes]
            run.verified = None if None in shares else min(shares)
            run.n_nodes, run.n_threads = len(shares), model.runtime.engine.threads
            try:
                run.speeds, run.limit = benchmark.measure(model, trials, args.repeats)
            except benchmark.Stopped as stopped:
                run.speeds, run.limit = stopped.found
                raise
    except (NumaInferError, ValueError) as e:
        run.error = str(e)
        return
    need = _demand(args, gguf, run.n_nodes)
    key = run.threads, None if run.nodes is None else tuple(run.nodes)
    if key not in machine_of:
        machine_of[key] = measure(run.threads, run.nodes, need.weight_type)
    run.forecast = forecast(need, machine_of[key], run.policy, 1)


# ---- text --------------------------------------------------------------------------------------------------------------


def _head(name, config):
    from .. import __version__
    from ..summary import short_bytes, short_count

    return (f"# numainfer {__version__} on one machine\n\n{name}: {config.architecture}, {short_count(config.parameters)} parameters, "
            f"{short_bytes(config.n_bytes)}, mostly {config.main_type}. Written {time.strftime('%Y-%m-%d')} by "
            "`numainfer bench MODEL --report FILE`.\n")  # fmt: skip


def _system():
    """[(what, value)] of the machine, as far as the system tells."""
    from .. import _core

    def read(path):
        try:
            return Path(path).read_text().strip()
        except OSError:
            return None

    names = {line.partition(":")[2].strip() for line in (read("/proc/cpuinfo") or "").splitlines() if line.startswith("model name")}
    sockets = {read(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")}
    facts = [
        ("CPU", ", ".join(sorted(names)) or platform.machine()),
        ("sockets", str(len(sockets)) if sockets else None),
        ("CPUs, of them for this process", f"{os.cpu_count()}, {len(os.sched_getaffinity(0))}"),
        ("SMT", {"0": "off", "1": "on"}.get(read("/sys/devices/system/cpu/smt/active"))),
        ("kernels", _core.isa()),
        ("system", f"Linux {platform.release()}, Python {platform.python_version()}"),
        ("huge pages", read("/sys/kernel/mm/transparent_hugepage/enabled")),
        ("balancing by the kernel", {"0": "off"}.get(balancing := read("/proc/sys/kernel/numa_balancing"), balancing)),
        ("clock governor", read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    ]
    return [(what, value) for what, value in facts if value]


def _table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _links(nodes, machine, rates, far):
    """Nodes, and what is between them."""
    labels = [str(node.label) for node in nodes]
    rows = [(label, site.cores, f"{site.read / 1e9:.1f}", f"{site.macs / 1e9:.0f}") for label, site in zip(labels, machine.sites)]
    yield "## Nodes and links\n"
    if any(node.pretend is not None for node in nodes):
        yield "These nodes are pretended (NUMAINFER_FAKE_NODES): they share one memory, and nothing here is about two real ones.\n"
    yield _table(("node", "workers", "reads its own memory, GB/s", "G multiply-adds/s"), rows)
    if len(nodes) > 1:
        yield "GB/s that the workers of one node read from the memory of each, one at a time:\n"
        yield _table(("node", *(f"from {label}" for label in labels)),
                     [(label, *(f"{rate / 1e9:.1f}" for rate in row)) for label, row in zip(labels, rates)])  # fmt: skip
        if far:
            yield "Distances that the firmware tells:\n"
            yield _table(("node", *labels), [(label, *row) for label, row in zip(labels, far)])
    yield f"A barrier of all workers takes {machine.barrier * 1e6:.2f} us, of one node's {machine.node_barrier * 1e6:.2f} us.\n"
    yield f"For `numainfer info MODEL --topology`: `{machine}`\n"


def _speeds(runs, trials, repeats):
    """Speed by placement, nodes and threads, beside the forecast."""
    from ..measure.benchmark import GEN

    first = next((str(trial) for trial in trials if trial.kind == GEN and not trial.depth), None)
    rows, notes = [], []
    for run in runs:
        if run.error:
            notes.append(f"{run.asked} on {_listed(run.nodes, 'nodes')}, {run.threads or 'all'} threads: {run.error}")
        for speed in run.speeds:
            cells = ["", "", "", ""]
            if speed.trial.kind == GEN:
                cells[:2] = f"{speed.gb_per_second:.1f}", f"{speed.share:.0%}"
                if str(speed.trial) == first and run.forecast is not None and run.forecast.first:
                    cells[2:] = f"{run.forecast.first:.1f}", f"{speed.median / run.forecast.first:.0%}"
            rows.append((run.policy, run.n_nodes, run.n_threads, speed.trial, f"{speed.median:.2f}", f"{speed.deviation:.2f}", *cells))
    yield "## Speed\n"
    yield f"Tokens per second, medians of {repeats}; pp: a prompt, tg: tokens one by one, d: behind so many.\n"
    head = ("placement", "nodes", "threads", "test", "tokens/s", "±", "GB/s", "of read limit", "info's bound", "of it")
    yield _table(head, rows)
    yield from (f"* {' '.join(note.split())}" for note in notes)
    if notes:
        yield ""


def _placements(runs):
    """Where the pages lay, looked up page by page."""
    yield "## Placement, verified page by page\n"
    for run in runs:
        if run.placement:
            yield f"```\n{run.placement}\n```\n"
    shares = [run.verified for run in runs if run.placement]
    if shares:
        yield ("Not all could be verified." if None in shares else
               f"The least share of a node's pages that was found on it: {min(shares):.1%}.")  # fmt: skip


def _listed(numbers, what):
    return f"all {what}" if numbers is None else f"{what} {', '.join(map(str, numbers))}"
