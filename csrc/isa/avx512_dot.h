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
NI_INLINE void dot_block32(const uint8_t *w, int bits, int offset, const ni_act *x, float *y) {
    const int has_min = !offset, fifth = has_min ? 64 : 32, quants = fifth + (bits == 5 ? 64 : 0);
    __m512 acc = _mm512_setzero_ps(), accm = acc;
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b++, w += quants + 256) {
        const int8_t *xq = x->q + 32 * b;
        const __m512 d = load_f16(w), m = has_min ? load_f16(w + 32) : d;
        const __m512i h = bits == 5 ? load64(w + fifth) : _mm512_setzero_si512();
        __m512i lo = offset ? start_at(x->s + 2 * b, -offset, -offset) : _mm512_setzero_si512();
        __m512i hi = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512i v = load64(w + quants + 64 * j), x0 = bcast4(xq + 4 * j), x1 = bcast4(xq + 16 + 4 * j);
            lo = _mm512_dpbusd_epi32(lo, bits == 5 ? q5_low(v, h, j) : low_nibbles(v), x0);
            hi = _mm512_dpbusd_epi32(hi, bits == 5 ? q5_high(v, h, j + 4) : high_in_place(v), x1);
        }
        if (bits == 4) hi = _mm512_srai_epi32(hi, 4);
        acc = finish(_mm512_add_epi32(lo, hi), _mm512_mul_ps(d, _mm512_set1_ps(x->d[b])), acc);
        if (has_min) accm = _mm512_fmadd_ps(m, _mm512_set1_ps(x->m[b]), accm);
    }
    _mm512_storeu_ps(y, has_min ? _mm512_add_ps(acc, accm) : acc);
}

/* Q4_K, Q5_K.  The header is used up first, so that lines are met in order.  Sub-blocks 2c and 2c + 1 share their
 * vectors of nibbles, and all sub-blocks the vectors of fifth bits. */
NI_INLINE void dot_block256(const uint8_t *w, int bits, const ni_act *x, float *y) {
    const int fifth = 64 + 256, quants = fifth + (bits == 5 ? 512 : 0);
    __m512 acc = _mm512_setzero_ps(), accm = acc;
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b += 8, w += quants + 2048) {
        const __m512 d = load_f16(w), dmin = load_f16(w + 32);
        __m512 scale[8];
        __m512i h[8];
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) {
            const uint8_t *p = w + 64 + 32 * s;
            scale[s] = _mm512_mul_ps(_mm512_mul_ps(d, load_u8(p)), _mm512_set1_ps(x->d[b + s]));
            accm = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, load_u8(p + 16)), _mm512_set1_ps(x->m[b + s]), accm);
        }
        if (bits == 5) touch(w + fifth, 512);
        LOADS_STAY;
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) h[i] = bits == 5 ? load64(w + fifth + 64 * i) : _mm512_setzero_si512();
        LOADS_STAY;
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const int8_t *xq = x->q + 32 * b + 64 * c;
            __m512i lo = _mm512_setzero_si512(), hi = lo;
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const __m512i v = load64(w + quants + 512 * c + 64 * i);
                const __m512i x0 = bcast4(xq + 4 * i), x1 = bcast4(xq + 32 + 4 * i);
                lo = _mm512_dpbusd_epi32(lo, bits == 5 ? q5_low(v, h[i], 2 * c) : low_nibbles(v), x0);
                hi = _mm512_dpbusd_epi32(hi, bits == 5 ? q5_high(v, h[i], 2 * c + 1) : high_in_place(v), x1);
            }
            if (bits == 4) hi = _mm512_srai_epi32(hi, 4);
            acc = finish(lo, scale[2 * c], acc);
            acc = finish(hi, scale[2 * c + 1], acc);
            LOADS_STAY;
        }
    }
    _mm512_storeu_ps(y, _mm512_add_ps(acc, accm));
}

NI_INLINE void dot_block_q6_k(const uint8_t *w, const ni_act *x, float *y) {
    __m512 acc = _mm512_setzero_ps();
    for (int64_t k = 0; k < x->k; k += 256, w += REC_Q6_K) {
        __m512 total = _mm512_setzero_ps();
        for (int64_t s = 0; s < 16; s += 2) {
            const int8_t *xq = x->q + k + 16 * s;
            const int16_t *sums = x->s + k / 16 + s;
            __m512i part[2] = {start_at(sums, -32, 0), start_at(sums, 0, -32)};
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) {
                __m512i v[4];
                q6_values(w + 288 + 192 * (s + e), v);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) part[e] = _mm512_dpbusd_epi32(part[e], v[j], bcast4(xq + 16 * e + 4 * j));
            }
            const __m512 isum = q6_isum(part[0], part[1], load_i8(w + 32 + 16 * s), load_i8(w + 48 + 16 * s));
            total = _mm512_fmadd_ps(isum, _mm512_set1_ps(x->d[k / 32 + s / 2]), total);
        }
        acc = _mm512_fmadd_ps(total, load_f16(w), acc);
    }
    _mm512_storeu_ps(y, acc);
}

/* Q8_0 as unsigned w + 128; start[b] = -128 * (sum of block b of x). */
NI_INLINE __m512 dot_block_q8_0(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start,
                                __m512 acc) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    for (int64_t b = 0; b < n; b++, w += REC_Q8_0) {
        const __m512 scale = _mm512_mul_ps(load_f16(w), _mm512_set1_ps(d[b]));
        __m512i s0 = bcast4(start + b), s1 = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int j = 0; j < 8; j += 2) {
            const uint8_t *p = w + 32 + 64 * j;
            const int8_t *x = q + 32 * b + 4 * j;
            s0 = _mm512_dpbusd_epi32(s0, _mm512_xor_si512(load64(p), sign), bcast4(x));
            s1 = _mm512_dpbusd_epi32(s1, _mm512_xor_si512(load64(p + 64), sign), bcast4(x + 4));
        }
        acc = finish(_mm512_add_epi32(s0, s1), scale, acc);
    }
    return acc;
}

/* The sums of x are taken once for all groups, unless K is so long that they do not fit the stack's share. */
static void dot_q8_0(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {
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
            acc = dot_block_q8_0(w, part, x->q + 32 * b, x->d + b, start, acc);
            w += part * REC_Q8_0;
        }
        _mm512_storeu_ps(y + NI_ROWS * g, acc);
    }
}

/* F32, F16, BF16: `groups` row groups, `stride` bytes apart, side by side, so that the chains of fma overlap. */
NI_INLINE void dot_float(const uint8_t *w, size_t stride, int groups, ni_type type, const ni_act *x, float *y) {
    const int record = type == NI_F32 ? REC_F32 : REC_F16;
    __m512 acc[8];
#pragma GCC unroll 8
    for (int i = 0; i < groups; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < x->k; k++, w += record) {
        const __m512 xb = _mm512_set1_ps(x->f[k]);
#pragma GCC unroll 8
        for (int i = 0; i < groups; i++) {
            const uint8_t *p = w + (size_t)i * stride;
            const __m512 v = type == NI_F32 ? _mm512_loadu_ps(p) : type == NI_F16 ? load_f16(p) : load_bf16(p);
            acc[i] = _mm512_fmadd_ps(v, xb, acc[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < groups; i++) _mm512_storeu_ps(y + NI_ROWS * i, acc[i]);
}

NI_DOT_FLOAT(f32, REC_F32, NI_F32)
NI_DOT_FLOAT(f16, REC_F16, NI_F16)
NI_DOT_FLOAT(bf16, REC_F16, NI_BF16)
NI_DOT(q4_0, REC_Q4_0, 32, dot_block32, 4, 8)
NI_DOT(q4_1, REC_Q4_1, 32, dot_block32, 4, 0)
NI_DOT(q5_0, REC_Q5_0, 32, dot_block32, 5, 16)
NI_DOT(q5_1, REC_Q5_1, 32, dot_block32, 5, 0)
NI_DOT(q4_k, REC_Q4_K, 256, dot_block256, 4)
NI_DOT(q5_k, REC_Q5_K, 256, dot_block256, 5)
NI_DOT(q6_k, REC_Q6_K, 256, dot_block_q6_k)
#endif
