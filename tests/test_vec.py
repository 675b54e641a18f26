"""Vector kernels: the same bits in every instruction set, and right against NumPy in float64."""

import numpy as np
import pytest
from _cvec import available, load, same

SIZES = [0, 1, 2, 15, 16, 17, 31, 32, 33, 48, 100, 576, 2048, 2051]
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 1e-30, -1e-30, 1e-8, 0.1, -0.3465, 0.3466, 10.0,
                  -10.0, 87.0, -87.2, -87.3, -87.31, 88.3, 88.5, 88.72, 88.73, -88.72, 90.0, -104.0, 1e4, -1e4, 1e30,
                  -1e30], np.float32)


@pytest.fixture(params=available()[1:])
def fast(request):
    return load(request.param)


SCALAR = load("scalar")


def randoms(seed, n, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def ulps(y, exact):
    """Distance of floats y from the exact values, in units of the last place of the exact values."""
    return np.abs(y.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


# ---- exp and tanh -------------------------------------------------------------------------------------------------

def test_exp_is_within_one_ulp(vec):
    x = np.concatenate([np.linspace(-87.3, 88.72, 400_001), np.linspace(-1, 1, 100_001)]).astype(np.float32)
    x = x[x >= np.float32(-87.3)]
    assert ulps(vec.exp(x), np.exp(x.astype(np.float64))).max() <= 1.0


def test_exp_at_its_ends(vec):
    x = np.array([0.0, -0.0, -np.inf, np.inf, np.nan, np.nextafter(np.float32(-87.3), np.float32(-100)), -1e30, 88.7228,
                  88.72284, 1e30], np.float32)
    y = vec.exp(x)
    assert y[0] == y[1] == 1.0 and y[3] == np.inf and np.isnan(y[4])
    assert (y[[2, 5, 6]] == 0).all() and np.isfinite(y[7]) and (y[8:] == np.inf).all()


def test_tanh_is_odd_and_within_four_ulp(vec):
    x = np.concatenate([np.linspace(0, 12, 200_001), np.geomspace(1e-30, 1, 100_001)]).astype(np.float32)
    y = vec.tanh(x)
    assert (ulps(y[1:], np.tanh(x[1:].astype(np.float64)))).max() <= 4.0
    same(vec.tanh(-x), -y)
    assert y[0] == 0 and vec.tanh(np.float32([1e30]))[0] == 1 and np.isnan(vec.tanh(np.float32([np.nan]))[0])


def test_exp_and_tanh_have_the_same_bits(fast):
    x = np.concatenate([EDGES, randoms(1, 50_000, 30), randoms(2, 50_000, 0.01)])
    same(fast.exp(x), SCALAR.exp(x))
    same(fast.tanh(x), SCALAR.tanh(x))


# ---- half floats --------------------------------------------------------------------------------------------------

def test_from_f16_is_exact_for_all_halves(vec):
    h = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    y, want = vec.from_f16(h), h.view(np.float16).astype(np.float32)
    number = ~np.isnan(want)
    same(y[number], want[number])
    assert np.isnan(y[~number]).all()
    same(y, SCALAR.from_f16(h))


def test_to_f16_rounds_to_nearest_even(vec):
    """Every half, every midpoint between neighbours, and the floats just beside those."""
    h = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    h[-1] = 65536.0
    mid = ((h[1:] + h[:-1]) / 2).astype(np.float32)
    x = np.concatenate([h.astype(np.float32), mid, np.nextafter(mid, np.float32(0)),
                        np.nextafter(mid, np.float32(np.inf)), EDGES, [np.float32(np.inf)], randoms(3, 10_000, 100)])
    x = np.concatenate([x, -x]).astype(np.float32)
    with np.errstate(over="ignore"):
        same(vec.to_f16(x), x.astype(np.float16))
    nans = np.array([0x7FC00000, 0xFFC01234, 0x7F800001, 0xFFBFFFFF, 0x7FFFE000], np.uint32).view(np.float32)
    same(vec.to_f16(nans), SCALAR.to_f16(nans))
    assert np.isnan(vec.to_f16(nans).view(np.float16)).all()


@pytest.mark.parametrize("n", SIZES)
def test_halves_of_any_length(vec, n):
    x = randoms(n, n)
    same(vec.to_f16(x), x.astype(np.float16))
    same(vec.from_f16(vec.to_f16(x)), x.astype(np.float16).astype(np.float32))


# ---- quantisation -------------------------------------------------------------------------------------------------

def quantize_twin(x):
    """The contract in NumPy float32, whose single operations round as ours."""
    x = x.reshape(-1, 32)
    amax = np.abs(x).max(axis=1)
    tiny = amax < np.float32(2.0**-119)
    safe = np.where(tiny, np.float32(1), amax)
    d = np.where(tiny, np.float32(0), safe / np.float32(127))
    q = np.rint(x * np.where(tiny, np.float32(0), np.float32(127) / safe)[:, None]).astype(np.int8)
    s = q.reshape(-1, 16).sum(axis=1, dtype=np.int16)
    with np.errstate(over="ignore"):
        m = d * q.sum(axis=1, dtype=np.int32).astype(np.float32)
    return q.ravel(), d.astype(np.float32), m.astype(np.float32), s


def quantize_inputs():
    ties = (np.arange(-64, 64) + 0.5).astype(np.float32)
    ties[::32] = 127.0                                    # scale 1: every other value is a tie
    one = np.zeros(64, np.float32)
    one[5], one[40] = 3.0, -1e-39
    return [randoms(4, 2048), randoms(5, 4096, 1e-30), randoms(6, 320, 1e30), ties, one, np.zeros(96, np.float32),
            np.full(32, np.float32(2.0**-119)), np.full(32, np.finfo(np.float32).max), np.zeros(0, np.float32),
            np.float32([-7] * 32)]


@pytest.mark.parametrize("i", range(len(quantize_inputs())))
def test_quantize(vec, i):
    x = quantize_inputs()[i]
    got, want = vec.quantize(x), quantize_twin(x)
    for g, w in zip(got, want, strict=True):
        same(g, w)
    if x.size:
        err = np.abs(got[0].astype(np.float64).reshape(-1, 32) * got[1][:, None] - x.reshape(-1, 32))
        assert (err <= 0.5001 * got[1][:, None] + 2.0**-119).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_quantize_does_not_lose_what_is_not_finite(vec, wrong):
    for at in range(32, 64):
        x = randoms(8, 96)
        x[at] = wrong
        _, d, m, _ = vec.quantize(x)
        assert np.isnan(d).tolist() == np.isnan(m).tolist() == [False, True, False]


def test_quantize_writes_only_the_parts_asked_for(vec):
    x = randoms(7, 256)
    for parts in ("q", "d", "m", "s", "qd", "qds", "qdm", ""):
        for name, got, want in zip("qdms", vec.quantize(x, parts), quantize_twin(x), strict=True):
            assert (got is None) == (name not in parts)
            if got is not None:
                same(got, want)


# ---- element-wise -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", SIZES)
def test_sum_squares(vec, n):
    x = randoms(n + 8, n, 3)
    got = vec.sum_squares(x)
    same(got, SCALAR.sum_squares(x))
    np.testing.assert_allclose(got, (x.astype(np.float64) ** 2).sum(), rtol=1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_sum(vec, n):
    x = randoms(n + 9, n, 3) + np.float32(1)
    got = vec.sum(x)
    same(got, SCALAR.sum(x))
    np.testing.assert_allclose(got, x.astype(np.float64).sum(), rtol=1e-6, atol=1e-6 * n)
    lanes = np.zeros(16, np.float32)
    for i, v in enumerate(x):
        lanes[i % 16] += v
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2:]
    assert got == lanes[0]


def test_sum_squares_in_16_lanes_and_the_fixed_tree(vec):
    """Squares of integers below 2^12 in lanes chosen so that only the contract's order gives this sum."""
    x = np.zeros(40, np.float32)
    x[0], x[8], x[4], x[35], x[19] = 4096, 1, 1, 1, 1      # 2^24 + 1 is lost lane by lane; 3 + 3 is a lane of its own
    lanes = np.zeros(16, np.float32)
    for i, v in enumerate(x):
        lanes[i % 16] += v * v
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2:]
    assert vec.sum_squares(x) == lanes[0] != (x.astype(np.float64) ** 2).sum()


@pytest.mark.parametrize("n", SIZES)
def test_scale_mul_and_add_are_exact_operations(vec, n):
    x, w = randoms(n, n), randoms(n + 1, n)
    same(vec.scale_mul(x, 0.37, w), x * np.float32(0.37) * w)
    same(vec.scale_mul(x, 0.37, None), x * np.float32(0.37))
    same(vec.add(x, w), x + w)
    same(vec.minus(x, 0.37), x - np.float32(0.37))


@pytest.mark.parametrize("n", SIZES)
def test_exp_of_a_difference(vec, n):
    x = randoms(n, n, 20)
    same(vec.exp_of(x, 0.37), vec.exp(x - np.float32(0.37)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mixed(n, seed):
    """n values, edge cases first."""
    return np.concatenate([EDGES, randoms(seed, max(n, EDGES.size), 4)])[:n]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("n", SIZES)
def test_gated_activations(vec, n):
    g, u = mixed(n, n), randoms(n + 2, n)
    g64, u64 = g.astype(np.float64), u.astype(np.float64)
    y = vec.silu_mul(g, u)
    same(y, SCALAR.silu_mul(g, u))
    np.testing.assert_allclose(y, g64 * sigmoid(g64) * u64, rtol=5e-7, atol=1e-35)
    y = vec.gelu_mul(g, u)
    same(y, SCALAR.gelu_mul(g, u))
    z = np.sqrt(2 / np.pi) * (g64 + 0.044715 * g64**3)
    # 0.5 (1 + tanh z) = sigmoid(2 z); the error of z itself, times 2 |z|, is what limits far negative g.
    np.testing.assert_allclose(y, g64 * sigmoid(2 * z) * u64, rtol=2e-5, atol=1e-35)
    np.testing.assert_allclose(y, 0.5 * g64 * (1 + np.tanh(z)) * u64, rtol=1e-6, atol=1e-6)
    y = vec.sigmoid_mul(g, u)
    same(y, SCALAR.sigmoid_mul(g, u))
    np.testing.assert_allclose(y, sigmoid(g64) * u64, rtol=5e-7, atol=1e-35)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("n", SIZES)
def test_clamped_gate(vec, n):
    g, u = mixed(n, n), mixed(n, n + 1)[::-1].copy()
    y = vec.clamped_mul(g, u, 1.702, 7.0)
    same(y, SCALAR.clamped_mul(g, u, 1.702, 7.0))
    a, b = np.minimum(g, 7.0).astype(np.float64), np.clip(u, -7.0, 7.0).astype(np.float64)
    np.testing.assert_allclose(y, a * sigmoid(1.702 * a) * (b + 1), rtol=4e-6, atol=1e-35)
    y = vec.limited_mul(g, u, 7.0)
    same(y, SCALAR.limited_mul(g, u, 7.0))
    np.testing.assert_allclose(y, np.minimum(g.astype(np.float64) * sigmoid(g.astype(np.float64)), 7.0) * b, rtol=1e-6, atol=1e-35)


def test_clamping_keeps_what_is_not_a_number(vec):
    nan, one = np.full(3, np.nan, np.float32), np.ones(3, np.float32)
    assert np.isnan(vec.limited_mul(nan, one, 7.0)).all() and np.isnan(vec.limited_mul(one, nan, 7.0)).all()
    assert np.isnan(vec.clamped_mul(nan, one, 1.702, 7.0)).all() and np.isnan(vec.clamped_mul(one, nan, 1.702, 7.0)).all()


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("n", SIZES)
def test_activations_without_a_gate(vec, n):
    x = mixed(n, n + 3)
    x64 = x.astype(np.float64)
    same(vec.gelu(x), vec.gelu_mul(x, np.ones_like(x)))
    y = vec.relu_squared(x)
    same(y, SCALAR.relu_squared(x))
    same(y, np.maximum(x, 0) * x)
    for constants in ((0.8, 1.1, 0.5, -1e-6), (1.2, 0.3, -0.25, 0.0)):
        y = vec.xielu(x, *constants)
        same(y, SCALAR.xielu(x, *constants))
        ap, an, beta, eps = np.float32(constants).astype(np.float64)
        minus = an * (np.expm1(np.minimum(x64, eps)) - x64) + beta * x64
        wanted = np.where(x64 > 0, ap * x64**2 + beta * x64, minus)
        np.testing.assert_allclose(y, wanted.astype(np.float32), rtol=1e-6, atol=1e-6)
        small = np.abs(x64) < 1e-2  # where exp(x) - 1 must not cancel: each term may be off by an ulp
        assert (np.abs(y - wanted)[small] <= 4e-7 * np.maximum(np.abs(x64[small]), -eps) + 1e-44).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cap", [30.0, 50.0, 0.7])
def test_softcap(vec, n, cap):
    x = mixed(n, n)
    y = vec.softcap(x, cap)
    same(y, SCALAR.softcap(x, cap))
    c = np.float64(np.float32(cap))
    np.testing.assert_allclose(y, c * np.tanh(x.astype(np.float64) / c), rtol=5e-7, atol=1e-44)


@pytest.mark.parametrize("n", [5, 16, 100])
def test_element_wise_kernels_work_in_place(vec, n):
    a, b = randoms(n, n), randoms(n + 1, n)
    t = vec.table
    calls = {
        "scale_mul": (lambda x, y: t.scale_mul(x, 0.5, y, n, x), vec.scale_mul(a, 0.5, b)),
        "add": (lambda x, y: t.add(y, x, n, x), vec.add(a, b)),
        "minus": (lambda x, y: t.minus(x, 0.5, n, x), vec.minus(a, 0.5)),
        "exp": (lambda x, y: t.exp(x, 0.5, n, x), vec.exp_of(a, 0.5)),
        "silu_mul": (lambda x, y: t.silu_mul(x, y, n, x), vec.silu_mul(a, b)),
        "gelu_mul": (lambda x, y: t.gelu_mul(y, x, n, x), vec.gelu_mul(b, a)),
        "gelu": (lambda x, y: t.gelu(x, n, x), vec.gelu(a)),
        "relu_squared": (lambda x, y: t.relu_squared(x, n, x), vec.relu_squared(a)),
        "xielu": (lambda x, y: t.xielu(x, 0.8, 1.1, 0.5, -1e-6, n, x), vec.xielu(a, 0.8, 1.1, 0.5, -1e-6)),
        "sigmoid_mul": (lambda x, y: t.sigmoid_mul(x, y, n, x), vec.sigmoid_mul(a, b)),
        "limited_mul": (lambda x, y: t.limited_mul(x, y, 0.5, n, x), vec.limited_mul(a, b, 0.5)),
        "clamped_mul": (lambda x, y: t.clamped_mul(y, x, 1.7, 0.5, n, x), vec.clamped_mul(b, a, 1.7, 0.5)),
        "softcap": (lambda x, y: t.softcap(x, 30.0, n, x), vec.softcap(a, 30.0)),
    }
    for call, want in calls.values():
        x = a.copy()
        call(x.ctypes.data, b.ctypes.data)
        same(x, want)


# ---- rotary embedding ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n_rot", [0, 2, 6, 16, 20, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("kind", ["norm", "neox"])
def test_rope(vec, kind, n_rot):
    x, angle = randoms(n_rot, n_rot), randoms(n_rot + 1, n_rot // 2, 10)
    cos, sin = np.cos(angle), np.sin(angle)
    pairs = (np.s_[0::2], np.s_[1::2]) if kind == "norm" else (np.s_[: n_rot // 2], np.s_[n_rot // 2:])
    a, b = x[pairs[0]], x[pairs[1]]
    want = np.empty_like(x)
    want[pairs[0]], want[pairs[1]] = a * cos - b * sin, a * sin + b * cos
    same(vec.rope(kind, x, cos, sin), want)
