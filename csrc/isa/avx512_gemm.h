/* Prefill with AVX-512: one panel (16 rows x at most NI_LONG_SLAB values) times many tokens, in tiles of 16 rows x M tokens.
 *
 * A tile's float sums stay in registers for the whole slab, its integer sums for one sub-block: 2 x 12 of the 32
 * registers.  Every multiply-add takes one weight register and one activation broadcast from memory, so the load ports
 * (two broadcasts a cycle) keep pace with one vpdpbusd a cycle.  In a slab tokens lie so near that the 12 lines in use share no
 * set of L1; in rows of a power of two they would fight for the 8 ways of one.
 *
 * A block of 32 costs 8 vpdpbusd, a product of scales and a fma per token, all on the same two pipes of Zen 4: at best
 * 10 cycles (with minimums and Q6_K: 11).  Measured, with unpacking: 10.7 (12.1; 12.1), float weights 1.1 cycles per 16 fma.
 * What is left above that is the trip of the sums to L2 once a slab, and weights that come from memory. */
#ifndef NI_AVX512_GEMM_H
#define NI_AVX512_GEMM_H
#include "avx512_util.h"

enum { TILE = 12, LONG = NI_LONG_SLAB };   /* tokens; values */

/* Keeps gcc from holding every product or broadcast in a register of its own. */
#if defined(NI_SIMDE)   /* no register holds them there */
#define IN_ORDER(v) ((void)(v))
#else
#define IN_ORDER(v) __asm__ volatile("" : "+v"(v))
#endif

/* s + the products of 4 unsigned weights a row and 4 activations.  With the broadcast as the instruction's operand, which
 * gcc 12 does not do, the reorder buffer sees twice as far ahead. */
NI_INLINE __m512i dot4(__m512i s, __m512i w, const int8_t *x) {
#if defined(NI_SIMDE)
    return _mm512_dpbusd_epi32(s, w, bcast4(x));
#else
    __asm__ volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(s) : "v"(w), "m"(*(const int8_t (*)[4])x));
    return s;
#endif
}

/* Broadcast by the load: gcc would go through a general register and take a pipe. */
NI_INLINE __m512i bcast_load(const int32_t *p) {
    __m512i v = _mm512_set1_epi32(*p);
    IN_ORDER(v);
    return v;
}

/* Slabs of quants: tokens lie `apart` values apart, whatever the slab's length, so that a tile's addresses are constants.
 * start: where integer sums start, -offset * (sum of a sub-block of 32 or 16).  flip: bits of each quant that change. */
NI_INLINE void fill_slab(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab, int apart,
                         int sub, int offset, int has_min, int flip) {
    int8_t *q = (int8_t *)to;
    float *d = (float *)(to + (size_t)n_tokens * apart), *m = d + n_tokens * (apart / 32);
    int32_t *start = (int32_t *)m;   /* no type has both */
    const __m256i flips = _mm256_set1_epi8((char)flip);
    *slab = (ni_act){.k = apart, .q = q, .d = d, .m = has_min ? m : NULL, .start = offset ? start : NULL};
    for (int64_t t = 0; t < n_tokens; t++, q += apart, d += apart / 32, m += apart / 32, start += apart / sub) {
        const int64_t at = t * x->k + k0;
        for (int64_t i = 0; i < nk; i += 32)
            _mm256_store_si256((__m256i *)(q + i), _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(x->q + at + i)), flips));
        for (int64_t i = 0; i < nk / 32; i += 8) {
            const int n = nk / 32 - i < 8 ? (int)(nk / 32 - i) : 8;
            const __mmask8 in = (__mmask8)((1u << n) - 1);
            _mm256_storeu_ps(d + i, _mm256_maskz_loadu_ps(in, x->d + at / 32 + i));
            if (has_min) _mm256_storeu_ps(m + i, _mm256_maskz_loadu_ps(in, x->m + at / 32 + i));
            if (!offset) continue;
            const __m256i s = _mm256_maskz_loadu_epi16((__mmask16)((1u << 2 * n) - 1), x->s + at / 16 + 2 * i);
            if (sub == 32) _mm256_storeu_si256((__m256i *)(start + i), _mm256_madd_epi16(s, _mm256_set1_epi16((short)-offset)));
            else store64(start + 2 * i, _mm512_mullo_epi32(_mm512_cvtepi16_epi32(s), _mm512_set1_epi32(-offset)));
        }
    }
}

/* Multiplies the panel's slab with M tokens: all types but Q6_K.
 *
 * Unsigned weights: the sums start at -offset * (sum of the activations).  Signed ones (Q8_0): the slab holds unsigned
 * activations, x + 128, and the sums start at w_start[b] = -128 * (sum of the weights), the same for all tokens. */
NI_INLINE void tile_quants(const ni_panel *p, int64_t nk, const ni_act *a, int64_t t, int M, int offset,
                           const __m512i *w_start, float *out) {
    const int8_t *q = a->q + t * LONG;
    const float *scale = p->scale, *d = a->d + t * (LONG / 32);
    const int32_t *start = offset ? a->start + t * (LONG / 32) : NULL;
    const uint8_t *w = p->q;
    __m512 acc[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) acc[m] = _mm512_loadu_ps(out + NI_ROWS * m);
    for (int64_t b = 0; b < nk / 32; b++, w += 512, scale += NI_ROWS, q += 32, d++) {
        __m512i s[TILE];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++)
            s[m] = w_start ? w_start[b] : offset ? bcast_load(start + b + LONG / 32 * m) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m512i v = load64(w + 64 * j);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
                if (w_start) {
                    s[m] = _mm512_dpbusd_epi32(s[m], bcast4(q + LONG * m + 4 * j), v);
                    IN_ORDER(s[m]);
                } else {
                    s[m] = dot4(s[m], v, q + LONG * m + 4 * j);
                }
        }
        const __m512 sc = _mm512_loadu_ps(scale);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            const __m512 both = _mm512_mul_ps(sc, _mm512_set1_ps(d[LONG / 32 * m]));
            acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[m]), both, acc[m]);
            IN_ORDER(acc[m]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) _mm512_storeu_ps(out + NI_ROWS * m, acc[m]);
}

/* Q6_K, a block of 256.  Two sub-blocks meet in one float, so half of the tokens go first: 2 x 6 integer sums. */
NI_INLINE void tile_q6(const ni_panel *p, const ni_act *a, int64_t t, int M, float *out) {
    const int8_t *q = a->q + t * NI_SLAB;
    const float *scale = p->scale, *d = a->d + t * (NI_SLAB / 32);
    const int32_t *start = a->start + t * (NI_SLAB / 16);
    const uint8_t *w = p->q;
    __m512 total[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int64_t b = 0; b < NI_SLAB / 32; b++, w += 512, scale += 2 * NI_ROWS, q += 32, d++, start += 2) {
        const __m512 sc0 = _mm512_loadu_ps(scale), sc1 = _mm512_loadu_ps(scale + NI_ROWS);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const int m0 = half ? (M + 1) / 2 : 0, m1 = half ? M : (M + 1) / 2;
            __m512i s[2][TILE / 2];
#pragma GCC unroll 8
            for (int m = m0; m < m1; m++) {
                s[0][m - m0] = bcast_load(start + NI_SLAB / 16 * m);
                s[1][m - m0] = bcast_load(start + NI_SLAB / 16 * m + 1);
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
                for (int e = 0; e < 2; e++) {
                    const __m512i v = load64(w + 256 * e + 64 * j);
#pragma GCC unroll 8
                    for (int m = m0; m < m1; m++) s[e][m - m0] = dot4(s[e][m - m0], v, q + NI_SLAB * m + 16 * e + 4 * j);
                }
#pragma GCC unroll 8
            for (int m = m0; m < m1; m++) {
                const __m512 isum = q6_isum(s[0][m - m0], s[1][m - m0], sc0, sc1);
                total[m] = _mm512_fmadd_ps(isum, _mm512_set1_ps(d[NI_SLAB / 32 * m]), total[m]);
                IN_ORDER(total[m]);
            }
        }
    }
    const __m512 scale256 = _mm512_loadu_ps(p->min);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++, out += NI_ROWS)
        _mm512_storeu_ps(out, _mm512_fmadd_ps(total[m], scale256, _mm512_loadu_ps(out)));
}

/* acc[m] = fma(w, x, acc[m]) for n values of 16 rows: minimums (w: min, x: m, n: sub-blocks). */
NI_INLINE void tile_min(const float *w, int64_t n, const float *x, int64_t stride, int M, float *out) {
    __m512 acc[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) acc[m] = _mm512_loadu_ps(out + NI_ROWS * m);
    for (int64_t k = 0; k < n; k++) {
        const __m512 v = _mm512_loadu_ps(w + NI_ROWS * k);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            acc[m] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[m * stride + k]), acc[m]);
            IN_ORDER(acc[m]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) _mm512_storeu_ps(out + NI_ROWS * m, acc[m]);
}

/* Float weights: the same, with the activations copied 16 values ahead. */
NI_INLINE void copy_floats(float to[TILE][16], const float *x, int64_t stride, int M, int64_t n) {
    const __mmask16 in = (__mmask16)((1u << n) - 1);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++, x += stride) _mm512_store_ps(to[m], _mm512_maskz_loadu_ps(in, x));
}

NI_INLINE void tile_f32(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *a, int64_t t, int M, float *out) {
    _Alignas(64) float ahead[2][TILE][16];
    const float *x = a->f + t * a->k + k0, *w = p->f;
    __m512 acc[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) acc[m] = _mm512_loadu_ps(out + NI_ROWS * m);
    int64_t n = nk < 16 ? nk : 16;
    copy_floats(ahead[0], x, a->k, M, n);
    for (int64_t k = 0; k < nk;) {
        const float (*xf)[16] = ahead[k / 16 % 2];
        const int64_t now = n;
        k += n;
        n = nk - k < 16 ? nk - k : 16;
        copy_floats(ahead[(k + 15) / 16 % 2], x + k, a->k, M, n);
        for (int64_t i = 0; i < now; i++, w += NI_ROWS) {
            const __m512 v = _mm512_loadu_ps(w);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                acc[m] = _mm512_fmadd_ps(v, _mm512_set1_ps(xf[m][i]), acc[m]);
                IN_ORDER(acc[m]);
            }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) _mm512_storeu_ps(out + NI_ROWS * m, acc[m]);
}

/* Runs `tile` for M tokens, with M a constant in each call. */
#define NI_TILE_CASE(n, tile) case n: { enum { m_ = n }; tile; } break;
#define NI_TILES(M, tile)                                                                            \
    switch (M) {                                                                                     \
    NI_TILE_CASE(1, tile) NI_TILE_CASE(2, tile) NI_TILE_CASE(3, tile) NI_TILE_CASE(4, tile)          \
    NI_TILE_CASE(5, tile) NI_TILE_CASE(6, tile) NI_TILE_CASE(7, tile) NI_TILE_CASE(8, tile)          \
    NI_TILE_CASE(9, tile) NI_TILE_CASE(10, tile) NI_TILE_CASE(11, tile) NI_TILE_CASE(12, tile)       \
    }

/* Defines gemm_<name>: the tokens in tiles of at most `most`, as equal as can be (16 tokens are 8 + 8, not 12 + 4). */
#define NI_GEMM(name, most, has_min, before, tile)                                                                    \
    static void gemm_##name(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens,           \
                            float *acc, float *accm) {                                                          \
        before;                                                                                                 \
        (void)k0;                                                                                               \
        for (int t = 0, left = (n_tokens + (most) - 1) / (most), M; t < n_tokens; t += M, left--) {                 \
            float *out = acc + (size_t)t * NI_ROWS;                                                             \
            M = (n_tokens - t + left - 1) / left;                                                               \
            NI_TILES(M, tile)                                                                                   \
            if (has_min) {                                                                                      \
                const int64_t k32 = x->k / 32;                                                                  \
                float *outm = accm + (size_t)t * NI_ROWS;                                                       \
                NI_TILES(M, tile_min(p->min, nk / 32, x->m + t * k32 + k0 / 32, k32, m_, outm))               \
            }                                                                                                   \
        }                                                                                                       \
    }

/* -128 * (sum of the weights) per block and row. */
NI_INLINE void q8_starts(const ni_panel *p, int64_t nk, __m512i *start) {
    for (int64_t b = 0; b < nk / 32; b++) {
        __m512i s = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            s = _mm512_dpbusd_epi32(s, _mm512_set1_epi8((char)0x80), load64(p->q + 512 * b + 64 * j));
        start[b] = _mm512_sub_epi32(_mm512_setzero_si512(), s);
    }
}

static void gather_q8_0(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    fill_slab(x, k0, nk, n_tokens, to, slab, LONG, 32, 0, 0, 0x80);
}

#define NI_GATHER(name, apart, sub, offset, has_min)                                                                   \
    static void gather_##name(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {      \
        fill_slab(x, k0, nk, n_tokens, to, slab, apart, sub, offset, has_min, 0);                                      \
    }
NI_GATHER(q4_0, LONG, 32, 8, 0)
NI_GATHER(q5_0, LONG, 32, 16, 0)
NI_GATHER(min, LONG, 32, 0, 1)
NI_GATHER(q6_k, NI_SLAB, 16, 32, 0)
NI_GATHER(seven, LONG, 32, 64, 0)   /* IQ3_XXS and IQ2_*: 7 bits less 64 */
NI_GATHER(seven_nested, NI_SLAB, 16, 64, 0)

NI_GEMM(f32, 8, 0, (void)accm, tile_f32(p, k0, nk, x, t, m_, out))
NI_GEMM(q4_0, TILE, 0, (void)accm, tile_quants(p, nk, x, t, m_, 8, NULL, out))
NI_GEMM(q5_0, TILE, 0, (void)accm, tile_quants(p, nk, x, t, m_, 16, NULL, out))
NI_GEMM(seven, TILE, 0, (void)accm, tile_quants(p, nk, x, t, m_, 64, NULL, out))
NI_GEMM(min, TILE, 1, (void)accm, tile_quants(p, nk, x, t, m_, 0, NULL, out))
NI_GEMM(q6_k, TILE, 0, (void)accm; (void)nk, tile_q6(p, x, t, m_, out))
NI_GEMM(q8_0, TILE, 0, (void)accm; __m512i w_start[LONG / 32]; q8_starts(p, nk, w_start),
        tile_quants(p, nk, x, t, m_, 0, w_start, out))
#endif
