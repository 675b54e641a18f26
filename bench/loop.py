"""What the loop costs and gives, as ratios of this tree to another (an older one), in turns within one run.

    python bench/loop.py OLD [MODEL] [-r 5]        OLD: folder of another built checkout

Each tree has a process of its own that loads the model once and does on request: a list of 64 prompts; one stream (total time and time to
the first token); eight threads with a prompt each beside a list of the same eight; sixteen streams from sixteen threads beside the same one
after the other. Printed are medians, and medians of the pairs' ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

WORKER = """
import json, sys, threading, time
import numpy as np
import numainfer as ni
rng = np.random.default_rng(0)
model = ni.load(sys.argv[1], n_ctx=512, progress=False)
if hasattr(model.runtime, "prefixes"): model.runtime.prefixes.most = 0
prompts = [rng.integers(300, 1000, n) for n in rng.integers(8, 33, 64)]
more = dict(max_tokens=48, ignore_eos=True)

def in_threads(work, things):
    threads = [threading.Thread(target=work, args=(thing,)) for thing in things]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

def timed(work):
    start = time.perf_counter(); work(); return time.perf_counter() - start

def stream(prompt):
    for chunk in model.stream(prompt, **more): pass

def first():
    found = []
    for _ in range(9):
        start = time.perf_counter()
        with model.stream(prompts[0], max_tokens=2, ignore_eos=True) as s:
            next(s)
            found.append(time.perf_counter() - start)
    return sorted(found)[4]

JOBS = {
    "list of 64": lambda: timed(lambda: model.generate(prompts, **more)),
    "one stream": lambda: timed(lambda: [stream(p) for p in prompts[:2]]),
    "one answer": lambda: timed(lambda: [model.generate(p, **more) for p in prompts[:2]]),
    "first token": first,
    "8 as a list": lambda: timed(lambda: model.generate(prompts[:8], **more)),
    "8 threads": lambda: timed(lambda: in_threads(lambda p: model.generate(p, **more), prompts[:8])),
    "16 streams, threads": lambda: timed(lambda: in_threads(stream, prompts[:16])),
    "16 streams, one by one": lambda: timed(lambda: [stream(p) for p in prompts[:16]]),
}
for job in JOBS.values(): job()
print(json.dumps(sorted(JOBS)), flush=True)
for line in sys.stdin:
    JOBS[line.strip()]()  # whoever comes first after a pause may get memory that the machine below has to fetch first
    print(JOBS[line.strip()](), flush=True)
"""


class Tree:
    """A process of one tree."""

    def __init__(self, root, model):
        env = os.environ | {"PYTHONPATH": root}
        self._process = subprocess.Popen([sys.executable, "-c", WORKER, model], env=env, cwd=root, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        self.jobs = json.loads(self._process.stdout.readline())

    def seconds(self, job):
        self._process.stdin.write(job + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("-r", "--repeats", type=int, default=5)
    args = parser.parse_args()
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    old, new = Tree(os.path.abspath(args.old), args.model), Tree(here, args.model)
    found = {job: ([], []) for job in new.jobs}
    for i in range(args.repeats):
        for job, times in found.items():
            for tree, own in ((old, times[0]), (new, times[1]))[:: 1 if i % 2 else -1]:
                own.append(tree.seconds(job))
    for job, (before, after) in found.items():
        ratio = statistics.median(a / b for a, b in zip(before, after))
        print(f"{job:24} old {1e3 * statistics.median(before):9.1f} ms  new {1e3 * statistics.median(after):9.1f} ms  "
              f"speed {ratio:.3f} of old")
    for name, one, many in (("8 threads, of the list", "8 as a list", "8 threads"),
                            ("16 streams, of one by one", "16 streams, one by one", "16 streams, threads")):
        print(f"{name:26} old {statistics.median(a / b for a, b in zip(found[one][0], found[many][0])):.2f} x  "
              f"new {statistics.median(a / b for a, b in zip(found[one][1], found[many][1])):.2f} x")
    old.close()
    new.close()


if __name__ == "__main__":
    main()
