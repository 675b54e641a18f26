/* Decode with AVX-512: one token; the packed bytes are streamed once, one row group at a time, lines in order
 * (avx2_dot.h says why).  A block's sums live in registers and start at -offset * sum(x) where the format has one. */
#ifndef NI_AVX512_DOT_H
#define NI_AVX512_DOT_H
#include "avx512_util.h"
#include "dot_groups.h"

/* No load moves across.  Left alone, gcc reorders a record's loads and the prefetchers lose the thread (Q5_K: 12 %). */
#define LOADS_STAY __asm__ volatile("" ::: "memory")

/* Loads a byte of every line.  Not unrolled: from one load instruction the prefetcher learns the stride. */
NI_INLINE void touch(const uint8_t *p, int bytes) {
#pragma GCC unroll 1
    for (int i = 0; i < bytes; i += 64) (void)*(const volatile uint8_t *)(p + i);
}

/* acc = fma(isum, scale, acc) */
NI_INLINE __m512 finish(__m512i isum, __m512 scale, __m512 acc) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum), scale, acc);
}

/* Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32. */
NI_INLINE void dot_block32(const uint8_t *w, const ni_parts at, int offset, const ni_act *x, int M, float *const *y, int64_t row) {
    __m512 acc[NI_DOTS], accm[NI_DOTS];
#pragma GCC unroll 4
    for (int t = 0; t < M; t++) acc[t] = accm[t] = _mm512_setzero_ps();
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b++, w += at.bytes) {
        const __m512 d = load_f16(w), m = at.min ? load_f16(w + at.min) : d;
        const __m512i h = at.high ? load64(w + at.high) : _mm512_setzero_si512();
        __m512i lo[NI_DOTS], hi[NI_DOTS];
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) {
            lo[t] = offset ? start_at(x[t].s + 2 * b, -offset, -offset) : _mm512_setzero_si512();
            hi[t] = _mm512_setzero_si512();
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512i v = load64(w + at.q + 64 * j);
            const __m512i low = at.high ? q5_low(v, h, j) : low_nibbles(v), high = at.high ? q5_high(v, h, j + 4) : high_in_place(v);
#pragma GCC unroll 4
            for (int t = 0; t < M; t++) {
                const int8_t *xq = x[t].q + 32 * b + 4 * j;
                lo[t] = _mm512_dpbusd_epi32(lo[t], low, bcast4(xq));
                hi[t] = _mm512_dpbusd_epi32(hi[t], high, bcast4(xq + 16));
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) {
            if (!at.high) hi[t] = _mm512_srai_epi32(hi[t], 4);
            acc[t] = finish(_mm512_add_epi32(lo[t], hi[t]), _mm512_mul_ps(d, _mm512_set1_ps(x[t].d[b])), acc[t]);
            if (at.min) accm[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(x[t].m[b]), accm[t]);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < M; t++) _mm512_storeu_ps(y[t] + row, at.min ? _mm512_add_ps(acc[t], accm[t]) : acc[t]);
}

/* Q4_K, Q5_K.  The header is used up first, so that lines are met in order.  Sub-blocks 2c and 2c + 1 share their
 * vectors of nibbles, and all sub-blocks the vectors of fifth bits. */
NI_INLINE void dot_block256(const uint8_t *w, const ni_parts at, const ni_act *x, int M, float *const *y, int64_t row) {
    __m512 acc[NI_DOTS], accm[NI_DOTS];
#pragma GCC unroll 4
    for (int t = 0; t < M; t++) acc[t] = accm[t] = _mm512_setzero_ps();
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b += 8, w += at.bytes) {
        const __m512 d = load_f16(w), dmin = load_f16(w + at.min);
        __m512 scale[8];
        __m512i h[8];
        ni_ask_ahead(w, at.bytes);
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) {
            const ni_scale_pair *p = (const ni_scale_pair *)(w + at.s) + s;
            const __m512 min = _mm512_mul_ps(dmin, load_u8(p->mn));
            scale[s] = _mm512_mul_ps(d, load_u8(p->sc));
            if (M == 1) scale[s] = _mm512_mul_ps(scale[s], _mm512_set1_ps(x->d[b + s]));
#pragma GCC unroll 4
            for (int t = 0; t < M; t++) accm[t] = _mm512_fnmadd_ps(min, _mm512_set1_ps(x[t].m[b + s]), accm[t]);
        }
        if (at.high) touch(w + at.high, at.q - at.high);
        LOADS_STAY;
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) h[i] = at.high ? load64(w + at.high + 64 * i) : _mm512_setzero_si512();
        LOADS_STAY;
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            __m512i lo[NI_DOTS], hi[NI_DOTS];
#pragma GCC unroll 4
            for (int t = 0; t < M; t++) lo[t] = hi[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const __m512i v = load64(w + at.q + 512 * c + 64 * i);
                const __m512i low = at.high ? q5_low(v, h[i], 2 * c) : low_nibbles(v);
                const __m512i high = at.high ? q5_high(v, h[i], 2 * c + 1) : high_in_place(v);
#pragma GCC unroll 4
                for (int t = 0; t < M; t++) {
                    const int8_t *xq = x[t].q + 32 * b + 64 * c + 4 * i;
                    lo[t] = _mm512_dpbusd_epi32(lo[t], low, bcast4(xq));
                    hi[t] = _mm512_dpbusd_epi32(hi[t], high, bcast4(xq + 32));
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < M; t++) {
                const float *dx = x[t].d + b + 2 * c;
                __m512 s0 = scale[2 * c], s1 = scale[2 * c + 1];
                if (!at.high) hi[t] = _mm512_srai_epi32(hi[t], 4);
                if (M > 1) s0 = _mm512_mul_ps(s0, _mm512_set1_ps(dx[0])), s1 = _mm512_mul_ps(s1, _mm512_set1_ps(dx[1]));
                acc[t] = finish(lo[t], s0, acc[t]);
                acc[t] = finish(hi[t], s1, acc[t]);
            }
            LOADS_STAY;
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < M; t++) _mm512_storeu_ps(y[t] + row, _mm512_add_ps(acc[t], accm[t]));
}

NI_INLINE void dot_block_q6_k(const uint8_t *w, const ni_act *x, int M, float *const *y, int64_t row) {
    const ni_record_q6_k *in = (const ni_record_q6_k *)w;
    __m512 acc[NI_DOTS];
#pragma GCC unroll 4
    for (int t = 0; t < M; t++) acc[t] = _mm512_setzero_ps();
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        __m512 total[NI_DOTS];
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) total[t] = _mm512_setzero_ps();
        for (int64_t s = 0; s < 16; s += 2) {
            __m512i part[NI_DOTS][2];
#pragma GCC unroll 4
            for (int t = 0; t < M; t++) {
                const int16_t *sums = x[t].s + k / 16 + s;
                part[t][0] = start_at(sums, -32, 0), part[t][1] = start_at(sums, 0, -32);
            }
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) {
                __m512i v[4];
                q6_values(in->v[s + e][0], v);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
#pragma GCC unroll 4
                    for (int t = 0; t < M; t++)
                        part[t][e] = _mm512_dpbusd_epi32(part[t][e], v[j], bcast4(x[t].q + k + 16 * (s + e) + 4 * j));
            }
            const __m512 sc0 = load_i8(in->sc[s]), sc1 = load_i8(in->sc[s + 1]);
#pragma GCC unroll 4
            for (int t = 0; t < M; t++)
                total[t] = _mm512_fmadd_ps(q6_isum(part[t][0], part[t][1], sc0, sc1), _mm512_set1_ps(x[t].d[k / 32 + s / 2]), total[t]);
        }
        const __m512 d = load_f16(in->d);
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) acc[t] = _mm512_fmadd_ps(total[t], d, acc[t]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < M; t++) _mm512_storeu_ps(y[t] + row, acc[t]);
}

/* A kernel of n blocks of 32 for weights that become unsigned, w + 128: start[b] = -128 * (sum of block b of x). */
typedef __m512 started_blocks(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m512 acc);

NI_INLINE __m512 dot_block_q8_0(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m512 acc) {
    const ni_record_q8_0 *in = (const ni_record_q8_0 *)w;
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    for (int64_t b = 0; b < n; b++, in++) {
        const __m512 scale = _mm512_mul_ps(load_f16(in->d), _mm512_set1_ps(d[b]));
        __m512i s0 = bcast4(start + b), s1 = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int j = 0; j < 8; j += 2) {
            const int8_t *x = q + 32 * b + 4 * j;
            s0 = _mm512_dpbusd_epi32(s0, _mm512_xor_si512(load64(in->q[j]), sign), bcast4(x));
            s1 = _mm512_dpbusd_epi32(s1, _mm512_xor_si512(load64(in->q[j + 1]), sign), bcast4(x + 4));
        }
        acc = finish(_mm512_add_epi32(s0, s1), scale, acc);
    }
    return acc;
}

/* The sums of x are taken once for all groups, unless K is so long that they do not fit the stack's share.
 * bytes_of_8: bytes of 8 blocks of a group. */
NI_INLINE void dot_started(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y, int bytes_of_8, started_blocks *blocks) {
    enum { MOST = 1024 };
    int32_t start[MOST];
    const int64_t n = x->k / 32;
    for (int64_t g = 0; g < n_groups; g++) {
        __m512 acc = _mm512_setzero_ps();
        for (int64_t b = 0; b < n; b += MOST) {
            const int64_t part = n - b < MOST ? n - b : MOST;
            if (g == 0 || n > MOST)
                for (int64_t i = 0; i < part; i++) {
                    const __m256i v = _mm256_loadu_si256((const __m256i *)(x->q + 32 * (b + i)));
                    const __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), v);
                    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
                    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
                    start[i] = -128 * (_mm_cvtsi128_si32(t) + _mm_extract_epi32(t, 1));
                }
            acc = blocks(w, part, x->q + 32 * b, x->d + b, start, acc);
            w += part * bytes_of_8 / 8;
        }
        _mm512_storeu_ps(y + NI_ROWS * g, acc);
    }
}

#define NI_DOT_STARTED(name, format, blocks)                                                            \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {             \
        dot_started(w, n_groups, x, y, 256 / NI_BLOCK_##format * (int)sizeof(ni_record_##format), blocks); \
    }

/* F32, F16, BF16: `groups` row groups, `stride` bytes apart, side by side, so that the chains of fma overlap. */
NI_INLINE void dot_float(const uint8_t *w, size_t stride, int groups, ni_type type, const ni_act *x, float *y) {
    const int record = type == NI_F32 ? sizeof(ni_record_f32) : sizeof(ni_record_f16);
    __m512 acc[8];
#pragma GCC unroll 8
    for (int i = 0; i < groups; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < x->k; k++, w += record) {
        const __m512 xb = _mm512_set1_ps(x->f[k]);
#pragma GCC unroll 8
        for (int i = 0; i < groups; i++) {
            const uint8_t *p = w + (size_t)i * stride;
            const __m512 v = type == NI_F32 ? _mm512_loadu_ps(p) : type == NI_F16 ? load_f16(p) : v16_load_bf16((const uint16_t *)p);
            acc[i] = _mm512_fmadd_ps(v, xb, acc[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < groups; i++) _mm512_storeu_ps(y + NI_ROWS * i, acc[i]);
}

NI_DOT_FLOAT(f32, NI_F32)
NI_DOT_FLOAT(f16, NI_F16)
NI_DOT_FLOAT(bf16, NI_BF16)
NI_DOT_AND_DOTS(q4_0, q4_0, dot_block32, parts_q4_0, 8)
NI_DOT_AND_DOTS(q4_1, q4_1, dot_block32, parts_q4_1, 0)
NI_DOT_AND_DOTS(q5_0, q5_0, dot_block32, parts_q5_0, 16)
NI_DOT_AND_DOTS(q5_1, q5_1, dot_block32, parts_q5_1, 0)
NI_DOT_STARTED(q8_0, q8_0, dot_block_q8_0)
NI_DOT_AND_DOTS(q4_k, q4_k, dot_block256, parts_q4_k)
NI_DOT_AND_DOTS(q5_k, q5_k, dot_block256, parts_q5_k)
NI_DOT_AND_DOTS(q6_k, q6_k, dot_block_q6_k)
#endif
