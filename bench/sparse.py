"""What a token's attention costs where an indexer chooses positions, as a share of attending to all of them.

    python bench/sparse.py [-n 32000] [--tokens 1,32] [--kv-type f16,q8_0] [-t 2] [-r 9] [--sparse sparse-q8_0] [--dense latent-q8_0]

Two models of the same attention, one with an indexer, take turns: after n positions a step of so many tokens. Medians of the rounds:

* attention: the ops that score, choose, attend and fold, of all layers, the slower worker's time, over those of the other model;
* cpu: CPU time of the whole step more than that of a step after 256 positions; in it are the indexer's matmuls and what else grows;
* index, select, attend: shares of the first model's attention.

The positions are copies of 256 computed ones, made by the workers that own them, so pages lie where they would.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from latent import CHUNK, filled
from models import find_model

from numainfer import _core
from numainfer.engine.engine import Engine
from numainfer.gguf.file import GGUFFile

OPS = ("index", "select", "attend", "combine")


class Measured:
    """A model with n positions behind it, and with few."""

    def __init__(self, name, kv_type, n, most, threads):
        with GGUFFile(find_model(name)) as file:
            self.engine = Engine(file, n_ctx=n + most + CHUNK, threads=threads, kv_type=kv_type)
        self.n = n
        self.long, self.short = (filled(self.engine, positions, np.random.default_rng(0)) for positions in (n, CHUNK))
        self.engine.lane.core_plan().set_timing(True)

    def step(self, tokens):
        """Seconds of each of OPS, and of CPU time more than after few positions."""
        used = self._cpu(self.long, self.n, tokens)
        stamps = self.engine.lane.core_plan().stamps()
        found = dict.fromkeys(OPS, 0.0)
        for i, op in enumerate(self.engine.plan.ops):
            if op.name in found:
                found[op.name] += int((stamps[:, 2 + 2 * i] - stamps[:, 1 + 2 * i]).max()) / 1e9
        return found, used - self._cpu(self.short, CHUNK, tokens)

    def _cpu(self, kv, n, tokens):
        start = time.process_time()
        self.engine.step([(kv, np.full(tokens, 7, np.int32), n)], [tokens - 1])
        return time.process_time() - start

    def close(self):
        self.long.close()
        self.short.close()
        self.engine.close()


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--positions", type=int, default=32000)
    parser.add_argument("--tokens", default="1,32", help="of a step")
    parser.add_argument("--kv-type", default="f16,q8_0")
    parser.add_argument("--sparse", default="sparse-q8_0", help="a model with an indexer")
    parser.add_argument("--dense", default="latent-q8_0", help="the same without")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-r", "--repeats", type=int, default=9)
    args = parser.parse_args(argv)
    tokens = [int(n) for n in args.tokens.split(",")]
    print(f"{_core.isa()}, {args.threads} threads, {args.positions} positions, {args.repeats} rounds")
    print(f"{'KV':>6}{'tokens':>7}{'dense ms':>10}{'attention':>10}{'cpu':>6}{'index':>7}{'select':>7}{'attend':>7}")
    for kv_type in args.kv_type.split(","):
        models = [Measured(name, kv_type, args.positions, max(tokens), args.threads) for name in (args.sparse, args.dense)]
        for n in tokens:
            rows = []
            for _ in range(args.repeats + 1):
                (found, cpu), (dense, dense_cpu) = (model.step(n) for model in models)
                mine, whole = sum(found.values()), sum(dense.values())
                rows.append((whole * 1e3, mine / whole, cpu / dense_cpu, *(found[name] / mine for name in OPS[:3])))
            shown = [statistics.median(column) for column in zip(*rows[1:])]
            print(f"{kv_type:>6}{n:7}{shown[0]:10.1f}{shown[1]:10.3f}{shown[2]:6.2f}" + "".join(f"{x:7.2f}" for x in shown[3:]), flush=True)
        for model in models:
            model.close()


if __name__ == "__main__":
    main()
