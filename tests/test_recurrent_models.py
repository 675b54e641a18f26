"""Files of models with recurrent layers that are not quite those of the goldens: what fits, and what is refused by name."""

import re

import numpy as np
import pytest
from core_tools import open_engine
from test_cache import steps_and_broken_ones
from test_mixture_models import EXPECTED, fuse, logits, model, quantise

import numainfer as ni
from numainfer.engine.architectures import build
from numainfer.engine.ops import TEAM
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog
from numainfer.gguf.file import GGUFFile


def near_and_the_same_everywhere(path, expected, monkeypatch, most=0.1):
    """Logits of quantised matrices are near those of the same as floats at most positions, and the same bits on any nodes."""
    found = logits(path)
    error = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert 1e-5 < np.median(error) < most
    for nodes, placement in ((1, "auto"), (2, "replicate"), (2, "shard"), (3, "shard")):
        monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
        np.testing.assert_array_equal(logits(path, threads=max(nodes, 2), placement=placement, n_batch=33), found)


@pytest.mark.parametrize("name", ["qwen3next", "qwen35", "qwen35moe", "lfm2", "lfm2moe", "kimi-linear", "kimi-k3", "bailingmoe3-clamp"])
def test_quantised_matrices(tmp_path, name, monkeypatch):
    """Near the golden at most positions, and the same bits everywhere; the convolution and the gates' vectors stay floats."""
    path = model(tmp_path, name, edit=quantise)  # of Kimi K3 what is shifted in one layer's stream is read by all later layers
    near_and_the_same_everywhere(path, EXPECTED[name], monkeypatch, 0.15 if name == "kimi-k3" else 0.1)


@pytest.mark.parametrize("name", ["lfm2moe", "kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next-top16"])
def test_sessions(tmp_path, name):
    """A long prompt, a fork and rewinds beyond kept states: what one prefill says."""
    path, ids = model(tmp_path, name), np.random.default_rng(8).integers(6, 120, 340).astype(np.int32)
    with ni.load(path, threads=1, n_batch=340) as one:
        wanted = one.logits(ids, all=True)
    with ni.load(path, threads=2, n_batch=70) as loaded, loaded.session() as session:
        for n in (300, 301, 331):
            np.testing.assert_array_equal(session.logits(ids[:n]), wanted[n - 1])
        with session.fork() as twin:
            np.testing.assert_array_equal(session.logits(ids[:200]), wanted[199])
            assert not np.array_equal(session.logits([*ids[:200], 5]), wanted[200])
            np.testing.assert_array_equal(session.logits(ids[:260]), wanted[259])
            np.testing.assert_array_equal(twin.logits(ids), wanted[339])


def test_steps_that_fail_are_repeated(tmp_path):
    """Of Kimi K3, whose streams are banked: broken off before they succeed, the next have the same bits."""
    path, ids = model(tmp_path, "kimi-k3"), np.random.default_rng(8).integers(6, 120, 200).astype(np.int32)
    with ni.load(path, threads=1, n_batch=200) as one:
        wanted = one.logits(ids, all=True)
    with open_engine(path, threads=2, n_batch=128) as engine:
        steps_and_broken_ones(engine, ids, wanted, np.random.default_rng(2))


def test_gate_and_up_in_one_tensor(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    np.testing.assert_array_equal(logits(model(tmp_path / "a", "qwen35moe", edit=fuse)), logits(model(tmp_path / "b", "qwen35moe")))


def fused_attention(tensors):
    tensors["blk.3.attn_qkv.weight"] = np.concatenate([tensors.pop(f"blk.3.attn_{x}.weight") for x in "qkv"])


def test_queries_gates_keys_and_values_in_one_tensor(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = logits(model(tmp_path / "a", "qwen3next", edit=fused_attention))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "qwen3next")))


def fused_recurrent(tensors):
    for i in (0, 1, 3):
        tensors[f"blk.{i}.attn_qkv.weight"] = np.concatenate([tensors.pop(f"blk.{i}.attn_{x}.weight") for x in "qkv"])


def test_queries_keys_and_values_of_a_recurrent_layer_in_one_tensor(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = logits(model(tmp_path / "a", "kimi-linear", edit=fused_recurrent))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "kimi-linear")))


def one_tensor(quantised):
    """All that a recurrent layer reads as the first files had it: a head of keys, with what belongs to it, after the other."""
    def edit(tensors):
        if quantised:
            quantise(tensors)
        for i in range(3):
            qkv, z = tensors.pop(f"blk.{i}.attn_qkv.weight"), tensors.pop(f"blk.{i}.attn_gate.weight")
            q, k, v = qkv[:64].reshape(2, 32, -1), qkv[64:128].reshape(2, 32, -1), qkv[128:].reshape(2, 64, -1)
            tensors[f"blk.{i}.ssm_in.weight"] = np.concatenate([q, k, v, z.reshape(2, 64, -1)], axis=1).reshape(384, -1)
    return edit


@pytest.mark.parametrize("quantised", [False, True])
def test_older_files(tmp_path, quantised):
    """Rows are picked from the one tensor as they are: the bits of a newer file."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = logits(model(tmp_path / "a", "qwen3next", edit=one_tensor(quantised)))
    np.testing.assert_array_equal(found, logits(model(tmp_path / "b", "qwen3next", edit=quantise if quantised else None)))


def without(*names):
    def edit(tensors):
        for name in names:
            del tensors[name]
    return edit


def cut(name, *shape):
    def edit(tensors):
        tensors[name] = np.ascontiguousarray(tensors[name][tuple(slice(n) for n in shape)])
    return edit


def added(name):
    def edit(tensors):
        tensors[name] = np.ones(8, np.float32)
    return edit


@pytest.mark.parametrize(("name", "keys", "edit", "error", "says"), [
    ("qwen3next", {"ssm.group_count": 3}, None, ni.CorruptModel, "time_step_rank = 4; wanted a multiple of qwen3next.ssm.group_count = 3"),
    ("qwen3next", {"ssm.inner_size": 130}, None, ni.CorruptModel, "ssm.inner_size = 130; wanted a multiple of"),
    ("qwen3next", {"ssm.conv_kernel": 1}, None, ni.CorruptModel, "ssm.conv_kernel = 1"),
    ("qwen3next", {"ssm.conv_kernel": 3}, None, ni.CorruptModel, "blk.0.ssm_conv1d.weight) has width 1024, wanted 768"),
    ("qwen3next", {"ssm.state_size": 16}, None, ni.CorruptModel, "blk.0.attn_qkv.weight has 256 rows, wanted 192"),
    ("qwen35", {"ssm.inner_size": 64}, None, ni.CorruptModel, "blk.0.attn_qkv.weight has 256 rows, wanted 192"),
    ("qwen35", {"full_attention_interval": 0}, None, ni.CorruptModel, "full_attention_interval = 0"),
    ("qwen35", {"attention.recurrent_layers": [True, True]}, None, ni.CorruptModel, "recurrent_layers = 2 values; wanted 5, one per layer"),
    ("qwen35", {"full_attention_interval": 2}, None, ni.CorruptModel, "'blk.1.attn_qkv.weight' has 256 rows, wanted 768"),
    ("qwen35", {"rope.dimension_sections": [3, 3, 1, 1]}, None, ni.UnsupportedModel, "rope.dimension_sections = [3, 3, 1, 1]"),
    ("qwen35moe", {"ssm.time_step_rank": 0}, None, ni.CorruptModel, "ssm.time_step_rank = 0"),
    ("qwen35", {}, cut("blk.0.ssm_a", 3), ni.CorruptModel, "operand factor (blk.0.ssm_a) has width 3, wanted 4"),
    ("qwen35", {}, cut("blk.0.ssm_dt.bias", 2), ni.CorruptModel, "operand bias (blk.0.ssm_dt.bias) has width 2, wanted 4"),
    ("qwen35", {}, cut("blk.1.ssm_norm.weight", 16), ni.CorruptModel, "blk.1.ssm_norm.weight) has width 16, wanted 32"),
    ("qwen35", {}, cut("blk.1.attn_gate.weight", 64), ni.CorruptModel, "blk.1.attn_gate.weight has 64 rows, wanted 128"),
    ("qwen35", {}, cut("blk.3.attn_q.weight", 256), ni.CorruptModel, "blk.3.attn_q.weight has 256 rows, wanted 512: queries and gates"),
    ("qwen3next", {}, without("blk.0.attn_qkv.weight"), ni.CorruptModel, "'blk.0.attn_qkv.weight' is missing"),
    ("qwen3next", {}, without("blk.1.ssm_ba.weight"), ni.CorruptModel, "'blk.1.ssm_beta.weight' is missing"),
    ("qwen3next", {}, without("blk.2.ssm_a"), ni.CorruptModel, "'blk.2.ssm_a' is missing"),
    ("qwen3next", {}, without("blk.2.ssm_conv1d.weight"), ni.CorruptModel, "'blk.2.ssm_conv1d.weight' is missing"),
    ("qwen3next", {}, added("blk.0.ssm_d"), ni.UnsupportedModel, "tensor = 'blk.0.ssm_d'"),
    ("qwen3next", {}, cut("blk.0.ssm_ba.weight", 6), ni.CorruptModel, "(blk.0.ssm_ba.weight) has 6 values, wanted 2 pieces of at least 4"),
    ("lfm2", {"shortconv.l_cache": 1}, None, ni.CorruptModel, "shortconv.l_cache = 1"),
    ("lfm2", {"shortconv.l_cache": 4}, None, ni.CorruptModel, "blk.0.shortconv.conv.weight) has width 384, wanted 512"),
    ("lfm2", {"attention.head_count_kv": [0, 0]}, None, ni.CorruptModel, "attention.head_count_kv = 2 values; wanted one per layer"),
    ("lfm2", {"attention.head_count_kv": [0, 0, 2, 2]}, None, ni.CorruptModel, "'blk.3.attn_q_norm.weight' is missing"),
    ("lfm2", {"attention.head_count_kv": [0, 0, 0, 0]}, None, ni.CorruptModel, "'blk.2.shortconv.in_proj.weight' is missing"),
    ("lfm2", {"attention.sliding_window": 32}, None, ni.UnsupportedModel, "attention.sliding_window = 32"),
    ("lfm2", {"attention.causal": False}, None, ni.UnsupportedModel, "attention.causal = False"),
    ("lfm2", {}, cut("blk.1.shortconv.in_proj.weight", 256), ni.CorruptModel, "has 256 rows, wanted 384 rows: 128 + 128 + 128"),
    ("lfm2", {}, without("blk.1.shortconv.out_proj.weight"), ni.CorruptModel, "'blk.1.shortconv.out_proj.weight' is missing"),
    ("lfm2", {}, without("token_embd_norm.weight"), ni.CorruptModel, "'token_embd_norm.weight' is missing"),
    ("lfm2", {}, added("blk.0.shortconv.conv.bias"), ni.UnsupportedModel, "tensor = 'blk.0.shortconv.conv.bias'"),
    ("kimi-linear", {"kda.head_dim": 16}, None, ni.CorruptModel, "blk.0.attn_q.weight has 128 rows, wanted 64: 4 heads of 16"),
    ("kimi-linear", {"kda.gate_lower_bound": -5.0}, None, ni.UnsupportedModel, "kda.gate_lower_bound = -5.0"),
    ("kimi-linear", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, None, ni.UnsupportedModel, "rope.scaling.type = 'yarn'"),
    ("kimi-linear", {}, cut("blk.0.ssm_a", 3), ni.CorruptModel, "operand factor (blk.0.ssm_a) has width 96, wanted 128"),
    ("kimi-linear", {}, cut("blk.0.ssm_dt.bias", 4), ni.CorruptModel, "operand bias (blk.0.ssm_dt.bias) has width 4, wanted 128"),
    ("kimi-linear", {}, cut("blk.1.ssm_f_b.weight", 64), ni.CorruptModel, "(blk.1.ssm_dt.bias) has width 128, wanted 64"),
    ("kimi-linear", {}, cut("blk.1.ssm_beta.weight", 3), ni.CorruptModel, "operand beta (blk.1.ssm_beta.weight) has width 3, wanted 4"),
    ("kimi-linear", {}, cut("blk.1.ssm_g_b.weight", 64), ni.CorruptModel, "operand gate (blk.1.ssm_g_b.weight) has width 64, wanted 128"),
    ("kimi-linear", {}, without("blk.0.ssm_a"), ni.CorruptModel, "'blk.0.ssm_a' is missing"),
    ("kimi-linear", {}, without("blk.3.ssm_conv1d_k.weight"), ni.CorruptModel, "'blk.3.ssm_conv1d_k.weight' is missing"),
    ("kimi-linear", {"attention.head_count_kv": [0, 1, 1, 0, 1]}, None, ni.CorruptModel, "'blk.1.attn_kv_b.weight' is missing"),
    ("kimi-k3", {"kda.gate_lower_bound": 5.0}, None, ni.CorruptModel, "kda.gate_lower_bound = 5.0; wanted a negative number"),
    ("kimi-k3", {"activation.situ_beta": 0.0}, None, ni.CorruptModel, "activation.situ_beta = 0.0; wanted a positive number"),
    ("kimi-k3", {"attn_res.block_size": 0}, None, ni.UnsupportedModel, "tensor = 'output_res_score.weight, blk.0.attn_res_score.weight"),
    ("kimi-k3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, None, ni.UnsupportedModel, "rope.scaling.type = 'yarn'"),
    ("kimi-k3", {}, without("output_res_score.weight"), ni.CorruptModel, "'output_res_score.weight' is missing"),
    ("kimi-k3", {}, without("blk.2.attn_res_score.weight"), ni.CorruptModel, "'blk.2.attn_res_score.weight' is missing"),
    ("kimi-k3", {}, without("blk.1.ffn_routed_up.weight"), ni.CorruptModel, "'blk.1.ffn_routed_up.weight' is missing"),
    ("kimi-k3", {}, without("blk.0.ssm_g.weight"), ni.CorruptModel, "'blk.0.ssm_g_a.weight' is missing"),
    ("kimi-k3", {}, without("blk.0.ssm_a"), ni.CorruptModel, "'blk.0.ssm_a' is missing"),
    ("kimi-k3", {}, cut("blk.3.ffn_res_score.weight", 64), ni.CorruptModel, "(blk.3.ffn_res_score.weight) has width 64, wanted 128"),
    ("kimi-k3", {}, cut("blk.2.attn_gate.weight", 4), ni.CorruptModel, "blk.2.attn_gate.weight has 4 rows, wanted 128, one for each value"),
    ("kimi-k3", {}, cut("blk.2.ffn_routed_down.weight", 32), ni.CorruptModel, "(blk.2.ffn_gate_exps.weight) has width 64, wanted 32"),
    ("kimi-k3", {}, cut("blk.2.ffn_routed_norm.weight", 32), ni.CorruptModel, "(blk.2.ffn_routed_norm.weight) has width 32, wanted 64"),
    ("bailingmoe3", {"kda.safe_gate": False}, None, ni.UnsupportedModel, "kda.safe_gate = False"),
    ("bailingmoe3", {"kda.gate_lower_bound": 1.0}, None, ni.CorruptModel, "kda.gate_lower_bound = 1.0; wanted a negative number"),
    ("bailingmoe3", {}, cut("blk.2.attn_gate.weight", 3), ni.UnsupportedModel, "supported: 4 rows, a gate per head"),
    ("bailingmoe3", {"swiglu_clamp_shexp": 2.0}, None, ni.UnsupportedModel, "bailingmoe3.swiglu_clamp_shexp of layer 0 = 2.0"),
    ("lfm2moe", {"leading_dense_block_count": 1}, None, ni.CorruptModel, "'blk.1.ffn_gate_exps.weight' is missing"),
])  # fmt: skip
def test_what_is_refused(tmp_path, name, keys, edit, error, says):
    with pytest.raises(error, match=re.escape(says)):
        ni.load(model(tmp_path, name, keys, edit))


def test_barriers(tmp_path):
    """Five of the team for a layer with experts and a shared one, recurrent or not: the chosen ones' and the shared one's are the same."""
    with GGUFFile(model(tmp_path, "qwen3next")) as file:
        plan = build(Plan(2, 8, 64), Catalog(file))
    assert sum(op.barrier == TEAM for op in plan.ops) == 5 * 4
