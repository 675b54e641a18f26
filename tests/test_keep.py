"""Weights that stay in shared memory: whole or not there, whoever is killed; of one user, of one file; the same bits as any others."""

import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from core_tools import TESTS, open_team, python
from tiny_mixture import tiny_mixture
from tiny_models import tiny

import numainfer as ni
from numainfer import _core
from numainfer.cli.main import main
from numainfer.engine import keep
from numainfer.engine.weights import FORMATS, Matrix, Vector
from numainfer.gguf.file import GGUFFile
from numainfer.errors import KeepError, OutOfNodeMemory, PlacementError
from numainfer.machine import pages, placement, shared, topology as topologies
from numainfer.machine.limits import Allowance, Limits

PROMPT = [5, 9, 14, 3, 60, 61, 62, 7]
pytestmark = pytest.mark.skipif(not os.path.isdir(shared.SHM), reason="no /dev/shm here")

# What a process of a test begins with: its own folder of shared memory.  `answer` prints what is asked of a model.
CHILD = """
import json, logging, os, signal, sys, time
import numainfer as ni
from numainfer.engine import keep
from numainfer.machine import shared, topology as topologies
shared.SHM, path = sys.argv[1:3]

def answer(model):
    ids = model.generate([5, 9, 14, 3, 60, 61, 62, 7], max_tokens=12, ignore_eos=True).token_ids
    kept = model.runtime.engine.replicas.kept
    print(json.dumps({"ids": list(ids), "filled": kept and kept.filled, "policy": model.placement.policy}), flush=True)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def shm(monkeypatch):
    """A folder in shared memory that stands for all of it."""
    folder = f"{shared.SHM}/numainfer-test-{os.getpid()}"
    os.mkdir(folder)
    monkeypatch.setattr(shared, "SHM", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keep")
    return {"llama": tiny(folder, "llama", "Q4_K", heads=4, kv_heads=2, layers=4, width=512, feed_forward=1024),
            "mixture": tiny_mixture(folder)}  # fmt: skip


def child(shm, path, code, **environment):
    return python(CHILD + code, shm, path, **environment)


def start(shm, path, code, **environment):
    """A process that runs the code, with a pipe for what it says."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), **environment}
    return subprocess.Popen([sys.executable, "-c", CHILD + code, shm, path], stdout=subprocess.PIPE, text=True, env=env)


def ids(model):
    return list(model.generate(PROMPT, max_tokens=12, ignore_eos=True).token_ids)


def left(shm):
    """All files, but empty locks."""
    found = [path for path in Path(shm).rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(shared.path())) for path in found if path.stat().st_size)


def files(name, copies=1):
    return sorted([f"{name}/about.json", *(f"{name}/copy-{i}" for i in range(copies))])


def filled(model):
    return model.runtime.engine.replicas.kept.filled


# ---- the same bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "nodes", "policy", "copies"), [
    ("llama", 1, "auto", 1), ("llama", 2, "auto", 2), ("llama", 2, "replicate", 2), ("llama", 2, "shard", 2), ("llama", 2, "interleave", 1),
    ("llama", 2, "local", 1), ("mixture", 2, "experts=shard,*=replicate", 2), ("mixture", 2, "shard", 2),
])  # fmt: skip
def test_kept_weights_give_the_same_bits_in_every_process(shm, paths, monkeypatch, model, nodes, policy, copies):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
    path = paths[model]
    with ni.load(path, placement=policy) as own:
        wanted, entries = ids(own), own.runtime.engine.replicas
        bytes_ = [arena.read(0, arena.bytes) for arena in entries.arenas]
    with ni.load(path, placement=policy, keep="a") as first:
        assert filled(first) and ids(first) == wanted and left(shm) == files("a", copies)
        said = json.loads(child(shm, path, f"answer(ni.load(path, placement={policy!r}, keep='a'))"))
        assert said == {"ids": wanted, "filled": False, "policy": first.placement.policy}
    with ni.load(path, placement=policy, keep="a") as again:  # nobody has it now
        assert not filled(again) and ids(again) == wanted
        for arena, packed in zip(again.runtime.engine.replicas.arenas, bytes_, strict=True):
            assert arena.read(0, len(packed)) == packed
        assert all(node.verified == 1 for node in again.placement.nodes)


def test_a_layout_knows_all_that_is_packed():
    """Constants, which may depend on the context; types, cuts and nodes."""
    ones, matrix = np.ones(4), Matrix("m", "Q8_0", 64, 64)

    def layout(values=ones, other=matrix, nodes=(0, 1), policy="shard", cut=2):
        return keep.Keeper.layout(None, [Vector("v", values), other], nodes, policy, {"m": [0, cut, 4]})

    others = [layout(2 * ones), layout(other=replace(matrix, type="F32")), layout(other=replace(matrix, first=16)), layout(nodes=(0, 0)),
              layout(policy="replicate"), layout(cut=3), layout(other=replace(matrix, tensor="n"))]  # fmt: skip
    assert layout() == layout(ones.copy()) and layout() not in others


def test_auto_takes_what_is_kept(shm, paths, monkeypatch):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    ni.load(paths["llama"], placement="shard", keep="a").close()
    with ni.load(paths["llama"], keep="a") as model:
        assert model.placement.policy == "shard" and model.placement.reason == "such copies are kept" and not filled(model)


def test_what_is_kept_needs_no_room_again(shm, paths, monkeypatch):
    """Neither on the nodes nor in the file system: it is there."""
    ni.load(paths["llama"], keep="a").close()
    with ni.load(paths["llama"]) as own:
        free = sum(arena.bytes for arena in own.runtime.engine.replicas.arenas)  # less what stays free, and what is beside the weights
    monkeypatch.setattr(shared, "room", lambda: 0)
    monkeypatch.setattr(topologies, "node_memory", lambda *_: (free, free))
    with pytest.raises(OutOfNodeMemory):
        ni.load(paths["llama"], n_ctx=64, n_batch=16)
    with ni.load(paths["llama"], keep="a", n_ctx=64, n_batch=16) as model:
        assert not filled(model)


def test_copies_are_mapped_to_read_only(shm, paths):
    """By whoever filled them, too; a write is a fault and not a change for all."""
    code = """
with ni.load(path, keep="a") as model:
    (arena,) = model.runtime.engine.replicas.arenas
    line = next(line for line in open("/proc/self/maps") if line.startswith(f"{arena.address:x}-"))
    print(line.split()[1], line.split()[-1], shared.kept_models()[0].users() == [os.getpid()])
"""
    for _ in range(2):
        assert child(shm, paths["llama"], code).split() == ["r--s", f"{shared.path()}/a/copy-0", "True"]


# ---- whoever is killed --------------------------------------------------------------------------------------------------

MOMENTS = {
    "before its files are there": "shared.Folder.create = die",
    "before it has pages": "keep._populate = die",
    "while it takes pages": "import numainfer._core as c; keep._STEP = 1 << 21; n = [0]\nclass A(c.Arena):\n def populate(self, *a):\n"
    "  n[0] += 1\n  return c.Arena.populate(self, *a) if n[0] < 2 else die()\nc.Arena = A",
    "while it says how many": "progress = die",
    "while it packs": "progress = lambda done, total: done < total or die()",
    "when all is packed": "keep._verify = die",
    "before it publishes": "shared.Folder.publish = die",
    "in the midst of publishing": "os.rename = die",
    "in the midst of its record": "json.dump = die",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_filler_leaves_nothing(shm, paths, moment):
    process = start(shm, paths["llama"], f"progress = False\n{MOMENTS[moment]}\nni.load(path, keep='a', progress=progress)\nprint('alive')")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and said == ""
    with contextlib.suppress(FileNotFoundError):  # whatever stands there is not taken for whole
        assert "a" not in os.listdir(shared.path())
    assert shared.kept_models() == [] and left(shm) == []
    with ni.load(paths["llama"], keep="a") as model, ni.load(paths["llama"]) as own:
        assert filled(model) and ids(model) == ids(own)
    assert left(shm) == files("a")


def test_another_name_sweeps_what_the_dead_left(shm, paths):
    process = start(shm, paths["llama"], "ni.load(path, keep='a', progress=die)")
    assert process.wait(60) == -signal.SIGKILL and left(shm) == ["a.filling/copy-0", "a.lock"]
    ni.load(paths["llama"], keep="b").close()
    assert left(shm) == files("b") and sorted(os.listdir(shared.path())) == ["b", "b.lock"]


def test_killed_at_any_time(shm, paths):
    """Six processes one after the other, killed a little later each; then one that is not."""
    with ni.load(paths["llama"]) as own:
        wanted = ids(own)
    for i in range(6):
        process = start(shm, paths["llama"], "print('on', flush=True); ni.load(path, keep='a'); print('done', flush=True)")
        process.stdout.readline()
        time.sleep(0.12 + 0.06 * i)
        process.kill()
        process.communicate()
        for kept in shared.kept_models():
            with shared.Folder() as folder:
                shared.close_all(folder.open_copies(kept.name, kept.about["sizes"]))
    with ni.load(paths["llama"], keep="a") as model:
        assert ids(model) == wanted
    assert left(shm) == files("a")


SLOW = """
def progress(done, total):
    if done == total:
        print("filling", flush=True)
        sys.stdin.readline() if wait else time.sleep(1)
"""


def test_two_at_once_one_fills(shm, paths):
    slow = SLOW.replace("sys.stdin.readline() if wait else ", "")
    first = start(shm, paths["llama"], f"{slow}\nanswer(ni.load(path, keep='a', progress=progress))")
    assert first.stdout.readline() == "filling\n"
    with pytest.raises(KeepError, match=f"a is being filled or attached to by process {first.pid}; wait"):
        shared.drop("a")
    assert shared.kept_models() == [] and "a.filling" in os.listdir(shared.path())  # what lives is not swept
    second = json.loads(child(shm, paths["llama"], "answer(ni.load(path, keep='a', progress=die))"))
    (one,) = map(json.loads, first.communicate(timeout=60)[0].splitlines())
    assert one["filled"] and not second["filled"] and one["ids"] == second["ids"]


def test_who_waits_for_one_that_is_killed_fills(shm, paths):
    slow = SLOW.replace("sys.stdin.readline() if wait else time.sleep(1)", "time.sleep(100)")
    first = start(shm, paths["llama"], f"{slow}\nni.load(path, keep='a', progress=progress)")
    assert first.stdout.readline() == "filling\n"
    second = start(shm, paths["llama"], "answer(ni.load(path, keep='a'))")
    time.sleep(0.7)
    assert second.poll() is None
    first.kill()
    first.communicate()
    said, _ = second.communicate(timeout=60)
    assert json.loads(said)["filled"] and left(shm) == files("a")


def test_threads_of_a_process_fill_once(shm, paths):
    found, lock = [], threading.Lock()

    def load():
        model = ni.load(paths["llama"], keep="a")
        with lock:
            found.append(model)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(filled(model) for model in found) == [False, False, True]
    assert len({tuple(ids(model)) for model in found}) == 1
    for model in found:
        model.close()


def test_a_forked_child_holds_no_lock_for_its_parent(shm, paths):
    """Forked in the midst of filling, it lives on when the filler is killed, and blocks nobody."""
    code = """
def progress(done, total):
    if done == total:
        child = os.fork()
        if child == 0:
            os.close(1)
            time.sleep(30)
            os._exit(0)
        print(child, flush=True)
        die()
ni.load(path, keep="a", progress=progress)
"""
    first = start(shm, paths["llama"], code)
    forked = int(first.stdout.readline())
    try:
        assert first.wait(60) == -signal.SIGKILL
        end = time.monotonic() + 20  # the child lets go as soon as it runs, which on a busy machine is later than its parent's end
        while (shared.kept_models(), left(shm)) != ([], []) and time.monotonic() < end:
            time.sleep(0.01)
        assert shared.kept_models() == [] and left(shm) == []
        with ni.load(paths["llama"], keep="a") as model:
            assert filled(model)
    finally:
        os.kill(forked, signal.SIGKILL)
        first.communicate()


def test_who_waited_for_a_lock_that_was_taken_away_holds_one(shm, monkeypatch, caplog):
    """A filler that fails takes its lock's file away; who waits for that one must not share the name with who makes the next."""
    seen = []
    monkeypatch.setattr(shared, "_PATIENCE", 0.05)

    def wait():
        with shared.Folder() as folder, folder.locked("a"):
            seen.append("a.lock" in os.listdir(folder.fd))

    with shared.Folder(create=True) as folder:
        with folder.locked("a"):
            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.2)
            assert seen == []
        thread.join()
        assert caplog.text.count(f"keep = 'a': waiting for process {os.getpid()}, which fills it") == 1
        assert seen == [True] and os.listdir(folder.fd) == []


def test_loading_it_within_its_own_progress_is_refused(shm, paths):
    with pytest.raises(RuntimeError, match="this thread is in the midst of loading the same kept model"):
        ni.load(paths["llama"], keep="a", progress=lambda *_: ni.load(paths["llama"], keep="a"))
    assert left(shm) == [] and os.listdir(shared.path()) == []


def test_an_error_while_filling_leaves_nothing(shm, paths):
    def progress(done, total):
        raise KeyboardInterrupt

    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        ni.load(paths["llama"], keep="a", progress=progress)
    assert os.listdir(shared.path()) == [] and "keep-" not in Path("/proc/self/maps").read_text()
    assert len(os.listdir("/proc/self/fd")) <= fds
    with ni.load(paths["llama"], keep="a") as model:
        assert filled(model)


# ---- one file, one form -------------------------------------------------------------------------------------------------


def test_a_file_that_changed_is_packed_again(shm, tmp_path, caplog):
    path = tiny(tmp_path, "llama", "Q8_0", name="m")
    ni.load(path, keep="a").close()
    with ni.load(path, keep="a") as same:
        assert not filled(same)
    tiny(tmp_path, "llama", "Q8_0", name="m", seed=7)  # in its place, of the same size
    os.utime(path, ns=(1, 1))
    with caplog.at_level(logging.WARNING, "numainfer"), ni.load(path, keep="a") as model, ni.load(path) as own:
        assert filled(model) and ids(model) == ids(own)
    assert "keep = 'a': the file changed since it was kept; it is filled again" in caplog.text


@pytest.mark.parametrize("change", ["touch", "rewrite", "replace", "part"])
def test_every_change_of_a_file_is_seen(shm, tmp_path, change):
    path = tiny(tmp_path, "llama", "Q8_0", name="m", parts=3 if change == "part" else 1)
    ni.load(path, keep="a").close()
    touched = sorted(tmp_path.glob("*.gguf"))[-1]
    status = touched.stat()
    if change == "replace":
        shutil.copy2(touched, tmp_path / "other")
        os.replace(tmp_path / "other", touched)
    elif change == "rewrite":  # and the times put back
        touched.write_bytes(touched.read_bytes())
        os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with ni.load(path, keep="a") as model:
        assert filled(model)


def test_another_packing_is_never_read(shm, paths, monkeypatch, caplog):
    ni.load(paths["llama"], keep="a").close()
    monkeypatch.setattr(keep, "PACKING", keep.PACKING + 1)
    with ni.load(paths["llama"], keep="a") as model:
        assert filled(model)
    assert "another version of numainfer packed it since it was kept" in caplog.text


def test_a_record_that_cannot_be_read_is_of_another_version(shm, paths):
    ni.load(paths["llama"], keep="a").close()
    Path(shared.path(), "a", shared.ABOUT).write_text("{")
    (kept,) = shared.kept_models()
    assert kept.row()[1] == "unknown" and kept.to_dict()["n_bytes"] == []
    with ni.load(paths["llama"], keep="a") as model:
        assert filled(model)


def test_a_name_that_holds_another_model(shm, paths):
    ni.load(paths["llama"], keep="a").close()
    with pytest.raises(KeepError, match=rf"'a': that name holds another model, .*{paths['llama'].name}\); take another name"):
        ni.load(paths["mixture"], keep="a")
    with ni.load(paths["llama"], keep="a") as model:
        assert not filled(model)


def test_a_name_that_holds_another_form(shm, paths, monkeypatch):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    ni.load(paths["llama"], placement="shard", keep="a").close()
    with pytest.raises(KeepError, match="name holds placement 'shard' on nodes 0, 1; wanted placement 'replicate' on nodes 0, 1. Take"):
        ni.load(paths["llama"], placement="replicate", keep="a")
    with pytest.raises(KeepError, match="wanted placement 'local' on nodes 1"):
        ni.load(paths["llama"], nodes=[1], keep="a")
    monkeypatch.setattr(keep.Keeper, "layout", lambda self, *a, own=keep.Keeper.layout: own(self, *a) | {"layout": "cut for other workers"})
    with pytest.raises(KeepError, match="holds placement 'shard' on nodes 0, 1 for another n_ctx; wanted this form"):
        ni.load(paths["llama"], placement="shard", keep="a")


def test_a_shard_for_other_threads_names_them(shm, paths, monkeypatch):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    ni.load(paths["llama"], placement="shard", keep="a").close()
    with shared.Folder() as folder:
        kept = folder.read("a")
    assert kept.about["threads"] == [1, 1]
    other = replace(kept, about=kept.about | {"threads": [2, 3], "layout": "cut for other workers"})
    monkeypatch.setattr(shared.Folder, "read", lambda self, name: other)
    with pytest.raises(KeepError, match=r"'shard' on nodes 0, 1 for 2 and 3 threads on them; wanted 1 and 1 threads. Take another name, .*"
                                        "--drop a, or attach with threads = 5"):  # fmt: skip
        ni.load(paths["llama"], placement="shard", keep="a")


NAMES = ("", "../a", "a/b", ".a", "a b", "a.lock", "a.filling", "a" * 65, "\u00e4", "a\n")


@pytest.mark.parametrize(("name", "error"), [*((name, ValueError) for name in NAMES), (True, TypeError), (b"a", TypeError)])
def test_names(shm, paths, name, error):
    with pytest.raises(error, match="keep"):
        ni.load(paths["llama"], keep=name)
    assert os.listdir(shm) == []


# ---- one user -----------------------------------------------------------------------------------------------------------


def test_only_this_user_can_read_it(shm, paths):
    old = os.umask(0)
    try:
        ni.load(paths["llama"], keep="a").close()
    finally:
        os.umask(old)
    found = {path.name: path.stat() for path in Path(shm).rglob("*")}
    assert os.path.basename(shared.path()).endswith(f"-{os.geteuid()}")
    assert {name: oct(status.st_mode)[-4:] for name, status in found.items() if name != "a.lock"} == {
        Path(shared.path()).name: "0700", "a": "0700", "copy-0": "0600", "about.json": "0600"}  # fmt: skip
    assert {status.st_uid for status in found.values()} == {os.geteuid()}


@pytest.mark.parametrize("which", ["", "a", "a/copy-0", "a/about.json"])
@pytest.mark.parametrize("how", ["mode", "owner", "link"])
def test_what_others_could_write_is_refused(shm, paths, which, how):
    ni.load(paths["llama"], keep="a").close()
    path = Path(shared.path(), which)
    if how == "mode":
        path.chmod(path.stat().st_mode | 0o040)
    elif how == "owner":
        if os.geteuid():
            pytest.skip("only root can give files away")
        os.chown(path, 65534, -1)
    else:
        path.rename(f"{shm}/moved")
        path.symlink_to(f"{shm}/moved")
    with pytest.raises(KeepError, match="wanted 0[67]00 of user|cannot be opened: (Not a directory|Too many levels.*); it is not what"):
        ni.load(paths["llama"], keep="a")


@pytest.mark.parametrize("size", [0, -4096, 4096])
def test_a_copy_that_somebody_cut_is_refused(shm, paths, size):
    """Before it is mapped: reading there would be SIGBUS."""
    ni.load(paths["llama"], keep="a").close()
    file = Path(shared.path(), "a", "copy-0")
    os.truncate(file, max(0, file.stat().st_size + size) if size else 0)
    with pytest.raises(KeepError, match="bytes, .* of them in memory, wanted .*: somebody cut it; numainfer keep --drop a"):
        ni.load(paths["llama"], keep="a")
    shared.drop("a")
    with ni.load(paths["llama"], keep="a") as model:
        assert filled(model)


def test_holes_are_refused(shm, paths):
    ni.load(paths["llama"], keep="a").close()
    file = Path(shared.path(), "a", "copy-0")
    size = file.stat().st_size
    os.truncate(file, size - 4096)
    os.truncate(file, size)
    if file.stat().st_blocks * 512 >= size:
        pytest.skip("a huge page is not cut")
    with pytest.raises(KeepError, match="somebody cut it"):
        ni.load(paths["llama"], keep="a")


# ---- room ---------------------------------------------------------------------------------------------------------------


def test_a_full_file_system_is_told_before_anything_begins(shm, paths, monkeypatch):
    monkeypatch.setattr(shared, "room", lambda: 1_000_000)
    monkeypatch.setattr(shared.Folder, "create", None)
    with pytest.raises(OutOfNodeMemory, match=r"keep = 'a': .* has 1.0 MB free \(1000000 bytes\), need .* MB \(\d+ bytes\); drop what"):
        ni.load(paths["llama"], keep="a")
    assert os.listdir(shared.path()) == []


def test_a_control_groups_limit_counts(shm, paths, monkeypatch):
    """Shared memory is its memory, too."""
    monkeypatch.setattr(topologies, "limits", lambda: Limits(None, Allowance(1_000_000, 1_000_000, "memory.max")))
    with pytest.raises(OutOfNodeMemory, match=r"control group allows 1.0 MB \(memory.max\): need"):
        ni.load(paths["llama"], keep="a")
    assert os.listdir(shared.path()) == []


def test_ctrl_c_while_pages_are_taken(shm, paths, monkeypatch):
    """It is heard at once, and no thread goes on."""
    monkeypatch.setattr(_core, "Arena", _Interrupted)
    monkeypatch.setattr(keep, "_STEP", 1 << 21)
    with pytest.raises(KeyboardInterrupt):
        ni.load(paths["llama"], keep="a")
    assert os.listdir(shared.path()) == [] and not [t for t in threading.enumerate() if t.name == "numainfer-keep"]


class _Interrupted(_core.Arena):
    def populate(self, fd, at, n_bytes, spread=1):
        if at == 0:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return 0


def test_progress_counts_pages_and_then_the_file(shm, paths, monkeypatch):
    monkeypatch.setattr(_core, "Arena", _Slow)
    monkeypatch.setattr(keep, "_STEP", 1 << 21)
    seen = []
    with ni.load(paths["llama"], keep="a", progress=lambda *of: seen.append(of)) as model, GGUFFile(paths["llama"]) as gguf:
        (arena,) = model.runtime.engine.replicas.arenas
        pages, packed = arena.bytes, model.runtime.engine.replicas.read_bytes(gguf)
    assert {total for _, total in seen} == {pages + packed} and seen == sorted(seen)
    assert seen[0][0] <= pages and any(done == pages for done, _ in seen)
    assert seen[-1] == (pages + packed, pages + packed)
    seen.clear()
    ni.load(paths["llama"], progress=lambda *of: seen.append(of)).close()
    assert seen[-1] == (packed, packed)


class _Slow(_core.Arena):
    def populate(self, fd, at, n_bytes, spread=1):
        time.sleep(0.1)
        return super().populate(fd, at, n_bytes, spread)


def test_a_file_system_that_fills_up_meanwhile(shm, paths, monkeypatch):
    """Nobody dies of SIGBUS, and nothing is left."""
    monkeypatch.setattr(_core, "Arena", _Full)
    with pytest.raises(OutOfNodeMemory, match="No space left on device.*nothing is kept"):
        ni.load(paths["llama"], keep="a")
    assert os.listdir(shared.path()) == []


class _Full(_core.Arena):
    def populate(self, fd, at, n_bytes, spread=1):
        return errno.ENOSPC


SMALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x20000)
libc.mount(b"none", b"/", None, 0x44000, None)
if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=4M"):
    print("no right to mount")
    sys.exit()
shared.SHM = "/dev/shm"
%s
try:
    ni.load(path, keep="a")
except ni.OutOfNodeMemory as e:
    print(e)
print(os.listdir(shared.path()))
"""


@pytest.mark.parametrize("told", [True, False])
def test_a_small_file_system(shm, paths, told):
    """A real one of 4 MB; once its size is not asked for first."""
    said = child(shm, paths["llama"], SMALL % ("" if told else "shared.check_room = lambda *_: None"))
    if "no right" in said:
        pytest.skip("only root can mount")
    error, names = said.splitlines()
    assert names == "[]" and ("/dev/shm has 4.2 MB free (" if told else "No space left on device") in error


def test_no_shared_memory(shm, paths, monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "SHM", f"{shm}/missing")
    with pytest.raises(KeepError, match="there is no .*missing: nothing can be kept; mount it"):
        ni.load(paths["llama"], keep="a")
    assert ni.load(paths["llama"]).close() is None
    monkeypatch.setattr(shared, "SHM", str(tmp_path))
    monkeypatch.setattr(pages, "read", lambda path, own=pages.read: "1 1 0:1 / / rw - ext4 /dev/x rw" if "mountinfo" in path else own(path))
    with pytest.raises(KeepError, match="is of type ext4, wanted tmpfs"):
        ni.load(paths["llama"], keep="a")


# ---- dropping and showing -----------------------------------------------------------------------------------------------


def test_dropped_while_in_use(shm, paths):
    with ni.load(paths["llama"], keep="a") as model:
        wanted = ids(model)
        used = shared.kept_models()[0]
        assert used.users() == [os.getpid()] and used.n_bytes == sum(arena.bytes for arena in model.runtime.engine.replicas.arenas)
        assert shared.drop("a").name == "a" and os.listdir(shared.path()) == []
        assert ids(model) == wanted
        with ni.load(paths["llama"], keep="a") as again:  # another one now
            assert filled(again) and ids(again) == wanted
        model.placement.verify()
    with pytest.raises(KeepError, match="nothing is kept as 'b'; there is a"):
        shared.drop("b")
    with pytest.raises(ValueError, match="keep = '../a'"):
        shared.drop("../a")


def test_memory_goes_with_the_last_user(shm, paths):
    model = ni.load(paths["llama"], keep="a")
    before = shared.room()
    shared.drop("a")
    assert shared.room() <= before + 1_000_000
    size = sum(arena.bytes for arena in model.runtime.engine.replicas.arenas)
    model.close()
    assert shared.room() >= before + size - 4_000_000


def test_the_command(shm, paths, capsys):
    path = str(paths["llama"])
    assert main(["keep", "--list"]) == 0 and capsys.readouterr().out == "nothing is kept\n"
    assert main(["keep", path]) == 0
    name = paths["llama"].stem
    out = capsys.readouterr().out
    assert f"kept as {name!r}, filled" in out and f"keep={name!r}" in out
    assert main(["keep", path, "--name", "b", "-q"]) == 0
    assert main(["run", path, "--raw", "--keep", "b", "-n", "2", "-q", "x"]) == 0
    capsys.readouterr()
    assert main(["keep", "--list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["name", "b", name] and all(row.endswith("nobody") for row in rows[1:])
    with ni.load(path, keep="b"):
        assert main(["keep", "--list", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert [(kept["name"], kept["users"]) for kept in found] == [("b", [os.getpid()]), (name, [])]
    assert found[0]["paths"] == [os.path.realpath(path)] and found[0]["verified"] == [1.0]
    assert main(["info", path, "--no-measure"]) == 0
    assert "as 'b', " in capsys.readouterr().out
    assert main(["info", path, "--no-measure", "--json"]) == 0
    assert [kept["name"] for kept in json.loads(capsys.readouterr().out)["kept"]] == ["b", name]
    assert main(["keep", "--drop", "b"]) == 0 and "b: " in capsys.readouterr().out
    assert main(["keep", "--drop", "b"]) == 1 and "nothing is kept as 'b'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--list", "--drop", "a"], ["x.gguf", "--list"], ["--json", "--drop", "a"],
                                   ["--name", "a", "--list"], ["x.gguf", "--keep", "a"]])  # fmt: skip
def test_wrong_usage(shm, words, capsys):
    assert main(["keep", *words]) == 2
    said = capsys.readouterr().err
    assert "wanted one of" in said or "goes with" in said


@pytest.mark.parametrize(("file", "name"), [("m-00001-of-00003.gguf", "m"), ("Ünï code.gguf", "n--code"), ("a" * 90 + ".gguf", "a" * 64),
                                            ("é.gguf", "model"), ("ok-1.5.gguf", "ok-1.5")])  # fmt: skip
def test_names_of_files(file, name):
    from numainfer.cli.keep import _name_of

    assert _name_of(Path(file)) == name and shared.check_name(name)


# ---- pages --------------------------------------------------------------------------------------------------------------


def test_placement_says_how_it_is_kept(shm, paths):
    with ni.load(paths["llama"], keep="a") as model:
        kept = model.runtime.engine.replicas.kept
        assert "kept as 'a', filled 20" in str(model.placement)
        assert ("huge=advise" in str(model.placement)) == (kept.huge[0] < 0.99)
    with ni.load(paths["llama"], keep="a") as model:
        assert "kept as 'a', attached to; filled 20" in str(model.placement) and "attached to; filled" in model.placement._repr_html_()


@pytest.mark.parametrize(("setting", "options", "said"), [
    ("always within_size advise [never] deny force", "rw,size=1k", "shmem_enabled is never, {} has huge=never; .* remount,huge=advise"),
    ("always within_size advise never [deny] force", "rw,huge=always", "shmem_enabled is deny, {} has huge=always; .* echo advise > /sys"),
    ("", "rw", "shmem_enabled is missing"),
])  # fmt: skip
def test_why_there_are_no_huge_pages(shm, monkeypatch, setting, options, said):
    mounts = f"1 1 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / /dev/shm rw - tmpfs t {options}\n3 1 0:2 / /dev/shmoo rw - ext4 t rw"
    monkeypatch.setattr(pages, "read", lambda path: mounts if "mountinfo" in path else setting)
    assert re.search(said.format(shm), shared.huge_story()) and shared.mount() == ("tmpfs", options)


def test_a_page_on_another_node_is_told(shm, paths, monkeypatch):
    """Of those that an attaching process samples, and of those that were looked up when it was filled."""
    path = paths["llama"]
    ni.load(path, keep="a").close()
    with monkeypatch.context() as patch:
        patch.setattr(_core, "numa_max_node", lambda: 1)
        patch.setattr(_core, "Arena", _Stray)
        with pytest.raises(PlacementError, match=r"25.0% of node 0's weights, kept as 'a', lie on other nodes; drop them .*keep --drop a"):
            ni.load(path, keep="a")
        with pytest.warns(ni.PlacementWarning, match="25.0% of node 0's weights"):
            model = ni.load(path, keep="a", verify="warn")
        assert model.placement.nodes[0].verified == 0.75
        model.close()
        with pytest.raises(PlacementError, match="bytes of copy 0 lie on other nodes and could not be moved; nothing is kept"):
            ni.load(path, keep="b")
        assert [kept.name for kept in shared.kept_models()] == ["a"]
        with pytest.warns(ni.PlacementWarning):
            ni.load(path, keep="b", verify="warn").close()
    with pytest.raises(PlacementError, match="25.0% of node 0's weights, kept as 'b'"):  # now all samples lie right
        ni.load(path, keep="b")


class _Stray(_core.Arena):
    def sample(self, n_nodes, samples):
        assert samples == placement.SAMPLES
        return np.array([3 << 20, 1 << 20])

    def count(self, n_nodes, home=-1, huge=False):
        return np.array([3 << 20, 1 << 20])


def shared_arena(folder, n_bytes, **options):
    fd = os.open(f"{folder}/try", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, n_bytes)
    return _core.Arena(n_bytes, fd=fd, **options), fd


def test_sampling_touches_and_counts(shm):
    arena, fd = shared_arena(shm, 64 << 20)
    assert arena.populate(fd, 0, arena.bytes) == 0
    again = _core.Arena(64 << 20, fd=fd, write=False)
    for n in (1, 2, 100, 4096, 5000, 10**6):
        found = again.sample(_core.numa_max_node() + 1, n)
        assert isinstance(found, int) or found.sum() == min(n, (64 << 20) // 4096) * 4096
    os.close(fd)


def test_populating_takes_every_page_of_its_part(shm):
    arena, fd = shared_arena(shm, 16 << 20)
    assert arena.populate(fd, 4 << 20, 3 << 20) == 0
    assert os.fstat(fd).st_blocks * 512 == 3 << 20 or os.fstat(fd).st_blocks * 512 == 4 << 20
    with pytest.raises(ValueError, match="of an arena of"):
        arena.populate(fd, 8 << 20, 9 << 20)
    ctypes.memset(arena.address + (4 << 20), 7, 10)
    assert arena.seal() == 0 and arena.read(4 << 20, 4) == b"\7\7\7\7"
    assert os.pread(fd, 2, 4 << 20) == b"\7\7"
    os.close(fd)


PACKED = {
    "F32": "9106966a", "F16": "557da14e", "BF16": "600e15df", "Q4_0": "e2fd271d", "Q4_1": "eeca0ca8", "Q5_0": "2756291f",
    "Q5_1": "3a8adf03", "Q8_0": "d8a83b8d", "Q4_K": "465c2e10", "Q5_K": "eb9644ec", "Q6_K": "679c8488", "Q2_K": "6d41a247",
    "Q3_K": "25a0d63d", "TQ1_0": "394fac09", "TQ2_0": "128162b1", "Q1_0": "723c0f00", "Q2_0": "4de43850", "IQ4_NL": "2432a69c",
    "IQ4_XS": "c4749c56", "MXFP4": "28984ea5", "NVFP4": "a2672fec", "IQ3_XXS": "92bbd4e8", "IQ3_S": "88bcb5ea", "IQ2_XXS": "ecf77524",
    "IQ2_XS": "dfb9a95b", "IQ2_S": "bb9f8220", "IQ1_S": "e20c1284", "IQ1_M": "63628638",
    "IQ4_K": "f5f4891e", "IQ5_K": "c987c040", "IQ6_K": "347f710f", "IQ3_K": "410116dd", "IQ2_K": "c497b84f", "Q6_0": "4e06e243",
    "IQ4_KS": "e69f5876", "IQ5_KS": "cb0723fb", "IQ3_KS": "5a9b248f", "IQ2_KS": "8ddfedf1", "IQ2_KL": "e3ac5191",
    "IQ4_KSS": "5e5d9b47", "IQ1_KT": "816a8c3e", "IQ2_KT": "7846c89e", "IQ3_KT": "a82c6c4a", "IQ4_KT": "fbe47b69",
}  # fmt: skip


def test_packing_has_not_changed(tmp_path):
    """Of every format, what becomes of fixed bytes.  Whoever changes that raises `keep.PACKING`; a new format has a line here."""
    found = {}
    with open_team() as team, open(tmp_path / "rows", "w+b", buffering=0) as file:
        for name, kind in FORMATS.items():
            k = 2 * kind["block"] if kind["block"] > 1 else 64
            row_bytes = k // kind["block"] * kind["block_bytes"] + kind["head_bytes"]
            file.seek(0)
            file.write(hashlib.shake_128(name.encode()).digest(16 * row_bytes))
            arena = _core.Arena(_core.packed_bytes(kind["code"], 16, k))
            piece = (kind["code"], 16, k, [arena.address], None, 1), (file.fileno(), 0), row_bytes
            assert team.fill([piece], np.zeros(1, np.uint8)) == -1
            packed = arena.read(0, _core.packed_bytes(kind["code"], 16, k))
            found[name] = hashlib.blake2b(packed, digest_size=4).hexdigest()
            arena.close()
    assert (keep.PACKING, found) == (1, PACKED)


def test_attaching_takes_no_time(shm):
    """Under 0.1 s beside the tokenizer, the plan included; in the thread's own time, for the machine may be busy."""
    with ni.load("smollm2", keep="a", n_ctx=64):
        pass
    from numainfer.engine.engine import Engine
    from numainfer.gguf.file import GGUFFile
    from numainfer.gguf.sources import resolve

    times = []
    for _ in range(5):
        with GGUFFile(resolve("smollm2")) as gguf:
            before = time.thread_time()
            engine = Engine(gguf, n_ctx=64, keep="a")
            times.append(time.thread_time() - before)
            engine.close()
    assert min(times) < 0.1, times
