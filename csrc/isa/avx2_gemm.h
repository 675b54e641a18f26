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
    const int32_t *words, *start;
    int64_t k, k32, k16;
} gemm_tokens;

NI_INLINE gemm_tokens tokens_at(const ni_act *x, int64_t t, int64_t k0) {
    gemm_tokens a = {.k = x->k, .k32 = x->k / 32, .k16 = x->k / 16};
    if (x->q) a.q = x->q + t * a.k + k0;
    if (x->d) a.d = x->d + t * a.k32 + k0 / 32;
    if (x->m) a.m = x->m + t * a.k32 + k0 / 32;
    if (x->s) a.s = x->s + t * a.k16 + k0 / 16;
    if (x->f) a.f = x->f + t * a.k + k0;
    if (x->words) a.words = x->words + t * a.k / 2 + k0 / 2;
    if (x->start) a.start = x->start + t * a.k32 + k0 / 32;
    return a;
}

/* acc = fma(isum, scale * d_x, acc) for one half of one token. */
NI_INLINE void finish(__m256i isum, const float *scale, __m256 dx, float *acc) {
    __m256 s = _mm256_mul_ps(_mm256_loadu_ps(scale), dx);
    _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), s, _mm256_loadu_ps(acc)));
}

/* 4-bit: all 8 k-groups of a sub-block fit 16 bits.  With an offset, a lane's sum starts at -offset * (sum of the lane's activations), both
 * halves of the k-group apart, and may wrap: sum (q - offset) x fits, MXFP4's too, whose q - offset is at most 12. */
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
                if (offset && !j) s[m][0] = s[m][1] = _mm256_set1_epi32(a.start[m * a.k32 + b]);
                s[m][0] = j || offset ? _mm256_add_epi16(s[m][0], v0) : v0;
                s[m][1] = j || offset ? _mm256_add_epi16(s[m][1], v1) : v1;
                IN_ORDER(s[m][0]);
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b);
            finish(widen(s[m][0]), scale + NI_ROWS * b, dx, acc + NI_ROWS * m);
            finish(widen(s[m][1]), scale + NI_ROWS * b + 8, dx, acc + NI_ROWS * m + 8);
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

/* Nested scales (Q6_K, Q3_K, Q2_K), a block of 256, prepared for all tokens.
 *
 * As in write_starts, 16-bit sums of 8 products may wrap where they start right.  Here the weights become signed and the
 * activations x + 128, so that the start, -128 * (sum of the 8 weights), is the same for all tokens. */
typedef struct {
    __m256i q[NI_SLAB / 4][2];        /* q - offset */
    __m256i start[NI_SLAB / 16][2];
    __m256i sc[NI_SLAB / 16][2];      /* every scale twice, 16 bits each */
} nested_panel;

NI_INLINE void tile_nested(const nested_panel *p, const float *d, gemm_tokens a, int M, float *acc) {
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

/* The first and third, the second and fourth byte of every dword as words. */
NI_INLINE __m256i even_words(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
NI_INLINE __m256i odd_words(__m256i v) { return _mm256_srai_epi16(v, 8); }

/* Q8_0, p->q in words: [nk / 4][2 halves](even, odd).  Products come in pairs,
 *
 *   w0 x0 + w1 x1 = (w0 + x1) (w1 + x0) - w0 w1 - x0 x1,
 *
 * what is subtracted being the same for all tokens (p->f: its sums, negative, 32 bits, per block) or for all rows (a.start).  Thus half the
 * multiplications of plain words, and as many instructions: additions go to any of the CPU's four units, multiplications to two, where
 * additions get in their way. */
NI_INLINE void tile_q8(const ni_panel *p, int64_t nk, gemm_tokens a, int M, float *acc) {
    const __m256i *w = (const __m256i *)p->q, *start = (const __m256i *)p->f;
    const float *scale = p->scale;
    for (int64_t b = 0; b < nk / 32; b++, w += 32, start += 2) {
        __m256i s[6][2];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i e0 = w[4 * j], o0 = w[4 * j + 1], e1 = w[4 * j + 2], o1 = w[4 * j + 3];
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) {
                const int32_t *x = a.words + m * a.k / 2 + 16 * b + j;
                const __m256i even = _mm256_set1_epi32(x[0]), odd = _mm256_set1_epi32(x[8]);
                if (j == m) __builtin_prefetch(a.words + (M + m) * a.k / 2 + 16 * b);   /* the next tile's */
                if (!j) {
                    const __m256i both = _mm256_set1_epi32(a.start[m * a.k32 + b]);
                    s[m][0] = _mm256_add_epi32(start[0], both);
                    s[m][1] = _mm256_add_epi32(start[1], both);
                }
                __m256i v = _mm256_madd_epi16(_mm256_add_epi16(odd, e0), _mm256_add_epi16(even, o0));
                s[m][0] = _mm256_add_epi32(s[m][0], v);
                IN_ORDER(s[m][0]);
                v = _mm256_madd_epi16(_mm256_add_epi16(odd, e1), _mm256_add_epi16(even, o1));
                s[m][1] = _mm256_add_epi32(s[m][1], v);
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 4
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

NI_GEMM(nested_signed, 6, 0, tile_nested((const nested_panel *)p->q, p->min, a, m_, out))

NI_INLINE void gemm_nested(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, int offset, float *acc) {
    nested_panel own;
    for (int s = 0; s < NI_SLAB / 16; s++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int j = 4 * s; j < 4 * s + 4; j++) {
                own.q[j][i] = _mm256_sub_epi8(load32(p->q + 64 * j + 32 * i), _mm256_set1_epi8((char)offset));
                sum = _mm256_sub_epi16(sum, _mm256_maddubs_epi16(_mm256_set1_epi8((char)128), own.q[j][i]));
            }
            own.start[s][i] = sum;
            const __m256i v = _mm256_cvtps_epi32(_mm256_loadu_ps(p->scale + NI_ROWS * s + 8 * i));
            own.sc[s][i] = _mm256_blend_epi16(v, _mm256_slli_epi32(v, 16), 0xaa);
        }
    const ni_panel with = {.q = (uint8_t *)&own, .min = p->min};
    gemm_nested_signed(&with, k0, nk, x, n_tokens, acc, NULL);
}

static void gemm_q6_k(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {
    (void)accm;
    gemm_nested(p, k0, nk, x, n_tokens, 32, acc);
}

NI_GEMM(q8_0_words, 4, 0, tile_q8(p, nk, a, m_, out))

static void gemm_q8_0(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens,
                      float *acc, float *accm) {
    __m256i words[NI_SLAB], start[NI_SLAB / 16];
    for (int64_t b = 0; b < nk / 32; b++) {
        __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
        for (int64_t j = 8 * b; j < 8 * b + 8; j++)
#pragma GCC unroll 2
            for (int64_t i = 0; i < 2; i++) {
                const __m256i v = load32(p->q + 64 * j + 32 * i), e = even_words(v), o = odd_words(v);
                words[4 * j + 2 * i] = e;
                words[4 * j + 2 * i + 1] = o;
                sum[i] = _mm256_sub_epi32(sum[i], _mm256_madd_epi16(e, o));
            }
        start[2 * b] = sum[0];
        start[2 * b + 1] = sum[1];
    }
    const ni_panel with = {.q = (uint8_t *)words, .scale = p->scale, .f = (float *)start};
    gemm_q8_0_words(&with, k0, nk, x, n_tokens, acc, accm);
}

/* tile_q4's slab with an offset: quants, and per block, in the two words of start, -offset * (sum of those with k % 4 < 2) and of the
 * others. */
NI_INLINE void gather_starts(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, int offset, uint8_t *to, ni_act *slab) {
    int32_t *start = (int32_t *)(to + n_tokens * nk);
    float *d = (float *)(start + n_tokens * nk / 32);
    *slab = (ni_act){.k = nk, .q = (int8_t *)to, .d = d, .start = start};
    for (int t = 0; t < n_tokens; t++)
        for (int64_t at = t * x->k + k0, end = at + nk; at < end; at += 32, to += 32) {
            const __m256i v = load32(x->q + at), pairs = _mm256_maddubs_epi16(_mm256_set1_epi8((char)offset), v);
            __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
            sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0x4e));
            sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0xb1));
            _mm256_storeu_si256((__m256i *)to, v);
            *start++ = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), sum));
            *d++ = x->d[at / 32];
        }
}

static void gather_q4_0(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    gather_starts(x, k0, nk, n_tokens, 8, to, slab);
}

/* Q8_0's slab: words[t][nk / 32][even, odd][8 k-groups], and start = -(sum of even * odd) per block. */
static void gather_q8_0(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    int32_t *words = (int32_t *)to, *start = words + n_tokens * nk / 2;
    float *d = (float *)(start + n_tokens * nk / 32);
    *slab = (ni_act){.k = nk, .d = d, .words = words, .start = start};
    for (int t = 0; t < n_tokens; t++)
        for (int64_t i = 0; i < nk; i += 32, words += 16) {
            const __m256i v = load32(x->q + t * x->k + k0 + i), e = even_words(v), o = odd_words(v);
            _mm256_storeu_si256((__m256i *)words, e);
            _mm256_storeu_si256((__m256i *)(words + 8), o);
            __m256i s = _mm256_madd_epi16(e, o);
            __m128i h = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
            h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
            h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1));
            *start++ = -_mm_cvtsi128_si32(h);
            *d++ = x->d[(t * x->k + k0 + i) / 32];
        }
}
#endif
