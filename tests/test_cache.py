"""KV caches: windows that forget, sequences that share, and the same bits whatever of it happens."""

import contextlib
import gc
import signal
import threading
import time
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from core_tools import logits, open_engine, pretend, same_bits
from tiny_models import tiny

import numainfer as ni
from numainfer import _core
from numainfer.cli.main import main
from numainfer.engine.layout import KV_TYPES, UNIT, Layout, owner, owner_of_pages
from numainfer.errors import ModelClosed, OutOfNodeMemory
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

CHUNK, N = _core.CHUNK, 1100  # positions: five chunks
IDS = np.random.default_rng(12).integers(6, 280, N).astype(np.int32)
WINDOWS = {"short": 100, "chunk": 256, "long": 300, "mistral": 270}
SHAPES = ((1, 2), (2, 1), (3, 1))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """gemma3, every second layer global, with a window less than, equal to and more than a chunk; and windows in all layers."""
    folder = tmp_path_factory.mktemp("cache")
    common = {"context": 2048, "heads": 4, "kv_heads": 2, "width": 64, "feed_forward": 96, "head_width": 16}
    found = {name: tiny(folder, "gemma3", "Q8_0", window=window, name=name, **common) for name, window in WINDOWS.items()}
    found["mistral"] = tiny(folder, "llama", "Q8_0", window=WINDOWS["mistral"], name="mistral", **common)
    return found


@pytest.fixture(scope="module")
def wanted(paths):
    """Logits of all positions by one thread in one step: what no window forgot."""
    found = {}
    for name, path in paths.items():
        with open_engine(path, threads=1, n_batch=N) as engine:
            found[name] = logits(engine, IDS)
    return found


def chunks(n):
    return -(-n // CHUNK)


@contextlib.contextmanager
def instead(engine, run):
    """Let ``run(plan, ids, table, rows, out, ...)`` run the engine's steps."""
    plan = engine.lane.core_plan()
    engine.lane._plans[False] = SimpleNamespace(run=lambda *step: run(plan, *step))
    try:
        yield
    finally:
        engine.lane._plans[False] = plan


def broken(plan, ids, *more):
    """As `instead` takes it: it has written, and something else."""
    plan.run(ids[::-1].copy(), *more)
    raise _core.Cancelled


def steps_and_broken_ones(engine, ids, wanted, rng):
    """A cache that went through all ids, in steps of up to 128 tokens, before which others were broken off; asserts bits and lengths."""
    kv, at, n = engine.new_kv(), 0, len(ids)
    while at < n:
        size = min(int(rng.choice([1, 30, 128])), n - at)
        for _ in range(int(rng.integers(0, 3))):
            more = min(int(rng.integers(1, 129)), n - at)
            with instead(engine, broken), pytest.raises(_core.Cancelled):
                engine.step([(kv, ids[at : at + more], at)], [0])
            assert kv.n == at == kv.rewindable(at)
        same_bits(engine.step([(kv, ids[at : at + size], at)], range(size)), wanted[at : at + size])
        at += size
    return kv


def out(engine):
    return [pool.n_out for pool in engine.caches.pools]


def rings(kv):
    """Blocks of the layers with a window."""
    return sum(bool(kind.window) for kind, *_ in kv.blocks())


# ---- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_batch", [64, 256, 300])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_forget_and_bits_do_not_change(paths, wanted, monkeypatch, name, n_batch):
    """Prompts in chunks, one token after the other, and a mixture of both; never more blocks than the window needs."""
    most = -(-(WINDOWS[name] + n_batch - 2) // CHUNK) + 1
    for shape, sizes in zip(SHAPES, ([n_batch], [1], [200, 1, 1, 64, 3]), strict=True):
        pretend(monkeypatch, *shape)
        with open_engine(paths[name], n_batch=n_batch) as engine:
            kv, counts = engine.new_kv(), []
            with instead(engine, lambda plan, *step, kv=kv, counts=counts: counts.append(rings(kv)) or plan.run(*step)):
                sizes = [min(size, n_batch) for size in sizes]
                same_bits(logits(engine, IDS, sizes, kv=kv), wanted[name])
            assert max(counts) <= most and kv.n == N
            assert kv._caches.layout.bytes(N) >= sum(kind.block_bytes for kind, *_ in kv.blocks())
            if most < chunks(N):
                assert counts[-1] < chunks(N)
            kv.close()
            assert out(engine) == [0] * len(engine.caches.pools)


@pytest.mark.parametrize("segments, rows, message", [
    ([], [], "at least one segment"),
    ([([], 0)], [], "a segment of 0 tokens at position 0 does not lie within the context of 512"),
    ([([5], -1)], [0], "1 tokens at position -1"),
    ([([5] * 13, 500)], [0], "13 tokens at position 500"),
    ([([5] * 40, 0), ([5] * 25, 0)], [0], "takes at most 64 tokens; found 65"),
    ([([5, 999], 0)], [0], "token id 999: wanted ids from 0 to 382"),
    ([(np.array([-1], np.int32), 0)], [0], "token id -1"),
    ([([5, 6], 0)], [2], "wanted rows must lie in 0 to 1; found 2"),
    ([([5, 6], 0)], [-1], "found -1"),
    ([([5, 6], 0)], [0] * 65, "at most 64 rows; found 65"),
    ([([5], 0), ([5], 3)], [0], "a segment at position 3 needs those before it"),
])  # fmt: skip
def test_a_step_refuses_what_it_cannot_run(paths, segments, rows, message):
    """And the next one runs; ids may be a list or an array of any integers."""
    with open_engine(paths["short"], n_ctx=512, n_batch=64, threads=1) as engine:
        with pytest.raises(ValueError, match=message):
            engine.step([(engine.new_kv(), ids, pos0) for ids, pos0 in segments], rows)
        given = [[5, 6, 7], np.array([5, 6, 7], np.int32), np.arange(10)[5:8], np.array([5, 0, 6, 0, 7, 0], np.int32)[::2]]
        found = engine.step([(engine.new_kv(), ids, 0) for ids in given], range(12)).reshape(4, -1)
        for other in found[1:]:
            same_bits(other, found[0])


def test_company(paths, wanted, monkeypatch):
    """Sequences of all lengths in the same steps, some far beyond their windows."""
    pretend(monkeypatch, 2, 1)
    rng = np.random.default_rng(4)
    with open_engine(paths["chunk"], n_batch=128) as engine:
        kvs, at = [engine.new_kv() for _ in range(6)], np.array([0, 20, 255, 256, 700, 900])
        for kv, n in zip(kvs, at):
            if n:
                logits(engine, IDS[:n], kv=kv)
        for _ in range(14):
            sizes = np.where(rng.random(6) < 0.7, 1, rng.integers(2, 21, 6))
            segments = [(kv, IDS[a : a + n], a) for kv, a, n in zip(kvs, at, sizes)]
            rows = np.concatenate([np.arange(a, a + n) for a, n in zip(at, sizes)])
            same_bits(engine.step(segments, range(len(rows))), wanted["chunk"][rows])
            at = at + sizes


@pytest.mark.parametrize("name", ["short", "mistral"])
def test_rewinding(paths, wanted, name):
    """Inside of what is kept it is as if the later tokens had never been; beyond, all starts afresh."""
    window, n_batch = WINDOWS[name], 64
    with open_engine(paths[name], n_batch=n_batch) as engine:
        kv = engine.new_kv()
        logits(engine, IDS[:900], [n_batch, 1], kv=kv)
        logits(engine, IDS[900:950], [1], kv=kv, start=900)
        assert all(kv.rewindable(n) == n for n in range(950 - n_batch, 951))  # the length of a step, at least
        first = next(chunk for kind, chunk, *_ in kv.blocks() if kind.window)
        least = first * CHUNK + window - 1  # what the token there sees begins with the first block
        assert kv.rewindable(least) == least and kv.rewindable(least - 1) == 0 == kv.rewindable(1) and kv.rewindable(5000) == 950
        for n in (949, 900, least):
            assert kv.rewind(n) == n == kv.n
            junk = engine.step([(kv, IDS[:40], n)], range(40))
            assert kv.rewind(n) == n
            same_bits(logits(engine, IDS[n : n + 64], [7], kv=kv, start=n), wanted[name][n : n + 64])
            assert not np.array_equal(junk, wanted[name][n : n + 40])
        with pytest.raises(ValueError, match=f"at position {least - 1} needs those before it"):
            engine.step([(kv, IDS[:1], least - 1)], [0])
        with pytest.raises(ValueError, match="at position 1500 needs those before it; the cache holds"):
            engine.step([(kv, IDS[:1], 1500)], [0])
        same_bits(engine.step([(kv, IDS[kv.n : kv.n + 1], kv.n)], [0]), wanted[name][kv.n - 1 : kv.n])  # they did no harm
        assert kv.rewind(least - 1) == 0 and kv.n_blocks == 0 and out(engine) == [0] * len(engine.caches.pools)
        same_bits(logits(engine, IDS[:400], kv=kv), wanted[name][:400])


def test_sessions_beyond_their_windows(paths):
    """What a session spares is what its cache still has: results never change, and `cached_tokens` tells."""
    with ni.load(str(paths["chunk"]), n_ctx=1024, n_batch=64, prefix_cache=0) as model, model.session() as session:
        ids = IDS[:700].tolist()
        assert np.array_equal(session.logits(ids), model.logits(ids)) and session.n_past == 700
        near, far = [*ids[:690], 9, 8, 7], [*ids[:300], 9, 8, 7]
        for prompt, cached in ((near, 690), (ids, 690), (far, 0), ([*far, 7], 303)):
            done = session.generate(prompt, max_tokens=4, ignore_eos=True)
            assert done.usage.cached_tokens == cached
            assert done.token_ids == model.generate(prompt, max_tokens=4, ignore_eos=True).token_ids
        session.generate(ids, max_tokens=3, ignore_eos=True)
        with session.fork() as twin:
            session.rewind(699)
            assert session.n_past == 699 and session.ids == ids[:699]
            session.rewind(40)  # the window of position 40 is gone: its ids stay, and are computed again
            assert session.n_past == 0 and session.ids == ids[:40]
            for each, prompt, cached in ((session, [*ids[:40], 11], 0), (twin, [*ids, 11], 700)):
                assert each.generate(prompt, max_tokens=3).usage.cached_tokens == cached
                assert np.array_equal(each.logits(prompt), model.logits(prompt))


def test_lists_of_prompts(paths):
    with ni.load(str(paths["short"]), n_ctx=1024, n_batch=96, prefix_cache=0) as model:
        prompts = [IDS[a : a + n].tolist() for a, n in ((0, 700), (5, 20), (300, 255), (9, 512), (40, 330))]
        done = model.generate(prompts, max_tokens=30, ignore_eos=True)
        assert [d.token_ids for d in done] == [model.generate(p, max_tokens=30, ignore_eos=True).token_ids for p in prompts]
        assert out(model.runtime.engine) == [0, 0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cancelled_steps_are_repeated(paths, wanted, monkeypatch, shape):
    """At every chunk's border the step is broken off, some twice, and done again: nothing that it needs was given back."""
    pretend(monkeypatch, *shape)
    with open_engine(paths["short"], n_batch=128) as engine:
        kv = steps_and_broken_ones(engine, IDS, wanted["short"], np.random.default_rng(shape[0]))
        with instead(engine, broken), pytest.raises(_core.Cancelled):
            engine.step([(kv, IDS[:10], N - 30)], [0])
        assert kv.n == N - 30 == kv.rewindable(N)  # what stood there is lost


# ---- sharing ----------------------------------------------------------------------------------------------------------


def test_a_fork_copies_one_block(tmp_path):
    """At 10,000 positions: nothing at first, then the last block, and that for the second of the two that writes."""
    path = tiny(tmp_path, "llama", "Q8_0", heads=1, kv_heads=1, width=32, feed_forward=32, head_width=16, layers=1, context=10_300)
    ids = np.random.default_rng(0).integers(6, 280, 10_300).astype(np.int32)
    with ni.load(str(path), prefix_cache=0) as model, model.session() as session, model.session() as alone:
        engine = model.runtime.engine
        copied = []
        ends = [np.append(ids[:10_000], ids[10_000 + a : 10_200 + a]) for a in (0, 50)]
        right = [alone.logits(end) for end in ends]
        alone.close()
        session.logits(ids[:10_000])
        assert out(engine) == [40]
        team, engine.lane.team = engine.lane.team, _Watched(engine.lane.team, copied)
        with session.fork() as twin:
            assert out(engine) == [40] and not copied
            assert np.array_equal(twin.logits(ends[1]), right[1]) and out(engine) == [40] and not copied
            assert np.array_equal(session.logits(ends[0]), right[0]) and out(engine) == [41] and copied == [39]
            for each, end, wanted_ in ((twin, ends[1], right[1]), (session, ends[0], right[0])):
                assert np.array_equal(each.logits(end), wanted_)  # the last token again, into one's own block
            assert copied == [39]
        assert out(engine) == [40]
        assert np.array_equal(session.logits(ends[0]), right[0])
        engine.lane.team = team
    assert out(engine) == [0]


class _Watched:
    """A team that notes the chunks it copies."""

    def __init__(self, team, copied):
        self._team, self._copied = team, copied

    def copy_kv(self, layers, chunk, src, dst):
        self._copied.append(chunk)
        self._team.copy_kv(layers, chunk, src, dst)

    def __getattr__(self, name):
        return getattr(self._team, name)

    def __len__(self):
        return len(self._team)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["long", "mistral"])
def test_forks_go_on_as_if_alone(paths, wanted, monkeypatch, name, shape, kv_type):
    """Three generations, in the midst of chunks, at borders and beyond windows; whoever is closed first takes nothing from the others."""
    pretend(monkeypatch, *shape)
    with open_engine(paths[name], n_batch=200, kv_type=kv_type) as engine:
        right = wanted[name] if kv_type == "f16" else logits(engine, IDS, [200])
        parent = engine.new_kv()
        for n in (130, 256, 800, 1001):
            logits(engine, IDS[parent.n : n], [200], kv=parent, start=parent.n)
            before = out(engine)
            child = parent.copy(n)
            grandchild = child.copy(n - n % 2)
            assert out(engine) == before
            other = logits(engine, IDS[:60], kv=child, start=n)  # something else there
            same_bits(logits(engine, IDS[n : n + 70], [70], kv=parent, start=n), right[n : n + 70])
            m = grandchild.n
            same_bits(logits(engine, IDS[m : m + 70], [1], kv=grandchild, start=m), right[m : m + 70])
            assert child.rewind(n) == n
            same_bits(logits(engine, IDS[:60], [13], kv=child, start=n), other)
            parent.close()
            parent = grandchild
            child.close()
            assert parent.rewind(m) == m
            assert {references for *_, references in parent.blocks()} == {1}
        parent.close()
        assert out(engine) == [0] * len(engine.caches.pools)


def test_a_lane_copies_for_itself(paths, wanted, monkeypatch):
    """A sequence forked in one lane goes on in another: its own block is that one's."""
    pretend(monkeypatch, 2, 1)
    with open_engine(paths["long"], placement="replicate", n_batch=128) as engine:
        first, second = engine.node_lanes()
        kv, at = engine.new_kv(), 0
        while at < 500:
            first.step([(kv, IDS[at : at + 100], at)], [])
            at += 100
        twin = kv.copy(500)
        assert twin.nodes == [0] and set(twin.bytes_by_owner()) == {0}
        same_bits(second.step([(twin, IDS[500:520], 500)], range(20)), wanted["long"][500:520])
        assert twin.nodes == [1] and kv.nodes == [0]
        same_bits(first.step([(kv, IDS[500:520], 500)], range(20)), wanted["long"][500:520])
        total = engine.caches.bytes_by_owner()  # what they share counts once
        alone = kv.bytes_by_owner()[0] + twin.bytes_by_owner()[1]
        assert 0 < sum(total.values()) < alone


def test_copies_that_cannot_be(paths):
    with open_engine(paths["short"], n_batch=64) as engine:
        kv = engine.new_kv()
        logits(engine, IDS[:700], kv=kv)
        for n, most in ((701, 700), (50, 0)):
            with pytest.raises(ValueError, match=f"a copy of {n} positions was asked for; the cache can be cut to {most}"):
                kv.copy(n)


# ---- the end ----------------------------------------------------------------------------------------------------------


def test_closing_in_the_midst_of_a_step(paths):
    """By another thread: the blocks go with the step, the next one is refused."""
    with open_engine(paths["short"], n_batch=64) as engine:
        kv = engine.new_kv()

        def closing(plan, *step):
            with pytest.raises(RuntimeError, match="busy"):
                kv.rewind(0)
            thread = threading.Thread(target=kv.close)
            thread.start()
            thread.join()
            assert kv.closed and kv.n_blocks == 2
            plan.run(*step)

        with instead(engine, closing):
            engine.step([(kv, IDS[:20], 0)], [0])
        assert kv.n_blocks == 0 and out(engine) == [0, 0]
        with pytest.raises(ModelClosed, match="session was closed"):
            engine.step([(kv, IDS[:20], 0)], [0])
        with pytest.raises(ModelClosed, match="session was closed"):
            kv.copy(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_lose_no_block(paths):
    """An exception between any two bytecodes of steps, forks, rewinds and ends: the pools know of what is alive, and of nothing else."""
    with open_engine(paths["short"], n_batch=64, threads=1) as engine:
        def stop(*_):
            raise KeyboardInterrupt

        before, rng, rounds = signal.signal(signal.SIGALRM, stop), np.random.default_rng(1), 0
        kv, ends = engine.new_kv(), time.monotonic() + 4
        logits(engine, IDS[:300], kv=kv)
        try:
            while time.monotonic() < ends:
                rounds += 1
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 6e-3))
                    for _ in range(40):  # one that comes in a weak reference's callback is lost
                        twin = kv.copy(kv.n)
                        engine.step([(twin, IDS[:8], twin.n)], [0])
                        if twin.n > 500:
                            kv, twin = twin, None
                            kv.rewind(480)
                        else:
                            engine.step([(kv, IDS[:40], kv.n)] if kv.n < 900 else [(kv, IDS[:8], 0)], [0])
                            twin.close()
                signal.setitimer(signal.ITIMER_REAL, 0)
                twin = None
                if sum(out(engine)) != kv.n_blocks:
                    gc.collect()
                assert sum(out(engine)) == kv.n_blocks and {n for *_, n in kv.blocks()} <= {1}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert rounds > 20 and kv.rewind(0) == 0


# ---- bytes ------------------------------------------------------------------------------------------------------------


def test_layouts():
    """Every byte of a block belongs to one chunk of one head of one layer; no page, and no huge page, to two nodes."""
    for kv_type in KV_TYPES:
        for n_nodes in (1, 2, 3):
            for heads, width, n_layers in (((2, 2, 4), 48, 3), ((8,), 64, 16), ((3,), 64, 30), ((16,), 128, 62), ((5, 1), 256, 8)):
                layout = Layout(kv_type, 512, n_nodes)
                layers = [layout.add(heads[i % len(heads)], width, width, 0) for i in range(n_layers)]
                layout.place()
                (kind,) = layout.kinds
                places = sorted((layer.offset + g * layer.stride, layer.chunk_bytes, layer.kv_heads, g)
                                for layer in layers for g in range(layer.kv_heads))  # fmt: skip
                assert all(a + n <= b for (a, n, *_), (b, *_) in zip(places, places[1:])) and sum(places[-1][:2]) <= kind.block_bytes
                assert all(at % UNIT == 0 for at, *_ in places)
                filled = sum(n for _, n, *_ in places)
                assert kind.block_bytes <= 1.125 * filled or not kind.huge and kind.block_bytes - filled < 4096 * sum(set(heads)) * 2
                page = (2 << 20) if kind.huge else 4096
                assert kind.block_bytes % page == 0
                owners = {}
                for at, n, kv_heads, g in places:
                    for p in range(at // page, -(-(at + n) // page)):
                        owners.setdefault(p, set()).add(owner(g, 5, kv_heads, 2, n_nodes))
                assert all(len(found) == 1 for found in owners.values())
                told = owner_of_pages(kind, 5, 2, n_nodes)
                assert all(told[p * page // 4096] == next(iter(found)) for p, found in owners.items())
    assert [owner(1, chunk, 3, 2, 2) for chunk in range(5)] == [1, 1, 0, 0, 1]  # two chunks in a row
    assert Layout("f16", 512, 1).bytes(1000) == 0


GEMMA = {"layers": 62, "heads": 32, "kv_heads": 16, "width": 128, "window": 1024, "n_ctx": 131_072}  # Gemma 3 27B


def test_the_shape_of_gemma_3_27b():
    layout = Layout("f16", 512, 1)
    for i in range(GEMMA["layers"]):
        layout.add(GEMMA["kv_heads"], GEMMA["width"], GEMMA["width"], 0 if (i + 1) % 6 == 0 else GEMMA["window"])
    layout.place()
    position = 16 * 2 * 128 * 2
    assert layout.bytes_per_token == 10 * position
    assert layout.window_bytes(GEMMA["n_ctx"]) == 7 * 256 * 52 * position  # ceil((1024 + 510) / 256) + 1 blocks
    assert 11.4e9 < layout.bytes(GEMMA["n_ctx"]) < 12e9
    assert layout.bytes(100) == 256 * 62 * position and layout.bytes(0) == 0
    assert layout.read_bytes(131_072) == (10 * 131_072 + 52 * 1024) * position


def test_info_of_gemma_3_27b(tmp_path, capsys):
    """The file's real shape; its matrices are holes, of which the plan reads nothing."""
    path, c = tmp_path / "27b.gguf", GEMMA
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(c["n_ctx"])
    for add, value in ((writer.add_embedding_length, 5376), (writer.add_block_count, c["layers"]), (writer.add_head_count, c["heads"]),
                       (writer.add_feed_forward_length, 21504), (writer.add_head_count_kv, c["kv_heads"]),
                       (writer.add_key_length, c["width"]), (writer.add_value_length, c["width"]),
                       (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_sliding_window, c["window"])):  # fmt: skip
        add(value)
    size = 0

    def tensor(name, *shape):
        nonlocal size
        kind = gguf.GGMLQuantizationType.F16 if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        n_bytes = int(np.prod(shape)) * (2 if len(shape) > 1 else 4)
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float16), n_bytes, raw_dtype=kind)
        size += -(-n_bytes // 32) * 32

    q, kv = c["heads"] * c["width"], c["kv_heads"] * c["width"]
    tensor("token_embd", 1000, 5376)
    tensor("output_norm", 5376)
    for i in range(c["layers"]):
        for name, *shape in (("attn_norm", 5376), ("attn_q", q, 5376), ("attn_k", kv, 5376), ("attn_v", kv, 5376), ("attn_output", 5376, q),
                             ("attn_q_norm", c["width"]), ("attn_k_norm", c["width"]), ("post_attention_norm", 5376),
                             ("ffn_norm", 5376), ("ffn_gate", 21504, 5376), ("ffn_up", 21504, 5376), ("ffn_down", 5376, 21504),
                             ("post_ffw_norm", 5376)):  # fmt: skip
            tensor(f"blk.{i}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + size)
    with GGUFFile(path) as file:
        need = demand(file, 1)
    assert need.n_ctx == c["n_ctx"] and 11.4e9 < need.kv_bytes < 12e9
    assert main(["info", str(path), "--topology", "1x96c,700GB,400GB/s"]) == 0
    shown = capsys.readouterr().out
    assert "KV in f16: one sequence, 81.9 KB per token and at most 763 MB for windows" in shown and "11.5 GB" in shown


def test_what_is_told_of_windows(paths, monkeypatch):
    with open_engine(paths["short"], n_ctx=1024, n_batch=64) as engine:
        layer = 2 * 2 * 16 * 2  # bytes per position: two kv-heads of 16 + 16 halves
        assert engine.placement.kv_bytes_per_token == layer and engine.placement.kv_window_bytes == 2 * 256 * layer
        assert f"KV cache {layer} B per token and at most 65.5 KB for windows" in str(engine.placement)
        kv = engine.new_kv()
        for n in (10, 300, 1000):
            logits(engine, IDS[kv.n : n], [64], kv=kv, start=kv.n)
            assert sum(engine.placement.kv_bytes().values()) <= engine.plan.kv.bytes(n)
        assert rings(kv) <= 2
    with open_engine(paths["mistral"], n_ctx=1024, n_batch=64) as engine:
        assert "KV cache at most 197 KB for windows" in str(engine.placement) and engine.placement.kv_bytes_per_token == 0


def test_contexts_that_windows_make_possible(paths, monkeypatch):
    """n_ctx counts what the windows take, not what they forgot."""
    from numainfer.machine import topology as topologies

    real = topologies.topology()
    small = tuple(topologies.Node(n.number, n.cpus, 64 << 20, 64 << 20) for n in real.nodes[:1])
    monkeypatch.setattr(topologies, "topology", lambda: topologies.Topology(small))
    with open_engine(paths["mistral"], n_ctx=1 << 20, n_batch=8) as engine:  # 256 MB without windows
        assert engine.plan.kv_bytes < 1 << 20
    with pytest.raises(OutOfNodeMemory, match=r"takes .* \(128 B each and .* for windows, f16\); .* at most n_ctx = \d+"):
        with open_engine(paths["short"], n_ctx=1 << 20, n_batch=8):
            pass
