"""Prefill as a share of the multiply-adds that the CPU could do.

    python bench/peak.py [Q4_0 Q8_0 ...] [--isa avx2] [--model 1b-q8_0 FILE.gguf ...] [-t 2] [-r 5]

For each instruction set and weight type, ``bench/peak.c`` runs the multiplications and additions that the type's inner
product is made of, from registers alone: no loads, no unpacking, no scales. Where several mixes of instructions would
do, the fastest counts. Beside that peak stand

* the kernels: ``unpack`` + ``gemm`` as ``bench/kernels.py`` measures them;
* whole models (``--model``): multiply-adds of all their matrices during the prefill of a prompt, against the time that
  these would take at their types' peaks.

Both shares are medians over rounds in which one is measured right after the other. Peaks and kernels are rates per CPU
second, summed over the threads; models go by the wall clock, so their shares need a quiet machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kernels

MILLISECONDS = 30  # of each loop
MIB = 16  # weights per thread: enough for kernels.c's prefill


class WholeModel:
    """A model under measurement; lives in a ``Worker``.

    Parameters
    ----------
    path : str
        GGUF file.
    threads, tokens : int
        Workers, and length of the prompt.
    """

    def __init__(self, path, threads, tokens):
        import numpy as np

        import numainfer

        self._model = numainfer.load(path, threads=threads, n_ctx=tokens + 8, n_batch=tokens, prefix_cache=0)
        vocabulary = self._model.logits([3]).shape[-1]
        self._ids = np.random.default_rng(0).integers(3, vocabulary, tokens).tolist()
        self._model.logits(self._ids)  # first touches

    def macs(self):
        """{weight type: multiply-adds of one prefill}."""
        found = {}
        for op in self._model.plan.ops:
            for w, _, macs in op.products(1 if op.selected else len(self._ids)):
                found[w.type] = found.get(w.type, 0) + macs
        return found

    def seconds(self):
        """Of one prefill."""
        start = time.perf_counter()
        self._model.logits(self._ids)
        return time.perf_counter() - start


def build(folder):
    """Compiles peak.c into `folder`; (the program's path, names of the instruction sets that it has loops for)."""
    march = ["-march=x86-64-v2"] if os.uname().machine == "x86_64" else []
    source, program = Path(__file__).resolve().with_suffix(".c"), folder / "peak"
    subprocess.run([os.environ.get("CC", "cc"), *kernels.FLAGS, *march, "-o", program, source, "-lpthread"], check=True)
    return program, run(program).split()


class Probe:
    """The two programs.

    Parameters
    ----------
    peak, kernels : Path
    threads, k, tokens : int
        Threads; values per row and tokens of the kernels' prefill.
    """

    def __init__(self, peak, kernels, threads, k, tokens):
        self._peak, self._kernels = peak, kernels
        self._threads, self._k, self._tokens = threads, k, tokens
        usage = subprocess.run([kernels], stderr=subprocess.PIPE, text=True, check=False).stderr
        self.tables = usage.rpartition("one of ")[2].strip().split(",")

    def peak(self, isa, kind):
        """(multiply-adds per second, mix of instructions) of the fastest mix for a weight type."""
        lines = [line.split() for line in run(self._peak, isa, self._threads, MILLISECONDS, kind).splitlines()]
        return max((float(rate), mix) for _, mix, rate in lines)

    def kernel(self, isa, kind):
        """Multiply-adds per second of unpack and gemm; NaN where there is no table for the instruction set."""
        if isa not in self.tables:
            return float("nan")
        return float(run(self._kernels, isa, self._threads, 1, MIB, self._k, self._tokens, kind).split()[-1])


def run(*command):
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_kernels(probe, isa, kind, rounds):
    """(peak, kernel, share, mix): multiply-adds per second, medians, and the mix of instructions that reached the peak."""
    rows, mixes = [], []
    for _ in range(rounds):
        peak, mix = probe.peak(isa, kind)
        kernel = probe.kernel(isa, kind)
        rows.append((peak, kernel, kernel / peak))
        mixes.append(mix)
    return *_medians(rows), statistics.mode(mixes)


def measure_model(probe, isa, model, rounds):
    """(rate, share) of a proxy of a WholeModel: multiply-adds per second, and the share of the peak, medians."""
    macs, rows = model.macs(), []
    for _ in range(rounds):
        peaks = {kind: probe.peak(isa, kind)[0] for kind in macs}
        seconds = model.seconds()
        rows.append((sum(macs.values()) / seconds, sum(n / peaks[kind] for kind, n in macs.items()) / seconds))
    return _medians(rows)


def _medians(rows):
    return tuple(statistics.median(column) for column in zip(*rows))


def main(argv=None):
    """Command line."""
    from models import find_model
    from worker import Worker

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help=f"weight types; default: {' '.join(kernels.TYPES)}")
    parser.add_argument("--isa", action="append", help="instruction set, may be repeated; default: all of this CPU")
    parser.add_argument("--model", nargs="+", default=[], metavar="MODEL", help='as numainfer.load takes it, or "1b-q8_0"')
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-p", "--tokens", type=int, default=128, help="tokens of a prefill")
    parser.add_argument("--k", type=int, default=2048, help="values per row of the kernels, a multiple of 256")
    args = parser.parse_args(argv)
    for name in ("threads", "rounds", "tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: wanted 1 or more")
    if args.k <= 0 or args.k % 256:
        parser.error(f"--k {args.k}: wanted a positive multiple of 256")
    unknown = [kind for kind in args.types if kind not in kernels.TYPES]
    if unknown:
        parser.error(f"{unknown[0]} is not a weight type; wanted: {', '.join(kernels.TYPES)}")
    paths = {name: find_model(name) for name in args.model}
    with tempfile.TemporaryDirectory() as folder:
        peak, isas = build(Path(folder))
        if not isas:
            parser.error("there are loops for x86-64 with AVX2 only")
        for isa in args.isa or ():
            if isa not in isas:
                parser.error(f"--isa {isa}: this CPU runs {', '.join(isas)}")
        probe = Probe(peak, kernels.build(Path(folder)), args.threads, args.k, args.tokens)
        for isa in args.isa or isas:
            print(f"{isa}, {args.threads} threads\n{'':16}peak    reached   share   G multiply-adds/s")
            for kind in args.types or kernels.TYPES:
                peak, kernel, share, mix = measure_kernels(probe, isa, kind, args.rounds)
                print(f"{kind:10}{peak / 1e9:10.1f}{kernel / 1e9:11.1f}{share:8.2f}   {mix}", flush=True)
            for name, path in paths.items() if isa in probe.tables else ():
                with Worker("peak:WholeModel", str(path), args.threads, args.tokens, env={"NUMAINFER_ISA": isa}) as model:
                    rate, share = measure_model(probe, isa, model, args.rounds)
                print(f"{name:20}{rate / 1e9:11.1f}{share:8.2f}   whole model", flush=True)


if __name__ == "__main__":
    main()
