"""Helpers of the tests of lists: prompts, answers one by one, a look at the steps."""

import threading
import time

import numpy as np

from numainfer.engine.engine import Lane

N = 285  # vocabulary of the tiny llama
LENGTHS = (1, 40, 3, 200, 17, 1, 90, 5, 64, 130, 2, 33)


def prompts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, N, n).astype(np.int32) for n in lengths]


def facts(done):
    """What must not depend on the company."""
    return done.text, done.token_ids, done.finish_reason, done.logprobs, done.usage


def one_by_one(model, prompts, params=None, **sampling):
    params = params if isinstance(params, list) else [params] * len(prompts)
    return [facts(model.generate(p, own, **sampling)) for p, own in zip(prompts, params)]


def spy_steps(monkeypatch, before=lambda lane, segments: None):
    """Record (lane's nodes, rows, start, end) of every step; ``before`` is called first."""
    steps, real = [], Lane.step

    def step(lane, segments, out_rows, **options):
        before(lane, segments)
        start = time.perf_counter()
        out = real(lane, segments, out_rows, **options)
        steps.append((tuple(lane.nodes), sum(len(s[1]) for s in segments), start, time.perf_counter()))
        return out

    monkeypatch.setattr(Lane, "step", step)
    return steps


def start_together(n_lanes):
    """A ``before`` of ``spy_steps``: no lane computes until each has begun, lest the first to come do it all."""
    begun, all_here = set(), threading.Event()

    def before(lane, segments):
        begun.add(tuple(lane.nodes))
        if len(begun) == n_lanes:
            all_here.set()
        assert all_here.wait(60), f"only {begun} began"

    return before
