/* Prefill with AVX-512: one panel (16 rows x at most 256 values) times many tokens, in tiles of 16 rows x M tokens.
 *
 * A tile's float sums stay in registers for the whole slab, its integer sums for one sub-block: 2 x 12 of the 32
 * registers.  Every multiply-add takes one weight register and one activation broadcast from memory, so the load ports
 * (two broadcasts a cycle) keep pace with one vpdpbusd a cycle.  The tile's activations are copied side by side:
 * tokens lie K bytes apart, and 12 lines at a power of two would fight for the 8 ways of one set of L1.
 *
 * A block of 32 costs 8 vpdpbusd, a product of scales and a fma per token, all on the same two pipes of Zen 4: at best
 * 10 cycles (with minimums and Q6_K: 11).  Measured: 11.0 (12.3; 12.5), float weights 1.05 cycles per 16 fma. */
#ifndef NI_AVX512_GEMM_H
#define NI_AVX512_GEMM_H
#include "avx512_util.h"

enum { TILE = 12 };   /* tokens */

/* Keeps gcc from holding every product or broadcast in a register of its own. */
#if defined(NI_SIMDE)   /* no register holds them there */
#define IN_ORDER(v) ((void)(v))
#else
#define IN_ORDER(v) __asm__ volatile("" : "+v"(v))
#endif

/* Activations of a tile.  The quants are copied one block of 32 ahead, spread among the multiply-adds: a burst of
 * stores would fill the store queue and stall. */
typedef struct {
    _Alignas(64) int8_t q[2][TILE][32];
    int32_t start[TILE][NI_SLAB / 16];   /* where the integer sums start */
    float d[TILE][NI_SLAB / 32];
} tile_x;

NI_INLINE void copy_block(int8_t *to, const int8_t *q, char flip) {
    __m256i v = _mm256_loadu_si256((const __m256i *)q);
    if (flip) v = _mm256_xor_si256(v, _mm256_set1_epi8(flip));
    _mm256_store_si256((__m256i *)to, v);
}

NI_INLINE void copy_scales(tile_x *x, const ni_act *a, int64_t t, int64_t k0, int64_t nk, int M) {
    const float *d = a->d + t * (a->k / 32) + k0 / 32;
    const __mmask8 in = (__mmask8)((1u << nk / 32) - 1);
    for (int m = 0; m < M; m++, d += a->k / 32) _mm256_store_ps(x->d[m], _mm256_maskz_loadu_ps(in, d));
}

/* start = -offset * (sum of a sub-block), sub-blocks of 32 or 16. */
NI_INLINE void start_sums(tile_x *x, const ni_act *a, int64_t t, int64_t k0, int64_t nk, int M, int sub, int offset) {
    const int16_t *s = a->s + t * (a->k / 16) + k0 / 16;
    const __mmask16 in = (__mmask16)((1u << nk / 16) - 1);
    for (int m = 0; m < M; m++, s += a->k / 16) {
        const __m256i v = _mm256_maskz_loadu_epi16(in, s);
        if (sub == 32)
            _mm256_store_si256((__m256i *)x->start[m], _mm256_madd_epi16(v, _mm256_set1_epi16((short)-offset)));
        else
            store64(x->start[m], _mm512_mullo_epi32(_mm512_cvtepi16_epi32(v), _mm512_set1_epi32(-offset)));
    }
}

/* Multiplies the panel's slab with M tokens: all types but Q6_K.
 *
 * Unsigned weights: the sums start at -offset * (sum of the activations).  Signed ones (Q8_0): the activations are made
 * unsigned, x + 128, and the sums start at w_start[b] = -128 * (sum of the weights), the same for all tokens. */
NI_INLINE void tile_quants(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *a, int64_t t, int M,
                           int offset, const __m512i *w_start, float *out) {
    tile_x x;
    const int8_t *q = a->q + t * a->k + k0, *last = q + nk - 32;
    const char flip = (char)(w_start ? 0x80 : 0);
    for (int m = 0; m < M; m++) copy_block(x.q[0][m], q + m * a->k, flip);
    copy_scales(&x, a, t, k0, nk, M);
    if (offset) start_sums(&x, a, t, k0, nk, M, 32, offset);
    const uint8_t *w = p->q;
    const float *scale = p->scale;
    __m512 acc[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) acc[m] = _mm512_loadu_ps(out + NI_ROWS * m);
    for (int64_t b = 0; b < nk / 32; b++, w += 512, scale += NI_ROWS) {
        const int8_t (*xq)[32] = x.q[b % 2];
        int8_t (*next)[32] = x.q[(b + 1) % 2];
        q = q < last ? q + 32 : q;
        const int8_t *from = q;
        __m512i s[TILE];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++)
            s[m] = w_start ? w_start[b] : offset ? _mm512_set1_epi32(x.start[m][b]) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m512i v = load64(w + 64 * j);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
                if (m * 8 / M == j) {
                    copy_block(next[m], from, flip);
                    from += a->k;
                }
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                const __m512i xb = bcast4(xq[m] + 4 * j);
                s[m] = w_start ? _mm512_dpbusd_epi32(s[m], xb, v) : _mm512_dpbusd_epi32(s[m], v, xb);
                IN_ORDER(s[m]);
            }
        }
        const __m512 sc = _mm512_loadu_ps(scale);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            const __m512 both = _mm512_mul_ps(sc, _mm512_set1_ps(x.d[m][b]));
            acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[m]), both, acc[m]);
            IN_ORDER(acc[m]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) _mm512_storeu_ps(out + NI_ROWS * m, acc[m]);
}

/* Q6_K, a block of 256.  Two sub-blocks meet in one float, so half of the tokens go first: 2 x 6 integer sums. */
NI_INLINE void tile_q6(const ni_panel *p, int64_t k0, const ni_act *a, int64_t t, int M, float *out) {
    tile_x x;
    const int8_t *q = a->q + t * a->k + k0, *last = q + NI_SLAB - 32;
    for (int m = 0; m < M; m++) copy_block(x.q[0][m], q + m * a->k, 0);
    copy_scales(&x, a, t, k0, NI_SLAB, M);
    start_sums(&x, a, t, k0, NI_SLAB, M, 16, 32);
    const uint8_t *w = p->q;
    const float *scale = p->scale;
    __m512 total[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int64_t b = 0; b < NI_SLAB / 32; b++, w += 512, scale += 2 * NI_ROWS) {
        const int8_t (*xq)[32] = x.q[b % 2];
        int8_t (*next)[32] = x.q[(b + 1) % 2];
        q = q < last ? q + 32 : q;
        const int8_t *from = q;
        const __m512 sc0 = _mm512_loadu_ps(scale), sc1 = _mm512_loadu_ps(scale + NI_ROWS);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const int m0 = half ? (M + 1) / 2 : 0, m1 = half ? M : (M + 1) / 2;
            __m512i s[2][TILE / 2];
#pragma GCC unroll 8
            for (int m = m0; m < m1; m++) {
                s[0][m - m0] = _mm512_set1_epi32(x.start[m][2 * b]);
                s[1][m - m0] = _mm512_set1_epi32(x.start[m][2 * b + 1]);
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
#pragma GCC unroll 16
                for (int m = 0; m < M; m++)
                    if (m * 8 / M == half * 4 + j) {
                        copy_block(next[m], from, 0);
                        from += a->k;
                    }
#pragma GCC unroll 2
                for (int e = 0; e < 2; e++) {
                    const __m512i v = load64(w + 256 * e + 64 * j);
#pragma GCC unroll 8
                    for (int m = m0; m < m1; m++) {
                        s[e][m - m0] = _mm512_dpbusd_epi32(s[e][m - m0], v, bcast4(xq[m] + 16 * e + 4 * j));
                        IN_ORDER(s[e][m - m0]);
                    }
                }
            }
#pragma GCC unroll 8
            for (int m = m0; m < m1; m++) {
                const __m512 isum = q6_isum(s[0][m - m0], s[1][m - m0], sc0, sc1);
                total[m] = _mm512_fmadd_ps(isum, _mm512_set1_ps(x.d[m][b]), total[m]);
                IN_ORDER(total[m]);
            }
        }
    }
    const __m512 d = _mm512_loadu_ps(p->min);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++, out += NI_ROWS)
        _mm512_storeu_ps(out, _mm512_fmadd_ps(total[m], d, _mm512_loadu_ps(out)));
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

NI_GEMM(f32, 8, 0, (void)accm, tile_f32(p, k0, nk, x, t, m_, out))
NI_GEMM(q4_0, TILE, 0, (void)accm, tile_quants(p, k0, nk, x, t, m_, 8, NULL, out))
NI_GEMM(q5_0, TILE, 0, (void)accm, tile_quants(p, k0, nk, x, t, m_, 16, NULL, out))
NI_GEMM(min, TILE, 1, (void)accm, tile_quants(p, k0, nk, x, t, m_, 0, NULL, out))
NI_GEMM(q6_k, TILE, 0, (void)accm; (void)nk, tile_q6(p, k0, x, t, m_, out))
NI_GEMM(q8_0, TILE, 0, (void)accm; __m512i start[NI_SLAB / 32]; q8_starts(p, nk, start),
        tile_quants(p, k0, nk, x, t, m_, 0, start, out))
#endif
