"""What there is for this process: control groups of both versions, nodes and machines whose kernel tells little; all in made-up folders."""

import json
import logging
import os

import pytest
from core_tools import choose
from tiny_models import tiny

import numainfer as ni
from numainfer import _core
from numainfer.cli.main import main
from numainfer.engine.engine import Engine
from numainfer.errors import OutOfNodeMemory
from numainfer.gguf.file import GGUFFile
from numainfer.machine import limits, pages, topology as topologies
from numainfer.machine.limits import Allowance, Limits, node_memory
from numainfer.machine.topology import Node, Topology, topology
from numainfer.measure import capacity
from numainfer.measure.bandwidth import least_free, probe_bytes
from numainfer.measure.machine import Machine, Site, survey

MB, GB = 10**6, 10**9
UNLIMITED = 9223372036854771712  # how version 1 says that there is no limit
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = ("32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
      "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime master:3 - cgroup cgroup rw,memory\n")  # fmt: skip


@pytest.fixture
def system(tmp_path, monkeypatch):
    """``system({path: text, ...})`` makes these files the kernel's."""
    monkeypatch.setattr(pages, "ROOT", tmp_path)

    def make(files):
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text if isinstance(text, bytes) else str(text).encode())

    return make


def groups(cgroup, mountinfo, **files):
    return {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "22 27 0:21 / /proc rw,relatime - proc proc rw\n" + mountinfo} | files


def stat(inactive=0, active=0, dirty=0, writing=0, prefix="", d="file_dirty", w="file_writeback", more=""):
    return f"anon 5\n{prefix}inactive_file {inactive}\n{prefix}active_file {active}\n{prefix}{d} {dirty}\n{prefix}{w} {writing}\n{more}"


def stat1(*args, **more):
    """Of version 1, where the group's own figures stand before those of all that lies in it."""
    return stat(999 * GB, 999 * GB) + stat(*args, prefix="total_", d="dirty", w="writeback", **more)


def told():
    found = limits.limits()
    return found.cpus, found.memory and (found.memory.total, found.memory.free)


# ---- control groups ----------------------------------------------------------------------------------------------------


def test_version_2(system):
    own = "sys/fs/cgroup/app"
    system(groups("0::/app\n", V2) | {
        f"{own}/memory.max": "120000000\n", f"{own}/memory.current": "70000000\n", f"{own}/cpu.max": "250000 100000\n",
        f"{own}/memory.stat": stat(20 * MB, 10 * MB, 3 * MB, 2 * MB), f"{own}/memory.high": "max\n"})  # fmt: skip
    assert told() == (2.5, (120 * MB, 75 * MB))  # 120 - (70 - (20 + 10 - 3 - 2))
    assert limits.limits().memory.file == "/sys/fs/cgroup/app/memory.max"


def test_version_1(system):
    memory, cpu = "sys/fs/cgroup/memory/a", "sys/fs/cgroup/cpu,cpuacct/b"
    system(groups("11:memory:/a\n4:cpu,cpuacct:/b\n1:name=systemd:/c\n", V1) | {
        f"{memory}/memory.limit_in_bytes": 120 * MB, f"{memory}/memory.usage_in_bytes": 70 * MB,
        f"{memory}/memory.stat": stat1(20 * MB, 10 * MB, 3 * MB, 2 * MB),
        f"{cpu}/cpu.cfs_quota_us": 150000, f"{cpu}/cpu.cfs_period_us": 50000})  # fmt: skip
    assert told() == (3.0, (120 * MB, 75 * MB))
    assert limits.limits().memory.file == "/sys/fs/cgroup/memory/a/memory.limit_in_bytes"


def test_version_1_without_limits(system):
    memory, cpu = "sys/fs/cgroup/memory", "sys/fs/cgroup/cpu,cpuacct"
    system(groups("11:memory:/\n4:cpu,cpuacct:/\n", V1) | {
        f"{memory}/memory.limit_in_bytes": UNLIMITED, f"{memory}/memory.usage_in_bytes": 70 * MB,
        f"{memory}/memory.stat": stat1(more=f"hierarchical_memory_limit {UNLIMITED}\n"),
        f"{cpu}/cpu.cfs_quota_us": -1, f"{cpu}/cpu.cfs_period_us": 100000})  # fmt: skip
    assert told() == (None, None)


def test_version_2_without_limits(system, caplog):
    system(groups("0::/\n", V2) | {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": 5,
                                   "sys/fs/cgroup/cpu.max": "max 100000\n"})  # fmt: skip
    assert told() == (None, None) and not caplog.records


def test_both_versions_at_once(system):
    """Memory in version 1; version 2 is there, with the CPUs."""
    mounts = V1.splitlines()[1] + "\n" + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    system(groups("4:memory:/a\n0::/b\n", mounts) | {
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 120 * MB, "sys/fs/cgroup/memory/a/memory.usage_in_bytes": 20 * MB,
        "sys/fs/cgroup/unified/b/cpu.max": "400000 100000", "sys/fs/cgroup/unified/b/cgroup.procs": "1"})  # fmt: skip
    assert told() == (4.0, (120 * MB, 100 * MB))


@pytest.mark.parametrize("least", ["own", "middle", "top"])
def test_the_least_limit_of_all_ancestors_counts(system, least):
    folders = {"own": "sys/fs/cgroup/top/middle/own", "middle": "sys/fs/cgroup/top/middle", "top": "sys/fs/cgroup/top"}
    files = groups("0::/top/middle/own\n", V2)
    for name, folder in folders.items():
        files |= {f"{folder}/memory.max": 120 * MB if name == least else 900 * MB, f"{folder}/memory.current": 20 * MB,
                  f"{folder}/cpu.max": "200000 100000" if name == least else "700000 100000"}  # fmt: skip
    system(files | {"sys/fs/cgroup/top/other/memory.max": 1, "sys/fs/cgroup/top/other/cpu.max": "1000 100000"})
    assert told() == (2.0, (120 * MB, 100 * MB))
    assert limits.limits().memory.file == f"/{folders[least]}/memory.max"


def test_what_is_left_counts_and_not_the_limit(system):
    """Neighbours in the parent have taken more of its larger limit."""
    system(groups("0::/top/own\n", V2) | {
        "sys/fs/cgroup/top/own/memory.max": 500 * MB, "sys/fs/cgroup/top/own/memory.current": 100 * MB,
        "sys/fs/cgroup/top/memory.max": 900 * MB, "sys/fs/cgroup/top/memory.current": 800 * MB})  # fmt: skip
    assert told()[1] == (900 * MB, 100 * MB)


def test_high_is_a_limit_too(system):
    system(groups("0::/app\n", V2) | {"sys/fs/cgroup/app/memory.max": 500 * MB, "sys/fs/cgroup/app/memory.high": 300 * MB,
                                      "sys/fs/cgroup/app/memory.current": 50 * MB})  # fmt: skip
    assert told()[1] == (300 * MB, 250 * MB) and limits.limits().memory.file.endswith("memory.high")


@pytest.mark.parametrize(("cgroup", "root", "point"), [
    ("0::/", "/", "/sys/fs/cgroup"),  # a namespace: its own top
    ("0::/docker/abc", "/docker/abc", "/sys/fs/cgroup"),  # bound into a container without a namespace
    ("0::/docker/abc", "/elsewhere", "/sys/fs/cgroup"),  # the path from outside says nothing inside
    ("0::/../sibling", "/", "/sys/fs/cgroup"),  # moved out of the namespace
    ("0::/", "/../..", "/sys/fs/cgroup"),  # mounted from outside the namespace
    ("0::/a b", r"/a\040b", r"/sys/fs/cgroup"),
])  # fmt: skip
def test_containers(system, cgroup, root, point):
    system(groups(cgroup, f"30 23 0:26 {root} {point} ro - cgroup2 cgroup rw\n") | {
        "sys/fs/cgroup/memory.max": 120 * MB, "sys/fs/cgroup/memory.current": 20 * MB,
        "sys/fs/cgroup/cpu.max": "50000 100000", "sys/fs/sibling/memory.max": 1})  # fmt: skip
    assert told() == (1.0, (120 * MB, 100 * MB))  # never less than one CPU


def test_a_group_within_a_container(system):
    mount = r"35 31 0:32 /docker/abc /sys/fs/c\040group ro - cgroup cgroup rw,memory" + "\n"
    system(groups("9:memory:/docker/abc/own\n", mount) | {
        "sys/fs/c group/memory.limit_in_bytes": UNLIMITED, "sys/fs/c group/own/memory.limit_in_bytes": 120 * MB,
        "sys/fs/c group/own/memory.usage_in_bytes": 20 * MB})  # fmt: skip
    assert told()[1] == (120 * MB, 100 * MB)


def test_ancestors_that_cannot_be_seen(system):
    """Version 1 tells the least of their limits in the group's own statistics."""
    memory = "sys/fs/cgroup/memory"
    system(groups("9:memory:/\n", V1) | {
        f"{memory}/memory.limit_in_bytes": UNLIMITED, f"{memory}/memory.usage_in_bytes": 20 * MB,
        f"{memory}/memory.stat": stat1(more=f"hierarchical_memory_limit {120 * MB}\n")})  # fmt: skip
    assert told()[1] == (120 * MB, 100 * MB)


def test_the_file_that_sets_the_limit_is_named(system):
    memory = "sys/fs/cgroup/memory/a"
    system(groups("9:memory:/a/b\n", V1) | {
        f"{memory}/memory.limit_in_bytes": 120 * MB, f"{memory}/b/memory.limit_in_bytes": UNLIMITED,
        f"{memory}/b/memory.stat": stat1(more=f"hierarchical_memory_limit {120 * MB}\n")})  # fmt: skip
    assert limits.limits().memory == Allowance(120 * MB, 120 * MB, f"/{memory}/memory.limit_in_bytes")


def test_a_full_group_has_nothing_left(system):
    system(groups("0::/app\n", V2) | {"sys/fs/cgroup/app/memory.max": 50 * MB, "sys/fs/cgroup/app/memory.current": 51 * MB})
    assert told()[1] == (50 * MB, 0) and limits.limits().memory.spare == 0
    system({"sys/fs/cgroup/app/memory.max": 0})
    assert told()[1] == (0, 0)


@pytest.mark.parametrize("current, cache", [(10 * MB, stat(30 * MB, 30 * MB)), (20 * MB, stat(5 * MB, 0, 50 * MB)), ("", "")])
def test_cache_that_does_not_add_up(system, current, cache):
    """Counters are not read at one moment, and may be missing: never more than the limit is free, never more used than is used."""
    system(groups("0::/app\n", V2) | {"sys/fs/cgroup/app/memory.max": 50 * MB, "sys/fs/cgroup/app/memory.current": current,
                                      "sys/fs/cgroup/app/memory.stat": cache})  # fmt: skip
    assert told()[1] == (50 * MB, 30 * MB if current == 20 * MB else 50 * MB)


def test_no_files_at_all(system):
    assert told() == (None, None)
    system({"proc/self/cgroup": "0::/app\n"})
    assert told() == (None, None)


@pytest.mark.parametrize("text", ["", "many", "-", "1e9", "12 34 56", "9" * 400, "-7", b"\xff\xfe\x00", "١٢٣", "0x10", "max max max"])
def test_rubbish_is_no_limit_and_no_crash(system, caplog, text):
    names = ("memory.max", "memory.high", "memory.limit_in_bytes", "memory.current", "memory.stat", "memory.usage_in_bytes", "cpu.max",
             "cpu.cfs_quota_us", "cpu.cfs_period_us")  # fmt: skip
    system(groups("0::/\n4:memory:/\n5:cpu:/\n", V2 + V1.replace("/memory ", " ").replace("/cpu,cpuacct", ""))
           | {f"sys/fs/cgroup/{name}": text for name in names})  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert told() == (None, None)
    assert bool(caplog.records) == (text != "")


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
@pytest.mark.parametrize("text", ["", "\n\n", ":", "::", ":::::", "a", "0::", "0::relative", b"\xff:\xff:\xff", "1 2 3 4 5 6 - cgroup2",
                                  "1 2 3:4 / - - -", "- cgroup2 - cgroup2 - rw", "1 2 3:4 relative x rw - cgroup2 c rw"])  # fmt: skip
def test_rubbish_about_groups_is_no_crash(system, name, text):
    system(groups("0::/\n", V2) | {"sys/fs/cgroup/memory.max": 50 * MB} | {f"proc/self/{name}": text})
    assert told()[1] in (None, (50 * MB, 50 * MB))


def test_a_quota_of_nothing_is_none(system):
    system(groups("0::/\n", V2) | {"sys/fs/cgroup/cpu.max": "0 0", "sys/fs/cgroup/cpu.cfs_quota_us": 5,
                                   "sys/fs/cgroup/cpu.cfs_period_us": 0})  # fmt: skip
    assert told()[0] is None


# ---- nodes -------------------------------------------------------------------------------------------------------------


def meminfo(total, free, active=0, inactive=0, dirty=0, node=None, **more):
    before = "" if node is None else f"Node {node} "
    fields = {"MemTotal": total, "MemFree": free, "Active(file)": active, "Inactive(file)": inactive, "Active": 10**9, "Dirty": dirty}
    return "".join(f"{before}{name}: {n // 1024:14} kB\n" for name, n in (fields | more).items()) + f"{before}HugePages_Total:     0\n"


def machine(**nodes):
    """Files of nodes: ``machine(n0=(total, free, ...), n2=...)``."""
    numbers = [int(name[1:]) for name in nodes]
    files = {f"sys/devices/system/node/node{n}/meminfo": meminfo(*args, node=n) for n, args in zip(numbers, nodes.values())}
    return files | {"sys/devices/system/node/online": ",".join(map(str, numbers))}


MIB = 1 << 20


def test_file_pages_are_free_unless_they_must_be_written(system):
    system(machine(n0=(1000 * MIB, 100 * MIB, 30 * MIB, 50 * MIB, 20 * MIB), n2=(2000 * MIB, 5 * MIB)))
    assert node_memory(0) == (1000 * MIB, 160 * MIB) and node_memory(2) == (2000 * MIB, 5 * MIB)


def test_no_memory_is_not_unknown(system):
    system(machine(n0=(1000 * MIB, 100 * MIB), n1=(0, 0)))
    assert node_memory(1) == (0, 0)
    assert node_memory(7) == (None, None)


def test_a_machine_that_does_not_know_nodes(system):
    system({"proc/meminfo": meminfo(1000 * MIB, 100 * MIB, 7 * MIB, MemAvailable=300 * MIB)})
    assert node_memory(0) == (1000 * MIB, 300 * MIB)
    system({"proc/meminfo": meminfo(1000 * MIB, 100 * MIB, 7 * MIB, MemAvailable=3000 * MIB)})  # a container that shows its own total
    assert node_memory(0) == (1000 * MIB, 1000 * MIB)
    system({"proc/meminfo": meminfo(1000 * MIB, 100 * MIB, 7 * MIB)})  # before Linux 3.14
    assert node_memory(0) == (1000 * MIB, 107 * MIB)
    system({"sys/devices/system/node/online": "0", "sys/devices/system/node/node0/meminfo": "rubbish"})
    assert node_memory(0) == (1000 * MIB, 107 * MIB)


def test_a_machine_that_tells_nothing(system, monkeypatch):
    total, free = node_memory(0)  # sysconf asks the system, not files
    assert 0 < free <= total == os.sysconf("SC_PAGESIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(os, "sysconf", lambda name: -1)
    assert node_memory(0) == (None, None)


def test_a_node_has_what_the_group_leaves(system):
    system(machine(n0=(1000 * MIB, 500 * MIB)))
    assert node_memory(0, Allowance(100 * MIB, 90 * MIB, "x")) == (100 * MIB, 90 * MIB)
    assert node_memory(0, Allowance(900 * MIB, 800 * MIB, "x")) == (1000 * MIB, 500 * MIB)
    assert node_memory(0, Allowance(500 * MIB, 480 * MIB, "x")) == (1000 * MIB, 500 * MIB)  # less its larger reserve
    assert node_memory(0, None) == (1000 * MIB, 500 * MIB)
    system({"sys/devices/system/node/online": "0-1"})
    assert node_memory(1) == (None, None) and node_memory(1, Allowance(100, 90, "x")) == (100, 90)


def test_limits_that_do_not_bind_are_none():
    memory, two = Allowance(100, 90, "x"), [(1000, 300), (1000, 60)]  # the nodes spare 250 + 10
    assert Limits(4.0, memory).binding(4, two) == Limits(None, memory, 4)
    assert Limits(None, Allowance(300, 270, "x")).binding(4, two).memory  # 255, more than one node spares and less than both
    assert Limits(3.5, Allowance(300, 275, "x")).binding(4, two) == Limits(3.5, None, 4)
    assert Limits(3.5, memory).binding(4, [(1000, 300), (None, None)]).memory is memory
    assert Limits(None, None).binding(4, two) == Limits(cores=4)


# ---- topology ----------------------------------------------------------------------------------------------------------

CPUS = tuple(sorted(os.sched_getaffinity(0)))


@pytest.fixture
def no_numa(monkeypatch, system):
    """No /sys/devices/system/node, and a libnuma that knows no CPU, as under gVisor."""
    monkeypatch.setattr(_core, "numa_available", lambda: False)
    monkeypatch.setattr(_core, "numa_node_of_cpu", lambda cpu: -1)
    return system


def test_a_machine_without_nodes_is_one_node(no_numa, tmp_path):
    no_numa({"proc/meminfo": meminfo(4000 * MIB, 100 * MIB, MemAvailable=3000 * MIB)})
    assert topology() == Topology((Node(0, CPUS, 4000 * MIB, 3000 * MIB),), limits=Limits(cores=len(CPUS)))
    path = tiny(tmp_path, "llama", "Q8_0")
    with ni.load(path) as model:
        assert model.placement.policy == "local" and len(model.generate("a", max_tokens=3, ignore_eos=True).token_ids) == 3


def test_a_machine_that_tells_no_memory_loads_all_the_same(no_numa, monkeypatch, tmp_path):
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: -1 if "PAGES" in name else real(name))
    found = topology()
    assert [(node.total, node.free) for node in found.nodes] == [(None, None)] and "memory unknown" in str(found)
    assert "<td>unknown</td>" in found._repr_html_()
    with ni.load(tiny(tmp_path, "llama", "Q8_0"), n_ctx=256) as model:
        texts = model.generate(["a", "b"], max_tokens=3, ignore_eos=True)
        assert [len(done.token_ids) for done in texts] == [3, 3]
    made = survey()
    assert made.sites[0].free is None and str(made).startswith(f"1x{made.sites[0].cores}c,?GB,")


def test_cpus_of_no_known_node_are_the_first_nodes(monkeypatch, system):
    monkeypatch.setattr(_core, "numa_node_of_cpu", lambda cpu: -1)
    system(machine(n1=(1000 * MIB, 500 * MIB), n3=(1000 * MIB, 500 * MIB)))
    assert [(node.number, node.cpus) for node in topology().nodes] == [(1, CPUS)]


def test_a_node_without_memory_is_passed_over_and_an_unknown_one_is_not(monkeypatch, system):
    monkeypatch.setattr(_core, "numa_node_of_cpu", lambda cpu: 1)
    files = machine(n0=(1000 * MIB, 500 * MIB), n1=(0, 0), n2=(1000 * MIB, 400 * MIB))
    files |= {"sys/devices/system/node/node1/distance": "20 10 15", "proc/self/status": "Name:\tx\nrubbish\nMems_allowed_list:\t0-63\n"}
    system(files)
    assert [node.number for node in topology().nodes] == [2]
    system({"proc/self/status": "Mems_allowed_list:\t0-1\n"})  # a CPU set without the nearest
    assert [node.number for node in topology().nodes] == [0]
    system({"sys/devices/system/node/node1/meminfo": ""})
    assert [(node.number, node.free) for node in topology().nodes] == [(1, None)]


LIMITED = {"sys/fs/cgroup/app/memory.max": 120 * MB, "sys/fs/cgroup/app/memory.current": 40 * MB}


def test_topology_tells_what_binds(system):
    system(machine(n0=(1000 * MIB, 500 * MIB)) | groups("0::/app\n", V2))
    assert "control group" not in str(topology())
    system(LIMITED | {"sys/fs/cgroup/app/cpu.max": "150000 100000"})
    found = topology()
    more = f"control group allows {f'1.5 of {len(CPUS)} cores and ' if len(CPUS) > 1 else ''}120 MB of memory, 80.0 MB of it free"
    assert found.nodes[0].free == 80 * MB and "80.0 MB free of 120 MB" in str(found)
    assert str(found).splitlines()[-1] == f"  {more} (/sys/fs/cgroup/app/memory.max)" and more in found._repr_html_()
    system({"sys/fs/cgroup/app/memory.max": 900 * GB})
    assert topology().limits.memory is None and topology().nodes[0].free == 500 * MIB


def test_pretend_nodes_have_the_groups_limits_too(system, monkeypatch):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "3")
    system(machine(n0=(1000 * MIB, 500 * MIB)) | groups("0::/app\n", V2) | LIMITED)
    assert [node.free for node in topology().nodes] == [80 * MB] * 3 and topology().limits.memory.free == 80 * MB


# ---- what follows ------------------------------------------------------------------------------------------------------


def nodes(*free, total=128 * GB):
    return tuple(Node(i, (i,), total, n) for i, n in enumerate(free))


def test_copies_on_all_nodes_count_together():
    two, limit = nodes(100 * GB, 100 * GB), Allowance(100 * GB, 95 * GB, "memory.max")  # 90 GB to be had
    assert choose("auto", two, 44 * GB, GB, limit=limit)[0] == "replicate"
    assert choose("auto", two, 45 * GB, GB, limit=limit)[0] == "shard"
    assert choose("auto", two, 45 * GB, GB)[0] == "replicate"
    assert choose("auto", two, 45 * GB, GB, {"replicate"}, limit=limit)[0] == "replicate"  # it is there already
    assert choose("auto", two, 88 * GB, GB, limit=limit)[0] == "shard"
    says = r"'shard' does not fit .*: control group allows 100 GB \(memory.max\): need 91.0 GB, free 90.0 GB$"
    with pytest.raises(OutOfNodeMemory, match=says):
        choose("auto", two, 89 * GB, GB, limit=limit)
    with pytest.raises(OutOfNodeMemory, match=r"'replicate' .*: control group allows 100 GB \(memory.max\): need 92.0 GB, free"):
        choose("replicate", two, 45 * GB, GB, limit=limit)
    with pytest.raises(OutOfNodeMemory, match=r"node 0: need .*, free 93.6 GB; node 1: need 46.0 GB, free 13.6 GB$"):
        choose("replicate", nodes(100 * GB, 20 * GB), 45 * GB, GB, limit=Allowance(200 * GB, 190 * GB, "x"))


def test_unknown_memory_refuses_nothing():
    unknown = nodes(None, None, total=None)
    policy, reason = choose("auto", unknown, 10**15, 0)
    assert policy == "shard" and reason == "one copy in all, for the system does not tell how much memory node 0 has"
    assert choose("replicate", unknown, 10**15, 0)[0] == "replicate"
    assert choose("auto", unknown[:1], 10**15, 0)[0] == "local"
    half = (nodes(100 * GB)[0], Node(1, (1,), None, None))
    assert choose("auto", half, GB, 0)[0] == "shard"
    with pytest.raises(OutOfNodeMemory, match=r"node 0: need 100 GB, free 93.6 GB; node 1: need 100 GB, free unknown$"):
        choose("shard", half, 200 * GB, 0)


def test_a_group_too_small_is_told_before_anything_is_taken(system, monkeypatch, tmp_path):
    system(machine(n0=(4000 * MIB, 3000 * MIB)) | groups("0::/app\n", V2))
    system({"sys/fs/cgroup/app/memory.max": 80 * MB, "sys/fs/cgroup/app/memory.current": 75 * MB})
    path, opened = tiny(tmp_path, "llama", "Q8_0"), []
    says = r"control group allows 80.0 MB \(/sys/fs/cgroup/app/memory.max\): need .* free 1.0 MB"
    with monkeypatch.context() as patch, GGUFFile(path) as file:
        for name in ("Arena", "Team"):
            patch.setattr(_core, name, lambda *a, **k: opened.append(a))
        with pytest.raises(OutOfNodeMemory, match=says):
            Engine(file)
    assert not opened
    system({"sys/fs/cgroup/app/memory.current": 5 * MB})
    with ni.load(path) as model:
        assert model.generate("a", max_tokens=2, ignore_eos=True).token_ids


MODEL = capacity.Demand(weights=1_100_000_000, whole=100_000_000, read=10**9, macs=10**9, n_ctx=1001, kv_bytes=10**8, kv_layers=(),
                        activations=50_000_000, exchange=0, node_barriers=0, team_barriers=0, alone_barriers=0)  # fmt: skip


def test_the_planner_counts_all_nodes_together():
    def fits(limit, policy):
        found = Machine(tuple(Site(i, 4, 10 * GB, 9 * GB) for i in range(2)), limits=Limits(memory=limit))
        forecast = capacity.forecast(MODEL, found, policy)
        rows = [line for line in capacity.report(MODEL, found, [forecast]).splitlines() if line.startswith(policy)]
        assert rows[0].endswith("yes" if forecast.fits else "no")
        assert forecast.to_dict()["fits"] == forecast.fits
        return forecast.fits

    for total, expected in ((2.7 * GB, True), (2.4 * GB, False)):  # two copies, KV, twice the activations: 2.4 GB of 95 %
        assert fits(Allowance(int(total), int(total), "x"), "replicate") == expected
        assert fits(Allowance(int(total), int(total), "x"), "shard")
    assert fits(None, "replicate")


def test_the_planner_does_not_know_what_the_system_does_not_tell():
    unknown = Machine((Site(0, 4, None, None),), source="not measured")
    forecast = capacity.forecast(MODEL, unknown, "local")
    assert forecast.fits and forecast.nodes[0].room is None
    assert capacity.report(MODEL, unknown, [forecast]).splitlines()[2].split()[-1] == "?"
    assert least_free([None, 7, 5]) == 5 and least_free([None]) is None
    assert probe_bytes(512 * MIB, None, 2) >= 512 * MIB and probe_bytes(512 * MIB, 80 * MIB, 2) == 10 * MIB


def test_info_and_topology_say_so(system, capsys):
    system(machine(n0=(4000 * MIB, 3000 * MIB)) | groups("0::/app\n", V2) | LIMITED)
    assert main(["info", "smollm2", "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert "control group allows 120 MB of memory, 80.0 MB of it free (/sys/fs/cgroup/app/memory.max)" in out
    assert "no" in next(line for line in out.splitlines() if line.startswith("any")).split()
    assert main(["topology", "--json"]) == 0
    limit = json.loads(capsys.readouterr().out)["limits"]
    assert limit["memory"] == {"total": 120 * MB, "free": 80 * MB, "file": "/sys/fs/cgroup/app/memory.max"} and limit["cpus"] is None


@pytest.mark.parametrize("threads", [None, 2])
def test_a_quota_sets_the_default_number_of_workers(system, monkeypatch, threads):
    if len(CPUS) < 2:
        pytest.skip("needs two CPUs")
    system(machine(n0=(4000 * MIB, 3000 * MIB)) | groups("0::/a/b\n", V2) | {"sys/fs/cgroup/a/cpu.max": "100000 100000"})
    assert len(topologies.choose_workers(topology(), threads)[1]) == (threads or 1)
