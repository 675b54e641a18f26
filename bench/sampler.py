"""Time of one choice of a token by settings and shape of the distribution, in microseconds on one core.

``python bench/sampler.py [--vocab 151936] [--repeats 300]`` prints a table of medians. The distributions: "peaked" is
like a language model's logits (a few candidates well above a broad normal mass), "normal" has a standard deviation of
2.5 and no leaders, "equal" is the worst case for any selection.
"""

import argparse
import statistics
import time

import numpy as np

from numainfer.serving.params import SamplingParams
from numainfer.serving.sampling import Sampler

SETTINGS = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_k 40": {"temperature": 0.8, "top_k": 40},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "all three": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    "all three, penalties": {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "all three, logprobs 5": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "logprobs": 5},
}


def distributions(n_vocab):
    rng = np.random.default_rng(1)
    normal = (rng.standard_normal(n_vocab) * 2.5).astype(np.float32)
    peaked = normal.copy()
    leaders = rng.choice(n_vocab, 30, replace=False)
    peaked[leaders] = 20 - 0.4 * np.arange(30) + rng.standard_normal(30)
    return {"peaked": peaked, "normal": normal, "equal": np.zeros(n_vocab, np.float32)}


def microseconds(logits, settings, repeats):
    sampler = Sampler(SamplingParams(seed=1, **settings), logits.size, prompt_ids=range(0, logits.size, 150))
    times = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        sampler.sample(logits)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[5:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--repeats", type=int, default=300)
    args = parser.parse_args()
    shapes = distributions(args.vocab)
    print(f"{'us per token, ' + str(args.vocab) + ' logits':32}" + "".join(f"{name:>10}" for name in shapes))
    for name, settings in SETTINGS.items():
        row = (microseconds(logits, settings, args.repeats) for logits in shapes.values())
        print(f"{name:32}" + "".join(f"{t:10.0f}" for t in row))


if __name__ == "__main__":
    main()
