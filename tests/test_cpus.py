"""Which CPUs a model's workers get beside other models, of this process and of others."""

import os
import signal
import subprocess
import sys
import time
import weakref

import pytest
from core_tools import CPUS, open_engine, pretend, python
from tiny_models import tiny

import numainfer as ni
from numainfer.machine import cpus as cpus_of, pages, topology as topologies
from numainfer.machine.topology import Node, Topology, choose_workers

GB = 10**9
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A file of locks of our own: other processes of this machine, and models that other tests keep, hold nothing here."""
    for name, value in (("LOCKS", str(tmp_path / "locks")), ("_fd", None), ("_holds", weakref.WeakSet()), ("_locked", set())):
        monkeypatch.setattr(cpus_of, name, value)
    yield
    if cpus_of._fd is not None:
        os.close(cpus_of._fd[0])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("cpus"), "llama", "Q8_0")


def first_and_second():
    return ni.topology().nodes[0].cpus[:2]


def load(path, **options):
    return ni.load(path, n_ctx=64, n_batch=8, progress=False, **options)


def hold_of(cpus):
    hold = cpus_of.Hold()
    hold.take(cpus)
    return hold


def taken(model):
    return [cpu for node in model.placement.nodes for cpu in node.cpus]


# ---- in one process ----------------------------------------------------------------------------------------------------


@two_cpus
def test_two_models_of_a_process(path):
    a, b = first_and_second()
    with load(path, threads=1) as one:
        assert taken(one) == [a] and "held" not in str(one.placement)
        with load(path, threads=1) as other:
            assert taken(other) == [b] == other.runtime.engine.lane.team.cpus()
            assert f"; CPU {b} ({a} is held by another model of this process)\n" in str(other.placement)
            assert f"({a} is held by another model of this process)" in other.placement._repr_html_()
            with load(path, threads=1) as third:  # all are held: it shares
                assert taken(third) == [a] and f"; CPU {a} (shared with another model of this process)" in str(third.placement)
                with load(path, threads=1) as fourth:  # where the fewest are
                    assert taken(fourth) == [b]
            with load(path) as whole:
                assert f"; CPUs {cpus_of.ranges(sorted(taken(whole)))} (" in str(whole.placement)
                assert "shared with another model" in str(whole.placement)
        with load(path, threads=1) as again:
            assert taken(again) == [b]
    with load(path, threads=1) as again:
        assert taken(again) == [a] and "CPU " not in str(again.placement)


@two_cpus
def test_a_load_that_fails_holds_nothing(path):
    a, _ = first_and_second()
    with pytest.raises(MemoryError):
        ni.load(path, threads=1, n_ctx=2**31 - 1)
    assert cpus_of.holders([a]) == {}


@pytest.mark.parametrize("nth", range(4))
def test_a_load_that_is_interrupted_leaves_no_lock(path, monkeypatch, nth):
    """Ctrl-C right behind each lock that is set, or given back."""
    calls, do = [], cpus_of._set

    def press(*arguments):
        done = do(*arguments)
        calls.append(arguments)
        if len(calls) == nth + 1:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(cpus_of, "_set", press)
    with pytest.raises(KeyboardInterrupt):
        load(path).close()
    asked = python("import sys; from numainfer.machine import cpus\ncpus.LOCKS = sys.argv[1]\n"
                   "print([cpus._other_process(byte) for byte in [*map(int, sys.argv[2:]), cpus._CHOOSING]])",
                   cpus_of.LOCKS, *{byte for _, byte in calls} - {cpus_of._CHOOSING})  # fmt: skip
    assert set(asked.strip("[]\n").split(", ")) == {"None"}


@two_cpus
def test_lanes_of_a_model_share_its_cpus(path, monkeypatch):
    pretend(monkeypatch, 2, 1)
    with open_engine(path, placement="replicate") as engine:
        latency = engine.lane.team.cpus()
        lanes = [cpu for lane in engine.node_lanes() for cpu in lane._cpus]
        assert sorted(lanes) == sorted(engine.cpus) and len(latency) == 2 and engine.placement.cpus == ""


def test_an_engine_that_is_forgotten_holds_nothing():
    hold = hold_of([CPUS[0]])
    assert cpus_of.holders(CPUS) == {CPUS[0]: [cpus_of.OTHER_MODEL]}
    del hold
    assert cpus_of.holders(CPUS) == {}


# ---- between processes -------------------------------------------------------------------------------------------------

CHILD = """if True:
    import sys
    from numainfer.machine import cpus
    cpus.LOCKS = sys.argv[1]
    import numainfer as ni
    model = ni.load(sys.argv[2], n_ctx=64, n_batch=8, threads=1, progress=False)
    print([cpu for node in model.placement.nodes for cpu in node.cpus], str(model.placement).splitlines()[0], flush=True)
    sys.stdin.read()
"""


def start(path):
    """(process, its CPUs, its heading) of another process with a model of one thread."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, cpus_of.LOCKS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True, env=env)  # fmt: skip
    line = child.stdout.readline()
    cpus, _, head = line.partition("] ")
    return child, [int(cpu) for cpu in cpus[1:].split(",")], head


@two_cpus
def test_two_processes(path):
    a, b = first_and_second()
    child, cpus, _ = start(path)
    try:
        assert cpus == [a]
        with load(path, threads=1) as model:
            assert taken(model) == [b] and f"; CPU {b} ({a} is held by process {child.pid})\n" in str(model.placement)
            other, cpus, head = start(path)
            assert cpus == [a] and f"; CPU {a} (shared with process " in head
            other.kill()
            other.communicate()
        child.send_signal(signal.SIGKILL)  # no chance to tidy up
        child.wait()
        with load(path, threads=1) as model:
            assert taken(model) == [a] and "held" not in str(model.placement)
    finally:
        child.kill()
        child.communicate()


@two_cpus
def test_what_is_held_again_is_seen_again():
    for _ in range(2):
        hold = hold_of([CPUS[0]])
        code = "import sys; from numainfer.machine import cpus; cpus.LOCKS = sys.argv[1]; print(cpus.holders([int(sys.argv[2])]))"
        assert python(code, cpus_of.LOCKS, CPUS[0]).strip() == str({CPUS[0]: [f"process {os.getpid()}"]})
        hold.close()
        assert python(code, cpus_of.LOCKS, CPUS[0]).strip() == "{}"


def test_a_core_is_held_not_a_cpu(monkeypatch):
    monkeypatch.setattr(cpus_of, "core", lambda cpu: cpu % 8)
    hold = hold_of([11])
    assert set(cpus_of.holders(range(16))) == {3, 11}
    hold.close()


@two_cpus
def test_a_fork_holds_nothing_of_its_parents(path):
    a, b = first_and_second()
    ends, answers = os.pipe(), os.pipe()
    with load(path, threads=1):
        child = os.fork()
        if child == 0:
            try:
                told = str(cpus_of.holders([a]))  # its parent is another process now
                os.write(answers[1], b".")
                os.read(ends[0], 1)
                told += f" {cpus_of.holders([a])}"
                with load(path, threads=1) as own:
                    told += f" {taken(own)}"
                os.write(answers[1], told.encode())
            finally:
                os._exit(0)
        assert os.read(answers[0], 1) == b"."
    elsewhere, cpus, _ = start(path)  # the fork still lives, the model does not
    elsewhere.kill()
    elsewhere.communicate()
    os.write(ends[1], b"x")
    os.waitpid(child, 0)
    assert cpus == [a]
    assert os.read(answers[0], 999).decode() == f"{{{a}: ['process {os.getpid()}']}} {{}} [{a}]"
    for end in (*ends, *answers):
        os.close(end)


def test_a_process_that_never_ends_choosing_is_not_waited_for_long():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys; from numainfer.machine import cpus; cpus.LOCKS = sys.argv[1]\nwith cpus.choosing(): print(1, flush=True), input()"
    child = subprocess.Popen([sys.executable, "-c", code, cpus_of.LOCKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert child.stdout.readline() == b"1\n"
    begin = time.monotonic()
    with cpus_of.choosing():
        waited = time.monotonic() - begin
        hold = hold_of([CPUS[0]])
    assert 0.4 < waited < 5 and CPUS[0] in cpus_of.holders(CPUS)
    hold.close()
    child.communicate(b"\n")
    begin = time.monotonic()
    with cpus_of.choosing():
        assert time.monotonic() - begin < 0.4


def test_without_a_place_for_the_locks_models_of_a_process_know_each_other(monkeypatch, tmp_path):
    monkeypatch.setattr(cpus_of, "LOCKS", str(tmp_path / "absent" / "locks"))
    begin = time.monotonic()
    with cpus_of.choosing():
        hold = hold_of([CPUS[0]])
    assert time.monotonic() - begin < 0.3
    assert cpus_of.holders(CPUS) == {CPUS[0]: [cpus_of.OTHER_MODEL]}
    hold.close()
    assert cpus_of.holders(CPUS) == {}


def test_a_descriptor_that_others_close():
    """A daemon closes all descriptors: the next file that gets the number is not ours."""
    hold = hold_of([CPUS[0]])
    os.close(cpus_of._fd[0])
    with open(os.devnull) as other:
        cpus_of.holders(CPUS)
        assert cpus_of._fd[0] != other.fileno() and os.path.samestat(os.fstat(cpus_of._fd[0]), os.stat(cpus_of.LOCKS))
    hold.close()


# ---- named by the user -------------------------------------------------------------------------------------------------


def test_named_cpus(path):
    last = ni.topology().nodes[-1].cpus[-1]
    with load(path, cpus=[last]) as model:
        assert taken(model) == [last] == model.runtime.engine.lane.team.cpus()
        with load(path, cpus=(last,), threads=1) as same:
            assert taken(same) == [last] and f"; CPU {last} (shared with another model of this process)" in str(same.placement)


@pytest.mark.parametrize(("options", "error", "says"), [
    ({"cpus": [CPUS[0], 99999]}, ValueError, r"cpus = \[\d+, 99999\]: there is no CPU 99999; cores that this process may use: "),
    ({"cpus": [CPUS[0], CPUS[0]]}, ValueError, r"cpus = .*: wanted at least one CPU, and none twice"),
    ({"cpus": []}, ValueError, r"cpus = \[\]: wanted at least one CPU"), ({"cpus": [-1]}, ValueError, r"cpus\[0\] = -1"),
    ({"cpus": "0"}, TypeError, "cpus: found str, wanted a sequence of CPU numbers"), ({"cpus": 0}, TypeError, "cpus: found int"),
    ({"cpus": [0.5]}, TypeError, r"cpus\[0\] = 0.5: found float"), ({"cpus": [True]}, TypeError, r"cpus\[0\] = True: found a bool"),
    ({"cpus": [CPUS[0]], "threads": 2}, ValueError, r"cpus = \[\d+\]: they are for 1 thread, but threads = 2; leave threads out"),
    ({"cpus": [CPUS[0]], "threads": [1, 1]}, ValueError, r"threads = \[1, 1\]; leave threads out"),
    ({"cpus": [CPUS[0]], "nodes": [77]}, ValueError, r"they lie on nodes \[\d+\], but nodes = \[77\]; leave nodes out"),
])  # fmt: skip
def test_cpus_that_cannot_be(path, options, error, says):
    with pytest.raises(error, match=says):
        load(path, **options)


@two_cpus
def test_named_cpus_on_two_nodes(path, monkeypatch):
    pretend(monkeypatch, 2, 1)
    both = [node.cpus[0] for node in topologies.topology().nodes]
    with load(path, cpus=both[::-1], placement="shard") as model:
        assert [node.cpus for node in model.placement.nodes] == [(cpu,) for cpu in both]
    with load(path, cpus=both[1:], placement="local") as model:
        assert [(node.label, node.cpus) for node in model.placement.nodes] == [(1, (both[1],))]
    with pytest.raises(ValueError, match=r"cpus = .*: they lie on nodes \[0, 1\], but placement = 'local' is on one"):
        load(path, cpus=both, placement="local")


@two_cpus
def test_a_cpu_outside_the_affinity(path):
    out = python(f"""if True:
        import os, sys
        os.sched_setaffinity(0, {{{CPUS[0]}}})
        import numainfer as ni
        try:
            ni.load(sys.argv[1], cpus=[{CPUS[1]}])
        except ValueError as e:
            print(e)
    """, path)
    assert out.startswith(f"cpus = [{CPUS[1]}]: this process may not run on CPU {CPUS[1]} (its affinity, or its cpuset)")


# ---- by made-up machines -----------------------------------------------------------------------------------------------


@pytest.fixture
def sysfs(monkeypatch):
    """``sysfs(files)`` makes the system's files these."""
    def make(files):
        monkeypatch.setattr(pages, "read", lambda path: files.get(str(path), ""))
        cpus_of.core.cache_clear()
        cpus_of.domain.cache_clear()

    yield make
    cpus_of.core.cache_clear()
    cpus_of.domain.cache_clear()


def test_cores_and_domains(sysfs):
    base = "/sys/devices/system/cpu/cpu"
    sysfs({f"{base}9/topology/thread_siblings_list": "1,9", f"{base}8/topology/thread_siblings_list": "8-9",
           f"{base}9/cache/index2/level": "3", f"{base}9/cache/index2/shared_cpu_list": "8-15,72-79",
           f"{base}9/cache/index3/level": "4", f"{base}9/cache/index3/shared_cpu_list": "0-95",
           f"{base}8/cache/index3/level": "2", f"{base}8/cache/index3/shared_cpu_list": "8"})  # fmt: skip
    assert [cpus_of.core(cpu) for cpu in (9, 8, 7)] == [1, 8, 7]
    assert cpus_of.domains([9, 8, 7]) == [8, -1, -1]


def test_workers_of_a_cache_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(cpus_of, "domain", lambda cpu: cpu % 3)
    made = Topology((Node(0, tuple(range(8)), GB, GB), Node(1, tuple(range(8, 12)), GB, GB)))
    _, cpus, node_of = choose_workers(made, threads=[7, 4])
    assert cpus == [0, 3, 6, 1, 4, 2, 5, 9, 10, 8, 11] and node_of == [0] * 7 + [1] * 4
    assert choose_workers(made, cpus=[10, 4, 3, 0])[1] == [0, 3, 4, 10]


def test_held_cores_come_last(monkeypatch):
    monkeypatch.setattr(cpus_of, "domain", lambda cpu: cpu // 4)
    made = Topology((Node(0, (0, 1, 2, 3), GB, GB), Node(1, (4, 5, 6, 7), GB, GB)))
    held = {0: ["process 7"], 1: ["process 7"], 2: ["process 7", "another"], 4: ["process 8"]}
    assert choose_workers(made, 2, held=held)[1] == [3, 5]
    assert choose_workers(made, [2, 1], held=held)[1] == [0, 3, 5]
    assert choose_workers(made, [3, 4], held=held)[1] == [0, 1, 3, 4, 5, 6, 7]
    assert choose_workers(made, cpus=[0, 4], held=held)[1] == [0, 4]


def test_the_story():
    tell = cpus_of.story
    assert tell([0, 1], [0, 1], {}) == "" == tell([0], [0], {3: ["x"]})
    assert tell([0], [1], {0: ["process 7"]}) == "CPU 1 (0 is held by process 7)"
    held = {0: ["process 7"], 1: ["process 7"], 2: ["M"]}
    assert tell([0, 1, 2], [3, 4, 5], held) == "CPUs 3-5 (0-1 are held by process 7, 2 is held by M)"
    assert tell([0, 1], [1, 0], {0: ["M", "N"], 1: ["M"]}) == "CPUs 0-1 (shared with M)"
    assert tell([0, 1], [1, 2], {0: ["M"], 1: ["N"]}) == "CPUs 1-2 (0 is held by M, 1 is shared with N)"
