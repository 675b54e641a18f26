/* Prefill with NEON: one panel (16 rows x at most 256 values) times many tokens, in tiles of 16 rows x M tokens.
 *
 * A tile's integer sums stay in registers for one sub-block (4 quads x 4 tokens), its float sums in L1: a register of
 * weights meets M tokens, a register of activations 4 k-groups.  The includer defines gemm_quants, then the
 * kernels by NI_GEMMS: neon_sdot.h, neon_smmla.h. */
#ifndef NI_NEON_GEMM_H
#define NI_NEON_GEMM_H
#include "neon_util.h"

enum { FLOAT_TILE = 4 };   /* tokens whose float sums fit the registers */

/* Where the integer sums of a sub-block of `sub` values start: s points to its sums of 16 activations. */
NI_INLINE int32_t start_of(const int16_t *s, int sub, int offset) {
    return !offset ? 0 : -offset * (sub == 32 ? s[0] + s[1] : s[0]);
}

/* 4 rows and one token: continues y by the integer sums of a sub-block of 32, or of 16 with a scale of its own (Q6_K),
 * where `part` keeps the first (e = 0) for the second: whole numbers below 2^24, so floats are exact. */
NI_INLINE void finish_rows(int32x4_t isum, float32x4_t scale, float d, int sub, int e, float *part, float *y) {
    const float32x4_t v = vcvtq_f32_s32(isum);
    if (sub == 32) vst1q_f32(y, vfmaq_f32(vld1q_f32(y), v, vmulq_n_f32(scale, d)));
    else if (e == 0) vst1q_f32(part, vmulq_f32(v, scale));
    else vst1q_f32(y, vfmaq_n_f32(vld1q_f32(y), vfmaq_f32(vld1q_f32(part), v, scale), d));
}

/* Q6_K: acc = fma(total, d, acc), M tokens. */
NI_INLINE void add_totals(const float *total, const float *d, int M, float *acc) {
    for (int i = 0; i < M * NI_ROWS; i += 4)
        vst1q_f32(acc + i, vfmaq_f32(vld1q_f32(acc + i), vld1q_f32(total + i), vld1q_f32(d + i % NI_ROWS)));
}

/* acc[m] = fma(w, x, acc[m]) for n values of 16 rows: float weights, or minimums (w: min, x: m, n: sub-blocks). */
NI_INLINE void tile_float(const float *w, int64_t n, const float *x, int64_t x_stride, int M, float *out) {
    float32x4_t acc[FLOAT_TILE][4];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) QUADS(i) acc[m][i] = vld1q_f32(out + NI_ROWS * m + 4 * i);
    for (int64_t k = 0; k < n; k++, w += NI_ROWS)
        QUADS(i) {
            const float32x4_t v = vld1q_f32(w + 4 * i);
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) acc[m][i] = vfmaq_n_f32(acc[m][i], v, x[m * x_stride + k]);
        }
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) QUADS(i) vst1q_f32(out + NI_ROWS * m + 4 * i, acc[m][i]);
}

/* The same for any number of tokens. */
static void add_products(const float *w, int64_t n, const float *x, int64_t x_stride, int n_tokens, float *out) {
    int t = 0;
    for (; t + FLOAT_TILE <= n_tokens; t += FLOAT_TILE)
        tile_float(w, n, x + t * x_stride, x_stride, FLOAT_TILE, out + (size_t)t * NI_ROWS);
    switch (n_tokens - t) {
    case 3: tile_float(w, n, x + t * x_stride, x_stride, 3, out + (size_t)t * NI_ROWS); break;
    case 2: tile_float(w, n, x + t * x_stride, x_stride, 2, out + (size_t)t * NI_ROWS); break;
    case 1: tile_float(w, n, x + t * x_stride, x_stride, 1, out + (size_t)t * NI_ROWS); break;
    }
}

static void gemm_f32(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc,
                     float *accm) {
    (void)accm;
    add_products(p->f, nk, x->f + k0, x->k, n_tokens, acc);
}

/* Defines gemm_<name> from gemm_quants(p, k0, nk, x, n_tokens, sub, offset, acc), which does all but the minimums. */
#define NI_GEMM(name, sub, offset, has_min)                                                             \
    static void gemm_##name(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens,   \
                            float *acc, float *accm) {                                                  \
        gemm_quants(p, k0, nk, x, n_tokens, sub, offset, acc);                                          \
        if (has_min) add_products(p->min, nk / 32, x->m + k0 / 32, x->k / 32, n_tokens, accm);          \
        else (void)accm;                                                                                \
    }
#define NI_GEMMS              \
    NI_GEMM(q4_0, 32, 8, 0)   \
    NI_GEMM(q5_0, 32, 16, 0)  \
    NI_GEMM(q8_0, 32, 0, 0)   \
    NI_GEMM(min, 32, 0, 1)    \
    NI_GEMM(q6_k, 16, 32, 0)  \
    NI_GEMM(seven, 32, 64, 0) \
    NI_GEMM(seven_nested, 16, 64, 0)
#endif
