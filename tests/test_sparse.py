"""Attention to what an indexer chose, positions (DeepSeek V3.2) or blocks (MiniMax M3): kernels, ops by their contract, whole models."""

from contextlib import contextmanager

import numpy as np
import pytest
import reference as ref
from _cvec import CHUNK, load, same
from core_tools import Sheet, instruction_set, logits, logits_by_kv_type, open_engine, open_team, pretend, rig, same_bits
from test_attend import fma_chain
from test_mixture_models import model as edited

import numainfer as ni
from numainfer import _core
from numainfer.engine import attending as attention_ops
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan
from numainfer.errors import CorruptModel, PlanError, UnsupportedModel
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

SCALAR = load("scalar")


# ---- kernels ----------------------------------------------------------------------------------------------------------


def chunks_of(rng, n, width, kv_type, part):
    """(rows (n, 256, width) as the memory gives them back, each chunk's bytes)."""
    rows = [ref.stored(rng.standard_normal((CHUNK, width)).astype(np.float32), kv_type) for _ in range(n)]
    return np.array(rows), [SCALAR.store(kv_type, part, x) for x in rows]


@pytest.mark.parametrize(("n_q", "e", "blocks"), [(1, 16, 1), (2, 48, 3), (5, 32, 16), (6, 80, 7), (7, 64, 4), (13, 128, 15),
                                                  (64, 128, 16)])  # fmt: skip
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
    # No number at all; infinities, and no numbers where a head has nothing to say; scores so small that halves of the least round to -0.
    weights[1023], weights[1024, 0] = np.nan, np.inf
    index_q = index_q.astype(float)
    weights[700], weights[700, 0], index_q[700] = 0, -(2.0**-147), index_q[700] / 8
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
    """The positions with the best scores, of equal ones the lower; scores that are no numbers are the worst."""
    q, k, w = sheet.exact["index_q"][pos].reshape(7, 40), sheet.exact["index_k"][: pos + 1], sheet.exact["weights"][pos]
    with np.errstate(invalid="ignore"):
        scores = (w * INDEX.scale @ np.maximum(q @ k.T, 0)).astype(np.float32)
    order = np.lexsort((np.arange(pos + 1), -np.where(np.isnan(scores), -np.inf, scores)))
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

    def of(kv_type, most=attention_ops.MOST_RUNS):
        if (kv_type, most) not in found:
            with pytest.MonkeyPatch.context() as patch, open_team() as team:
                patch.setattr(attention_ops, "MOST_RUNS", most)
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
    monkeypatch.setattr(attention_ops, "MOST_RUNS", most)
    wanted = one_worker("f16", most)
    for shape, split in zip(TEAMS, (16, 0, 1, 2)):
        monkeypatch.setattr(attention_ops, "PART_SEQUENCES", split)
        with open_team(*shape) as team, attending(sheet, team, "f16") as r:
            same_bits(run(r, [1, 78, 1, 1, 2, 173, 1, 1, 100, 7, 1]), wanted[:366], shape)
            sequences = {name: (r.new_kv(), n) for name, n in (("long", 1290), ("middle", 600), ("edge", 79), ("short", 10))}
            for kv, n in sequences.values():
                for at in range(0, n, 200):
                    size = min(200, n - at)
                    r.run(np.arange(at, at + size), [(kv, size, at)])
            for seed in (0, 1, 2, 3):
                table, rows = [], []
                sizes = {"short": 3, "long": 1, "edge": 4 if seed == 1 else 1, "middle": 1 if seed % 2 else 33}
                for name, size in sizes.items():
                    kv, at = sequences[name]
                    table.append((kv, size, at)), rows.append(np.arange(at, at + size))
                    sequences[name] = kv, at + size
                rows = np.concatenate(rows)
                same_bits(r.run(rows, table, seed=seed), wanted[rows], (shape, seed))


# ---- blocks, chosen for each kv-head ------------------------------------------------------------------------------------

GROUPS, BLOCKS = 3, 6
HEADS = Attention(12, GROUPS, 40, 24, 0, False, 0.3)
HEAD_INDEX = Attention(GROUPS, 1, 20, 0, 0, False, 1.0)
BLOCK_TEAMS = ((1, 1), (1, 3), (2, 2), (3, (1, 2, 1)))  # kv-heads go round two nodes, and are one of three nodes' each


@pytest.fixture(scope="module")
def block_sheet(tmp_path_factory):
    """As `sheet`, for heads with keys and values of their own."""
    rng = np.random.default_rng(4)
    index_q, index_k = rng.integers(-2, 3, (N, GROUPS, 20)), rng.integers(-3, 4, (N, 20))
    index_q[:, :, 0], index_k[:, 0] = 0, 127
    index_k[300:700, 1:] = 0  # whole blocks that say nothing are worth more than others, for these are negative, and are worth the same
    index_q[1200] = 0
    made = Sheet(tmp_path_factory.mktemp("blocks") / "sheet.gguf", {
        "q": rng.standard_normal((N, 12 * 40)), "k": rng.standard_normal((N, GROUPS * 40)), "v": rng.standard_normal((N, GROUPS * 24)),
        "index_q": index_q.reshape(N, -1), "index_k": index_k})  # fmt: skip
    yield made
    made.close()


def block_ops(block, last):
    def build(p, s):
        ids = p.index(p.embed(s["index_q"]), p.embed(s["index_k"]), None, HEAD_INDEX, BLOCKS, block=block, last=last)
        p.logits(p.attend(*(p.embed(s[name]) for name in "qkv"), HEADS, chosen=ids), None)

    return build


def block_twin(s, pos, g, kv_type, block, last):
    """(blocks, values of the heads of kv-head g) by the contract: the last blocks and the best of the others, a part each, in order."""
    n = pos // block + 1
    scores = s.exact["index_q"][pos].reshape(GROUPS, 20)[g] @ s.exact["index_k"][: pos + 1].T
    best = np.array([scores[i * block : (i + 1) * block].max() for i in range(n)])
    best[n - min(last, BLOCKS) :] = np.inf
    ids = np.sort(np.lexsort((np.arange(n), -best))[:BLOCKS])
    k, v = (s.exact[name].astype(np.float32).reshape(N, GROUPS, -1)[:, g] for name in "kv")
    q, found = s.exact["q"][pos].astype(np.float32).reshape(GROUPS, 4, 40)[g] * np.float32(HEADS.scale), []
    pad = [(0, 0), (0, 8)]  # heads are padded to multiples of 16
    for i in ids * block:
        j, lo = i // CHUNK * CHUNK, i % CHUNK
        keys, values = (SCALAR.store(kv_type, part, np.resize(np.pad(x[j : j + CHUNK], pad), (CHUNK, x.shape[1] + 8)))
                        for part, x in (("key", k), ("value", v)))  # fmt: skip
        found.append(SCALAR.attend(kv_type, np.pad(q, pad), keys, values, 32, [lo] * 4, [min(lo + block, pos + 1 - j)] * 4))
    rows = []
    for h in range(4):
        total = tuple(x[h] for x in found[0])
        for part in found[1:]:
            total = SCALAR.merge(total, tuple(x[h] for x in part))
        rows.append(np.asarray(total[2])[:24] * (np.float32(1) / np.float32(total[1])))
    return tuple(ids), np.concatenate(rows)


@pytest.mark.parametrize(("kv_type", "block", "last"), [("f16", 16, 1), ("f16", 64, 2), ("bf16", 32, 0), ("q8_0", 4, 9), ("f32", 128, 1)])
def test_blocks_are_chosen_for_each_kv_head(block_sheet, kv_type, block, last):
    wanted = None
    for shape in BLOCK_TEAMS:
        with open_team(*shape) as team, attending(block_sheet, team, kv_type, block_ops(block, last)) as r:
            found = run(r, [200] * 6 + [100]) if wanted is None else run(r, [1, 199, 100, 1, 1, 198, 7, 193, 200, 200, 198, 1, 1])
        if wanted is not None:
            same_bits(found, wanted, shape)
            continue
        wanted, lists = found, set()
        for pos in {BLOCKS * block, BLOCKS * block + 1, 700, 1023, 1200, 1299}:
            if pos // block >= BLOCKS and pos < N:
                for g in range(GROUPS):
                    ids, row = block_twin(block_sheet, pos, g, kv_type, block, last)
                    lists.add(ids)
                    same_bits(found[pos].reshape(GROUPS, -1)[g], row, (pos, g))
        assert len(lists) > (4 if last < BLOCKS else 0)


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

N_CTX, TOP = 700, 80
IDS = np.random.default_rng(5).integers(6, 120, 620).astype(np.int32)


MODELS = {
    "deepseek32-top16": {"attention.indexer.top_k": TOP},
    "glm-dsa-top16": {"attention.indexer.top_k": TOP},
    "minimax-m3-top4": {"attention.indexer.top_k": 5, "attention.indexer.block_size": TOP // 5, "attention.indexer.local_blocks": 2},
}


@pytest.fixture(scope="module", params=MODELS)
def path(request, tmp_path_factory):
    """The tiny models with a longer context, of which they choose a tenth; of GLM's layers two attend to the first one's choice."""
    return edited(tmp_path_factory.mktemp("sparse"), request.param, {"context_length": N_CTX} | MODELS[request.param])


@pytest.fixture(scope="module")
def wanted(path):
    return logits_by_kv_type(path, IDS, n_batch=N_CTX)


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3, (1, 2, 1))], ids=str)
def test_teams_and_chunks(path, wanted, monkeypatch, kv_type, shape):
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=300, kv_type=kv_type) as engine:
        for chunks in ([300], [1, 78, 1, 1, 175, 2, 1, 40]):
            same_bits(logits(engine, IDS, chunks), wanted[kv_type])


def test_token_by_token(path, wanted):
    with open_engine(path, threads=2) as engine:
        same_bits(logits(engine, IDS[:300], [1]), wanted["f16"][:300])


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
def test_placements(path, wanted, monkeypatch, placement):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with open_engine(path, placement=placement) as engine:
        same_bits(logits(engine, IDS, [500, 1, 1, 1, 117]), wanted["f16"])


@pytest.mark.parametrize("isa", _core.isa_available())
def test_isas(path, wanted, kv_type, isa):
    with instruction_set(isa), open_engine(path, threads=2, kv_type=kv_type) as engine:
        same_bits(logits(engine, IDS[:280], [275, 1]), wanted[kv_type][:280])


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
    with GGUFFile(path) as file:
        # Bytes of a position in a layer, layers that choose and that do not, and of their keys.
        row, layers, dense, index = {"deepseek32": (1152, 2, 0, 512), "glm-dsa": (1152, 3, 0, 256),
                                     "minimax-m3": (512, 3, 1, 384)}[file.architecture]  # fmt: skip
        need = demand(file, 1, N_CTX)
        assert need.kv_read(500) == row * (layers * TOP + dense * 500) + index * 500
        assert demand(file, 1, TOP).kv_read(50) == row * (layers + dense) * 50
    with open_engine(path) as engine:
        assert engine.plan.kv.read_bytes(500) == need.kv_read(500)
        assert engine.plan.kv.read_bytes(TOP) == row * (layers + dense) * TOP
        assert engine.plan.kv.bytes_per_token >= row * (layers + dense) + index
        kv = engine.new_kv()
        engine.step([(kv, IDS[:300], 0)], [])
        assert sum(kind.block_bytes for kind, *_ in kv.blocks()) == engine.plan.kv.bytes(300)
        kv.close()


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(CorruptModel, match="indexer.types.* 0.*1 for the first layer"):
        ni.load(edited(tmp_path, "glm-dsa-top16", {"attention.indexer.types": [0, 1, 0]}))
    with pytest.raises(CorruptModel, match="indexer.attn_q_b.weight.* has width 1024, wanted 512"):
        ni.load(edited(tmp_path, "deepseek32-top16", {"attention.indexer.head_count": 4}))
    with pytest.raises(CorruptModel, match="indexer.key_length.* at least .*dimension_count = 64"):
        ni.load(edited(tmp_path, "deepseek32-top16", {"attention.indexer.key_length": 32}))
    for key, value, says in (("head_count", 4, "head_count = 4 .*2, as many as kv-heads"), ("block_size", 5, "divisors of 256")):
        with pytest.raises(UnsupportedModel, match=says):
            ni.load(edited(tmp_path, "minimax-m3-top4", {f"attention.indexer.{key}": value}))


def test_there_is_room_for_the_pieces_of_a_list():
    """As many decoding sequences are split as elsewhere, though a list has more pieces than the context has chunks."""
    p = Plan(1, 8, 1024, hidden=True)
    widths = {"q": 40, "k": 20, "weights": 2, "queries": 96, "rows": 48}
    q, k, weights, queries, rows = (p._tensor(name, width, 1, "f") for name, width in widths.items())
    for tensor in (q, k, weights, queries, rows):
        tensor.first = 0
    ids = p.index(q, k, weights, Attention(2, 1, 20, 0, 0, False, 1.0), 500)
    p.logits(p.attend(queries, rows, None, Attention(2, 1, 48, 32, 0, False, 1.0), chosen=ids), None)
    p.tensors = [tensor for tensor in p.tensors if tensor.is_read]
    p.compile()
    found = next(op for op in p.ops if op.name == "attend").attention
    assert (found["piece"], found["least_parts"], found["part_runs"]) == (16, 32, 8 * 32)
