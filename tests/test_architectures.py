"""Whole models through the engine: goldens of transformers, the NumPy twin for every weight type, and files that must not load."""

import time

import gguf
import numpy as np
import pytest
import reference as ref
from core_tools import GOLDEN, logits, open_engine, pretend, same_bits, twin_logits
from gguf_tools import GGUF
from random_blocks import TYPES
from reference_models import ReferenceModel
from tiny_models import tiny

from numainfer.engine.architectures import build
from numainfer.errors import CorruptModel, UnsupportedModel
from numainfer.gguf.file import GGUFFile
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog

IDS = np.random.default_rng(3).integers(6, 280, 40)


@pytest.mark.parametrize("name", ["llama", "llama3", "gemma3"])
def test_goldens(name):
    """Keys and values as halves are all that tells us from transformers' float64."""
    golden = np.load(GOLDEN / f"{name}.npz")
    with open_engine(GOLDEN / f"{name}.gguf") as engine:
        found = logits(engine, golden["ids"])
        steps = logits(engine, golden["ids"], chunks=[1])
    assert golden["logits"].std() > 0.5
    np.testing.assert_allclose(found, golden["logits"], atol=2e-2)
    np.testing.assert_allclose(found, twin_logits(GOLDEN / f"{name}.gguf", golden["ids"]), atol=1e-3)
    same_bits(steps, found)


def error_of(path, ids=IDS):
    """KL divergence per position and RMS error of the logits relative to their spread."""
    wanted = twin_logits(path, ids)
    with open_engine(path) as engine:
        found = logits(engine, ids)
    assert wanted.std() > 1
    return ref.kl_divergence(wanted, found), np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()


@pytest.mark.parametrize("weight_type", TYPES)
def test_every_weight_type(tmp_path, weight_type):
    arch = ("llama", "gemma3")[TYPES.index(weight_type) % 2]
    kl, rms = error_of(tiny(tmp_path, arch, weight_type, layers=3))
    if weight_type in ("F32", "F16", "BF16"):
        assert rms < 5e-4 and kl.max() < 2e-6
    else:  # 8-bit activations: 0.4 % of the largest of 32 values each, at 7 places a layer
        assert rms < 0.06 and kl.mean() < 0.01


@pytest.mark.parametrize("more", [
    {"tied": False}, {"rope_freqs": True}, {"rope_scale": 4.0}, {"heads": 6, "kv_heads": 3, "head_width": 48},
    {"heads": 4, "kv_heads": 4, "head_width": 16}, {"heads": 8, "kv_heads": 1, "head_width": 128}, {"width": 64, "feed_forward": 96},
    {"biases": True},
], ids=str)  # fmt: skip
def test_variations_of_llama(tmp_path, more):
    kl, rms = error_of(tiny(tmp_path, "llama", "F32", **more))
    assert rms < 5e-4 and kl.max() < 2e-6


@pytest.mark.parametrize("more", [
    {"tied": False}, {"rope_scale": 8.0}, {"window": 3, "layers": 4}, {"window": 0}, {"layers": 7, "heads": 4, "kv_heads": 2},
], ids=str)  # fmt: skip
def test_variations_of_gemma3(tmp_path, more):
    kl, rms = error_of(tiny(tmp_path, "gemma3", "F32", **more))
    assert rms < 5e-4 and kl.max() < 2e-6


def test_hidden_states_are_what_the_output_matrix_reads(tmp_path):
    path = tiny(tmp_path, "llama", "F32", tied=False)
    with open_engine(path) as engine:
        hidden, wanted = logits(engine, IDS, hidden=True), logits(engine, IDS)
    assert hidden.shape == (40, 256)
    np.testing.assert_allclose(hidden @ ReferenceModel(path).weights["output.weight"].T, wanted, atol=1e-4)


# ---- biases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_type", ["Q8_0", "Q4_K"])
def test_biases_with_quantised_weights(tmp_path, weight_type):
    path = tiny(tmp_path, "llama", weight_type, biases=True)
    kl, rms = error_of(path)
    assert rms < 0.06 and kl.mean() < 0.01
    with open_engine(path) as engine, open_engine(tiny(tmp_path, "llama", weight_type, name="without")) as other:
        assert (logits(engine, IDS) != logits(other, IDS)).any()


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave"])
def test_biases_have_the_same_bits_everywhere(tmp_path, monkeypatch, placement):
    path = tiny(tmp_path, "llama", "Q4_K", biases=True, tied=False)
    with open_engine(path, threads=1) as engine:
        wanted = logits(engine, IDS)
    for shape in ((1, 3), (2, 2), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(path, placement=placement) as engine:
            same_bits(logits(engine, IDS), wanted)
            same_bits(logits(engine, IDS, chunks=[1, 13, 1, 25]), wanted)


# ---- files that are not what they say ---------------------------------------------------------------------------------


def rewrite(source, path, keys=(), tensors=()):
    """A copy of a GGUF file with keys set to (value, type) or removed (None), and tensors replaced by arrays, or removed."""
    keys, tensors = dict(keys), dict(tensors)
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, keys.pop("general.architecture", architecture))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or keys.get(name, ()) is None:
            continue
        value, kinds = field.contents(), field.types
        if name in keys:
            value, kinds = keys[name][0], [keys[name][1]]
        writer.add_key_value(name, value, kinds[0], kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None)
    for name, value in keys.items():
        if value is not None and name not in reader.fields:
            writer.add_key_value(name, *value)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if tensor.name in tensors:
            data, kind = tensors.pop(tensor.name), gguf.GGMLQuantizationType.F32
        if data is not None:
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    for name, data in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


INT, FLOAT, STRING, U64 = (gguf.GGUFValueType[n] for n in ("UINT32", "FLOAT32", "STRING", "UINT64"))
A, R = "llama.attention.", "llama.rope."


def zeros(*shape):
    return np.ones(shape, np.float32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """width 256, 3 heads over 1 kv-head of width 32, feed-forward 160, vocabulary 285, untied, with frequency factors."""
    return tiny(tmp_path_factory.mktemp("sound"), "llama", "F32", tied=False, rope_freqs=True)


def refused(path, error, says):
    start = time.perf_counter()
    with pytest.raises(error, match=says), open_engine(path):
        pass
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(("key", "value", "error", "says"), [
    ("general.architecture", "mpt", UnsupportedModel, "general.architecture = 'mpt' is not supported; supported: .*gemma3, .*llama, "),
    ("llama.block_count", None, CorruptModel, "llama.block_count"),
    ("llama.block_count", (0, INT), CorruptModel, "llama.block_count = 0"),
    ("llama.block_count", (1, INT), UnsupportedModel, "blk.1.*The file is .*bad.gguf"),
    ("llama.block_count", (3, INT), CorruptModel, "tensor 'blk.2.attn_norm.weight' is missing"),
    ("llama.block_count", (4000, INT), CorruptModel, "blk.2"),
    ("llama.block_count", (2**32 - 1, INT), CorruptModel, "llama.block_count = 4294967295"),
    ("llama.block_count", (2.0, FLOAT), CorruptModel, "llama.block_count"),
    ("llama.context_length", None, CorruptModel, "llama.context_length"),
    ("llama.context_length", (0, INT), CorruptModel, "llama.context_length = 0"),
    ("llama.context_length", (2**62, U64), CorruptModel, "llama.context_length = 4611686018427387904"),
    ("llama.context_length", (2**32 - 1, INT), CorruptModel, "llama.context_length"),
    ("llama.embedding_length", (0, INT), CorruptModel, "llama.embedding_length = 0"),
    ("llama.embedding_length", (16, INT), CorruptModel, "token_embd.weight has rows of 256 values, wanted llama.embedding_length = 16"),
    (A + "head_count", (0, INT), CorruptModel, "head_count = 0"),
    (A + "head_count", (2**32 - 1, INT), CorruptModel, "head_count = 4294967295"),
    (A + "head_count", (4, INT), CorruptModel, r"q \(blk.0.attn_q.weight\) has width 96, wanted 128 \(attention.head_count = 4 of "),
    (A + "head_count_kv", (0, INT), CorruptModel, "head_count_kv = 0"),
    (A + "head_count_kv", (2, INT), CorruptModel, "head_count = 3; wanted a multiple of llama.attention.head_count_kv = 2"),
    (A + "head_count_kv", (3, INT), CorruptModel, r"k \(blk.0.attn_k.weight\) has width 32, wanted 96 \(attention.head_count_kv = 3 of "),
    (A + "key_length", (0, INT), CorruptModel, "key_length = 0"),
    (A + "key_length", (33, INT), CorruptModel, r"q \(blk.0.attn_q.weight\) has width 96, wanted 99 \(attention.head_count = 3 of "),
    (A + "key_length", (64, INT), CorruptModel, r"attend: operand q \(blk.0.attn_q.weight\) has width 96, wanted 192"),
    (A + "value_length", (24, INT), CorruptModel, r"operand v \(blk.0.attn_v.weight\) has width 32, wanted 24 \(.* of value_length 24"),
    (A + "value_length", (16, INT), CorruptModel, r"attend: operand v \(blk.0.attn_v.weight\) has width 32, wanted 16"),
    (A + "layer_norm_rms_epsilon", None, CorruptModel, "layer_norm_rms_epsilon"),
    (A + "layer_norm_rms_epsilon", (float("nan"), FLOAT), CorruptModel, "layer_norm_rms_epsilon = nan"),
    (A + "layer_norm_rms_epsilon", (float("inf"), FLOAT), CorruptModel, "layer_norm_rms_epsilon = inf"),
    (A + "layer_norm_rms_epsilon", (1e6, FLOAT), CorruptModel, "layer_norm_rms_epsilon = 1000000.0"),
    (A + "clamp_kqv", (8.0, FLOAT), UnsupportedModel, "clamp_kqv = 8.0 is not supported; supported: 0.0"),
    ("llama.logit_scale", (0.5, FLOAT), UnsupportedModel, "llama.logit_scale = 0.5"),
    ("llama.final_logit_softcapping", (30.0, FLOAT), UnsupportedModel, "final_logit_softcapping = 30.0"),
    (A + "layer_norm_rms_epsilon", (-1e-6, FLOAT), CorruptModel, "layer_norm_rms_epsilon = -"),
    (R + "dimension_count", (31, INT), CorruptModel, "dimension_count = 31; wanted an even number up to llama.attention.key_length = 32"),
    (R + "dimension_count", (34, INT), CorruptModel, "dimension_count = 34; wanted an even number up to llama.attention.key_length = 32"),
    (R + "freq_base", (0.0, FLOAT), CorruptModel, "freq_base = 0.0"),
    (R + "freq_base", (float("nan"), FLOAT), CorruptModel, "freq_base = nan"),
    (R + "scaling.type", ("ntk", STRING), UnsupportedModel, "rope.scaling.type = 'ntk'"),
    (R + "scaling.factor", (0.0, FLOAT), CorruptModel, "rope.scaling.factor = 0.0"),
    (R + "scaling.factor", (float("inf"), FLOAT), CorruptModel, "rope.scaling.factor = inf"),
    ("llama.expert_count", (8, INT), CorruptModel, "'blk.0.ffn_gate_exps.weight' is missing"),
])  # fmt: skip
def test_bad_metadata(sound, tmp_path, key, value, error, says):
    refused(rewrite(sound, tmp_path / "bad.gguf", {key: value}), error, says)


@pytest.mark.parametrize(("name", "data", "error", "says"), [
    ("token_embd.weight", None, CorruptModel, "tensor 'token_embd.weight' is missing; architecture 'llama' needs it"),
    ("token_embd.weight", zeros(285, 128), CorruptModel, "token_embd.weight has rows of 128 values"),
    ("token_embd.weight", zeros(200, 256), CorruptModel, "output.weight has 285 rows, wanted 200"),
    ("token_embd.weight", zeros(256), CorruptModel, "embed: operand token_embd.weight is a vector of 256 values, wanted a matrix"),
    ("output.weight", zeros(284, 256), CorruptModel, "output.weight has 284 rows, wanted 285"),
    ("output.weight", zeros(285, 128), CorruptModel, r"matmul: operand W \(output.weight\) has width 128, wanted 256"),
    ("output_norm.weight", None, CorruptModel, "'output_norm.weight' is missing"),
    ("output_norm.weight", zeros(286), CorruptModel, "'output_norm.weight' is a vector of 286 values; the longest side of a matrix"),
    ("output_norm.weight", zeros(255), CorruptModel, r"norm: operand w \(output_norm.weight\) has width 255, wanted 256"),
    ("output_norm.weight", zeros(256, 2), CorruptModel, r"norm: operand w \(output_norm.weight\) is a matrix of 256 x 2 values"),
    ("output_norm.weight", zeros(2, 4, 32), CorruptModel, r"norm: operand w \(output_norm.weight\) is a matrix of 4 x 32 values"),
    ("output_norm.weight", zeros(1, 2, 4, 32), UnsupportedModel, r"shape of tensor output_norm.weight = \(1, 2, 4, 32\)"),
    ("blk.0.ffn_up.weight", zeros(2, 160, 256), CorruptModel,
     "matmul: operand blk.0.ffn_up.weight has 2 matrices of 160 x 256 values, wanted 1"),
    ("token_embd.weight", zeros(2, 285, 256), CorruptModel, "embed: operand token_embd.weight has 2 matrices"),
    ("blk.1.attn_norm.weight", zeros(1, 256), CorruptModel, "norm: operand w .*is a matrix of 1 x 256 values, wanted a vector of 256"),
    ("blk.0.attn_q.weight", zeros(95, 256), CorruptModel, r"attend: operand q \(blk.0.attn_q.weight\) has width 95, wanted 96"),
    ("blk.0.attn_q.weight", zeros(96), CorruptModel, "matmul: operand blk.0.attn_q.weight is a vector of 96 values, wanted a matrix"),
    ("blk.1.attn_k.weight", zeros(64, 256), CorruptModel, r"attend: operand k \(blk.1.attn_k.weight\) has width 64, wanted 32"),
    ("blk.1.attn_v.weight", zeros(32, 255), CorruptModel, r"matmul: operand W \(blk.1.attn_v.weight\) has width 255, wanted 256"),
    ("blk.0.attn_output.weight", zeros(255, 96), CorruptModel, r"norm: operand y \(blk.0.attn_output.weight\) has width 255, wanted 256"),
    ("blk.0.attn_output.weight", None, CorruptModel, "'blk.0.attn_output.weight' is missing"),
    ("blk.0.ffn_gate.weight", zeros(128, 256), CorruptModel, r"gated: operand up \(blk.0.ffn_up.weight\) has width 160, wanted 128"),
    ("blk.0.ffn_down.weight", zeros(256, 161), CorruptModel, r"matmul: operand W \(blk.0.ffn_down.weight\) has width 161, wanted 160"),
    ("rope_freqs.weight", zeros(15), CorruptModel, "rope_freqs.weight"),
    ("rope_freqs.weight", zeros(16, 1), CorruptModel, "tensor 'rope_freqs.weight' is a matrix of 16 x 1 values, wanted a vector"),
    ("rope_freqs.weight", zeros(16) * 0, CorruptModel, "wanted a vector of 16 positive numbers"),
    ("rope_freqs.weight", zeros(16) * np.nan, CorruptModel, "wanted a vector of 16 positive numbers"),
    ("blk.0.attn_q.bias", zeros(95), CorruptModel,
     r"tensor 'blk.0.attn_q.bias' has the shape \(95,\), wanted \(96,\), a value for each row"),
    ("blk.0.attn_norm.bias", zeros(1, 256), CorruptModel, r"'blk.0.attn_norm.bias' has the shape \(1, 256\), wanted \(256,\)"),
    ("token_embd.bias", zeros(285), UnsupportedModel, r"tensor = 'token_embd.bias' is not supported.*does not use it"),
    ("rope_freqs.bias", zeros(16), UnsupportedModel, r"tensor = 'rope_freqs.bias' is not supported.*does not use it"),
    ("blk.2.attn_norm.weight", zeros(256), UnsupportedModel, "blk.2.attn_norm.weight"),
])  # fmt: skip
def test_bad_tensors(sound, tmp_path, name, data, error, says):
    refused(rewrite(sound, tmp_path / "bad.gguf", tensors={name: data}), error, says)


@pytest.mark.parametrize("kind, number, block, n_bytes", [("Q8_K", 15, 256, 292), ("Q8_1", 9, 32, 36), ("F64", 28, 1, 8)])
def test_types_that_we_lack(tmp_path, kind, number, block, n_bytes):
    path = tmp_path / "lacking.gguf"
    path.write_bytes(bytes(GGUF().tensor("w", (block, 4), number, bytes(4 * n_bytes))))
    with GGUFFile(path) as file:
        with pytest.raises(UnsupportedModel, match=f"type of tensor w = '{kind}' is not supported; supported: F32, F16, BF16, Q4_0"):
            Catalog(file)["w"]


def test_the_rewriting_itself_changes_nothing(sound, tmp_path):
    with open_engine(sound) as a, open_engine(rewrite(sound, tmp_path / "same.gguf")) as b:
        np.testing.assert_array_equal(logits(a, IDS), logits(b, IDS))


@pytest.mark.parametrize(("keys", "same_as"), [
    ({R + "scaling.factor": (4.0, FLOAT)}, 4.0), ({R + "scale_linear": (4.0, FLOAT)}, 4.0),
    ({R + "scaling.type": ("none", STRING), R + "scaling.factor": (4.0, FLOAT)}, 1.0), ({"llama.expert_count": (0, INT)}, 1.0),
], ids=str)  # fmt: skip
def test_what_a_missing_scaling_type_means(tmp_path, keys, same_as):
    """As llama.cpp reads it: a factor alone is linear scaling; "none" ignores the factor."""
    plain = tiny(tmp_path, "llama", "F32", name="plain")
    scaled = tiny(tmp_path, "llama", "F32", name="scaled", rope_scale=same_as)
    with open_engine(rewrite(plain, tmp_path / "keys.gguf", keys)) as a, open_engine(scaled) as b:
        np.testing.assert_array_equal(logits(a, IDS), logits(b, IDS))


def test_a_refused_model_leaves_the_catalog_to_the_next(sound):
    """Building twice from one catalog, as for hidden states, gives the same tensors and no "unused" ones."""
    with GGUFFile(sound) as file:
        catalog = Catalog(file)
        first, second = (build(Plan(1, 8, 64, hidden=h), catalog) for h in (False, True))
    assert set(map(id, second.weights)) < set(map(id, first.weights))
