"""Cost of a barrier against the number of threads, through the team that runs the models.

``python bench/barrier.py [--repeats 21] [--csv FILE]`` prints nanoseconds per barrier, median and best of the repeats, of barriers
back to back with nothing between them: what meeting costs when nobody is late. "team" is the barrier of all workers, "node" the one
within each node. ``NUMAINFER_FAKE_NODES=2`` pretends two nodes, which takes the two-level path without its distance.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from numainfer import _core
from numainfer.machine import topology as topologies
from numainfer.machine.cpus import domains

FIELDS = ("nodes", "threads", "barrier", "median_ns", "best_ns")


def measure(cpus, node_of, repeats, run_ns=2e6):
    """{"team", "node"} -> list of nanoseconds per barrier; each run lasts about run_ns."""
    team = _core.Team(cpus, node_of, domains(cpus))
    found = {"team": [], "node": []}
    try:
        counts = {}
        for name in found:
            first = team.barrier_time(16, name == "team") / 16
            counts[name] = max(16, min(20_000, int(run_ns / max(first, 1))))
        for _ in range(repeats):  # in turns: whatever else the machine does meets both
            for name, times in found.items():
                times.append(team.barrier_time(counts[name], name == "team") / counts[name])
    finally:
        team.close()
    return found


def steps(first, last):
    """Thread counts worth a row: all up to 8, then doublings and the last."""
    return sorted({n for n in range(first, last + 1) if n <= 8 or n & (n - 1) == 0 or n == last})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--csv", metavar="FILE", help="also write the rows there")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: wanted 1 or more")
    shape = topologies.topology()
    known = list(range(len(shape.nodes))) if shape.pretend else [n.number for n in shape.nodes]
    rows = []
    print(f"{shape}\n" + "".join(f"{name:>10}" for name in FIELDS))
    for n_nodes in steps(1, len(known)):
        cores = sum(len(n.cpus) for n in shape.nodes[:n_nodes])
        for threads in steps(n_nodes, cores):
            _, cpus, node_of = topologies.choose_workers(shape, threads, known[:n_nodes])
            for name, times in measure(cpus, node_of, args.repeats).items():
                rows.append((n_nodes, threads, name, round(statistics.median(times), 1), round(min(times), 1)))
                print("".join(f"{cell:>10}" for cell in rows[-1]), flush=True)
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([FIELDS, *rows])


if __name__ == "__main__":
    main()
