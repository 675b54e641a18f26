/* Prefill with AVX2: one panel (16 rows x at most 256 values) times many tokens, in tiles of 16 rows x M tokens.
 *
 * The integer sums of a tile live in registers for one sub-block; its float sums stay in acc (L1) and are read and
 * written once per sub-block.  Minimums are a second, tiny float product over the sub-blocks.  M is a constant
 * wherever it matters: 2 x 6 sums, 2 weight vectors, 1 activation and 1 temporary are the 16 registers. */
#ifndef NI_AVX2_GEMM_H
#define NI_AVX2_GEMM_H
#include "avx2_util.h"

/* Keeps gcc from holding a tile's float sums in registers (it would spill the integer sums instead). */
#define KEEP_IN_MEMORY asm volatile("" ::: "memory")

/* What a tile of tokens reads; strides are per token. */
typedef struct {
    const int8_t *q;
    const float *d, *m, *f;
    const int16_t *s;
    int64_t k, k32, k16;
} gemm_tokens;

NI_INLINE gemm_tokens tokens_at(const ni_act *x, int64_t t, int64_t k0) {
    gemm_tokens a = {.k = x->k, .k32 = x->k / 32, .k16 = x->k / 16};
    if (x->q) a.q = x->q + t * a.k + k0;
    if (x->d) a.d = x->d + t * a.k32 + k0 / 32;
    if (x->m) a.m = x->m + t * a.k32 + k0 / 32;
    if (x->s) a.s = x->s + t * a.k16 + k0 / 16;
    if (x->f) a.f = x->f + t * a.k + k0;
    return a;
}

/* acc = fma(isum, scale * d_x, acc) for one half of one token. */
NI_INLINE void finish(__m256i isum, const float *scale, __m256 dx, float *acc) {
    __m256 s = _mm256_mul_ps(_mm256_loadu_ps(scale), dx);
    _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), s, _mm256_loadu_ps(acc)));
}

/* 4-bit: all 8 k-groups of a sub-block fit 16 bits. */
NI_INLINE void tile_q4(const ni_panel *p, int64_t nk, gemm_tokens a, int M, int offset, float *acc) {
    const uint8_t *w = p->q;
    const float *scale = p->scale;
    for (int64_t b = 0; b < nk / 32; b++, w += 512) {
        __m256i s[6][2];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i w0 = load32(w + 64 * j), w1 = load32(w + 64 * j + 32);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const __m256i xb = bcast4(a.q + m * a.k + 32 * b + 4 * j);
                __m256i v0 = _mm256_maddubs_epi16(w0, xb), v1 = _mm256_maddubs_epi16(w1, xb);
                s[m][0] = j ? _mm256_add_epi16(s[m][0], v0) : v0;
                s[m][1] = j ? _mm256_add_epi16(s[m][1], v1) : v1;
                IN_ORDER(s[m][0]);
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b);
            __m256i i0 = widen(s[m][0]), i1 = widen(s[m][1]);
            if (offset) {
                const __m256i off = offset32(a.s + m * a.k16 + 2 * b, offset);
                i0 = _mm256_sub_epi32(i0, off);
                i1 = _mm256_sub_epi32(i1, off);
            }
            finish(i0, scale + NI_ROWS * b, dx, acc + NI_ROWS * m);
            finish(i1, scale + NI_ROWS * b + 8, dx, acc + NI_ROWS * m + 8);
        }
        KEEP_IN_MEMORY;
    }
}

/* 5-bit: 4 k-groups fit 16 bits, so a sub-block is two runs. */
NI_INLINE void tile_q5(const ni_panel *p, int64_t nk, gemm_tokens a, int M, int offset, float *acc) {
    const uint8_t *w = p->q;
    const float *scale = p->scale;
    for (int64_t b = 0; b < nk / 32; b++, w += 512) {
        __m256i s[6][2], first[6][2];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i w0 = load32(w + 64 * j), w1 = load32(w + 64 * j + 32);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const __m256i xb = bcast4(a.q + m * a.k + 32 * b + 4 * j);
                __m256i v0 = _mm256_maddubs_epi16(w0, xb), v1 = _mm256_maddubs_epi16(w1, xb);
                if (j == 4) {
                    first[m][0] = widen(s[m][0]);
                    first[m][1] = widen(s[m][1]);
                }
                s[m][0] = j % 4 ? _mm256_add_epi16(s[m][0], v0) : v0;
                s[m][1] = j % 4 ? _mm256_add_epi16(s[m][1], v1) : v1;
                IN_ORDER(s[m][0]);
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b);
            __m256i i0 = _mm256_add_epi32(first[m][0], widen(s[m][0]));
            __m256i i1 = _mm256_add_epi32(first[m][1], widen(s[m][1]));
            if (offset) {
                const __m256i off = offset32(a.s + m * a.k16 + 2 * b, offset);
                i0 = _mm256_sub_epi32(i0, off);
                i1 = _mm256_sub_epi32(i1, off);
            }
            finish(i0, scale + NI_ROWS * b, dx, acc + NI_ROWS * m);
            finish(i1, scale + NI_ROWS * b + 8, dx, acc + NI_ROWS * m + 8);
        }
        KEEP_IN_MEMORY;
    }
}

/* Q6_K, a block of 256, prepared for all tokens.
 *
 * As in q6_starts, 16-bit sums of 8 products may wrap where they start right.  Here the weights become signed and the
 * activations x + 128, so that the start, -128 * (sum of the 8 weights), is the same for all tokens. */
typedef struct {
    __m256i q[NI_SLAB / 4][2];        /* q - 32 */
    __m256i start[NI_SLAB / 16][2];
    __m256i sc[NI_SLAB / 16][2];      /* every scale twice, 16 bits each */
} q6_panel;

NI_INLINE void tile_q6(const q6_panel *p, const float *d, gemm_tokens a, int M, float *acc) {
    uint8_t x[6][NI_SLAB];
    float total[6 * NI_ROWS];
    const __m256i flip = _mm256_set1_epi8((char)0x80);
#pragma GCC unroll 6
    for (int m = 0; m < M; m++)
        for (int i = 0; i < NI_SLAB; i += 32)
            _mm256_storeu_si256((__m256i *)(x[m] + i), _mm256_xor_si256(load32(a.q + m * a.k + i), flip));
    for (int i = 0; i < 2 * M; i++) _mm256_storeu_ps(total + 8 * i, _mm256_setzero_ps());
    for (int64_t b = 0; b < NI_SLAB / 32; b++) {
        __m256i s[6][2], first[6][2];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i w0 = p->q[8 * b + j][0], w1 = p->q[8 * b + j][1];
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const __m256i xb = bcast4((const int8_t *)x[m] + 32 * b + 4 * j);
                __m256i v0 = _mm256_maddubs_epi16(xb, w0), v1 = _mm256_maddubs_epi16(xb, w1);
                if (j == 4) {
                    first[m][0] = _mm256_madd_epi16(s[m][0], p->sc[2 * b][0]);
                    first[m][1] = _mm256_madd_epi16(s[m][1], p->sc[2 * b][1]);
                }
                s[m][0] = _mm256_add_epi16(j % 4 ? s[m][0] : p->start[2 * b + j / 4][0], v0);
                s[m][1] = _mm256_add_epi16(j % 4 ? s[m][1] : p->start[2 * b + j / 4][1], v1);
                IN_ORDER(s[m][0]);
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m256i sum = _mm256_add_epi32(first[m][i], _mm256_madd_epi16(s[m][i], p->sc[2 * b + 1][i]));
                float *to = total + NI_ROWS * m + 8 * i;
                _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), dx, _mm256_loadu_ps(to)));
            }
        }
        KEEP_IN_MEMORY;
    }
    const __m256 d0 = _mm256_loadu_ps(d), d1 = _mm256_loadu_ps(d + 8);
    for (int m = 0; m < M; m++, acc += NI_ROWS) {
        _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_loadu_ps(total + NI_ROWS * m), d0, _mm256_loadu_ps(acc)));
        _mm256_storeu_ps(acc + 8,
                         _mm256_fmadd_ps(_mm256_loadu_ps(total + NI_ROWS * m + 8), d1, _mm256_loadu_ps(acc + 8)));
    }
}

/* The first two or the last two bytes of every dword as words. */
NI_INLINE __m256i words_of(__m256i v, int first) {
    const int at = first ? 0x01800080 : 0x03800280;   /* 0x80: a zero */
    const __m256i order = _mm256_add_epi32(_mm256_set1_epi32(at), _mm256_setr_epi32(0, 0x04000400, 0x08000800, 0x0c000c00,
                                                                                   0, 0x04000400, 0x08000800, 0x0c000c00));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(v, order), 8);
}

/* A block of 32 activations as words: 16 dwords, each half a k-group. */
NI_INLINE void widen_x(int32_t x[16], const int8_t *q) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m128i v = _mm_loadu_si128((const __m128i *)(q + 16 * i));
        _mm256_store_si256((__m256i *)(x + 8 * i), _mm256_cvtepi8_epi16(v));
    }
}

/* Q8_0, p->q widened to 16 bits: [nk / 4][first, second half of the k-group][2 halves].  vpmaddwd on them needs 4
 * instructions per 8 rows and k-group like |w| * sign(x, w), but only half of them compete for the multipliers.
 * The activations are widened a block ahead, spread among the multiply-adds: a burst of stores would stall.
 *
 * Measured on Zen 4: without the float part it would be 11 % faster, with the activations already widened 3 %.  Pairs
 * (w0 + x2)(w2 + x0) - w0 w2 - x0 x2 halve the multiplications, but their additions take as long. */
NI_INLINE void tile_q8(const ni_panel *p, int64_t nk, gemm_tokens a, int M, float *acc) {
    const __m256i *w = (const __m256i *)p->q;
    const float *scale = p->scale;
    _Alignas(32) int32_t x[2][6][16];
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) widen_x(x[0][m], a.q + m * a.k);
    const int8_t *q = a.q, *last = q + nk - 32;
    for (int64_t b = 0; b < nk / 32; b++, w += 32) {
        const int32_t (*now)[16] = x[b % 2];
        int32_t (*next)[16] = x[(b + 1) % 2];
        q = q < last ? q + 32 : q;
        __m256i s[6][2];
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) {
            const __m256i w0 = w[2 * j], w1 = w[2 * j + 1];
#pragma GCC unroll 6
            for (int m = 0; m < M; m++)
                if (m * 16 / M == j) widen_x(next[m], q + m * a.k);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const __m256i xb = _mm256_set1_epi32(now[m][j]);
                __m256i v0 = _mm256_madd_epi16(w0, xb), v1 = _mm256_madd_epi16(w1, xb);
                s[m][0] = j ? _mm256_add_epi32(s[m][0], v0) : v0;
                s[m][1] = j ? _mm256_add_epi32(s[m][1], v1) : v1;
                IN_ORDER(s[m][0]);
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b);
            finish(s[m][0], scale + NI_ROWS * b, dx, acc + NI_ROWS * m);
            finish(s[m][1], scale + NI_ROWS * b + 8, dx, acc + NI_ROWS * m + 8);
        }
        KEEP_IN_MEMORY;
    }
}

/* acc[m] = fma(w, x, acc[m]) for n values of 16 rows: float weights, and minimums (w: min, x: m, n: sub-blocks). */
NI_INLINE void tile_float(const float *w, int64_t n, const float *x, int64_t stride, int M, float *acc) {
    __m256 s[6][2];
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
        s[m][0] = _mm256_loadu_ps(acc + NI_ROWS * m);
        s[m][1] = _mm256_loadu_ps(acc + NI_ROWS * m + 8);
    }
    for (int64_t k = 0; k < n; k++) {
        const __m256 w0 = _mm256_loadu_ps(w + NI_ROWS * k), w1 = _mm256_loadu_ps(w + NI_ROWS * k + 8);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 xb = _mm256_broadcast_ss(x + m * stride + k);
            s[m][0] = _mm256_fmadd_ps(w0, xb, s[m][0]);
            s[m][1] = _mm256_fmadd_ps(w1, xb, s[m][1]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
        _mm256_storeu_ps(acc + NI_ROWS * m, s[m][0]);
        _mm256_storeu_ps(acc + NI_ROWS * m + 8, s[m][1]);
    }
}

/* Runs `tile` for M tokens, with M a constant in each call. */
#define NI_TILES(M, tile)                    \
    switch (M) {                             \
    case 1: { enum { m_ = 1 }; tile; } break; \
    case 2: { enum { m_ = 2 }; tile; } break; \
    case 3: { enum { m_ = 3 }; tile; } break; \
    case 4: { enum { m_ = 4 }; tile; } break; \
    case 5: { enum { m_ = 5 }; tile; } break; \
    default: { enum { m_ = 6 }; tile; } break; \
    }

/* Defines gemm_<name>: the tokens in tiles of at most `most`, as equal as can be (8 tokens are 4 + 4, not 6 + 2). */
#define NI_GEMM(name, most, has_min, tile)                                                                    \
    static void gemm_##name(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens,         \
                            float *acc, float *accm) {                                                        \
        (void)accm;                                                                                           \
        for (int t = 0, left = (n_tokens + (most) - 1) / (most), M; t < n_tokens; t += M, left--) {           \
            const gemm_tokens a = tokens_at(x, t, k0);                                                        \
            float *out = acc + (size_t)t * NI_ROWS;                                                           \
            M = (n_tokens - t + left - 1) / left;                                                             \
            NI_TILES(M, tile)                                                                                 \
            if (has_min) {                                                                                    \
                float *outm = accm + (size_t)t * NI_ROWS;                                                     \
                NI_TILES(M, tile_float(p->min, nk / 32, a.m, a.k32, m_, outm))                                \
            }                                                                                                 \
        }                                                                                                     \
    }

NI_GEMM(f32, 6, 0, tile_float(p->f, nk, a.f, a.k, m_, out))
NI_GEMM(q4_0, 6, 0, tile_q4(p, nk, a, m_, 8, out))
NI_GEMM(q4_1, 6, 1, tile_q4(p, nk, a, m_, 0, out))
NI_GEMM(q5_0, 6, 0, tile_q5(p, nk, a, m_, 16, out))
NI_GEMM(q5_1, 6, 1, tile_q5(p, nk, a, m_, 0, out))

NI_GEMM(q6_k_signed, 6, 0, tile_q6((const q6_panel *)p->q, p->min, a, m_, out))

static void gemm_q6_k(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens,
                      float *acc, float *accm) {
    q6_panel own;
    for (int s = 0; s < NI_SLAB / 16; s++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int j = 4 * s; j < 4 * s + 4; j++) {
                own.q[j][i] = _mm256_sub_epi8(load32(p->q + 64 * j + 32 * i), _mm256_set1_epi8(32));
                sum = _mm256_sub_epi16(sum, _mm256_maddubs_epi16(_mm256_set1_epi8((char)128), own.q[j][i]));
            }
            own.start[s][i] = sum;
            const __m256i v = _mm256_cvtps_epi32(_mm256_loadu_ps(p->scale + NI_ROWS * s + 8 * i));
            own.sc[s][i] = _mm256_blend_epi16(v, _mm256_slli_epi32(v, 16), 0xaa);
        }
    const ni_panel with = {.q = (uint8_t *)&own, .min = p->min};
    gemm_q6_k_signed(&with, k0, nk, x, n_tokens, acc, accm);
}

NI_GEMM(q8_0_wide, 6, 0, tile_q8(p, nk, a, m_, out))

static void gemm_q8_0(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens,
                      float *acc, float *accm) {
    __m256i wide[NI_SLAB];
    for (int64_t i = 0; i < nk / 4; i++)
#pragma GCC unroll 2
        for (int64_t h = 0; h < 2; h++) {
            const __m256i v = load32(p->q + 64 * i + 32 * h);
            wide[4 * i + h] = words_of(v, 1);
            wide[4 * i + 2 + h] = words_of(v, 0);
        }
    const ni_panel widened = {.q = (uint8_t *)wide, .scale = p->scale};
    gemm_q8_0_wide(&widened, k0, nk, x, n_tokens, acc, accm);
}
#endif
