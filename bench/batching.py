"""A list of prompts against the same prompts one after the other: the ratio of total times, and where the time goes.

    python bench/batching.py [MODEL] [-b 16] [-n 64] [-r 3] [--mode auto]

Both ways run in turns in one process and the ratio is the median of the pairs', so a busy machine spoils little. Prompts
differ in length (8 to 32 ids); the answers have n tokens each. Then, for steps of 1, 2, 4, ... rows: milliseconds per
step and per row, and the shares of kernels, barriers (both of worker 0) and the rest (Python, waking the workers).
"""

import argparse
import statistics
import time

import numpy as np
from models import find_model

import numainfer as ni


def seconds(work):
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


def compare(model, prompts, n, repeats, mode):
    """Print total speeds; answers must be equal."""
    params = ni.SamplingParams(max_tokens=n, ignore_eos=True)
    model.generate(prompts, params, mode=mode)  # teams, calibration, page faults
    pairs = []
    for _ in range(repeats):
        t_one, one = seconds(lambda: [model.generate(p, params) for p in prompts])
        t_list, many = seconds(lambda: model.generate(prompts, params, mode=mode))
        if [d.token_ids for d in one] != [d.token_ids for d in many]:
            raise RuntimeError("a list gave other tokens than its prompts one by one")
        pairs.append((t_one, t_list))
    n_all = n * len(prompts)
    ratio = statistics.median(a / b for a, b in pairs)
    one, many = (n_all / statistics.median(column) for column in zip(*pairs))
    print(f"{len(prompts)} prompts, {n} tokens each: one by one {one:.1f} tokens/s, as a list ({mode}) {many:.1f} tokens/s, "
          f"ratio {ratio:.2f} (of {', '.join(f'{a / b:.2f}' for a, b in pairs)})")  # fmt: skip


def steps(model, most, repeats=9):
    """Print what steps of several sequences cost."""
    engine = model.runtime.engine
    plan = engine.lane.core_plan()
    caches = [engine.new_kv() for _ in range(most)]
    for kv in caches:
        engine.step([(kv, np.full(64, 7, np.int32), 0)], [])
    print(f"{'rows':>5}{'ms/step':>10}{'ms/row':>9}{'kernels':>9}{'barriers':>10}{'rest':>7}   largest ops, ms/step")
    plan.set_timing(True)
    rows = 1
    while rows <= most:
        segments = [(kv, np.array([7], np.int32), 64) for kv in caches[:rows]]
        found = []
        for _ in range(repeats):
            plan.times()
            t, _ = seconds(lambda segments=segments: engine.step(segments, range(len(segments))))
            found.append((t, *plan.times()))
        t, ops, barriers = sorted(found, key=lambda f: f[0])[len(found) // 2]
        kernels, waits = ops.sum() / 1e9, barriers.sum() / 1e9
        names = {}
        for op, ns in zip(engine.plan.ops, ops):
            names[op.name] = names.get(op.name, 0) + ns / 1e6
        largest = ", ".join(f"{name} {ms:.2f}" for name, ms in sorted(names.items(), key=lambda item: -item[1])[:4])
        print(f"{rows:5}{1e3 * t:10.2f}{1e3 * t / rows:9.2f}{kernels / t:9.0%}{waits / t:10.0%}"
              f"{1 - (kernels + waits) / t:7.0%}   {largest}")  # fmt: skip
        rows *= 2
    plan.set_timing(False)
    for kv in caches:
        kv.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("-b", "--prompts", type=int, default=16)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-r", "--repeats", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--mode", default="auto")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with ni.load(find_model(args.model), n_ctx=args.tokens + 256, threads=args.threads, prefix_cache=0) as model:
        prompts = [rng.integers(300, 1000, n) for n in rng.integers(8, 33, args.prompts)]
        engine = model.runtime.engine
        print(f"{model.path.name}, {engine.threads} threads on {len(engine.nodes)} nodes, {engine.isa}")
        steps(model, min(max(args.prompts, 1), model.n_batch))
        compare(model, prompts, args.tokens, args.repeats, args.mode)


if __name__ == "__main__":
    main()
