"""Heads that are no multiples of 16 wide, and rows that no block divides: llama.cpp's logits, and the same bits everywhere."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import reference as ref
from core_tools import instruction_set, logits, logits_by_kv_type, open_engine, pretend, same_bits, twin_logits
from gguf_tools import GGUF
from random_blocks import TYPES
from test_architectures import INT, rewrite
from tiny_models import tiny
from written import Written

import numainfer as ni
from numainfer import _core
from numainfer.cli.main import main
from numainfer.engine.layout import KV_TYPES
from numainfer.errors import CorruptModel
from numainfer.gguf.file import GGUFFile

ARCHS = Path(__file__).resolve().parent / "archs"
sys.path.insert(0, str(ARCHS))

import heads  # noqa: E402
from make_gguf import make  # noqa: E402

TEMPLATES, EXPECTED = heads.templates(), np.load(heads.EXPECTED)
IDS = EXPECTED["ids"].astype(np.int32)
GELU = {"gemma2", "gemma3", "gpt2", "gptneox"}  # which llama.cpp takes from a table of half floats (test_golden_models.py)
LONG = np.random.default_rng(9).integers(6, 280, 560).astype(np.int32)  # more than two chunks


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Written(tmp_path_factory.mktemp("heads"), lambda name, path: make(name, path, TEMPLATES[name]), IDS)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two kv-heads 20 wide, of which a pad of 12 is a block's last quarter; a window that crosses chunks in every other layer."""
    return tiny(tmp_path_factory.mktemp("kv"), "gemma3", "Q8_0", heads=8, kv_heads=2, head_width=20, window=70, context=600, width=96)


@pytest.fixture(scope="module")
def wanted(path):
    return logits_by_kv_type(path, LONG, n_batch=600)


# ---- logits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_logits_are_those_of_llama_cpp(golden, name, kv_type):
    with ni.load(golden(name), threads=1, kv_type=kv_type) as model:
        found = model.logits(IDS, all=True)
    error = np.abs(found - EXPECTED[name]).max() / np.abs(EXPECTED[name]).max()
    assert error < (3e-3 if kv_type == "f16" else 5e-4 if TEMPLATES[name]["arch"] in GELU else 1e-5)


def test_templates_are_those_of_archs_with_other_sizes():
    plain = heads.plain_templates()
    for base, _ in heads.MODELS.values():
        assert heads.template(plain[base], {}) == plain[base]
    assert set(EXPECTED.files) == {"ids", *TEMPLATES} and np.array_equal(IDS, np.load(ARCHS / "expected.npz")["ids"])


@pytest.mark.parametrize(("arch", "shape"), [
    ("llama", (4, 2, 24)), ("gemma3", (4, 1, 40)), ("llama", (3, 3, 100)), ("gemma3", (2, 2, 120)), ("llama", (6, 2, 8)),
    ("gemma3", (8, 4, 20)),
], ids=str)  # fmt: skip
def test_every_type_of_kv_memory(tmp_path, arch, shape):
    """Each is nearest to the twin of its own type."""
    shape = dict(zip(("heads", "kv_heads", "head_width"), shape), window=19 if arch == "gemma3" else None)
    path = tiny(tmp_path, arch, "F32", **shape, width=72, context=400)
    twins = {t: twin_logits(path, LONG[:300], t) for t in KV_TYPES}
    for kv_type in KV_TYPES:
        with open_engine(path, kv_type=kv_type) as engine:
            found = logits(engine, LONG[:300])
        error = {t: np.abs(found - twin).mean() for t, twin in twins.items()}
        assert error.pop(kv_type) < 0.5 * min(error.values())


@pytest.mark.parametrize("weight_type", TYPES)
def test_rows_of_any_length(tmp_path, weight_type):
    """Rows that hold as many blocks as there may be: 9 x 32 values of a quantised type and 5 x 32 of a network; 67 and 91 of floats."""
    floats = weight_type in ("F32", "F16", "BF16")
    shape = {"width": 67, "feed_forward": 91, "heads": 5, "kv_heads": 5, "head_width": 14} if floats else {
        "width": 288, "feed_forward": 160, "heads": 8, "kv_heads": 4, "head_width": 36}  # fmt: skip
    path = tiny(tmp_path, "llama", weight_type, tied=False, **shape)
    ids = LONG[:40]
    exact = twin_logits(path, ids, "f32")
    with open_engine(path, kv_type="f32") as engine:
        found = logits(engine, ids)
        same_bits(logits(engine, ids, [1, 7, 1, 31]), found)
    rms = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
    assert exact.std() > 1 and (rms < 1e-5 if floats else rms < 0.06 and ref.kl_divergence(exact, found).mean() < 0.01)


def test_rows_that_cannot_be(tmp_path):
    """A tensor whose rows its blocks do not divide is no GGUF."""
    with pytest.raises(CorruptModel, match="'blk.0.ffn_up.weight' has rows of 72 values, wanted a multiple of 32 for Q8_0"):
        GGUFFile(GGUF().tensor("blk.0.ffn_up.weight", (72, 16), 8, bytes(4096)).write(tmp_path / "bad.gguf"))


@pytest.mark.parametrize(("name", "tensor", "shape", "says"), [
    ("llama-moe", "blk.1.ffn_down_exps.weight", [96, 256, 8], r"operand y \(blk.1.ffn_down_exps.weight\) has width 256, wanted 128"),
    ("olmo2", "blk.2.attn_k.weight", [128, 96], r"operand w \(blk.2.attn_k_norm.weight\) has width 64, wanted 96"),
    ("afmoe", "blk.0.attn_gate.weight", [128, 272], r"gated: operand gate \(blk.0.attn_gate.weight\) has width 272, wanted 256"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_tensors_that_do_not_fit_are_the_files_fault(tmp_path, name, tensor, shape, says):
    t = heads.plain_templates()[name]
    t["tensors"] = [[n, shape if n == tensor else s, kind] for n, s, kind in t["tensors"]]
    assert shape in [s for _, s, _ in t["tensors"]]
    make(name, str(tmp_path / "bad.gguf"), t)
    with pytest.raises(CorruptModel, match=says):
        ni.load(tmp_path / "bad.gguf")


@pytest.mark.parametrize(("key", "value", "says"), [
    ("attention.key_length", 40, r"q \(blk.0.attn_q.weight\) has width 128, wanted 160 \(attention.head_count = 4 of key_length 40\)"),
    ("attention.head_count_kv", 1, r"k \(blk.0.attn_k.weight\) has width 64, wanted 32 \(attention.head_count_kv = 1 of key_length 32\)"),
])  # fmt: skip
def test_widths_that_do_not_fit_normed_projections(tmp_path, key, value, says):
    """Of which all heads together are normed."""
    t = heads.plain_templates()["olmo2"]
    t["kv"][key] = value
    make("olmo2", str(tmp_path / "bad.gguf"), t)
    with pytest.raises(CorruptModel, match=f"operand {says}"):
        ni.load(tmp_path / "bad.gguf")


# ---- the same bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("nodes", "placement"), [(1, "auto"), (2, "replicate"), (2, "shard"), (2, "interleave")])
def test_bits_are_the_same_everywhere(golden, name, nodes, placement, monkeypatch):
    wanted = golden.logits(name)
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
    with ni.load(golden(name), threads=2, placement=placement, n_batch=33) as model:
        assert np.array_equal(model.logits(IDS, all=True), wanted)
        with model.session() as session:
            for n in (40, 41, 42, 75):
                assert np.array_equal(session.logits(IDS[:n]), wanted[n - 1])
            with session.fork() as twin:
                assert np.array_equal(twin.logits(IDS), wanted[-1])
            session.rewind(20)
            assert np.array_equal(session.logits(IDS[:77]), wanted[76])
        answers = model.generate([IDS[:50], IDS[:7], IDS[:50]], max_tokens=1, ignore_eos=True)
        assert [answer.token_ids[0] for answer in answers] == [int(wanted[n - 1].argmax()) for n in (50, 7, 50)]


@pytest.mark.parametrize("isa", _core.isa_available())
def test_instruction_sets(path, wanted, kv_type, isa):
    with instruction_set(isa), open_engine(path, kv_type=kv_type) as engine:
        same_bits(logits(engine, LONG[:300], [270, 1]), wanted[kv_type][:300])


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3, 1)], ids=str)
def test_teams_and_chunks(path, wanted, monkeypatch, kv_type, shape):
    """Three nodes share two kv-heads chunk by chunk."""
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=300, kv_type=kv_type) as engine:
        for chunks in ([300], [1, 255, 2, 1, 40]):
            same_bits(logits(engine, LONG, chunks), wanted[kv_type])


def test_company_copies_and_positions_taken_back(path, wanted, monkeypatch, kv_type):
    for shape in ((2, 2), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(path, n_batch=600, kv_type=kv_type) as engine:
            kvs, at = [engine.new_kv() for _ in range(20)], 27 * np.arange(20)
            for kv, n in zip(kvs, at):
                if n:
                    logits(engine, LONG[:n], kv=kv)
            for n in (1, 5):  # the first from parts, the second from tiles
                found = engine.step([(kv, LONG[a : a + n], a) for kv, a in zip(kvs, at)], range(20 * n))
                same_bits(found, wanted[kv_type][np.concatenate([np.arange(a, a + n) for a in at])])
                at = at + n
            copy = kvs[-1].copy(300)
            logits(engine, LONG[:100], kv=kvs[-1], start=300)
            same_bits(logits(engine, LONG[300:], kv=copy, start=300), wanted[kv_type][300:])


# ---- what is told of them -----------------------------------------------------------------------------------------------


def test_bytes(kv_type):
    """A head takes what the next multiple of 16 takes."""
    number = KV_TYPES.index(kv_type)
    for e, ev, like in ((24, 40, (32, 48)), (100, 120, (112, 128)), (8, 1, (16, 16)), (64, 65, (64, 80))):
        assert _core.kv_chunk_bytes(number, e, ev) == _core.kv_chunk_bytes(number, *like)


def test_info_and_bench(golden, capsys):
    assert main(["info", str(golden("mimo2-40-24")), "-c", "256", "--no-measure", "--json"]) == 0
    kv = json.loads(capsys.readouterr().out)["plan"]["demand"]["kv_bytes"]
    chunk = _core.kv_chunk_bytes(0, 40, 24)
    assert kv == sum(-(-2 * chunk // 4096) * 4096 * kv_heads for kv_heads in (1, 2))  # two layers of either kind
    assert main(["bench", str(golden("mimo2-40-24")), "-q", "-p", "8", "-n", "2", "-r", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tg"]["bytes_per_token"] > 0


def test_a_width_without_its_key(golden, tmp_path):
    """Keys and values are as wide as the stream has values per head, each for itself, as llama.cpp has it."""
    keys = {"llama.attention.key_length": (24, INT), "llama.attention.value_length": None}
    with pytest.raises(CorruptModel, match=r"operand v .* has width 48, wanted 64 \(attention.head_count_kv = 2 of value_length 32\)"):
        ni.load(rewrite(golden("llama-24"), tmp_path / "v.gguf", keys))


def test_gpt2_rotates_nothing_so_that_its_heads_may_be_odd(tmp_path):
    plain = heads.plain_templates()["gpt2"]
    make("gpt2-33", str(tmp_path / "odd.gguf"), heads.template(plain, {"width": 99, "heads": 3, "kv_heads": 3}))
    with ni.load(tmp_path / "odd.gguf", kv_type="f32") as model, ni.load(tmp_path / "odd.gguf", kv_type="f32", threads=1) as one:
        found = model.logits(IDS, all=True)
        same_bits(one.logits(IDS, all=True), found)
    assert found.std() > 0.5
