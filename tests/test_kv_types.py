"""Types of KV memory: whole models against the twin, the same bits however computed, and bytes that every report counts alike."""

import contextlib
import json

import numpy as np
import pytest
from core_tools import logits, logits_by_kv_type, open_engine, pretend, same_bits, twin_logits
from tiny_models import tiny

import numainfer as ni
from numainfer import _core
from numainfer.measure.benchmark import GEN, Trial, bytes_per_token
from numainfer.measure.capacity import demand
from numainfer.cli.main import main
from numainfer.gguf.file import GGUFFile
from numainfer.engine.layout import KV_TYPES

N_CTX = 600
IDS = np.random.default_rng(9).integers(6, 280, 560).astype(np.int32)
OTHERS = [t for t in KV_TYPES if t != "f16"]
POSITION = {"f16": 2 * (48 + 48), "bf16": 2 * (48 + 48), "q8_0": 48 + 2 * 2 + 48 + 2 * 2, "f32": 4 * (48 + 48)}  # bytes of heads 48 wide


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two kv-heads 48 wide, a block and a half of q8_0; a window that crosses chunks in every other layer."""
    return tiny(tmp_path_factory.mktemp("kv"), "gemma3", "Q8_0", heads=4, kv_heads=2, head_width=48, window=70, context=N_CTX)


@pytest.fixture(scope="module")
def wanted(path):
    return logits_by_kv_type(path, IDS, n_batch=N_CTX)


@pytest.fixture(params=OTHERS)
def kv_type(request):
    return request.param


# ---- results ----------------------------------------------------------------------------------------------------------


def test_against_the_twin(tmp_path):
    """Each is by far nearest to the twin of its own type.  F32: no rounding of activations that would hide the difference."""
    path = tiny(tmp_path, "gemma3", "F32", heads=4, kv_heads=2, head_width=48, window=70, context=N_CTX)
    twins = {t: twin_logits(path, IDS[:300], t) for t in KV_TYPES}
    for kv_type in KV_TYPES:
        with open_engine(path, kv_type=kv_type) as engine:
            found = logits(engine, IDS[:300])
        error = {t: np.abs(found - twin).mean() for t, twin in twins.items()}
        assert error.pop(kv_type) < 0.3 * min(error.values())


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 2)], ids=str)
def test_teams_and_chunks(path, wanted, monkeypatch, kv_type, shape):
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=300, kv_type=kv_type) as engine:
        for chunks in ([300], [1, 255, 2, 1, 40], [7]):
            same_bits(logits(engine, IDS, chunks), wanted[kv_type])


def test_company_in_the_same_step(path, wanted, monkeypatch, kv_type):
    """20 sequences of all lengths decode, some more than there are slots for parts, beside prompts."""
    pretend(monkeypatch, 2, 2)
    rng = np.random.default_rng(3)
    with open_engine(path, n_batch=256, kv_type=kv_type) as engine:
        kvs, at = [engine.new_kv() for _ in range(20)], rng.integers(0, 540, 20)
        for kv, n in zip(kvs, at):
            if n:
                logits(engine, IDS[:n], kv=kv)
        for _ in range(4):
            sizes = np.where(rng.random(20) < 0.9, 1, 5)
            segments = [(kv, IDS[a : a + n], a) for kv, a, n in zip(kvs, at, sizes)]
            rows = np.concatenate([np.arange(a, a + n) for a, n in zip(at, sizes)])
            same_bits(engine.step(segments, range(len(rows))), wanted[kv_type][rows])
            at = at + sizes


def test_copies_and_positions_taken_back(path, wanted, monkeypatch, kv_type):
    for shape in ((1, 2), (2, 1), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(path, n_batch=N_CTX, kv_type=kv_type) as engine:
            kv = engine.new_kv()
            logits(engine, IDS[::-1][:500].copy(), kv=kv)
            same_bits(logits(engine, IDS[:300], kv=kv), wanted[kv_type][:300])
            copy, part = kv.copy(300), kv.copy(17)
            logits(engine, IDS[:100], kv=kv, start=300)
            same_bits(logits(engine, IDS[300:], kv=copy, start=300), wanted[kv_type][300:])
            same_bits(logits(engine, IDS[17:90], kv=part, start=17), wanted[kv_type][17:90])


def test_sessions_of_models_that_share_weights(kv_type):
    """Two types of KV memory over the same copies of the weights: each answers as alone, forked and rewound too."""
    with ni.load("smollm2", n_ctx=512) as plain, ni.load("smollm2", n_ctx=512, kv_type=kv_type) as other:
        assert other.runtime.engine.replicas is plain.runtime.engine.replicas
        ids = plain.tokenizer.encode("Once upon a time, in a village by the sea, there lived an old fisherman.")
        with other.session() as session:
            first = session.logits(ids)
            same_bits(first, other.logits(ids))
            assert not np.array_equal(first, plain.logits(ids))
            session.rewind(9)
            with session.fork() as twin:
                same_bits(twin.logits(ids), first)
            same_bits(session.logits(ids), first)


# ---- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_bytes(path, kv_type):
    chunks = -(-N_CTX // _core.CHUNK)
    with ni.load(str(path), n_ctx=N_CTX, kv_type=kv_type) as model, GGUFFile(path) as file:
        position = 2 * POSITION[kv_type]  # of a layer: two kv-heads
        block = 2 * -(-_core.CHUNK * POSITION[kv_type] // 4096) * 4096  # no page is two heads'
        need = demand(file, 1, N_CTX, kv_type=kv_type)
        assert model.plan.kv_bytes == need.kv_bytes == 2 * chunks * block
        assert model.placement.kv_bytes_per_token == block // _core.CHUNK  # of the layer without a window
        assert model.placement.kv_window_bytes == chunks * block  # n_batch alone is two chunks
        assert need.kv_read(500) == (70 + 500) * position and need.kv_type == kv_type
        assert bytes_per_token(model, Trial(GEN, 1, 499)) == pytest.approx(model.plan.bytes_per_token + (70 + 500) * position)
        with contextlib.closing(model.runtime.engine.new_kv()) as kv:
            model.runtime.step([(kv, IDS[:300], 0)], [])
            assert sum(kind.block_bytes for kind, *_ in kv.blocks()) == 2 * 2 * block == model.plan.kv.bytes(300)


def test_q8_0_takes_34_bytes_of_64():
    q8_0, f16 = KV_TYPES.index("q8_0"), KV_TYPES.index("f16")
    for width in (32, 64, 96, 128, 256, 576):
        assert 64 * _core.kv_chunk_bytes(q8_0, width, width) == 34 * _core.kv_chunk_bytes(f16, width, width)
    assert _core.kv_chunk_bytes(q8_0, 80, 16) == _core.CHUNK * (80 + 3 * 2 + 16 + 2)


# ---- the commands -----------------------------------------------------------------------------------------------------


def test_info_and_bench(capsys):
    sizes = {}
    for kv_type in ("f16", "q8_0"):
        assert main(["info", "smollm2", "-c", "1024", "--no-measure", "--json", "--kv-type", kv_type]) == 0
        plan = json.loads(capsys.readouterr().out)["plan"]
        sizes[kv_type] = plan["demand"]["kv_bytes"]
        assert plan["placements"][0]["nodes"][0]["kv"] == sizes[kv_type]
        assert main(["bench", "smollm2", "-q", "-p", "0", "-n", "2", "-d", "60", "-r", "1", "--json", "--kv-type", kv_type]) == 0
        sizes["read", kv_type] = json.loads(capsys.readouterr().out)["tg"]["bytes_per_token"]
    per_position = 30 * 3 * 128 * 2  # SmolLM2: 30 layers, 3 kv-heads of 64 + 64 halves
    assert 64 * sizes["q8_0"] == 34 * 1024 * per_position
    assert sizes["f16"] == 4 * 3 * (2 << 20)  # 15/16 of that: chunks of a head are on a huge page of their own
    assert sizes["read", "f16"] - sizes["read", "q8_0"] == pytest.approx(61.5 * per_position * 30 / 64, abs=2)
    assert main(["info", "smollm2", "-c", "1024", "--no-measure", "--kv-type", "bf16"]) == 0
    assert "KV in bf16" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["run", "smollm2", "Hi"], ["info", "smollm2"], ["bench", "smollm2"]])
def test_unknown_types(capsys, command):
    assert main([*command, "--kv-type", "q4_0"]) == 2
    assert "= 'q4_0': wanted one of f16, bf16, q8_0, f32" in capsys.readouterr().err
