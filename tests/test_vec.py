"""Vector and attention kernels: the same bits in every instruction set, and right against NumPy in float64."""

import numpy as np
import pytest
from _cvec import CHUNK, available, load

SIZES = [0, 1, 2, 15, 16, 17, 31, 32, 33, 48, 100, 576, 2048, 2051]
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 1e-30, -1e-30, 1e-8, 0.1, -0.3465, 0.3466, 10.0,
                  -10.0, 87.0, -87.2, -87.3, -87.31, 88.3, 88.5, 88.72, 88.73, -88.72, 90.0, -104.0, 1e4, -1e4, 1e30,
                  -1e30], np.float32)


@pytest.fixture(params=available())
def vec(request):
    return load(request.param)


@pytest.fixture(params=available()[1:])
def fast(request):
    return load(request.param)


SCALAR = load("scalar")


def bits(a):
    a = np.ascontiguousarray(a)
    return a.view({4: np.uint32, 2: np.uint16, 1: np.uint8}[a.dtype.itemsize])


def same(a, b):
    np.testing.assert_array_equal(bits(a), bits(b))


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
        "silu_mul": (lambda x, y: t.silu_mul(x, y, n, x), vec.silu_mul(a, b)),
        "gelu_mul": (lambda x, y: t.gelu_mul(y, x, n, x), vec.gelu_mul(b, a)),
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


# ---- attention ----------------------------------------------------------------------------------------------------

def attention_case(seed, n_q, e, ev):
    """Random q, chunk and ranges, some of one position, some of all."""
    rng = np.random.default_rng(seed)
    q = (rng.standard_normal((n_q, e)) * 2 / np.sqrt(e)).astype(np.float32)
    k = rng.standard_normal((CHUNK, e)).astype(np.float16)
    v = rng.standard_normal((CHUNK, ev)).astype(np.float16)
    lo = rng.integers(0, CHUNK, n_q)
    hi = lo + 1 + (rng.random(n_q) * (CHUNK - lo)).astype(int)
    lo[::5], hi[::7] = 0, CHUNK
    return q, k, v, lo, hi


def packed(k):
    """Keys (256, e) -> (16, e, 16) halves: 16 positions side by side."""
    return np.ascontiguousarray(k.reshape(CHUNK // 16, 16, -1).transpose(0, 2, 1)).view(np.uint16)


def attend(vec, q, k, v, lo, hi, cap=0.0):
    return vec.attend(np.ascontiguousarray(q), packed(k), np.ascontiguousarray(v).view(np.uint16), lo, hi, cap)


def attend_twin(q, k, v, lo, hi, cap=0.0):
    """One query at a time in float64: the parts m, l, acc."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    m, den, acc = [], [], []
    for x, a, b in zip(q, lo, hi, strict=True):
        s = k[a:b] @ x
        s = cap * np.tanh(s / cap) if cap else s
        p = np.exp(s - s.max())
        m.append(s.max()), den.append(p.sum()), acc.append(p @ v[a:b])
    return np.array(m), np.array(den), np.array(acc)


def check_attention(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
    np.testing.assert_allclose(got[2], want[2], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize(("e", "ev"), [(64, 64), (128, 128), (16, 48), (80, 112), (576, 512)])
@pytest.mark.parametrize("n_q", [1, 2, 3, 4, 5, 6, 7, 8, 13, 40])
def test_attend(vec, n_q, e, ev, cap):
    case = attention_case(n_q * 1000 + e, n_q, e, ev)
    got = attend(vec, *case, cap)
    check_attention(got, attend_twin(*case, cap))
    for g, w in zip(got, attend(SCALAR, *case, cap), strict=True):
        same(g, w)


def fma_chain(a, b):
    """Sum of a[i] * b[i] over the first axis, in order, each step rounded once (in all but absurdly rare cases)."""
    total = np.zeros(np.broadcast_shapes(a.shape[1:], b.shape[1:]), np.float32)
    for x, y in zip(a.astype(np.longdouble), b.astype(np.longdouble), strict=True):
        total = (x * y + total).astype(np.float32)
    return total


def test_attend_follows_the_order_of_the_contract(vec):
    q, k, v, lo, hi = attention_case(7, 9, 64, 32)
    for j, (m, den, acc) in enumerate(zip(*attend(vec, q, k, v, lo, hi), strict=True)):
        s = fma_chain(q[j][:, None], k.T)
        s[: lo[j]] = s[hi[j]:] = -np.inf
        p = vec.exp(s - s.max())
        lanes = np.zeros(16, np.float32)
        for block in p.reshape(-1, 16):
            lanes += block
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2:]
        same(m, s.max())
        same(den, lanes[0])
        same(acc, fma_chain(p[:, None], v))


def test_attend_of_a_query_does_not_depend_on_its_company(vec):
    q, k, v, lo, hi = attention_case(8, 40, 64, 96)
    whole = attend(vec, q, k, v, lo, hi)
    for part in [slice(j, j + 1) for j in range(40)] + [slice(a, a + n) for n in (2, 3, 4, 5, 6, 9, 31) for a in (0, 7)]:
        for g, w in zip(attend(vec, q[part], k, v, lo[part], hi[part]), whole, strict=True):
            same(g, w[part])


def test_attend_does_not_see_masked_positions(vec):
    """Other finite memory at masked positions, and anything at all where no query looks, changes no bit."""
    q, k, v, lo, hi = attention_case(9, 12, 64, 64)
    lo, hi = lo % 100 + 30, hi % 100 + 131
    lo[3], hi[3] = 77, 78
    first = attend(vec, q, k, v, lo, hi)
    for j in range(12):
        k2, v2 = k.copy(), v.copy()
        k2[: lo[j]], k2[hi[j]:], v2[: lo[j]], v2[hi[j]:] = 60000, -60000, 60000, -60000
        for g, w in zip(attend(vec, q, k2, v2, lo, hi), first, strict=True):
            same(g[j], w[j])
    for a in (k, v):
        a[: lo.min()], a[hi.max():] = np.nan, np.inf
    for g, w in zip(attend(vec, q, k, v, lo, hi), first, strict=True):
        same(g, w)


def test_attend_with_far_scores(vec):
    """Probabilities that underflow count as nothing."""
    q, k, v, lo, hi = attention_case(10, 8, 32, 32)
    q *= 100
    (m, den, acc), want = attend(vec, q, k, v, lo, hi), attend_twin(q, k, v, lo, hi)
    check_attention((m / 100, den, acc), (want[0] / 100, *want[1:]))


def test_attend_sums_that_round_to_minus_zero(vec):
    """1 - 1.16 units of the least subnormal rounds to -0, which adding a masked position would turn into +0."""
    q, k, v, _, _ = attention_case(12, 2, 16, 16)
    q[:], q[:, 0] = 0, 1
    k[:], v[:] = 0, 1
    k[:3, 0], v[0], v[1], v[2] = (0, -87.25, -86.5), 0, 2.0**-24, -(2.0**-24)
    lo, hi = np.array([0, 0]), np.array([3, 9])
    both, alone = attend(vec, q, k, v, lo, hi), attend(vec, q[:1], k, v, lo[:1], hi[:1])
    assert (alone[2] == 0).all()
    same(both[2][:1], alone[2])


@pytest.mark.parametrize("ev", [16, 64, 100])
def test_merge(vec, ev):
    """Chunks folded one by one give the attention over all of them; the float operations are the contract's."""
    e, n = 48, 5
    cases = [attention_case(20 + i, 1, e, 112) for i in range(n)]
    q = cases[0][0]
    part = (np.float32(-np.inf), np.float32(0), np.zeros(ev, np.float32))
    for _, k, v, lo, hi in cases:
        m, den, acc = attend(vec, q, k, v, lo, hi)
        other = (m[0], den[0], acc[0, :ev])
        top = max(part[0], other[0])
        a, b = vec.exp(np.float32([part[0] - top, other[0] - top])).astype(np.float64)
        got = vec.merge(part, other)
        for g, w in zip(got, SCALAR.merge(part, other), strict=True):
            same(g, w)
        # A product of floats is exact in float64; the sum there errs 2^-53, far less than one float rounding.
        want = part[2].astype(np.float64) * a + (other[2] * np.float32(b)).astype(np.float64)
        np.testing.assert_allclose(got[2], want, rtol=1.2e-7, atol=1e-30)
        assert got[0] == top
        part = got
    ks, vs = (np.concatenate([c[i][c[3][0]: c[4][0]] for c in cases]) for i in (1, 2))
    want = attend_twin(q, ks, vs[:, :ev], [0], [len(ks)])
    check_attention(tuple(np.array([x]) for x in part), want)


def test_a_query_that_sees_nothing_leaves_the_others_alone(vec):
    q, k, v, lo, hi = attention_case(11, 4, 32, 32)
    first = attend(vec, q, k, v, lo, hi)
    lo[2] = hi[2] = 50
    got = attend(vec, q, k, v, lo, hi)
    for g, w in zip(got, first, strict=True):
        same(g[[0, 1, 3]], w[[0, 1, 3]])
    assert got[0][2] == -np.inf and got[1][2] == 0 and (got[2][2] == 0).all()
    none = tuple(g[2] for g in got)
    for part in (tuple(g[0] for g in first), none):
        for g, w in zip(vec.merge(part, none), part, strict=True):
            same(g, w)
