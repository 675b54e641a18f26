"""Which lanes are faster for so many sequences, and how much KV memory a lane may fill."""

import sys
import threading
import time

import numpy as np

from ..machine.limits import limits, node_memory, spare

MODES = ("auto", "latency", "throughput")
MAX_ACTIVE = 64
"""Most sequences that share a lane's steps: the logits of 64 rows of 262,144 take 64 MiB a lane."""
_CALIBRATION_ROWS = 16
_BETTER = 1.1  # how much faster the other mode must be, so that lanes do not change to and fro


def faster(step_seconds, n, n_lanes, n_batch, now):
    """"latency" or "throughput": what gives more tokens per second with n sequences, one of n_lanes lanes of nodes for each, or all on all.

    Parameters
    ----------
    step_seconds : dict
        By mode what `measure` returns.
    now : str
        The mode that sequences are computed in, which stays where the other is hardly better.
    """

    def rate(mode, n_lanes):
        rows = min(-(-n // n_lanes), MAX_ACTIVE, n_batch)
        (a, t_a), (b, t_b) = step_seconds[mode]
        seconds = t_a + (t_b - t_a) * (rows - a) / max(b - a, 1)
        return min(rows * n_lanes, n) / seconds

    together, apart = rate("latency", 1), rate("throughput", n_lanes)
    if now == "throughput":
        return "latency" if together > _BETTER * apart else "throughput"
    return "throughput" if apart > together else "latency"


def measure(runtime, lanes):
    """Seconds of a step of one row and of several, on all of these lanes at the same time: two (rows, seconds)."""
    found = []
    for rows in (1, min(_CALIBRATION_ROWS, runtime.n_batch, runtime.n_ctx)):
        seconds, errors = [0.0] * len(lanes), []

        def work(i, rows=rows, seconds=seconds, errors=errors):
            try:
                if lanes[i] is not None:
                    lanes[i].keep_caller()
                seconds[i] = _step_seconds(runtime, lanes[i], rows)
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=work, args=(i,), name=f"numainfer-lane-{i}") for i in range(len(lanes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        found.append((rows, max(seconds)))
    return tuple(found)


def _step_seconds(runtime, lane, rows):
    kv, times = runtime.new_cache(), []
    try:
        for _ in range(4):
            start = time.perf_counter()
            runtime.step([(kv, np.zeros(rows, np.int32), 0)], range(rows), lane=lane)
            times.append(time.perf_counter() - start)
    finally:
        kv.close()
    return min(times[1:])  # the first touches new memory


def kv_budget(runtime, lane):
    """Bytes of KV memory that sequences in this lane may fill: what its nodes have free now, but for the reserve, and no more than the
    lane's part of what the control group allows all nodes together.  What nobody knows does not bind.

    Pretend nodes share the memory of the real one.
    """
    engine, memory, most = runtime.engine, limits().memory, sys.maxsize
    for i in lane.nodes:
        room = spare(*node_memory(engine.nodes[i]))
        if room is not None:
            most = min(most, room * len(lane.nodes) // engine.nodes.count(engine.nodes[i]))
    return most if memory is None else min(most, memory.spare * len(lane.nodes) // len(engine.nodes))
