/* gemm of quantised panels by smmla: each takes 2 rows, 2 tokens and 8 values, twice the work of an sdot.
 *
 * Its operands are pairs of 8-byte rows, so the panel is first laid out anew, once for all tokens: two k-groups of a
 * row become neighbours.  Its sums are 2 x 2 (row, token); two of them are sorted into 4 rows of one token and 4 of the
 * other.  An odd last token is paired with itself, and the twin's sums are dropped.
 *
 * Per 4 rows, token and block of 32: 4 smmla, a shuffle, a conversion, a product of scales and a fma. */
#ifndef NI_NEON_SMMLA_H
#define NI_NEON_SMMLA_H
#include "neon_gemm.h"

enum { PAIRS = 3 };   /* of tokens: 24 sums, 3 registers of activations, 1 of weights */

/* out: [nk/8][8 row pairs][2 rows][8 values] */
NI_INLINE void pair_rows(const uint8_t *q, int64_t nk, uint8_t *out) {
    for (int64_t j = 0; j < nk / 8; j++, q += 128, out += 128)
        QUADS(i) {
            const uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(q + 16 * i));
            const uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(q + 64 + 16 * i));
            vst1q_u8(out + 32 * i, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
            vst1q_u8(out + 32 * i + 16, vreinterpretq_u8_u32(vzip2q_u32(a, b)));
        }
}

/* M tokens, 2 P - 1 or 2 P.  w: the panel's quants in pairs. */
NI_INLINE void tile_quants(const ni_panel *p, const uint8_t *w, int64_t k0, int64_t nk, const ni_act *a, int64_t t,
                           int M, int sub, int offset, float *out) {
    const int P = (M + 1) / 2;
    const int64_t k = a->k;
    const int8_t *q = a->q + t * k + k0;
    const float *d = a->d + (t * k + k0) / 32, *scale = p->scale;
    const int16_t *sums = offset ? a->s + (t * k + k0) / 16 : NULL;
    float part[2 * PAIRS * NI_ROWS], total[2 * PAIRS * NI_ROWS] = {0}, *to = sub == 32 ? out : total;
    for (int64_t b = 0; b < nk; b += 32)
#pragma GCC unroll 2
        for (int e = 0; e < 32 / sub; e++, w += NI_ROWS * sub, scale += NI_ROWS) {
            const int64_t v = b + sub * e;
            int32x4_t s[PAIRS][8];
#pragma GCC unroll 3
            for (int m = 0; m < P; m++) {
                const int64_t m0 = 2 * m, m1 = 2 * m + (2 * m + 1 < M);
                const int32_t s0 = offset ? start_of(sums + (m0 * k + v) / 16, sub, offset) : 0;
                const int32_t s1 = offset ? start_of(sums + (m1 * k + v) / 16, sub, offset) : 0;
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) s[m][i] = (int32x4_t){s0, s1, s0, s1};
            }
#pragma GCC unroll 4
            for (int j = 0; j < sub / 8; j++) {
                int8x16_t x[PAIRS];
#pragma GCC unroll 3
                for (int m = 0; m < P; m++) {
                    const int64_t m0 = 2 * m, m1 = 2 * m + (2 * m + 1 < M);
                    x[m] = vcombine_s8(vld1_s8(q + m0 * k + v + 8 * j), vld1_s8(q + m1 * k + v + 8 * j));
                }
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    const int8x16_t rows = vreinterpretq_s8_u8(vld1q_u8(w + 128 * j + 16 * i));
#pragma GCC unroll 3
                    for (int m = 0; m < P; m++) s[m][i] = vmmlaq_s32(s[m][i], rows, x[m]);
                }
                LOADS_STAY;
            }
            QUADS(i) {
                const float32x4_t sc = vld1q_f32(scale + 4 * i);
#pragma GCC unroll 6
                for (int m = 0; m < M; m++) {
                    const int32x4_t a0 = s[m / 2][2 * i], a1 = s[m / 2][2 * i + 1];
                    const int32x4_t isum = m % 2 ? vuzp2q_s32(a0, a1) : vuzp1q_s32(a0, a1);
                    const int at = NI_ROWS * m + 4 * i;
                    finish_rows(isum, sc, d[(m * k + b) / 32], sub, e, part + at, to + at);
                }
            }
        }
    if (sub == 16) add_totals(total, p->min, M, out);
}

/* The tokens in tiles of at most 2 PAIRS. */
NI_INLINE void gemm_quants(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, int sub,
                           int offset, float *acc) {
    uint8_t w[NI_SLAB * NI_ROWS];
    pair_rows(p->q, nk, w);
#define NI_TILE(M) tile_quants(p, w, k0, nk, x, t, M, sub, offset, acc + (size_t)t * NI_ROWS)
    int t = 0;
    for (; t + 2 * PAIRS <= n_tokens; t += 2 * PAIRS) NI_TILE(2 * PAIRS);
    switch (n_tokens - t) {
    case 5: NI_TILE(5); break;
    case 4: NI_TILE(4); break;
    case 3: NI_TILE(3); break;
    case 2: NI_TILE(2); break;
    case 1: NI_TILE(1); break;
    }
#undef NI_TILE
}
NI_GEMMS
#endif
