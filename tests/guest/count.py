"""Runs inside the guest under plugin/remote.c: decodes a token between the markers and says which memory is what.

``count.py MODEL POLICY MODE``, MODE "latency" (all nodes together) or "throughput" (every node's lane at once, a token of its own).
Windows of counting: first a control, weights read across the link by threads of the other node; then the token. Prints JSON:
``control_bytes`` (that the threads of each node read from another), ``windows`` (their names), ``regions`` (name -> physical pages
as [first, number] pairs).
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
from checks import PROMPT, open_engine
from inside import PAGE, Markers, frames

CONTROL_BYTES = 1 << 20


def runs(pages):
    """[first, number] for each run of consecutive numbers among the positive ones."""
    pages = np.unique(pages[pages > 0])
    starts = np.flatnonzero(np.diff(pages, prepend=-1) != 1)
    return [[int(pages[a]), int(b - a)] for a, b in zip(starts, [*starts[1:], len(pages)])]


def regions(engine, kvs):
    """Physical pages of this process by what they are for; the first name that claims a page has it."""
    found = {f"weights {node}": frames(arena.address, arena.bytes) for node, arena in zip(engine.nodes, engine.replicas.arenas)}
    found["kv"] = np.concatenate([frames(kv.arena.address, kv.arena.bytes) for kv in kvs])
    policies = dict(line.split()[:2] for line in Path("/proc/self/numa_maps").read_text().splitlines())
    others = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if name and name[0] in ("[vvar]", "[vdso]", "[vsyscall]"):
            continue
        if policies.get(f"{first:x}", "").startswith("bind"):
            label = "activations"
        elif inode != "0":
            label = f"file {Path(name[0].strip()).name.split('.')[0]}"
        else:
            label = name[0].strip("[] ") if name else f"anonymous {(last - first) >> 10} KB"
        others.setdefault(label, []).append(frames(first, last - first))
    found |= {label: np.concatenate(parts) for label, parts in others.items()}
    return {name: runs(pages) for name, pages in found.items()}


def main(path, policy, mode):
    engine = open_engine(path, placement=policy, verify="warn")
    lanes = [engine.lane] if mode == "latency" else engine.node_lanes()
    kvs = [engine.new_kv() for _ in lanes]
    tokens = [int(lane.step([(kv, PROMPT, 0)], [7])[0].argmax()) for lane, kv in zip(lanes, kvs)]

    def decode(position):
        """A token on every lane at once: no lane waits for another.  The callers stay on their lane's node, with their stacks."""
        def call(lane, kv, token):
            os.sched_setaffinity(0, lane.team.cpus())
            lane.step([(kv, [token], position)], [0])

        threads = [threading.Thread(target=call, args=work) for work in zip(lanes, kvs, tokens)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    decode(8)
    markers, windows = Markers(), []

    def window(name, work):
        markers.start()
        time.sleep(0.05)  # by then all CPUs have left their old translations
        work()
        markers.stop()
        time.sleep(0.05)
        windows.append(name)

    addresses = [arena.address for arena in engine.replicas.arenas]
    team, streams = engine.lane.team, 1
    n_bytes = min(CONTROL_BYTES, min(arena.bytes for arena in engine.replicas.arenas) // PAGE * PAGE)
    across = addresses[1:] + addresses[:1] if len(addresses) > 1 else addresses * len(engine.nodes)
    window("control", lambda: team.read_time(across, n_bytes, streams))
    window("token", lambda: decode(9))
    print(json.dumps({"windows": windows, "control_bytes": n_bytes, "regions": regions(engine, kvs), "nodes": engine.nodes,
                      "weight_bytes": engine.bytes_per_token}))


if __name__ == "__main__":
    main(*sys.argv[1:])
