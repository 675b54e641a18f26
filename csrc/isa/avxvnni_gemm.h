/* Prefill with AVX-VNNI: one panel (16 rows x at most 256 values) times many tokens, in tiles of 16 rows x M tokens.
 *
 * A tile's integer sums live in registers for one sub-block, its float sums in L1: 2 x 6 sums, 2 weight vectors and 1
 * activation are 15 of the 16 registers.  One kernel serves the formats with sub-blocks of 32: vpdpbusd needs no care
 * for 16-bit sums, and an offset costs next to nothing, because the sums start at -offset * (sum of the activations).
 *
 * Measured on Zen 4 (whose vpdpbusd has another encoding): a block of 32 takes 12.4 cycles per token and 16 rows, 13.4
 * with minimums; AVX2 takes 14 to 15, for Q8_0 25. */
#ifndef NI_AVXVNNI_GEMM_H
#define NI_AVXVNNI_GEMM_H
#include "avx2_gemm.h"
#include "avxvnni_dot.h"

enum { VNNI_TILE = 6 };   /* tokens */

/* What a tile reads, side by side: tokens lie K bytes apart, and at a power of two they would fight for L1. */
typedef struct {
    _Alignas(32) int8_t q[VNNI_TILE][NI_SLAB];
    int32_t start[VNNI_TILE][NI_SLAB / 32];   /* where the integer sums start */
    float d[VNNI_TILE][NI_SLAB / 32];
} vnni_x;

/* x + flip where the activations have to be unsigned. */
NI_INLINE void vnni_copy(vnni_x *x, const ni_act *a, int64_t t, int64_t k0, int64_t nk, int M, int offset, char flip) {
    const __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)nk / 32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (int m = 0; m < M; m++) {
        const int8_t *q = a->q + (t + m) * a->k + k0;
        const int64_t b = ((t + m) * a->k + k0) / 32;
        for (int64_t i = 0; i < nk; i += 32)
            _mm256_store_si256((__m256i *)(x->q[m] + i), _mm256_xor_si256(load32(q + i), _mm256_set1_epi8(flip)));
        _mm256_store_ps(x->d[m], _mm256_maskload_ps(a->d + b, in));
        if (!offset) continue;
        const __m256i pairs = _mm256_maskload_epi32((const int *)(a->s + 2 * b), in);
        _mm256_store_si256((__m256i *)x->start[m], _mm256_madd_epi16(pairs, _mm256_set1_epi16((short)-offset)));
    }
}

/* Multiplies the panel's slab with M tokens.
 *
 * Signed weights (Q8_0): the activations are made unsigned, x + 128, and the sums start at w_start = -128 * (sum of the
 * weights), the same for all tokens. */
NI_INLINE void vnni_tile(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *a, int64_t t, int M, int offset,
                         const __m256i *w_start, float *out) {
    vnni_x x;
    vnni_copy(&x, a, t, k0, nk, M, offset, (char)(w_start ? 0x80 : 0));
    const uint8_t *w = p->q;
    const float *scale = p->scale;
    for (int64_t b = 0; b < nk / 32; b++, w += NI_ROWS * 32, scale += NI_ROWS) {
        __m256i s[VNNI_TILE][2];
#pragma GCC unroll 6
        for (int m = 0; m < M; m++)
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++)
                s[m][i] = w_start ? w_start[2 * b + i] :
                          offset ? _mm256_set1_epi32(x.start[m][b]) : _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i w0 = load32(w + 64 * j), w1 = load32(w + 64 * j + 32);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const __m256i xb = bcast4(x.q[m] + 32 * b + 4 * j);
                s[m][0] = w_start ? dpbusd(s[m][0], xb, w0) : dpbusd(s[m][0], w0, xb);
                s[m][1] = w_start ? dpbusd(s[m][1], xb, w1) : dpbusd(s[m][1], w1, xb);
                IN_ORDER(s[m][0]);
                IN_ORDER(s[m][1]);
            }
        }
        const __m256 sc0 = _mm256_loadu_ps(scale), sc1 = _mm256_loadu_ps(scale + 8);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            float *y = out + NI_ROWS * m;
            const __m256 dx = _mm256_broadcast_ss(x.d[m] + b);
            _mm256_storeu_ps(y, vnni_add(s[m][0], _mm256_mul_ps(sc0, dx), _mm256_loadu_ps(y)));
            _mm256_storeu_ps(y + 8, vnni_add(s[m][1], _mm256_mul_ps(sc1, dx), _mm256_loadu_ps(y + 8)));
        }
        asm volatile("" ::: "memory");   /* keeps gcc from holding the float sums in registers instead of the integer ones */
    }
}

/* The tokens in tiles of at most 6, as equal as can be (8 tokens are 4 + 4, not 6 + 2). */
NI_INLINE void vnni_quants(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, int offset,
                           const __m256i *w_start, float *acc) {
#define NI_TILE(M) case M: vnni_tile(p, k0, nk, x, t, M, offset, w_start, acc + (size_t)t * NI_ROWS); break;
    for (int t = 0, left = (n_tokens + VNNI_TILE - 1) / VNNI_TILE, n; t < n_tokens; t += n, left--) {
        n = (n_tokens - t + left - 1) / left;
        switch (n) { NI_TILE(1) NI_TILE(2) NI_TILE(3) NI_TILE(4) NI_TILE(5) NI_TILE(6) }
    }
#undef NI_TILE
}

#define NI_GEMM_VNNI(name, offset)                                                                            \
    static void gemm_vnni_##name(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens,   \
                                 float *acc, float *accm) {                                                  \
        (void)accm;                                                                                          \
        vnni_quants(p, k0, nk, x, n_tokens, offset, NULL, acc);                                              \
    }
NI_GEMM_VNNI(q4_0, 8)
NI_GEMM_VNNI(q5_0, 16)
NI_GEMM_VNNI(offset1, 1)
NI_GEMM_VNNI(seven, 64)   /* IQ3_XXS, IQ2_XXS: 7 bits less 64 */

/* Minimums are a product of floats over the sub-blocks. */
static void gemm_vnni_min(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc,
                          float *accm) {
    vnni_quants(p, k0, nk, x, n_tokens, 0, NULL, acc);
    const ni_panel min = {.f = p->min};
    const ni_act m = {.k = x->k / 32, .f = x->m};
    gemm_f32(&min, k0 / 32, nk / 32, &m, n_tokens, accm, NULL);
}

static void gemm_vnni_q8_0(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc,
                           float *accm) {
    (void)accm;
    __m256i start[2 * NI_SLAB / 32];
    for (int64_t b = 0; b < nk / 32; b++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            __m256i s = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++)
                s = dpbusd(s, _mm256_set1_epi8((char)0x80), load32(p->q + 512 * b + 64 * j + 32 * i));
            start[2 * b + i] = _mm256_sub_epi32(_mm256_setzero_si256(), s);
        }
    vnni_quants(p, k0, nk, x, n_tokens, 0, start, acc);
}
#endif
