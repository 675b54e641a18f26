"""Attention to positions that an indexer chose (DeepSeek V3.2): kernels, ops by their contract, whole models; the same bits everywhere."""

from contextlib import contextmanager

import numpy as np
import pytest
import reference as ref
from _cvec import CHUNK, KV_TYPES, available, load, same
from core_tools import Sheet, logits, open_engine, open_team, pretend, rig, same_bits
from test_attend import fma_chain
from test_mixture_models import model as edited

import numainfer as ni
from numainfer import _core
from numainfer.engine import plan
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan
from numainfer.errors import CorruptModel, PlanError
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

SCALAR = load("scalar")


@pytest.fixture(params=available())
def vec(request):
    return load(request.param)


@pytest.fixture(params=KV_TYPES)
def kv_type(request):
    return request.param


# ---- kernels ----------------------------------------------------------------------------------------------------------


def chunks_of(rng, n, width, kv_type, part):
    """(rows (n, 256, width) as the memory gives them back, each chunk's bytes)."""
    rows = [ref.stored(rng.standard_normal((CHUNK, width)).astype(np.float32), kv_type) for _ in range(n)]
    return np.array(rows), [SCALAR.store(kv_type, part, x) for x in rows]


@pytest.mark.parametrize(("n_q", "e", "blocks"), [(1, 16, 1), (2, 48, 3), (5, 32, 16), (6, 80, 7), (7, 64, 4), (13, 128, 15), (64, 128, 16)])
def test_scores(vec, kv_type, n_q, e, blocks):
    """By the contract's chain of fused multiply-adds; what lies behind the blocks may be anything."""
    rng = np.random.default_rng(n_q * 1000 + e)
    rows, (keys,) = chunks_of(rng, 1, e, kv_type, "key")
    keys = vec.store(kv_type, "key", rows[0], memory=0xFF, positions=range(16 * blocks - 3))
    q, w = rng.standard_normal((n_q, e)).astype(np.float32), rng.standard_normal(n_q).astype(np.float32)
    found, seen = vec.index(kv_type, q, w, keys, blocks)[: 16 * blocks - 3], rows[0, : 16 * blocks - 3]
    exact = w.astype(np.float64) @ np.maximum(q.astype(np.float64) @ seen.astype(np.float64).T, 0)
    np.testing.assert_allclose(found, exact, atol=2e-5 * np.abs(w).sum())
    s = np.array([fma_chain(x[:, None], seen.T) for x in q])
    same(found, fma_chain(w[:, None], np.maximum(s, 0)))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48, 256])
@pytest.mark.parametrize(("n_q", "e", "ev"), [(1, 64, 64), (17, 80, 48), (32, 48, 32), (33, 576, 512)])
def test_attention_to_a_list(vec, kv_type, n_q, e, ev, n):
    """Rows of several chunks, in any order: as the same rows side by side in one chunk."""
    rng = np.random.default_rng(n_q + n)
    rows, chunks = chunks_of(rng, 3, e, kv_type, "value")
    q = (rng.standard_normal((n_q, e)) * 2 / np.sqrt(e)).astype(np.float32)
    of, at = rng.integers(0, 3, n + 9), rng.integers(0, CHUNK, n + 9)
    together = np.zeros((CHUNK, e), np.float32)
    together[:n] = rows[of[:n], at[:n]]
    # q8_0: the scales of the rows are kept, for a row's own largest value sets them.
    wanted = SCALAR.attend_latent(kv_type, q, SCALAR.store(kv_type, "value", together), ev, [0] * n_q, [n] * n_q, 1.5)
    for ahead in (0, 9):
        found = vec.attend_listed(kv_type, q, chunks, of[: n + ahead], at[: n + ahead], ev, 1.5, ahead)
        for g, w in zip(found, wanted, strict=True):
            same(g, w)


# ---- ops --------------------------------------------------------------------------------------------------------------

N, CHOSEN = 1300, 80
LATENT = Attention(40, 1, 48, 32, 0, False, 0.3)
INDEX = Attention(7, 1, 40, 0, 0, False, 0.25)
TEAMS = ((1, 1), (1, 3), (2, 1), (3, (1, 2, 1)))
ROWS = (CHOSEN, CHOSEN + 1, 255, 256, 700, 1023, 1024, 1299)  # whose bits are derived from the contract


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """Queries, latent rows, and an indexer of whole numbers, so that every score is exact and many are equal."""
    rng = np.random.default_rng(3)
    index_q, index_k = rng.integers(-2, 3, (N, 7, 40)), rng.integers(-3, 4, (N, 40))
    index_q[:, :, [0, 32]], index_k[:, [0, 32]] = 0, 127  # so that q8_0 keeps them, too
    weights = rng.integers(-4, 9, (N, 7)) / 4
    weights[1023] = np.nan
    made = Sheet(tmp_path_factory.mktemp("sparse") / "sheet.gguf", {
        "q": rng.standard_normal((N, 40 * 48)), "k": rng.standard_normal((N, 48)), "index_q": index_q.reshape(N, -1), "index_k": index_k,
        "weights": weights})  # fmt: skip
    yield made
    made.close()


def sparse_ops(p, s, a=LATENT):
    ids = p.index(*(p.embed(s[name]) for name in ("index_q", "index_k", "weights")), INDEX, CHOSEN)
    p.logits(p.attend(p.embed(s["q"]), p.embed(s["k"]), None, a, chosen=ids), None)


def dense_ops(p, s):
    p.logits(p.attend(p.embed(s["q"]), p.embed(s["k"]), None, LATENT), None)


@contextmanager
def attending(sheet, team, kv_type, build=sparse_ops):
    with rig(sheet, team, build, hidden=True, n_ctx=N, n_batch=200, kv_type=kv_type) as r:
        yield r


def run(r, sizes):
    """Rows of one sequence, in steps of these sizes."""
    kv, at, found = r.new_kv(), 0, []
    for size in sizes:
        found.append(r.run(np.arange(at, at + size), [(kv, size, at)]))
        at += size
    return np.concatenate(found)


def best(sheet, pos):
    """The positions with the best scores, of equal ones the lower; of scores that are no numbers, the first."""
    q, k, w = sheet.exact["index_q"][pos].reshape(7, 40), sheet.exact["index_k"][: pos + 1], sheet.exact["weights"][pos]
    scores = w @ np.maximum(q @ k.T, 0)
    order = np.lexsort((np.arange(pos + 1), -scores)) if np.isfinite(scores).all() else np.arange(pos + 1)
    return np.sort(order[:CHOSEN])


def twin(sheet, pos, kv_type, most):
    """A row by the contract: pieces of the list, of 16 entries or as many more that there are at most `most`, folded in order."""
    ids = best(sheet, pos)
    piece = -(-CHOSEN // (16 * most)) * 16
    rows = sheet.exact["k"].astype(np.float32)
    chunks = [SCALAR.store(kv_type, "value", np.resize(rows[j : j + CHUNK], (CHUNK, 48))) for j in range(0, N, CHUNK)]
    q, found = sheet.exact["q"][pos].astype(np.float32).reshape(40, 48) * np.float32(LATENT.scale), []
    parts = [SCALAR.attend_listed(kv_type, q, chunks, at // CHUNK, at % CHUNK, 32) for at in np.split(ids, range(piece, CHOSEN, piece))]
    for h in range(40):
        total = tuple(x[h] for x in parts[0])
        for part in parts[1:]:
            total = SCALAR.merge(total, tuple(x[h] for x in part))
        found.append(np.asarray(total[2]) * (np.float32(1) / np.float32(total[1])))
    return np.concatenate(found)


@pytest.fixture(scope="module")
def one_worker(sheet):
    """All rows, from one worker in steps of many tokens."""
    found = {}

    def of(kv_type, most=plan.MOST_RUNS):
        if (kv_type, most) not in found:
            with pytest.MonkeyPatch.context() as patch, open_team() as team:
                patch.setattr(plan, "MOST_RUNS", most)
                with attending(sheet, team, kv_type) as r:
                    found[kv_type, most] = run(r, [200] * 6 + [100])
        return found[kv_type, most]

    return of


@pytest.mark.parametrize("most", [1, 2, 64])
def test_the_best_are_chosen_and_folded_in_order(sheet, one_worker, kv_type, most):
    assert len({tuple(best(sheet, pos)) for pos in ROWS}) == len(ROWS)
    for pos in ROWS:
        same_bits(one_worker(kv_type, most)[pos], twin(sheet, pos, kv_type, most), pos)


def test_few_positions_are_all_attended_to(sheet, one_worker, kv_type):
    """A token that sees no more than is chosen has the bits of attention without an indexer."""
    with open_team() as team, attending(sheet, team, kv_type, dense_ops) as r:
        found = run(r, [CHOSEN + 3])
    same_bits(found[:CHOSEN], one_worker(kv_type)[:CHOSEN])
    assert (found[CHOSEN:] != one_worker(kv_type)[CHOSEN : CHOSEN + 3]).any(axis=1).all()


@pytest.mark.parametrize("most", [2, 64])
def test_teams_chunks_and_company(sheet, one_worker, monkeypatch, most):
    """Long sequences and short ones, decoding in parts or whole, beside prompts that cross what is chosen, in any order of the workers."""
    monkeypatch.setattr(plan, "MOST_RUNS", most)
    wanted = one_worker("f16", most)
    for shape, split in zip(TEAMS, (16, 0, 1, 2)):
        monkeypatch.setattr(plan, "PART_SEQUENCES", split)
        with open_team(*shape) as team, attending(sheet, team, "f16") as r:
            same_bits(run(r, [1, 78, 1, 1, 2, 173, 1, 1, 100, 7, 1]), wanted[:366], shape)
            sequences = {name: (r.new_kv(), n) for name, n in (("long", 1290), ("middle", 600), ("edge", 79), ("short", 10))}
            for kv, n in sequences.values():
                for at in range(0, n, 200):
                    size = min(200, n - at)
                    r.run(np.arange(at, at + size), [(kv, size, at)])
            for seed in (0, 1, 2, 3):
                table, rows = [], []
                for name, size in (("short", 3), ("long", 1), ("edge", 4 if seed == 1 else 1), ("middle", 1 if seed % 2 else 33)):
                    kv, at = sequences[name]
                    table.append((kv, size, at)), rows.append(np.arange(at, at + size))
                    sequences[name] = kv, at + size
                rows = np.concatenate(rows)
                same_bits(r.run(rows, table, seed=seed), wanted[rows], (shape, seed))


def test_wrong_ops_are_refused():
    p = Plan(1, 8, 1024)
    q, k, weights, ids = (p._tensor(name, width, 1, "f") for name, width in (("q", 40), ("k", 20), ("w", 2), ("ids", 5)))
    for tensor in (q, k, weights, ids):
        tensor.first = 0
    with pytest.raises(PlanError, match="one kv-head without values"):
        p.index(q, k, weights, Attention(2, 1, 20, 20, 0, False, 1.0), 5)
    with pytest.raises(PlanError, match="operand k .* has width 20, wanted 10"):
        p.index(q, k, weights, Attention(4, 1, 10, 0, 0, False, 1.0), 5)
    with pytest.raises(PlanError, match="chosen positions"):
        p.attend(q, k, None, Attention(2, 1, 20, 10, 0, False, 1.0), chosen=ids)


# ---- whole models -----------------------------------------------------------------------------------------------------

N_CTX, TOP = 700, 70
IDS = np.random.default_rng(5).integers(6, 120, 620).astype(np.int32)


@pytest.fixture(scope="module", params=["deepseek32", "glm-dsa"])
def path(request, tmp_path_factory):
    """The tiny models with a longer context, of which they choose a tenth; GLM's second and third layers attend to the first one's choice."""
    return edited(tmp_path_factory.mktemp("sparse"), f"{request.param}-top16", {"context_length": N_CTX, "attention.indexer.top_k": TOP})


@pytest.fixture(scope="module")
def wanted(path):
    """Logits of all positions by one thread, in one step, for each type."""
    found = {}
    for kv_type in KV_TYPES:
        with open_engine(path, threads=1, n_batch=N_CTX, kv_type=kv_type) as engine:
            found[kv_type] = logits(engine, IDS)
    return found


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3, (1, 2, 1))], ids=str)
def test_teams_and_chunks(path, wanted, monkeypatch, kv_type, shape):
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=300, kv_type=kv_type) as engine:
        for chunks in ([300], [1, 68, 1, 1, 185, 2, 1, 40]):
            same_bits(logits(engine, IDS, chunks), wanted[kv_type])


def test_token_by_token(path, wanted):
    with open_engine(path, threads=2) as engine:
        same_bits(logits(engine, IDS[:300], [1]), wanted["f16"][:300])


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
def test_placements(path, wanted, monkeypatch, placement):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with open_engine(path, placement=placement) as engine:
        same_bits(logits(engine, IDS, [500, 1]), wanted["f16"])


def test_isas(path, wanted, kv_type):
    first = _core.isa()
    try:
        for isa in available():
            _core.isa_select(isa)
            with open_engine(path, threads=2, kv_type=kv_type) as engine:
                same_bits(logits(engine, IDS[:280], [275, 1]), wanted[kv_type][:280])
    finally:
        _core.isa_select(first)


def test_company_copies_and_positions_taken_back(path, wanted, monkeypatch):
    for shape in ((1, 2), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(path, n_batch=N_CTX) as engine:
            kv = engine.new_kv()
            logits(engine, IDS[::-1][:500].copy(), kv=kv)
            same_bits(logits(engine, IDS[:300], kv=kv), wanted["f16"][:300])
            copy, part = kv.copy(300), kv.copy(17)
            logits(engine, IDS[:100], kv=kv, start=300)
            both = engine.step([(copy, IDS[300:301], 300), (part, IDS[17:90], 17), (engine.new_kv(), IDS[:1], 0)], range(75))
            same_bits(both, wanted["f16"][[300, *range(17, 90), 0]])
            assert kv.rewind(280) == 280
            same_bits(logits(engine, IDS[280:400], kv=kv, start=280), wanted["f16"][280:400])
            same_bits(logits(engine, IDS[301:], kv=copy, start=301), wanted["f16"][301:])


def test_answers_of_sessions_lists_and_modes(path, wanted, monkeypatch):
    prompts = [IDS[:n] for n in (90, 20, 65, 200)]
    with ni.load(path, threads=1) as model:
        expected = [model.generate(prompt, max_tokens=8, ignore_eos=True).token_ids for prompt in prompts]
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with ni.load(path, threads=2, n_batch=32, placement="replicate") as model:
        for mode in ("latency", "throughput"):
            assert [a.token_ids for a in model.generate(prompts, max_tokens=8, ignore_eos=True, mode=mode)] == expected
        with model.session() as session:
            first = session.generate(prompts[0], max_tokens=4, ignore_eos=True).token_ids
            with session.fork() as fork:
                for going in (session, fork):
                    assert going.generate([*prompts[0].tolist(), *first], max_tokens=4, ignore_eos=True).token_ids == expected[0][4:]
                assert fork.generate(prompts[0][:75], max_tokens=1, ignore_eos=True).token_ids == (int(wanted["f16"][74].argmax()),)


def test_contexts_that_choose_all_do_without(path, wanted):
    """No keys of an indexer are kept where nothing is ever left out; the bits are those of the first positions of a longer context."""
    with open_engine(path, n_ctx=TOP) as engine:
        assert not any(op.name == "index" for op in engine.plan.ops) and not any(layer.indexes for layer in engine.plan.kv.layers)
        same_bits(logits(engine, IDS[:TOP]), wanted["f16"][:TOP])


def test_bytes(path):
    own, layers = (2, 2) if "deepseek32" in GGUFFile(path).architecture else (1, 3)
    with GGUFFile(path) as file:
        need = demand(file, 1, N_CTX)
        assert need.kv_read(500) == (layers * TOP * 576 + own * 500 * 128) * 2
        assert demand(file, 1, TOP).kv_read(50) == layers * 50 * 576 * 2
    with open_engine(path) as engine:
        assert engine.plan.kv.read_bytes(500) == need.kv_read(500)
        assert engine.plan.kv.read_bytes(TOP) == layers * TOP * 576 * 2
        assert engine.plan.kv.bytes_per_token >= (layers * 576 + own * 128) * 2
        kv = engine.new_kv()
        engine.step([(kv, IDS[:300], 0)], [])
        assert sum(kind.block_bytes for kind, *_ in kv.blocks()) == engine.plan.kv.bytes(300)
        kv.close()


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(CorruptModel, match="indexer.types.* 0.*1 for the first layer"):
        ni.load(edited(tmp_path, "glm-dsa-top16", {"attention.indexer.types": [0, 1, 0]}))
    with pytest.raises(CorruptModel, match="indexer.attn_q_b.weight has 1024 rows, wanted 512"):
        ni.load(edited(tmp_path, "deepseek32-top16", {"attention.indexer.head_count": 4}))
    with pytest.raises(CorruptModel, match="indexer.key_length.* at least .*dimension_count = 64"):
        ni.load(edited(tmp_path, "deepseek32-top16", {"attention.indexer.key_length": 32}))
