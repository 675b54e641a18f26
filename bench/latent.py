"""Attention to latent rows as a share of the multiply-adds that the CPU could do.

    python bench/latent.py [-n 8000] [--tokens 1,32] [--kv-type f16,q8_0] [--model latent-q8_0] [-t 2] [-r 9]

A sequence of n positions goes on by a step of so many tokens. The peak is that of ``bench/peak.c``'s float multiply-adds, measured
before each step, for KV memory of every type is widened to floats. Shares of it, medians:

* cpu: by the CPU time that the step takes more than that of a sequence of 256 positions; all of attention is in it, and what else
  runs on the machine is not;
* attend: by the clock, the attend ops of all layers, of the worker that takes longest; it needs a quiet machine;
* both: with the combine ops, which fold what those leave.

The positions are copies of 256 computed ones, made by the workers that own them, so pages lie where they would.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import peak
from models import find_model

from numainfer import _core
from numainfer.engine.engine import Engine
from numainfer.gguf.file import GGUFFile

CHUNK = _core.CHUNK


def filled(engine, n, rng):
    """A KV memory of n positions."""
    kv = engine.new_kv()
    engine.step([(kv, rng.integers(300, 1000, CHUNK).astype(np.int32), 0)], [])
    kv.prepare(engine.lane, CHUNK, n)
    for kind, chunk, address, _ in kv.blocks():
        if chunk:
            first = next(a for k, c, a, _ in kv.blocks() if k is kind and c == 0)
            engine.lane.team.copy_kv(kv._caches.layout.records(kind), chunk, first, address)
    kv.n = n
    return kv


def seconds(engine, kv, n, tokens):
    """CPU time of a step, of all workers; seconds of its attend ops, and of its combine ops."""
    start = time.process_time()
    engine.step([(kv, np.full(tokens, 7, np.int32), n)], [tokens - 1])
    found = [time.process_time() - start]
    stamps = engine.lane.core_plan().stamps()
    for name in ("attend", "combine"):
        ops = [i for i, op in enumerate(engine.plan.ops) if op.name == name]
        found.append(sum(int((stamps[:, 2 + 2 * i] - stamps[:, 1 + 2 * i]).max()) for i in ops) / 1e9)
    return found


def macs(engine, n, tokens):
    """Multiply-adds of the attend ops: of each token and head with what it sees."""
    seen = sum(range(n + 1, n + tokens + 1))
    return sum(a["heads"] * (a["e"] + a["ev"]) * seen for a in (op.attention for op in engine.plan.ops if op.name == "attend"))


def best(program, threads):
    """Float multiply-adds per second of all threads together."""
    lines = peak.run(program, _core.isa(), threads, peak.MILLISECONDS, "F32").splitlines()
    return max(float(line.split()[-1]) for line in lines)


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--positions", type=int, default=8000)
    parser.add_argument("--tokens", default="1,32", help="of a step")
    parser.add_argument("--kv-type", default="f16,q8_0")
    parser.add_argument("--model", default="latent-q8_0", help="one whose layers attend to latent rows")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-r", "--repeats", type=int, default=9)
    args = parser.parse_args(argv)
    tokens = [int(n) for n in args.tokens.split(",")]
    path = find_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        program, isas = peak.build(Path(folder))
        if _core.isa() not in isas:
            parser.error(f"there is no peak for {_core.isa()}")
        print(f"{_core.isa()}, {args.threads} threads, {args.positions} positions, {args.repeats} rounds")
        print(f"{'KV':>6}{'tokens':>7}{'bytes/position':>15}{'peak G/s':>10}{'cpu':>6}{'attend':>8}{'both':>6}")
        for kv_type in args.kv_type.split(","):
            with GGUFFile(path) as file:
                engine = Engine(file, n_ctx=args.positions + max(tokens) + CHUNK, threads=args.threads, kv_type=kv_type)
            kv, short = (filled(engine, n, np.random.default_rng(0)) for n in (args.positions, CHUNK))
            engine.lane.core_plan().set_timing(True)
            for n in tokens:
                rows, work = [], macs(engine, args.positions, n)
                more = work - macs(engine, CHUNK, n)
                for _ in range(args.repeats + 1):
                    top = best(program, args.threads)
                    (cpu, attend, combine), (little, *_) = seconds(engine, kv, args.positions, n), seconds(engine, short, CHUNK, n)
                    each = top / args.threads  # the peak is all threads'
                    rows.append((top / 1e9, more / (cpu - little) / each, work / attend / top, work / (attend + combine) / top))
                top, cpu, attend, both = (statistics.median(column) for column in zip(*rows[1:]))
                width = engine.plan.kv.bytes_per_token
                print(f"{kv_type:>6}{n:7}{width:15}{top:10.1f}{cpu:6.2f}{attend:8.2f}{both:6.2f}", flush=True)
            kv.close()
            short.close()
            engine.close()


if __name__ == "__main__":
    main()
