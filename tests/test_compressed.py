"""Attention to a window and compressed rows (DeepSeek V4): ops by their definition in float64, for all teams and chunks; whole models."""

import numpy as np
import pytest
import reference as ref
from _cvec import KV_TYPES, available
from core_tools import Sheet, logits, logits_by_kv_type, open_engine, open_team, pretend, rig, same_bits
from test_cache import steps_and_broken_ones
from test_mixture_models import model as edited

import numainfer as ni
from numainfer import _core
from numainfer.engine import attending as attention_ops
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan
from numainfer.errors import CorruptModel, PlanError, UnsupportedModel
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

# ---- ops --------------------------------------------------------------------------------------------------------------

N, EPS, WINDOW, FIRST, CHOSEN = 700, 1e-5, 40, 40, 20
E, ROT, HEADS = 56, 16, 40  # a width that is padded; tiles of 32 heads and of 8
A = Attention(HEADS, 1, E, E, ROT, False, 0.3, window=WINDOW, eps=EPS, rope_first=FIRST)
INDEX = Attention(6, 1, 24, 0, ROT, False, 0.25, eps=EPS, rope_first=8)
FREQUENCIES = 300.0 ** (-np.arange(ROT // 2) / (ROT // 2))
TEAMS = ((1, 1), (1, 3), (2, 1), (3, (1, 2, 1)))
RATIOS = {"overlapping": (4, True), "apart": (128, False), "of 16": (16, False), "chosen": (4, True)}


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(3)
    tensors = {"q": rng.standard_normal((N, HEADS * E)), "k": rng.standard_normal((N, E)), "q_norm": rng.uniform(0.5, 2, E),
               "k_norm": rng.uniform(0.5, 2, E), "sinks": rng.standard_normal(HEADS), "index_q": rng.standard_normal((N, 6 * 24)),
               "weights": rng.standard_normal((N, 6))}  # fmt: skip
    for name, (ratio, overlaps) in RATIOS.items():
        for kind, e in (("rows", E), ("keys", 24)):
            width = e * (1 + overlaps)
            tensors |= {f"{name} {kind} kv": rng.standard_normal((N, width)), f"{name} {kind} gate": rng.standard_normal((N, width)) * 2,
                        f"{name} {kind} bias": rng.standard_normal((ratio, width)), f"{name} {kind} norm": rng.uniform(0.5, 2, e)}
    made = Sheet(tmp_path_factory.mktemp("compressed") / "sheet.gguf", tensors)
    yield made
    made.close()


def compress(p, s, name, kind, first, chosen=0):
    ratio, overlaps = RATIOS[name]
    kv, gate = (p.embed(s[f"{name} {kind} {part}"]) for part in ("kv", "gate"))
    return p.compress(kv, gate, s.catalog.flat(f"{name} {kind} bias"), s[f"{name} {kind} norm"], ratio, EPS, overlaps=overlaps,
                      window=max(WINDOW, ratio), frequencies=s.catalog.constant("f", FREQUENCIES), first=first, indexes=kind == "keys",
                      chosen=chosen)  # fmt: skip


def ops(name, twice=False):
    def build(p, s):
        rope, chosen = p.rope_table(s.catalog.constant("f", FREQUENCIES)), None
        if twice:  # rows of another layer are the first of the chunk
            compress(p, s, name, "rows", FIRST)
        if twice and RATIOS[name][0] <= 16:
            compress(p, s, name, "keys", 8)
        rows = compress(p, s, name, "rows", FIRST, CHOSEN if name == "chosen" else 0)
        if name == "chosen":
            chosen = p.index(p.embed(s["index_q"]), None, p.embed(s["weights"]), INDEX, CHOSEN, rope,
                             rows=compress(p, s, name, "keys", 8, CHOSEN))  # fmt: skip
        p.logits(p.attend(p.embed(s["q"]), p.embed(s["k"]), None, A, rope, s["q_norm"], s["k_norm"], s["sinks"], chosen=chosen, rows=rows),
                 None)  # fmt: skip

    return build


def rotated(x, positions, first):
    """Pairs (2 i, 2 i + 1) of the last values, turned by their position's angles."""
    out, angle = x.copy(), positions.reshape(-1, *[1] * (x.ndim - 1)) * FREQUENCIES
    z = (x[..., first::2] + 1j * x[..., first + 1 :: 2]) * np.exp(1j * angle)
    out[..., first::2], out[..., first + 1 :: 2] = z.real, z.imag
    return out


def normed(x, w):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * w


def definition(s, name, kind, first):
    """The compressed rows (N // ratio, e)."""
    ratio, overlaps = RATIOS[name]
    kv, gate, bias, norm = (s.exact[f"{name} {kind} {part}"] for part in ("kv", "gate", "bias", "norm"))
    e, gate, found = len(norm), gate + np.resize(bias, gate.shape), []
    for end in range(ratio, N + 1, ratio):
        value, weight = kv[end - ratio : end, -e:], gate[end - ratio : end, -e:]
        if overlaps and end > ratio:
            before = slice(end - 2 * ratio, end - ratio)
            value, weight = np.concatenate([kv[before, :e], value]), np.concatenate([gate[before, :e], weight])
        weight = np.exp(weight - weight.max(0))
        found.append((weight * value).sum(0) / weight.sum(0))
    return rotated(normed(np.array(found), norm), np.arange(len(found)) * ratio, first)


def attended(s, name, kv_type):
    """What every head attends to, in float64 over what KV memory keeps."""
    ratio, _ = RATIOS[name]
    q, k = s.exact["q"].reshape(N, HEADS, E), s.exact["k"]
    q, k = rotated(normed(q, s.exact["q_norm"]), np.arange(N), FIRST), rotated(normed(k, s.exact["k_norm"]), np.arange(N), FIRST)
    k, rows = (ref.stored(np.pad(x, [(0, 0), (0, 8)]).astype(np.float32), kv_type)[:, :E].astype(np.float64)
               for x in (k, definition(s, name, "rows", FIRST)))  # fmt: skip
    keys = ref.stored(np.pad(definition(s, name, "keys", 8), [(0, 0), (0, 8)]).astype(np.float32), kv_type)[:, :24].astype(np.float64)
    index_q, out = rotated(s.exact["index_q"].reshape(N, 6, 24), np.arange(N), 8), []
    for pos in range(N):
        n = (pos + 1) // ratio
        among = np.arange(n)
        if name == "chosen" and n > CHOSEN:
            score = s.exact["weights"][pos] @ np.maximum(index_q[pos] @ keys[:n].T, 0)
            among = np.argsort(-score, kind="stable")[:CHOSEN]
        seen = np.concatenate([k[max(pos + 1 - WINDOW, 0) : pos + 1], rows[among]])
        score = np.concatenate([q[pos] @ seen.T * A.scale, s.exact["sinks"][:, None]], axis=1)
        weight = np.exp(score - score.max(1, keepdims=True))
        out.append((weight[:, :-1] / weight.sum(1, keepdims=True) @ seen).ravel())
    return np.array(out)


def run(r, sizes):
    """Rows of one sequence, in steps of these sizes."""
    kv, at, found = r.new_kv(), 0, []
    for size in sizes:
        found.append(r.run(np.arange(at, at + size), [(kv, size, at)]))
        at += size
    return np.concatenate(found)


@pytest.fixture(scope="module")
def one_worker(sheet):
    """All rows, from one worker in steps of many tokens."""
    found = {}

    def of(name, kv_type="f16", most=attention_ops.MOST_RUNS):
        if (name, kv_type, most) not in found:
            with pytest.MonkeyPatch.context() as patch, open_team() as team:
                patch.setattr(attention_ops, "MOST_RUNS", most)
                with rig(sheet, team, ops(name), hidden=True, n_ctx=N, n_batch=200, kv_type=kv_type) as r:
                    found[name, kv_type, most] = run(r, [200, 200, 200, 100])
        return found[name, kv_type, most]

    return of


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("name", RATIOS)
def test_definition(sheet, one_worker, name, kv_type):
    found, wanted = one_worker(name, kv_type), attended(sheet, name, kv_type)
    error = np.abs(found - wanted).max(axis=1)
    # What is stored rounds to one side or the other; where that moves a score, another row may be chosen.
    usual, most, apart = {"f32": (1e-5, 5e-5, 0), "q8_0": (2e-3, 2e-2, N // 40)}.get(kv_type, (5e-4, 5e-3, N // 40))
    assert np.median(error) < usual
    assert (error > most).sum() <= (10 * apart if name == "chosen" else apart)


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("most", [2, 64])
def test_teams_chunks_and_company(sheet, one_worker, monkeypatch, name, most):
    """Long sequences and short ones, decoding in parts or whole, beside prompts, in any order of the workers."""
    monkeypatch.setattr(attention_ops, "MOST_RUNS", most)
    wanted = one_worker(name, most=most)
    for shape, split in zip(TEAMS, (16, 0, 1, 2)):
        monkeypatch.setattr(attention_ops, "PART_SEQUENCES", split)
        with open_team(*shape) as team, rig(sheet, team, ops(name, twice=True), hidden=True, n_ctx=N, n_batch=200) as r:
            same_bits(run(r, [1, 78, 1, 1, 2, 173, 1, 1, 100, 7, 1]), wanted[:366], shape)
            sequences = {key: (r.new_kv(), n) for key, n in (("long", 690), ("middle", 510), ("edge", 79), ("short", 2))}
            for kv, n in sequences.values():
                for at in range(0, n, 150):
                    size = min(150, n - at)
                    r.run(np.arange(at, at + size), [(kv, size, at)])
            for seed in (0, 1, 2, 3):
                table, rows = [], []
                sizes = {"short": 3, "long": 1, "edge": 4 if seed == 1 else 1, "middle": 1 if seed % 2 else 33}
                for key, size in sizes.items():
                    kv, at = sequences[key]
                    table.append((kv, size, at)), rows.append(np.arange(at, at + size))
                    sequences[key] = kv, at + size
                rows = np.concatenate(rows)
                same_bits(r.run(rows, table, seed=seed), wanted[rows], (shape, seed))


def test_rows_of_several_layers_share_a_chunk(sheet):
    p = Plan(1, 8, N)
    for _ in range(5):
        compress(p, sheet, "overlapping", "rows", FIRST), compress(p, sheet, "apart", "rows", FIRST), compress(p, sheet, "of 16", "keys", 8)
    shared = [layer for layer in p.kv.layers if layer.lists]
    found = [(layer.key_length, layer.value_length, [(rows.first, rows.ratio) for rows in layer.lists]) for layer in shared]
    assert found == [(0, E, [(0, 4), (64, 128), (66, 4), (130, 128), (132, 4), (196, 128), (198, 128), (200, 128)]),
                     (24, 0, [(0, 16), (16, 16), (32, 16), (48, 16), (64, 16)]), (0, E, [(0, 4), (64, 4)])]  # fmt: skip


def test_wrong_ops_are_refused(sheet):
    p = Plan(1, 8, N)
    q, k, weights = (p.embed(sheet[name]) for name in ("q", "k", "weights"))
    rows, keys = compress(p, sheet, "overlapping", "rows", FIRST), compress(p, sheet, "overlapping", "keys", 8)
    ids = p.index(p.embed(sheet["index_q"]), None, weights, INDEX, CHOSEN, rows=keys)
    of_16, other = compress(p, sheet, "of 16", "rows", FIRST), "goes with what it was chosen from"
    for more, says in (({"rows": keys}, "of the same width, and a window"), ({"chosen": ids}, "and no window"), ({"rows": k}, other),
                       ({"chosen": k, "rows": rows}, other), ({"rows": of_16, "chosen": ids}, "of 4 positions, but attends to rows of 16")):
        with pytest.raises(PlanError, match=says):
            p.attend(q, k, None, A, **more)
    with pytest.raises(PlanError, match="are an indexer's"):
        p.index(p.embed(sheet["index_q"]), None, weights, INDEX, CHOSEN, rows=rows)
    for ratio, window, says in ((3, 40, "a divisor of 256"), (4, 7, "a window of 7"), (4, 8, "width 56, wanted 112")):
        with pytest.raises((PlanError, CorruptModel), match=says):
            s = sheet
            kv, gate = p.embed(s["overlapping rows kv"]), p.embed(s["overlapping rows gate"])
            p.compress(kv, gate, s.catalog.flat("overlapping rows bias") if ratio == 4 else s["weights"], s["overlapping rows norm"], ratio,
                       EPS, overlaps=says[0] != "w", window=window)  # fmt: skip


# ---- whole models -----------------------------------------------------------------------------------------------------

N_CTX = 700
IDS = np.random.default_rng(5).integers(6, 120, 620).astype(np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The tiny model with a longer context, of whose rows of four positions it chooses 8."""
    return edited(tmp_path_factory.mktemp("compressed"), "deepseek4-top8", {"context_length": N_CTX})


@pytest.fixture(scope="module")
def wanted(path):
    return logits_by_kv_type(path, IDS, n_batch=N_CTX)


@pytest.mark.parametrize("kv_type", KV_TYPES)
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
        same_bits(logits(engine, IDS, [500, 1]), wanted["f16"])


def test_isas(path, wanted):
    first = _core.isa()
    try:
        for isa in available():
            _core.isa_select(isa)
            with open_engine(path, threads=2) as engine:
                same_bits(logits(engine, IDS[:140], [135, 1]), wanted["f16"][:140])
    finally:
        _core.isa_select(first)


def test_company_copies_and_positions_taken_back(path, wanted, monkeypatch):
    for shape in ((1, 2), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(path, n_batch=N_CTX) as engine:
            kv = engine.new_kv()
            logits(engine, IDS[::-1][:500].copy(), kv=kv)
            same_bits(logits(engine, IDS[:303], kv=kv), wanted["f16"][:303])
            copy, part = kv.copy(303), kv.copy(17)
            logits(engine, IDS[:100], kv=kv, start=303)
            both = engine.step([(copy, IDS[303:304], 303), (part, IDS[17:90], 17), (engine.new_kv(), IDS[:1], 0)], range(75))
            same_bits(both, wanted["f16"][[303, *range(17, 90), 0]])
            for n in (286, 285, 283, 257, 255, 129):
                assert kv.rewind(n) == n
                same_bits(logits(engine, IDS[n : n + 140], kv=kv, start=n), wanted["f16"][n : n + 140])
            same_bits(logits(engine, IDS[304:], kv=copy, start=304), wanted["f16"][304:])


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)], ids=str)
def test_cancelled_steps_are_repeated(path, wanted, monkeypatch, shape):
    """Broken off once or twice when it had written all that it writes, over another step's tokens: nothing that it needs has changed."""
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=128) as engine:
        steps_and_broken_ones(engine, IDS, wanted["f16"], np.random.default_rng(shape[0]))


def test_answers_of_sessions_lists_and_modes(path, wanted, monkeypatch, tmp_path):
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
            np.testing.assert_array_equal(session.logits(IDS[:301]), wanted["f16"][300])
            session.save(tmp_path / "saved")
    with ni.load(path, threads=2) as model, model.restore(tmp_path / "saved") as session:
        np.testing.assert_array_equal(session.logits(IDS[:330]), wanted["f16"][329])


def test_contexts_that_choose_all_do_without(path, wanted):
    """No keys of an indexer are kept where no row is ever left out; the bits are those of the first positions of a longer context."""
    with open_engine(path, n_ctx=35) as engine:
        assert not any(op.name == "index" for op in engine.plan.ops) and not any(layer.indexes for layer in engine.plan.kv.layers)
        same_bits(logits(engine, IDS[:35]), wanted["f16"][:35])


def test_bytes(path):
    """A window of 32 positions in four layers; 8 rows of four positions in two, with keys of all rows; of 128 in one."""
    with GGUFFile(path) as file:
        need = demand(file, 1, N_CTX)
    with open_engine(path) as engine:
        row = 2 * 64
        assert engine.plan.kv.read_bytes(500) == row * (4 * 32 + 2 * 8 + 2 * 125 + 500 // 128)
        assert need.kv_read(500) == pytest.approx(row * (4 * 32 + 2 * 8 + 2 * 125 + 500 / 128), abs=1)
        kv = engine.new_kv()
        engine.step([(kv, IDS[:300], 0)], [])
        assert sum(kind.block_bytes for kind, *_ in kv.blocks()) == engine.plan.kv.bytes(300)
        kv.close()


@pytest.mark.parametrize(("keys", "error", "says"), [
    ({"attention.compress_ratios": [0, 4, 8, 128]}, UnsupportedModel, "compress_ratios = 8"),
    ({"attention.compress_ratios": [0, 4]}, CorruptModel, "compress_ratios = 2 values; wanted one per layer"),
    ({"attention.compress_ratios": [0, 4, 4, 4]}, CorruptModel, "blk.3.attn_compressor_norm|blk.3.attn_compressor_kv|blk.3"),
    ({"attention.head_count_kv": 2}, UnsupportedModel, "head_count_kv = 2"),
    ({"attention.value_length": 32}, UnsupportedModel, "value_length = 32"),
    ({"attention.output_group_count": 3}, CorruptModel, "output_group_count = 3; wanted a divisor of"),
    ({"attention.indexer.key_length": 16}, CorruptModel, "indexer.key_length = 16; wanted at least"),
    ({"hyper_connection.count": 2}, CorruptModel, "hyper_connection.count = 2; wanted a number that goes with blk.0.hc_attn_fn.weight"),
    ({"hash_layer_count": 2}, CorruptModel, "'blk.1.ffn_gate_tid2eid.weight' is missing"),
    ({"expert_used_count": 2}, CorruptModel, r"ffn_gate_tid2eid.weight' has the shape \(128, 3\), wanted \(128, 2\)"),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, UnsupportedModel, "rope.scaling.type = 'linear'"),
])  # fmt: skip
def test_files_that_do_not_fit(tmp_path, keys, error, says):
    with pytest.raises(error, match=says):
        ni.load(edited(tmp_path, "deepseek4-top8", keys))
