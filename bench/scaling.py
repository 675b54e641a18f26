"""Decoding speed against threads and sequences, beside what numainfer/capacity.py predicts for the machine in the same run.

``python bench/scaling.py smollm2 gemma3 [--threads 1 2] [--sequences 1 16] [--tokens 24] [--repeats 5] [--csv FILE]``. Machine and
model are measured in turns. A step's time is the CPU time of a worker, so that waiting for a CPU that others use does not count
(waiting at barriers does: workers spin); of each turn the median step counts, of the turns the median. Of the machine the best try
counts: it is the bound. Kernels and everything between them stay behind it.
"""

import argparse
import csv
import statistics
import time
from dataclasses import replace

import numpy as np
from models import find_model

from numainfer.measure.capacity import demand, step_seconds
from numainfer.engine.engine import Engine
from numainfer.gguf.file import GGUFFile
from numainfer.measure.machine import measure

FIELDS = ("model", "threads", "sequences", "read_gb_s", "gmac_s", "predicted", "measured", "ratio")


def decode(engine, sequences, tokens):
    """Tokens per second of `sequences` sequences that decode together from an empty context, by the median of `tokens` steps."""
    ids = np.random.default_rng(0).integers(3, engine.n_vocab, (tokens, sequences), dtype=np.int32)
    caches = [engine.new_kv() for _ in range(sequences)]
    rows, seconds = list(range(sequences)), []
    try:
        for position in range(tokens):
            segments = [(kv, ids[position, i : i + 1], position) for i, kv in enumerate(caches)]
            start = time.process_time()
            engine.step(segments, rows)
            seconds.append((time.process_time() - start) / engine.threads)
        return sequences / statistics.median(seconds)
    finally:
        for kv in caches:
            kv.close()


def compare(name, threads, counts, tokens, repeats):
    """Rows of FIELDS for one model and number of threads."""
    with GGUFFile(find_model(name)) as gguf:
        engine = Engine(gguf, n_ctx=max(tokens, 256), threads=threads)
        need = demand(gguf, len(engine.nodes), engine.n_ctx, engine.n_batch)
    policy = engine.placement.policy
    on = range(1 if policy == "local" else len(engine.nodes))
    machines, found = [], {n: [] for n in counts}
    try:
        decode(engine, max(counts), 2)  # first touches
        for _ in range(repeats):
            machines.append(measure(threads, weight_type=need.weight_type))
            for n in counts:
                found[n].append(decode(engine, n, tokens))
    finally:
        engine.close()
    machine = best(machines)
    read, macs = (sum(getattr(site, name) for site in machine.sites) / 1e9 for name in ("read", "macs"))
    for n in counts:
        bound = n / step_seconds(need, machine, policy, on, n, tokens // 2)
        speed = statistics.median(found[n])
        yield (name, engine.threads, n, *(round(x, 1) for x in (read, macs, bound, speed)), round(speed / bound, 2))


def best(machines):
    """The machine at its best in each respect."""
    sites = [replace(own[0], read=max(s.read for s in own), macs=max(s.macs for s in own)) for own in zip(*(m.sites for m in machines))]
    barrier, inner = (min(getattr(m, name) for m in machines) for name in ("barrier", "node_barrier"))
    return replace(machines[0], sites=tuple(sites), link=max(m.link or 0 for m in machines) or None, barrier=barrier, node_barrier=inner)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--csv", metavar="FILE", help="also write the rows there")
    args = parser.parse_args()
    for name in ("tokens", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: wanted 1 or more")
    print("".join(f"{name:>11}" for name in FIELDS))
    rows = []
    for model in args.models:
        for threads in args.threads:
            for row in compare(model, threads, args.sequences, args.tokens, args.repeats):
                rows.append(row)
                print("".join(f"{cell:>11}" for cell in row), flush=True)
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([FIELDS, *rows])


if __name__ == "__main__":
    main()
