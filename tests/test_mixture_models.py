"""Files of mixtures that are not quite those of the goldens: fused tensors, layers to be skipped, and what is refused."""

import functools
import re
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest

import numainfer as ni
from numainfer.engine.architectures import build
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog
from numainfer.gguf.file import GGUFFile

ARCHS = Path(__file__).resolve().parent / "archs"
sys.path.insert(0, str(ARCHS))

from make_gguf import make, templates  # noqa: E402

TEMPLATES = templates()
IDS = np.load(ARCHS / "expected.npz")["ids"].astype(np.int32)
EXPECTED = np.load(ARCHS / "expected.npz")


@functools.lru_cache(4)
def plain(name):
    """Keys [(key, value, types)] and tensors {name: array} of a golden."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.gguf"
        make(name, str(path), TEMPLATES[name])
        reader = gguf.GGUFReader(path)
        keys = [(key, field.contents(), field.types) for key, field in reader.fields.items()
                if not key.startswith("GGUF.") and key != "general.architecture"]  # fmt: skip
        return keys, {t.name: np.array(t.data) for t in reader.tensors}


def model(folder, name, keys=(), edit=None):
    """The golden `name` with other keys, and with `edit(tensors)` applied to its dict of tensors."""
    path, (known, tensors) = folder / "edited.gguf", plain(name)
    if edit:
        tensors = {tensor: data.copy() for tensor, data in tensors.items()}
        edit(tensors)
    arch = TEMPLATES[name]["arch"]
    writer = gguf.GGUFWriter(path, arch)
    added = {f"{arch}.{key}": value for key, value in dict(keys).items()}
    for key, value, kinds in known:
        if key not in added:
            writer.add_key_value(key, value, kinds[0], kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None)
    for key, value in added.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for tensor, data in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if data.dtype == np.uint8 else None
        writer.add_tensor(tensor, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path, threads=1, **options):
    with ni.load(path, threads=threads, **options) as loaded:
        return loaded.logits(IDS, all=True)


def fuse(tensors):
    for name in [name for name in tensors if "ffn_gate_exps" in name]:
        both = tensors.pop(name), tensors.pop(name.replace("gate", "up"))
        tensors[name.replace("gate_exps", "gate_up_exps")] = np.concatenate(both, axis=1)


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss"])
def test_gate_and_up_in_one_tensor(tmp_path, name):
    """The rows' sums are the same sums."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    np.testing.assert_array_equal(logits(model(tmp_path / "a", name, edit=fuse)), logits(model(tmp_path / "b", name)))


@pytest.mark.parametrize("name", ["glm4moe", "hy_v3", "deepseek2", "glm4", "exaone4", "exaone-moe", "qwen3", "qwen3moe", "gpt-oss", "grok"])
def test_layers_that_predict_further_tokens_are_skipped_and_said_to_be(tmp_path, name, caplog):
    """The last layer becomes one of those: without it the model is that of one layer fewer."""
    blocks = TEMPLATES[name]["kv"]["block_count"]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()

    def shorter(tensors):
        for tensor in [t for t in tensors if t.startswith(f"blk.{blocks - 1}.")]:
            del tensors[tensor]

    def more(tensors):
        tensors[f"blk.{blocks - 1}.nextn.eh_proj.weight"] = np.ones((128, 256), np.float32)

    with caplog.at_level("INFO", "numainfer"):
        found = logits(model(tmp_path / "a", name, {"nextn_predict_layers": 1}, more))
    assert any("last 1 layers predict further tokens" in record.getMessage() for record in caplog.records)
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", name, {"block_count": blocks - 1}, shorter)))


def test_another_number_of_experts_in_each_layer(tmp_path):
    """A key with a number for each layer: the plan routes by them, and the last layer's is heeded."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain = logits(model(tmp_path / "b", "qwen3moe"))
    found = logits(model(tmp_path / "a", "qwen3moe", {"expert_used_count": [3, 3, 1]}))
    assert (found != plain).any()
    path = model(tmp_path / "a", "qwen3moe", {"expert_used_count": [1, 2, 8]})
    with GGUFFile(path) as file:
        assert [op.tensors[1].width for op in build(Plan(1, 8, 64), Catalog(file)).ops if op.name == "route"] == [1, 2, 8]
    with pytest.raises(ni.CorruptModel, match="expert_used_count = 2 values; wanted one per layer"):
        ni.load(model(tmp_path / "a", "qwen3moe", {"expert_used_count": [3, 3]}))


def in_one_piece(kind, then_apart):
    """attn_kv_b of such a type out of attn_k_b and attn_v_b, as old files have it; or what it must mean, in the new form."""
    def edit(tensors):
        for name in [name for name in tensors if name.endswith("attn_k_b.weight")]:
            keys, values = tensors.pop(name), tensors.pop(name.replace("k_b", "v_b"))
            both = np.concatenate([keys.transpose(0, 2, 1), values], axis=1)  # 4 heads of 128 rows each for keys and for values
            both = gguf.quants.quantize(both.reshape(1024, -1), gguf.GGMLQuantizationType[kind])
            if not then_apart:
                tensors[name.replace("k_b", "kv_b")] = both
                continue
            floats = gguf.quants.dequantize(both, gguf.GGMLQuantizationType[kind]).reshape(4, 256, -1)
            tensors[name] = floats[:, :128].transpose(0, 2, 1).astype(np.float32 if kind == "F32" else np.float16)
            tensors[name.replace("k_b", "v_b")] = both.reshape(4, 256, -1)[:, 128:]
    return edit


OLD = {"attention.key_length_mla": None, "attention.value_length_mla": None, "attention.key_length": 192, "attention.value_length": 128,
       "attention.head_count_kv": 4}  # fmt: skip


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_latent_matrices_in_one_piece(tmp_path, kind, monkeypatch):
    """W_k is transposed exactly where the type has whole values, as halves where it packs them along a row; W_v stays as it is."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    path = model(tmp_path / "a", "deepseek2", OLD, in_one_piece(kind, False))
    found = logits(path)
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "deepseek2", {}, in_one_piece(kind, True))))
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    for placement in ("replicate", "shard", "interleave"):
        np.testing.assert_array_equal(logits(path, threads=2, placement=placement, n_batch=33), found)


def fewer_experts(tensors):
    tensors["blk.1.ffn_up_exps.weight"] = tensors["blk.1.ffn_up_exps.weight"][:4]


def smaller_router(tensors):
    tensors["blk.0.ffn_gate_inp.weight"] = tensors["blk.0.ffn_gate_inp.weight"][:5]


@pytest.mark.parametrize(("name", "keys", "edit", "error", "says"), [
    ("qwen3moe", {}, fewer_experts, ni.CorruptModel, "blk.1.ffn_up_exps.weight has 4 experts, wanted 8"),
    ("qwen3moe", {}, smaller_router, ni.CorruptModel, "blk.0.ffn_gate_exps.weight has 8 experts, wanted 5"),
    ("qwen3moe", {"expert_used_count": 9}, None, ni.CorruptModel, "expert_used_count = 9; wanted at most 8"),
    ("qwen3moe", {"expert_used_count": 0}, None, ni.CorruptModel, "expert_used_count = 0"),
    ("qwen3moe", {"expert_gating_func": 7}, None, ni.UnsupportedModel, "expert_gating_func = 7"),
    ("qwen3moe", {"swiglu_clamp_exp": [0.0, 7.0, 0.0]}, None, ni.UnsupportedModel, "swiglu_clamp_exp"),
    ("bailingmoe2", {"expert_group_count": 3, "expert_group_used_count": 1}, None, ni.CorruptModel, "group_count = 3; wanted a divisor"),
    ("bailingmoe2", {"expert_group_used_count": 5}, None, ni.CorruptModel, "expert_group_used_count = 5"),
    ("glm4moe", {"nextn_predict_layers": 4}, None, ni.CorruptModel, "nextn_predict_layers = 4; wanted fewer than glm4moe.block_count = 4"),
    ("glm4moe", {"rope.dimension_sections": [2, 2, 2, 2]}, None, ni.UnsupportedModel, "rope.dimension_sections = [2, 2, 2, 2]"),
    ("qwen3moe", {"rope.dimension_sections": [2, 3, 3, 0]}, None, ni.UnsupportedModel, "rope.dimension_sections"),
    ("dbrx", {"attention.clamp_kqv": 0.0}, None, ni.CorruptModel, "clamp_kqv = 0.0"),
    ("llama4", {"attention.sliding_window": 0}, None, ni.UnsupportedModel, "sliding_window = 0"),
    ("deepseek2", {"rope.scaling.yarn_log_multiplier": -0.1}, None, ni.CorruptModel, "yarn_log_multiplier = -0.1"),
    ("mistral4", {"rope.scaling.yarn_log_multiplier": 0.0707}, None, ni.UnsupportedModel, "yarn_log_multiplier"),
    ("deepseek2", {"attention.head_count": 2}, None, ni.CorruptModel, "attn_k_b.weight has 4 matrices, wanted 2, one per head"),
    ("deepseek2", {"attention.key_length_mla": 64}, None, ni.CorruptModel, "rope.dimension_count = 64"),
])  # fmt: skip
def test_what_is_refused(tmp_path, name, keys, edit, error, says):
    with pytest.raises(error, match=re.escape(says)):
        ni.load(model(tmp_path, name, keys, edit))



def test_a_value_for_each_layer(tmp_path):
    """Equal ones are as one number; others are refused where an architecture's layers are alike."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    arrays = {"attention.head_count_kv": [2, 2, 2], "expert_feed_forward_length": [64, 64, 64], "attention.head_count": [4, 4, 4]}
    np.testing.assert_array_equal(logits(model(tmp_path / "a", "qwen3moe", arrays)), logits(model(tmp_path / "b", "qwen3moe")))
    with pytest.raises(ni.UnsupportedModel, match="one value for all layers"):
        ni.load(model(tmp_path, "qwen3moe", {"attention.head_count_kv": [2, 1, 2]}))
    with pytest.raises(ni.CorruptModel, match="3 values; wanted one per layer"):
        ni.load(model(tmp_path, "mimo2", {"attention.head_count_kv": [1, 2, 2]}))


@pytest.mark.parametrize("name", ["qwen2moe", "gpt-oss", "deepseek2"])
def test_a_key_changes_what_it_says(tmp_path, name):
    """Norm of the weights, and their scale: a file that says otherwise is another model."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain = logits(model(tmp_path / "a", name))
    keys = {"expert_weights_scale": 3.0}
    assert (logits(model(tmp_path / "b", name, keys)) != plain).any()


def quantise(tensors):
    """All matrices but routers in Q8_0, as files have them."""
    for name, data in tensors.items():
        if data.ndim > 1 and name.endswith(".weight") and "ffn_gate_inp" not in name and data.shape[-1] % 32 == 0:
            tensors[name] = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss", "deepseek2", "llama4"])
def test_quantised_matrices(tmp_path, name, monkeypatch):
    """Near the golden at most positions (some choose other experts), and with the same bits everywhere."""
    path = model(tmp_path, name, edit=quantise)
    found = logits(path)
    error = np.abs(found - EXPECTED[name]).max(axis=1) / np.abs(EXPECTED[name]).max()
    assert 1e-5 < np.median(error) < 0.1  # 8-bit activations; what goes astray is far from it
    for nodes, placement in ((1, "auto"), (2, "replicate"), (2, "shard"), (3, "shard")):
        monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
        np.testing.assert_array_equal(logits(path, threads=max(nodes, 2), placement=placement, n_batch=33), found)
