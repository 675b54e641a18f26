"""Models of which llama.cpp is no reference, against their definitions in NumPy, float64; and files that must mean the same as others."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import reference as ref
from core_tools import logits, open_engine
from reference_models import ReferenceModel
from test_architectures import FLOAT, INT, rewrite
from test_experts import routed, sparse_mixer
from test_mixture_models import model as mixture_model

import numainfer as ni

ARCHS = Path(__file__).resolve().parent / "archs"
sys.path.insert(0, str(ARCHS))

from make_gguf import make, templates  # noqa: E402

TEMPLATES = templates()
IDS = np.load(ARCHS / "expected.npz")["ids"].astype(np.int32)


class Definition(ReferenceModel):
    """Tensors and keys, without the forward pass."""

    def __init__(self, path):
        self.weights = {t.name: ref.dequantise(t.data, t.tensor_type) for t in _reader(path).tensors}
        self.meta = {key: field.contents() for key, field in _reader(path).fields.items() if not key.startswith("tokenizer.")}
        self.arch, self._as_we_do = self.meta["general.architecture"], False


def _reader(path):
    import gguf

    return gguf.GGUFReader(path)


def phimoe(path, ids):
    """Phi-3.5-MoE as its published code has it (microsoft/Phi-3.5-MoE-instruct, modeling_phimoe.py, without noise)."""
    m, eps = Definition(path), 1e-5
    heads, groups, layers = (m.get(key) for key in ("attention.head_count", "attention.head_count_kv", "block_count"))
    long = m.meta["phimoe.context_length"] > m.get("rope.scaling.original_context_length")
    factors, scale = m.weights[f"rope_factors_{'long' if long else 'short'}.weight"], m.get("rope.scaling.attn_factor")

    def norm(x, name):
        return ref.layernorm(x, m.weights[f"{name}.weight"], eps, m.weights[f"{name}.bias"])

    def turned(x):
        return scale * ref.rope(x, np.arange(len(x)), "neox", m.get("rope.freq_base"), factors=factors)

    x = ref.embed(m.weights["token_embd.weight"], ids)
    for b in (f"blk.{i}." for i in range(layers)):
        h = norm(x, b + "attn_norm")
        q, k, v = (m.project(h, b + f"attn_{name}", n) for name, n in (("q", heads), ("k", groups), ("v", groups)))
        x = x + m.project(ref.attention(turned(q), turned(k), v).reshape(len(x), -1), b + "attn_output")
        h = norm(x, b + "ffn_norm")
        chosen, weights = sparse_mixer(h @ m.weights[b + "ffn_gate_inp.weight"].T, 2)
        gate, up, down = (m.weights[b + f"ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
        said = [[down[e] @ ref.silu_mul(gate[e] @ row, up[e] @ row) for e in pair] for row, pair in zip(h, chosen)]
        x = x + (weights[..., None] * said).sum(axis=1)
    return m.project(norm(x, "output_norm"), "output")


@pytest.mark.parametrize("original", [512, 64])
def test_phimoe_is_what_its_authors_published(tmp_path, original):
    make("phimoe", str(tmp_path / "plain.gguf"), TEMPLATES["phimoe"])
    keys = {"phimoe.expert_used_count": (2, INT), "phimoe.rope.scaling.original_context_length": (original, INT)}
    path = rewrite(tmp_path / "plain.gguf", tmp_path / "two.gguf", keys)
    wanted = phimoe(path, IDS)
    with ni.load(path, threads=1, kv_type="f32") as model:
        found = model.logits(IDS, all=True)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def grovemoe(path, ids, as_llama_cpp=False):
    """GroveMoE as its published code has it (inclusionAI/GroveMoE-Inst, modeling_grove_moe.py), or as llama.cpp has it: there adjugates
    read what the experts said, and each is weighed as the expert that has its own number."""
    m = Definition(path)
    m.eps = m.get("attention.layer_norm_rms_epsilon")
    heads, groups, layers = (m.get(key) for key in ("attention.head_count", "attention.head_count_kv", "block_count"))
    used, each, scale = (m.get(key) for key in ("expert_used_count", "experts_per_group", "expert_group_scale"))

    def turned(x, name):
        return ref.rope(m.norm(x, name), np.arange(len(x)), "neox", m.get("rope.freq_base"))

    def said(h, b, kind, chosen, weights):
        gate, up, down = (m.weights[b + f"ffn_{name}_{kind}.weight"] for name in ("gate", "up", "down"))
        rows = [[down[e] @ ref.silu_mul(gate[e] @ row, up[e] @ row) for e in some] for row, some in zip(h, chosen)]
        return (weights[..., None] * rows).sum(axis=1)

    x = ref.embed(m.weights["token_embd.weight"], ids)
    for b in (f"blk.{i}." for i in range(layers)):
        h = m.norm(x, b + "attn_norm")
        q, k, v = (m.project(h, b + f"attn_{name}", n) for name, n in (("q", heads), ("k", groups), ("v", groups)))
        o = ref.attention(turned(q, b + "attn_q_norm"), turned(k, b + "attn_k_norm"), v)
        x = x + m.project(o.reshape(len(x), -1), b + "attn_output")
        h = m.norm(x, b + "ffn_norm")
        scores = h @ m.weights[b + "ffn_gate_inp.weight"].T
        ids_, weights = routed(scores, used, normed=True)
        y = said(h, b, "exps", ids_, weights)
        if as_llama_cpp:
            of_number = np.take_along_axis(np.exp(scores - scores.max(axis=-1, keepdims=True)), ids_ // each, axis=-1)
            z = said(y, b, "chexps", ids_ // each, of_number / of_number.sum(axis=-1, keepdims=True))
        else:
            z = said(h, b, "chexps", ids_ // each, weights)
        x = x + y + scale * z
    return m.project(m.norm(x, "output_norm"), "output")


def test_grovemoe_is_what_its_authors_published(tmp_path):
    """And what llama.cpp says differs by what is known of it, and by nothing else."""
    path = tmp_path / "grovemoe.gguf"
    make("grovemoe", str(path), TEMPLATES["grovemoe"])
    wanted, theirs = grovemoe(path, IDS), np.load(ARCHS / "expected.npz")["grovemoe"]
    assert np.abs(grovemoe(path, IDS, as_llama_cpp=True) - theirs).max() < 1e-5 * np.abs(theirs).max()
    for kv_type, most in (("f32", 1e-5), ("f16", 3e-3)):
        with ni.load(path, threads=1, kv_type=kv_type) as model:
            found = model.logits(IDS, all=True)
        assert np.abs(found - wanted).max() < most * np.abs(wanted).max()
    assert np.abs(wanted - theirs).max() > 1e-2 * np.abs(wanted).max()


def latent(tmp_path, keys, scale_rotated=1.0):
    """The golden "deepseek2" with YaRN by such keys, and both parts that are rotated, of queries and of keys, times a factor."""
    make("deepseek2", str(tmp_path / "plain.gguf"), TEMPLATES["deepseek2"])
    tensors = {t.name: np.array(t.data) for t in _reader(tmp_path / "plain.gguf").tensors}
    changed = {}
    for name, data in tensors.items():
        if re.search(r"attn_q_b\.weight", name):
            changed[name] = data.reshape(4, 192, -1).copy()
            changed[name][:, 128:] *= scale_rotated
            changed[name] = changed[name].reshape(data.shape)
        if re.search(r"attn_kv_a_mqa\.weight", name):
            changed[name] = data.copy()
            changed[name][512:] *= scale_rotated
    path = rewrite(tmp_path / "plain.gguf", tmp_path / "changed.gguf", keys, changed)
    with open_engine(path, threads=1, kv_type="f32") as engine:
        return logits(engine, IDS)


def test_yarn_of_latent_attention_without_a_multiplier(tmp_path):
    """mscale_all_dim 0 (DeepSeek's published code): what is rotated grows by 0.1 log(factor) + 1, scores do not.

    llama.cpp makes the scores grow as well.
    """
    log = "deepseek2.rope.scaling.yarn_log_multiplier"
    wanted = latent(tmp_path, {log: (1e-9, FLOAT)}, np.float32(0.1 * np.log(40.0) + 1))
    found = latent(tmp_path, {log: None})
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_groups_of_deepseek_v2_count_as_their_best_expert(tmp_path):
    """Group-limited greedy (arXiv:2405.04434), where weights are softmaxes and no bias helps to choose; V3 takes the sum of two."""
    from numainfer.engine.architectures import build
    from numainfer.engine.plan import Plan
    from numainfer.engine.weights import Catalog
    from numainfer.gguf.file import GGUFFile

    def best_of(keys, drop):
        edit = (lambda tensors: [tensors.pop(name) for name in list(tensors) if "exp_probs_b" in name]) if drop else None
        with GGUFFile(mixture_model(tmp_path, "deepseek2", keys, edit)) as file:
            routes = [op for op in build(Plan(1, 8, 64), Catalog(file)).ops if op.name == "route"]
            return {op.ints[4] for op in routes}

    assert best_of({"expert_gating_func": 1}, True) == {1}
    assert best_of({"expert_gating_func": 1}, False) == best_of({"expert_gating_func": 2}, True) == {2}
    scores = np.array([[3.0, 0.0, 2.0, 1.9]])  # by the sum of two the second group is the better one
    assert routed(scores, 1, groups=2, groups_used=1, group_best=1)[0] == 0
