"""Gemma 4: layers that attend to earlier ones' keys and values, experts with factors.  (llama.cpp's logits: test_golden_models.py.)"""

import numpy as np
import pytest
from core_tools import logits, open_engine, same_bits
from test_mixture_models import IDS, model

import numainfer as ni
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan
from numainfer.errors import CorruptModel, PlanError, UnsupportedModel
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand


def found(path, **options):
    with open_engine(path, threads=1, **options) as engine:
        return logits(engine, IDS)


def test_layers_that_share_memory_keep_none(tmp_path):
    """Three of six layers have no keys and values of their own; all six read some."""
    path = model(tmp_path, "gemma4")
    with GGUFFile(path) as file, open_engine(path) as engine:
        assert [(layer.window, layer.readers) for layer in engine.plan.kv.layers] == [(32, 1), (32, 3), (0, 2)]
        assert [op.name for op in engine.plan.ops].count("kv_append") == 3 and [op.name for op in engine.plan.ops].count("attend") == 6
        read = 2 * 90 * 4 * 64 + 4 * 32 * 4 * 32  # halves of two kv-heads' keys and values; 32 wide in layers with a window
        assert engine.plan.kv.read_bytes(90) == demand(file, 1).kv_read(90) == 2 * read


def test_tensors_that_nobody_needs(tmp_path):
    """Files may keep projections of layers that attend to other layers' memory."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()

    def more(tensors):
        for name in ("attn_k", "attn_v", "attn_k_norm"):
            tensors[f"blk.3.{name}.weight"] = np.full_like(tensors[f"blk.1.{name}.weight"], 7)

    same_bits(found(model(tmp_path / "a", "gemma4", edit=more)), found(model(tmp_path / "b", "gemma4")))


def test_q_k_and_v_in_one_tensor(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()

    def fuse(tensors):
        tensors["blk.1.attn_qkv.weight"] = np.concatenate([tensors.pop(f"blk.1.attn_{name}.weight") for name in "qkv"])

    same_bits(found(model(tmp_path / "a", "gemma4", edit=fuse)), found(model(tmp_path / "b", "gemma4")))


def test_factors_of_experts(tmp_path):
    """A factor of all of a layer's experts, and its inverse on their matrices, cancel out; other factors change the model."""
    for name in "abc":
        (tmp_path / name).mkdir()
    plain = found(model(tmp_path / "a", "gemma4-moe"))

    def halved(tensors):
        tensors["blk.2.ffn_down_exps.weight"] = tensors["blk.2.ffn_down_exps.weight"] / 2
        tensors["blk.2.ffn_down_exps.scale"] = tensors["blk.2.ffn_down_exps.scale"] * 2

    def one(tensors):
        tensors["blk.2.ffn_down_exps.scale"] = tensors["blk.2.ffn_down_exps.scale"] * np.arange(1, 9, dtype=np.float32)

    same_bits(found(model(tmp_path / "b", "gemma4-moe", edit=halved)), plain)
    assert np.abs(found(model(tmp_path / "c", "gemma4-moe", edit=one)) - plain).max() > 1e-2


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(CorruptModel, match="shared_kv_layers = 5; wanted fewer: layer 2 has no earlier one of its kind"):
        ni.load(model(tmp_path, "gemma4", {"attention.shared_kv_layers": 5}))
    with pytest.raises(UnsupportedModel, match="rope.scaling"):
        ni.load(model(tmp_path, "gemma4", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}))
    p, a = Plan(1, 8, 64), Attention(2, 1, 32, 32, 0, True, 1.0)
    q, k, v = (p._tensor(name, width, 1, "f") for name, width in (("q", 64), ("k", 32), ("v", 32)))
    for tensor in (q, k, v):
        tensor.first = 0
    o, other = p.attend(q, k, v, a), p.attend(q, k, None, a)
    for kept, more in ((q, {}), (o, {"window": 5}), (other, {})):
        with pytest.raises(PlanError, match="an earlier call's keys and values"):
            p.attend(q, None, None, Attention(2, 1, 32, 32, 0, True, 1.0, **more), kept=kept)
    with pytest.raises(PlanError, match="an earlier call's keys and values"):
        p.attend(q, k, v, a, kept=o)
