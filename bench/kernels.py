"""Speed of the bare matmul kernels, as shares of what the machine can do.

Builds ``bench/kernels.c`` with the core's kernels and prints, per weight type, medians over the rounds:

* decode: bytes per second of ``dot`` over weights far larger than the caches, and its share of a plain read loop (the
  best of 1 to 4 streams a thread) that ran just before it (median of the paired shares);
* cached: the same over a block that stays in the caches, which says how much room the arithmetic leaves;
* prefill: multiply-adds per second of ``unpack`` + ``gemm``.

Rates are per CPU second of each thread, summed over the threads, so that other users of the machine disturb little.

    python bench/kernels.py --threads 2 --rounds 5 Q4_0 Q4_K
"""
import argparse
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TYPES = re.findall(r"^NI_FORMAT\((\w+)", (ROOT / "csrc" / "formats" / "formats.def").read_text(), re.MULTILINE)
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off"]


def build(folder: Path) -> Path:
    """Compiles the benchmark into `folder` and returns the program's path."""
    sources = [ROOT / "bench" / "kernels.c", *sorted((ROOT / "csrc" / "isa").glob("*.c")),
               *sorted((ROOT / "csrc" / "formats").glob("*.c"))]
    program = folder / "kernels"
    march = ["-march=x86-64-v2"] if os.uname().machine == "x86_64" else []
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *FLAGS, *march, "-o", program, *sources, "-lpthread", "-lm"], check=True)
    return program


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("types", nargs="*", metavar="TYPE", help=f"weight types; default: {' '.join(TYPES)}")
    ap.add_argument("--isa", default="avx2", help="table of kernels")
    ap.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--mib", type=int, default=256, help="weights per thread, MiB")
    ap.add_argument("--k", type=int, default=2048, help="values per row, a multiple of 256")
    ap.add_argument("--tokens", type=int, default=128, help="tokens of a prefill")
    args = ap.parse_args()
    if args.k <= 0 or args.k % 256:
        ap.error(f"--k is {args.k}, must be a positive multiple of 256")
    with tempfile.TemporaryDirectory() as folder:
        command = [build(Path(folder)), args.isa, args.threads, args.rounds, args.mib, args.k, args.tokens,
                   *(args.types or TYPES)]
        out = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    samples: dict[str, list[list[float]]] = {}
    for line in out.splitlines():
        name, *numbers = line.split()
        samples.setdefault(name, []).append([float(n) for n in numbers])
    print(f"{args.isa}, {args.threads} threads, {args.rounds} rounds, K = {args.k}")
    print("type   decode GB/s   read GB/s   share   cached GB/s   prefill G multiply-adds/s")
    for name, rows in samples.items():
        dot, read, cached, gemm = (statistics.median(column) for column in zip(*rows))
        share = statistics.median(row[0] / row[1] for row in rows)
        print(f"{name:6}{dot / 1e9:12.1f}{read / 1e9:12.1f}{share:8.2f}{cached / 1e9:14.1f}{gemm / 1e9:14.1f}")


if __name__ == "__main__":
    main()
