"""What dense architectures read from a file beside what the golden models hold, and what they refuse."""

import sys

import gguf
import numpy as np
import pytest
from core_tools import TESTS, logits, open_engine, same_bits
from test_architectures import refused, rewrite

from numainfer.engine.architectures import build
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog
from numainfer.errors import CorruptModel, UnsupportedModel
from numainfer.gguf.file import GGUFFile

sys.path.insert(0, str(TESTS / "archs"))

from make_gguf import make, templates  # noqa: E402

TEMPLATES = templates()
IDS = np.random.default_rng(8).integers(6, 120, 90)
INT, FLOAT, STRING, BOOL, ARRAY = (gguf.GGUFValueType[n] for n in ("UINT32", "FLOAT32", "STRING", "BOOL", "ARRAY"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """``model(name, keys, tensors)``: a golden model's file, with changes."""
    folder, made = tmp_path_factory.mktemp("dense"), {}

    def path(name, keys=None, tensors=None):
        if name not in made:
            made[name] = folder / f"{name}.gguf"
            make(name, str(made[name]), TEMPLATES[name])
        if not (keys or tensors):
            return made[name]
        return rewrite(made[name], folder / "changed.gguf", keys or {}, tensors or {})

    return path


def run(path, **options):
    with open_engine(path, **options) as engine:
        return logits(engine, IDS[:60])


def tensors_of(path):
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def test_longrope_chooses_its_factors_by_the_context(model):
    """A context of at most 64, the original one, takes the short factors; a longer one the long ones."""
    short = run(model("phi3"), n_ctx=64)
    factors = tensors_of(model("phi3"))["rope_factors_short.weight"]
    same_bits(run(model("phi3", tensors={"rope_factors_long.weight": factors}), n_ctx=65), short)
    assert np.abs(run(model("phi3"), n_ctx=65) - short).max() > 1e-2
    with GGUFFile(model("phi3")) as file:
        catalog = Catalog(file)  # one for plans of both lengths
        tables = [next(op for op in build(Plan(1, 8, n), catalog).ops if op.name == "rope_table").weights[0].values for n in (64, 65, 64)]
    assert np.array_equal(tables[0], tables[2]) and (tables[0][1:] > tables[1][1:]).all()


def test_where_yarn_slows_down(model):
    """Between the last pair that turns more than 32 times within the original context and the first that turns less than once."""
    keys = {"qwen3.rope.scaling.type": ("yarn", STRING), "qwen3.rope.scaling.factor": (4.0, FLOAT), "qwen3.rope.freq_base": (1e4, FLOAT),
            "qwen3.rope.scaling.original_context_length": (4096, INT)}  # fmt: skip
    with GGUFFile(model("qwen3", keys)) as file:
        op = next(op for op in build(Plan(1, 8, 64), Catalog(file)).ops if op.name == "rope_table")
    plain = 1e4 ** (-np.arange(32) / 32)
    turns = 4096 * plain / (2 * np.pi)
    first, last = np.nonzero(turns > 32)[0][-1], np.nonzero(turns < 1)[0][0]
    assert (first, last) == (10, 23)
    keeps = 1 - np.clip((np.arange(32) - first) / (last - first), 0, 1)
    np.testing.assert_allclose(op.weights[0].values, plain * (keeps + (1 - keeps) / 4), rtol=1e-12)
    assert op.floats == (0.1 * np.log(4.0) + 1,)


@pytest.mark.parametrize("name", ["qwen2", "starcoder2", "gemma", "qwen3"])
def test_matrices_in_parts_and_in_one_give_the_same_bits(model, name):
    """q, k and v as rows of one tensor, with their biases; gate and up as halves of one, where there is a gate."""
    t, changed = tensors_of(model(name)), {}
    for i in range(3):
        for kind in ("weight", "bias"):
            parts = [f"blk.{i}.attn_{x}.{kind}" for x in "qkv"]
            if parts[0] in t:
                changed |= {f"blk.{i}.attn_qkv.{kind}": np.concatenate([t[x] for x in parts])} | dict.fromkeys(parts)
        gate, up = f"blk.{i}.ffn_gate.weight", f"blk.{i}.ffn_up.weight"
        if gate in t:
            changed |= {up: np.concatenate([t[gate], t[up]]), gate: None}
    wanted = run(model(name))
    same_bits(run(model(name, tensors=changed)), wanted)


def test_biases_of_parts_beside_a_matrix_in_one(model):
    """As old files have them: attn_qkv.weight, and attn_q.bias, attn_k.bias, attn_v.bias."""
    t, changed = tensors_of(model("qwen2")), {}
    for i in range(3):
        parts = [f"blk.{i}.attn_{x}.weight" for x in "qkv"]
        changed |= {f"blk.{i}.attn_qkv.weight": np.concatenate([t[x] for x in parts])} | dict.fromkeys(parts)
    same_bits(run(model("qwen2", tensors=changed)), run(model("qwen2")))


def test_tensors_of_pictures_are_named_and_left_out(model, caplog):
    wanted = run(model("qwen3"))
    others = {"v.blk.0.attn_q.weight": np.ones((8, 8), np.float32), "blk.0.attn_rot_embd.weight": np.ones(8, np.float32)}
    with caplog.at_level("WARNING", "numainfer"):
        same_bits(run(model("qwen3", tensors=others)), wanted)
    assert "tensor v.blk.0.attn_q.weight, blk.0.attn_rot_embd.weight is not of the model that makes text" in caplog.text
    refused(model("qwen3", tensors={"blk.0.attn_new.weight": np.ones((8, 8), np.float32)}), UnsupportedModel, "blk.0.attn_new.weight")
    refused(model("qwen3", tensors={"vision.weight": np.ones((8, 8), np.float32)}), UnsupportedModel, "vision.weight")


def test_layers_with_windows_may_be_named_one_by_one(model):
    wanted = run(model("olmo3"))
    key = "olmo2.attention.sliding_window_pattern"
    same_bits(run(model("olmo3", {key: (4, INT)})), wanted)
    flags = [True, True, True, False, True]
    found = run(rewritten_array(model("olmo3"), key, flags))
    same_bits(found, wanted)
    assert (run(rewritten_array(model("olmo3"), key, flags[::-1])) != wanted).any()
    refused(rewritten_array(model("olmo3"), key, flags[:4]), CorruptModel, "sliding_window_pattern = 4 values; wanted 5, one per layer")


def test_a_period_of_no_layers_means_a_window_in_all(model):
    key = "gemma2.attention.sliding_window_pattern"
    blocks = TEMPLATES["gemma2"]["kv"]["block_count"]
    same_bits(run(model("gemma2", {key: (0, INT)})), run(rewritten_array(model("gemma2"), key, [True] * blocks)))


def rewritten_array(path, key, values):
    """`rewrite` with one array of booleans added."""
    out = path.with_name("array.gguf")
    writer_add = gguf.GGUFWriter.add_key_value

    def add(self, name, value, kind, sub=None):
        writer_add(self, name, value, kind, BOOL if name == key else sub)

    gguf.GGUFWriter.add_key_value = add
    try:
        return rewrite(path, out, {key: (values, ARRAY)})
    finally:
        gguf.GGUFWriter.add_key_value = writer_add


def test_factors_that_old_files_of_minicpm_leave_out(model):
    """Embedding 12, residual 1.4 / sqrt(layers), logits / (width / 256) (arXiv:2404.06395)."""
    given = {f"minicpm.{name}_scale": (x, FLOAT) for name, x in (("embedding", 12.0), ("residual", 1.4 / np.sqrt(3)), ("logit", 0.5))}
    wanted = run(model("minicpm", given))
    np.testing.assert_allclose(run(model("minicpm", dict.fromkeys(given))), wanted, rtol=1e-5, atol=1e-6)


def test_queries_of_mistral_grow_where_the_file_says_so(model):
    plain = run(model("mistral3", {"mistral3.attention.temperature_scale": (0.0, FLOAT)}))
    hot = run(model("mistral3"))
    same_bits(hot[:32], plain[:32])  # the original context, in which nothing changes
    assert (hot[32:] != plain[32:]).any(axis=1).all()


def test_layers_side_by_side_or_one_after_the_other(model):
    """GPT-NeoX by its key, StableLM by the tensors that are there."""
    assert (run(model("gptneox", {"gptneox.use_parallel_residual": (False, BOOL)})) != run(model("gptneox"))).any()
    gone = {f"blk.{i}.ffn_norm.{kind}": None for i in range(3) for kind in ("weight", "bias")}
    assert (run(model("stablelm", tensors=gone)) != run(model("stablelm"))).any()


@pytest.mark.parametrize(("name", "keys", "error", "says"), [
    ("qwen2", {"qwen2.attention.sliding_window": (16, INT)}, UnsupportedModel, "qwen2.attention.sliding_window = 16 is not supported"),
    ("qwen3", {"qwen3.logit_scale": (2.0, FLOAT)}, UnsupportedModel, "qwen3.logit_scale = 2.0"),
    ("gemma", {"gemma.final_logit_softcapping": (30.0, FLOAT)}, UnsupportedModel, "gemma.final_logit_softcapping = 30.0"),
    ("qwen3", {"qwen3.rope.freq_base_swa": (5e5, FLOAT)}, UnsupportedModel, "freq_base_swa = 500000.0 .* supported: 1e"),
    ("qwen3", {"qwen3.rope.dimension_count_swa": (16, INT)}, UnsupportedModel, "rope.dimension_count_swa = 16 .* supported: 64"),
    ("qwen3", {"qwen3.attention.key_length_swa": (16, INT)}, UnsupportedModel, "attention.key_length_swa = 16 .* supported: 64"),
    ("qwen3", {"qwen3.rope.scaling.type": ("yarn", STRING), "qwen3.rope.scaling.factor": (4.0, FLOAT),
               "qwen3.rope.scaling.yarn_log_multiplier": (0.1, FLOAT)}, UnsupportedModel, "yarn_log_multiplier = 0.1"),
    ("step35", {"step35.rope.scaling.type": ("yarn", STRING), "step35.rope.scaling.factor": (4.0, FLOAT)}, UnsupportedModel, "'yarn'"),
    ("step35", {"step35.rope.scaling.attn_factor": (1.1, FLOAT)}, UnsupportedModel, "rope.scaling.attn_factor = 1.1"),
    ("granite", {"granite.logit_scale": None}, CorruptModel, "no key granite.logit_scale"),
    ("granite", {"granite.logit_scale": (0.0, FLOAT)}, CorruptModel, "granite.logit_scale = 0.0"),
    ("granite", {"granite.expert_count": (4, INT)}, UnsupportedModel, "granite.expert_count = 4"),
    ("arcee", {"arcee.rope.scaling.factor": None}, CorruptModel, "no key arcee.rope.scaling.factor"),
    ("arcee", {"arcee.rope.scaling.yarn_attn_factor": (1.5, FLOAT)}, UnsupportedModel, "yarn_attn_factor = 1.5 .* supported: 1.29957"),
    ("arcee", {"arcee.rope.freq_base": (1.0, FLOAT)}, CorruptModel, "rope.freq_base = 1.0; wanted more than 1 with YaRN"),
    ("arcee", {"arcee.rope.scaling.type": ("dynamic", STRING)}, UnsupportedModel, "rope.scaling.type = 'dynamic'"),
    ("phi3", {"phi3.rope.scaling.type": ("yarn", STRING), "phi3.rope.scaling.factor": (2.0, FLOAT)}, UnsupportedModel, "factor = 2.0"),
    ("phi3", {"phi3.rope.scaling.factor": (2.0, FLOAT)}, UnsupportedModel, "phi3.rope.scaling.factor = 2.0"),
    ("glm4", {"glm4.nextn_predict_layers": (3, INT)}, CorruptModel, "nextn_predict_layers = 3; wanted fewer than glm4.block_count = 3"),
    ("gptneox", {"gptneox.use_parallel_residual": None}, CorruptModel, "use_parallel_residual"),
    ("apertus", {"xielu.beta": None}, CorruptModel, "no key xielu.beta"),
])  # fmt: skip
def test_what_is_refused(model, name, keys, error, says):
    refused(model(name, keys), error, says)


@pytest.mark.parametrize(("name", "tensor", "shape", "says"), [
    ("phi3", "blk.0.attn_qkv.weight", (255, 128), r"tensor 'blk.0.attn_qkv.weight' has 255 rows, wanted 256 rows: 128 \+ 64 \+ 64"),
    ("phi3", "blk.0.attn_qkv.weight", (256,), "tensor 'blk.0.attn_qkv.weight' has 256 values, wanted 256 rows"),
    ("phi3", "blk.0.ffn_up.weight", (383, 128), "tensor 'blk.0.ffn_up.weight' has 383 rows, wanted 382 rows"),
    ("phi3", "rope_factors_short.weight", None, "tensor 'rope_factors_short.weight' is missing"),
    ("gpt2", "position_embd.weight", (512, 64), r"embed: operand positions \(position_embd.weight\) has width 64, wanted 128"),
    ("olmo2", "blk.0.attn_q_norm.weight", (32,), r"norm: operand w \(blk.0.attn_q_norm.weight\) has width 32, wanted 128"),
], ids=str)  # fmt: skip
def test_tensors_that_do_not_fit(model, name, tensor, shape, says):
    changed = {tensor: None if shape is None else np.ones(shape, np.float32)}
    refused(model(name, tensors=changed), CorruptModel, says)


def test_a_context_beyond_the_learned_positions_is_refused(model):
    with pytest.raises(UnsupportedModel, match="n_ctx = 513 is not supported; supported: up to 512"), open_engine(model("gpt2"), n_ctx=513):
        pass
