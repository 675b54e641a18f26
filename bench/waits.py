"""How long a stream waits for its next token while somebody else's prompt is read.

    python bench/waits.py [MODEL] [-p 1500] [-s 4] [-r 3]

So many streams decode; meanwhile prompts of so many tokens come, one after the other. Printed are the longest and the 99th percentile of
the milliseconds between two tokens of a stream, with prompts and without, and what the prompts took beside the time that they take alone.
"""

import argparse
import statistics
import threading
import time

import numpy as np
from models import find_model

import numainfer as ni


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="1b-q4_k")
    parser.add_argument("-p", "--prompt", type=int, default=1500)
    parser.add_argument("-s", "--streams", type=int, default=4)
    parser.add_argument("-r", "--repeats", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with ni.load(find_model(args.model), n_ctx=args.prompt + 512, prefix_cache=0) as model:

        # A token whose text is whole: half a character is shown with its other half.
        letter = {int(model.tokenizer.encode(" a", add_special_tokens=False)[0]): 100}

        def prompt():
            start = time.perf_counter()
            model.generate(rng.integers(300, 1000, args.prompt), max_tokens=1)
            return time.perf_counter() - start

        def watch(gaps, done):
            last = None
            while not done.is_set():
                with model.stream([300, 301, 302], max_tokens=400, ignore_eos=True, logit_bias=letter) as stream:
                    for _ in stream:
                        now = time.perf_counter()
                        if last is not None:
                            gaps.append(now - last)
                        last = now
                        if done.is_set():
                            break
                    last = None

        def beside(work):
            gaps, done = [[] for _ in range(args.streams)], threading.Event()
            threads = [threading.Thread(target=watch, args=(own, done)) for own in gaps]
            for thread in threads:
                thread.start()
            time.sleep(1)
            for own in gaps:
                own.clear()
            found = work()
            done.set()
            for thread in threads:
                thread.join()
            return sorted(gap for own in gaps for gap in own), found

        prompt()
        alone = statistics.median(prompt() for _ in range(args.repeats))
        bare, _ = beside(lambda: time.sleep(3))
        gaps, took = beside(lambda: [prompt() for _ in range(args.repeats)])
    for name, own in (("without prompts", bare), ("with prompts", gaps)):
        print(f"{name:16} longest {1e3 * own[-1]:6.1f} ms, 99 of 100 within {1e3 * own[int(0.99 * len(own))]:6.1f} ms, "
              f"median {1e3 * own[len(own) // 2]:6.1f} ms of {len(own)}")
    print(f"a prompt takes {statistics.median(took) / alone:.2f} times as long as alone ({alone:.2f} s)")


if __name__ == "__main__":
    main()
