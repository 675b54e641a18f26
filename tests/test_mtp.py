"""The layer that predicts a further token (MTP): what it says, that its cache is right whatever happened, and that answers are the same."""

import contextlib
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from core_tools import Sheet, fill_segment, open_engine, open_team, pretend, rig, same_bits
from scheduler_tools import facts, one_by_one
from test_cache import broken, instead
from test_invariance import NODE, NONE, Shuffled
from test_speculation import SAMPLED, counts, free_rows  # noqa: F401
from tiny_heads import N, hidden_norm, knowing, reference_head, with_head

import numainfer as ni
from numainfer import _core
from numainfer._core import Cancelled
from numainfer.engine.architectures import WITH_HEAD, build
from numainfer.engine.heads import KEPT, Hidden
from numainfer.engine.plan import HEAD_ROWS, Plan
from numainfer.engine.weights import Catalog
from numainfer.gguf.file import GGUFFile
from numainfer.serving import heads
from numainfer.serving.heads import Head
from numainfer.serving.speculation import FEW, MOST

NAMES = ("glm4moe", "deepseek2", "qwen35", "qwen35moe", "mimo2")
RECURRENT = ("qwen35", "qwen35moe")
PLAIN = {"rope.scaling.type": None, "rope.scaling.factor": None}  # positions as they are: what YaRN does goldens show
IDS = np.random.default_rng(6).integers(3, N, 320).astype(np.int32)
GREEDY = {"max_tokens": 24, "ignore_eos": True}


def prompts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, N, n).astype(np.int32) for n in lengths]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Files of random weights, and ("knows") those whose head is mostly right."""
    folder, found = tmp_path_factory.mktemp("heads"), {}
    for name in NAMES:
        found[name] = with_head(folder, name)
        found[f"{name} knows"] = with_head(folder, name, knowing(0.15), file=f"{name}-knows")
    return found


def fed(engine, kv, ids, pieces=(320,), start=0, lane=None, **more):
    """Feed ids to the model in pieces, the last of which repeats; the cache then."""
    pieces, at = list(pieces), 0
    while at < len(ids):
        n = pieces.pop(0) if len(pieces) > 1 else pieces[0]
        (lane or engine.lane).step([(kv, ids[at : at + n], start + at)], [0], **more)
        at += len(ids[at : at + n])
    return kv


def expected(engine, kv, n, tokens, lane=None, **more):
    """(logits, hidden state) of what the head says behind position n and some tokens, one after the other; the cache is cut again."""
    state, found, lane = kv.hidden.before(n), [], lane or engine.lane
    for i, token in enumerate(tokens):
        logits, hidden = lane.draft([(kv, token, n + i)], [state], **more)
        found.append((logits[0], hidden[0]))
        state = hidden[0]
    kv.rewind(n)
    return tuple(map(np.array, zip(*found)))


def both_same(found, wanted, what=""):
    same_bits(found[0], wanted[0], what)
    same_bits(found[1], wanted[1], what)


# ---- ops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3)], ids=str)
def test_hidden_states_before_and_handed_out(tmp_path, shape):
    """Each segment's first row is what the step brings, or zeros; all rows are handed out where somebody wants them."""
    values = np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32)
    sheet = Sheet(tmp_path / "sheet.gguf", {"x96": values})

    def build(p, s):
        h = p.embed(s["x96"])
        p.hand_out(h)
        p.logits(p.before(h, 96), None)

    with open_team(*shape) as team, rig(sheet, team, build, hidden=True) as r:
        for sizes in ((1,), (1, 1, 1), (5, 1, 9), (40,)):
            n, table = sum(sizes), np.zeros(len(sizes), _core.SEGMENT_DTYPE)
            ids = np.arange(40, dtype=np.int32)[::-1][:n].copy()
            wanted, row = values[np.r_[0, ids[:-1]]], 0
            for i, size in enumerate(sizes):
                fill_segment(table[i], r.new_kv(), row, size, 3)
                table[i]["hidden"] = values[i].ctypes.data if i != 1 else 0
                wanted[row] = values[i] if i != 1 else 0
                row += size
            for seed in (0, 1, 2):
                out, handed = np.full((n, 96), np.nan, np.float32), np.full((n + 1, 96), np.nan, np.float32)
                r.core.fill(np.nan)
                r.core.run(ids, table, np.arange(n, dtype=np.int32), out, seed, hidden=handed)
                same_bits(out, wanted)
                same_bits(handed[:n], values[ids])
                assert np.isnan(handed[n]).all()
                out[:] = np.nan
                r.core.run(ids, table, np.arange(n, dtype=np.int32), out, seed)
                same_bits(out, wanted)
        with pytest.raises(ValueError, match="a step needs tokens and a row of output per wanted row"):
            r.core.run(ids, table, np.arange(n, dtype=np.int32), out, hidden=handed[: n - 1])
    sheet.close()


# ---- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "own", "heads"), [("glm4moe", False, 1), ("glm4moe", True, 2), ("deepseek2", False, 1),
                                                   ("deepseek2", True, 1), ("qwen35", False, 1), ("qwen35moe", True, 1),
                                                   ("qwen3next", False, 1), ("mimo2", True, 2)])  # fmt: skip
def test_the_head_is_its_definition(tmp_path, name, own, heads):
    path = with_head(tmp_path, name, own=own, keys=PLAIN if name == "deepseek2" else (), heads=heads)
    ids = IDS[:60]
    with open_engine(path, kv_type="f32", mtp=True, threads=1) as engine:
        hidden, kv = [], engine.new_kv()
        for i in range(60):
            fed(engine, kv, ids[i : i + 1], start=i)
            hidden.append(kv.hidden.before(i + 1))
        hidden, normed = np.array(hidden), engine.step([(engine.new_kv(), ids, 0)], range(60), hidden=True)
        if name == "mimo2":  # its head reads the stream before the model's last norm
            assert np.abs(hidden_norm(path, hidden) - normed).max() < 1e-5 * np.abs(normed).max() < np.abs(hidden - normed).max()
        else:
            same_bits(hidden, normed)
        for n in (0, 1, 17, 50):
            wanted, stands_in = reference_head(path, hidden[: n + 1], ids[: n + 1])
            kv = fed(engine, engine.new_kv(), ids[:n])
            found, state = expected(engine, kv, n, ids[n : n + 1])
            assert np.abs(found[0] - wanted[-1]).max() < 1e-5 * np.abs(wanted).max()
            assert np.abs(state[0] - stands_in[-1]).max() < 1e-5 * np.abs(stands_in).max()
            # What it says of its own prediction: its hidden state stands in for the model's.
            wanted, _ = reference_head(path, np.concatenate([hidden[: n + 1], state, state])[[*range(n), n + 1, n + 2]], ids[: n + 2])
            found, _ = expected(engine, kv, n, ids[n : n + 2])
            assert np.abs(found[1] - wanted[-1]).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself_is_as_without(paths, name):
    ids, found, layers = IDS[:300], [], []
    for mtp in (False, True):
        with open_engine(paths[name], mtp=mtp, threads=1) as engine:
            kv = engine.new_kv()
            found.append([engine.step([(kv, ids[:270], 0)], range(0, 270, 7)), engine.step([(kv, ids[270:], 270)], range(30)),
                          engine.step([(kv, ids[:30], 0)], range(30), hidden=True)])  # fmt: skip
            layers.append(len(engine.plan.kv.layers))
            assert layers[-1] == sum(len(kind.layers) for kind in engine.plan.kv.kinds) == layers[0] + mtp
    for a, b in zip(*found):
        same_bits(b, a)


# ---- whatever happened before ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wanted(paths):
    """What the head says behind all of IDS but the last, of a model that has read them at once, on one thread."""
    found = {}
    for name in NAMES:
        with open_engine(paths[name], mtp=True, threads=1) as engine:
            kv = fed(engine, engine.new_kv(), IDS[:300])
            found[name] = expected(engine, kv, 300, IDS[300:303])
    return found


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, (1, 3)), (3, 1)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_threads_nodes_and_placements(paths, wanted, monkeypatch, name, shape):
    pretend(monkeypatch, *shape)
    for placement in ("replicate", "shard", "interleave", "experts=shard,*=replicate") if shape[0] > 1 else ("auto",):
        with open_engine(paths[name], mtp=True, placement=placement) as engine:
            kv = fed(engine, engine.new_kv(), IDS[:300], (200, 1, 2, 97))
            both_same(expected(engine, kv, 300, IDS[300:303]), wanted[name], placement)
            for seed in (1, 2, 3):
                both_same(expected(engine, kv, 300, IDS[300:303], shuffle_seed=seed), wanted[name], f"seed {seed}")
            lanes = engine.node_lanes()
            kv, at = engine.new_kv(), 0
            for i, n in enumerate((100, 130, 69, 1)):  # it wanders from lane to lane
                fed(engine, kv, IDS[at : at + n], (64,), at, lanes[i % len(lanes)])
                at += n
            both_same(expected(engine, kv, 300, IDS[300:303], lanes[0]), wanted[name], "a node's lane")


@pytest.mark.parametrize("name", NAMES)
def test_pieces_rewinds_and_forks(paths, wanted, name):
    with open_engine(paths[name], mtp=True, n_batch=128) as engine:
        for pieces in ((1,), (128,), (100, 3, 50, 16)):
            kv = engine.new_kv()
            fed(engine, kv, IDS[:290], pieces)
            kv.states.expect(3)
            fed(engine, kv, [IDS[290], *IDS[100:103]], start=290)  # proposed in vain: the first was wrong
            assert kv.rewind(291) == 291
            fed(engine, kv, IDS[291:300], (4,), 291)
            both_same(expected(engine, kv, 300, IDS[300:303]), wanted[name], f"pieces of {pieces}")
            expected(engine, kv, 300, [5, 6, 7, 8])  # what was drafted leaves nothing behind
            both_same(expected(engine, kv, 300, IDS[300:303]), wanted[name], "again")
            fork = kv.copy(300)
            fed(engine, kv, IDS[:20], start=300)
            expected(engine, kv, 320, [9, 10])
            both_same(expected(engine, fork, 300, IDS[300:303]), wanted[name], "a fork")
            if name not in RECURRENT:
                fork.rewind(295)
                fed(engine, fork, IDS[295:300], start=295)
                both_same(expected(engine, fork, 300, IDS[300:303]), wanted[name], "a fork, cut")


def test_a_draft_goes_into_a_block_of_its_own(paths, wanted):
    """Others have the last block too: a fork's draft changes nothing for them, wherever they go on."""
    with open_engine(paths["glm4moe"], mtp=True) as engine:
        kv = fed(engine, engine.new_kv(), IDS[:300])
        forks = [kv.copy(300) for _ in range(3)]
        for i, fork in enumerate(forks):
            state = fork.hidden.before(300)
            for j in range(3):
                _, (state,) = engine.lane.draft([(fork, 20 + i, 300 + j)], [state])
        for fork in (kv, *forks):
            fork.rewind(300)
            both_same(expected(engine, fork, 300, IDS[300:303]), wanted["glm4moe"])


def test_cancelled_steps_leave_it_as_it_was(paths, wanted):
    with open_engine(paths["glm4moe"], mtp=True) as engine:
        kv = fed(engine, engine.new_kv(), IDS[:280], (140,))
        for _ in range(2):
            with instead(engine, broken), pytest.raises(Cancelled):
                engine.lane.step([(kv, IDS[:200], 280)], [0])
            plan = engine.lane.core_plan("head")
            engine.lane._plans["head"] = SimpleNamespace(run=lambda *step, plan=plan: broken(plan, *step))
            with pytest.raises(Cancelled):
                engine.lane.draft([(kv, 3, 280)], [None])
            engine.lane._plans["head"] = plan
            assert kv.n == 280
        fed(engine, kv, IDS[280:300], start=280)
        both_same(expected(engine, kv, 300, IDS[300:303]), wanted["glm4moe"])


def test_what_is_not_known_counts_as_zeros(paths):
    """Behind a beginning that was taken over, or a long rewind: it is worse for a token, and the same each time."""
    with open_engine(paths["glm4moe"], mtp=True) as engine:
        kv = fed(engine, engine.new_kv(), IDS[:100])
        assert kv.hidden.before(100) is not None and kv.hidden.before(100 - KEPT + 1) is not None
        assert kv.hidden.before(100 - KEPT) is None and kv.hidden.before(0) is None and kv.hidden.before(101) is None
        kv.rewind(40)
        one = expected(engine, kv, 40, IDS[40:42])
        both_same(expected(engine, kv, 40, IDS[40:42]), one)
        state = np.zeros(engine.n_embd, np.float32)
        same_bits(engine.lane.draft([(kv, IDS[40], 40)], [state])[0][0], one[0][0])
        other, lent = fed(engine, engine.new_kv(), IDS[100:200]), fed(engine, engine.new_kv(), IDS[:100]).lend(0)
        other.adopt([(kind, 0, block) for kind, block in lent.items()], 100, engine.lane.nodes)
        assert other.n == 100 and other.hidden.before(100) is None  # that was another sequence's


def test_which_hidden_states_are_kept():
    rng, kept, all_rows, n = np.random.default_rng(0), Hidden(), [], 0
    for _ in range(300):
        n = max(n - int(rng.integers(0, 6)) * int(rng.integers(0, 2)), 0)
        rows = rng.standard_normal((int(rng.choice([1, 1, 3, 16, 40])), 2)).astype(np.float32)
        other = Hidden()
        other.share(kept)
        known = {pos: kept.before(pos) for pos in range(n + 3)}
        kept.came(n, rows)
        all_rows[n:] = rows.copy()
        rows[:], n = 0, n + len(rows)
        for pos in range(n + 3):
            found = kept.before(pos)
            assert found is None or (found == all_rows[pos - 1]).all()
            assert found is not None or not max(n - KEPT, n - len(rows)) < pos <= n
            assert pos not in known or other.before(pos) is known[pos]
        n = min(n, 3000)


def test_proposing_together(load):
    """A step for all, and so on; the caches are as before."""
    model = load("glm4moe")
    engine, given, wanted = model.runtime.engine, [], []
    for n, k in ((40, 3), (100, 1), (7, 2)):
        kv = fed(engine, engine.new_kv(), IDS[:n])
        tokens = [int(IDS[n])]
        for _ in range(k):
            tokens.append(int(expected(engine, kv, n, tokens)[0][-1].argmax()))
        head = Head(n)
        head.extend(IDS[: n + 1].tolist())
        given.append((head, kv, n, k))
        wanted.append(tokens[1:])
    assert heads.draft(model.runtime, None, given, lambda: False) == wanted
    assert [kv.n for _, kv, *_ in given] == [40, 100, 7] and all(head.cost > 0 for head, *_ in given)
    for _, kv, *_ in given:
        kv.close()


def test_several_sequences_at_once(paths, wanted):
    with open_engine(paths["glm4moe"], mtp=True, n_batch=400) as engine:
        kvs = [fed(engine, engine.new_kv(), IDS[:300]), *(fed(engine, engine.new_kv(), IDS[i : i + 30 + i]) for i in range(1, HEAD_ROWS))]
        states = [kv.hidden.before(kv.n) for kv in kvs]
        logits, hidden = engine.lane.draft([(kv, IDS[300], kv.n) for kv in kvs], states)
        same_bits(logits[0], wanted["glm4moe"][0][0])
        same_bits(hidden[0], wanted["glm4moe"][1][0])
        for kv, row, state in zip(kvs, logits, states):
            kv.rewind(kv.n - 1)
            same_bits(engine.lane.draft([(kv, IDS[300], kv.n)], [state])[0][0], row)
        for wrong, says in (([], "at least one"), ([(kvs[0], N, 10)], "token id 128"), ([(kvs[0], -1, 10)], "token id -1"),
                            ([(kvs[0], 3, 512)], "the context of 512"), ([(kv, 3, 10) for kv in [*kvs, kvs[0]]], "at most 16 tokens")):
            with pytest.raises(ValueError, match=says):
                engine.lane.draft(wrong, [None] * len(wrong))


class ShuffledHead(Shuffled):
    """The same of a head's plan: steps of two sequences, whose keys and values the model has left."""

    def __init__(self, engine):
        super().__init__(engine)
        self.plan = engine.plan.head
        self.ops, self.tensors = self.plan.arrays()
        self.weights = [engine.replicas.entry(w) for w in self.plan.weights]
        self.kv = [fed(engine, engine.new_kv(), IDS[:n], (64,)) for n in (41, 270)]

    def run(self, seed, ops=None):
        e, n = self.engine, len(self.engine.nodes)
        core = _core.Plan(e.lane.team, self.ops if ops is None else ops, self.tensors, self.weights, self.plan.arena_bytes,
                          self.plan.n_batch, range(n), e.nodes)  # fmt: skip
        out = []
        for own in (self.kv, self.kv[:1]):
            m = len(own)
            e.lane.draft([(kv, 50, kv.n) for kv in own], [None] * m)  # what stands there is not what the run has to write
            for kv in own:
                kv.rewind(kv.n - 1)
            table = np.zeros(m, _core.SEGMENT_DTYPE)
            states = [kv.hidden.before(kv.n) for kv in own]
            for i, (kv, state) in enumerate(zip(own, states)):
                kv._tables.prepare(kv.n, kv.n + 1)
                table[i]["tables"], table[i]["row0"], table[i]["n"], table[i]["pos0"] = kv.address, i, 1, kv.n
                table[i]["hidden"] = state.ctypes.data
            logits, hidden = np.full((m, N), np.nan, np.float32), np.full((m, e.n_embd), np.nan, np.float32)
            core.fill(np.nan)
            core.run(IDS[:m], table, np.arange(m, dtype=np.int32), logits, seed, hidden=hidden)
            out += [logits.ravel(), hidden.ravel()]
        core.close()
        return np.concatenate(out)


@pytest.mark.parametrize(("name", "shape"), [("glm4moe", (2, (1, 3))), ("deepseek2", (1, 3))], ids=str)
def test_every_barrier_of_the_head_that_is_taken_away_is_missed(paths, monkeypatch, name, shape):
    pretend(monkeypatch, *shape)
    with open_engine(paths[name], n_batch=64, mtp=True) as engine:
        shuffled = ShuffledHead(engine)
        right, names = shuffled.run(0), [op.name for op in engine.plan.head.ops]
        mixture = range(names.index("route") + 1, names.index("mix", names.index("route")) + 1)  # without ids of experts nothing is safe
        for i in [i for i in np.flatnonzero(shuffled.ops["barrier"]) if i not in mixture]:
            is_ = shuffled.ops["barrier"][i]
            for level in range(NONE, is_ if shape[0] > 1 else NODE):
                ops = shuffled.ops.copy()
                ops["barrier"][i] = level
                runs = (shuffled.run(10 * seed, ops).view(np.uint32) for seed in range(1, 30))
                assert any((run != right.view(np.uint32)).any() for run in runs), f"barrier {level} before op {i}\n{engine.plan.head}"


# ---- as speculation --------------------------------------------------------------------------------------------------


@pytest.fixture
def load(paths, monkeypatch):
    with contextlib.ExitStack() as stack:

        def load(name="glm4moe knows", nodes=1, **options):
            monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
            return stack.enter_context(ni.load(paths[name], **{"mtp": True, "prefix_cache": 0} | options))

        yield load


SAMPLING = [
    {}, SAMPLED | {"min_p": 0.01, "top_k": 40, "logprobs": 3}, {"repetition_penalty": 1.3, "logprobs": 0, "stop": ["a", "e"]},
    SAMPLED | {"temperature": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
@pytest.mark.parametrize("name", ["glm4moe", "deepseek2 knows", "qwen35moe knows", "mimo2 knows"])
def test_answers_are_the_same_bits(load, free_rows, name, sampling):  # noqa: F811
    plain, model = load(name, mtp=False), load(name, 2)
    prompts, sampling = prompts_of((5, 255)), GREEDY | {"max_tokens": 12} | sampling
    wanted = one_by_one(plain, prompts, **sampling)
    done = [model.generate(prompts[1], speculate="mtp", **sampling)]
    done += model.generate(prompts, speculate="mtp", mode="throughput", **sampling)
    assert [facts(d) for d in done] == [wanted[1], *wanted]
    stream = model.stream(prompts[0], speculate="mtp", **sampling)
    assert "".join(map(str, stream)) == wanted[0][0] and facts(stream.result()) == wanted[0]
    proposed, accepted = np.sum([counts(d) for d in [*done, stream.result()]], axis=0)
    assert 0 <= accepted <= proposed and 0 < proposed
    assert "knows" not in name or "stop" in sampling or 0 < accepted


def test_one_that_is_always_right(tmp_path, free_rows):  # noqa: F811
    path = with_head(tmp_path, edit=knowing())
    with ni.load(path, mtp=True) as model:
        done = model.generate(IDS[:9], speculate="mtp", **GREEDY | {"max_tokens": 40})
        assert counts(done)[0] == counts(done)[1] > 30
        assert facts(done) == facts(model.generate(IDS[:9], **GREEDY | {"max_tokens": 40}))


def test_nothing_is_proposed_where_it_does_not_pay(load, monkeypatch):
    model = load("glm4moe")  # it knows nothing
    done = model.generate(IDS[:9], speculate="mtp", **GREEDY | {"max_tokens": 300})
    assert counts(done)[0] < 60 and facts(done) == facts(model.generate(IDS[:9], **GREEDY | {"max_tokens": 300}))
    monkeypatch.setattr(Head, "chances", lambda head, most: [0.9] * most)
    monkeypatch.setattr(Head, "cost", property(lambda head: 10.0, lambda head, cost: None), raising=False)
    assert counts(model.generate(IDS[:9], speculate="mtp", **GREEDY)) == (0, 0)


def test_how_often_it_is_right_is_counted_by_place():
    head = Head(3)
    head.extend([1, 2, 3])
    first = head.chances(MOST)
    assert first == sorted(first, reverse=True) and first[0] == 0.7 and head.last == 3 and head.n == 3
    for _ in range(40):  # of two the first is true
        head.proposed([5, 6], 0.1)
        head.extend([5, 7])
    assert head.chances(1)[0] > 0.85 and len(head.chances(5)) == 1 and head.cost == pytest.approx(0.1)
    for _ in range(120):
        head.proposed([5], 0.1)
        head.extend([6])
    assert head.chances(5) == []
    head.extend([9] * 255)
    assert head.chances(5) == []
    head.extend([9])
    assert head.chances(5) == first[:5]  # tried again
    head.lost = True
    assert head.chances(5) == []


@pytest.mark.parametrize("name", ["glm4moe knows", "qwen35 knows"])
def test_sessions_prefixes_and_forks(load, free_rows, name):  # noqa: F811
    plain, model = load(name, mtp=False), load(name, n_ctx=500, prefix_cache="64MB")
    prompt = prompts_of((300,))[0]
    with plain.session() as a, model.session() as b:
        for i in range(4):
            wanted = a.generate(prompt, **GREEDY)
            done = b.generate(prompt, speculate=("mtp", "prompt", "mtp", "mtp")[i], **GREEDY)
            assert facts(done)[:4] == facts(wanted)[:4] and b.ids == a.ids
            assert i == 1 or counts(done)[1] > 0
            with b.fork() as fork:
                assert fork.generate([*b.ids, 7], speculate="mtp", **GREEDY).token_ids == a.fork().generate([*a.ids, 7], **GREEDY).token_ids
            prompt = np.array([*a.ids, 7, 8], np.int32)
    again = model.generate(prompts_of((300,))[0], speculate="mtp", **GREEDY)
    assert again.usage.cached_tokens > 100 and counts(again)[1] > 0
    assert again.token_ids == plain.generate(prompts_of((300,))[0], **GREEDY).token_ids


def test_beside_others(load, free_rows):  # noqa: F811
    """More answers than a step speculates for, with the head and without, in one model and at once."""
    plain, model = load(mtp=False), load(nodes=2)
    prompts = prompts_of(range(3, 3 + FEW + 4))
    ways = ["mtp", None, "prompt", "mtp", "mtp"]
    params = [ni.SamplingParams(speculate=ways[i % 5], **GREEDY | SAMPLED | {"max_tokens": 8 + i}) for i in range(len(prompts))]
    wanted = one_by_one(plain, prompts, [p.replace(speculate=None) for p in params])
    found = {}
    threads = [threading.Thread(target=lambda mode=mode: found.update({mode: model.generate(prompts, params, mode=mode)}))
               for mode in ("latency", "throughput", "auto")]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for done in found.values():  # but for the usage: lists that run at once may share their beginnings
        assert [facts(d)[:4] for d in done] == [one[:4] for one in wanted]
    assert sum(counts(d)[1] for done in found.values() for d in done) > 0


def test_what_goes_wrong_costs_the_answer_nothing(load, free_rows, monkeypatch, caplog):  # noqa: F811
    model, real, calls = load(), heads.draft, []
    wanted = facts(model.generate(IDS[:30], **GREEDY))
    draft = type(model.runtime).draft

    def fails(runtime, lane, segments, before, look=None):
        calls.append(len(segments))
        if len(calls) == 5:
            raise ni.OutOfNodeMemory("no memory")
        if len(calls) == 3:
            raise Cancelled
        return draft(runtime, lane, segments, before, look)

    monkeypatch.setattr(type(model.runtime), "draft", fails)
    assert facts(model.generate(IDS[:30], speculate="mtp", **GREEDY)) == wanted
    assert len(calls) == 5 and "answers go on without the head of" in caplog.text and heads.draft is real
    stream = model.stream(IDS[:30], speculate="mtp", **GREEDY | {"max_tokens": None})
    next(stream)
    stream.close()
    assert facts(model.generate(IDS[:30], speculate="mtp", **GREEDY)) == wanted


def test_proposals_are_made_in_a_turn_and_as_long_as_somebody_wants_them(load, monkeypatch):
    model, gone, looks, found = load("glm4moe"), threading.Event(), [], []
    runtime, draft, head = model.runtime, type(model.runtime).draft, Head(20)
    kv = fed(runtime.engine, runtime.engine.new_kv(), IDS[:20])
    head.extend(IDS[:21].tolist())

    def counted(runtime, lane, segments, before, look=None):
        looks.append(look)
        if len(looks) == 4:
            raise ni.OutOfNodeMemory("no memory")
        return draft(runtime, lane, segments, before, look)

    def propose():
        thread = threading.Thread(target=lambda: found.append(heads.draft(runtime, None, [(head, kv, 20, 2)], gone.is_set)))
        thread.start()
        thread.join(0.1)
        return thread

    monkeypatch.setattr(type(runtime), "draft", counted)
    with runtime.turn(None):
        thread = propose()
        assert thread.is_alive() and not looks  # somebody else computes
        gone.set()
        thread.join(10)
        assert found == [[[]]] and not looks
        gone.clear()
        thread = propose()
        assert thread.is_alive() and not looks
    thread.join(10)
    assert len(found[1][0]) == 2 and looks == [gone.is_set] * 2 and kv.n == 20 and not head.lost
    propose().join(10)  # which goes wrong behind the first token
    assert found[2] == [[]] and head.lost and kv.n == 20
    kv.close()


# ---- asking for it ---------------------------------------------------------------------------------------------------


def test_files_without_it(tmp_path, paths, tiny_path):
    with pytest.raises(ni.UnsupportedModel, match=r"general.architecture = 'llama' is not supported; supported: deepseek2, .*mtp=True"):
        ni.load(tiny_path, mtp=True)
    from make_gguf import make

    make("glm4moe", str(tmp_path / "plain.gguf"))
    with pytest.raises(ni.UnsupportedModel, match=r"glm4moe.nextn_predict_layers = 0 is not supported; .*load the model without it"):
        ni.load(tmp_path / "plain.gguf", mtp=True)
    from changes import CASES
    from tiny_heads import TEMPLATES

    make("glm4moe", str(tmp_path / "no.gguf"), dict(CASES["further"](TEMPLATES["glm4moe"]))["without"].t)
    with pytest.raises(ni.UnsupportedModel, match=r"no blk.4.nextn.eh_proj.weight.*has kept its tensors"):
        ni.load(tmp_path / "no.gguf", mtp=True)
    with pytest.raises(TypeError, match="mtp = 1: found int, wanted True or False"):
        ni.load(paths["glm4moe"], mtp=1)


def test_tables_of_another_size_are_refused(tmp_path):
    path = with_head(tmp_path, own=True)
    for name in ("embed_tokens", "shared_head_head"):
        with GGUFFile(path) as file:
            catalog = Catalog(file, mtp=True)
            matrix = catalog[f"blk.4.nextn.{name}.weight"]
            object.__setattr__(matrix, "n", 100)
            with pytest.raises(ni.CorruptModel, match=rf"blk.4.nextn.{name}.weight is no matrix of 128 x 128 values, as"):
                build(Plan(1, 8, 64), catalog)


def test_models_that_were_loaded_without_it(load):
    model = load(mtp=False)
    for given in (model.generate, model.stream, lambda p, **kw: model.generate([p], **kw), model.session().generate):
        with pytest.raises(ValueError, match="the model tiny was loaded without the layer .*; load it with mtp=True"):
            given("a", speculate="mtp")
    with pytest.raises(ValueError, match='must be "prompt", "mtp", a Model'):
        ni.SamplingParams(speculate="eagle")


@pytest.mark.parametrize("placement", ["replicate", "shard", "experts=shard,*=replicate"])
def test_the_placement_says_what_it_takes(load, placement):
    without, model = (load("glm4moe", 2, mtp=mtp, placement=placement) for mtp in (False, True))
    for a, b in zip(without.placement.nodes, model.placement.nodes):
        more = b.weights - a.weights
        assert a.mtp == 0 and b.experts - a.experts > 0 and abs(b.mtp - more) < 64 * len(model.plan.weights) and b.verified == 1
    assert "MTP" in str(model.placement) and "MTP" not in str(without.placement)
    assert model.placement.kv_bytes_per_token == 5 * without.placement.kv_bytes_per_token // 4
    names = {w.name for w in model.plan.only_head()}
    assert {n for n in names if not n.startswith("blk.4.")} <= {"rope", "128 ones"} and "blk.4.nextn.eh_proj.weight" in names
    assert model.plan.head.bytes_per_token > 0 and len(json.dumps(sorted(names))) > 0


def test_only_these_have_it():
    assert set(WITH_HEAD) == {*NAMES, "qwen3next"}
