/* gemm of quantised panels by sdot: each takes 4 rows and one token's k-group.
 *
 * Per 4 rows, token and block of 32: 8 sdot, a conversion, a product of scales and a fma. */
#ifndef NI_NEON_SDOT_H
#define NI_NEON_SDOT_H
#include "neon_gemm.h"

enum { TILE = 4 };   /* tokens: 16 sums, 4 registers of activations, 1 of weights */

NI_INLINE void tile_quants(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *a, int64_t t, int M, int sub,
                           int offset, float *out) {
    const int64_t k = a->k;
    const int8_t *q = a->q + t * k + k0;
    const float *d = a->d + (t * k + k0) / 32, *scale = p->scale;
    const int16_t *sums = offset ? a->s + (t * k + k0) / 16 : NULL;
    const uint8_t *w = p->q;
    float part[TILE * NI_ROWS], total[TILE * NI_ROWS] = {0}, *to = sub == 32 ? out : total;
    for (int64_t b = 0; b < nk; b += 32)
#pragma GCC unroll 2
        for (int e = 0; e < 32 / sub; e++, w += NI_ROWS * sub, scale += NI_ROWS) {
            const int64_t v = b + sub * e;
            int32x4_t s[TILE][4];
#pragma GCC unroll 4
            for (int m = 0; m < M; m++)
                QUADS(i) s[m][i] = vdupq_n_s32(offset ? start_of(sums + (m * k + v) / 16, sub, offset) : 0);
#pragma GCC unroll 2
            for (int j = 0; j < sub / 16; j++) {
                int8x16_t x[TILE];
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) x[m] = vld1q_s8(q + m * k + v + 16 * j);
                QUADS(g) {
                    QUADS(i) {
                        const uint8x16_t bytes = vld1q_u8(w + 64 * (4 * j + g) + 16 * i);
#pragma GCC unroll 4
                        for (int m = 0; m < M; m++) s[m][i] = dot4(s[m][i], bytes, x[m], g);
                    }
                    LOADS_STAY;
                }
            }
            QUADS(i) {
                const float32x4_t sc = vld1q_f32(scale + 4 * i);
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) {
                    const int at = NI_ROWS * m + 4 * i;
                    finish_rows(s[m][i], sc, d[(m * k + b) / 32], sub, e, part + at, to + at);
                }
            }
        }
    if (sub == 16) add_totals(total, p->min, M, out);
}

/* The tokens in tiles of at most TILE. */
NI_INLINE void gemm_quants(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, int sub,
                           int offset, float *acc) {
    int t = 0;
    for (; t + TILE <= n_tokens; t += TILE)
        tile_quants(p, k0, nk, x, t, TILE, sub, offset, acc + (size_t)t * NI_ROWS);
    switch (n_tokens - t) {
    case 3: tile_quants(p, k0, nk, x, t, 3, sub, offset, acc + (size_t)t * NI_ROWS); break;
    case 2: tile_quants(p, k0, nk, x, t, 2, sub, offset, acc + (size_t)t * NI_ROWS); break;
    case 1: tile_quants(p, k0, nk, x, t, 1, sub, offset, acc + (size_t)t * NI_ROWS); break;
    }
}
NI_GEMMS
#endif
