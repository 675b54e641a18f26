"""Prefixes: what was computed for one sequence serves others, and no bit changes by it."""

import threading

import numpy as np
import pytest
from core_tools import logits, open_engine, pretend, same_bits
from test_mixture_models import model as edited
from tiny_models import tiny

from numainfer import _core
from numainfer.serving.prefix import LEAST, Prefixes, in_common

CHUNK, N = _core.CHUNK, 900
SHAPES = ((1, 2), (2, 1), (3, 1))
COMMON = {"context": 1024, "heads": 4, "kv_heads": 2, "width": 64, "feed_forward": 96, "head_width": 16}


def some_ids(n, seed=12):
    return np.random.default_rng(seed).integers(6, 120, n).astype(np.int32)


IDS = some_ids(N)


def branch(at, n=N, seed=0):
    """The same ids, but for those from a position on."""
    other = some_ids(n, 100 + seed)
    other[:at] = IDS[:at]
    if at < min(n, N):
        other[at] = IDS[at] - 1
    return other


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Layers that see everything; every second with a window; all with one; latent rows."""
    folder = tmp_path_factory.mktemp("prefix")
    found = {"all": tiny(folder, "llama", "Q8_0", name="all", **COMMON)}
    found |= {f"window {w}": tiny(folder, "gemma3", "Q8_0", window=w, name=f"w{w}", **COMMON) for w in (100, 300)}
    found["windows only"] = tiny(folder, "llama", "Q8_0", window=270, name="only", **COMMON)
    found["latent"] = edited(folder, "deepseek2", {"context_length": 1024})
    return found


def out(engine):
    return [pool.n_out for pool in engine.caches.pools]


def compute(engine, prefixes, ids, *, lane=None, sizes=None, offers=(), others=()):
    """All that a sequence computes: its cache, how many positions it was spared, and logits of the others, (n - spared, n_vocab)."""
    lane, kv = lane or engine.lane, engine.new_kv()
    at = spared = prefixes.attach(kv, ids, lane.nodes, others)
    if at and kv.nodes != lane.nodes:
        kv.settle(lane)
    sizes, rows = list(sizes or [engine.n_batch]), []
    while at < len(ids):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        part = ids[at : at + size]
        rows.append(lane.step([(kv, part, at)], range(len(part))))
        at += len(part)
        if at in offers:
            prefixes.offer(kv, ids, at)
    prefixes.offer(kv, ids, len(ids))
    return kv, spared, np.concatenate(rows)


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_longest_beginning_is_found_and_gives_the_same_bits(paths, monkeypatch, shape, kv_type):
    """Token by token: at, before and behind the borders of chunks; from sequences that go on, and from those that have ended."""
    pretend(monkeypatch, *shape)
    with open_engine(paths["all"], n_batch=200, kv_type=kv_type) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        first, spared, right = compute(engine, prefixes, IDS)
        assert spared == 0
        for i, at in enumerate((20, 255, 256, 272, 300, 511, 512, 600, 899)):
            other = branch(at, seed=i)
            kv, spared, found = compute(engine, prefixes, other, sizes=[7, 130, 1, 200])
            assert spared == at
            same_bits(found, logits(engine, other)[spared:])
            if i % 2:
                kv.close()
            if i == 4:
                first.close()
        kv, spared, found = compute(engine, prefixes, IDS)
        assert spared == N - 1  # the last gives the logits
        same_bits(found, right[-1:])
        longer = np.concatenate([IDS, some_ids(50, 7)])
        kv, spared, found = compute(engine, prefixes, longer)
        assert spared == N
        same_bits(found, logits(engine, longer)[N:])


def test_what_is_too_short(paths):
    """Less than LEAST positions at all, or of a block, are not worth it."""
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        compute(engine, prefixes, IDS[: LEAST - 1])
        assert prefixes.bytes == 0
        compute(engine, prefixes, IDS[:400])
        for at, spared in ((LEAST - 1, 0), (LEAST, LEAST), (CHUNK + LEAST - 1, CHUNK), (CHUNK + LEAST, CHUNK + LEAST)):
            assert compute(engine, prefixes, branch(at, 350, at))[1] == spared
        assert compute(engine, prefixes, IDS[:1])[1] == 0
        assert (prefixes.queries, prefixes.hits, prefixes.positions) == (7, 3, LEAST + CHUNK + CHUNK + LEAST)


def test_sequences_that_go_on_serve_others_at_once(paths):
    """The same prompts a moment later: from a cache of which nothing was offered; and nothing is kept where nothing may be."""
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 0)
        kv = engine.new_kv()
        logits(engine, IDS[:377], kv=kv)
        other = branch(370, 420)
        twin, spared, found = compute(engine, prefixes, other, others=[(kv, IDS, 377)])
        assert spared == 370 and prefixes.bytes == 0
        same_bits(found, logits(engine, other)[370:])
        same_bits(logits(engine, IDS[377:500], kv=kv, start=377), logits(engine, IDS[:500])[377:])
        assert compute(engine, prefixes, other, others=[(kv, IDS, 100)])[1] == 100  # as far as it is computed
        for i, (at, found) in enumerate([(LEAST - 1, 0), (CHUNK + LEAST - 1, CHUNK)]):  # less is not worth the copy of a block
            assert compute(engine, prefixes, branch(at, 400, i), others=[(kv, IDS, 377)])[1] == found
        assert compute(engine, prefixes, IDS[:377], others=[(kv, IDS, 500)])[1] == 376  # the last gives the logits
        kv.close()
        assert compute(engine, prefixes, other, others=[(kv, IDS, 377)])[1] == 0


def test_one_that_is_closed_in_between(paths, monkeypatch):
    """By another thread, after it was found and before it is shared: the next best will do."""
    with open_engine(paths["all"], n_batch=400) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        compute(engine, prefixes, IDS[:300])[0].close()
        kv, right = engine.new_kv(), logits(engine, IDS[:400])
        logits(engine, IDS[:390], kv=kv)
        best = Prefixes._best
        monkeypatch.setattr(Prefixes, "_best", lambda *args: (best(*args), kv.close())[0])
        mine, spared, found = compute(engine, prefixes, IDS[:400], others=[(kv, IDS, 390)])
        assert spared == 300 and kv.closed and (prefixes.queries, prefixes.hits) == (2, 1)
        same_bits(found, right[300:])


@pytest.mark.parametrize("name", ["all", "window 300", "windows only"])
def test_one_that_is_closed_while_it_is_offered(paths, monkeypatch, name):
    """What was taken in before is whole."""
    with open_engine(paths[name], n_batch=400) as engine:
        prefixes, kv = Prefixes(engine.caches, 1 << 30), engine.new_kv()
        logits(engine, IDS[:700], kv=kv)
        lend, calls = kv.lend, []

        def closing(chunk):
            calls.append(chunk)
            if chunk == 2:
                kv.close()
            return lend(chunk)

        monkeypatch.setattr(kv, "lend", closing)
        prefixes.offer(kv, IDS, 700)
        assert calls == [0, 1, 2]
        check(prefixes)
        other = branch(600, 720)
        _, spared, found = compute(engine, prefixes, other)
        assert spared == 512
        same_bits(found, logits(engine, other)[spared:])


def test_ids_that_repeat(paths):
    """What follows in the tree is not what follows in the prompt."""
    with open_engine(paths["all"], n_batch=400) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        compute(engine, prefixes, np.array([7] * CHUNK + [9] * 100, np.int32))
        for ids, wanted in (([7] * 100 + [9] * 250, 100), ([7] * 350, CHUNK), ([9] * 350, 0), ([7] * CHUNK + [9] * 50, CHUNK + 49)):
            assert prefixes.known(np.array(ids, np.int32), engine.lane.nodes) == wanted


def test_one_goes_on_in_place_and_the_others_in_copies(paths):
    """A conversation's next turn takes no block more than it needs."""
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        kv, *_ = compute(engine, prefixes, IDS[:300])
        kv.close()
        assert out(engine) == [2]
        next_turn, spared, _ = compute(engine, prefixes, IDS[:340])
        assert spared == 300 and out(engine) == [2]
        third, spared, found = compute(engine, prefixes, branch(320, 400))
        assert spared == 320 and out(engine) == [3]
        same_bits(found, logits(engine, branch(320, 400))[320:])
        same_bits(logits(engine, IDS[340:380], kv=next_turn, start=340), logits(engine, IDS[:380])[340:])
        assert out(engine) == [3]


# ---- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["window 100", "window 300", "windows only"])
def test_windows(paths, monkeypatch, name, shape, kv_type):
    """A prompt begins where a window's blocks are there: near the end of what was offered, or from the beginning."""
    pretend(monkeypatch, *shape)
    window = {"window 100": 100, "window 300": 300, "windows only": 270}[name]
    with open_engine(paths[name], n_batch=64, kv_type=kv_type) as engine:
        prefixes, found = Prefixes(engine.caches, 1 << 30), {}
        kv, *_ = compute(engine, prefixes, IDS[:700], offers=(320,))
        kv.close()
        for i, at in enumerate((30, 240, 319, 400, 600, 690)):
            other = branch(at, 750, i)
            kv, found[at], rows = compute(engine, prefixes, other)
            same_bits(rows, logits(engine, other)[found[at] :])
            kv.close()
        kept = {}  # positions that the blocks of a window hold, by chunk
        for n in (320, 700):
            kept |= {chunk: min(n - chunk * CHUNK, CHUNK) for chunk in range(max(n - window - 63, 0) // CHUNK, -(-n // CHUNK))}

        def begins(n):
            chunks = range(max(n - window + 1, 0) // CHUNK, -(-n // CHUNK))
            return (n % CHUNK >= LEAST or n % CHUNK == 0) and all(kept.get(j, 0) >= min(n - j * CHUNK, CHUNK) for j in chunks)

        assert found == {at: max(n for n in range(at + 1) if begins(n)) for at in found}
        assert found[690] == 690 and (found[600] < 600) == (window == 100)


def test_where_a_window_leaves_a_block(paths):
    """To the position: the token at 354 sees the last of the first 256, which are gone; the one at 355 does not."""
    with open_engine(paths["window 100"], n_batch=64) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        compute(engine, prefixes, IDS[:430])[0].close()
        for at, wanted in ((354, 0), (355, 355)):
            assert prefixes.attach(engine.new_kv(), branch(at, 380)) == wanted


def test_a_window_that_was_forgotten(paths):
    """Offered at its end alone, its middle is of no use; and blocks of a window leave before those that see everything."""
    with open_engine(paths["window 100"], n_batch=64) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        kv, *_ = compute(engine, prefixes, IDS)
        kv.close()
        assert compute(engine, prefixes, branch(400, 450))[1] == 0
        far = engine.new_kv()
        logits(engine, IDS[:700], kv=far)
        assert compute(engine, Prefixes(engine.caches, 0), branch(400, 450, 1), others=[(far, IDS, 700)])[1] == 0
        other = branch(880)
        kv, spared, found = compute(engine, prefixes, other)
        assert spared == 880
        same_bits(found, logits(engine, other)[880:])
        before = dict.fromkeys(prefixes._used)
        prefixes.reclaim(1)
        (gone,) = before.keys() - prefixes._used.keys()
        assert gone.node.windows is gone


# ---- nodes ------------------------------------------------------------------------------------------------------------


def test_nodes_that_work_apart_copy(paths, monkeypatch):
    """What one lane computed another copies, so that it reads its own; and what it has itself it shares."""
    pretend(monkeypatch, 2, 1)
    right = None
    with open_engine(paths["all"], placement="replicate", n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        lanes, found = [engine.lane, *engine.node_lanes()], []
        for i, lane in enumerate(lanes):
            before = out(engine)[0]
            kv, spared, rows = compute(engine, prefixes, IDS[:400], lane=lane)
            right = rows if right is None else right
            assert spared == (399 if i else 0) and kv.nodes == lane.nodes and out(engine)[0] == before + 2
            same_bits(rows, right[spared:])
            found.append(kv)
        for i, (kv, lane) in enumerate(zip(found, lanes)):
            other = branch(390, 450, i)
            twin, spared, rows = compute(engine, prefixes, other, lane=lane)
            assert spared == 390 and twin.nodes == lane.nodes
            assert {b[2] for b in twin.blocks() if b[1] == 0} == {b[2] for b in kv.blocks() if b[1] == 0}  # the first block is shared
            same_bits(rows, logits(engine, other)[390:])
        first = engine.lane
        near, far = some_ids(CHUNK, 5), some_ids(CHUNK + LEAST - 1, 5)
        compute(engine, prefixes, near, lane=lanes[1])
        compute(engine, prefixes, far, lane=first)
        assert prefixes.attach(engine.new_kv(), np.append(far, 7).astype(np.int32), lanes[1].nodes) == CHUNK  # hardly more is far


def test_forgetting_what_lies_on_a_node(paths, monkeypatch):
    pretend(monkeypatch, 2, 1)
    with open_engine(paths["all"], placement="replicate", n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        lanes = [engine.lane, *engine.node_lanes()]
        for i, lane in enumerate(lanes):
            compute(engine, prefixes, some_ids(400, i), lane=lane)[0].close()
        each = prefixes.bytes // 3
        assert prefixes.reclaim(1, [0]) == each // 2  # of all nodes' lane, whose was used least recently: the second block
        prefixes.reclaim(nodes=[1])
        assert prefixes.bytes == each
        known = [prefixes.known(some_ids(401, i)[:400], lanes[1].nodes) for i in range(3)]
        assert known == [0, 399, 0]


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all", "window 100", "windows only", "latent"])
def test_a_random_walk(paths, name):
    """Offers, finds and reclaims of sequences of one family: right bits, never more than the bound, leaves first, nothing left."""
    rng = np.random.default_rng(5)
    with open_engine(paths[name], n_batch=128, n_ctx=1024) as engine:
        block = max(kind.block_bytes for kind in engine.plan.kv.kinds)
        prefixes, alive, spared_in_all = Prefixes(engine.caches, 9 * block), [], 0
        for i in range(12 if name == "latent" else 60):  # whose kernels are slow with few heads
            at, more = int(rng.choice([0, 20, 250, 256, 300, 512, 640])), int(rng.integers(1, 60))
            ids = branch(at, at + more, int(rng.integers(3)))
            kv, spared, found = compute(engine, prefixes, ids, sizes=[int(rng.integers(20, 129))], offers=range(64, 900, 64))
            same_bits(found, logits(engine, ids)[spared:])
            spared_in_all += spared
            alive.append(kv)
            if rng.random() < 0.7:
                alive.pop(rng.integers(len(alive))).close()
            if rng.random() < 0.1:
                before, can = out(engine), prefixes.reclaimable
                freed = prefixes.reclaim(int(rng.integers(1, 3 * block)))
                assert freed == sum((a - b) * kind.block_bytes for a, b, kind in zip(before, out(engine), prefixes._kinds))
                assert freed <= can
            check(prefixes)
        assert spared_in_all > 30 * i
        for kv in alive:
            kv.close()
        assert prefixes.reclaimable == prefixes.bytes == sum(n * kind.block_bytes for n, kind in zip(out(engine), prefixes._kinds)) > 0
        prefixes.reclaim()
        check(prefixes)
        assert prefixes.bytes == 0 and out(engine) == [0] * len(prefixes._kinds)


def check(prefixes):
    """The tree is whole, and what it says of itself is true."""
    found, n_bytes, states = set(), 0, set()
    for root in prefixes._roots.values():
        waiting = [root]
        while waiting:
            node = waiting.pop()
            assert node.keys == sorted(node.keys) == [child.key for child in node.children]
            assert not node.children or node is root or len(node.key) == 4 * CHUNK
            for a, b in zip(node.keys, node.keys[1:]):
                assert not b.startswith(a)
            for part in (node.all, node.windows, node.states):
                own = {kept for kept, _ in part.blocks.values()} if part is node.states else set()
                n_bytes += sum(prefixes._size(part, i) for i, (block, _) in part.blocks.items() if block not in states)
                states |= own
                assert all(0 < n <= len(node.key) // 4 for _, n in part.blocks.values())
                assert part is node.states or all(block.references for block, _ in part.blocks.values())
                if node is not root and (part.blocks or part is node.all):
                    found.add(part)
            if node is not root:
                assert set(node.all.blocks) == {kind.index for kind in prefixes._kinds if not kind.window}
            waiting += node.children
    assert found == set(prefixes._used) and n_bytes == prefixes.bytes <= prefixes.most
    order = {part: i for i, part in enumerate(prefixes._used)}
    assert all(order[part.node.parent.all] > i for part, i in order.items() if part.node.parent in [p.node for p in order])


def test_the_least_recently_used_leave_first(paths):
    with open_engine(paths["all"], n_batch=300) as engine:
        block = engine.plan.kv.kinds[0].block_bytes
        prefixes = Prefixes(engine.caches, 4 * block)
        for i in range(3):
            compute(engine, prefixes, some_ids(100, i))[0].close()
        assert prefixes.attach(engine.new_kv(), some_ids(100, 0)) == 99  # used again
        long = some_ids(500, 9)
        compute(engine, prefixes, long)[0].close()  # two blocks: one must go
        assert prefixes.bytes == 4 * block
        assert [compute(engine, Prefixes(engine.caches, 0), long)[1]] == [0]
        hits = {i: prefixes._find((0,), np.append(some_ids(100, i), 6).astype(np.int32))[1] for i in range(3)}
        assert hits == {0: 100, 1: 0, 2: 100}
        compute(engine, prefixes, some_ids(1000, 10))[0].close()  # four blocks
        assert prefixes.bytes == 4 * block and prefixes._find((0,), long)[1] == 0
        compute(engine, prefixes, np.append(some_ids(1000, 10), some_ids(20, 11)).astype(np.int32))[0].close()
        check(prefixes)


def test_blocks_of_those_that_go_on_are_not_freed_by_forgetting(paths):
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        kv, _, right = compute(engine, prefixes, IDS[:600])
        assert prefixes.bytes and prefixes.reclaimable == 0
        assert prefixes.reclaim() == 0 and prefixes.bytes == 0 and out(engine) == [3]
        same_bits(logits(engine, IDS[600:700], kv=kv, start=600), logits(engine, IDS[:700])[600:])
        prefixes.offer(kv, IDS, 700)
        kv.close()
        assert prefixes.reclaimable == prefixes.bytes
        prefixes.close()
        assert out(engine) == [0]
        kv, *_ = compute(engine, prefixes, IDS[:600])
        assert prefixes.bytes == 0


@pytest.mark.parametrize("name", ["all", "window 100", "windows only"])
def test_what_sequences_go_on_in_is_not_forgotten_for_nothing(paths, name):
    """Memory that is wanted comes from what was used later but is nobody's; what stands behind such a block stays with it."""
    with open_engine(paths[name], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        kv, *_ = compute(engine, prefixes, IDS[:600])
        for i in range(2):
            compute(engine, prefixes, some_ids(300, i))[0].close()
        known = prefixes.known(IDS[:600], engine.lane.nodes)
        before, can = out(engine), prefixes.reclaimable
        freed = prefixes.reclaim(1)
        assert freed == sum((a - b) * kind.block_bytes for a, b, kind in zip(before, out(engine), prefixes._kinds)) > 0
        check(prefixes)
        assert freed + prefixes.reclaim(1 << 40) == can and prefixes.reclaimable == 0
        check(prefixes)
        assert prefixes.known(IDS[:600], engine.lane.nodes) == known > 500
        assert all(prefixes.known(some_ids(301, i)[:300], engine.lane.nodes) == 0 for i in range(2))
        kv.close()
        prefixes.reclaim(1 << 40)
        check(prefixes)
        assert out(engine) == [0] * len(prefixes._kinds) and not prefixes._used and prefixes.bytes == 0


def test_what_is_closed_is_not_offered(paths):
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        kv = engine.new_kv()
        prefixes.offer(kv, IDS, 100)  # nothing is in it
        logits(engine, IDS[:100], kv=kv)
        prefixes.offer(kv, IDS, 600)  # as much as there is
        assert compute(engine, prefixes, IDS[:200])[1] == 100
        kv.close()
        before = prefixes.bytes
        prefixes.offer(kv, IDS[::-1].copy(), 100)
        assert prefixes.bytes == before


def test_an_end_that_the_garbage_collector_finds(paths, monkeypatch):
    """In the midst of an offer or a search another sequence of the same thread ends, and offers: the tree stays whole."""
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 3 * engine.plan.kv.kinds[0].block_bytes)
        compute(engine, prefixes, IDS[:700])[0].close()
        other = engine.new_kv()
        logits(engine, some_ids(600, 5), kv=other)
        for method in ("_touch", "_blocks", "_take"):
            real = getattr(Prefixes, method)

            def interrupted(self, *args, real=real):
                prefixes.offer(other, some_ids(600, 5), 600)
                return real(self, *args)

            monkeypatch.setattr(Prefixes, method, interrupted)
            kv, spared, found = compute(engine, prefixes, branch(650, 720))
            assert spared == 650
            same_bits(found, logits(engine, branch(650, 720))[650:])
            kv.close()
            monkeypatch.undo()
            check(prefixes)
            compute(engine, prefixes, IDS[:700])[0].close()


def test_from_many_threads(paths):
    """Lanes and callers at the same time; steps one at a time, as the lane's loop runs them."""
    errors, step = [], threading.Lock()
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 12 * engine.plan.kv.kinds[0].block_bytes)
        right = {(at, seed): logits(engine, branch(at, at + 30, seed))[-1] for at in (40, 260, 500) for seed in range(3)}

        def work(me):
            rng = np.random.default_rng(me)
            try:
                for _ in range(25):
                    (at, seed), wanted = list(right.items())[rng.integers(len(right))]
                    ids, kv = branch(at, at + 30, seed), engine.new_kv()
                    n = prefixes.attach(kv, ids)
                    with step:
                        rows = logits(engine, ids[n:], kv=kv, start=n)
                    same_bits(rows[-1], wanted)
                    prefixes.offer(kv, ids, len(ids))
                    kv.close()
                    if rng.random() < 0.1:
                        prefixes.reclaim(1)
            except BaseException as e:  # noqa: BLE001 - told below
                errors.append(e)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]
        check(prefixes)
        prefixes.reclaim()
        assert out(engine) == [0]


def test_what_a_cache_has_already(paths):
    """A session's own beginning stays unless more is known."""
    with open_engine(paths["all"], n_batch=300) as engine:
        prefixes = Prefixes(engine.caches, 1 << 30)
        compute(engine, prefixes, IDS[:300])[0].close()
        kv = engine.new_kv()
        logits(engine, branch(290, 350), kv=kv)  # its last 60 are others
        before = out(engine)
        assert prefixes.attach(kv, branch(200, 320, 1), have=200) == 200 and kv.n == 350 and out(engine) == before
        assert prefixes.attach(kv, IDS[:400], have=290) == 300 and kv.n == 300 and out(engine) == [2]
        same_bits(logits(engine, IDS[300:400], kv=kv, start=300), logits(engine, IDS[:400])[300:])


def test_in_common():
    a = np.array([3, 1, 4, 1, 5], np.int32)
    found = [in_common(a, np.array(b, np.int32)) for b in ([], [3], [3, 1, 4, 1, 5], [3, 1, 5], [9], [3, 1, 4, 1, 5, 9])]
    assert found == [0, 1, 5, 2, 0, 5]
