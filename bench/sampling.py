"""What happens between two steps: choosing the tokens of many sequences, and the Python of it.

    python bench/sampling.py [--vocab 262144] [--rounds 15] [--threads 2] [--model smollm2]

Prints
* milliseconds to choose the tokens of 64 sequences by the workers of a team of one thread and of several, in turns in one process, medians,
  and how much faster several are: the median of the ratios of neighbours, and by the 10th percentiles, which other programs disturb less;
* microseconds of CPU time of the calling thread per step, medians, where logits are so few that what remains is what a step's Python costs:
  by number of sequences, and for a token of a stream;
* with a model: what choosing the tokens of 64 greedy sequences takes beside a step of theirs.
"""

import argparse
import os
import statistics
import time

import numpy as np

import numainfer as ni
from numainfer import _core
from numainfer.serving import choosing
from numainfer.serving.generation import Generation
from numainfer.serving.params import SamplingParams

SETTINGS = {
    "greedy": {},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_k 40, top_p 0.95": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
}


class Letters:
    """As much of a tokenizer as an answer needs: every token is a letter."""

    stop_token_ids = ()

    def __init__(self, n_vocab):
        self.n_vocab = n_vocab

    def special_parts(self, text):
        return []

    def token_bytes(self, token):
        return self.put(token).encode()

    def stream(self, **_):
        return self

    def put(self, token):
        return "abcdefgh"[token % 8]

    def flush(self):
        return ""


def shapes(n, n_vocab):
    """Rows of logits: "peaked" as of a language model (a few tokens well above a broad mass), "normal" without leaders."""
    rng = np.random.default_rng(1)
    normal = (rng.standard_normal((n, n_vocab), np.float32) * np.float32(2.5)).astype(np.float32)
    peaked = normal.copy()
    for row in peaked:
        row[rng.choice(n_vocab, 30, replace=False)] = 20 - 0.4 * np.arange(30)
    return {"peaked": peaked, "normal": normal}


def generations(n, n_vocab, **sampling):
    params = SamplingParams(max_tokens=None, seed=1, **sampling)
    return [Generation(Letters(n_vocab), n_vocab, np.array([1], np.int32), params, 1 << 30) for _ in range(n)]


def team_of(n):
    cpus = sorted(os.sched_getaffinity(0))[:n]
    return _core.Team(cpus, [0] * len(cpus))


def cpu_time(work, *args):
    """Microseconds that this thread computes, median of many calls."""
    times = []
    for _ in range(600):
        start = time.thread_time()
        work(*args)
        times.append(time.thread_time() - start)
    return 1e6 * statistics.median(times)


def quietest(times):
    return sorted(times)[len(times) // 10]


def by_threads(n, n_vocab, threads, rounds):
    teams = {1: team_of(1), threads: team_of(threads)}
    print(f"choosing for {n} sequences, {n_vocab} logits each; ms, by threads")
    for shape, logits in shapes(n, n_vocab).items():
        for name, sampling in SETTINGS.items():
            answers = generations(n, n_vocab, **sampling)
            times = {count: [] for count in teams}
            for i in range(rounds + 1):
                for count in teams if i % 2 else reversed(teams):
                    start = time.perf_counter()
                    choosing.choose_step(teams[count], answers, logits)
                    wall = time.perf_counter() - start
                    if i:
                        times[count].append(wall)
            ms = {count: 1e3 * statistics.median(t) for count, t in times.items()}
            ratio = statistics.median(a / b for a, b in zip(times[1], times[threads]))
            quiet = quietest(times[1]) / quietest(times[threads])
            print(f"  {shape:8} {name:22} 1: {ms[1]:7.2f}   {threads}: {ms[threads]:7.2f}   {ratio:.2f} times as fast, {quiet:.2f} by the "
                  "10th percentiles")
    for team in teams.values():
        team.close()


def python_per_step(n_vocab=64):
    print(f"Python per step ({n_vocab} logits); us of the calling thread's CPU time")
    for n in (1, 4, 16, 64):
        logits = shapes(n, n_vocab)["normal"]
        for what, sampling in (("plain", {}), ("stop string", {"stop": "zz"}), ("logprobs 5", {"logprobs": 5})):
            print(f"  {n:3} sequences, {what:12} {cpu_time(choosing.choose_step, None, generations(n, n_vocab, **sampling), logits):8.1f}")
    (answer,) = generations(1, n_vocab)
    print(f"  a stream, a chunk per token {cpu_time(answer.choose, shapes(1, n_vocab)['normal'][0]):8.1f}")


def of_a_model(name, rounds, n=64, beginning=8):
    with ni.load(name, n_ctx=256, progress=False) as model:
        runtime = model.runtime
        team, params = runtime.engine.lane.team, SamplingParams(max_tokens=None, ignore_eos=True)
        answers = [Generation(runtime.tokenizer, runtime.n_vocab, np.array([1], np.int32), params, 200) for _ in range(n)]
        caches, times = [runtime.new_cache() for _ in range(n)], []
        for at in range(beginning + rounds):
            ids = [np.array(answer.token_ids[-1:] or [i], np.int32) for i, answer in enumerate(answers)]
            start = time.perf_counter()
            logits = runtime.step([(cache, own, at) for cache, own in zip(caches, ids)], range(n))
            middle = time.perf_counter()
            choosing.choose_step(team, answers, logits)
            times.append((middle - start, time.perf_counter() - middle))
        for cache in caches:
            cache.close()
        steps, choices = zip(*times[beginning:])
        median = statistics.median
        print(f"{name}: a step of {n} greedy sequences {1e3 * median(steps):.2f} ms, choosing {1e3 * median(choices):.3f} ms: "
              f"{100 * median(c / s for s, c in zip(steps, choices)):.2f} % of it")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=262144)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", help="a file, or the name of a model")
    args = parser.parse_args()
    by_threads(64, args.vocab, args.threads, args.rounds)
    python_per_step()
    if args.model:
        of_a_model(args.model, args.rounds)


if __name__ == "__main__":
    main()
