"""Recurrent state as a cache: steps that fail, rewinds, forks, checkpoints, memory; and the same bits whatever of it happens."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from core_tools import logits, open_engine, pretend, same_bits
from hollow_gguf import hollow
from test_cache import broken, instead, steps_and_broken_ones
from tiny_recurrent import random_gguf, tiny_recurrent

import numainfer as ni
from numainfer import _core
from numainfer.engine import states as states_module
from numainfer.engine.layout import Layout
from numainfer.engine.states import StateLayout, States
from numainfer.errors import ModelClosed
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

N = 1000
IDS = np.random.default_rng(5).integers(6, 280, N).astype(np.int32)
SHAPES = ((1, 2), (2, 1), (3, 1))
ARCHITECTURES = ("qwen3next", "qwen35")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    return {name: tiny_recurrent(folder, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def wanted(paths):
    """Logits of all positions by one thread in one step."""
    found = {}
    for name, path in paths.items():
        with open_engine(path, threads=1, n_ctx=N, n_batch=N) as engine:
            found[name] = logits(engine, IDS)
    return found


@pytest.fixture
def engine(paths):
    with open_engine(paths["qwen3next"], n_ctx=N, n_batch=128) as engine:
        yield engine


@pytest.fixture
def spacing(monkeypatch):
    """``spacing(positions, most)`` for all engines that are opened then."""
    def change(positions, most=4):
        monkeypatch.setattr(states_module, "SPACING", positions)
        monkeypatch.setattr(states_module, "MOST", most)
    return change


def blocks(engine):
    """Blocks of state that somebody holds."""
    return engine.caches.state_pool.n_out


# ---- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_token_by_token_is_as_one_prompt(paths, wanted, monkeypatch, name, shape):
    pretend(monkeypatch, *shape)
    with open_engine(paths[name], n_ctx=N, n_batch=64) as engine:
        same_bits(logits(engine, IDS[:300], [1]), wanted[name][:300])
        same_bits(logits(engine, IDS, [63, 1, 64, 7, 64]), wanted[name])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_that_fail_are_repeated(paths, wanted, monkeypatch, spacing, shape):
    """Broken off once or twice when it had written all that it writes, over another step's tokens: nothing that it needs has changed."""
    spacing(50)
    pretend(monkeypatch, *shape)
    with open_engine(paths["qwen3next"], n_ctx=N, n_batch=128) as engine:
        kv = steps_and_broken_ones(engine, IDS, wanted["qwen3next"], np.random.default_rng(shape[0]))
        held = kv.rewindable(N - 1)
        with instead(engine, broken), pytest.raises(_core.Cancelled):
            engine.step([(kv, IDS[:10], held)], [0])
        assert 0 < kv.n == held < N  # what stood there is lost; the state before is not
        same_bits(logits(engine, IDS[held:], kv=kv, start=held), wanted["qwen3next"][held:])


def test_a_step_cancelled_in_the_midst(paths, wanted):
    """By ``cancel`` from another thread, wherever the workers are: the same step succeeds later with the same bits."""
    with open_engine(paths["qwen3next"], n_ctx=N, n_batch=500, threads=2) as engine:
        kv = engine.new_kv()
        logits(engine, IDS[:200], kv=kv)
        cancelled, start = 0, time.perf_counter()
        engine.step([(kv, IDS[200:700][::-1].copy(), 200)], [0])
        took = time.perf_counter() - start
        kv.rewind(0)
        logits(engine, IDS[:200], kv=kv)
        for share in np.linspace(0.05, 0.95, 16):
            timer, start = threading.Timer(share * took, engine.cancel), time.perf_counter()
            timer.start()
            try:
                engine.step([(kv, IDS[200:700][::-1].copy(), 200)], [0])
                took = min(took, time.perf_counter() - start)  # the first may have been held up
            except _core.Cancelled:
                cancelled += 1
            timer.join()
            if kv.n != 200:  # it was over before
                kv.rewind(0)
                logits(engine, IDS[:200], kv=kv)
            same_bits(engine.step([(kv, IDS[200:210], 200)], range(10)), wanted["qwen3next"][200:210])
            kv.rewind(0)
            logits(engine, IDS[:200], kv=kv)
        assert cancelled


# ---- rewinding and forks ----------------------------------------------------------------------------------------------


def test_rewinding(engine, wanted):
    """To the nearest state before; from there it is as if the later tokens had never been."""
    kv = engine.new_kv()
    logits(engine, IDS[:600], [128], kv=kv)
    logits(engine, IDS[600:640], [1], kv=kv, start=600)
    assert kv.states.positions() == [512, 640]  # the prompt's last step began there; the newest
    assert kv.rewindable(2000) == 640 and kv.rewindable(639) == 512 == kv.rewindable(512) and kv.rewindable(511) == 0
    same_bits(engine.step([(kv, IDS[640:641], 640)], [0]), wanted["qwen3next"][640:641])
    for n, left in ((640, 512), (600, 512), (512, 512)):
        assert kv.rewind(n) == left == kv.n
        junk = engine.step([(kv, IDS[:40], left)], range(40))
        assert kv.rewind(left) == left
        same_bits(logits(engine, IDS[left:640], [77], kv=kv, start=left), wanted["qwen3next"][left:640])
        assert not np.array_equal(junk, wanted["qwen3next"][left : left + 40])
    with pytest.raises(ValueError, match="at position 639 needs those before it"):
        engine.step([(kv, IDS[:1], 639)], [0])
    with pytest.raises(ValueError, match="at position 800 needs those before it"):
        engine.step([(kv, IDS[:1], 800)], [0])
    same_bits(engine.step([(kv, IDS[640:641], 640)], [0]), wanted["qwen3next"][640:641])  # they did no harm
    assert kv.rewind(100) == 0 and kv.n_blocks == 0
    same_bits(logits(engine, IDS[:400], kv=kv), wanted["qwen3next"][:400])


@pytest.mark.parametrize("sizes", [[128], [1], [100, 1, 1, 61], [50, 50, 25]], ids=str)
def test_checkpoints(paths, wanted, spacing, sizes):
    """At multiples of a spacing that doubles when there are too many; whatever the steps were.  Each has the state of its position."""
    spacing(50, 5)
    with open_engine(paths["qwen3next"], n_ctx=N, n_batch=128) as engine:
        kv, layout = engine.new_kv(), engine.plan.kv.states
        for n, regular in ((49, []), (51, [50]), (290, [50, 100, 150, 200, 250]), (310, [100, 200, 300]), (620, [200, 400, 600])):
            logits(engine, IDS[kv.n : n], list(sizes), kv=kv, start=kv.n)
            assert set(regular) <= set(kv.states.positions()) and len(kv.states.positions()) <= len(regular) + 2
            assert len(kv.states.addresses()) <= layout.blocks(n) and blocks(engine) * layout.block_bytes <= layout.bytes(n)
        for left in (600, 400, 200, 0):
            twin = kv.copy(left)
            same_bits(logits(engine, IDS[left : left + 70], [33], kv=twin, start=left), wanted["qwen3next"][left : left + 70])
            assert kv.rewind(left + 19) == left
            same_bits(logits(engine, IDS[left : left + 20], kv=kv, start=left), wanted["qwen3next"][left : left + 20])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forks_go_on_as_if_alone(paths, wanted, monkeypatch, spacing, shape):
    """Three generations: nothing is copied, nobody writes to what another reads, and whoever is closed first takes nothing with him."""
    spacing(100)
    pretend(monkeypatch, *shape)
    right = wanted["qwen3next"]
    with open_engine(paths["qwen3next"], n_ctx=N, n_batch=200) as engine:
        parent = engine.new_kv()
        for n in (130, 256, 700):
            logits(engine, IDS[parent.n : n], [200], kv=parent, start=parent.n)
            before = blocks(engine)
            child = parent.copy(n)
            grandchild = child.copy(child.rewindable(n - 20))
            assert blocks(engine) == before
            other = logits(engine, IDS[:60], kv=child, start=n)  # something else there
            same_bits(logits(engine, IDS[n : n + 70], [70], kv=parent, start=n), right[n : n + 70])
            m = grandchild.n
            assert n - 120 <= m < n
            same_bits(logits(engine, IDS[m : m + 70], [1], kv=grandchild, start=m), right[m : m + 70])
            if (left := child.rewind(n)) < n:
                same_bits(logits(engine, IDS[left:n], kv=child, start=left), right[left:n])
            same_bits(logits(engine, IDS[:60], [13], kv=child, start=n), other)
            parent.close()
            parent = grandchild
            child.close()
        parent.close()
        del child, grandchild, parent
        assert blocks(engine) == 0


def test_who_decodes_writes_to_no_state_that_another_has(engine, wanted):
    """Several steps of one, and then of the other, which has the state where they parted."""
    for parent, child in ((0, 1), (1, 0), (1, 2)):
        kv = engine.new_kv()
        logits(engine, IDS[:300], kv=kv)
        n = 256 if child == 2 else 300
        caches = [kv, kv.copy(n), kv.copy(n)]
        for each in (caches[parent], caches[child]):
            same_bits(logits(engine, IDS[n : n + 6], [1], kv=each, start=n), wanted["qwen3next"][n : n + 6])


def test_a_step_from_an_earlier_position_forgets_what_was_behind(engine, wanted):
    """Even if it is broken off; and a fork goes on with its parent's spacing."""
    kv = engine.new_kv()
    logits(engine, IDS[:600], kv=kv)
    engine.step([(kv, IDS[:1], 512)], [0])
    assert kv.states.positions() == [512, 513] and kv.n == 513
    with instead(engine, lambda plan, *step: (_ for _ in ()).throw(_core.Cancelled())), pytest.raises(_core.Cancelled):
        engine.step([(kv, IDS[:1], 512)], [0])
    assert kv.states.positions() == [512] and kv.rewindable(900) == 512
    kv.states._spacing = 77
    assert kv.copy(512).states._spacing == 77
    same_bits(logits(engine, IDS[512:530], kv=kv, start=512), wanted["qwen3next"][512:530])


def test_sessions(paths):
    """What a session spares is what its states allow: results never change, and `cached_tokens` tells."""
    with ni.load(str(paths["qwen3next"]), n_ctx=1024, n_batch=128) as model, model.session() as session:
        ids = IDS[:700].tolist()
        assert np.array_equal(session.logits(ids), model.logits(ids)) and session.n_past == 700
        for prompt, cached in (([*ids, 7, 8], 700), ([*ids[:690], 9, 8, 7], 512), (ids, 512), ([*ids[:300], 9, 8, 7], 0),
                               ([*ids[:300], 9, 7], 256)):  # fmt: skip
            done = session.generate(prompt, max_tokens=4, ignore_eos=True)
            assert done.usage.cached_tokens == cached, prompt[-3:]
            assert done.token_ids == model.generate(prompt, max_tokens=4, ignore_eos=True).token_ids
        with session.fork() as twin:
            session.rewind(len(session.ids) - 1)
            for each in (session, twin):
                more = [*each.ids, 11, 12]
                assert np.array_equal(each.logits(more), model.logits(more))


def test_a_conversation_whose_template_forgets(paths):
    """An answer that the next prompt tells otherwise: what is computed again are a chunk's positions and the answer's, not the prompt's."""
    with ni.load(str(paths["qwen3next"]), n_ctx=1024, n_batch=512) as model, model.session() as session:
        first = IDS[:600].tolist()
        answer = session.generate(first, max_tokens=50, ignore_eos=True).token_ids
        done = session.generate([*first[:-2], *answer[20:], 5, 6], max_tokens=2, ignore_eos=True)
        assert done.usage.cached_tokens == 512


def test_lists_of_prompts(paths):
    with ni.load(str(paths["qwen35"]), n_ctx=1024, n_batch=96, prefix_cache=0) as model:
        prompts = [IDS[a : a + n].tolist() for a, n in ((0, 700), (5, 20), (300, 255), (9, 512), (40, 330))]
        done = model.generate(prompts, max_tokens=20, ignore_eos=True)
        assert [d.token_ids for d in done] == [model.generate(p, max_tokens=20, ignore_eos=True).token_ids for p in prompts]
        assert blocks(model.runtime.engine) == 0


@pytest.mark.parametrize("kv_type", ["q8_0", "bf16"])
def test_types_of_keys_and_values(paths, kv_type):
    with open_engine(paths["qwen3next"], n_ctx=N, n_batch=N, kv_type=kv_type, threads=1) as engine:
        right = logits(engine, IDS[:400])
        same_bits(logits(engine, IDS[:400], [300, 1, 1, 50]), right)


def test_a_sequence_wanders_from_lane_to_lane(paths, wanted, monkeypatch):
    pretend(monkeypatch, 2, 1)
    with open_engine(paths["qwen3next"], placement="replicate", n_ctx=N, n_batch=128) as engine:
        lanes = [engine.lane, *engine.node_lanes()]
        kv, at, lane = engine.new_kv(), 0, engine.lane
        for i in range(14):
            size, others = (128, 1, 40)[i % 3], list(kv.states._kept.values())
            before, lane = lane, lanes[i // 2 % 3]
            same_bits(lane.step([(kv, IDS[at : at + size], at)], range(size)), wanted["qwen3next"][at : at + size])
            assert set(kv.bytes_by_owner()) == set(lane.nodes)
            at += size
            if lane is not before:  # its workers place pages of their own: they write to no block of another's
                assert all(kept.shared for kept in others) and kv.states._spare == []


# ---- memory -----------------------------------------------------------------------------------------------------------


def test_decoding_uses_two_blocks(engine):
    """One that is read and one that is written, for however long; none comes or goes."""
    kv = engine.new_kv()
    logits(engine, IDS[:20], [1], kv=kv)
    addresses = set()
    for at in range(20, 60):
        engine.step([(kv, IDS[at : at + 1], at)], [0])
        addresses.update(kv.states.addresses())
        assert blocks(engine) == 2
    assert len(addresses) == 2
    kv.close()
    assert blocks(engine) == 0


def test_a_step_that_leaves_states_to_go_back_to(engine, wanted):
    """At its last positions, for the cut that comes next; what they take comes back with the next step of one token or more."""
    kv, wanted, layout, rng = engine.new_kv(), wanted["qwen3next"], engine.plan.kv.states, np.random.default_rng(0)
    logits(engine, IDS[:250], kv=kv)
    for back in (3, 7, 1, 7, 0, 5, 7, 7, 7):
        n, accepted = kv.n, int(rng.integers(0, back + 1))
        kv.states.expect(back)
        found = engine.step([(kv, [*IDS[n : n + 1 + accepted], *IDS[n + 1 : n + 1 + back - accepted]], n)], range(1 + back))
        same_bits(found[: 1 + accepted], wanted[n : n + 1 + accepted])
        assert {*range(n + 1, n + 2 + back)} <= {*kv.states.positions()} and blocks(engine) <= layout.blocks(n) + 7
        assert kv.rewind(n + 1 + accepted) == n + 1 + accepted == kv.states.positions()[-1]
        assert not {*range(n + 1, n + 1 + accepted)} & {*kv.states.positions()} - {256}  # the chunk's end
    kv.states.expect(9)
    engine.step([(kv, IDS[kv.n : kv.n + 5], kv.n)], [0])  # more than there are: but the first
    assert kv.rewind(kv.n - 4) == kv.n
    n = kv.n
    engine.step([(kv, IDS[n : n + 5], n)], [0])  # it counts for one step alone
    assert kv.rewindable(n + 4) <= n
    assert len(kv.states._spare) == 1  # and what was taken for more has gone
    same_bits(logits(engine, IDS[n + 5 : 400], [50], kv=kv, start=n + 5), wanted[n + 5 : 400])
    kv.close()
    assert blocks(engine) == 0


def test_where_states_lie(paths, monkeypatch):
    """Each node has a stretch of a block, and has touched what its heads need of it; `bytes_by_owner` counts it."""
    pretend(monkeypatch, 2, 1)
    with open_engine(paths["qwen3next"], n_ctx=N, n_batch=128) as engine:
        layout = engine.plan.kv.states
        pages = layout.stride // 4096
        assert layout.block_bytes == 2 * layout.stride and layout.owners(2).tolist() == [0] * pages + [1] * pages
        kv = engine.new_kv()
        engine.step([(kv, IDS[:1], 0)], [0])
        attention = sum(kind.block_bytes for kind, *_ in kv.blocks())
        own = kv.bytes_by_owner()
        need = layout.read_bytes // 2
        assert need <= own[0] <= layout.stride + attention and need <= own[1] <= layout.stride + attention
        assert engine.placement.kv_bytes() == own
        twin = kv.copy(1)  # what they share counts once
        assert engine.caches.bytes_by_owner() == own
        twin.close()


def test_layouts():
    layout = StateLayout(3, 512)
    parts = [layout.add(7, 100), layout.add(1, 64), layout.add(32, 65_536)]
    layout.place()
    assert [part.unit_bytes for part in parts] == [128, 64, 65_536] and [part.offset for part in parts] == [0, 384, 448]
    assert layout.stride == 724_992 and layout.block_bytes == 3 * layout.stride and not layout.huge  # 448 + 11 * 65536, to whole pages
    assert layout.read_bytes == 7 * 128 + 64 + 32 * 65_536
    assert layout.ints(parts[2]) == (32, 1024, 7, layout.stride // 64, 3)
    large = StateLayout(2, 512)
    large.add(64, 1 << 20)
    large.place()
    assert large.huge and large.stride == 32 << 20
    assert [large.blocks(n) for n in (1, 256, 257, 4095, 4096, 20_000, 10**6)] == [2, 2, 4, 7, 8, 9, 9]
    assert StateLayout(2, 512).bytes(10**6) == 0 == Layout("f16", 512, 2).bytes(0)


def test_a_state_is_read_and_written_whatever_the_nodes(paths, monkeypatch):
    """The same bytes on any number of nodes; written on others they are the same state."""
    found = []
    for shape in SHAPES:
        pretend(monkeypatch, *shape)
        with open_engine(paths["qwen3next"], n_ctx=N, n_batch=128) as engine:
            kv, layout = engine.new_kv(), engine.plan.kv.states
            logits(engine, IDS[:100], kv=kv)
            found.append(layout.read(kv.states.lend(100).block.address))
            assert found[-1].nbytes == layout.read_bytes and np.array_equal(found[-1], found[0])
            block = _core.Block(engine.caches.state_pool)
            layout.write(block.address, found[0])
            assert np.array_equal(layout.read(block.address), found[0])
    assert found[0].any()


def test_a_state_that_is_lent(engine, wanted):
    """Whoever has it goes on from it, as often as he likes; it stays when its sequence has gone, and its holders are known."""
    kv = engine.new_kv()
    logits(engine, IDS[:256], [128], kv=kv)
    assert kv.states.lend(100) is None
    kept = kv.states.lend(256)
    assert set(kept.holders) == {kv.states}
    logits(engine, IDS[:50], kv=kv, start=256)  # the sequence writes to other blocks
    kv.close()
    assert not kept.holders and blocks(engine) == 1
    for _ in range(2):
        again, twin = engine.new_kv(), engine.new_kv()
        logits(engine, IDS[:256], kv=again)
        again.states.adopt(256, kept)
        twin.states.share(again.states, 256)
        assert set(kept.holders) == {again.states, twin.states} and again.states.positions() == [256]
        same_bits(logits(engine, IDS[256:300], [20], kv=again, start=256), wanted["qwen3next"][256:300])
        again.close(), twin.close()
        assert not kept.holders


def test_states_without_recurrent_layers():
    states = States(None, StateLayout(1, 8))
    assert states.prepare(0, 5) is None and states.reach(7) == [7] and states.addresses() == []
    states.done(0, 5, None)
    states.close()


def test_the_shape_of_qwen3_next_80b(tmp_path):
    """Read from a file of holes: 36 layers of 32 matrices of 128 x 128 floats and the last three inputs of 8,192 channels."""
    shape = random_gguf.SHAPES["qwen3next"]._replace(layers=48, experts=512)
    tensors = [(name, kind, tuple(n for n in (columns, rows, experts) if n))
               for name, rows, columns, kind, experts in random_gguf.tensors_of(shape, 48, 151_936, "Q4_K", "Q8_0")]  # fmt: skip
    keys = {"context_length": 262_144, "embedding_length": 2048, "block_count": 48, "feed_forward_length": 5120, "attention.head_count": 16,
            "attention.head_count_kv": 2, "attention.key_length": 256, "attention.value_length": 256, "rope.dimension_count": 64,
            "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e7, "expert_count": 512, "expert_used_count": 10,
            "expert_feed_forward_length": 512, "expert_shared_feed_forward_length": 512, "ssm.conv_kernel": 4, "ssm.inner_size": 4096,
            "ssm.state_size": 128, "ssm.time_step_rank": 32, "ssm.group_count": 16}  # fmt: skip
    state = 36 * (32 * 128 * 128 + 3 * 8192) * 4
    with GGUFFile(hollow(tmp_path / "next.gguf", "qwen3next", keys, tensors)) as file:
        need = demand(file, 2, n_ctx=32_768)
    assert need.state_read == state == 79_036_416
    assert 9 * state <= need.kv_state_bytes <= 9 * state * 1.03  # what a step reads and leaves, two prompts', five checkpoints; whole pages
    assert need.kv_bytes_per_token == 12 * 2 * (256 + 256) * 2 and need.kv_read(1000) == state + 1000 * 24_576
    assert 2.3e9 < need.read < 2.5e9 and 45e9 < need.weights < 47e9


def test_what_is_told(paths, capsys):
    """`info` and placements know of states, as loaded models do."""
    from numainfer.cli.main import main

    with GGUFFile(paths["qwen3next"]) as file:
        need = demand(file, 1, n_ctx=N)
    with ni.load(str(paths["qwen3next"]), n_ctx=N, threads=1) as model:
        layout = model.plan.kv.states
        assert need.kv_bytes == model.plan.kv_bytes == model.plan.kv.bytes(N) > layout.blocks(N) * layout.block_bytes
        assert need.kv_state_bytes == layout.bytes(N) and need.state_read == layout.read_bytes
        assert need.kv_read(10) == model.plan.kv.read_bytes(10)
        assert "of recurrent state" in str(model.placement)
    assert main(["info", str(paths["qwen3next"]), "--ctx", str(N)]) == 0
    assert "of recurrent state" in capsys.readouterr().out


# ---- the end ----------------------------------------------------------------------------------------------------------


def test_closing_in_the_midst_of_a_step(engine, wanted):
    """By another thread: the blocks go with the step, the next one is refused."""
    kv = engine.new_kv()
    logits(engine, IDS[:20], kv=kv)

    def closing(plan, *step):
        thread = threading.Thread(target=kv.close)
        thread.start()
        thread.join()
        assert kv.closed and blocks(engine) == 2
        plan.run(*step)

    with instead(engine, closing):
        same_bits(engine.step([(kv, IDS[20:30], 20)], range(10)), wanted["qwen3next"][20:30])
    assert blocks(engine) == 0
    with pytest.raises(ModelClosed):
        engine.step([(kv, IDS[:20], 0)], [0])


def test_no_memory_for_a_state(engine, wanted, monkeypatch):
    """The step is refused, and what the sequence had is as it was."""
    kv = engine.new_kv()
    logits(engine, IDS[:20], kv=kv)
    monkeypatch.setattr(states_module._core, "Block", SimpleNamespace(__call__=None))
    with pytest.raises(TypeError):
        engine.step([(kv, IDS[20:128], 20)], [0])
    monkeypatch.undo()
    assert kv.n == 20
    same_bits(logits(engine, IDS[20:40], kv=kv, start=20), wanted["qwen3next"][20:40])
