"""Sessions on disk: restored they go on with the same bits, wherever; what is damaged or foreign is refused by the byte."""

import json
import os
import signal
import threading
import zlib

import numpy as np
import pytest
from core_tools import python
from test_mixture_models import model as edited
from tiny_models import tiny

import numainfer as ni
from numainfer import _core
from numainfer.errors import ContextOverflow, CorruptModel, ModelClosed, ModelNotFound, SavedSessionError
from numainfer.serving import saved

CHUNK = _core.CHUNK
IDS = np.random.default_rng(3).integers(6, 120, 1000).tolist()
COMMON = {"context": 1024, "heads": 4, "kv_heads": 2, "width": 64, "feed_forward": 96, "head_width": 16}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Layers that see everything; every second with a window; all with one; latent rows; heads that do not divide evenly over nodes."""
    folder = tmp_path_factory.mktemp("saved")
    found = {"all": tiny(folder, "llama", "Q8_0", name="all", **COMMON)}
    found["some windows"] = tiny(folder, "gemma3", "Q8_0", window=100, name="some", **COMMON)
    found["windows"] = tiny(folder, "llama", "Q8_0", window=270, name="windows", **COMMON)
    found["uneven"] = tiny(folder, "llama", "Q8_0", name="uneven", **COMMON | {"heads": 3, "kv_heads": 3, "head_width": 20, "layers": 3})
    (folder / "latent").mkdir()
    found["latent"] = edited(folder / "latent", "deepseek2", {"context_length": 1024})
    return found


def load(monkeypatch, path, nodes, **options):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
    return ni.load(path, **{"n_batch": 100} | options)


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "q8_0", "f32"])
@pytest.mark.parametrize("name", ["all", "some windows", "windows", "uneven", "latent"])
def test_restored_sessions_go_on_with_the_same_bits(paths, monkeypatch, tmp_path, name, kv_type):
    """From one node to two and three, and back; the files are the same bytes."""
    n, ends, files = (300 if name == "latent" else 700), (IDS[700:720], IDS[800:840]), []
    with load(monkeypatch, paths[name], 1, kv_type=kv_type) as model, model.session() as session:
        right = [model.logits(IDS[:n] + end) for end in ends]
        answer = model.generate(IDS[:n], max_tokens=6, ignore_eos=True)
        session.logits(IDS[:n])
        session.save(tmp_path / "1")
        session.logits(IDS[: n + 30])
        session.rewind(n)
        session.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "1").read_bytes()  # what stood behind is nobody's
    for before, nodes in ((1, 2), (2, 3), (3, 1)):
        with load(monkeypatch, paths[name], nodes, kv_type=kv_type, n_batch=64) as model, model.restore(tmp_path / f"{before}") as session:
            assert session.ids == IDS[:n] and session.n_past == n
            session.save(tmp_path / f"{nodes}")
            files.append((tmp_path / f"{nodes}").read_bytes())
            with session.fork() as twin:
                done = session.generate(IDS[:n] + ends[0], max_tokens=1)
                assert done.usage.cached_tokens == n
                assert np.array_equal(session.logits(IDS[:n] + ends[0]), right[0])
                assert np.array_equal(twin.logits(IDS[:n] + ends[1]), right[1])
            with model.restore(tmp_path / f"{before}") as again, again.fork() as twin:
                twin.rewind(n - 20)
                twin.logits([*IDS[: n - 20], *ends[1]])  # into no block that the other has
                assert np.array_equal(again.logits(IDS[:n] + ends[0]), right[0])
            with model.restore(tmp_path / f"{before}") as again:
                done = again.generate(IDS[:n], max_tokens=6, ignore_eos=True)
                assert done.token_ids == answer.token_ids and done.usage.cached_tokens == n - 1
    assert files[0] == files[1] == files[2]


def test_an_answer_and_a_stream_in_its_midst(paths, monkeypatch, tmp_path):
    with load(monkeypatch, paths["all"], 1) as model, model.session() as session:
        done = session.generate(IDS[:50], max_tokens=8, ignore_eos=True)
        session.save(tmp_path / "done")
        stream = session.stream(IDS[:60], max_tokens=200, ignore_eos=True)
        next(stream)
        session.save(tmp_path / "midst")
        stream.cancel()
        with model.restore(tmp_path / "done") as again:
            assert again.ids == IDS[:50] + list(done.token_ids) and again.n_past == 57
            more = again.generate([*again.ids, 9], max_tokens=3)
            assert more.usage.cached_tokens == 57
            assert more.token_ids == model.generate([*IDS[:50], *done.token_ids, 9], max_tokens=3).token_ids
        with model.restore(tmp_path / "midst") as again:
            assert again.n_past >= 60 and again.ids[:60] == IDS[:60]
    with pytest.raises(ModelClosed):
        model.restore(tmp_path / "done")
    with pytest.raises(ModelClosed):
        session.save(tmp_path / "closed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["done", "midst"]


def test_an_empty_session(paths, monkeypatch, tmp_path):
    with load(monkeypatch, paths["some windows"], 1) as model:
        model.session().save(tmp_path / "empty")
        with model.restore(str(tmp_path / "empty")) as session:
            assert session.ids == [] and session.n_past == 0
            assert np.array_equal(session.logits(IDS[:20]), model.logits(IDS[:20]))


# ---- files that are refused ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(paths, tmp_path_factory):
    """A file of 300 positions, and where its parts begin."""
    path = tmp_path_factory.mktemp("whole") / "s"
    with ni.load(paths["some windows"], n_batch=100) as model, model.session() as session:
        session.logits(IDS[:300])
        session.save(path)
    data = path.read_bytes()
    ids = 24 + int.from_bytes(data[16:20], "little")
    chunk = 4 + 2 * 256 * 2 * 2 * 16
    first, second = (ids + 4 + 1200 + i * chunk for i in range(2))
    assert len(data) == second + 3 * chunk
    return data, {"header": 24, "ids": ids + 4, "first": first + 4, "second": second + 4}


def refuse(paths, tmp_path, data, match, name="some windows", error=SavedSessionError, **options):
    path = tmp_path / "bad"
    path.write_bytes(data)
    with ni.load(paths[name], **{"n_batch": 100} | options) as model:
        before = [pool.n_out for pool in model.runtime.engine.caches.pools]
        with pytest.raises(error, match=match) as caught:
            model.restore(path)
        assert [pool.n_out for pool in model.runtime.engine.caches.pools] == before
        assert str(path) in str(caught.value)
        return caught.value


def test_damaged_bytes(paths, whole, tmp_path):
    """Any flipped bit is found, and the part told in which it lies."""
    data, starts = whole
    rng = np.random.default_rng(0)
    places = {"header": [24, 60], "ids": [starts["ids"], starts["first"] - 5], "first": [starts["first"], starts["second"] - 5],
              "second": [starts["second"]]}  # fmt: skip
    what = {"header": "the header", "ids": "the token ids", "first": "positions 0 to 255", "second": "positions 256 to 299"}
    with ni.load(paths["some windows"], n_batch=100) as model:
        for part, at in places.items():
            for place in at:
                bad = bytearray(data)
                bad[place] ^= 1 << int(rng.integers(8))
                (tmp_path / "bad").write_bytes(bad)
                with pytest.raises(SavedSessionError, match=f"at byte {starts[part]}: {what[part]}: the bytes do not fit") as caught:
                    model.restore(tmp_path / "bad")
                assert caught.value.offset == starts[part] and caught.value.path == str(tmp_path / "bad")
        for place in rng.integers(0, len(data), 60):
            bad = bytearray(data)
            bad[place] ^= 1 << int(rng.integers(8))
            (tmp_path / "bad").write_bytes(bad)
            with pytest.raises(SavedSessionError):
                model.restore(tmp_path / "bad")
        assert [pool.n_out for pool in model.runtime.engine.caches.pools] == [0, 0]


def test_cut_files(paths, whole, tmp_path):
    data, starts = whole
    with ni.load(paths["some windows"], n_batch=100) as model:
        for n in (0, 7, 16, 18, 22, 24, 100, starts["ids"] - 4, starts["first"] + 9, len(data) - 1):
            (tmp_path / "bad").write_bytes(data[:n])
            with pytest.raises(SavedSessionError) as caught:
                model.restore(tmp_path / "bad")
            assert caught.value.offset is not None and caught.value.offset <= n
            if n >= starts["ids"]:
                assert f"the file was cut: it has {n} bytes, wanted {len(data)}" in str(caught.value)
        (tmp_path / "bad").write_bytes(data + b"x")
        with pytest.raises(SavedSessionError, match=f"at byte {len(data)}: something follows: the file has {len(data) + 1} bytes, wanted"):
            model.restore(tmp_path / "bad")


def test_foreign_files(paths, whole, tmp_path):
    data, _ = whole
    refuse(paths, tmp_path, b"GGUF" + data[4:], "at byte 0: is no saved session of numainfer")
    refuse(paths, tmp_path, data, "model: found '[0-9a-f]{32}', wanted '[0-9a-f]{32}': it was saved from another model file", name="all")
    refuse(paths, tmp_path, data, "kv_type: found 'f16', wanted 'q8_0': load the model with kv_type='f16' to restore it", kv_type="q8_0")
    refuse(paths, tmp_path, data, "holds 300 tokens, but the context holds n_ctx = 299", error=ContextOverflow, n_ctx=299)
    with ni.load(paths["some windows"]) as model:
        with pytest.raises(FileNotFoundError):
            model.restore(tmp_path / "missing")
        with pytest.raises(OSError):
            model.restore(tmp_path)
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(SavedSessionError, match="no regular file"):
            model.restore(tmp_path / "fifo")
        with pytest.raises(TypeError):
            model.restore(3)


def changed(data, **what):
    """The file with other values in its header, and a checksum that fits; None takes one out."""
    n = int.from_bytes(data[16:20], "little")
    about = json.loads(data[24 : 24 + n]) | what
    header = json.dumps({key: value for key, value in about.items() if value is not None}).encode()
    return data[:16] + len(header).to_bytes(4, "little") + zlib.crc32(header).to_bytes(4, "little") + header + data[24 + n :]


@pytest.mark.parametrize("what", [
    {"version": 2}, {"version": None}, {"chunk": 128}, {"kinds": []}, {"n": -1}, {"n": 299.0}, {"n": True}, {"n": 301}, {"n_ids": "300"},
    {"n_ids": 1 << 40}, {"first": None}, {"first": [0]}, {"first": [0, 3]}, {"first": [0, -1]}, {"first": [1, 0]}, {"first": [0, 1]},
    {"n": 200}, {"rope": [["rope 16 none 1.0", 1.0]]}, {"model": ["x" * 200]},
], ids=str)  # fmt: skip
def test_headers_that_lie(paths, whole, tmp_path, what):
    """Written by a hand that knows the checksum."""
    error = refuse(paths, tmp_path, changed(whole[0], **what), None, error=(SavedSessionError, ContextOverflow))
    assert len(str(error)) < 600


def test_windows_that_are_not_there(paths, whole, tmp_path):
    """A file without a block that the next token sees, else consistent."""
    data, starts = whole
    size = starts["second"] - starts["first"]
    with ni.load(paths["some windows"]) as model:
        (window,) = [kind.index for kind in model.plan.kv.kinds if kind.window]
    at = starts["first"] - 4 + 2 * window * size
    bad = changed(data[:at] + data[at + size :], first=[0, 1] if window else [1, 0])
    refuse(paths, tmp_path, bad, "chunks are missing that the next token sees")


def test_headers_that_are_none(paths, whole, tmp_path):
    for header in (b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b"1"):
        data = whole[0][:16] + len(header).to_bytes(4, "little") + zlib.crc32(header).to_bytes(4, "little") + header + whole[0][24:]
        refuse(paths, tmp_path, data, "at byte 24: the header is")
    refuse(paths, tmp_path, whole[0][:16] + b"\xff" * 4 + whole[0][20:], "at byte 16: a header of 4294967295 bytes, wanted at most")
    ids = bytearray(whole[0])
    at = whole[1]["ids"]
    ids[at : at + 4] = (9999).to_bytes(4, "little")
    ids[at - 4 : at] = zlib.crc32(ids[at : at + 1200]).to_bytes(4, "little")
    refuse(paths, tmp_path, bytes(ids), f"at byte {at}: holds a token id that is not from 0 to")


def test_a_model_file_that_changed(tmp_path, monkeypatch):
    path = tiny(tmp_path, "llama", "Q8_0")
    with load(monkeypatch, path, 1) as model, model.session() as session:
        session.logits(IDS[:20])
        os.utime(path, ns=(1, 1))
        with pytest.raises(CorruptModel, match="the file is not the one that was loaded"):
            session.save(tmp_path / "s")
        path.unlink()
        with pytest.raises(ModelNotFound):
            session.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_the_digest_knows_the_data(tmp_path):
    """The same header and other weights are another model; a copy elsewhere is the same."""
    found = []
    for i in (0, 0, 1):
        (tmp_path / f"{len(found)}").mkdir()
        path = tiny(tmp_path / f"{len(found)}", "llama", "Q8_0", seed=i)
        with ni.gguf.file.GGUFFile(path) as file:
            found.append(file.digest())
    assert found[0] == found[1] != found[2]


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written(paths, monkeypatch, tmp_path):
    """The old one stays, and nothing beside it."""
    path = tmp_path / "s"
    with load(monkeypatch, paths["all"], 1) as model, model.session() as session:
        session.logits(IDS[:300])
        session.save(path)
        old, calls = path.read_bytes(), []

        def broken(*_):
            calls.append(1)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
            return write(*_)

        write = saved._write
        monkeypatch.setattr(saved, "_write", broken)
        session.logits(IDS[:310])
        with pytest.raises(OSError, match="No space"):
            session.save(path)
        monkeypatch.setattr(saved, "_write", write)
        assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["s"]
        with pytest.raises(FileNotFoundError):
            session.save(tmp_path / "no" / "s")
        session.save(path)
        assert path.read_bytes() != old and [p.name for p in tmp_path.iterdir()] == ["s"]


def test_interrupts(paths, monkeypatch, tmp_path):
    """Ctrl-C at any time: the file is the old one or the new one; no block is lost."""
    def stop(*_):
        raise KeyboardInterrupt

    rng, before = np.random.default_rng(0), signal.signal(signal.SIGALRM, stop)
    with load(monkeypatch, paths["all"], 1) as model, model.session() as session:
        session.logits(IDS[:600])
        session.save(tmp_path / "s")
        data, out = (tmp_path / "s").read_bytes(), model.runtime.engine.caches.pools[0].n_out
        try:
            for i in range(40):
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 5e-3))
                    if i % 2:
                        session.save(tmp_path / "s")
                    else:
                        model.restore(tmp_path / "s").close()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    pass
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert (tmp_path / "s").read_bytes() == data
        finally:
            signal.signal(signal.SIGALRM, before)
        import gc

        gc.collect()
        assert model.runtime.engine.caches.pools[0].n_out == out
        assert np.array_equal(session.logits(IDS[:610]), model.logits(IDS[:610]))


def test_while_the_model_works(paths, monkeypatch, tmp_path):
    """Saving and restoring beside streams of other threads."""
    errors = []
    with load(monkeypatch, paths["all"], 2) as model, model.session() as session:
        session.logits(IDS[:400])
        right = model.logits(IDS[:410])
        wanted = model.generate(IDS[:30], max_tokens=60, ignore_eos=True).token_ids

        def work():
            try:
                for _ in range(4):
                    assert model.generate(IDS[:30], max_tokens=60, ignore_eos=True).token_ids == wanted
            except BaseException as e:  # noqa: BLE001 - told below
                errors.append(e)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(6):
            session.save(tmp_path / f"{i}")
            with model.restore(tmp_path / f"{i}") as again:
                assert np.array_equal(again.logits(IDS[:410]), right)
        for thread in threads:
            thread.join()
        assert not errors, errors[0]


def test_in_another_process(paths, tmp_path):
    with ni.load(paths["all"]) as model, model.session() as session:
        session.logits(IDS[:300])
        session.save(tmp_path / "s")
        right = model.generate(IDS[:310], max_tokens=5, ignore_eos=True).token_ids
    found = python("""if True:
        import sys, json
        import numainfer as ni
        with ni.load(sys.argv[1], threads=1) as model, model.restore(sys.argv[2]) as session:
            done = session.generate(json.loads(sys.argv[3]), max_tokens=5, ignore_eos=True)
            print(json.dumps([done.usage.cached_tokens, done.token_ids]))
    """, paths["all"], tmp_path / "s", json.dumps(IDS[:310]))  # fmt: skip
    assert json.loads(found) == [300, list(right)]
