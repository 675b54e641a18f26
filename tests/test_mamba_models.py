"""Files of models with Mamba-2 that are not quite those of the goldens, and long prompts: the same bits, and what is refused by name."""

import re

import numpy as np
import pytest
from test_mixture_models import EXPECTED, logits, model, quantise
from test_recurrent_models import added, cut, near_and_the_same_everywhere, without

import numainfer as ni
from numainfer.engine.architectures import build
from numainfer.engine.ops import TEAM
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog
from numainfer.gguf.file import GGUFFile

NAMES = ["granitehybrid", "granitehybrid-dense", "mamba2", "nemotron_h", "nemotron_h_moe", "falcon-h1", "plamo2"]
IDS = np.random.default_rng(7).integers(6, 120, 400).astype(np.int32)


@pytest.mark.parametrize("name", NAMES)
def test_quantised_matrices(tmp_path, name, monkeypatch):
    """Near the golden at most positions, and the same bits everywhere; the convolution and the vectors of heads stay floats."""
    def edit(tensors):
        kept = {key: tensors[key] for key in tensors if "_norm" in key}
        quantise(tensors)
        tensors.update(kept)

    path = model(tmp_path, name, edit=edit)
    near_and_the_same_everywhere(path, EXPECTED[name], monkeypatch)


@pytest.mark.parametrize("name", ["mamba2", "nemotron_h_moe", "falcon-h1", "plamo2"])
def test_sessions(tmp_path, name):
    """A long prompt, its forks, its rewinds and what was saved of it: what one prefill says.  Without attention, too, where nothing but
    states is kept."""
    path = model(tmp_path, name)
    with ni.load(path, threads=1, n_batch=512) as one:
        wanted = one.logits(IDS, all=True)
    with ni.load(path, threads=2, n_batch=70) as loaded:
        with loaded.session() as session:
            for n in (300, 301, 331):
                np.testing.assert_array_equal(session.logits(IDS[:n]), wanted[n - 1])
            with session.fork() as twin:
                np.testing.assert_array_equal(session.logits(IDS), wanted[399])
                np.testing.assert_array_equal(session.logits(IDS[:200]), wanted[199])  # back
                assert not np.array_equal(session.logits([*IDS[:200], 5]), wanted[200])
                np.testing.assert_array_equal(session.logits(IDS[:260]), wanted[259])
                np.testing.assert_array_equal(twin.logits(IDS[:350]), wanted[349])
                twin.save(tmp_path / "saved")
        with loaded.restore(tmp_path / "saved") as session:
            np.testing.assert_array_equal(session.logits(IDS), wanted[399])
        answers = loaded.generate([IDS[:n] for n in (390, 20, 390)], max_tokens=1, ignore_eos=True)
        assert [a.token_ids[0] for a in answers] == [int(wanted[n - 1].argmax()) for n in (390, 20, 390)]


def test_a_norm_that_is_a_vector(tmp_path):
    """Files may hold the groups' norms in one row."""
    def flat(tensors):
        for key in [key for key in tensors if "ssm_norm" in key]:
            tensors[key] = tensors[key].ravel()
        for key in [key for key in tensors if key.endswith(("ssm_a", "ssm_d"))]:
            tensors[key] = tensors[key].ravel()
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = logits(model(tmp_path / "a", "mamba2", edit=flat))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "mamba2")))


def test_a_convolution_without_bias(tmp_path):
    def zero(tensors):
        for key in [key for key in tensors if "conv1d.bias" in key]:
            tensors[key] = np.zeros_like(tensors[key])
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = logits(model(tmp_path / "a", "mamba2", edit=without(*[f"blk.{i}.ssm_conv1d.bias" for i in range(3)])))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "mamba2", edit=zero)))


def test_the_other_key_of_the_norms(tmp_path):
    """Nemotron's first files have no ``layer_norm_rms_epsilon``."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    keys = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 0.25}
    found = logits(model(tmp_path / "a", "nemotron_h", keys))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "nemotron_h", {"attention.layer_norm_rms_epsilon": 0.25})))
    assert np.abs(found - EXPECTED["nemotron_h"]).max() > 0.01


@pytest.mark.parametrize(("name", "keys", "edit", "error", "says"), [
    ("mamba2", {"ssm.group_count": 3}, None, ni.CorruptModel, "time_step_rank = 8; wanted a multiple of mamba2.ssm.group_count = 3"),
    ("mamba2", {"ssm.inner_size": 260}, None, ni.CorruptModel, "ssm.inner_size = 260; wanted a multiple of"),
    ("mamba2", {"ssm.conv_kernel": 17}, None, ni.CorruptModel, "ssm.conv_kernel = 17"),
    ("mamba2", {"ssm.conv_kernel": 3}, None, ni.CorruptModel, "blk.0.ssm_conv1d.weight) has width 1536, wanted 1152"),
    ("mamba2", {"ssm.state_size": 16}, None, ni.CorruptModel, "blk.0.ssm_in.weight' has 648 rows, wanted 584 rows: 256 + 320 + 8"),
    ("mamba2", {"ssm.time_step_rank": 0}, None, ni.CorruptModel, "ssm.time_step_rank = 0"),
    ("mamba2", {}, cut("blk.1.ssm_a", 7), ni.CorruptModel, "operand factor (blk.1.ssm_a) has width 7, wanted 8"),
    ("mamba2", {}, cut("blk.1.ssm_d", 7), ni.CorruptModel, "operand skip (blk.1.ssm_d) has width 7, wanted 8"),
    ("mamba2", {}, cut("blk.1.ssm_dt.bias", 7), ni.CorruptModel, "operand bias (blk.1.ssm_dt.bias) has width 7, wanted 8"),
    ("mamba2", {}, cut("blk.1.ssm_norm.weight", 1), ni.CorruptModel, "blk.1.ssm_norm.weight has 128 values, wanted 256"),
    ("mamba2", {}, cut("blk.1.ssm_conv1d.bias", 383), ni.CorruptModel, "blk.1.ssm_conv1d.bias) has width 383, wanted 384"),
    ("mamba2", {}, without("blk.2.ssm_a"), ni.CorruptModel, "'blk.2.ssm_a' is missing"),
    ("mamba2", {}, without("blk.2.ssm_d"), ni.CorruptModel, "'blk.2.ssm_d' is missing"),
    ("mamba2", {}, without("blk.2.ssm_dt.bias"), ni.CorruptModel, "'blk.2.ssm_dt.bias' is missing"),
    ("mamba2", {}, added("blk.0.ssm_x.weight"), ni.UnsupportedModel, "tensor = 'blk.0.ssm_x.weight'"),
    ("granitehybrid", {"attention.head_count_kv": [0, 0, 2, 0]}, None, ni.CorruptModel, "head_count_kv = 4 values; wanted one per layer"),
    ("granitehybrid", {"attention.head_count_kv": [0, 2, 2, 0, 2]}, None, ni.CorruptModel, "'blk.1.attn_q.weight' is missing"),
    ("granitehybrid", {"attention.sliding_window": 8}, None, ni.UnsupportedModel, "attention.sliding_window = 8"),
    ("nemotron_h", {"expert_count": 4}, None, ni.UnsupportedModel, "expert_count = 4"),
    ("nemotron_h_moe", {}, without("blk.1.ffn_latent_up.weight"), ni.CorruptModel, "'blk.1.ffn_latent_up.weight' is missing"),
    ("nemotron_h_moe", {}, without("blk.4.ffn_gate_inp.weight"), ni.CorruptModel, "'blk.4.ffn_gate_inp.weight' is missing"),
    ("nemotron_h_moe", {}, without("blk.4.ffn_up_shexp.weight"), ni.CorruptModel, "'blk.4.ffn_up_shexp.weight' is missing"),
    ("falcon-h1", {}, without("blk.1.ffn_norm"), ni.CorruptModel, "'blk.1.ffn_norm.weight' is missing"),
    ("plamo2", {}, cut("blk.0.ssm_in.weight", 500), ni.CorruptModel, "'blk.0.ssm_in.weight' has 500 rows, wanted 512 rows"),
    ("plamo2", {}, cut("blk.0.ssm_x.weight", 120), ni.CorruptModel, "'blk.0.ssm_x.weight' has 120 rows, wanted 128 rows: 32 + 32 + 64"),
    ("plamo2", {}, cut("blk.0.ssm_dt_norm", 60), ni.CorruptModel, "operand w (blk.0.ssm_dt_norm) has width 60, wanted 64"),
    ("plamo2", {}, cut("blk.1.attn_q_norm.weight", 3), ni.CorruptModel, "blk.1.attn_q_norm.weight) has width 96, wanted 32"),
    ("plamo2", {}, without("blk.1.attn_k_norm.weight"), ni.CorruptModel, "'blk.1.attn_k_norm.weight' is missing"),
    ("plamo2", {}, without("blk.1.post_ffw_norm"), ni.CorruptModel, "'blk.1.post_ffw_norm.weight' is missing"),
    ("plamo2", {"ssm.time_step_rank": 16}, None, ni.CorruptModel, "'blk.0.ssm_dt.weight' has 8 rows, wanted 16 rows"),
])  # fmt: skip
def test_what_is_refused(tmp_path, name, keys, edit, error, says):
    with pytest.raises(error, match=re.escape(says)):
        ni.load(model(tmp_path, name, keys, edit))


def test_barriers(tmp_path):
    """Three of the team for a layer: what is projected, what heads say, what comes out."""
    with GGUFFile(model(tmp_path, "mamba2")) as file:
        plan = build(Plan(2, 8, 64), Catalog(file))
    assert sum(op.barrier == TEAM for op in plan.ops) == 3 * 3
