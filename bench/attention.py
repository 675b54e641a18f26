"""What one long sequence costs a step of many short ones, by its place in the list.

    python bench/attention.py [-n 32000] [-s 63] [-p 100] [-r 9] [--places 0,16,17,40,63]

A model of two layers of the 1 B shape. Steps of all sequences, each decoding a token, run in turns with the long one at every
place; what is printed is the least time of each place, and its ratio to the first place's: of whole steps, and of the attention
op alone, by the worker that takes longest. (The least: what else runs on the machine can only add.)
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import random_gguf

from numainfer.engine.engine import Engine
from numainfer.gguf.file import GGUFFile
from numainfer.gguf.sources import resolve


def fill(engine, length, rng):
    """A KV memory with `length` random positions."""
    kv = engine.new_kv()
    for at in range(0, length, engine.n_batch):
        n = min(engine.n_batch, length - at)
        engine.step([(kv, rng.integers(300, 1000, n).astype(np.int32), at)], [])
    return kv


def timed(engine, segments):
    """Seconds of a step, and of its attention."""
    start = time.perf_counter()
    engine.step(segments, range(len(segments)))
    whole = time.perf_counter() - start
    stamps = engine.lane.core_plan().stamps()
    attends = [i for i, op in enumerate(engine.plan.ops) if op.name == "attend"]
    return whole, sum(int((stamps[:, 2 + 2 * i] - stamps[:, 1 + 2 * i]).max()) for i in attends) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--long", type=int, default=32000, help="positions of the long sequence")
    parser.add_argument("-s", "--short", type=int, default=63, help="short sequences")
    parser.add_argument("-p", "--positions", type=int, default=100, help="of each short one")
    parser.add_argument("-r", "--repeats", type=int, default=25)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--places", default="0,16,17,40,63")
    args = parser.parse_args()
    places = [int(place) for place in args.places.split(",")]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "two-layers.gguf"
        random_gguf.write(path, "1b", "q4_0", layers=2, tokenizer_from=resolve("smollm2"))
        with GGUFFile(path) as file:
            engine = Engine(file, n_ctx=args.long + 256, threads=args.threads)
    short = [fill(engine, args.positions, rng) for _ in range(args.short)]
    long = fill(engine, args.long, rng)
    engine.lane.core_plan().set_timing(True)
    token = np.array([7], np.int32)
    segments = [(kv, token, args.positions) for kv in short]
    rounds = []
    for _ in range(args.repeats):
        rounds.append([timed(engine, [*segments[:place], (long, token, args.long), *segments[place:]]) for place in places])
    least = np.min(rounds, axis=0) * 1e3
    print(f"{engine.threads} threads on {len(engine.nodes)} nodes; {args.long} positions among {args.short} x {args.positions}, "
          f"{args.repeats} rounds")  # fmt: skip
    print(f"{'place':>5} {'ms/step':>8} {'ratio':>6} {'attention':>10} {'ratio':>6}")
    for place, (step, attend), (step_ratio, attend_ratio) in zip(places, least, least / least[0]):
        print(f"{place:5} {step:8.2f} {step_ratio:6.3f} {attend:10.2f} {attend_ratio:6.3f}")
    engine.close()


if __name__ == "__main__":
    main()
