"""Matmul kernels: every table gives the scalar table's bits, and the scalar table gives the right numbers."""

import ctypes

import file_types  # noqa: F401  (teaches gguf)
import gguf
import numpy as np
import pytest
from _ckernels import (
    DOTS,
    FLOAT,
    LONG_SLAB,
    MIN,
    NESTED,
    NESTED_MIN,
    ROWS,
    SLAB,
    SLAB_BYTES,
    TYPES,
    Act,
    Panel,
    address,
    aligned,
    blocks_of,
    formats,
    library,
    pack,
    put_scale,
    random_blocks,
    scales_of,
    tables,
    without,
)
from gguf.quants import dequantize

ISAS = list(tables())
QUANTISED = TYPES[3:]
OTHERS = [name for name in ISAS if name != "scalar"]


class Activations:
    """Activations (T, K) in every form a kernel may ask for; quantised ones stand for d * q."""

    def __init__(self, rng, n_tokens, k, q=None):
        self.k, self.n_tokens = k, n_tokens
        self.f = rng.normal(size=(n_tokens, k)).astype(np.float32)
        self.q = self.d = self.m = self.s = None
        if k % 32 == 0:
            drawn = rng.integers(-127, 128, (n_tokens, k)).astype(np.int8)
            self.q = drawn if q is None else np.broadcast_to(q, drawn.shape).astype(np.int8, order="C")
            self.d = rng.uniform(1e-3, 0.1, (n_tokens, k // 32)).astype(np.float32)
            sums = self.q.reshape(n_tokens, -1, 16).sum(-1, dtype=np.int16)
            self.s = np.ascontiguousarray(sums)
            self.m = self.d * sums.reshape(n_tokens, -1, 2).sum(-1, dtype=np.int32).astype(np.float32)

    def act(self, first=0):
        """ni_act of the tokens from `first` on."""
        parts = (None if part is None else address(part[first:]) for part in (self.f, self.q, self.d, self.m, self.s))
        return Act(self.k, *parts)

    def values(self, name):
        """float64 (T, K): what the kernel multiplies with."""
        if formats()[name].kind == FLOAT:
            return self.f.astype(np.float64)
        return self.q.astype(np.float64) * np.repeat(self.d.astype(np.float64), 32, axis=1)


def lengths(name):
    block = formats()[name].block
    known = {1: [1, 7, 32, 33, 256, 576, 2048], 32: [32, 64, 256, 288, 576, 2048], 64: [64, 192, 256, 320, 576, 2048]}
    return known.get(block) or [block, 3 * block, 512, 2048]


def dot(isa, name, packed, x, token):
    out = np.full(len(packed) * ROWS, np.nan, np.float32)
    tables()[isa].dot[TYPES.index(name)](address(packed), len(packed), ctypes.byref(x.act(token)), address(out))
    return out


def dots(isa, name, packed, x, n_tokens):
    """The last so many tokens in one call, last first, their rows apart; None where the table has no such kernel."""
    kernel = tables()[isa].dots[TYPES.index(name)]
    if not kernel:
        return None
    out = np.full((n_tokens, len(packed) * ROWS + 7), np.nan, np.float32)
    tokens = range(x.n_tokens - 1, x.n_tokens - 1 - n_tokens, -1)
    acts = (Act * n_tokens)(*(x.act(t) for t in tokens))
    kernel(address(packed), len(packed), acts, n_tokens, (ctypes.c_void_p * n_tokens)(*(address(row) for row in out)))
    assert np.isnan(out[:, len(packed) * ROWS :]).all(), f"{isa} dots {name} write too far"
    return out[::-1, : len(packed) * ROWS]


def make_panel(name):
    """Buffers of one panel, poisoned, and the ni_panel that names them."""
    sub = formats()[name].sub
    longest = LONG_SLAB if sub == 32 else SLAB
    blocks = longest // sub if sub else 0
    q = aligned(longest * ROWS)
    scale, low = (aligned(blocks * ROWS * 4).view(np.float32) for _ in range(2))
    f = aligned(SLAB * ROWS * 4).view(np.float32)
    buffers = (q, scale, low, f)
    return buffers, Panel(*map(address, buffers))


def unpack(isa, name, group, k0, nk):
    """The parts of a panel that the contract defines for this type."""
    buffers, panel = make_panel(name)
    tables()[isa].unpack[TYPES.index(name)](address(group), k0, nk, ctypes.byref(panel))
    q, scale, low, f = buffers
    fmt = formats()[name]
    if fmt.kind == FLOAT:
        return panel, buffers, {"f": f[: nk * ROWS]}
    parts = {"q": q[: nk * ROWS], "scale": scale[: nk // fmt.sub * ROWS]}
    if fmt.kind == MIN:
        parts["min"] = low[: nk // fmt.sub * ROWS]
    if fmt.kind in (NESTED, NESTED_MIN):
        parts["min"] = low[:ROWS]
    if fmt.kind == NESTED_MIN:
        parts["f"] = f[: (1 + nk // fmt.sub) * ROWS]
    return panel, buffers, parts


def gather(isa, name, act, k0, nk, n_tokens):
    """The slab of activations that the table's gemm reads, and the memory it lies in."""
    memory, part = aligned(n_tokens * SLAB_BYTES + 64), Act()
    tables()[isa].gather[TYPES.index(name)](ctypes.byref(act), k0, nk, n_tokens, address(memory), ctypes.byref(part))
    assert (memory[n_tokens * SLAB_BYTES :] == 0xA5).all()
    return part, memory


def gemm(isa, name, packed, x, chunk=None, slab=SLAB):
    """y (T, rows), the sums of a group carried from slab to slab; at most `chunk` tokens a call."""
    chunk = chunk or x.n_tokens
    out = np.empty((x.n_tokens, len(packed) * ROWS), np.float32)
    for g, group in enumerate(packed):
        acc, accm = (aligned(x.n_tokens * ROWS * 4).view(np.float32) for _ in range(2))
        acc[:] = accm[:] = 0
        for k0 in range(0, x.k, slab):
            nk = min(slab, x.k - k0)
            panel, buffers, _ = unpack(isa, name, group, k0, nk)
            for t in range(0, x.n_tokens, chunk):
                sums = (address(part[t * ROWS :]) for part in (acc, accm))
                n = min(chunk, x.n_tokens - t)
                part, memory = gather(isa, name, x.act(t), k0, nk, n)
                tables()[isa].gemm[TYPES.index(name)](ctypes.byref(panel), 0, nk, ctypes.byref(part), n, *sums)
                del memory
            del buffers  # not before: the panel holds bare addresses
        total = acc + accm if formats()[name].kind == MIN else acc
        out[:, g * ROWS : (g + 1) * ROWS] = total.reshape(-1, ROWS)
    return out


def assert_same_bits(found, wanted, what):
    differ = found.view(np.uint32) != wanted.view(np.uint32)
    assert not differ.any(), (
        f"{what}: {differ.sum()} of {differ.size} differ, first {found[differ][0]!r}, "
        f"wanted {wanted[differ][0]!r}, at {np.argwhere(differ)[0]}"
    )


def reference(name, rows, x):
    """float64 (T, rows): y and the sum of |w x|, the measure of its error."""
    w = dequantize(rows, gguf.GGMLQuantizationType[name]).reshape(len(rows), x.k).astype(np.float64)
    values = x.values(name)
    return values @ w.T, np.abs(values) @ np.abs(w).T


def check_all(name, rows, x, isas=ISAS):
    """Every table, dot and gemm, against the scalar table's gemm; that against float64."""
    packed = pack(name, rows)
    wanted = gemm("scalar", name, packed, x)
    right, magnitude = reference(name, rows, x)
    assert (np.abs(wanted[:, : len(rows)] - right) <= 1e-5 * magnitude + 1e-30).all()
    for isa in isas:
        if isa != "scalar":
            for slab in {SLAB, max(SLAB, tables()[isa].slab[TYPES.index(name)])}:
                found = gemm(isa, name, packed, x, slab=slab)
                assert_same_bits(found, wanted, f"{isa} gemm {name} K={x.k} T={x.n_tokens} slab={slab}")
        for t in {0, x.n_tokens - 1}:
            assert_same_bits(dot(isa, name, packed, x, t), wanted[t], f"{isa} dot {name} K={x.k} n={len(packed)}")
        for n in range(2, min(DOTS, x.n_tokens) + 1):
            found = dots(isa, name, packed, x, n)
            if found is not None:
                assert_same_bits(found, wanted[-n:], f"{isa} dots {name} K={x.k} n={len(packed)} of {n} tokens")


@pytest.mark.parametrize("isa", ISAS)
def test_slabs_fit_panels(isa):
    for name, slab in zip(TYPES, tables()[isa].slab):
        longest = LONG_SLAB if formats()[name].sub == 32 else SLAB
        assert slab % SLAB == 0 and 0 <= slab <= longest, name


def test_tables_are_found_and_selected():
    lib = library()
    assert ISAS[-1] == "scalar"
    current = ctypes.c_void_p.in_dll(lib, "ni_k")
    for isa in reversed(ISAS):
        assert lib.ni_isa_select(isa.encode()) == 0
        assert tables()[isa].name.decode() == isa
        assert current.value == ctypes.addressof(tables()[isa])
    assert lib.ni_isa_select(b"mmx") == -1 and lib.ni_isa_select(b"") == -1
    assert current.value == ctypes.addressof(tables()[ISAS[0]])  # a refusal changes nothing
    assert lib.ni_isa_select(b"scalar") == 0 and lib.ni_isa_select(None) == 0
    assert current.value == ctypes.addressof(tables()[ISAS[0]])


def where(function):
    """Address of a slot's kernel."""
    return ctypes.cast(function, ctypes.c_void_p).value


def test_every_slot_is_filled():
    """What the tables' files leave empty cross/compare.c says, for all tables (_compare.EMPTY); dots may be."""
    for table in tables().values():
        for kind in (table.dot, table.unpack, table.gather, table.gemm):
            assert all(map(where, kind))


@pytest.mark.parametrize("slots", [("dot",), ("unpack",), ("gemm",), ("dot", "unpack", "gemm")], ids="+".join)
@pytest.mark.parametrize("isa", OTHERS)
def test_empty_slots_are_filled_with_kernels_of_the_same_bits(isa, slots):
    """One type without its kernels takes those of its like; all types without them take the scalar table's."""
    rng = np.random.default_rng(17)
    for name in TYPES:
        k = {1: 300, 32: 576, 64: 576, 128: 640}.get(formats()[name].block, 768)
        rows, x = random_blocks(rng, name, 3 * ROWS - 5, k), Activations(rng, 7, k)
        for names in ([name], TYPES):
            with without(isa, slots, names) as table:
                check_all(name, rows, x, [isa])
                i = TYPES.index(name)
                assert "dot" not in slots or table.few[i] == 0
                assert (where(table.unpack[i]) == where(tables()["scalar"].unpack[i])) == ("unpack" in slots)
                if "gemm" in slots and names is TYPES:
                    assert where(table.gemm[i]) == where(tables()["scalar"].gemm[i]) and table.slab[i] == 0
                    assert where(table.gather[i]) == where(tables()["scalar"].gather[i])


@pytest.mark.parametrize("isa", OTHERS)
@pytest.mark.parametrize("empty, lender", [
    ("F16", "F32"), ("Q4_1", "Q4_K"), ("Q4_K", "Q4_1"), ("Q5_K", "Q5_1"), ("Q4_1 Q4_K", "Q5_1"),
    ("Q5_1 Q5_K", None), ("Q4_0", None), ("Q5_0", "IQ3_S"), ("Q6_K", None),
    ("Q2_K", None), ("Q3_K", None), ("Q1_0", "TQ1_0"), ("TQ2_0", "Q2_0"), ("Q2_0", "TQ2_0"), ("TQ2_0 Q2_0", None),
    ("Q8_0", "IQ4_NL"), ("IQ4_XS", "Q8_0"), ("Q6_0", "Q8_0"),
    ("Q8_0 IQ4_NL IQ4_XS Q6_0 IQ4_KS IQ5_KS IQ3_KS IQ2_KS IQ2_KL IQ4_KSS IQ1_KT IQ2_KT IQ3_KT IQ4_KT", None),
    ("IQ6_K", "IQ4_K"), ("IQ4_K IQ5_K IQ6_K IQ3_K IQ2_K", None), ("MXFP4", None), ("NVFP4", None),
    ("IQ3_S IQ1_S", "Q5_0"), ("IQ2_XXS", "IQ3_XXS"), ("IQ3_XXS", None), ("IQ2_S", "IQ2_XS"), ("IQ2_S IQ2_XS", None), ("IQ1_M", "Q6_K"),
])  # fmt: skip
def test_who_lends_a_gemm(isa, empty, lender):
    """Panels must be alike in kind, sub-blocks and offset, and the lender's quants reach as far; narrow lenders go first."""
    empty = empty.split()
    with without(isa, ["gemm"], empty) as table:
        for name in empty:
            own, other = TYPES.index(name), TYPES.index(lender or name)
            from_table = table if lender else tables()["scalar"]
            assert where(table.gemm[own]) == where(from_table.gemm[other])
            assert where(table.gather[own]) == where(from_table.gather[other])
            assert table.slab[own] == from_table.slab[other]


@pytest.mark.parametrize("name", TYPES)
def test_sizes(name):
    """Each K, each number of groups, each number of tokens; the last group is not always full."""
    rng = np.random.default_rng(10)
    shapes = [(k, 1 + i % 7, 1 + (5 * i) % 13) for i, k in enumerate(lengths(name))]
    shapes += [(lengths(name)[0], groups, 2) for groups in range(1, 8)]
    shapes += [(lengths(name)[-2], 1, n_tokens) for n_tokens in range(1, 14)]
    for k, n_groups, n_tokens in shapes:
        rows = random_blocks(rng, name, n_groups * ROWS - k % 3, k)
        check_all(name, rows, Activations(rng, n_tokens, k))


@pytest.mark.parametrize("name", QUANTISED)
def test_many_tokens(name):
    """As many as a panel meets at a time: kernels that go through them in parts of their own find every part."""
    rng = np.random.default_rng(20)
    check_all(name, random_blocks(rng, name, ROWS, 512), Activations(rng, 128, 512))


@pytest.mark.parametrize("name", QUANTISED)
def test_long_rows(name):
    """Longer than what any dot prepares of the activations at once."""
    rng = np.random.default_rng(18)
    k = 129 * 256
    check_all(name, random_blocks(rng, name, 2 * ROWS, k), Activations(rng, 1, k))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", TYPES)
def test_chunks_of_tokens_change_no_bits(isa, name):
    """A token's sums do not depend on who shares its call; the last slab is short where the type allows it."""
    rng = np.random.default_rng(11)
    k = {1: 801, 32: 800, 64: 832, 128: 896}.get(formats()[name].block, 1024)
    x = Activations(rng, 11, k)
    packed = pack(name, random_blocks(rng, name, 2 * ROWS, k))
    wanted = np.stack([dot(isa, name, packed, x, t) for t in range(11)])
    for chunk in (1, 2, 3, 4, 5, 7, 11):
        assert_same_bits(gemm(isa, name, packed, x, chunk), wanted, f"{isa} {name} chunks of {chunk}")


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("q", [127, -127, (127, -127), 0], ids=["max", "min", "alternating", "zero"])
@pytest.mark.parametrize("byte", [0x00, 0x77, 0x7F, 0x80, 0xFF])
def test_extreme_quants(name, byte, q):
    """Quants and packed scales at their ends against the largest activations: 16-bit sums would saturate.
    For Q8_0 the byte 0x80 is -128, which has no positive twin; 0x77 are the largest values of MXFP4 and NVFP4."""
    rng = np.random.default_rng(12)
    k = 512
    rows = random_blocks(rng, name, ROWS, k)
    blocks = blocks_of(name, rows)
    scales = scales_of(name, blocks)
    blocks[:] = byte
    for i, d in enumerate(scales):
        put_scale(name, blocks, i, d)
    check_all(name, rows, Activations(rng, 5, k, np.resize(q, k)))


@pytest.mark.parametrize("sc", [-128, 127])
@pytest.mark.parametrize("q", [127, -127])
def test_largest_sums_of_q6_k(sc, q):
    """All q - 32 are -32: sums of 8 products just fit 16 bits, sums of 32 with their scales just fit a float."""
    rng = np.random.default_rng(16)
    rows = random_blocks(rng, "Q6_K", ROWS, 512)
    blocks = rows.reshape(-1, 210)
    blocks[:, :192] = 0
    blocks[:, 192:208] = np.int8(sc).view(np.uint8)
    check_all("Q6_K", rows, Activations(rng, 5, 512, np.full(512, q)))
    blocks[:, :96:3] = 0xFF  # some at the other end: sums wrap on the way
    check_all("Q6_K", rows, Activations(rng, 5, 512, np.full(512, q)))


@pytest.mark.parametrize("sc", [0x00, 0xFF], ids=["-32", "31"])
@pytest.mark.parametrize("q", [127, -127])
def test_largest_sums_of_q3_k(sc, q):
    """Products sc * (q - 4) at both ends, -124 and 128; sums of 8 in eighths just fit 16 bits."""
    rng = np.random.default_rng(18)
    rows = random_blocks(rng, "Q3_K", ROWS, 512)
    blocks = rows.reshape(-1, 110)
    blocks[:, 96:108] = sc
    for quants in (0x00, 0xFF):
        blocks[:, :96] = quants
        check_all("Q3_K", rows, Activations(rng, 5, 512, np.full(512, q)))
        blocks[:, :96:5] = 0xFF - quants  # some at the other end: sums wrap on the way
        check_all("Q3_K", rows, Activations(rng, 5, 512, np.full(512, q)))


@pytest.mark.parametrize("q", [127, -127])
def test_largest_sums_of_q2_k(q):
    """All scales, minimums and quants at their greatest, and each of them alone."""
    rng = np.random.default_rng(19)
    rows = random_blocks(rng, "Q2_K", ROWS, 512)
    blocks = rows.reshape(-1, 84)
    for scales, quants in ((0xFF, 0xFF), (0xF0, 0xFF), (0x0F, 0xFF), (0xFF, 0x00)):
        blocks[:, :16], blocks[:, 16:80] = scales, quants
        check_all("Q2_K", rows, Activations(rng, 5, 512, np.full(512, q)))


@pytest.mark.parametrize("name", QUANTISED)
def test_extreme_scales(name):
    """Largest, subnormal, negative and zero scales; whole blocks of zero bytes among them."""
    rng = np.random.default_rng(13)
    for scales in ([65504.0, -65504.0], [6e-8, -6e-8, 3e-5], [0.0, -0.0], [65504.0, 6e-8, 0.0, -1.0]):
        rows = random_blocks(rng, name, 2 * ROWS, 768, np.array(scales, np.float16))
        if formats()[name].head_bytes:
            rows[::3] = 0
        else:
            blocks_of(name, rows)[::3] = 0
        check_all(name, rows, Activations(rng, 4, 768))


@pytest.mark.parametrize("isa", OTHERS)
@pytest.mark.parametrize("name", TYPES)
def test_panels_are_equal(isa, name):
    """Panels of one table feed the gemm of another, so that a table may borrow slots."""
    rng = np.random.default_rng(14)
    for k in lengths(name):
        group = pack(name, random_blocks(rng, name, 16, k))[0]
        for k0 in range(0, k, SLAB):
            nk = min(SLAB, k - k0)
            found, wanted = (unpack(table, name, group, k0, nk)[2] for table in (isa, "scalar"))
            assert found.keys() == wanted.keys()
            for part in found:
                assert np.array_equal(found[part].view(np.uint8), wanted[part].view(np.uint8)), (part, k, k0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", TYPES)
def test_unpack_and_gemm_stay_in_bounds(isa, name):
    rng = np.random.default_rng(15)
    nk = formats()[name].block if formats()[name].block > 1 else 5
    fmt = formats()[name]
    group = pack(name, random_blocks(rng, name, 16, nk))[0]
    panel, (q, scale, _, f), _ = unpack(isa, name, group, 0, nk)
    poison = 0xA5
    if fmt.kind == FLOAT:
        assert (f.view(np.uint8)[nk * ROWS * 4 :] == poison).all()
    else:
        assert (q[nk * ROWS :] == poison).all()
        assert (scale.view(np.uint8)[nk // fmt.sub * ROWS * 4 :] == poison).all()
    x = Activations(rng, 3, nk)
    acc, accm = aligned(4 * ROWS * 4), aligned(4 * ROWS * 4)
    acc[: 3 * ROWS * 4] = accm[: 3 * ROWS * 4] = 0
    part, memory = gather(isa, name, x.act(), 0, nk, 3)
    tables()[isa].gemm[TYPES.index(name)](ctypes.byref(panel), 0, nk, ctypes.byref(part), 3, address(acc), address(accm))
    del memory  # not before: the slab holds bare addresses
    assert (acc[3 * ROWS * 4 :] == poison).all() and (accm[3 * ROWS * 4 :] == poison).all()
