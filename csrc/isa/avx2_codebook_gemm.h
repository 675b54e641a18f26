/* gemm with AVX2 for quants of 7 bits less 64 (IQ3_XXS, IQ2_*): two products just fit 16 bits, four do not, so that every pair goes on to
 * 32 bits; with sub-blocks of 16 it is multiplied by its scale on the way. */
#ifndef NI_AVX2_CODEBOOK_GEMM_H
#define NI_AVX2_CODEBOOK_GEMM_H
#include "avx2_gemm.h"

NI_INLINE void tile_seven(const ni_panel *p, int64_t nk, gemm_tokens a, int M, float *acc) {
    const uint8_t *w = p->q;
    for (int64_t b = 0; b < nk / 32; b++, w += 512) {
        __m256i s[6][2];
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) s[m][0] = s[m][1] = offset32(a.s + m * a.k16 + 2 * b, -64);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i w0 = load32(w + 64 * j), w1 = load32(w + 64 * j + 32);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const __m256i xb = bcast4(a.q + m * a.k + 32 * b + 4 * j);
                s[m][0] = _mm256_add_epi32(s[m][0], widen(_mm256_maddubs_epi16(w0, xb)));
                IN_ORDER(s[m][0]);
                s[m][1] = _mm256_add_epi32(s[m][1], widen(_mm256_maddubs_epi16(w1, xb)));
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b);
            finish(s[m][0], p->scale + NI_ROWS * b, dx, acc + NI_ROWS * m);
            finish(s[m][1], p->scale + NI_ROWS * b + 8, dx, acc + NI_ROWS * m + 8);
        }
        KEEP_IN_MEMORY;
    }
}
NI_GEMM(seven, 5, 0, tile_seven(p, nk, a, m_, out))

/* A block of 256, prepared for all tokens, 16 bits each. */
typedef struct {
    __m256i sc[NI_SLAB / 16][2];      /* every scale twice */
    __m256i start[NI_SLAB / 32][2];   /* -64 times the scales of both halves of 32 values */
} seven_panel;

NI_INLINE void tile_seven_nested(const ni_panel *p, const seven_panel *own, gemm_tokens a, int M, float *acc) {
    const uint8_t *w = p->q;
    float total[6 * NI_ROWS];
    for (int i = 0; i < 2 * M; i++) _mm256_storeu_ps(total + 8 * i, _mm256_setzero_ps());
    for (int64_t b = 0; b < NI_SLAB / 32; b++, w += 512) {
        __m256i s[6][2];
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256i sums = bcast4((const int8_t *)(a.s + m * a.k16 + 2 * b));
            s[m][0] = _mm256_madd_epi16(own->start[b][0], sums);
            s[m][1] = _mm256_madd_epi16(own->start[b][1], sums);
        }
#pragma GCC unroll 2
        for (int e = 0; e < 2; e++) {
            const __m256i sc0 = own->sc[2 * b + e][0], sc1 = own->sc[2 * b + e][1];
#pragma GCC unroll 4
            for (int j = 4 * e; j < 4 * e + 4; j++) {
                const __m256i w0 = load32(w + 64 * j), w1 = load32(w + 64 * j + 32);
#pragma GCC unroll 6
                for (int m = 0; m < M; m++) {
                    const __m256i xb = bcast4(a.q + m * a.k + 32 * b + 4 * j);
                    s[m][0] = _mm256_add_epi32(s[m][0], _mm256_madd_epi16(_mm256_maddubs_epi16(w0, xb), sc0));
                    IN_ORDER(s[m][0]);
                    s[m][1] = _mm256_add_epi32(s[m][1], _mm256_madd_epi16(_mm256_maddubs_epi16(w1, xb), sc1));
                    IN_ORDER(s[m][1]);
                }
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                float *to = total + NI_ROWS * m + 8 * i;
                _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[m][i]), dx, _mm256_loadu_ps(to)));
            }
        }
        KEEP_IN_MEMORY;
    }
    for (int i = 0; i < 2 * M; i++)
        _mm256_storeu_ps(acc + 8 * i, _mm256_fmadd_ps(_mm256_loadu_ps(total + 8 * i), _mm256_loadu_ps(p->min + 8 * (i % 2)),
                                                      _mm256_loadu_ps(acc + 8 * i)));
}
NI_GEMM(seven_nested_own, 4, 0, tile_seven_nested(p, (const seven_panel *)p->f, a, m_, out))

static void gemm_seven_nested(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {
    seven_panel own;
    for (int s = 0; s < NI_SLAB / 16; s += 2)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i a = _mm256_cvtps_epi32(_mm256_loadu_ps(p->scale + NI_ROWS * s + 8 * i));
            const __m256i b = _mm256_cvtps_epi32(_mm256_loadu_ps(p->scale + NI_ROWS * (s + 1) + 8 * i));
            own.sc[s][i] = _mm256_or_si256(a, _mm256_slli_epi32(a, 16));
            own.sc[s + 1][i] = _mm256_or_si256(b, _mm256_slli_epi32(b, 16));
            own.start[s / 2][i] = _mm256_mullo_epi16(_mm256_or_si256(a, _mm256_slli_epi32(b, 16)), _mm256_set1_epi16(-64));
        }
    const ni_panel with = {.q = p->q, .min = p->min, .f = (float *)&own};
    gemm_seven_nested_own(&with, k0, nk, x, n_tokens, acc, accm);
}
#endif
