"""Gemma 3n against its definition in float64, with other settings than its golden's; what its files may hold, and what is refused.

llama.cpp's logits of the golden: test_golden_models.py.
"""

import re

import numpy as np
import pytest
import reference as ref
from core_tools import logits, open_engine, same_bits
from test_cache import steps_and_broken_ones
from test_definitions import Definition
from test_mixture_models import EXPECTED, IDS, model, quantise
from test_recurrent_models import cut, near_and_the_same_everywhere, without

import numainfer as ni

SOME = IDS[:48]  # more than a window


def definition(path, ids, gelu_mul=ref.gelu_mul):
    """Gemma 3n as its published code has it (transformers, modeling_gemma3n.py); streams are (n, T, D)."""
    m, at, d = Definition(path), np.arange(len(ids)), 64
    get, w = m.get, {name.removesuffix(".weight"): values for name, values in m.weights.items()}
    n, layers, heads, width = (get(key) for key in ("altup.num_inputs", "block_count", "attention.head_count", "attention.key_length"))
    own_width, kv_heads, shared = (get(key) for key in ("embedding_length_per_layer_input", "attention.head_count_kv",
                                                        "attention.shared_kv_layers"))  # fmt: skip

    def norm(x, weight=1.0):
        return ref.rmsnorm(x, weight, 1e-5)

    def level(y, x):
        return y * np.sqrt((x**2).mean(-1, keepdims=True) / np.maximum((y**2).mean(-1, keepdims=True), 1e-5))

    x = ref.embed(w["token_embd"], ids) * np.sqrt(d)
    own = ref.embed(w["per_layer_token_embd"], ids).reshape(-1, layers, own_width) * np.sqrt(own_width)
    made = (x @ w["per_layer_model_proj"].T / np.sqrt(d)).reshape(own.shape)
    own = (norm(made, w["per_layer_proj_norm"]) + own) / np.sqrt(2)
    s, kept = np.stack([x, *(level(x @ matrix.T, x) for matrix in w["altup_proj"])]), {}
    for i, (local, sparse) in enumerate(zip(get("attention.sliding_window_pattern"), get("activation_sparsity_scale"))):
        b = {name.split(".", 2)[2]: values for name, values in w.items() if name.startswith(f"blk.{i}.")}

        def modes(x, b=b):
            return np.tanh(norm(x, b["altup_router_norm"]) / d @ b["altup_router"].T)

        def turned(x, weight, local=local):
            return ref.rope(norm(x, weight), at, "neox", get("rope.freq_base_swa") if local else get("rope.freq_base"))

        c = (modes(s[0]) @ b["altup_predict_coef"].T).reshape(-1, n, n)
        s = s + np.einsum("tji,itd->jtd", c, s)
        h = norm(s[0], b["attn_norm"])
        if i < layers - shared:
            k, v = ((h @ b[f"attn_{name}"].T).reshape(-1, kv_heads, width) for name in "kv")
            kept[local] = turned(k, b["attn_k_norm"]), norm(v)
        q = turned((h @ b["attn_q"].T).reshape(-1, heads, width), b["attn_q_norm"])
        o = ref.attention(q, *kept[local], 1.0, window=get("attention.sliding_window") if local else 0).reshape(len(ids), -1)
        y = s[0] + norm(o @ b["attn_output"].T, b["post_attention_norm"])
        y = (y + h + norm(h @ b["laurel_l"].T @ b["laurel_r"].T, b["laurel_post_norm"])) / np.sqrt(2)
        f = norm(y, b["ffn_norm"])
        gate = f @ b["ffn_gate"].T
        if sparse not in (0.0, -np.inf):
            gate = np.maximum(gate - gate.mean(-1, keepdims=True) - sparse * gate.std(-1, ddof=1, keepdims=True), 0)
        y = y + norm(gelu_mul(gate, f @ b["ffn_up"].T) @ b["ffn_down"].T, b["post_ffw_norm"])
        c = 1 + modes(y) @ b["altup_correct_coef"].T
        s = s + c.T[..., None] * (y - s[0])
        z = gelu_mul((s[0] * b["altup_correct_scale"]) @ b["inp_gate"].T, own[:, i]) @ b["proj"].T
        s[1:] += norm(z, b["post_norm"])
    x = (s[0] + sum(level(x @ matrix.T, s[0]) for x, matrix in zip(s[1:], w["altup_unembd_proj"]))) / n
    return ref.softcap(norm(x, w["output_norm"]) @ w["token_embd"].T, get("final_logit_softcapping", 30.0))


def off(found, wanted):
    return np.abs(found - wanted).max(axis=1) / np.abs(wanted).max()


def found(path):
    with open_engine(path, threads=1, kv_type="f32") as engine:
        return logits(engine, SOME)


def test_the_golden(tmp_path):
    """Ours is the definition; llama.cpp's is the same with GELU by its table of halves."""
    path = model(tmp_path, "gemma3n")

    def table(gate, up):
        gate = gate.astype(np.float16).astype(np.float64)
        return ref.gelu_mul(gate, 1.0).astype(np.float16).astype(np.float64) * up

    exact, halves, theirs = definition(path, SOME), definition(path, SOME, table), EXPECTED["gemma3n"][: len(SOME)]
    assert off(found(path), exact).max() < 1e-5
    assert np.median(off(theirs, halves)) < 0.5 * np.median(off(theirs, exact))


def streams(n):
    """The golden with another number of streams."""
    def edit(tensors):
        for name, data in tensors.items():
            if re.search("altup_(proj|unembd_proj)", name):
                tensors[name] = data[np.arange(n - 1) % 3]
            elif "altup_router.weight" in name or "correct_coef" in name:
                tensors[name] = data[np.arange(n) % 4] if "router" in name else data[np.arange(n) % 4][:, np.arange(n) % 4]
            elif "predict_coef" in name:
                at = np.arange(n) % 4
                tensors[name] = np.ascontiguousarray(data.reshape(4, 4, 4)[at][:, at][:, :, at].reshape(n * n, n))
    return edit


def few_layers(tensors):
    """Of 25 layers the first ten, of which the last attends to the ninth's memory."""
    for name in [name for name in tensors if re.match(r"blk\.(1\d|2\d)\.", name)]:
        del tensors[name]
    for name in ("per_layer_token_embd.weight", "per_layer_model_proj.weight"):
        tensors[name] = np.ascontiguousarray(tensors[name][:, : 10 * 256] if "token" in name else tensors[name][: 10 * 256])


def silent(tensors):
    """Streams that begin, or end, with nothing, which cannot be made longer."""
    tensors["altup_proj.weight"][1] = 0
    tensors["altup_unembd_proj.weight"][2] = 0


FEW = {"block_count": 10, "attention.shared_kv_layers": 5, "attention.sliding_window_pattern": [True, True, True, True, False] * 2,
       "activation_sparsity_scale": [1.5, float("-inf"), 0.0, -0.4, 0.7, 1.6, 0.0, 0.0, 0.0, 0.0]}  # fmt: skip


@pytest.mark.parametrize(("keys", "more"), [
    ({}, None), ({}, silent), ({"altup.num_inputs": 2}, streams(2)), ({"altup.num_inputs": 5}, streams(5)),
    ({"final_logit_softcapping": 4.0, "attention.sliding_window": 7}, None),
])  # fmt: skip
def test_other_settings(tmp_path, keys, more):
    """Layers that share other memory, gates of any sparsity, fewer and more streams: settings that llama.cpp does not heed."""
    def edit(tensors):
        few_layers(tensors)
        if more:
            more(tensors)

    path = model(tmp_path, "gemma3n", FEW | keys, edit)
    assert off(found(path), definition(path, SOME)).max() < 1e-5


def test_quantised_matrices(tmp_path, monkeypatch):
    near_and_the_same_everywhere(model(tmp_path, "gemma3n", edit=quantise), EXPECTED["gemma3n"], monkeypatch)


def test_sessions(tmp_path):
    """Forks, rewinds beyond a window, cancelled steps: what one prefill says."""
    path, ids = model(tmp_path, "gemma3n", FEW, few_layers), np.random.default_rng(8).integers(6, 120, 340).astype(np.int32)
    with ni.load(path, threads=1, n_batch=340) as one:
        wanted = one.logits(ids, all=True)
    with ni.load(path, threads=2, n_batch=70) as loaded, loaded.session() as session:
        for n in (300, 301, 331):
            same_bits(session.logits(ids[:n]), wanted[n - 1])
        with session.fork() as twin:
            same_bits(session.logits(ids[:200]), wanted[199])
            assert not np.array_equal(session.logits([*ids[:200], 5]), wanted[200])
            same_bits(session.logits(ids[:260]), wanted[259])
            same_bits(twin.logits(ids), wanted[339])
    with open_engine(path, threads=2, n_batch=128) as engine:
        steps_and_broken_ones(engine, ids, wanted, np.random.default_rng(2))


def test_layers_that_share_memory_keep_none(tmp_path):
    path = model(tmp_path, "gemma3n", FEW, few_layers)
    with open_engine(path) as engine:
        assert [(layer.window, layer.readers) for layer in engine.plan.kv.layers] == [(32, 1)] * 3 + [(32, 5), (0, 2)]
        assert engine.plan.barriers()[1] == 10 * 7 + 3  # of the team: seven per layer, three for what lies before and behind all


@pytest.mark.parametrize(("keys", "edit", "error", "says"), [
    ({"altup.active_idx": 1}, None, ni.UnsupportedModel, "altup.active_idx = 1"),
    ({"altup.num_inputs": 1}, None, ni.CorruptModel, "altup.num_inputs = 1"),
    ({"altup.num_inputs": 3}, None, ni.CorruptModel, "'altup_proj.weight' has the shape (3, 64, 64), wanted (2, 64, 64)"),
    ({"attention.shared_kv_layers": 24}, None, ni.CorruptModel, "fewer: layer 4 has no earlier one of its kind"),
    ({"activation_sparsity_scale": [1.0, 2.0]}, None, ni.CorruptModel, "activation_sparsity_scale = [1.0, 2.0]; wanted 25 numbers"),
    ({"activation_sparsity_scale": [float("nan")] * 25}, None, ni.CorruptModel, "wanted 25 numbers, one per layer"),
    ({"embedding_length_per_layer_input": 0}, None, ni.CorruptModel, "embedding_length_per_layer_input = 0; wanted at least 1"),
    ({}, cut("blk.3.altup_router.weight", 3), ni.CorruptModel, "operand router (blk.3.altup_router.weight) has width 192, wanted 256"),
    ({}, cut("blk.3.altup_predict_coef.weight", 9), ni.CorruptModel, "(blk.3.altup_predict_coef.weight) has width 36, wanted 64"),
    ({}, cut("blk.3.altup_router_norm.weight", 32), ni.CorruptModel, "has width 32, wanted 64"),
    ({}, cut("blk.3.altup_correct_scale.weight", 32), ni.CorruptModel, "(blk.3.altup_correct_scale.weight) has width 32, wanted 64"),
    ({}, cut("blk.3.laurel_r.weight", 32), ni.CorruptModel, "(blk.3.laurel_r.weight) has width 32, wanted 64"),
    ({}, without("blk.2.altup_router.weight"), ni.CorruptModel, "'blk.2.altup_router.weight' is missing"),
    ({}, without("blk.2.altup_correct_scale.weight"), ni.CorruptModel, "'blk.2.altup_correct_scale.weight' is missing"),
    ({}, without("blk.2.laurel_l.weight"), ni.CorruptModel, "'blk.2.laurel_l.weight' is missing"),
    ({}, without("altup_unembd_proj.weight"), ni.CorruptModel, "'altup_unembd_proj.weight' is missing"),
    ({}, without("blk.24.post_norm.weight"), ni.CorruptModel, "'blk.24.post_norm.weight' is missing"),
])  # fmt: skip
def test_what_is_refused(tmp_path, keys, edit, error, says):
    with pytest.raises(error, match=re.escape(says)):
        ni.load(model(tmp_path, "gemma3n", keys, edit))
