"""Attention kernels over every type of KV memory: the same bits in every instruction set, and right against NumPy in float64."""

import functools

import numpy as np
import pytest
import reference as ref
from _cvec import CHUNK, load, same

SCALAR = load("scalar")
FLOATS = ("f16", "bf16", "f32")
# Of scores, sums of probabilities and values.  The 16 bits in which q8_0 multiplies move a score by 2^-16 of what queries and keys
# of a few units give, and the sum of some hundred values a little more.
TOLERANCE = {"f16": (2e-6, 1e-5, 2e-5), "bf16": (2e-6, 1e-5, 2e-5), "q8_0": (1e-4, 2e-4, 1e-3), "f32": (2e-6, 1e-5, 2e-5)}


def decoded(memory, kv_type, width, part):
    """Numbers (256, width) in float64 of a chunk's keys or values, by the words of csrc/isa/kv_layout.h."""
    if kv_type != "q8_0":
        numbers = {"f16": lambda: memory.view(np.float16), "f32": lambda: memory.view(np.float32),
                   "bf16": lambda: (memory.view(np.uint16).astype(np.uint32) << 16).view(np.float32)}[kv_type]()  # fmt: skip
        numbers = numbers.astype(np.float64)
        if part == "key":
            return numbers.reshape(CHUNK // 16, width, 16).transpose(0, 2, 1).reshape(CHUNK, width)
        return numbers.reshape(width // 16, CHUNK, 16).transpose(1, 0, 2).reshape(CHUNK, width)
    out = np.empty((CHUNK, width))
    blocks = [(x, min(32, width - x)) for x in range(0, width, 32)]
    if part == "key":
        rows = memory.reshape(CHUNK // 16, -1)
        for x, n in blocks:
            at = x // 32 * (32 + 512)
            d = np.ascontiguousarray(rows[:, at : at + 32]).view(np.float16).astype(np.float64)  # (16, 16 positions)
            q = rows[:, at + 32 : at + 32 + 16 * n].view(np.int8).reshape(CHUNK // 16, n // 2, 16, 2)
            out[:, x : x + n] = (q.transpose(0, 2, 1, 3).reshape(CHUNK // 16, 16, n) * d[:, :, None]).reshape(CHUNK, n)
        return out
    for x, n in blocks:
        at = x // 32 * CHUNK * (2 + 32)
        d = memory[at : at + 2 * CHUNK].view(np.float16).astype(np.float64)
        q = memory[at + 2 * CHUNK : at + (2 + n) * CHUNK].view(np.int8).reshape(n // 16, CHUNK // 2, 16, 2)
        out[:, x : x + n] = q.transpose(1, 3, 0, 2).reshape(CHUNK, n) * d[:, None]
    return out


# ---- storing ------------------------------------------------------------------------------------------------------


def awkward(width):
    """Rows of many sizes: ties, subnormal scales, zeros, a single value, what overflows half floats in no type."""
    rng = np.random.default_rng(width)
    x = rng.standard_normal((CHUNK, width)).astype(np.float32)
    x *= (2.0 ** rng.integers(-30, 14, CHUNK)).astype(np.float32)[:, None]
    x[3], x[4], x[5, 1:], x[6] = 0, -0.0, 0, 2.0**-140
    x[7] = np.round(x[7] / np.abs(x[7]).max() * 127) + np.float32(0.5)
    x[7, ::16] = 127
    x[8] = np.float32(1) + rng.integers(0, 4, width).astype(np.float32) * np.float32(2.0**-9)  # ties of bfloat16
    x[9] = np.float32(1) + rng.integers(0, 4, width).astype(np.float32) * np.float32(2.0**-11)  # and of half floats
    return x


@pytest.mark.parametrize("width", [16, 32, 48, 64, 112, 128, 576])
@pytest.mark.parametrize("part", ["key", "value"])
def test_what_is_stored(vec, kv_type, part, width):
    x = awkward(width)
    memory = vec.store(kv_type, part, x)
    same(memory, SCALAR.store(kv_type, part, x))
    np.testing.assert_array_equal(decoded(memory, kv_type, width, part), ref.stored(x, kv_type).astype(np.float64))


@pytest.mark.parametrize("part", ["key", "value"])
def test_a_position_is_stored_alone(vec, kv_type, part):
    x, y = awkward(80), awkward(80)[::-1]
    both = vec.store(kv_type, part, y, vec.store(kv_type, part, x), [0, 17, 98, 255])
    want = decoded(vec.store(kv_type, part, x), kv_type, 80, part)
    want[[0, 17, 98, 255]] = decoded(vec.store(kv_type, part, y), kv_type, 80, part)[[0, 17, 98, 255]]
    np.testing.assert_array_equal(decoded(both, kv_type, 80, part), want)


def test_bfloat16_at_its_ends(vec):
    """The largest float rounds to infinity; a NaN becomes quiet and stays one."""
    x = np.zeros((CHUNK, 16), np.float32)
    x[0, :6] = np.array([0x7F7FFFFF, 0xFF7F7FFF, 0x7F800000, 0x7F800001, 0xFFFFFFFF, 1], np.uint32).view(np.float32)
    found = vec.store("bf16", "value", x).view(np.uint16)[:6]
    assert found.tolist() == [0x7F80, 0xFF7F, 0x7F80, 0x7FC0, 0xFFFF, 0]


# ---- attention ----------------------------------------------------------------------------------------------------


class Case:
    """Random q, chunk and ranges, some of one position, some of all; k and v hold what the memory gives back."""

    def __init__(self, seed, n_q, e, ev, kv_type):
        rng = np.random.default_rng(seed)
        self.kv_type, self.e, self.ev, self.tolerance = kv_type, e, ev, TOLERANCE[kv_type]
        self.q = (rng.standard_normal((n_q, e)) * 2 / np.sqrt(e)).astype(np.float32)
        self.k = ref.stored(rng.standard_normal((CHUNK, e)).astype(np.float32), kv_type)
        self.v = ref.stored(rng.standard_normal((CHUNK, ev)).astype(np.float32), kv_type)
        self.lo = rng.integers(0, CHUNK, n_q)
        self.hi = self.lo + 1 + (rng.random(n_q) * (CHUNK - self.lo)).astype(int)
        self.lo[::5], self.hi[::7] = 0, CHUNK

    def keep(self, vec, rows=None, memory=None):
        """(keys, values) of a chunk; rows: positions that are stored, into memory filled with a byte."""
        return [vec.store(self.kv_type, part, x, memory, rows) for part, x in (("key", self.k), ("value", self.v))]

    def run(self, vec, cap=0.0, some=slice(None), kept=None):
        """Attention of some of the queries over what `keep` gave."""
        keys, values = kept or self.keep(vec)
        return vec.attend(self.kv_type, np.ascontiguousarray(self.q[some]), keys, values, self.ev, self.lo[some], self.hi[some], cap)

    def twin(self, cap=0.0):
        """One query at a time in float64: the parts m, l, acc."""
        q, k, v = (a.astype(np.float64) for a in (self.q, self.k, self.v))
        m, den, acc = [], [], []
        for x, a, b in zip(q, self.lo, self.hi, strict=True):
            s = k[a:b] @ x
            s = cap * np.tanh(s / cap) if cap else s
            p = np.exp(s - s.max())
            m.append(s.max()), den.append(p.sum()), acc.append(p @ v[a:b])
        return np.array(m), np.array(den), np.array(acc)

    def check(self, got, want):
        score, total, value = self.tolerance
        np.testing.assert_allclose(got[0], want[0], rtol=score, atol=score)
        np.testing.assert_allclose(got[1], want[1], rtol=total)
        np.testing.assert_allclose(got[2], want[2], rtol=value, atol=value)


@functools.cache
def known(kv_type, e, ev, cap):
    """A case of 40 queries, its chunk, and the parts that NumPy and the scalar table give."""
    case = Case(e, 40, e, ev, kv_type)
    kept = case.keep(SCALAR)
    return case, kept, case.twin(cap), case.run(SCALAR, cap, kept=kept)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize(("e", "ev"), [(64, 64), (128, 128), (16, 48), (80, 112), (576, 512)])
def test_attend(vec, kv_type, e, ev, cap):
    """Any number of queries, among the first of the case and among the last."""
    case, kept, exact, wanted = known(kv_type, e, ev, cap)
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 13, 40):
        for some in (slice(0, n), slice(40 - n, 40)):
            got = case.run(vec, cap, some, kept)
            case.check(got, [x[some] for x in exact])
            for g, w in zip(got, wanted, strict=True):
                same(g, w[some])


def fma_chain(a, b):
    """Sum of a[i] * b[i] over the first axis, in order, each step rounded once (in all but absurdly rare cases)."""
    total = np.zeros(np.broadcast_shapes(a.shape[1:], b.shape[1:]), np.float32)
    for x, y in zip(a.astype(np.longdouble), b.astype(np.longdouble), strict=True):
        total = (x * y + total).astype(np.float32)
    return total


def in_16_bits(x):
    """(ints, scale) of the contract."""
    top = np.abs(x).max()
    if top < np.float32(2.0**-100):
        return np.zeros(x.shape, np.int64), np.float32(0)
    return np.rint(x * (np.float32(32767) / top)).astype(np.int64), top / np.float32(32767)


def blocks_of(memory, width, part):
    """(scales float32 (256,), ints (256, n)) of every block of q8_0 memory."""
    for x in range(0, width, 32):
        n = min(32, width - x)
        at = x // 32 * CHUNK * 34
        d = memory[at : at + 2 * CHUNK].view(np.float16) if part == "value" else np.ascontiguousarray(
            memory.reshape(CHUNK // 16, -1)[:, x // 32 * 544 : x // 32 * 544 + 32]).view(np.float16).reshape(-1)  # fmt: skip
        d = d.astype(np.float32)
        numbers = decoded(memory, "q8_0", width, part)[:, x : x + n]
        yield d, np.rint(np.divide(numbers, d[:, None], out=np.zeros_like(numbers), where=d[:, None] > 0)).astype(np.int64)


def test_attend_follows_the_order_of_the_contract(vec, kv_type):
    case = Case(7, 9, 80, 48, kv_type)
    q, lo, hi = case.q, case.lo, case.hi
    keys, values = vec.store(kv_type, "key", case.k), vec.store(kv_type, "value", case.v)
    for j, (m, den, acc) in enumerate(zip(*vec.attend(kv_type, q, keys, values, 48, lo, hi), strict=True)):
        if kv_type in FLOATS:
            s = fma_chain(q[j][:, None], case.k.T)
        else:
            parts = [(in_16_bits(q[j, 32 * b : 32 * b + 32]), d, ints) for b, (d, ints) in enumerate(blocks_of(keys, 80, "key"))]
            s = fma_chain(np.array([(ints @ xq).astype(np.float32) for (xq, _), _, ints in parts]),
                          np.array([d * xd for (_, xd), d, _ in parts]))
        s[: lo[j]] = s[hi[j] :] = -np.inf
        p = vec.exp(s - s.max())
        lanes = np.zeros(16, np.float32)
        for block in p.reshape(-1, 16):
            lanes += block
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        same(m, s.max())
        same(den, lanes[0])
        if kv_type in FLOATS:
            same(acc, fma_chain(p[:, None], case.v))
        else:
            for b, (d, ints) in enumerate(blocks_of(values, 48, "value")):
                wq, wd = in_16_bits(p * d)
                same(acc[32 * b : 32 * b + 32], (wq @ ints).astype(np.float32) * wd)


def test_attend_of_a_query_does_not_depend_on_its_company(vec, kv_type):
    case = Case(8, 40, 64, 96, kv_type)
    kept = case.keep(vec)
    whole = case.run(vec, kept=kept)
    for part in [slice(j, j + 1) for j in range(40)] + [slice(a, a + n) for n in (2, 3, 4, 5, 6, 9, 31) for a in (0, 7)]:
        for g, w in zip(case.run(vec, some=part, kept=kept), whole, strict=True):
            same(g, w[part])


def test_attend_does_not_see_masked_positions(vec, kv_type):
    """Other finite memory at masked positions, and anything at all where no query looks, changes no bit."""
    case = Case(9, 12, 64, 64, kv_type)
    case.lo, case.hi = case.lo % 100 + 30, case.hi % 100 + 131
    case.lo[3], case.hi[3] = 77, 78
    first, k, v = case.run(vec), case.k, case.v
    for j in range(12):
        case.k, case.v = k.copy(), v.copy()
        for x in (case.k, case.v):
            x[: case.lo[j]], x[case.hi[j] :] = 60000, -60000
        for g, w in zip(case.run(vec), first, strict=True):
            same(g[j], w[j])
    case.k, case.v = k, v
    for byte in (0xFF, 0x7C, 0x80):  # NaNs; infinities and large numbers
        for g, w in zip(case.run(vec, kept=case.keep(vec, range(case.lo.min(), case.hi.max()), byte)), first, strict=True):
            same(g, w)


def test_attend_with_far_scores(vec, kv_type):
    """Probabilities that underflow count as nothing."""
    case = Case(10, 8, 32, 32, kv_type)
    case.q *= 100
    (m, den, acc), want = case.run(vec), case.twin()
    if kv_type in ("q8_0", "f32"):  # a query's last bit, or a product's, moves scores of this size
        np.testing.assert_allclose(m, want[0], rtol=1e-4)
        np.testing.assert_allclose(acc / den[:, None], want[2] / want[1][:, None], atol=0.02)
    else:
        case.check((m / 100, den, acc), (want[0] / 100, *want[1:]))
    for g, w in zip((m, den, acc), case.run(SCALAR), strict=True):
        same(g, w)


def test_attend_of_nothing_but_zeros(vec, kv_type):
    case = Case(13, 5, 48, 48, kv_type)
    case.q[1], case.q[2] = 0, 2.0**-120
    case.v[:] = 0
    m, den, acc = case.run(vec)
    assert m[1] == 0 and den[1] == case.hi[1] - case.lo[1] and (acc == 0).all() and not np.signbit(acc).any()


def test_attend_sums_that_round_to_minus_zero(vec):
    """1 - 1.16 units of the least subnormal rounds to -0, which adding a masked position would turn into +0."""
    case = Case(12, 2, 16, 16, "f16")
    case.q[:], case.q[:, 0] = 0, 1
    case.k[:], case.v[:] = 0, 1
    case.k[:3, 0], case.v[0], case.v[1], case.v[2] = (0, -87.25, -86.5), 0, 2.0**-24, -(2.0**-24)
    case.lo, case.hi = np.array([0, 0]), np.array([3, 9])
    both, alone = case.run(vec), case.run(vec, some=slice(0, 1))
    assert (alone[2] == 0).all()
    same(both[2][:1], alone[2])


@pytest.mark.parametrize("ev", [16, 64, 100])
def test_merge(vec, kv_type, ev):
    """Chunks folded one by one give the attention over all of them; the float operations are the contract's."""
    cases = [Case(20 + i, 1, 48, 112, kv_type) for i in range(5)]
    part = (np.float32(-np.inf), np.float32(0), np.zeros(ev, np.float32))
    for case in cases:
        case.q = cases[0].q
        m, den, acc = case.run(vec)
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
    whole = Case(20, 1, 48, 112, kv_type)
    whole.k, whole.v = (np.concatenate([getattr(c, x)[c.lo[0] : c.hi[0]] for c in cases]) for x in "kv")
    whole.lo, whole.hi = [0], [len(whole.k)]
    m, den, acc = whole.twin()
    whole.check(tuple(np.array([x]) for x in part), (m, den, acc[:, :ev]))


def test_a_query_that_sees_nothing_leaves_the_others_alone(vec, kv_type):
    case = Case(11, 4, 32, 32, kv_type)
    first = case.run(vec)
    case.lo[2] = case.hi[2] = 50
    got = case.run(vec)
    for g, w in zip(got, first, strict=True):
        same(g[[0, 1, 3]], w[[0, 1, 3]])
    assert got[0][2] == -np.inf and got[1][2] == 0 and (got[2][2] == 0).all()
    none = tuple(g[2] for g in got)
    for part in (tuple(g[0] for g in first), none):
        for g, w in zip(vec.merge(part, none), part, strict=True):
            same(g, w)
