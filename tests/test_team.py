"""Worker threads: where they run, what they leave alone, how they start, wait, stop and end."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from core_tools import CPUS, Sheet, open_team, python, rig, same_bits, team_shape
from tiny_models import tiny

from numainfer import _core
from numainfer.errors import ForkedProcess


def tasks():
    """Thread id -> CPUs it may run on, for all threads of this process."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        try:
            found[int(task)] = os.sched_getaffinity(int(task))
        except ProcessLookupError:
            pass
    return found


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(4)
    tensors = {"x": rng.standard_normal((512, 1024)), "w": rng.standard_normal((4096, 1024))}
    sheet = Sheet(tmp_path_factory.mktemp("team") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


def product(p, s):
    """x W in one step: 4 GFLOP for 512 tokens, tens of milliseconds at least."""
    p.logits(p.embed(s["x"]), s["w"])


IDS = np.arange(512) % 512


# ---- where they run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_nodes", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3)])
def test_workers_are_pinned_where_asked(n_nodes, workers):
    cpus, nodes = team_shape(n_nodes, workers)
    before, mine = tasks(), os.sched_getaffinity(0)
    team = _core.Team(cpus, nodes)
    own = sorted(next(iter(allowed)) for task, allowed in tasks().items() if task not in before and len(allowed) == 1)
    assert own == sorted(cpus)
    assert len(tasks()) == len(before) + len(cpus)  # the runner is one of the workers
    assert os.sched_getaffinity(0) == mine and tasks()[threading.get_native_id()] == mine
    assert team.cpus() == [-1] * len(cpus)  # no job yet
    arena = _core.Arena(1 << 16)
    team.read_time([arena.address] * n_nodes, 1 << 16, 1)
    assert team.cpus() == cpus
    assert len(team) == len(cpus) and team.n_nodes == n_nodes
    team.close()
    assert wait_until(lambda: set(tasks()) <= set(before))


def test_a_team_keeps_to_a_smaller_affinity():
    """A process confined to one CPU still gets its pinned workers on that one, and keeps its mask."""
    out = python(f"""if True:
        import os
        os.sched_setaffinity(0, {{{CPUS[-1]}}})
        from numainfer import _core
        from numainfer.machine import topology as topologies
        shown = topologies.topology()
        team = _core.Team([{CPUS[-1]}] * 2, [0, 0])
        print([node.cpus for node in shown.nodes], {{tuple(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")}})
    """)
    assert out.strip() == f"[({CPUS[-1]},)] {{({CPUS[-1]},)}}"


@pytest.mark.parametrize("size", ["40K", "64K", "256K"])
def test_small_stacks(tiny_path, size):
    """Stacks that leave no room for a gap below their used end are as good as others."""
    code = """if True:
        import sys, numainfer as ni
        with ni.load(sys.argv[1], n_ctx=64, n_batch=16) as model:
            print(model.generate([[3, 4, 5] * 5] * 2, max_tokens=4, mode="throughput", ignore_eos=True)[1].token_ids)
    """
    assert python(code, tiny_path, OMP_STACKSIZE=size, NUMAINFER_FAKE_NODES="2") == python(code, tiny_path)


def test_cpus_that_are_not_there(recwarn):
    absent = next(cpu for cpu in range(1023, 0, -1) if not os.path.exists(f"/sys/devices/system/cpu/cpu{cpu}"))
    before = tasks()
    with pytest.raises(Exception, match="could not be pinned to its CPU: Invalid argument"):
        _core.Team([CPUS[0], absent], [0, 0])
    assert wait_until(lambda: set(tasks()) <= set(before))


@pytest.mark.parametrize(("cpus", "nodes", "says"), [
    ([], [], "a CPU and a node for each worker; found 0 and 0"), ([0, 0], [0], "found 2 and 1"),
    ([0, 0], [1, 1], "worker 0: CPU 0, node 1"), ([0, 0, 0], [0, 2, 2], "worker 1: CPU 0, node 2"),
    ([0, 0, 0], [0, 1, 0], "worker 2: CPU 0, node 0"), ([-1], [0], "worker 0: CPU -1"), ([1 << 20], [0], "CPUs must be below 1048576"),
    ([0], [-1], "at least one worker for every node"), ([0] * 5000, [0] * 5000, "5000 workers"),
])  # fmt: skip
def test_bad_arguments(cpus, nodes, says):
    with pytest.raises(ValueError, match=says):
        _core.Team(cpus, nodes)


# ---- what they leave alone --------------------------------------------------------------------------------------------


def test_signals_go_to_the_caller(sheet):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with open_team(1, 2):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
        own = int(open("/proc/self/status").read().split("SigBlk:")[1].split()[0], 16)
        for task in set(tasks()) - {threading.get_native_id()}:
            blocked = int(open(f"/proc/self/task/{task}/status").read().split("SigBlk:")[1].split()[0], 16)
            if len(os.sched_getaffinity(task)) == 1 and len(CPUS) > 1:  # a worker: it takes no signal at all
                assert all(blocked >> (s - 1) & 1 for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1))
        assert own == int(open("/proc/self/status").read().split("SigBlk:")[1].split()[0], 16)


def test_denormals_stay_what_they_are(sheet):
    """Importing us and running steps leaves the caller's floating point mode alone, and denormal weights count in the workers."""
    tiny = np.float32(1e-40)
    with open_team(1, 2) as team, rig(sheet, team, product, n_batch=512) as r:
        r.run(IDS[:8])
        half = np.frombuffer(np.array([tiny, tiny]).tobytes(), np.float32) * np.float32(0.5)
        assert (half > 0).all() and half[0] == np.float32(5e-41)


def test_denormal_numbers_count_in_the_workers(tmp_path):
    sheet = Sheet(tmp_path / "denormal.gguf", {"x": np.full((4, 32), 1e-30, np.float32), "w": np.full((16, 32), 1e-10, np.float32)})
    with open_team(1, 2) as team, rig(sheet, team, product) as r:
        for tokens in (1, 4):
            found = r.run(np.arange(tokens))
            assert found.min() > 0
            np.testing.assert_allclose(found, 32e-40, rtol=1e-4)
    sheet.close()


def test_an_idle_team_uses_no_cpu():
    with open_team(1, 4) as team:
        arena = _core.Arena(1 << 16)
        team.read_time([arena.address], 1 << 16, 1)
        time.sleep(0.02)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.01


def test_nothing_is_printed(capfd, sheet):
    with open_team(2, 2) as team, rig(sheet, team, product, n_batch=512) as r:
        r.run(IDS[:8])
    out, err = capfd.readouterr()
    assert out == err == ""


# ---- starting and ending ----------------------------------------------------------------------------------------------


def test_closing_twice_and_using_after():
    team = _core.Team([CPUS[0]], [0])
    team.close()
    team.close()
    team.cancel()
    one = np.zeros(1, np.uint8)
    pieces = [((-1, 1, 1, [0], None, 1), one.ctypes.data, 1)]
    for use in (len, lambda t: t.cpus(), lambda t: t.read_time([0], 0, 1), lambda t: t.fill(pieces, one)):
        with pytest.raises(ValueError, match="the team is closed"):
            use(team)


def test_many_teams_leave_nothing_behind():
    def memory():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def cycles(n):
        for i in range(n):
            with open_team(1 + i % 3, 1 + i % 2) as team:
                len(team)
            if i % 10 == 0:
                _core.Team(*team_shape(2, 1))  # forgotten, not closed

    cycles(30)
    threads, resident = len(tasks()), memory()
    cycles(200)
    assert wait_until(lambda: len(tasks()) <= threads)
    assert memory() - resident < 4 << 20


def test_more_workers_than_cpus_make_progress(sheet):
    """They sleep instead of spinning: 12 workers on 3 nodes take little longer than one per CPU."""
    with open_team(1, len(CPUS)) as team, rig(sheet, team, product, n_batch=512) as r:
        wanted = r.run(IDS)
        start = time.perf_counter()
        for _ in range(3):
            r.run(IDS)
        alone = time.perf_counter() - start
    with open_team(3, 4) as team, rig(sheet, team, product, n_batch=512) as r:
        r.run(IDS)
        start = time.perf_counter()
        for _ in range(3):
            same_bits(r.run(IDS), wanted)
        assert time.perf_counter() - start < 5 * alone + 1


# ---- stopping ----------------------------------------------------------------------------------------------------------


def test_cancel_from_another_thread(sheet):
    with open_team(2, 1) as team, rig(sheet, team, product, n_batch=512) as r:
        start = time.perf_counter()
        wanted = r.run(IDS)
        whole = time.perf_counter() - start
        for share in (0.1, 0.5):
            timer = threading.Timer(share * whole, team.cancel)
            timer.start()
            start = time.perf_counter()
            with pytest.raises(_core.Cancelled, match="the step was cancelled"):
                while True:  # a cancel between two steps is forgotten: only a running one can end
                    r.run(IDS)
                    if not timer.is_alive():
                        timer = threading.Timer(share * whole, team.cancel)
                        timer.start()
            assert time.perf_counter() - start < 10 * whole + 1
            timer.join()
        team.cancel()  # nothing runs: nothing happens to the next one
        same_bits(r.run(IDS), wanted)


def test_interrupt_ends_the_step_and_not_the_team(sheet):
    with open_team(2, 1) as team, rig(sheet, team, product, n_batch=512) as r:
        wanted = r.run(IDS)
        pressed = []

        def press():
            pressed.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.05, press)
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                r.run(IDS)
        assert time.perf_counter() - pressed[0] < 0.5
        timer.join()
        same_bits(r.run(IDS), wanted)


def test_a_second_step_is_refused_and_harms_not_the_first(sheet):
    with open_team(1, 2) as team, rig(sheet, team, product, n_batch=512) as r:
        wanted, refused = r.run(IDS), []

        def insist(ids):
            for _ in range(1000):
                try:
                    return r.run(ids, fill=False)
                except ValueError as e:
                    refused.append(str(e))
                    time.sleep(0.001)

        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(insist, [IDS, IDS[:1]] * 4):
                same_bits(found, wanted[: len(found)])
        assert refused and set(refused) == {"the team is still at work; wait for it before handing it another step"}


def test_a_forked_child_is_told_and_the_parent_goes_on(sheet):
    with open_team(2, 1) as team, rig(sheet, team, product, n_batch=512) as r:
        wanted = r.run(IDS[:8])
        ends = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with pytest.raises(ForkedProcess, match=f"loaded by process {os.getppid()}.*forked process {os.getpid()}"):
                    r.run(IDS[:8])
                with pytest.raises(ForkedProcess):
                    len(team)
                team.close()
                with open_team(2, 1) as own, rig(sheet, own, product, n_batch=512) as own_rig:
                    same_bits(own_rig.run(IDS[:8]), wanted)  # a team of its own works
                os.write(ends[1], b"fine")
            finally:
                os._exit(0)
        end = time.monotonic() + 20
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        os.close(ends[1])
        assert os.read(ends[0], 9) == b"fine"
        os.close(ends[0])
        same_bits(r.run(IDS[:8]), wanted)


def test_openmp_limits_are_told_not_obeyed_silently():
    out = python("""if True:
        from numainfer import _core
        try:
            _core.Team([0, 0, 0], [0, 0, 0])
        except _core.NumaInferError as e:
            print(e)
    """, OMP_THREAD_LIMIT="2")
    assert "OpenMP gave 2 threads where 3 were asked for; look at OMP_THREAD_LIMIT" in out


@pytest.mark.parametrize("settings", [{"OMP_NUM_THREADS": "1"}, {"OMP_PROC_BIND": "true"}, {"OMP_DYNAMIC": "true"},
                                      {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "infinite"}], ids=str)
def test_openmp_settings_of_the_user_change_nothing(settings):
    out = python("""if True:
        import os, time
        from core_tools import CPUS
        mine = os.sched_getaffinity(0)
        from numainfer import _core
        team = _core.Team([CPUS[0], CPUS[-1]], [0, 0])
        arena = _core.Arena(1 << 16)
        team.read_time([arena.address], 1 << 16, 1)
        time.sleep(0.02)
        before = time.process_time()
        time.sleep(0.2)
        used = time.process_time() - before
        assert team.cpus() == [CPUS[0], CPUS[-1]] and used < 0.02, (team.cpus(), used)
        team.close()
        # The runtime itself may bind the thread that first loads it; a team of ours must not.
        print(os.sched_getaffinity(0) == mine or os.environ.get("OMP_PROC_BIND"))
    """, **settings)
    assert out.strip() in ("True", "true")


def test_other_openmp_runtimes_are_reported(tmp_path):
    pytest.importorskip("cyllama", reason="the peer's wheel, which carries an OpenMP runtime of its own, is not installed")
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
if sys.argv[2] == "other":
    import cyllama.llama.llama_cpp
import numainfer as ni
ni.load(sys.argv[1]).close()
"""
    path = tiny(tmp_path, "llama", "Q4_0")
    assert "2 OpenMP runtimes are in this process" in python(code, path, "other")
    assert "OpenMP" not in python(code, path, "alone")
