"""Where things go: topology within what the process may use, workers for it, policies that fit, pages that are where they should be."""

import ctypes
import pickle
import re
import subprocess
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from _ckernels import CSRC
from core_tools import CPUS, choose, logits, open_engine, open_team, pretend, python, same_bits
from tiny_models import tiny

from numainfer import _core
from numainfer.arguments import number_list
from numainfer.engine import cache, layout
from numainfer.engine.cache import Caches
from numainfer.engine.layout import Layout
from numainfer.machine import policies, topology as topologies
from numainfer.machine.limits import Limits
from numainfer.looks import PARTS
from numainfer.errors import OutOfNodeMemory, PlacementError, PlacementWarning
from numainfer.machine.cpus import ranges
from numainfer.machine.placement import NodePlacement, Placement
from numainfer.machine.topology import Node, Topology, choose_workers, topology

GB = 10**9
IDS = np.arange(20, dtype=np.int32) + 6


def nodes(*cores, free=100 * GB, total=128 * GB, numbers=None):
    """Hand-made nodes with so many cores each."""
    at, made = 0, []
    for i, n in enumerate(cores):
        made.append(Node(numbers[i] if numbers else i, tuple(range(at, at + n)), total, free))
        at += n
    return tuple(made)


# ---- topology ----------------------------------------------------------------------------------------------------------


def test_topology_of_this_machine():
    found = topology()
    assert sorted(cpu for node in found.nodes for cpu in node.cpus) <= list(CPUS)
    assert all(0 < node.free <= node.total for node in found.nodes) and found.pretend == 0
    assert {node.number for node in found.nodes} == {max(_core.numa_node_of_cpu(cpu), 0) for node in found.nodes for cpu in node.cpus}
    text = str(found)
    assert text.startswith(f"{len(found.nodes)} NUMA node") and f"kernels: {_core.isa()}" in text and "free of" in text


@pytest.mark.parametrize("cpu", [CPUS[0], CPUS[-1]])
def test_topology_keeps_to_the_affinity(cpu):
    out = python(f"""if True:
        import os
        os.sched_setaffinity(0, {{{cpu}}})
        import numainfer as ni
        print([node.cpus for node in ni.topology().nodes], len(os.sched_getaffinity(0)))
    """)
    assert out.strip() == f"[({cpu},)] 1"


@pytest.mark.parametrize("fake", [1, 2, 3, 7])
def test_pretend_nodes(monkeypatch, fake):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(fake))
    found = topology()
    assert len(found.nodes) == found.pretend == fake and str(found).startswith(f"{fake} pretend NUMA node")
    assert all(node.cpus and set(node.cpus) <= set(CPUS) for node in found.nodes)
    monkeypatch.delenv("NUMAINFER_FAKE_NODES")
    cores = [cpu for node in topology().nodes for cpu in node.cpus]
    if fake <= len(cores):  # they are dealt out, each to one node
        assert [cpu for node in found.nodes for cpu in node.cpus] == cores


@pytest.mark.parametrize("fake", ["0", "-1", "65", "two", "1.5", " 2", "2²"])
def test_pretend_nodes_that_are_none(monkeypatch, fake):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", fake)
    with pytest.raises(ValueError, match="NUMAINFER_FAKE_NODES = .* wanted a number of nodes from 1 to 64"):
        topology()


def test_ranges():
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8" and ranges(()) == ""
    assert number_list("CPUs", ranges((0, 1, 2, 5, 7, 8))) == [0, 1, 2, 5, 7, 8]


# ---- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "threads", "counts"), [
    ((4,), None, [4]), ((4,), 1, [1]), ((4, 4), None, [4, 4]), ((4, 4), 2, [1, 1]), ((4, 4), 3, [2, 1]), ((4, 4), 8, [4, 4]),
    ((8, 2), 5, [4, 1]), ((8, 2), 10, [8, 2]), ((1, 6), 4, [1, 3]), ((3, 3, 3), 7, [3, 2, 2]),
])  # fmt: skip
def test_workers_are_spread_evenly(cores, threads, counts):
    made = Topology(nodes(*cores))
    chosen, cpus, node_of = choose_workers(made, threads)
    assert chosen == list(made.nodes) and [node_of.count(i) for i in range(len(cores))] == counts
    assert node_of == sorted(node_of) and len(set(cpus)) == len(cpus)
    assert all(cpu in made.nodes[i].cpus for cpu, i in zip(cpus, node_of))


@pytest.mark.parametrize(("quota", "threads"), [(None, 8), (9.5, 8), (5.0, 5), (2.5, 2), (1.0, 2)])  # one per node at least
def test_quota_limits_the_default_and_not_the_wish(quota, threads):
    made = Topology(nodes(4, 4), limits=Limits(cpus=quota))
    assert len(choose_workers(made)[1]) == threads and len(choose_workers(made, 8)[1]) == 8


def test_nodes_by_the_systems_numbers():
    made = Topology(nodes(2, 2, 2, numbers=(0, 2, 5)))
    chosen, cpus, node_of = choose_workers(made, nodes=[5, 0])
    assert [node.number for node in chosen] == [0, 5] and cpus == [0, 1, 4, 5] and node_of == [0, 0, 1, 1]
    pretended = Topology(tuple(Node(0, (i,), GB, GB, i) for i in range(3)), pretend=3)
    chosen, cpus, _ = choose_workers(pretended, nodes=[2, 1])
    assert cpus == [1, 2] and len(chosen) == 2


@pytest.mark.parametrize(("threads", "wanted", "says"), [
    (0, None, "threads = 0; wanted 2 to 8"), (1, None, "at least one per node"), (9, None, "threads = 9; wanted 2 to 8"),
    (None, [], r"nodes = \[\]; wanted different numbers among \[0, 3\]"), (None, [1], r"nodes = \[1\]"), (None, [0, 0], "different"),
    (None, [-1], r"nodes = \[-1\]"), (5, [3], "threads = 5; wanted 1 to 4"),
])  # fmt: skip
def test_workers_that_cannot_be(threads, wanted, says):
    with pytest.raises(ValueError, match=says):
        choose_workers(Topology(nodes(4, 4, numbers=(0, 3))), threads, wanted)


def test_engine_runs_where_it_was_told(tmp_path, monkeypatch):
    path = tiny(tmp_path, "llama", "Q8_0")
    with open_engine(path) as engine:
        wanted = logits(engine, IDS)
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    for options, threads in (({}, 2), ({"nodes": [1]}, 1), ({"nodes": [1, 0], "threads": 2}, 2), ({"placement": "local"}, 1)):
        if len(CPUS) < 2:
            pytest.skip("needs two CPUs")
        with open_engine(path, **options) as engine:
            same_bits(logits(engine, IDS), wanted)
            assert engine.threads == threads and len(engine.placement.nodes) == len(engine.nodes)
            told = [cpu for node in engine.placement.nodes for cpu in node.cpus]
            assert engine.lane.team.cpus() == told  # seen there, not only wished
            if options.get("nodes") == [1]:
                assert told == [topology().nodes[1].cpus[0]]
    for options in ({"threads": 3}, {"threads": 1}, {"nodes": [2]}, {"nodes": []}):
        with pytest.raises(ValueError, match="threads|nodes"), open_engine(path, **options):
            pass


# ---- policies ----------------------------------------------------------------------------------------------------------


def test_auto_replicates_where_every_node_has_room():
    policy, reason = choose("auto", nodes(4, 4), 60 * GB, 10 * GB)
    assert policy == "replicate" and reason == "every node has room for its own 60.0 GB"
    policy, reason = choose("auto", nodes(4, 4), 60 * GB, 40 * GB)  # 100 + 40 - 5 % of 128
    assert policy == "shard" and "no room for 60.0 GB on every node" in reason
    one_full = (nodes(4, 4)[0], Node(1, (4,), 128 * GB, 20 * GB))
    assert choose("auto", one_full, 20 * GB, 0)[0] == "shard"
    assert choose("auto", nodes(4), 60 * GB, 10 * GB) == ("local", "one node: every policy is the same single copy")


def test_pretend_nodes_have_the_same_names_everywhere(tmp_path, monkeypatch):
    pretend(monkeypatch, 2, 1)
    shown = str(topologies.topology())
    assert "  node 0: 1 core (" in shown and "  node 1: 1 core (" in shown and "1 cores" not in shown
    with open_engine(tiny(tmp_path, "llama", "Q8_0"), placement="shard") as engine:
        assert [row.split()[0] for row in str(engine.placement).splitlines()[2:]] == ["0", "1"]
        assert [row[0] for row in engine.placement.rows()] == ["0", "1"]


def test_one_node_says_why_a_wish_came_to_nothing(tmp_path):
    if len(topology().nodes) > 1:
        pytest.skip("more than one node")
    path = tiny(tmp_path, "llama", "Q8_0")
    with open_engine(path, placement="shard") as engine:
        assert str(engine.placement).startswith("local on 1 node (one node: every policy is the same single copy)")
    with open_engine(path, placement="local") as engine:
        assert str(engine.placement).startswith("local on 1 node;")


def test_a_notebook_shows_the_topology():
    shown = Topology((Node(3, (0, 1, 2, 5), 128 * GB, 100 * GB),))._repr_html_()
    assert shown.startswith("<p>1 NUMA node, kernels: ")
    assert "<td>3</td><td>4</td><td>0-2,5</td><td>100 GB</td><td>128 GB</td>" in shown


def test_pretend_nodes_share_the_memory_of_the_real_one():
    fake = nodes(1, 1, 1, numbers=(0, 0, 0))
    assert choose("auto", fake, 30 * GB, 0)[0] == "replicate"  # 3 x 30 of 93.6
    assert choose("auto", fake, 32 * GB, 0)[0] == "shard"  # 96 would not fit
    with pytest.raises(OutOfNodeMemory):
        choose("replicate", fake, 32 * GB, 0)


@pytest.mark.parametrize(("asked", "count", "weights", "need"), [
    ("auto", 1, 200, "200 GB"), ("auto", 2, 300, "150 GB"), ("replicate", 2, 100, "100 GB"), ("shard", 2, 200, "100 GB"),
    ("interleave", 2, 200, "100 GB"), ("local", 1, 94, "94.0 GB"),
])  # fmt: skip
def test_out_of_memory_names_need_and_free(asked, count, weights, need):
    with pytest.raises(OutOfNodeMemory, match=rf"does not fit \(with 5% kept free\): node 0: need {need}, free 93.6 GB"):
        choose(asked, nodes(*[4] * count), weights * GB, 0)
    with pytest.raises(MemoryError):
        choose(asked, nodes(*[4] * count), weights * GB, 0)


def test_a_model_too_big_is_refused_before_anything_is_taken(tmp_path, monkeypatch):
    path = tiny(tmp_path, "llama", "Q8_0")
    small = tuple(Node(n.number, n.cpus, 10**6, 10**6) for n in topology().nodes)
    monkeypatch.setattr(topologies, "topology", lambda: Topology(small))
    opened = []
    monkeypatch.setattr(_core, "Arena", lambda *a, **k: opened.append(a))
    monkeypatch.setattr(_core, "Team", lambda *a, **k: opened.append(a))
    with pytest.raises(OutOfNodeMemory, match="need .*, free 950 KB"), open_engine(path):
        pass
    assert not opened


def test_the_kv_cache_that_was_asked_for_counts(tmp_path, monkeypatch):
    """n_ctx given: its memory must be there.  Not given: it is address space alone."""
    path = tiny(tmp_path, "llama", "Q8_0", context=1 << 20)
    small = tuple(Node(n.number, n.cpus, 60 << 20, 60 << 20) for n in topology().nodes)
    monkeypatch.setattr(topologies, "topology", lambda: Topology(small))
    for n_ctx in (1 << 19, 10**9, 2**31 - 1):  # the last is beyond what a plan can hold
        says = rf"n_ctx = {n_ctx}: the KV cache .* takes .*\(256 B each, f16\).* at most n_ctx = \d+"
        says += r"(\nplacement .* does not fit .*: need .*, free .*B)?$" if n_ctx == 2**31 - 1 else r"\nplacement .*: need .*, free .*B$"
        opened = []
        with monkeypatch.context() as patch:
            patch.setattr(_core, "Arena", lambda *a, opened=opened, **k: opened.append(a))
            with pytest.raises(OutOfNodeMemory, match=says) as refused, open_engine(path, n_ctx=n_ctx, n_batch=8):
                pass
        assert not opened
    most = int(re.search(r"at most n_ctx = (\d+)", str(refused.value))[1])
    with open_engine(path, n_ctx=most, n_batch=8) as engine:
        assert engine.n_ctx == most
    says = f"n_ctx = {most + 1}: .* at most n_ctx = {most}\nplacement"
    with pytest.raises(OutOfNodeMemory, match=says), open_engine(path, n_ctx=most + 1, n_batch=8):
        pass
    none = tuple(Node(n.number, n.cpus, 10**5, 10**5) for n in topology().nodes)
    monkeypatch.setattr(topologies, "topology", lambda: Topology(none))
    with pytest.raises(OutOfNodeMemory, match="placement 'auto' does|placement 'local' does"), open_engine(path, n_ctx=8, n_batch=8):
        pass  # not n_ctx's fault


def test_unknown_policy(tmp_path):
    path = tiny(tmp_path, "llama", "Q8_0")
    for options, says in (({"placement": "everywhere"}, "placement = 'everywhere'; wanted one of auto, replicate, shard, interleave"),
                          ({"kv_type": "q4_0"}, "kv_type = 'q4_0'; wanted one of f16, bf16, q8_0, f32")):  # fmt: skip
        with pytest.raises(ValueError, match=says), open_engine(path, **options):
            pass


# ---- verification -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["replicate", "shard", "interleave"])
def test_verified_on_this_machine(tmp_path, monkeypatch, policy):
    pretend(monkeypatch, 2, 1)
    with open_engine(tiny(tmp_path, "llama", "F32", layers=4), placement=policy) as engine:
        found = engine.placement
        assert found.policy == policy and [node.verified for node in found.nodes] == [1.0, 1.0]
        assert found.verify() is found
        packed = sum(w.packed_bytes for w in engine.plan.weights)
        held = sum(node.weights for node in found.nodes)
        assert abs(held - packed * (2 if policy == "replicate" else 1)) < 0.02 * packed + 3 * 4096
        text = str(found)
        assert text.startswith(f"{policy} on 2 pretend nodes") and "KV cache" in text and text.count("100.0%") == 2
        assert "\npretend node  cores" in text and found.where == "2 pretend nodes"
        for words in (f"<p>{policy} on 2 pretend nodes", "per token", "</p><table>", "<th>pretend node</th>"):
            assert words in found._repr_html_()
        assert found.kv_bytes_per_token == engine.plan.kv_bytes // engine.n_ctx == 4 * 2 * 32 * 2 and found.kv_window_bytes == 0


def test_arenas():
    page = 4096
    arena = _core.Arena(10 * page + 1, [topology().nodes[0].number])
    assert arena.bytes == 11 * page and arena.address % page == 0
    assert arena.count(1).sum() == 0  # nothing is taken before it is touched
    assert arena.read(5, 100) == bytes(100)
    with open_team() as team:
        team.read_time([arena.address], 10 * page, 0)  # 0 streams: writes
        counts = arena.count(_core.numa_max_node() + 1)
        assert counts[topology().nodes[0].number] == counts.sum() >= 10 * page
        assert arena.read(0, 10 * page) == b"\1" * 10 * page
    arena.close()
    arena.close()
    assert arena.address == arena.bytes == 0


@pytest.mark.parametrize(("size", "on", "error", "says"), [
    (2**62, [], MemoryError, "cannot reserve 4611686018427387904 bytes"), (2**63, [], MemoryError, "more than an address space holds"),
    (4096, [-1], ValueError, "node -1 was asked for"), (4096, [4096], ValueError, "node 4096 was asked for; nodes are numbered 0 to 4095"),
])  # fmt: skip
def test_arenas_that_cannot_be(size, on, error, says):
    with pytest.raises(error, match=says):
        _core.Arena(size, on)


class Replica:
    """One arena of 10 pages of which some lie on other nodes."""

    address = bytes = 0

    def __init__(self, counts, movable=0, bound=True):
        self.counts, self.movable, self.bound, self.home = np.array(counts) * 4096, movable, bound, None

    def count(self, n_nodes, home=-1, huge=False):
        self.home = home
        if home >= 0 and self.movable:
            self.counts = np.zeros_like(self.counts)
            self.counts[home] = 10 * 4096
        return self.counts


def placed(*arenas, policy="replicate"):
    shares = [NodePlacement(i, (i,), 10 * 4096, 0) for i in range(2)]
    return Placement(policy, "", shares, 0, SimpleNamespace(arenas=list(arenas), kept=None))


def test_strays_are_moved():
    found = placed(Replica([10, 0]), Replica([3, 7], movable=1))
    assert [node.verified for node in found.verify().nodes] == [1.0, 1.0]
    assert [arena.home for arena in found._replicas.arenas] == [0, 1]


def test_strays_that_cannot_be_moved():
    found = placed(Replica([10, 0]), Replica([3, 7]))
    with pytest.raises(PlacementError, match=f"{3 * 4096} bytes of node 1's weights lie on other nodes and could not be moved"):
        found.verify()
    with pytest.warns(PlacementWarning, match="12288 bytes of node 1's weights"):
        found.verify(strict=False)
    assert [node.verified for node in found.nodes] == [1.0, 0.7] and "70.0%" in str(found)


@pytest.mark.parametrize(("counts", "verified"), [([4, 6], 1.0), ([4, 4, 2], 0.8)])
def test_interleaved_pages_may_lie_on_any_of_the_nodes(counts, verified):
    found = placed(Replica(counts), policy="interleave")
    assert [node.verified for node in found.verify().nodes] == [verified] * 2 and found._replicas.arenas[0].home == -1


# ---- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """if True:
    import os, sys
    import numainfer as ni
    from core_tools import open_engine
    from numainfer.gguf.sources import resolve

    def private():
        # Page cache of the mapped file is no memory of ours, but counts in Rss while it is mapped.
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/self/smaps_rollup") if line.endswith("kB\\n")}

    before = private()["Rss"]
    with ni.load("smollm2", placement=sys.argv[1], progress=False) as model:
        engine = model.runtime.engine
        packed = sum(w.packed_bytes for w in engine.plan.weights)
        after = private()["Rss"]
        model.generate("The", max_tokens=2)
        used = private()["Rss"]
    closed = private()["Rss"]
    print(packed, before, after, used, closed)
"""


@pytest.mark.parametrize(("fake", "policy", "copies"), [(1, "replicate", 1), (3, "replicate", 3), (3, "shard", 1)])
def test_memory_of_a_loaded_model(smollm2, fake, policy, copies):
    out = python(MEMORY, policy, NUMAINFER_FAKE_NODES=str(fake))
    packed, before, after, used, closed = map(int, out.split())
    assert 80e6 < packed < 120e6
    assert after <= 1.1 * packed * copies + 100e6  # the whole process
    assert after - before >= packed * copies * 0.99  # real copies, touched
    assert used - after < 40e6
    assert closed < used - packed * copies * 0.95  # given back


def test_threads_per_node(tmp_path, monkeypatch):
    nodes = (Node(0, (0, 1, 2), 10, 10), Node(3, (4, 5), 10, 10))
    chosen, cpus, node_of = choose_workers(Topology(nodes), threads=[1, 2])
    assert [n.number for n in chosen] == [0, 3] and cpus == [0, 4, 5] and node_of == [0, 1, 1]
    for bad in ([1], [4, 1], [1, 3], [0, 1], [1, 1, 1]):
        with pytest.raises(ValueError, match=r"wanted a number for each of nodes \[0, 3\]"):
            choose_workers(Topology(nodes), threads=bad)


def test_kv_memory_is_shown_as_it_fills(tmp_path):
    with open_engine(tiny(tmp_path, "llama", "Q4_0")) as engine:
        assert sum(engine.placement.kv_bytes().values()) == 0
        kv = engine.new_kv()
        engine.step([(kv, list(range(1, 20)), 0)], [])
        used = sum(engine.placement.kv_bytes().values())
        layers = len(engine.plan.kv.layers)
        assert layers * 4096 <= used <= engine.plan.kv_bytes
        assert "KV" in str(engine.placement) and 0 <= engine.placement.huge_share(engine.placement.nodes[0]) <= 1
        kv.close()
        assert sum(engine.placement.kv_bytes().values()) == 0


def test_real_nodes_are_not_called_pretend():
    real = [NodePlacement(0, (0,), 5, 5), NodePlacement(3, (1,), 5, 5)]
    arena = SimpleNamespace(address=0, bytes=0)
    found = Placement("replicate", "", real, 100, SimpleNamespace(arenas=[arena, arena], kept=None), Caches(Layout("f16", 8, 2)))
    assert found.where == "2 nodes" and "pretend" not in str(found) + found._repr_html_()
    assert str(found).startswith("replicate on 2 nodes; KV cache 100 B per token\nnode  cores")


# ---- KV caches --------------------------------------------------------------------------------------------------------


def resident(kv):
    """Bytes of a cache's blocks that are in memory, by mincore(2)."""
    pages = 0
    for kind, _, address, _ in kv.blocks():
        found = (ctypes.c_ubyte * (kind.block_bytes // 4096))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(kind.block_bytes), found) == 0
        pages += sum(byte & 1 for byte in found)
    return 4096 * pages


def test_kv_memory_beside_other_mappings(tmp_path):
    """The system may make one mapping of neighbours; only what is the cache's counts."""
    if _core.numa_max_node() > 0:
        pytest.skip("more than one node")
    with open_engine(tiny(tmp_path, "llama", "Q4_0")) as engine, open_team() as team:
        kvs, others = [], []
        for _ in range(8):
            kvs.append(engine.new_kv())
            others.append(_core.Arena(1 << 20))
            team.read_time([others[-1].address], others[-1].bytes, 0)  # 0 streams: writes
            engine.step([(kvs[-1], IDS, 0)], [])
        assert sum(engine.placement.kv_bytes().values()) == sum(resident(kv) for kv in kvs) > 0
        for arena in others:
            arena.close()


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_kv_memory_of_pretend_nodes(tmp_path, monkeypatch, kv_heads):
    """Each node has the pages that its workers append to: whole heads where they divide evenly, else chunks in turn."""
    pretend(monkeypatch, 2, 1)
    path = tiny(tmp_path, "llama", "Q4_0", heads=3 * kv_heads, kv_heads=kv_heads, head_width=64, context=1024)
    n, ids = 600, np.arange(600, dtype=np.int32) % 200 + 6  # chunks of 256, 256 and 88 positions
    with open_engine(path, n_batch=128) as engine:
        shown, kv = engine.placement, engine.new_kv()
        assert shown.kv_bytes() == {0: 0, 1: 0}
        for at in range(0, n, 100):
            engine.step([(kv, ids[at : at + 100], at)], [])
        got = shown.kv_bytes()
        chunk = 256 * 64 * 2 * 2  # keys and values, halves

        def begun(n):  # of a chunk: keys by 16 positions, of values a row for each 16 of the width
            return 4096 * (-(-n // 16 * 16 * 64 * 2 // 4096) + 64 // 16 * -(-n * 32 // 4096))

        wanted = [0, 0]
        for g in range(kv_heads):
            for j, size in enumerate((chunk, chunk, begun(88))):
                wanted[g if kv_heads == 2 else (g + j) % 2] += size * len(engine.plan.kv.layers)
        assert got == dict(enumerate(wanted))
        assert sum(got.values()) == resident(kv)
        cells = [row[-2] for row in shown.rows()]
        assert cells == [policies.size(got[i]) for i in (0, 1)] and "0 B" not in cells
        own = engine.new_kv()  # of a lane: all of it is one node's
        engine.node_lanes()[1].step([(own, ids[:100], 0)], [])
        assert shown.kv_bytes() == {0: got[0], 1: got[1] + len(engine.plan.kv.layers) * kv_heads * begun(100)}
        assert sum(shown.kv_bytes().values()) == resident(kv) + resident(own)
        kv.close()
        own.close()
        assert shown.kv_bytes() == {0: 0, 1: 0}


def test_kv_memory_that_nobody_can_tell_of(tmp_path, monkeypatch):
    pretend(monkeypatch, 2, 1)
    with open_engine(tiny(tmp_path, "llama", "Q4_0")) as engine:
        kv = engine.new_kv()
        engine.step([(kv, IDS, 0)], [])
        monkeypatch.setattr(cache.Cache, "bytes_by_owner", lambda *a: None)
        assert engine.placement.kv_bytes() == {} and [row[-2] for row in engine.placement.rows()] == ["-", "-"]


def test_a_placement_outlives_its_model(tiny_model):
    found = tiny_model.placement
    tiny_model.close()
    for one in (found, pickle.loads(pickle.dumps(found))):
        assert "; the model was closed\n" in str(one) and one.rows()[0][4] == "-" and one.huge_share(one.nodes[0]) is None
        assert "the model was closed" in one._repr_html_() and PARTS["weights"] not in one._repr_html_()
    with pytest.raises(PlacementError, match="the model of this placement was closed"):
        found.verify()


def test_owners_are_the_cores(tmp_path):
    source, library = tmp_path / "node.c", tmp_path / "node.so"
    source.write_text('#include "ni.h"\nint f(int64_t g, int64_t j, int64_t h, int64_t t, int n) { return ni_kv_node(g, j, h, t, n); }\n')
    subprocess.run(["gcc", "-shared", "-fPIC", f"-I{CSRC}", str(source), "-o", str(library)], check=True)
    node = ctypes.CDLL(str(library)).f
    node.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_int]
    for n_heads, n_nodes, turn in product((1, 2, 3, 4, 6, 8), (1, 2, 3, 4), (1, 2, 8)):
        for g, j in product(range(n_heads), range(30)):
            assert layout.owner(g, j, n_heads, turn, n_nodes) == node(g, j, n_heads, turn, n_nodes)
