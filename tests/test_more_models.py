"""Settings and forms of files that the golden models lack (``archs/more.py``): llama.cpp's logits, and the same bits everywhere."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from written import Written

import numainfer as ni

ARCHS = Path(__file__).resolve().parent / "archs"
sys.path.insert(0, str(ARCHS))

import more  # noqa: E402
from make_gguf import make  # noqa: E402
from make_gguf import templates as plain_templates  # noqa: E402

TEMPLATES, EXPECTED = more.templates(), np.load(more.EXPECTED)
IDS = np.load(ARCHS / "expected.npz")["ids"].astype(np.int32)
GELU = {"gemma2", "grok"}  # which llama.cpp takes from a table of half floats (test_golden_models.py)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Written(tmp_path_factory.mktemp("more"), lambda name, path: make(TEMPLATES[name][0], path, TEMPLATES[name][1]), IDS)


def test_all_of_them_are_expected():
    assert set(TEMPLATES) == set(EXPECTED.files)


@pytest.mark.parametrize("name", TEMPLATES)
def test_logits_are_those_of_llama_cpp(golden, name):
    ids, rows = more.prompt(name)
    with ni.load(golden(name), threads=1, kv_type="f32") as model:
        found = model.logits(ids, all=True)[rows]
    wanted = EXPECTED[name]
    most = 5e-4 if TEMPLATES[name][1]["arch"] in GELU else 5e-5 if name in more.LONG else 1e-5
    assert np.abs(found - wanted).max() < most * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["deepseek2-one-piece", "stablelm-norms-beside", "glm4moe-groups", "grok-heads",
                                  "qwen3next-old", "qwen35-6-over-3", "kimi-linear-24", "lfm2-5-taps", "mamba2-16-over-4",
                                  "falcon-h1-without-norm"])  # fmt: skip
@pytest.mark.parametrize("nodes, placement", [(1, "auto"), (2, "replicate"), (2, "shard"), (3, "shard"), (2, "interleave")])
def test_bits_are_the_same_everywhere(golden, name, nodes, placement, monkeypatch):
    wanted = golden.logits(name)
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
    with ni.load(golden(name), threads=max(nodes, 2), placement=placement, n_batch=33) as model:
        np.testing.assert_array_equal(model.logits(IDS, all=True), wanted)


@pytest.mark.parametrize("name", ["deepseek2-one-piece", "gpt-oss-heads"])
def test_tensors_in_any_order_and_in_several_files(golden, name, tmp_path):
    reader = gguf.GGUFReader(golden(name))
    writer = gguf.GGUFWriter(tmp_path / "parts.gguf", TEMPLATES[name][1]["arch"], split_max_tensors=17)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None)
    for i in np.random.default_rng(4).permutation(len(reader.tensors)):
        writer.add_tensor(reader.tensors[i].name, np.array(reader.tensors[i].data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    assert len(parts) > 3
    with ni.load(golden(name), threads=1) as whole, ni.load(parts[0], threads=2) as model:
        np.testing.assert_array_equal(model.logits(IDS, all=True), whole.logits(IDS, all=True))


@pytest.mark.parametrize("name, gone, says", [
    ("deepseek2", "blk.0.attn_kv_a_norm", "blk.0.attn_kv_a_norm"), ("deepseek2", "blk.2.ffn_gate_inp", "blk.2.ffn_gate_inp"),
    ("deepseek2-one-piece", "blk.1.attn_kv_b", "blk.1.attn_kv_b"), ("minicpm3", "rope_factors_short", "rope_factors_short"),
    ("grok", "blk.1.layer_output_norm", "blk.1.post_ffw_norm"), ("glm4moe", "blk.1.ffn_up_exps", "blk.1.ffn_up_exps"),
    ("minimax-m2-fused", "blk.0.attn_qkv", "blk.0.attn_q"),
])  # fmt: skip
def test_missing_tensors_are_named(name, gone, says, tmp_path):
    base, t = TEMPLATES[name] if name in TEMPLATES else (name, plain_templates()[name])
    left = [entry for entry in t["tensors"] if entry[0] != f"{gone}.weight"]
    assert len(left) == len(t["tensors"]) - 1
    make(base, str(tmp_path / "less.gguf"), t | {"tensors": left})
    with pytest.raises(ni.CorruptModel, match=rf"tensor '{says}\.weight' is missing; architecture"):
        ni.load(tmp_path / "less.gguf")
