"""Builds the vector kernels of the core's tables, one library per instruction set, and binds them by ctypes."""

import ctypes
import functools
import pathlib
import re
import subprocess
import tempfile

import numpy as np
from _objects import MACHINE, compile_one

from numainfer import _core

CSRC = pathlib.Path(__file__).resolve().parent.parent / "csrc"
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra",
         "-Wno-unused-parameter", "-Werror", "-fPIC", f"-I{CSRC}", *MACHINE]
TABLE = '#include "isa/{isa}.c"\n'
CHUNK, LATENT_TILE, INDEX_BLOCKS = 256, 32, 4
KV_TYPES = re.findall(r"^NI_KV\((\w+)\)", (CSRC / "isa" / "kv.def").read_text(), re.MULTILINE)

# exp and tanh are inline functions of the kernels; the shims show them to the tests, 16 values at a time.
SOURCE = TABLE + """
extern const struct ni_vec_kernels *const vec;
const struct ni_vec_kernels *const vec = &ni_own_{isa}.vec;
void test_exp(const float *x, int64_t n, float *y);
void test_tanh(const float *x, int64_t n, float *y);
void test_exp(const float *x, int64_t n, float *y) {{
    for (int64_t i = 0; i < n; i += 16) v16_store(y + i, v16_exp(v16_load(x + i)));
}}
void test_tanh(const float *x, int64_t n, float *y) {{
    for (int64_t i = 0; i < n; i += 16) v16_store(y + i, v16_tanh(v16_load(x + i)));
}}
"""

_P, _I, _N, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
SIGNATURES = [  # the members of struct ni_vec_kernels, in order: name, result, arguments
    ("quantize", None, (_P, _N, _P, _P, _P, _P)),
    ("sum_squares", _F, (_P, _N)),
    ("sum", _F, (_P, _N)),
    ("minus", None, (_P, _F, _N, _P)),
    ("scale_mul", None, (_P, _F, _P, _N, _P)),
    ("add", None, (_P, _P, _N, _P)),
    ("exp", None, (_P, _F, _N, _P)),
    ("silu_mul", None, (_P, _P, _N, _P)),
    ("gelu_mul", None, (_P, _P, _N, _P)),
    ("gelu", None, (_P, _N, _P)),
    ("relu_squared", None, (_P, _N, _P)),
    ("xielu", None, (_P, _F, _F, _F, _F, _N, _P)),
    ("sigmoid_mul", None, (_P, _P, _N, _P)),
    ("clamped_mul", None, (_P, _P, _F, _F, _N, _P)),
    ("limited_mul", None, (_P, _P, _F, _N, _P)),
    ("softcap", None, (_P, _F, _N, _P)),
    ("rope_norm", None, (_P, _P, _P, _N)),
    ("rope_neox", None, (_P, _P, _P, _N)),
    ("to_f16", None, (_P, _N, _P)),
    ("from_f16", None, (_P, _N, _P)),
    ("softplus", None, (_P, _N, _P)),
    ("short_conv", None, (_P, _I, _P, _N, _P, _I, _N, _P)),
    ("recur", None, (_P, _P, _P)),
    ("scan", None, (_P, _P, _P)),
    ("merge", None, (_P, _P, _P, _F, _F, _P, _N)),
    ("sample_keys", None, (_P, _N, _P, _P, _P)),
    ("sample_masses", None, (_P, _N, _F, _F, _P)),
    ("sample_weigh", None, (_P, _N, _F, _F, _P)),
    ("sample_collect", _N, (_P, _N, _P, _I, _P, _P)),
]


KV_SIGNATURES = [  # of struct ni_kv_kernels, of which there is one for each type after those
    ("store_key", None, (_P, _N, _P, _I)),
    ("store_value", None, (_P, _N, _P, _I)),
    ("attend", None, (_P, _I, _N, _N, _P, _P, _P, _P, _P, _F, _P, _P, _P, _P)),
    ("attend_latent", None, (_P, _I, _N, _N, _P, _P, _P, _P, _F, _P, _P, _P, _P)),
    ("attend_listed", None, (_P, _I, _N, _N, _P, _P, _I, _I, _F, _P, _P, _P, _P)),
    ("index", None, (_P, _P, _I, _N, _P, _P, _I, _P, _P)),
]


class _Recurrence(ctypes.Structure):
    """ni_recurrence of csrc/isa/recurrence.h."""

    _fields_ = [("rows", _N), ("blocks", _N), ("n_tokens", _I), ("wide", _I), ("delta", _I), ("q", _P), ("k", _P), ("kd", _P),
                ("decay", _P), ("beta", _P), ("v", _P), ("out", _P), ("v_stride", _N), ("out_stride", _N)]  # fmt: skip


class _Scan(ctypes.Structure):
    """ni_scan of csrc/isa/recurrence.h."""

    _fields_ = [("rows", _N), ("channels", _N), ("n_tokens", _I), ("a", _P), ("skip", _P), ("b", _P), ("c", _P), ("x", _P), ("dt", _P),
                ("out", _P), ("x_stride", _N), ("dt_stride", _N), ("out_stride", _N)]  # fmt: skip


class _Kv(ctypes.Structure):
    _fields_ = [(name, ctypes.CFUNCTYPE(result, *args)) for name, result, args in KV_SIGNATURES]


class _Table(ctypes.Structure):
    _fields_ = [(name, ctypes.CFUNCTYPE(result, *args)) for name, result, args in SIGNATURES] + [("kv", _Kv * len(KV_TYPES))]


@functools.cache
def available():
    """Names of the core's tables that this CPU runs, "scalar" first."""
    return _core.isa_available()[::-1]


@functools.cache
def load(isa):
    """Return the `Kernels` compiled for one instruction set."""
    with tempfile.TemporaryDirectory() as folder:  # the loader keeps what it mapped
        source, library = pathlib.Path(folder) / f"{isa}.c", pathlib.Path(folder) / f"{isa}.so"
        source.write_text(SOURCE.format(isa=isa))
        made = compile_one("gcc", source, *FLAGS)
        # A table alone: what its matrix kernels, which nobody calls here, want of other files may be missing.
        alone = pathlib.Path(folder) / f"{isa}.o"
        subprocess.run(["objcopy", "--weaken", made, alone], check=True)
        subprocess.run(["gcc", "-shared", alone, "-o", library, "-lm"], check=True)
        return Kernels(isa, ctypes.CDLL(str(library)))


class Kernels:
    """The vector kernels as functions of NumPy arrays; every array is checked to be of the right type and size."""

    def __init__(self, isa, lib):
        self.isa, self.lib = isa, lib
        self.table = ctypes.POINTER(_Table).in_dll(lib, "vec").contents

    @staticmethod
    def _ptr(a, dtype, size=None):
        if a is None:
            return None
        assert a.dtype == dtype and a.flags.c_contiguous and (size is None or a.size >= size), (a.dtype, a.shape)
        return a.ctypes.data

    def _map(self, name, n, *args):
        """Call an element-wise kernel; its last argument is the output, guarded on both sides."""
        out = np.full(n + 2, np.float32(12345.0))
        ptrs = [self._ptr(a, np.float32, n) if isinstance(a, np.ndarray) else a for a in args]
        getattr(self.table, name)(*ptrs, n, out[1:].ctypes.data)
        assert out[0] == out[-1] == 12345.0, f"{name} wrote outside its {n} values"
        return out[1:-1]

    def softplus(self, x):
        return self._map2("softplus", x)

    def _map2(self, name, x):
        """A kernel of (x, n, out)."""
        out = np.full(len(x) + 2, np.float32(12345.0))
        getattr(self.table, name)(self._ptr(x, np.float32), len(x), out[1:].ctypes.data)
        assert out[0] == out[-1] == 12345.0, f"{name} wrote outside its {len(x)} values"
        return out[1:-1]

    def short_conv(self, x, w, bias, silu):
        """x, w: (taps, n); the sum over taps."""
        taps, n = x.shape
        out = np.full(n + 2, np.float32(12345.0))
        rows = (ctypes.c_void_p * taps)(*[row.ctypes.data for row in x])
        self.table.short_conv(rows, taps, self._ptr(w, np.float32), n, self._ptr(bias, np.float32), silu, n, out[1:].ctypes.data)
        assert out[0] == out[-1] == 12345.0
        return out[1:-1]

    def recur(self, state, q, k, kd, decay, beta, v, wide, delta):
        """(new state, out (n, 16 * blocks)), in another place and in its own, which must be the same; v may have longer rows."""
        (blocks, rows, _), n = state.shape, len(q)

        def describe(out):
            return _Recurrence(rows, blocks, n, int(wide), int(delta), *(self._ptr(a, np.float32) for a in (q, k, kd, decay, beta, v)),
                               out.ctypes.data, v.shape[1], out.shape[1])  # fmt: skip

        return self._advance(self.table.recur, state, n, 16 * blocks, describe)

    def scan(self, state, a, skip, b, c, x, dt):
        """As `recur`: (new state, out (n, channels)); x and dt may have longer rows."""
        (_, rows, _), n = state.shape, len(b)

        def describe(out):
            return _Scan(rows, len(skip), n, *(self._ptr(v, np.float32) for v in (a, skip, b, c, x, dt)), out.ctypes.data, x.shape[1],
                         dt.shape[1], out.shape[1])  # fmt: skip

        return self._advance(self.table.scan, state, n, len(skip), describe)

    @staticmethod
    def _advance(kernel, state, n, width, describe):
        """(new state, out (n, width)) of a kernel over a state; describe(out): its third argument."""
        found = []
        for to in (np.full(state.size + 2, np.float32(12345.0)), np.concatenate([[0], state.ravel(), [0]]).astype(np.float32)):
            to[0] = to[-1] = 12345.0
            out = np.full((n, width + 3), np.float32(12345.0))
            r = describe(out)
            start = state.ctypes.data if not found else to[1:].ctypes.data
            kernel(start, to[1:].ctypes.data, ctypes.addressof(r))
            assert to[0] == to[-1] == 12345.0 and (out[:, width:] == 12345.0).all()
            found.append((to[1:-1].copy(), out[:, :width].copy()))
        for other, own in zip(*found):
            same(other, own)
        return found[0]

    def exp(self, x):
        return self._shim("test_exp", x)

    def tanh(self, x):
        return self._shim("test_tanh", x)

    def _shim(self, name, x):
        pad = np.zeros(-(-x.size // 16) * 16, np.float32)
        pad[: x.size] = x
        y = np.empty_like(pad)
        getattr(self.lib, name)(_P(pad.ctypes.data), _N(pad.size), _P(y.ctypes.data))
        return y[: x.size]

    def quantize(self, x, parts="qdms"):
        """Return the parts asked for of q (n,), d (n/32,), m (n/32,), s (n/16,); None for the others."""
        n = x.size
        full = {"q": np.empty(n, np.int8), "d": np.empty(n // 32, np.float32), "m": np.empty(n // 32, np.float32),
                "s": np.empty(n // 16, np.int16)}
        out = {k: v if k in parts else None for k, v in full.items()}
        ptr = {k: None if v is None else v.ctypes.data for k, v in out.items()}
        self.table.quantize(self._ptr(x, np.float32), n, ptr["q"], ptr["d"], ptr["m"], ptr["s"])
        return out["q"], out["d"], out["m"], out["s"]

    def sum_squares(self, x):
        return np.float32(self.table.sum_squares(self._ptr(x, np.float32), x.size))

    def sum(self, x):
        return np.float32(self.table.sum(self._ptr(x, np.float32), x.size))

    def minus(self, x, c):
        out = np.empty_like(x)
        self.table.minus(self._ptr(x, np.float32), c, x.size, out.ctypes.data)
        return out

    def exp_of(self, x, c):
        out = np.empty_like(x)
        self.table.exp(self._ptr(x, np.float32), c, x.size, out.ctypes.data)
        return out

    def scale_mul(self, x, scale, w):
        out = np.empty_like(x)
        self.table.scale_mul(self._ptr(x, np.float32), scale, self._ptr(w, np.float32, x.size), x.size,
                             out.ctypes.data)
        return out

    def add(self, x, y):
        return self._map("add", x.size, x, y)

    def silu_mul(self, g, u):
        return self._map("silu_mul", g.size, g, u)

    def gelu_mul(self, g, u):
        return self._map("gelu_mul", g.size, g, u)

    def gelu(self, x):
        return self._map("gelu", x.size, x)

    def relu_squared(self, x):
        return self._map("relu_squared", x.size, x)

    def xielu(self, x, *constants):
        return self._map("xielu", x.size, x, *constants)

    def sigmoid_mul(self, g, u):
        return self._map("sigmoid_mul", g.size, g, u)

    def clamped_mul(self, g, u, alpha, limit):
        return self._map("clamped_mul", g.size, g, u, alpha, limit)

    def limited_mul(self, g, u, limit):
        return self._map("limited_mul", g.size, g, u, limit)

    def softcap(self, x, cap):
        return self._map("softcap", x.size, x, cap)

    def rope(self, kind, x, cos, sin):
        y = x.copy()
        getattr(self.table, f"rope_{kind}")(self._ptr(y, np.float32), self._ptr(cos, np.float32, x.size // 2),
                                            self._ptr(sin, np.float32, x.size // 2), x.size)
        return y

    def to_f16(self, x):
        out = np.full(x.size + 1, 0x1234, np.uint16)
        self.table.to_f16(self._ptr(x, np.float32), x.size, out.ctypes.data)
        assert out[-1] == 0x1234
        return out[:-1]

    def from_f16(self, h):
        out = np.full(h.size + 1, np.float32(12345.0))
        self.table.from_f16(self._ptr(h, np.uint16), h.size, out.ctypes.data)
        assert out[-1] == 12345.0
        return out[:-1]

    def store(self, kv_type, part, x, memory=None, positions=None):
        """Stores rows of x (256, width), all or those at `positions`, as "key" or "value"; returns the chunk's bytes (uint8)."""
        kernel = getattr(self.table.kv[KV_TYPES.index(kv_type)], f"store_{part}")
        n_bytes = kv_bytes(kv_type, x.shape[1])
        out = np.full(n_bytes + 64, 0x5A, np.uint8)
        if memory is not None:
            out[:n_bytes] = memory
        x = np.ascontiguousarray(x, np.float32)
        for pos in range(CHUNK) if positions is None else positions:
            kernel(x[pos].ctypes.data, x.shape[1], out.ctypes.data, int(pos))
        assert (out[n_bytes:] == 0x5A).all(), f"store_{part} of {kv_type} wrote beyond its chunk"
        return out[:n_bytes]

    def attend(self, kv_type, q, keys, values, ev, lo, hi, cap=0.0):
        """q (n, e), keys and values as `store` gives them -> m (n,), l (n,), acc (n, ev)."""
        n, e = q.shape
        lo, hi = np.ascontiguousarray(lo, np.int32), np.ascontiguousarray(hi, np.int32)
        m, den, acc = np.empty(n, np.float32), np.empty(n, np.float32), np.full((n + 1, ev), np.float32(12345.0))
        scratch = np.full(n * (CHUNK + e) + 1, np.float32(np.nan))
        scratch[-1] = 12345.0
        self.table.kv[KV_TYPES.index(kv_type)].attend(
            self._ptr(q, np.float32), n, e, ev, self._ptr(keys, np.uint8, kv_bytes(kv_type, e)),
            self._ptr(values, np.uint8, kv_bytes(kv_type, ev)), keys.ctypes.data, self._ptr(lo, np.int32, n),
            self._ptr(hi, np.int32, n), cap, m.ctypes.data, den.ctypes.data, acc.ctypes.data, scratch.ctypes.data)
        assert (acc[n] == 12345.0).all() and scratch[-1] == 12345.0, "attend wrote outside its buffers"
        return m, den, acc[:n]

    def attend_latent(self, kv_type, q, rows, ev, lo, hi, cap=0.0):
        """q (n, e), rows as `store` gives values of width e -> m (n,), l (n,), acc (n, ev)."""
        n, e = q.shape
        lo, hi = np.ascontiguousarray(lo, np.int32), np.ascontiguousarray(hi, np.int32)
        m, den, acc = np.empty(n, np.float32), np.empty(n, np.float32), np.full((n + 1, ev), np.float32(12345.0))
        scratch = np.full(LATENT_TILE * (e + CHUNK + 16) + 16 * max(e, CHUNK) + 1, np.float32(np.nan))
        scratch[-1] = 12345.0
        self.table.kv[KV_TYPES.index(kv_type)].attend_latent(
            self._ptr(q, np.float32), n, e, ev, self._ptr(rows, np.uint8, kv_bytes(kv_type, e)), rows.ctypes.data,
            self._ptr(lo, np.int32, n), self._ptr(hi, np.int32, n), cap, m.ctypes.data, den.ctypes.data, acc.ctypes.data,
            scratch.ctypes.data)  # fmt: skip
        assert (acc[n] == 12345.0).all() and scratch[-1] == 12345.0, "attend_latent wrote outside its buffers"
        return m, den, acc[:n]

    def attend_listed(self, kv_type, q, chunks, of, at, ev, cap=0.0, ahead=0):
        """q (n, e), chunks as `store` gives values of width e, row at[i] of chunk of[i] -> m (n,), l (n,), acc (n, ev).

        ahead : of the entries, the last so many are only asked for.
        """
        n, e = q.shape
        for chunk in chunks:
            self._ptr(chunk, np.uint8, kv_bytes(kv_type, e))
        of, at = np.array([chunks[i].ctypes.data for i in of], np.uint64), np.ascontiguousarray(at, np.int32)
        m, den, acc = np.empty(n, np.float32), np.empty(n, np.float32), np.full((n + 1, ev), np.float32(12345.0))
        scratch = np.full(LATENT_TILE * (e + CHUNK + 16) + 16 * max(e, CHUNK) + 1, np.float32(np.nan))
        scratch[-1] = 12345.0
        self.table.kv[KV_TYPES.index(kv_type)].attend_listed(
            self._ptr(q, np.float32), n, e, ev, of.ctypes.data, self._ptr(at, np.int32, len(of)), len(of) - ahead, len(of), cap,
            m.ctypes.data, den.ctypes.data, acc.ctypes.data, scratch.ctypes.data)  # fmt: skip
        assert (acc[n] == 12345.0).all() and scratch[-1] == 12345.0, "attend_listed wrote outside its buffers"
        return m, den, acc[:n]

    def index(self, kv_type, q, w, keys, blocks):
        """q (n, e), w (n,), keys as `store` gives them -> scores (16 blocks,)."""
        n, e = q.shape
        scores, scratch = np.full(16 * blocks + 1, np.float32(12345.0)), np.full(INDEX_BLOCKS * 16 * e + 1, np.float32(np.nan))
        scratch[-1] = 12345.0
        self.table.kv[KV_TYPES.index(kv_type)].index(
            self._ptr(q, np.float32), self._ptr(w, np.float32, n), n, e, self._ptr(keys, np.uint8, kv_bytes(kv_type, e)), keys.ctypes.data,
            blocks, scores.ctypes.data, scratch.ctypes.data)  # fmt: skip
        assert scores[-1] == 12345.0 and scratch[-1] == 12345.0, "index wrote outside its buffers"
        return scores[:-1]

    def merge(self, part, other):
        """Fold `other` (m, l, acc) into a copy of `part`, one query each; return it."""
        m, den, acc = (np.array(a, np.float32) for a in part)
        self.table.merge(m.ctypes.data, den.ctypes.data, acc.ctypes.data, float(other[0]), float(other[1]),
                         self._ptr(np.ascontiguousarray(other[2]), np.float32, acc.size), acc.size)
        return m, den, acc


def bits(a):
    a = np.ascontiguousarray(a)
    return a.view({4: np.uint32, 2: np.uint16, 1: np.uint8}[a.dtype.itemsize])


def same(a, b):
    """Assert that two arrays have the same bits."""
    np.testing.assert_array_equal(bits(a), bits(b))


def kv_bytes(kv_type, width):
    """Bytes of a chunk's keys or values."""
    return CHUNK * {"q8_0": width + 2 * -(-width // 32), "f32": 4 * width}.get(kv_type, 2 * width)
