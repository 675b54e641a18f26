"""Many short sequences through the loop from several threads, with random cancels: every answer must be the one computed alone, and memory
must end where it began.

    python bench/soak.py [MODEL] [-n 10000] [-t 8] [--nodes 2] [--speculate]

MODEL: a file, "llama" (by default), or "qwen3next" with recurrent layers; the last two are tiny, of random weights.  With --nodes as on so
many pretend nodes, and lists in every mode.  Prints sequences per second, and resident memory over time.
"""

import argparse
import gc
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import numainfer as ni

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_models import tiny
from tiny_recurrent import tiny_recurrent

MODES = ("auto", "latency", "throughput")


def resident():
    """MB of this process."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096 / 1e6


def work(model, prompts, params, wanted, n, seed, wrong, count):
    """n sequences of one thread: answers, lists, streams that are left early, logits, texts that are scored."""
    rng = random.Random(seed)
    while n > 0:
        i, j, kind = rng.randrange(len(prompts)), rng.randrange(len(params)), rng.randrange(6)
        done = []
        if kind == 0:
            done, n = [model.generate(prompts[i], params[j])], n - 1
        elif kind == 1:
            done, n = model.generate([prompts[i]] * 4, params[j], mode=rng.choice(MODES)), n - 4
        elif kind == 2:
            if not np.array_equal(model.logits(prompts[i]), wanted[i]):
                wrong.append(f"logits of {i}")
            n -= 1
        else:
            stream = model.stream(prompts[i], params[j])
            for _ in zip(range(rng.randrange(12)), stream):
                pass
            if kind == 3:
                stream.cancel()
            elif kind == 4:
                threading.Timer(rng.random() / 50, stream.cancel).start()
                stream.finish()
            done, n = [stream.result()], n - 1
            del stream  # of kind 5 in the midst of it
        for one in done:
            whole = wanted[i, j]
            if one.token_ids != (whole if one.finish_reason == "length" else whole[: len(one.token_ids)]):
                wrong.append(f"{i}, {j}: {one}")
        count.append(1 if kind != 1 else 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="llama")
    parser.add_argument("-n", "--sequences", type=int, default=10000)
    parser.add_argument("-t", "--threads", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--speculate", action="store_true")
    args = parser.parse_args()
    if args.nodes:
        os.environ["NUMAINFER_FAKE_NODES"] = str(args.nodes)
    with tempfile.TemporaryDirectory() as folder:
        if args.model == "llama":
            args.model = tiny(Path(folder), "llama", "Q8_0")
        elif args.model == "qwen3next":
            args.model = tiny_recurrent(Path(folder))
        with ni.load(args.model, n_ctx=256, progress=False) as model:
            soak(model, args.sequences, args.threads, "prompt" if args.speculate else None)


def soak(model, n, n_threads, speculate):
    """Run it, and print what became of memory; raises where an answer is wrong or KV memory stays."""
    rng = np.random.default_rng(0)
    prompts = [np.tile(rng.integers(3, 200, -(-length // 3)), 3)[:length] for length in (1, 3, 9, 20, 60, 120)]
    params = [ni.SamplingParams(max_tokens=m, ignore_eos=True, temperature=t, seed=7) for m, t in ((1, 0), (8, 0), (30, 1.1))]
    wanted = {(i, j): model.generate(p, own).token_ids for i, p in enumerate(prompts) for j, own in enumerate(params)}
    wanted |= {i: model.logits(p) for i, p in enumerate(prompts)}
    params = [own.replace(speculate=speculate) for own in params]
    wrong, count = [], []
    work(model, prompts, params, wanted, 300, 99, wrong, [])  # what is made once
    gc.collect()
    begin, start = resident(), time.perf_counter()
    threads = [threading.Thread(target=work, args=(model, prompts, params, wanted, n // n_threads, seed, wrong, count))
               for seed in range(n_threads)]  # fmt: skip
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(2)
        print(f"{sum(count):7} sequences, {resident():8.1f} MB", flush=True)
    seconds = time.perf_counter() - start
    gc.collect()
    time.sleep(1)
    model.runtime.prefixes.reclaim()
    caches = model.runtime.engine.caches
    held = sum(pool.n_out for pool in [*caches.pools, caches.state_pool] if pool is not None)
    print(f"{sum(count)} sequences in {seconds:.1f} s; resident {begin:.1f} MB before, {resident():.1f} after; blocks held {held}; "
          f"{len(wrong)} wrong; {model.stats()}")  # fmt: skip
    if wrong or held:
        raise SystemExit(f"wrong: {wrong[:3]}; {held} blocks of KV memory stay")


if __name__ == "__main__":
    main()
