"""ik_llama.cpp's types for the ``gguf`` package, in NumPy: importing file_types teaches it them.

Checked against floats that ik_llama.cpp decoded (tests/golden/ik.npz, test_formats.py).
"""

import numpy as np

_IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
_IQ5 = [-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
        -1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121]  # fmt: skip
_Q = np.arange(64.0)
# Of each width in bits: the values of places, then those of sub-blocks whose bit in `extra` is set.
TABLES = {bits: np.array([values, [v + higher for v in values]], np.int16)
          for bits, values, higher in ((2, [-31, -13, 1, 17], 5), (3, [-63, -40, -23, -10, 1, 13, 28, 47], 4), (4, _IQ4, 4), (5, _IQ5, 2),
                                       (6, list(np.rint(-127 + _Q * (6.2568 + _Q * (-0.11218 + _Q * 0.0011972)))), 1))}  # fmt: skip


def _bits(x, n):
    """Fields of n bits of bytes (..., m), the lowest first: (..., m * 8 / n)."""
    return (x[..., None] >> np.arange(0, 8, n, dtype=np.uint8) & (1 << n) - 1).reshape(*x.shape[:-1], -1)


def _planes(x, width, n):
    """Fields of n bits of bytes (..., m): `width` bytes after one another hold a plane of fields over the other: (..., m * 8 / n)."""
    x = x.reshape(*x.shape[:-1], -1, 1, width)
    return (x >> np.arange(0, 8, n, dtype=np.uint8)[:, None] & (1 << n) - 1).reshape(*x.shape[:-3], -1)


def _halves(x):
    return np.ascontiguousarray(x).view(np.float16).astype(np.float32)


def _values(d, sc, places, table, extra):
    """d (n, 1) times sc (n, subs) times values, of places (n, 256) in a table; extra: (n, subs)."""
    each = places.shape[1] // sc.shape[1]
    values = table[extra.repeat(each, 1), places].astype(np.float32)
    return (d * sc.astype(np.float32)).repeat(each, 1) * values


def iq4_k(b):
    sc = (_bits(b[:, 8:16], 4) | _bits(b[:, 4:8], 2) << 4).astype(np.int8) - 32
    return _values(_halves(b[:, :2]), sc, _planes(b[:, 16:], 16, 4), TABLES[4], _bits(b[:, 2:4], 1))


def iq5_k(b):
    sc = (_bits(b[:, 8:16], 4) | _bits(b[:, 4:8], 2) << 4).astype(np.int8) - 32
    places = _planes(b[:, 16:144], 32, 4) | _planes(b[:, 144:], 32, 1) << 4
    return _values(_halves(b[:, :2]), sc, places, TABLES[5], _bits(b[:, 2:4], 1))


def iq6_k(b):
    places = _planes(b[:, 20:148], 32, 4) | _planes(b[:, 148:], 32, 2) << 4
    return _values(_halves(b[:, :2]), b[:, 4:20].view(np.int8), places, TABLES[6], _bits(b[:, 2:4], 1))


def iq3_k(b):
    sc = (2 * _bits(b[:, 6:14], 4) + 1).astype(np.int8) * (1 - 2 * _bits(b[:, 4:6], 1).astype(np.int8))
    places = _planes(b[:, 14:78], 32, 2) | _planes(b[:, 78:], 32, 1) << 2
    return _values(_halves(b[:, :2]), sc, places, TABLES[3], _bits(b[:, 2:4], 1))


def iq2_k(b):
    sc = _bits(b[:, 4:12], 4).astype(np.int8) - 8
    return _values(_halves(b[:, :2]), sc, _planes(b[:, 12:], 32, 2), TABLES[2], _bits(b[:, 2:4], 1))


def q6_0(b):
    upper = (b[:, 2:10, None] >> np.array([0, 4, 2, 6], np.uint8) & 3).transpose(0, 2, 1).reshape(-1, 32)
    q = _planes(b[:, 10:], 16, 4) | upper << 4
    return _halves(b[:, :2]) * (q.astype(np.float32) - 32)


def _row(d):
    """A row's scale, the same for all of its blocks."""
    return np.ascontiguousarray(d).view(np.float32 if d.shape[-1] == 4 else np.float16).astype(np.float32)


def iq4_ks(b, d):
    sc = (b[:, :8] & 254).astype(np.int16) - 127
    return _values(_row(d), sc, _planes(b[:, 8:], 16, 4), TABLES[4], b[:, :8] & 1)


def iq5_ks(b, d):
    sc = (b[:, :8] & 254).astype(np.int16) - 127
    return _values(_row(d), sc, _planes(b[:, 8:136], 32, 4) | _planes(b[:, 136:], 32, 1) << 4, TABLES[5], b[:, :8] & 1)


def iq3_ks(b, d):
    sc = (_planes(b[:, 2:6], 4, 4) | _bits(b[:, :1], 1) << 4).astype(np.int8) - 16
    places = _planes(b[:, 6:70], 32, 2) | _planes(b[:, 70:], 32, 1) << 2
    return _values(_row(d), sc, places, TABLES[3], _bits(b[:, 1:2], 1))


def iq2_ks(b, d):
    sc = (_bits(b[:, 2:6], 4) | _bits(b[:, 1:2], 1) << 4).astype(np.int8) - 16
    return _values(_row(d), sc, _planes(b[:, 6:], 32, 2), TABLES[2], _bits(b[:, :1], 1))


_FIRST = np.repeat([-63, -40, -23, -10, 1, 13, 28, 47], [2, 4, 5, 4, 5, 5, 5, 2])
_SECOND = [-23, 13, -63, -10, 13, 47, -40, -23, 1, 13, 28, -63, 1, 13, 47, -23, -10, 1, 13, 28, -40, -23, -10, 1, 13, -63, -23, 1, 28, 47,
           -23, 13]  # fmt: skip
_PAIRS = np.stack([_FIRST, _SECOND], axis=-1)


def iq2_kl(b, d):
    sc = (_planes(b[:, 2:6], 4, 4) | _bits(b[:, :2], 2) << 4).astype(np.int8) - 32
    places = _planes(b[:, 6:70], 16, 4) | _planes(b[:, 70:], 16, 1) << 4
    return (_row(d) * sc.astype(np.float32)).repeat(32, 1) * _PAIRS[places].reshape(-1, 256).astype(np.float32)


def iq4_kss(b, d):
    words = np.ascontiguousarray(b).view(np.uint16)
    sc = np.packbits((words & 1).astype(np.uint8), axis=1, bitorder="little")
    nibbles = words & 0xFFFE
    places = _planes((nibbles ^ nibbles >> 1).view(np.uint8), 16, 4)
    return _values(_row(d), (sc & 254).astype(np.int16) - 127, places, TABLES[4], sc & 1)


def _steps(places, n):
    """n values of each place."""
    state, values = places.astype(np.uint32) + np.uint32(4096), []
    for _ in range(n):
        state = state * np.uint32(0xCBAC1FED)
        values.append(sum((state >> i & 63).astype(np.int16) for i in (0, 8, 16, 24)) - 126)
    return np.stack(values, axis=-1).reshape(len(places), -1)


def _trellis(d, more, sc, values):
    """d (n, 1), times what ik_llama.cpp's products multiply it by, times sc (n, 8) times values (n, 256)."""
    return (d * np.float32(more) * sc.astype(np.float32)).repeat(32, 1) * values.astype(np.float32)


def iq1_kt(b, d):
    places = b[:, 8:40] | _planes(b[:, 40:], 16, 4).astype(np.uint16) << 8 | _bits(b[:, :8] >> 4, 1).reshape(-1, 8, 8)[..., :4].reshape(
        -1, 32).astype(np.uint16) << 12  # fmt: skip
    return _trellis(_row(d), 1, np.array(_IQ4)[b[:, :8] & 15], _steps(places, 8))


def iq2_kt(b, d):
    return _trellis(_row(d), 1.05, np.array(_IQ4)[_planes(b[:, :4], 4, 4)], _steps(np.ascontiguousarray(b[:, 4:]).view(np.uint16), 8))


def iq3_kt(b, d):
    values = np.abs(_steps(np.ascontiguousarray(b[:, 4:68]).view(np.uint16), 8))
    return _trellis(_row(d), 1.01, _planes(b[:, :4], 4, 4), np.where(_planes(b[:, 68:], 32, 1), -values, values))


def iq4_kt(b, d):
    sc = np.ascontiguousarray(b[:, :32]).view(np.uint32)
    upper = (sc[..., None] >> np.arange(8, 32, 3, dtype=np.uint32) & 7) << 12 | (sc[..., None] & 1) << 15
    places = b[:, 32:96] | _planes(b[:, 96:], 32, 4).astype(np.uint16) << 8 | upper.reshape(-1, 64)
    return _trellis(_row(d), 1, (sc >> 1 & 127).astype(np.int16) - 64, _steps(places, 4))


# Number, values and bytes of a block, and who decodes blocks (n, bytes), of types in HEADS with the heads (n, bytes) of their rows.
IK_TYPES = {
    "IQ4_K": (139, 256, 144, iq4_k), "IQ5_K": (140, 256, 176, iq5_k), "IQ6_K": (141, 256, 212, iq6_k),
    "IQ3_K": (138, 256, 110, iq3_k), "IQ2_K": (137, 256, 76, iq2_k), "Q6_0": (133, 32, 26, q6_0),
    "IQ4_KS": (144, 256, 136, iq4_ks), "IQ5_KS": (152, 256, 168, iq5_ks), "IQ3_KS": (156, 256, 102, iq3_ks),
    "IQ2_KS": (145, 256, 70, iq2_ks), "IQ2_KL": (157, 256, 86, iq2_kl), "IQ4_KSS": (146, 256, 128, iq4_kss),
    "IQ1_KT": (158, 256, 56, iq1_kt), "IQ2_KT": (153, 256, 68, iq2_kt), "IQ3_KT": (154, 256, 100, iq3_kt),
    "IQ4_KT": (155, 256, 128, iq4_kt),
}  # fmt: skip
HEADS = {"IQ4_KS": 4, "IQ5_KS": 4, "IQ3_KS": 2, "IQ2_KS": 2, "IQ2_KL": 2, "IQ4_KSS": 4,
         "IQ1_KT": 4, "IQ2_KT": 4, "IQ3_KT": 4, "IQ4_KT": 4}  # bytes of a row's scale, a float or a half, before its blocks
