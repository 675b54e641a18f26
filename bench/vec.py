"""Times the vector and attention kernels of csrc/isa on one core: ``python bench/vec.py [isa ...]``.

Prints ns per call for vectors of D values (in L1) and, for attention, 10^9 fused multiply-adds per second next to the core's
peak, measured in the same run by a loop of independent fma on registers.  Best of several rounds, in CPU time.
"""

import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from _cvec import FLAGS, TABLE, available

D = 2048
SOURCE = r"""
%(table)s#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* CPU seconds per run of `statement`: the best of 15 rounds of some milliseconds, as other work may share the core. */
#define RUN(reps, statement) \
    for (long i_ = 0; i_ < (reps); i_++) { statement; __asm__ volatile("" ::: "memory"); }
#define TIME(result, statement)                                         \
    do {                                                                \
        double best_ = 1e9, t_ = 0;                                     \
        long n_ = 1;                                                    \
        for (; t_ < 2e-3; n_ *= 2) {                                    \
            t_ = now();                                                 \
            RUN(n_, statement);                                         \
            t_ = now() - t_;                                            \
        }                                                               \
        for (int k_ = 0; k_ < 15; k_++) {                               \
            t_ = now();                                                 \
            RUN(n_, statement);                                         \
            t_ = (now() - t_) / n_;                                     \
            best_ = t_ < best_ ? t_ : best_;                            \
        }                                                               \
        result = best_;                                                 \
    } while (0)

extern struct ni_vec_kernels vec;       /* not static: called as the program calls it, through pointers */
struct ni_vec_kernels vec = NI_VEC_TABLE;

enum { D = %(d)d, STEPS = 1000, CHAINS = 6 };
static float x[D], y[D], w[D], sink, q[64 * 576], acc[64 * 576], m[64], l[64], scratch[64 * (NI_CHUNK + 576)];
static int8_t q8[D];
static float d[D / 32], mn[D / 32];
static int16_t s[D / 16];
static uint16_t h[D];
static uint8_t keys[NI_CHUNK * 576 * sizeof(float)], values[NI_CHUNK * 576 * sizeof(float)];
static int lo[64], hi[64];

static void peak(void) {
    v16 a[CHAINS], b = v16_load(x), c = v16_load(y);
    for (int j = 0; j < CHAINS; j++) a[j] = v16_load(w + j);
    for (int i = 0; i < STEPS; i++)
        _Pragma("GCC unroll 8") for (int j = 0; j < CHAINS; j++) a[j] = v16_fma(a[j], b, c);
    for (int j = 0; j < CHAINS; j++) v16_store(acc + 16 * j, a[j]);
}

#define OP(name, statement) do { double t; TIME(t, statement); printf("%%-12s %%8.0f ns\n", name, 1e9 * t); } while (0)

int main(void) {
    for (int i = 0; i < D; i++) x[i] = (i * 37 %% 101 - 50) * 0.04f, y[i] = x[D - 1 - i], w[i] = 0.5f;
    for (int i = 0; i < 64 * 576; i++) q[i] = (i * 31 %% 97 - 48) * 0.01f;
    for (int j = 0; j < 64; j++) hi[j] = NI_CHUNK;
    OP("quantize", vec.quantize(x, D, q8, d, mn, s));
    OP("sum_squares", sink = vec.sum_squares(x, D));
    OP("scale_mul", vec.scale_mul(x, 0.5f, w, D, acc));
    OP("add", vec.add(x, y, D, acc));
    OP("silu_mul", vec.silu_mul(x, y, D, acc));
    OP("gelu_mul", vec.gelu_mul(x, y, D, acc));
    OP("softcap", vec.softcap(x, 30.0f, D, acc));
    OP("rope_norm", vec.rope_norm(w, x, y, D); w[0] = 0.5f);
    for (int i = 0; i < D; i++) w[i] = 0.5f;
    OP("rope_neox", vec.rope_neox(w, x, y, D); w[0] = 0.5f);
    OP("to_f16", vec.to_f16(x, D, h));
    OP("from_f16", vec.from_f16(h, D, acc));
    float top = 0, den = 1;
    OP("merge", vec.merge(&top, &den, acc, 0.0f, 0.5f, x, D); den = 1);
    double t, most;
    TIME(most, peak());
    most = 16.0 * STEPS * CHAINS / most;
    printf("peak %%.1f GFMA/s; attend, %%d positions in L2:\n", most / 1e9, NI_CHUNK);
    static const char *const names[] = {
#define NI_KV(name) #name,
#include "isa/kv.def"
    };
    static const int es[] = {64, 128, 256, 576}, ns[] = {1, 2, 3, 4, 8, 32, 64};
    for (ni_kv_type type = 0; type < NI_N_KV_TYPES; type++)
        for (int a = 0; a < 4; a++)
            for (int b = 0; b < 7; b++) {
                int e = es[a], n = ns[b];
                for (int i = 0; i < 576; i++) w[i] = (i * 29 %% 89 - 44) * 0.02f;
                for (int i = 0; i < NI_CHUNK; i++) vec.kv[type].store_key(w, e, keys, i), vec.kv[type].store_value(w, e, values, i);
                TIME(t, vec.kv[type].attend(q, n, e, e, keys, values, keys, lo, hi, 0.0f, m, l, acc, scratch));
                double rate = 2.0 * NI_CHUNK * e * n / t, read = (double)ni_kv_chunk_bytes(type, e, e);
                printf("%%-5s e=%%-4d n_q=%%-3d %%9.0f ns %%7.1f GFMA/s %%3.0f %%%% of peak %%6.1f GB/s of keys and values\n",
                       names[type], e, n, 1e9 * t, rate / 1e9, 100 * rate / most, read / t / 1e9);
            }
    return 0;
}
"""


def main(names):
    for isa in names or available():
        with tempfile.TemporaryDirectory() as folder:
            src, exe = pathlib.Path(folder, "bench.c"), pathlib.Path(folder, "bench")
            src.write_text(SOURCE % {"table": TABLE.format(isa=isa), "d": D})
            flags = [f for f in FLAGS if f not in ("-fPIC", "-Werror", "-Wextra")]
            subprocess.run(["gcc", *flags, str(src), "-o", str(exe), "-lm"], check=True)
            print(f"{isa}, D = {D}, one core", flush=True)
            subprocess.run([str(exe)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
