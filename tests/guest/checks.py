"""Checks that run inside the guest, with the real package on real libnuma: ``checks.py SETTINGS CHECK ...``.

SETTINGS is JSON: ``model``, ``mixture`` and ``big`` (paths), ``cpus`` (what `topology` shall say: CPUs by node), ``bits`` (digests that the
host computed, by model). Prints a line of JSON per check; the exit status is the number of checks that failed.
"""

import json
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from inside import NODES, anonymous, control_group, cpuset, digest, node_numbers, numa_maps, numbers, pages_by_node, pinned_threads, refuse

PROMPT = [5, 9, 14, 3, 60, 61, 62, 7]
STEPS = 3
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def open_engine(path, **options):
    """An engine without a tokenizer, which would cost more than all else in emulation."""
    from numainfer.engine.engine import Engine
    from numainfer.gguf.file import GGUFFile

    with GGUFFile(path) as gguf:
        return Engine(gguf, **{"n_ctx": 64, "n_batch": 16, **options})


def kv_pages(kv):
    """Resident pages of a sequence's blocks, by node."""
    found = Counter()
    for kind, _, at, _ in kv.blocks():
        found.update(pages_by_node(at, kind.block_bytes))
    return dict(found)


def bits(lane_or_engine, kv):
    """Digest of the logits of a prompt and of a few greedy tokens."""

    def steps():
        logits = lane_or_engine.step([(kv, PROMPT, 0)], [len(PROMPT) - 1])
        yield logits
        for i in range(STEPS):
            logits = lane_or_engine.step([(kv, [int(logits[0].argmax())], len(PROMPT) + i)], [0])
            yield logits

    return digest(steps())


def expect_pages(arena, wanted):
    """All pages of an arena are there and on the node, by two sources that agree; `wanted`: a node, or {node: share}."""
    found, again = pages_by_node(arena.address, arena.bytes), numa_maps(arena.address, arena.bytes)
    assert found == again, f"pagemap says {found}, numa_maps {again}"
    shares = wanted if isinstance(wanted, dict) else {wanted: 1.0}
    n_pages = arena.bytes // 4096
    # Huge pages of an interleaved arena go round too, so shares are exact to 2 MB.
    slack = 512 if len(shares) > 1 else 0
    assert set(found) == set(shares), f"pages on nodes {found}, wanted {shares}"
    for node, share in shares.items():
        assert n_pages * share - slack <= found[node], f"pages on nodes {found}, wanted shares of {n_pages}: {shares}"


def expect_kept(lane, node, workers):
    """The thread that runs a lane's steps may use its node's CPUs, SMT siblings too, and the workers' own where those are of a node
    without memory; and no others."""
    found = []

    def run():
        lane.keep_caller()
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    wanted = workers.union(numbers((NODES / f"node{node}" / "cpulist").read_text()))
    assert found == [wanted], f"a lane of node {node} keeps its thread on {found}, wanted {wanted}"


@check
def topology(settings):
    import numainfer

    found = {str(node.number): list(node.cpus) for node in numainfer.topology().nodes}
    assert found == settings["cpus"], found
    return {"nodes": len(found)}


@check
def placements(settings):
    """Every policy: pages, one or N times the memory, the host's bits in both modes, workers on their node's CPUs."""
    said = {}
    for policy in ("replicate", "shard", "interleave", "local"):
        engine = open_engine(settings["model"], placement=policy)
        one_node = len(engine.nodes) == 1
        said[policy] = engine.placement.policy
        assert engine.placement.policy == ("local" if one_node else policy)
        arenas, whole = engine.replicas.arenas, sum(w.packed_bytes for w in engine.plan.weights)
        if policy == "interleave" and not one_node:
            expect_pages(arenas[0], {node: 1 / len(engine.nodes) for node in engine.nodes})
        else:
            for node, arena in zip(engine.nodes, arenas, strict=True):
                expect_pages(arena, node)
        copies = len(engine.nodes) if policy == "replicate" else 1
        total = sum(arena.bytes for arena in arenas)
        # Vectors are replicated in a sharded model, and arenas are whole pages.
        assert abs(total - copies * whole) <= 0.02 * whole + 8192 * len(arenas), (total, copies, whole)
        assert all(node.verified == 1.0 for node in engine.placement.nodes)
        for lane in [engine.lane, *engine.node_lanes()]:
            kv = engine.new_kv()
            assert bits(lane, kv) == settings["bits"]["model"], f"{policy}: bits differ on nodes {lane.nodes}"
            wanted = [cpu for i in lane.nodes for cpu in settings["cpus"][str(engine.nodes[i])]]
            assert sorted(lane.team.cpus()) == sorted(wanted), f"{policy}: workers on {lane.team.cpus()}, wanted {wanted}"
            if len(lane.nodes) == 1:  # a lane of one node keeps a sequence's memory there
                assert set(pages := kv_pages(kv)) == {engine.nodes[lane.nodes[0]]}, f"KV pages of a lane of node {lane.nodes}: {pages}"
            kv.close()
        for lane in engine.node_lanes() if policy == "replicate" and not one_node else []:
            expect_kept(lane, engine.nodes[lane.nodes[0]], set(settings["cpus"][str(engine.nodes[lane.nodes[0]])]))
        lanes = {id(lane) for lane in [engine.lane, *engine.node_lanes()]}
        wanted = sorted(cpu for node in engine.nodes for cpu in settings["cpus"][str(node)]) * (2 if len(lanes) > 1 else 1)
        expect_pinned(sorted(wanted))
        engine.close()
    return said


@check
def kept(settings):
    """Weights in shared memory lie as others do, for whoever filled them and for whoever attaches, with the host's bits."""
    from numainfer.machine import shared

    said = {}
    for model, policy in (("model", "replicate"), ("model", "shard"), ("mixture", "interleave"), ("mixture", "experts=shard,*=replicate")):
        for turn in ("filled", "attached"):
            engine = open_engine(settings[model], placement=policy, keep="kept")
            copies = engine.replicas.kept
            assert copies.filled == (turn == "filled"), turn
            for arena in engine.replicas.arenas:
                arena.read(0, arena.bytes)  # of a mapped file, a process has but the pages that it touched
            if policy == "interleave":
                found = pages_by_node(engine.replicas.arenas[0].address, engine.replicas.arenas[0].bytes)
                assert set(found) == set(engine.nodes) and max(found.values()) - min(found.values()) <= 512, f"pages on nodes {found}"
            else:
                for node, arena in zip(engine.nodes, engine.replicas.arenas, strict=True):
                    expect_pages(arena, node)
            said[f"{policy} {turn}"] = {"huge": copies.huge, "bound": copies.bound}
            assert all(node.verified == 1.0 for node in engine.placement.nodes)
            kv = engine.new_kv()
            assert bits(engine, kv) == settings["bits"][model], f"{policy}: bits differ"
            kv.close()
            engine.close()
        shared.drop("kept")
    return said


@check
def mixtures(settings):
    """Experts cut or copied, with the rest or apart from it: each node's part lies in its own memory; the host's bits."""
    said, held = {}, {}
    for policy in ("replicate", "experts=shard,*=replicate", "shard"):
        engine = open_engine(settings["mixture"], placement=policy)
        assert engine.placement.policy == policy and [node.verified for node in engine.placement.nodes] == [1.0] * len(engine.nodes)
        for node, arena in zip(engine.nodes, engine.replicas.arenas, strict=True):
            expect_pages(arena, node)
        held[policy] = sum(arena.bytes for arena in engine.replicas.arenas)
        said[policy] = {node.number: [node.weights, node.experts] for node in engine.placement.nodes}
        assert bits(engine, engine.new_kv()) == settings["bits"]["mixture"], policy
        engine.close()
    assert held["shard"] < held["experts=shard,*=replicate"] < held["replicate"]
    return said


def expect_pinned(wanted):
    """The threads that may run on one CPU only are kept to these; one that was joined may take a moment to leave the system's list."""
    deadline = time.monotonic() + 10
    while pinned_threads() != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pinned_threads() == wanted, f"pinned threads on {pinned_threads()}, wanted {wanted}"


@check
def memory(settings):
    """A real model: what each node gives is what `placement` says within 2 %, and comes back on close; the host's bits.

    Counted from when a small model was loaded and used and the header is read: what Python and its libraries keep by then is theirs.
    The kernel is kept from moving that from node to node meanwhile.
    """
    from numainfer.engine.engine import Engine
    from numainfer.gguf.file import GGUFFile

    Path("/proc/sys/kernel/numa_balancing").write_text("0")
    said, small = {}, open_engine(settings["model"])
    bits(small, small.new_kv())
    small.close()
    with GGUFFile(settings["big"]) as gguf:
        for policy in ("replicate", "shard"):
            before = anonymous()
            begin = time.monotonic()
            engine = Engine(gguf, n_ctx=64, n_batch=16, placement=policy)
            said[f"{policy}: load s"] = round(time.monotonic() - begin, 1)
            expect_memory(engine, before, said, f"{policy}: loaded")
            for node, arena in zip(engine.nodes, engine.replicas.arenas, strict=True):
                expect_pages(arena, node)
            kv = engine.new_kv()
            assert bits(engine, kv) == settings["bits"]["big"]
            expect_memory(engine, before, said, f"{policy}: in use")
            kv.close()
            engine.close()
            left = {node: anonymous()[node] - before[node] for node in before}
            said[f"{policy}: left"] = left
            assert all(rest <= 2 << 20 for rest in left.values()), f"bytes still in use after close: {left}"
    return said


def expect_memory(engine, before, said, when):
    """Each node's anonymous memory has grown by weights, scratch and KV cache, within 2 %; notes [found, told] in `said`.

    But for the sampler's scratch: what is told is the most that it keeps, and nothing is sampled here.
    """
    kv, after = engine.placement.kv_bytes(), anonymous()
    for node in engine.placement.nodes:
        told = node.weights + node.scratch + kv.get(node.number, 0) - engine.lane.team.scratch.bytes // len(engine.nodes)
        found = after[node.number] - before[node.number]
        said[f"{when}, node {node.number}"] = [found, told]
        assert abs(found - told) <= 0.02 * told, said


@check
def interleaved(settings):
    """Under ``numactl --interleave=all`` workers still place what they touch first on their own nodes."""
    import ctypes

    mask = ctypes.c_ulong(sum(1 << node for node in node_numbers()))
    assert ctypes.CDLL("libnuma.so.1").set_mempolicy(3, ctypes.byref(mask), 64) == 0  # MPOL_INTERLEAVE
    engine, said = open_engine(settings["model"], placement="replicate"), {}
    for lane in engine.node_lanes():
        kv = engine.new_kv()
        assert bits(lane, kv) == settings["bits"]["model"]
        pages = kv_pages(kv)
        said[str(lane.nodes)] = pages
        assert set(pages) == {engine.nodes[lane.nodes[0]]}, f"KV pages of a lane of node {lane.nodes}: {pages}"
    kv = engine.new_kv()
    assert bits(engine, kv) == settings["bits"]["model"]
    found, told = kv_pages(kv), dict.fromkeys(engine.nodes, 0)
    owners = kv.bytes_by_owner()
    for i, n_bytes in owners.items():
        told[engine.nodes[i]] += n_bytes // 4096
    assert found == told, f"KV pages on nodes {found}, owners would have {told}"
    engine.close()
    return said


@check
def subset(settings):
    """``nodes=[last]``: weights and workers there alone."""
    last = max(int(node) for node in settings["cpus"])
    engine = open_engine(settings["model"], nodes=[last])
    assert engine.nodes == [last]
    expect_pages(engine.replicas.arenas[0], last)
    assert bits(engine, engine.new_kv()) == settings["bits"]["model"]
    assert sorted(engine.lane.team.cpus()) == settings["cpus"][str(last)]
    engine.close()


@check
def affinity(settings):
    """One CPU of the last node, as under taskset."""
    import numainfer

    last, cpus = max((int(node), cpus) for node, cpus in settings["cpus"].items())
    os.sched_setaffinity(0, cpus[:1])
    assert {n.number: n.cpus for n in numainfer.topology().nodes} == {last: (cpus[0],)}
    engine = open_engine(settings["model"])
    expect_pages(engine.replicas.arenas[0], last)
    assert bits(engine, engine.new_kv()) == settings["bits"]["model"]
    assert engine.lane.team.cpus() == cpus[:1]
    engine.close()


@check
def cpuset_of_one_node(settings):
    """A control group with the CPUs and the memory of the last node."""
    last, cpus = max((int(node), cpus) for node, cpus in settings["cpus"].items())
    cpuset(",".join(map(str, cpus)), str(last))
    engine = open_engine(settings["model"])
    assert engine.nodes == [last]
    expect_pages(engine.replicas.arenas[0], last)
    assert bits(engine, engine.new_kv()) == settings["bits"]["model"]
    assert sorted(engine.lane.team.cpus()) == cpus
    engine.close()


@check
def cpuset_memory(settings):
    """A control group with all CPUs, but the memory of the last node only: all weights lie there."""
    last = max(map(int, settings["cpus"]))
    everywhere = sorted(cpu for cpus in settings["cpus"].values() for cpu in cpus)
    cpuset(",".join(map(str, everywhere)), str(last))
    engine = open_engine(settings["model"])
    assert engine.nodes == [last]
    expect_pages(engine.replicas.arenas[0], last)
    assert bits(engine, engine.new_kv()) == settings["bits"]["model"]
    engine.close()


def _memory_limit(settings, version, limit, killed):
    """A group that has no room for a model tells it; with as much more as the message says it has room, and nobody is killed."""
    from numainfer.errors import OutOfNodeMemory

    open_engine(settings["model"]).close()  # all that has to be imported
    allowed, said, engine = 90e6, [], None
    group = control_group("memory", {limit: f"{allowed:.0f}"}, version)
    while engine is None and len(said) < 4:  # what Python takes to plan is of the group, too
        try:
            engine = open_engine(settings["big"])
        except OutOfNodeMemory as error:
            said.append(str(error))
            found = re.search(rf"control group allows [0-9.]+ MB \({group}/{limit}\): need ([0-9.]+) MB, free ([0-9.]+) MB$", said[-1])
            assert found, said
            need, free = (float(n) * 1e6 for n in found.groups())
            allowed += (need - free + 2e6) / 0.95  # both are rounded
            (group / limit).write_text(f"{allowed:.0f}")
    assert said and engine is not None, said
    assert bits(engine, engine.new_kv()) == settings["bits"]["big"]
    engine.close()
    events = dict(line.split() for line in (group / killed).read_text().splitlines())
    assert events["oom_kill"] == "0", events
    return {"errors": said, "allowed": allowed}


@check
def memory_limit(settings):
    """Control groups of version 2."""
    return _memory_limit(settings, 2, "memory.max", "memory.events")


@check
def memory_limit_of_version_1(settings):
    return _memory_limit(settings, 1, "memory.limit_in_bytes", "memory.oom_control")


@check
def cpu_limit(settings):
    """A quota of 1.5 CPUs feeds one worker."""
    from numainfer.machine.topology import topology

    control_group("cpu", {"cpu.max": "150000 100000"})
    cores = sum(map(len, settings["cpus"].values()))
    assert f"control group allows 1.5 of {cores} cores" in str(topology())
    engine = open_engine(settings["model"], nodes=[int(min(settings["cpus"]))])
    assert engine.threads == 1
    assert bits(engine, engine.new_kv()) == settings["bits"]["model"]
    engine.close()


def _refused(settings, *calls):
    refuse(*calls)
    Path("/proc/sys/kernel/numa_balancing").write_text("0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = open_engine(settings["model"], placement="replicate")
    text = [str(w.message) for w in caught]
    assert len(text) == 1 and "SYS_NICE" in text[0] and "numa_maps" in text[0], text
    assert engine.nodes == [int(node) for node in settings["cpus"]]
    assert not any(arena.bound for arena in engine.replicas.arenas), "mbind worked: the filter did not"
    for node, arena in zip(engine.nodes, engine.replicas.arenas, strict=True):
        expect_pages(arena, node)
    assert [node.verified for node in engine.placement.nodes] == [1.0] * len(engine.nodes)
    assert bits(engine, engine.new_kv()) == settings["bits"]["model"]
    engine.close()
    return {"warning": text[0]}


@check
def without_mbind(settings):
    """The kernel refuses to bind and to move: first touch places the pages, numa_maps proves it, one warning says so."""
    return _refused(settings, "mbind", "set_mempolicy", "move_pages")


@check
def as_in_docker(settings):
    """What Docker's default profile refuses, get_mempolicy too: libnuma then says that there is no NUMA at all."""
    return _refused(settings, "mbind", "set_mempolicy", "get_mempolicy", "move_pages", "migrate_pages")


@check
def strays(settings):
    """Pages moved behind the model's back are seen and brought home."""
    import ctypes

    engine = open_engine(settings["model"], placement="replicate")
    if len(engine.nodes) == 1:
        return {"skipped": "one node"}
    arena, other = engine.replicas.arenas[0], engine.nodes[1]
    n = min(arena.bytes // 4096, 16)
    pages = (ctypes.c_void_p * n)(*(arena.address + i * 4096 for i in range(n)))
    nodes, status = (ctypes.c_int * n)(*[other] * n), (ctypes.c_int * n)()
    assert ctypes.CDLL("libnuma.so.1").numa_move_pages(0, n, pages, nodes, status, 2) == 0
    moved = pages_by_node(arena.address, arena.bytes)
    assert moved[other] >= n, f"the test moved no page: {moved}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.placement.verify()
    expect_pages(arena, engine.nodes[0])
    engine.close()
    return {"moved": moved}


@check
def balancing(settings):
    """One warning while kernel.numa_balancing is on, none when it is off."""
    switch = Path("/proc/sys/kernel/numa_balancing")
    said = {}
    for value, wanted in (("1", 1), ("0", 0)):
        switch.write_text(value)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_engine(settings["model"], placement="replicate").close()
        said[value] = [str(w.message) for w in caught]
        assert len(caught) == wanted and all("numa_balancing" in text for text in said[value]), said
    return said


@check
def too_big(settings):
    """A model that fits on no node is refused before anything is allocated, with a table of need and free."""
    from numainfer.errors import OutOfNodeMemory

    before = anonymous()
    try:
        open_engine(settings["model"], placement="replicate", n_ctx=100_000_000)
    except OutOfNodeMemory as error:
        text = str(error)
    else:
        raise AssertionError("no OutOfNodeMemory")
    assert all(f"node {node}" in text for node in settings["cpus"]) and "free" in text, text
    assert all(abs(anonymous()[node] - before[node]) < 4 << 20 for node in node_numbers())
    return {"error": text}


def host_bits(path):
    """What `bits` is on this machine, whatever it is."""
    engine = open_engine(path)
    try:
        return bits(engine, engine.new_kv())
    finally:
        engine.close()


def main(settings, *names):
    failed = 0
    for name in names:
        begin, said, error = time.monotonic(), None, None
        try:
            said = CHECKS[name](settings)
        except BaseException:
            error, failed = traceback.format_exc(), failed + 1
        print(json.dumps({"check": name, "seconds": round(time.monotonic() - begin, 1), "said": said, "error": error}, default=str))
    return failed


if __name__ == "__main__":
    warnings.simplefilter("default")
    np.seterr(all="raise")
    sys.exit(main(json.loads(sys.argv[1]), *sys.argv[2:]))
