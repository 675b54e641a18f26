"""How fast weights get into place: packing and replication beside a plain copy of the same file, alternately in one run.

    python bench/load.py [1b-q4_0 FILE.gguf ...] [-r 9] [-t 2] [--pretend-nodes 2] [--json]

The plain copy is what could be had without packing: as many threads as the model has, pinned to the same CPUs, copy the
file with the C library's memcpy, from a mapping of it into fresh memory of the kind that weights get, once per copy of
the weights. Both begin with a warm page cache, which loading drops behind itself, and with free memory that was in use
just before: in a virtual machine, memory that the host must find first costs ten times as much as the copy.
"""

import argparse
import ctypes
import json
import mmap
import os
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from models import find_model
from worker import Worker

PIECE = 16 << 20  # bytes, of reading and of copying
FLOOR = 0.7  # of the plain copy's speed, that packing shall reach
STEPS = 9  # single tokens after the first, that it is compared with


class Loader:
    """Measures one file; lives in a ``Worker``.

    Parameters
    ----------
    path : str
        GGUF file.
    threads : int
        Of the copy and of the model.
    """

    def __init__(self, path, threads):
        import numainfer
        from numainfer.engine import copies

        self._path, self._seconds = path, []
        self._options = {"threads": threads, "n_ctx": 256, "progress": False}
        self._load = lambda: numainfer.load(path, **self._options)
        fill = copies.Replicas.fill

        def timed(*args, **kwargs):
            start = time.perf_counter()
            fill(*args, **kwargs)
            self._seconds.append(time.perf_counter() - start)

        copies.Replicas.fill = timed
        with self._load() as model:
            self._nodes = [(node.number, node.cpus) for node in model.placement.nodes]
            self._copies = len(self._nodes) if model.placement.policy == "replicate" else 1
            self._n_vocab = model.n_vocab

    def info(self):
        """{"gb": 10^9 bytes of the file, "copies": of the weights}."""
        return {"gb": os.path.getsize(self._path) / 1e9, "copies": self._copies}

    def load(self):
        """Seconds of a whole load, of packing within it, of the first step after it, and of a later one (median)."""
        self._warm()
        start = time.perf_counter()
        model = self._load()
        total = time.perf_counter() - start
        steps = []
        with model:
            for _ in range(1 + STEPS):
                start = time.perf_counter()
                model.logits([self._n_vocab // 2])
                steps.append(time.perf_counter() - start)
        return {"total": total, "pack": self._seconds[-1], "first": steps[0], "later": statistics.median(steps[1:])}

    def _warm(self):
        """Read the file into the page cache; then use, and free, as much memory as its copies need."""
        from numainfer import _core

        with open(self._path, "rb", buffering=0) as file:
            buffer = bytearray(PIECE)
            while file.readinto(buffer):
                pass
        arena = _core.Arena(os.path.getsize(self._path) * self._copies * 9 // 8, [], huge=True)
        ctypes.memset(arena.address, 1, arena.bytes)
        arena.close()

    def copy(self):
        """Seconds of plain copies of the file, one per copy of the weights."""
        from numainfer import _core

        self._warm()
        with open(self._path, "rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        arenas = [_core.Arena(data.size, [number], huge=True) for number, _ in self._nodes[: self._copies]]
        shares = []  # (CPU, its arena, share of the file)
        for i, arena in enumerate(arenas):
            cpus = self._nodes[i][1] if len(arenas) > 1 else [cpu for _, cpus in self._nodes for cpu in cpus]
            cuts = np.linspace(0, data.size, len(cpus) + 1).astype(int).tolist()
            shares += [(cpu, arena, a, b) for cpu, a, b in zip(cpus, cuts, cuts[1:])]
        memcpy = ctypes.CDLL(None).memcpy  # a foreign call runs without the interpreter's lock
        memcpy.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        gate = threading.Barrier(len(shares) + 1)

        def work(cpu, arena, a, b):
            os.sched_setaffinity(0, [cpu])  # of this thread alone
            gate.wait()
            for at in range(a, b, PIECE):
                memcpy(arena.address + at, data.ctypes.data + at, min(PIECE, b - at))
            gate.wait()

        threads = [threading.Thread(target=work, args=share, daemon=True) for share in shares]
        for thread in threads:
            thread.start()
        gate.wait()
        start = time.perf_counter()
        gate.wait()
        seconds = time.perf_counter() - start
        for thread in threads:
            thread.join()
        for arena in arenas:
            arena.close()
        return seconds


def measure(path, threads=2, repeats=9, pretend_nodes=0):
    """Load and copy one file in turns.

    Returns
    -------
    dict
        "model", "gb" (10^9 bytes of the file), "copies" of the weights; medians in seconds: "copy", "pack", "total" (of
        ``numainfer.load``), "first" and "later" (steps of one token after loading); "ratio": the median over the rounds
        of copy / pack, which is packing's speed as a part of the plain copy's; "ratios": of each round, whose copy is the mean
        of the one before the load and the one after it, for others' load on the machine comes and goes.
    """
    env = {"NUMAINFER_FAKE_NODES": str(pretend_nodes)} if pretend_nodes else {}
    with Worker("load:Loader", str(path), threads, env=env) as loader:
        copies, loads = [loader.copy()], []
        for _ in range(repeats):
            loads.append(loader.load())
            copies.append(loader.copy())
        result = {"model": Path(path).name, **loader.info(), "copy": statistics.median(copies)}
    for key in loads[0]:
        result[key] = statistics.median(load[key] for load in loads)
    result["ratios"] = [(before + after) / 2 / load["pack"] for before, after, load in zip(copies, copies[1:], loads)]
    return {**result, "ratio": statistics.median(result["ratios"])}


def table(results):
    """The results as text, a line per model."""
    width = max(len(r["model"]) for r in results)
    lines = [f"{'model':{width}}  copies  copy GB/s  pack GB/s  ratio (least to most)   load s  of it packing   "
             "first step ms  later"]
    for r in results:
        gb = r["gb"] * r["copies"]
        spread = f"({min(r['ratios']):.2f} to {max(r['ratios']):.2f})"
        lines.append(f"{r['model']:{width}}  {r['copies']:6}  {gb / r['copy']:9.2f}  {gb / r['pack']:9.2f}  {r['ratio']:5.2f} "
                     f"{spread:15}  {r['total']:7.2f}  {r['pack']:13.2f}   {r['first'] * 1e3:13.1f}  {r['later'] * 1e3:5.1f}")
    slow = [r["model"] for r in results if r["ratio"] < FLOOR]
    lines.append(f"below {FLOOR:.0%} of the plain copy's speed: {', '.join(slow) or 'none'}")
    return "\n".join(lines)


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["1b-q4_0", "1b-q4_k", "1b-q8_0"])
    parser.add_argument("-r", "--repeats", type=int, default=9)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--pretend-nodes", type=int, default=0, metavar="N", help="as if the machine had N nodes")
    parser.add_argument("--json", action="store_true", help="one JSON object per model instead of the table")
    args = parser.parse_args(argv)
    results = [measure(find_model(name), args.threads, args.repeats, args.pretend_nodes) for name in args.models]
    print("\n".join(map(json.dumps, results)) if args.json else table(results))


if __name__ == "__main__":
    main()
