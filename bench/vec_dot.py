"""Decode kernels against llama.cpp's: ``dot`` and ``vec_dot`` of the same weights, side by side in one thread.

The weights stay in the second-level cache, so that arithmetic is compared and not memory.  Rates are values of the matrix per second of the
thread's CPU time, medians over the rounds; a round runs llama.cpp's kernel and then every table's.

    python bench/vec_dot.py .../llama_cpp/lib/libggml-cpu.so --isa avx512,avx2 IQ3_XXS IQ2_S
"""

import argparse
import ctypes
import statistics
import sys
from pathlib import Path

import gguf
import numpy as np

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tests"))

from _ckernels import CSRC, SOURCES, TYPES, Act, Kernels, address, load_library, pack  # noqa: E402
from random_blocks import random_weights  # noqa: E402

K, ROWS = 2048, 512


class Traits(ctypes.Structure):
    """ggml_type_traits_cpu"""

    _fields_ = [("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
                ("vec_dot", ctypes.c_void_p), ("vec_dot_type", ctypes.c_int), ("nrows", ctypes.c_int64)]


class Peer:
    """llama.cpp's kernels."""

    def __init__(self, path):
        self._lib = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self._lib.ggml_cpu_init()
        self._lib.ggml_get_type_traits_cpu.restype = ctypes.POINTER(Traits)

    def traits(self, number):
        """Of a type, by GGUF's number."""
        return self._lib.ggml_get_type_traits_cpu(number).contents


def activations(x):
    """x (K,) as ni_act, and the arrays that it points to."""
    d = np.abs(x).reshape(-1, 32).max(1) / np.float32(127)
    q = np.rint(x.reshape(-1, 32) / d[:, None]).astype(np.int8)
    s = q.reshape(-1, 16).sum(1, dtype=np.int16)
    m = d * q.sum(1, dtype=np.int32).astype(np.float32)
    parts = (x, q, d, m, s)
    return Act(len(x), *map(address, parts)), parts


def main():
    """Command line."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("library", help="llama.cpp's libggml-cpu.so")
    ap.add_argument("types", nargs="*", metavar="TYPE", help=f"weight types; default: all of {' '.join(TYPES[3:])}")
    ap.add_argument("--isa", type=lambda text: text.split(","), default=["avx2"], help="tables of kernels, separated by commas")
    ap.add_argument("--rounds", type=int, default=9)
    args = ap.parse_intermixed_args()
    peer, own = Peer(args.library), load_library([*SOURCES, BENCH / "vec_dot.c"], f"-I{CSRC}", "-O3")
    own.ni_isa_available.restype = ctypes.c_char_p
    lacking = set(args.isa) - set(own.ni_isa_available().decode().split(","))
    if lacking:
        ap.error(f"this CPU does not run {', '.join(lacking)}; it runs {own.ni_isa_available().decode()}")
    own.time_peer.restype = own.time_own.restype = ctypes.c_double
    tables = {isa: Kernels.in_dll(own, f"ni_kernels_{isa}") for isa in args.isa}
    rng = np.random.default_rng(0)
    x = rng.standard_normal(K).astype(np.float32)
    act, parts = activations(x)
    print(f"type      llama.cpp  {'  '.join(f'{isa:>16}' for isa in args.isa)}   (G values/s, ratio)")
    for name in args.types or TYPES[3:]:
        number = gguf.GGMLQuantizationType[name]
        weights = random_weights(rng, ROWS, K, name)
        packed, traits = pack(name, weights), peer.traits(number.value)
        quantised, y = np.zeros(8 * K, np.uint8), np.zeros(ROWS, np.float32)
        peer.traits(traits.vec_dot_type).from_float(address(x), address(quantised), K)
        theirs, ours, repeat = [], {isa: [] for isa in tables}, 16
        for _ in range(args.rounds):
            theirs.append(own.time_peer(ctypes.c_void_p(traits.vec_dot), K, ctypes.c_void_p(address(weights)),
                                        ctypes.c_size_t(weights.shape[1]), ROWS, ctypes.c_void_p(address(quantised)), repeat,
                                        ctypes.c_void_p(address(y))))  # fmt: skip
            for isa, table in tables.items():
                dot = table.dot[TYPES.index(name)]
                ours[isa].append(own.time_own(dot, ctypes.c_void_p(address(packed)), ctypes.c_int64(len(packed)), ctypes.byref(act), repeat,
                                              ctypes.c_void_p(address(y))))  # fmt: skip
        values = repeat * ROWS * K / 1e9
        rates = (f"{values / statistics.median(o):9.1f} {statistics.median(t / b for t, b in zip(theirs, o)):6.2f}" for o in ours.values())
        print(f"{name:8} {values / statistics.median(theirs):10.1f}  {'  '.join(rates)}")
    del parts


if __name__ == "__main__":
    main()
