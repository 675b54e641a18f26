"""Runs inside the guest under plugin/remote.c: generates a few tokens, counts one of them, and says which memory is what.

``count.py numainfer MODEL POLICY MODE``, MODE "latency" (all nodes together) or "throughput" (every node's lane at once, a sequence
of its own), or ``count.py llama.cpp MODEL STRATEGY CACHE``, STRATEGY "none" or "distribute" (its NUMA strategies), CACHE "cold" or
"warm" (the file has been read before, on node 0).

Windows of counting: first a control, in which CPUs of each node read another node's memory; then a token in its stride, with all
that process and kernel do meanwhile. Prints JSON: ``regions`` (window -> name -> physical pages as [first, number] pairs),
``control_bytes``, ``seconds`` of the token by the guest's clock, ``nodes``, and of numainfer ``weight_bytes`` and ``expert_bytes`` per
token.
"""

import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
from checks import PROMPT
from inside import NODES, Markers, frames, node_numbers, numbers

from numainfer import _core

CONTROL_BYTES = 1 << 20
BEFORE = 3  # tokens of the answer before the one that is counted


class Counter:
    """The windows, and what there is to say about them."""

    def __init__(self):
        self._markers = Markers()
        self.said = {"regions": {}, "nodes": node_numbers(), "control_bytes": CONTROL_BYTES}

    def control(self):
        """Each node's memory is read from the next node."""
        nodes, found = node_numbers(), []
        for node in nodes:
            on_node(node, lambda: found.append(np.frombuffer(mmap.mmap(-1, CONTROL_BYTES), np.int64) + 1))
        self._markers.start()
        time.sleep(0.05)  # by then all CPUs have left their old translations
        for node, array in zip(nodes[1:] + nodes[:1], found):
            on_node(node, array.sum)
        self._markers.stop()
        # Now, for pages may move later.
        self.said["regions"]["control"] = {"control": runs(np.concatenate([frames(a.ctypes.data, a.nbytes) for a in found]))}

    def begin(self):
        self.said["seconds"] = -time.perf_counter()
        self._markers.start()

    def end(self):
        self.said["seconds"] += time.perf_counter()
        self._markers.stop()

    def tell(self, **known):
        """What the process's memory is, after `end`; known: name -> physical page numbers of what has a name of its own."""
        self.said["regions"]["token"] = {name: runs(pages) for name, pages in (known | mappings()).items()}


def on_node(node, work):
    """Call it on the node's CPUs; in this thread, for the stacks of threads that have ended are used again."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, numbers((NODES / f"node{node}" / "cpulist").read_text()))
    try:
        work()
    finally:
        os.sched_setaffinity(0, everywhere)


def runs(pages):
    """[first, number] for each run of consecutive numbers among the positive ones."""
    pages = np.unique(pages[pages > 0])
    starts = np.flatnonzero(np.diff(pages, prepend=-1) != 1)
    return [[int(pages[a]), int(b - a)] for a, b in zip(starts, [*starts[1:], len(pages)])]


def mappings():
    """Physical page numbers of this process's memory, by what its mappings are for."""
    policies = dict(line.split()[:2] for line in Path("/proc/self/numa_maps").read_text().splitlines())
    found = {}
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
        found.setdefault(label, []).append(frames(first, last - first))
    return {label: np.concatenate(parts) for label, parts in found.items()}


def experts(engine, i):
    """Physical page numbers of what node i holds of experts; on the first and the last page of a run other weights may lie, too."""
    found = []
    for w in engine.plan.experts:
        _, _, _, addresses, bounds, _ = engine.replicas.entry(w)
        groups = -(-w.n // _core.ROWS)
        (first, end), group = (0, groups) if bounds is None else bounds[i : i + 2], w.packed_bytes // groups // w.experts
        found.append(frames(addresses[i] + first * group, w.experts * (end - first) * group))
    return np.concatenate(found)


def numainfer(counter, path, policy, mode):
    """A token of `Model.generate`, from the choice of one token to the logits of the next."""
    import numainfer

    model = numainfer.load(path, n_ctx=64, n_batch=16, placement=policy, verify="warn")
    engine = model.runtime.engine
    lanes = [engine.lane] if mode == "latency" else engine.node_lanes()
    chosen = sum(n for op in engine.plan.ops for w, n, _ in op.products(1) if w in engine.plan.experts)
    counter.said |= {"nodes": engine.nodes, "weight_bytes": engine.bytes_per_token, "expert_bytes": chosen}

    def end():
        counter.end()
        known = {f"experts {node}": experts(engine, i) for i, node in enumerate(engine.nodes) if engine.plan.experts}
        known |= {f"weights {node}": frames(arena.address, arena.bytes) for node, arena in zip(engine.nodes, engine.replicas.arenas)}
        counter.tell(**known, kv=np.concatenate([frames(*slab) for slab in engine.caches.slabs()]))

    # The sequences meet when the window begins and when it ends, and nowhere in between.
    meetings = {BEFORE: threading.Barrier(len(lanes), counter.begin), BEFORE + 1: threading.Barrier(len(lanes), end)}

    def look(token_ids, logits):
        if len(token_ids) in meetings:
            meetings[len(token_ids)].wait()
        return logits

    answers = model.generate([PROMPT] * len(lanes), max_tokens=BEFORE + 2, ignore_eos=True, mode=mode, logits_processor=look)
    for answer in answers:
        if answer.error is not None:
            raise answer.error


def llama_cpp(counter, path, strategy, cache):
    """A token of llama.cpp with a thread per CPU: a call of its decode, and the choice of the next token."""
    sys.path.append("bench")
    import cyllama.llama.llama_cpp as native
    from peers import LlamaCpp

    Path("/proc/sys/vm/drop_caches").write_text("3")
    if cache == "warm":
        on_node(0, Path(path).read_bytes)
    if strategy != "none":
        native.ggml_backend_load_all()
        native.llama_numa_init({"distribute": 1}[strategy])
    llama = LlamaCpp(path, threads=os.cpu_count(), n_ctx=64, n_ubatch=16)
    llama._decode(PROMPT, 0)
    for i in range(BEFORE + 1):
        token = int(np.argmax(llama._context.get_logits_ith(-1)))
        if i == BEFORE:
            counter.begin()
        llama._decode([token], len(PROMPT) + i)
    np.argmax(llama._context.get_logits_ith(-1))
    counter.end()
    counter.tell()


def main(engine, *words):
    counter = Counter()
    counter.control()
    {"numainfer": numainfer, "llama.cpp": llama_cpp}[engine](counter, *words)
    print(json.dumps(counter.said))


if __name__ == "__main__":
    main(*sys.argv[1:])
