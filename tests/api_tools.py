"""Helpers of the tests of the public layer."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np


def force(ids):
    """A logits processor that makes the answer exactly ``ids``."""

    def process(token_ids, logits):
        logits[:] = -np.inf
        logits[ids[len(token_ids)]] = 0
        return logits

    return process


def forced(model, text, **sampling):
    """Sampling parameters under which the model can only say ``text``."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return {"logits_processor": force(ids), "max_tokens": len(ids)} | sampling


def log_softmax(logits):
    """Natural logarithm of the softmax of the last axis, float64."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@contextmanager
def interrupt_after(seconds):
    """Press Ctrl-C once, so much later; yields a list that then holds the moment (time.perf_counter)."""
    pressed = []

    def press():
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, press)
    timer.start()
    try:
        yield pressed
    finally:
        timer.cancel()
        timer.join()
