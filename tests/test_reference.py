"""The oracles themselves: ops against identities, whole models against transformers' goldens and llama.cpp."""

import importlib.util
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import reference as ref
from random_blocks import TYPES, random_weights
from reference_models import ReferenceModel
from tiny_models import ARCHITECTURES, tiny

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize("name", ["llama", "llama3", "gemma3"])
def test_models_match_transformers(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    exact = ReferenceModel(GOLDEN / f"{name}.gguf", dtype=np.float64).logits(golden["ids"])
    single = ReferenceModel(GOLDEN / f"{name}.gguf").logits(golden["ids"])
    assert exact.dtype == np.float64 and single.dtype == np.float32
    np.testing.assert_allclose(exact, golden["logits"], atol=2e-5)
    np.testing.assert_allclose(single, golden["logits"], atol=2e-4)


@pytest.mark.parametrize(("arch", "weight_type", "more"), [
    ("llama", "F32", {"tied": False, "rope_freqs": True}), ("llama", "F32", {"biases": True, "rope_scale": 4.0}),
    ("llama", "Q4_K", {}), ("gemma3", "F32", {"rope_scale": 8.0}), ("gemma3", "Q5_0", {}),
])
def test_models_match_llama_cpp(tmp_path, rng, arch, weight_type, more):
    if importlib.util.find_spec("cyllama") is None:
        pytest.skip("needs the package cyllama")
    sys.path.insert(0, str(ROOT / "bench"))
    from peers import open_llama_cpp

    path = tiny(tmp_path, arch, weight_type, **more)
    ids = rng.integers(6, 280, 40).tolist()
    exact = ReferenceModel(path, dtype=np.float64).logits(ids)
    with open_llama_cpp(path, n_ctx=256) as peer:
        logits = peer.logits(ids)
    assert ref.kl_divergence(exact, logits).mean() < (1e-4 if weight_type == "F32" else 1e-2)
    assert exact.std() > 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_later_tokens_change_nothing(tmp_path, rng, arch):
    model = ReferenceModel(tiny(tmp_path, arch), dtype=np.float64)
    ids = rng.integers(0, model.n_vocab, 24)
    np.testing.assert_allclose(model.logits(ids[:10]), model.logits(ids)[:10], atol=1e-10)
    with pytest.raises(ValueError, match="ids below"):
        model.logits([model.n_vocab])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("weight_type", TYPES)
def test_tiny_models_are_sane(tmp_path, arch, weight_type):
    path = tiny(tmp_path, arch, weight_type)
    logits = ReferenceModel(path).logits([5, 9, 100, 200])
    assert np.isfinite(logits).all() and 0.5 < logits.std() < 10
    assert path.stat().st_size < 2_500_000


def test_split_model_is_the_whole(tmp_path):
    whole = ReferenceModel(tiny(tmp_path, "llama", "Q8_0"))
    first = tiny(tmp_path, "llama", "Q8_0", parts=3, name="split")
    paths = sorted(tmp_path.glob("split-*"))
    assert [p.name for p in paths] == [f"split-0000{i}-of-00003.gguf" for i in (1, 2, 3)] and first == paths[0]
    parts = ReferenceModel(*paths)
    assert parts.weights.keys() == whole.weights.keys()
    assert all(np.array_equal(parts.weights[k], w) for k, w in whole.weights.items())


def test_quick_reader_sees_what_gguf_reader_sees(tmp_path):
    path = tiny(tmp_path, "gemma3", "Q6_K")
    model, reader = ReferenceModel(path), gguf.GGUFReader(path)
    assert len(model.weights) == len(reader.tensors)
    for t in reader.tensors:
        assert np.array_equal(model.weights[t.name], ref.dequantise(t.data, t.tensor_type, np.float32)), t.name
    for key, value in model.meta.items():
        assert reader.fields[key].contents() == value


@pytest.mark.parametrize("weight_type", TYPES)
def test_random_weights_spread_as_told(rng, weight_type):
    stored = random_weights(rng, 64, 512, weight_type, std=0.1)
    weights = ref.dequantise(stored, gguf.GGMLQuantizationType[weight_type])
    assert weights.shape == (64, 512) and weights.dtype == np.float64
    # The quants of two types are -1 to 2: blocks of random bits have a mean.
    assert 0.08 < weights.std() < 0.125 and abs(weights.mean()) < (0.05 if weight_type in ("TQ2_0", "Q2_0") else 0.02)


def test_random_weights_refuse_ragged_blocks(rng):
    with pytest.raises(ValueError, match="Q4_K: 320 columns, wanted a multiple of 256"):
        random_weights(rng, 1, 320, "Q4_K")


def test_rmsnorm(rng):
    x = rng.standard_normal((3, 64))
    y = ref.rmsnorm(x, np.ones(64), 0.0)
    np.testing.assert_allclose((y**2).mean(axis=-1), 1)
    np.testing.assert_allclose(ref.rmsnorm(1e6 * x, np.full(64, 2.0), 1e-6), 2 * y, rtol=1e-9)
    assert np.array_equal(ref.rmsnorm(np.zeros((1, 4)), np.ones(4), 1e-6), np.zeros((1, 4)))


def test_layernorm(rng):
    """Mean 0 and variance 1 before weight and bias, wherever x lies and however wide it spreads."""
    x = rng.standard_normal((3, 64)) * 5 + 100
    y = ref.layernorm(x, np.ones(64), 0.0)
    np.testing.assert_allclose((y.mean(axis=1), y.var(axis=1)), ([0] * 3, [1] * 3), atol=1e-12)
    np.testing.assert_allclose(ref.layernorm(x, np.full(64, 2.0), 0.0, np.arange(64)), 2 * y + np.arange(64), atol=1e-9)
    np.testing.assert_allclose(ref.layernorm(x, np.ones(64), 24.0), y * (x.std(axis=1) / np.sqrt(x.var(axis=1) + 24))[:, None])


def test_embed_and_matmul(rng):
    table = rng.standard_normal((10, 4))
    assert np.array_equal(ref.embed(table, [3, 0, 3]), table[[3, 0, 3]])
    x, w = rng.standard_normal((2, 4)), rng.standard_normal((3, 4))
    by_hand = [[sum(x[i, k] * w[j, k] for k in range(4)) + j for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(ref.matmul(x, w, np.arange(3.0)), by_hand)


def test_quantise_q8_rounds_half_to_even():
    x = np.zeros((2, 64), dtype=np.float32)
    x[0, :6] = 127, 0.5, 1.5, 2.5, -0.5, -1.5
    x[1, 32:34] = -4, 2
    q, scale = ref.quantise_q8(x)
    assert q[0, :6].tolist() == [127, 0, 2, 2, 0, -2] and q[1, 32:34].tolist() == [-127, 64]  # 63.5 rounds to 64
    assert scale.tolist() == [[1, 0], [0, np.float32(4) / np.float32(127)]]
    q, scale = ref.quantise_q8(np.full(32, 1e-40))
    assert not q.any() and not scale.any()
    with pytest.raises(ValueError, match="multiple of 32"):
        ref.quantise_q8(np.zeros(33))


def test_quantise_q8_error_is_half_a_step(rng):
    x = rng.standard_normal((5, 96))
    q, scale = ref.quantise_q8(x)
    error = np.abs(x - q * np.repeat(scale.astype(np.float64), 32, axis=-1))
    assert (error <= 0.5001 * np.repeat(scale, 32, axis=-1)).all() and np.abs(q).max() == 127
    w = rng.standard_normal((7, 96))
    np.testing.assert_allclose(ref.matmul_q8(x, w), ref.matmul(x, w), atol=0.4)


@pytest.mark.parametrize("style", ["norm", "neox"])
def test_rope_rotates_by_difference_of_positions(rng, style):
    q, k = rng.standard_normal((2, 1, 1, 16))
    assert np.array_equal(ref.rope(q, [0], style), q)
    np.testing.assert_allclose(np.linalg.norm(ref.rope(q, [9], style)), np.linalg.norm(q))
    products = [(ref.rope(q, [7 + d], style) * ref.rope(k, [3 + d], style)).sum() for d in (0, 50)]
    np.testing.assert_allclose(*products)
    assert abs(products[0] - (q * k).sum()) > 1e-3
    kept = ref.rope(q, [5], style, n_rot=8)
    assert np.array_equal(kept[..., 8:], q[..., 8:]) and not np.allclose(kept[..., :8], q[..., :8])


def test_rope_layouts_differ_by_a_permutation(rng):
    x = rng.standard_normal((4, 2, 16))
    halves = np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
    turned = ref.rope(x, range(4), "norm", 500.0)
    expected = np.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)
    np.testing.assert_allclose(ref.rope(halves, range(4), "neox", 500.0), expected)
    with pytest.raises(ValueError, match="style"):
        ref.rope(x, range(4), "gpt-j")


def test_rope_scaling(rng):
    x = rng.standard_normal((3, 1, 8))
    stretched = ref.rope(x, [8, 16, 24], "neox", freq_scale=0.125)
    np.testing.assert_allclose(stretched, ref.rope(x, [1, 2, 3], "neox"))
    np.testing.assert_allclose(ref.rope(x, [8, 16, 24], "neox", factors=np.full(4, 8.0)), stretched)
    # The first pair turns by one radian a position, the last by base^(-(n_rot - 2) / n_rot).
    np.testing.assert_allclose(ref.rope_angles([1], 8, 10000.0)[0], [1, 0.1, 0.01, 0.001])


def test_gates():
    gate, up = np.linspace(-40, 40, 801), np.full(801, 2.0)
    np.testing.assert_allclose(ref.silu_mul(gate, up), 2 * gate / (1 + np.exp(-gate)), atol=1e-13)
    exact = [g * (1 + math.erf(g / math.sqrt(2))) for g in gate]
    np.testing.assert_allclose(ref.gelu_mul(gate, up), exact, atol=1e-3)
    assert ref.gelu_mul(np.array([1.0]), np.array([1.0]))[0] == pytest.approx(0.8411919906082768, abs=1e-15)
    assert np.isfinite(ref.silu_mul(np.float32([-1e30, 1e30]), np.float32([1, 1]))).all()


def test_softcap():
    x = np.array([-1e6, -1.0, 0.0, 1e-3, 1e6])
    y = ref.softcap(x, 30.0)
    np.testing.assert_allclose(y[[0, 2, 4]], [-30, 0, 30])
    assert y[3] == pytest.approx(1e-3, rel=1e-8) and -1 < y[1] < -0.999


def test_attention_by_hand(rng):
    q, k, v = rng.standard_normal((3, 2, 4)), rng.standard_normal((3, 1, 4)), rng.standard_normal((3, 1, 5))
    out = ref.attention(q, k, v)
    for p in range(3):
        for h in range(2):
            weights = [math.exp(q[p, h] @ k[t, 0] / 2) for t in range(p + 1)]
            expected = sum(w * v[t, 0] for t, w in enumerate(weights)) / sum(weights)
            np.testing.assert_allclose(out[p, h], expected)


def test_attention_window_groups_and_chunks(rng):
    q, k, v = (rng.standard_normal((12, heads, 8)) for heads in (6, 2, 2))
    full = ref.attention(q, k, v)
    np.testing.assert_allclose(ref.attention(q, k, v, window=12), full)
    assert not np.allclose(ref.attention(q, k, v, window=11)[11], full[11])
    np.testing.assert_allclose(ref.attention(q, k, v, window=11)[:11], full[:11])
    np.testing.assert_allclose(ref.attention(q, k, v, window=1), np.repeat(v, 3, axis=1))
    np.testing.assert_allclose(ref.attention(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1)), full)
    np.testing.assert_allclose(ref.attention(q[5:], k, v, first=5), full[5:])
    np.testing.assert_allclose(ref.attention(q, k, v, window=3)[7:], ref.attention(q[7:], k, v, first=7, window=3))
    np.testing.assert_allclose(ref.attention(q, k, v, cap=1e6), full, atol=1e-6)
    np.testing.assert_allclose(ref.attention(q * 3, k, v, scale=8**-0.5 / 3), full)
    with pytest.raises(ValueError, match="heads over"):
        ref.attention(q[:, :5], k, v)


def test_divergence():
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]) + 3
    assert ref.kl_divergence(p, p)[0] == 0
    assert ref.kl_divergence(p, q)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    np.testing.assert_allclose(np.exp(ref.log_softmax([1000.0, 1000.0])), 0.5)
    assert ref.softmax(np.array([0.0, -np.inf])).tolist() == [1, 0]
