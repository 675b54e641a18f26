"""Files of Mamba, Jamba, MiniMax 01 and GroveMoE that are not quite those of the goldens: the same bits, and what is refused by name."""

import re

import numpy as np
import pytest
from test_definitions import grovemoe
from test_mixture_models import EXPECTED, IDS, TEMPLATES, logits, make, model, quantise
from test_more_models import TEMPLATES as MORE
from test_recurrent_models import added, cut, near_and_the_same_everywhere, without

import numainfer as ni
from numainfer.engine.architectures import build
from numainfer.engine.ops import PER_NODE, TEAM
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog
from numainfer.gguf.file import GGUFFile


@pytest.mark.parametrize("name", ["jamba", "minimax-01", "grovemoe"])
def test_quantised_matrices(tmp_path, name, monkeypatch):
    """Near the golden at most positions, and the same bits everywhere; the paces of channels stay floats."""
    wanted = EXPECTED[name]
    if name == "grovemoe":
        make(name, str(tmp_path / "exact.gguf"), TEMPLATES[name])
        wanted = grovemoe(tmp_path / "exact.gguf", IDS)
    near_and_the_same_everywhere(model(tmp_path, name, edit=quantise), wanted, monkeypatch)


@pytest.mark.parametrize("name", ["jamba", "minimax-01"])
def test_sessions(tmp_path, name):
    """A long prompt, its forks, its rewinds and what was saved of it: what one prefill says."""
    path, ids = model(tmp_path, name), np.random.default_rng(7).integers(6, 120, 300).astype(np.int32)
    with ni.load(path, threads=1, n_batch=300) as one:
        wanted = one.logits(ids, all=True)
    with ni.load(path, threads=2, n_batch=70) as loaded:
        with loaded.session() as session:
            for n in (260, 261, 291):
                np.testing.assert_array_equal(session.logits(ids[:n]), wanted[n - 1])
            with session.fork() as twin:
                np.testing.assert_array_equal(session.logits(ids), wanted[299])
                np.testing.assert_array_equal(session.logits(ids[:200]), wanted[199])  # back
                assert not np.array_equal(session.logits([*ids[:200], 5]), wanted[200])
                np.testing.assert_array_equal(session.logits(ids[:260]), wanted[259])
                np.testing.assert_array_equal(twin.logits(ids[:295]), wanted[294])
                twin.save(tmp_path / "saved")
        with loaded.restore(tmp_path / "saved") as session:
            np.testing.assert_array_equal(session.logits(ids), wanted[299])
        answers = loaded.generate([ids[:n] for n in (290, 20, 290)], max_tokens=1, ignore_eos=True)
        assert [a.token_ids[0] for a in answers] == [int(wanted[n - 1].argmax()) for n in (290, 20, 290)]


def test_a_convolution_without_bias(tmp_path):
    def zero(tensors):
        for key in [key for key in tensors if "conv1d.bias" in key]:
            tensors[key] = np.zeros_like(tensors[key])
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = logits(model(tmp_path / "a", "jamba", edit=without(*[f"blk.{i}.ssm_conv1d.bias" for i in (0, 2, 3)])))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "jamba", edit=zero)))


def test_keys_of_the_router(tmp_path):
    """Weights of Jamba's experts are not divided by their sum, but where a file says so; nor are those of others left whole."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    for name, usual in (("jamba", False), ("minimax-01", True), ("grovemoe", True)):
        plain = logits(model(tmp_path / "a", name))
        np.testing.assert_array_equal(logits(model(tmp_path / "b", name, {"expert_weights_norm": usual})), plain)
        assert not np.array_equal(logits(model(tmp_path / "b", name, {"expert_weights_norm": not usual})), plain)


@pytest.mark.parametrize(("name", "keys", "edit", "error", "says"), [
    ("jamba", {"ssm.conv_kernel": 3}, None, ni.CorruptModel, "blk.0.ssm_conv1d.weight) has width 1024, wanted 768"),
    ("jamba", {"ssm.conv_kernel": 17}, None, ni.CorruptModel, "ssm.conv_kernel = 17"),
    ("jamba", {"ssm.state_size": 8}, None, ni.CorruptModel, "'blk.0.ssm_x.weight' has 40 rows, wanted 24 rows: 8 + 8 + 8"),
    ("jamba", {"ssm.inner_size": 128}, None, ni.CorruptModel, "'blk.0.ssm_in.weight' has 512 rows, wanted 256 rows: 128 + 128"),
    ("jamba", {"ssm.time_step_rank": 0}, None, ni.CorruptModel, "ssm.time_step_rank = 0"),
    ("jamba", {"attention.head_count_kv": [0, 0, 0, 0]}, None, ni.CorruptModel, "'blk.1.ssm_dt_norm.weight' is missing"),
    ("jamba", {}, cut("blk.0.ssm_a", 200), ni.CorruptModel, "tensor 'blk.0.ssm_a' has the shape (200, 16), wanted (256, 16)"),
    ("jamba", {}, cut("blk.0.ssm_d", 200), ni.CorruptModel, "operand skip (blk.0.ssm_d) has width 200, wanted 256"),
    ("jamba", {}, cut("blk.0.ssm_dt_norm.weight", 7), ni.CorruptModel, "operand w (blk.0.ssm_dt_norm.weight) has width 7, wanted 8"),
    ("jamba", {}, cut("blk.0.ssm_dt.bias", 9), ni.CorruptModel, "'blk.0.ssm_dt.bias' has the shape (9,), wanted (256,)"),
    ("jamba", {}, without("blk.2.ssm_b_norm.weight"), ni.CorruptModel, "'blk.2.ssm_b_norm.weight' is missing"),
    ("jamba", {}, without("blk.2.ssm_a"), ni.CorruptModel, "'blk.2.ssm_a' is missing"),
    ("jamba", {}, without("blk.1.ffn_gate_exps.weight"), ni.CorruptModel, "'blk.1.ffn_gate_exps.weight' is missing"),
    ("jamba", {}, added("blk.0.ssm_norm.weight"), ni.UnsupportedModel, "tensor = 'blk.0.ssm_norm.weight'"),
    ("minimax-01", {"residual_scale": None}, None, ni.CorruptModel, "residual_scale"),
    ("minimax-01", {"residual_scale": 0.0}, None, ni.CorruptModel, "residual_scale = 0.0; wanted a number from 0.001"),
    ("minimax-01", {"attention.value_length": 32}, None, ni.CorruptModel, "heads have keys of 64 values and values of 32; wanted as many"),
    ("minimax-01", {"attention.head_count": 2}, None, ni.CorruptModel, "'blk.0.attn_qkv.weight' has 768 rows, wanted 384 rows"),
    ("minimax-01", {"attention.recurrent_layers": [True, True, True, True]}, None, ni.CorruptModel, "'blk.2.attn_qkv.weight' is missing"),
    ("minimax-01", {}, cut("blk.1.attn_norm_2.weight", 64), ni.CorruptModel, "(blk.1.attn_norm_2.weight) has width 64, wanted 256"),
    ("minimax-01", {}, cut("blk.1.attn_gate.weight", 64), ni.CorruptModel, "(blk.1.attn_gate.weight) has width 64, wanted 256"),
    ("grovemoe", {"experts_per_group": 4}, None, ni.CorruptModel,
     "blk.0.ffn_gate_chexps.weight has 4 experts, wanted one for each grovemoe.experts_per_group = 4 of 8"),
    ("grovemoe", {"experts_per_group": 0}, None, ni.CorruptModel, "experts_per_group = 0"),
    ("grovemoe", {"expert_group_scale": None}, None, ni.CorruptModel, "expert_group_scale"),
    ("grovemoe", {}, without("blk.1.ffn_down_chexps.weight"), ni.CorruptModel, "'blk.1.ffn_down_chexps.weight' is missing"),
    ("grovemoe", {}, cut("blk.1.ffn_gate_chexps.weight", 3), ni.CorruptModel, "blk.1.ffn_gate_chexps.weight has 3 experts"),
    ("grovemoe", {}, cut("blk.1.ffn_up_chexps.weight", 4, 16), ni.CorruptModel, "(blk.1.ffn_up_chexps.weight) has width 16, wanted 32"),
])  # fmt: skip
def test_what_is_refused(tmp_path, name, keys, edit, error, says):
    with pytest.raises(error, match=re.escape(says)):
        ni.load(model(tmp_path, name, keys, edit))


def test_seven_layers_of_eight_have_lightning_attention(tmp_path):
    """Where a file does not say which."""
    def edit(tensors):
        for name in [name for name in tensors if name.startswith("blk.0.")]:
            tensors[name.replace("blk.0.", "blk.2.")] = tensors[name]
        for part in "qkv":
            del tensors[f"blk.2.attn_{part}.weight"]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = logits(model(tmp_path / "a", "minimax-01", {"attention.recurrent_layers": None}, edit))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "minimax-01", {"attention.recurrent_layers": [True] * 4}, edit)))


def test_what_all_channels_read_lies_on_every_node(tmp_path):
    """B and C, whether they are normed there or brought there."""
    name, t = MORE["mamba"]
    make(name, str(tmp_path / "mamba.gguf"), t)
    for path in (tmp_path / "mamba.gguf", model(tmp_path, "jamba")):
        with GGUFFile(path) as file:
            scans = [op for op in build(Plan(2, 8, 64), Catalog(file)).ops if op.name == "scan"]
        assert len(scans) == 3 and all(op.tensors[i].storage == PER_NODE for op in scans for i in (2, 3))


@pytest.mark.parametrize("name, wanted", [("grovemoe", 5), ("minimax-01", 5)])
def test_barriers(tmp_path, name, wanted):
    """Of the team for a layer: adjugates cost none, nor does what a block's result is added to."""
    with GGUFFile(model(tmp_path, name)) as file:
        plan = build(Plan(2, 8, 64), Catalog(file))
    assert sum(op.barrier == TEAM for op in plan.ops) == wanted * TEMPLATES[name]["kv"]["block_count"]
