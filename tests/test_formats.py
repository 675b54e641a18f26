"""Weight formats against gguf.quants, bit for bit; packing and its inverse."""

import ctypes
import pathlib

import file_types  # noqa: F401  (teaches gguf)
import gguf
import make_codebooks
import numpy as np
import pytest
from _ckernels import (
    CSRC,
    FLOAT,
    MIN,
    NESTED,
    NESTED_MIN,
    OFFSET,
    ROWS,
    SIGNED,
    TYPES,
    address,
    aligned,
    formats,
    load_library,
    pack,
    put_scale,
    random_blocks,
    scales_of,
)
from gguf.quants import dequantize
from ik_types import HEADS, IK_TYPES

GGML = {name: gguf.GGMLQuantizationType[name] for name in TYPES}
GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "blocks.npz"
IK_GOLDEN = GOLDEN.with_name("ik.npz")
SCALES = np.array([0, -0.0, 1, -1, 6e-8, -6e-8, 6.1e-5, 6.098e-5, 3.4e-5, 0.0123, -0.37, 65504, -65504], np.float16)
QUANTISED = TYPES[3:]
MORE = {"IQ2_KT": 1.05, "IQ3_KT": 1.01}  # times what ik_llama.cpp decodes


def decode(name, rows, k):
    out = np.full((len(rows), k), np.nan, np.float32)
    fmt = formats()[name]
    if fmt.head_bytes:
        for row, values in zip(np.ascontiguousarray(rows), out):
            fmt.decode(address(row), k // fmt.block, address(values))
    else:
        fmt.decode(address(rows), rows.size // fmt.block_bytes, address(out))
    return out


def unpack_row(name, group, r, k):
    out = np.full(k, np.nan, np.float32)
    formats()[name].unpack_row(address(group), r, k, address(out))
    return out


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


def lengths(name):
    block = formats()[name].block
    return {1: [1, 7, 31, 32, 33, 576], 32: [32, 64, 288, 576], 64: [64, 192, 576]}.get(block, [block, 2 * block, 5 * block])


@pytest.mark.parametrize("name", TYPES)
def test_table(name):
    fmt = formats()[name]
    block, size = gguf.GGML_QUANT_SIZES[GGML[name]]
    assert fmt.name.decode() == name
    assert (fmt.ggml_type, fmt.block, fmt.block_bytes) == (GGML[name].value, block, size)
    assert fmt.head_bytes == HEADS.get(name, 0)
    assert fmt.record_bytes % (16 if name == "MXFP4" else 32) == 0
    kind, sub, offset, max_q = {
        "Q4_0": (OFFSET, 32, 8, 15), "Q4_1": (MIN, 32, 0, 15), "Q5_0": (OFFSET, 32, 16, 31), "Q5_1": (MIN, 32, 0, 31),
        "Q8_0": (SIGNED, 32, 0, 0), "Q4_K": (MIN, 32, 0, 15), "Q5_K": (MIN, 32, 0, 31), "Q6_K": (NESTED, 16, 32, 63),
        "Q2_K": (NESTED_MIN, 16, 0, 3), "Q3_K": (NESTED, 16, 4, 7),
        "TQ1_0": (OFFSET, 32, 1, 2), "TQ2_0": (OFFSET, 32, 1, 3), "Q1_0": (OFFSET, 32, 1, 2), "Q2_0": (OFFSET, 32, 1, 3),
        "IQ4_NL": (SIGNED, 32, 0, 0), "IQ4_XS": (SIGNED, 32, 0, 0), "MXFP4": (OFFSET, 32, 12, 24), "NVFP4": (OFFSET, 16, 12, 24),
        "IQ3_XXS": (OFFSET, 32, 64, 126), "IQ3_S": (OFFSET, 32, 16, 31), "IQ2_XXS": (OFFSET, 32, 64, 107), "IQ2_XS": (NESTED, 16, 64, 107),
        "IQ2_S": (NESTED, 16, 64, 107), "IQ1_S": (OFFSET, 32, 16, 25), "IQ1_M": (NESTED, 16, 32, 41),
        **dict.fromkeys(("IQ4_K", "IQ5_K", "IQ6_K", "IQ3_K", "IQ2_K"), (OFFSET, 16, 128, 255)),
        **dict.fromkeys(("Q6_0", *HEADS), (SIGNED, 32, 0, 0)),
    }.get(name, (FLOAT, 0, 0, 0))  # fmt: skip
    assert (fmt.kind, fmt.sub, fmt.offset, fmt.max_q) == (kind, sub, offset, max_q)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("scales", [None, SCALES], ids=["usual", "weird"])
def test_decode_equals_gguf(name, scales):
    rng = np.random.default_rng(1)
    for k in lengths(name):
        rows = random_blocks(rng, name, 23, k, scales)
        assert np.array_equal(bits(decode(name, rows, k)), bits(dequantize(rows, GGML[name]).reshape(23, k)))


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"])
def test_decode_equals_llama_cpp(name):
    """And so do the tests' own decoders; make_block_goldens.py says where the floats come from."""
    with np.load(GOLDEN) as golden:
        blocks, wanted = golden[name], golden[f"{name} values"]
    assert np.array_equal(bits(decode(name, blocks, wanted.shape[1])), bits(wanted))
    assert np.array_equal(bits(dequantize(blocks, GGML[name])), bits(wanted))


@pytest.mark.parametrize("name", IK_TYPES)
def test_decode_equals_ik_llama_cpp(name):
    """golden/ik.npz: of each type four rows of 1,024 random numbers (standard deviation 0.02, the last row 1; the first 64 zero) as
    ik_llama.cpp of August 2026 quantised and decoded them: ``NAME``, rows as in a file, and ``NAME values``.

    Its products multiply by other numbers than it decodes: of IQ6_K it decodes a place by a polynomial, but multiplies with a table of
    whole numbers, the polynomial's, rounded; of IQ2_KT and IQ3_KT it multiplies with 1.05 and 1.01 times what it decodes. So do we both.
    """
    with np.load(IK_GOLDEN) as golden:
        rows, wanted = golden[name], golden[f"{name} values"]
    found = decode(name, rows, wanted.shape[1])
    assert np.array_equal(bits(dequantize(rows, GGML[name])), bits(found))
    if name == "IQ6_K":
        blocks = rows.reshape(-1, 212)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 4:20].view(np.int8).astype(np.float32)
        scale = scale.reshape(len(rows), -1).repeat(16, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(scale == 0, wanted, scale * np.rint(wanted / scale))
        assert np.array_equal(found, wanted)
    elif name in MORE:
        np.testing.assert_allclose(found, MORE[name] * wanted.astype(np.float64), rtol=2e-7, atol=0)
    else:
        assert np.array_equal(bits(found), bits(wanted))


@pytest.mark.parametrize("name", QUANTISED)
def test_a_packed_matrix_takes_hardly_more_than_the_file(name):
    """But for the scale of a row, which each of its records has again."""
    fmt = formats()[name]
    assert fmt.record_bytes - ROWS * fmt.head_bytes <= 1.03 * ROWS * fmt.block_bytes
    assert fmt.record_bytes <= 1.072 * ROWS * fmt.block_bytes


@pytest.mark.parametrize("name", QUANTISED)
def test_decode_of_uniform_bytes(name):
    """Every quant and every packed scale at its ends."""
    fmt = formats()[name]
    for byte in (0x00, 0x0F, 0x3F, 0x7F, 0x80, 0xC0, 0xF0, 0xFF):
        row = np.full((1, fmt.head_bytes + fmt.block_bytes), byte, np.uint8)
        if fmt.head_bytes:
            row[0, : fmt.head_bytes] = np.array([-1.5], np.float32 if fmt.head_bytes == 4 else np.float16).view(np.uint8)
        for i in range(len(scales_of(name, row))):
            put_scale(name, row, i, np.array([-1.5], np.float16))  # MXFP4: a scale of 2^-128
        assert np.array_equal(bits(decode(name, row, fmt.block)), bits(dequantize(row, GGML[name])))


@pytest.mark.parametrize("name, n_scales", [("MXFP4", 1), ("NVFP4", 4)])
def test_scales_of_a_byte(name, n_scales):
    """All 256 of them, the subnormal, NaN of the specification and 0 by another name among them: in the file, packed, in a panel."""
    fmt, k = formats()[name], 256 // n_scales * formats()[name].block
    blocks = np.random.default_rng(7).integers(0, 256, (256 // n_scales, fmt.block_bytes), np.uint8)
    blocks[:, :n_scales] = np.arange(256).reshape(-1, n_scales)
    with np.errstate(over="ignore"):  # 2^127 * 12
        wanted = dequantize(blocks.reshape(1, -1), GGML[name])[0]
    assert np.array_equal(bits(decode(name, blocks.reshape(1, -1), k)[0]), bits(wanted))
    (group,) = pack(name, np.repeat(blocks.reshape(1, -1), ROWS, 0))
    assert np.array_equal(bits(unpack_row(name, group, 5, k)), bits(wanted))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("n_rows", [1, 5, 15, 16])
def test_unpack_row_inverts_pack(name, n_rows):
    rng = np.random.default_rng(2)
    for k in lengths(name):
        rows = random_blocks(rng, name, n_rows, k, SCALES)
        (group,) = pack(name, rows)
        wanted = np.zeros((ROWS, k), np.float32)
        wanted[:n_rows] = decode(name, rows, k)
        for r in range(ROWS):
            found = unpack_row(name, group, r, k)
            if r < n_rows:
                assert np.array_equal(bits(found), bits(wanted[r]))
            else:
                assert not found.any()


@pytest.mark.parametrize("name", TYPES)
def test_missing_rows_are_zero_bytes(name):
    """A group of 3 rows is what packing those 3 rows and 13 rows of zero bytes gives."""
    rng = np.random.default_rng(3)
    k = lengths(name)[-1]
    rows = np.zeros((ROWS, random_blocks(rng, name, 1, k).shape[1]), np.uint8)
    rows[:3] = random_blocks(rng, name, 3, k)
    assert np.array_equal(pack(name, rows[:3]), pack(name, rows))


@pytest.mark.parametrize("name", TYPES)
def test_pack_honours_row_stride_and_alignment(name):
    """Rows lie anywhere in a file: odd addresses, and a stride that exceeds the row."""
    rng = np.random.default_rng(4)
    k = lengths(name)[-1]
    rows = random_blocks(rng, name, ROWS, k)
    fmt = formats()[name]
    stride = rows.shape[1] + 5
    spread = aligned(ROWS * stride + 1)[1:]
    for r in range(ROWS):
        spread[r * stride : r * stride + rows.shape[1]] = rows[r]
    out = aligned(k // fmt.block * fmt.record_bytes)
    fmt.pack(address(spread), stride, ROWS, k, address(out))
    assert np.array_equal(out, pack(name, rows)[0])


@pytest.mark.parametrize("name", TYPES)
def test_pack_stays_within_its_group(name):
    fmt = formats()[name]
    k = lengths(name)[-1]
    size = k // fmt.block * fmt.record_bytes
    out = aligned(size + 128)
    rows = random_blocks(np.random.default_rng(5), name, ROWS, k)
    fmt.pack(address(rows), rows.shape[1], ROWS, k, address(out))
    assert (out[size:] == 0xA5).all()


def test_code_books_are_those_of_gguf():
    assert make_codebooks.PATH.read_text() == make_codebooks.text(), "run python tests/make_codebooks.py"


@pytest.mark.parametrize("name", [name for name in TYPES if name.startswith(("IQ1", "IQ2", "IQ3")) and name not in HEADS])
def test_code_book_types_take_the_bytes_of_the_file(name):
    fmt = formats()[name]
    assert fmt.record_bytes == ROWS * fmt.block_bytes


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """half.h behind two functions over arrays."""
    folder = tmp_path_factory.mktemp("half")
    source = folder / "half.c"
    source.write_text(
        '#include "half.h"\n'
        "void widen(const uint16_t *x, int64_t n, float *y) { while (n--) y[n] = ni_f16_to_f32(x[n]); }\n"
        "void widen_b(const uint16_t *x, int64_t n, float *y) { while (n--) y[n] = ni_bf16_to_f32(x[n]); }\n"
        "void narrow(const float *x, int64_t n, uint16_t *y) { while (n--) y[n] = ni_f32_to_f16(x[n]); }\n"
    )
    return load_library([source], f"-I{CSRC / 'formats'}")


def convert(function, x, dtype):
    out = np.empty(len(x), dtype)
    function(ctypes.c_void_p(address(x)), ctypes.c_int64(len(x)), ctypes.c_void_p(address(out)))
    return out


def test_every_half_to_float(half):
    x = np.arange(65536, dtype=np.uint16)
    found, wanted = convert(half.widen, x, np.float32), x.view(np.float16).astype(np.float32)
    nan = np.isnan(wanted)
    assert np.array_equal(bits(found)[~nan], bits(wanted)[~nan])
    assert np.isnan(found[nan]).all() and (bits(found)[nan] & 0x400000).all()  # all quiet
    assert np.array_equal(bits(convert(half.widen_b, x, np.float32)), x.astype(np.uint32) << 16)


def test_float_to_half(half):
    """All halves, all midpoints between halves, their neighbours, and random bit patterns."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:].astype(np.float64) + halves[:-1]) / 2
    middles = np.append(middles, 65520.0).astype(np.float32)
    near = [np.nextafter(middles, np.float32(toward)) for toward in (0, 9e9)]
    values = np.concatenate([halves, middles, *near])
    random = np.random.default_rng(6).integers(0, 1 << 32, 200_000, np.uint32).view(np.float32)
    special = np.array([np.inf, 1e-45, 3e38, 2.0**-25, 2.0**-24, 65519.99], np.float32)
    x = np.concatenate([values, -values, special, -special, random])
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(np.float16)
    found = convert(half.narrow, x, np.uint16).view(np.float16)
    nan = np.isnan(x)
    assert np.array_equal(found.view(np.uint16)[~nan], wanted.view(np.uint16)[~nan])
    assert np.isnan(found[nan]).all()
