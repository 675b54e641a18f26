"""Prefixes of models with recurrent layers: they begin where a state was kept, with the same bits; sessions of theirs on disk."""

import numpy as np
import pytest
from core_tools import logits, open_engine, pretend, same_bits
from test_prefix import CHUNK, IDS, branch, check, compute
from tiny_recurrent import tiny_recurrent

import numainfer as ni
from numainfer.engine import states as states_module
from numainfer.errors import SavedSessionError
from numainfer.serving.prefix import Prefixes

ARCHITECTURES = ("qwen3next", "qwen35")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    return {name: tiny_recurrent(folder, name) for name in ARCHITECTURES}


def out(engine):
    return [pool.n_out for pool in engine.caches.pools], engine.caches.state_pool.n_out


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 1)], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_they_begin_where_a_state_is(paths, monkeypatch, name, shape):
    """At the end of what was offered, and at the last border of a chunk before the end of its prompt."""
    pretend(monkeypatch, *shape)
    with open_engine(paths[name], n_ctx=1000, n_batch=400) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        kv, _, right = compute(engine, prefixes, IDS[:300])
        assert kv.states.positions() == [256, 300]
        for at, wanted in ((200, 0), (256, 256), (280, 256), (299, 256)):
            other = branch(at, 330, at)
            twin, spared, found = compute(engine, Prefixes(engine.caches, 0), other, others=[(kv, IDS, 300)])
            assert spared == wanted
            same_bits(found, logits(engine, other)[spared:])
            twin, spared, found = compute(engine, prefixes, other)
            assert spared == wanted
            same_bits(found, logits(engine, other)[spared:])
            twin.close()
        kv.close()
        for ids, wanted in ((IDS[:300], 256), (IDS[:301], 300), (IDS[:400], 301)):
            twin, spared, found = compute(engine, prefixes, ids)
            assert spared == wanted
            same_bits(found, logits(engine, ids)[spared:])
            twin.close()
        same_bits(right, logits(engine, IDS[:300]))
        check_states(prefixes)
        prefixes.close()
        assert out(engine) == ([0], 0)


def check_states(prefixes):
    """As `check` of test_prefix, with the states."""
    for part in prefixes._used:
        if part is part.node.states:
            assert all(at == where for at, (_, where) in part.blocks.items())
    check(prefixes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_random_walk(paths, monkeypatch, name):
    monkeypatch.setattr(states_module, "SPACING", 64)
    rng = np.random.default_rng(3)
    with open_engine(paths[name], n_ctx=1000, n_batch=128) as engine:
        layout = engine.plan.kv
        prefixes, alive, spared_in_all = Prefixes(engine.caches, 5 * layout.kinds[0].block_bytes + 8 * layout.states.block_bytes), [], 0
        for _ in range(40):
            at, more = int(rng.choice([0, 20, 250, 256, 300, 512])), int(rng.integers(1, 60))
            ids = branch(at, at + more, int(rng.integers(3)))
            kv, spared, found = compute(engine, prefixes, ids, sizes=[int(rng.integers(20, 129))], offers=range(64, 900, 64))
            same_bits(found, logits(engine, ids)[spared:])
            spared_in_all += spared
            alive.append(kv)
            if rng.random() < 0.7:
                alive.pop(rng.integers(len(alive))).close()
            if rng.random() < 0.15:
                (before, states), can = out(engine), prefixes.reclaimable
                freed = prefixes.reclaim(int(rng.integers(1, 3 * layout.kinds[0].block_bytes)))
                after, left = out(engine)
                assert freed == (before[0] - after[0]) * layout.kinds[0].block_bytes + (states - left) * layout.states.block_bytes <= can
            check_states(prefixes)
        assert spared_in_all > 1000
        for kv in alive:
            kv.close()
        (blocks,), states = out(engine)
        assert prefixes.reclaimable == prefixes.bytes == blocks * layout.kinds[0].block_bytes + states * layout.states.block_bytes > 0
        prefixes.reclaim()
        assert prefixes.bytes == 0 and out(engine) == ([0], 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_requests(paths, name):
    """Lists, conversations, sessions and n answers, as if each were alone."""
    prompts = [IDS[:280].tolist() + [6 + i, 9] for i in range(4)]
    more = {"max_tokens": 5, "ignore_eos": True}
    with ni.load(paths[name], n_ctx=1000, n_batch=128, prefix_cache=0) as model:
        right = [model.generate(prompt, **more) for prompt in prompts]
        last = [*prompts[0], *right[0].token_ids, 7, 8]
        turn = model.generate(last, **more)
    with ni.load(paths[name], n_ctx=1000, n_batch=128) as model:
        for _ in range(2):
            done = model.generate(prompts, **more)
            assert [d.token_ids for d in done] == [d.token_ids for d in right]
        assert {d.usage.cached_tokens for d in done} <= {256, 281}
        again = model.generate(last, **more)
        assert again.token_ids == turn.token_ids and again.usage.cached_tokens == 282 + 4
        several = model.generate(prompts[0], n=3, **more)
        assert {d.token_ids for d in several} == {right[0].token_ids}
        with model.session() as session:
            assert session.generate(last, **more).token_ids == turn.token_ids


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_disk(paths, monkeypatch, tmp_path, name):
    files = []
    with ni.load(paths[name], n_ctx=1000, prefix_cache=0) as model, model.session() as session:
        right = model.logits(IDS[:330])
        session.logits(IDS[:300])
        session.save(tmp_path / "1")
    for before, nodes in ((1, 2), (2, 3), (3, 1)):
        monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
        with ni.load(paths[name], n_ctx=1000, n_batch=64) as model, model.restore(tmp_path / f"{before}") as session:
            session.save(tmp_path / f"{nodes}")
            files.append((tmp_path / f"{nodes}").read_bytes())
            assert session.generate(IDS[:330], max_tokens=1).usage.cached_tokens == 300
            assert np.array_equal(session.logits(IDS[:330]), right)
    assert files[0] == files[1] == files[2]
    for place, says in ((len(files[0]) - 5, "the state at position 300: the bytes do not fit"), (None, "the file was cut")):
        bad = bytearray(files[0])
        if place is None:
            del bad[-1]
        else:
            bad[place] ^= 4
        (tmp_path / "bad").write_bytes(bad)
        with ni.load(paths[name], n_ctx=1000) as model:
            with pytest.raises(SavedSessionError, match=says):
                model.restore(tmp_path / "bad")
            assert out(model.runtime.engine) == ([0], 0)


def test_states_that_are_kept_count(paths, monkeypatch):
    """In what a placement tells of KV memory, also where nodes are pretended and their sequences have ended."""
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with ni.load(paths["qwen35"], n_ctx=1000, n_batch=128) as model, model.session() as session:
        session.logits(IDS[:300])
        before = model.placement.kv_bytes()
        session.close()
        assert model.placement.kv_bytes() == before and model.runtime.engine.caches.state_pool.n_out > 0
        blocks = sum(pool.n_out * kind.block_bytes for pool, kind in zip(model.runtime.engine.caches.pools, model.plan.kv.kinds))
        states = model.runtime.engine.caches.state_pool.n_out * model.plan.kv.states.block_bytes
        assert states / 2 < sum(before.values()) <= blocks + states
        model.runtime.prefixes.reclaim()
        assert sum(model.placement.kv_bytes().values()) == 0


def test_the_state_of_a_position_that_was_forgotten(paths):
    """Its blocks alone are of no use."""
    with open_engine(paths["qwen3next"], n_ctx=1000, n_batch=400) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        compute(engine, prefixes, IDS[:400])[0].close()
        states = [part for part in prefixes._used if part is part.node.states]
        assert len(states) == 2 and prefixes.known(IDS[:500], engine.lane.nodes) == 400
        for part in states:
            prefixes._forget(part)
        assert prefixes.known(IDS[:500], engine.lane.nodes) == 0
        _, spared, found = compute(engine, prefixes, IDS[:500])
        assert spared == 0
        same_bits(found, logits(engine, IDS[:500]))
        assert prefixes.known(IDS[:500], engine.lane.nodes) == CHUNK  # the last gives the logits
