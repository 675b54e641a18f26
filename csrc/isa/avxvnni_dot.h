/* Decode with AVX-VNNI: avx2_dot.h's walk over the records, with vpdpbusd where that has two or three instructions.
 *
 * vpdpbusd adds the 4 products of a k-group (unsigned x signed) to a row's 32-bit sum, which cannot overflow.  Sums
 * start at -offset * sum(x) where the format has an offset. */
#ifndef NI_AVXVNNI_DOT_H
#define NI_AVXVNNI_DOT_H
#include "avx2_util.h"
#include "dot_groups.h"

NI_INLINE __m256i dpbusd(__m256i s, __m256i u, __m256i v) { return _mm256_dpbusd_avx_epi32(s, u, v); }

/* 16 times the high nibbles: saves the shift where a sum can be divided at the end. */
NI_INLINE __m256i vnni_high(__m256i v) { return _mm256_andnot_si256(_mm256_set1_epi8(15), v); }

/* acc = fma(isum, scale, acc) */
NI_INLINE __m256 vnni_add(__m256i isum, __m256 scale, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), scale, acc);
}

/* Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32. */
NI_INLINE void vnni_block32(const uint8_t *w, const ni_parts at, int offset, const ni_act *x, float *y) {
    __m256 acc[2], accm[2];
    acc[0] = acc[1] = accm[0] = accm[1] = _mm256_setzero_ps();
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b++, w += at.bytes) {
        const int8_t *xq = x->q + 32 * b;
        __m256i lo[2], hi[2];
        lo[0] = lo[1] = offset ? offset32(x->s + 2 * b, -offset) : _mm256_setzero_si256();
        hi[0] = hi[1] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m256i x0 = bcast4(xq + 4 * j), x1 = bcast4(xq + 16 + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const uint8_t *p = w + 32 * i;
                const __m256i v = load32(p + at.q + 64 * j), h = at.high ? load32(p + at.high) : v;
                lo[i] = dpbusd(lo[i], at.high ? q5_low(v, h, j) : low_nibbles(v), x0);
                hi[i] = dpbusd(hi[i], at.high ? q5_high(v, h, j + 4) : vnni_high(v), x1);
                IN_ORDER(lo[i]);
                IN_ORDER(hi[i]);
            }
        }
        const __m256 dx = _mm256_broadcast_ss(x->d + b);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const uint8_t *p = w + 16 * i;
            const __m256i s = _mm256_add_epi32(lo[i], at.high ? hi[i] : _mm256_srai_epi32(hi[i], 4));
            acc[i] = vnni_add(s, _mm256_mul_ps(load_f16(p), dx), acc[i]);
            if (at.min) accm[i] = _mm256_fmadd_ps(load_f16(p + at.min), _mm256_broadcast_ss(x->m + b), accm[i]);
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) _mm256_storeu_ps(y + 8 * i, at.min ? _mm256_add_ps(acc[i], accm[i]) : acc[i]);
}

/* Q4_K, Q5_K.  The header is used up first, so that lines are met in order. */
NI_INLINE void vnni_block256(const uint8_t *w, const ni_parts at, const ni_act *x, float *y) {
    __m256 acc[2], accm[2];
    acc[0] = acc[1] = accm[0] = accm[1] = _mm256_setzero_ps();
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b += 8, w += at.bytes) {
        float scale[8][NI_ROWS];
        use_header(w, at, x, b, scale, accm);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const int8_t *xq = x->q + 32 * b + 64 * c;
            __m256i s[2][2];
            s[0][0] = s[0][1] = s[1][0] = s[1][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                const __m256i x0 = bcast4(xq + 4 * j), x1 = bcast4(xq + 32 + 4 * j);
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const uint8_t *p = w + 32 * i + 64 * j;
                    const __m256i v = load32(p + at.q + 512 * c), h = at.high ? load32(p + at.high) : v;
                    s[0][i] = dpbusd(s[0][i], at.high ? q5_low(v, h, 2 * c) : low_nibbles(v), x0);
                    s[1][i] = dpbusd(s[1][i], at.high ? q5_high(v, h, 2 * c + 1) : vnni_high(v), x1);
                    IN_ORDER(s[0][i]);
                    IN_ORDER(s[1][i]);
                }
            }
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++)
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const __m256i sum = !at.high && e ? _mm256_srai_epi32(s[e][i], 4) : s[e][i];
                    acc[i] = vnni_add(sum, _mm256_loadu_ps(scale[2 * c + e] + 8 * i), acc[i]);
                }
            asm volatile("" ::: "memory");
        }
    }
    _mm256_storeu_ps(y, _mm256_add_ps(acc[0], accm[0]));
    _mm256_storeu_ps(y + 8, _mm256_add_ps(acc[1], accm[1]));
}

/* A kernel of n blocks of 32 for weights that become unsigned, w + 128: start[b] = -128 * (sum of block b of x). */
typedef void started_blocks(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m256 acc[2]);

NI_INLINE void vnni_blocks_q8_0(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m256 acc[2]) {
    const ni_record_q8_0 *in = (const ni_record_q8_0 *)w;
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    for (int64_t b = 0; b < n; b++, in++) {
        __m256i s[2];
        s[0] = s[1] = _mm256_set1_epi32(start[b]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i xb = bcast4(q + 32 * b + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                s[i] = dpbusd(s[i], _mm256_xor_si256(load32(in->q[j] + 32 * i), sign), xb);
                IN_ORDER(s[i]);
            }
        }
        const __m256 dx = _mm256_broadcast_ss(d + b);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) acc[i] = vnni_add(s[i], _mm256_mul_ps(load_f16(in->d + 8 * i), dx), acc[i]);
    }
}

/* The sums of x are taken once for all groups, unless K is so long that they do not fit the stack's share.
 * bytes_of_8: bytes of 8 blocks of a group. */
NI_INLINE void dot_started(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y, int bytes_of_8, started_blocks *blocks) {
    enum { MOST = 1024 };
    int32_t start[MOST];
    const int64_t n = x->k / 32;
    for (int64_t g = 0; g < n_groups; g++) {
        __m256 acc[2];
        acc[0] = acc[1] = _mm256_setzero_ps();
        for (int64_t b = 0; b < n; b += MOST) {
            const int64_t part = n - b < MOST ? n - b : MOST;
            if (g == 0 || n > MOST)
                for (int64_t i = 0; i < part; i++) {
                    const __m256i v = load32(x->q + 32 * (b + i));
                    const __m256i s = dpbusd(_mm256_setzero_si256(), _mm256_set1_epi8(1), v);
                    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
                    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
                    start[i] = -128 * (_mm_cvtsi128_si32(t) + _mm_extract_epi32(t, 1));
                }
            blocks(w, part, x->q + 32 * b, x->d + b, start, acc);
            w += part * bytes_of_8 / 8;
        }
        _mm256_storeu_ps(y + NI_ROWS * g, acc[0]);
        _mm256_storeu_ps(y + NI_ROWS * g + 8, acc[1]);
    }
}

#define NI_DOT_STARTED(name, format, blocks)                                                            \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {             \
        dot_started(w, n_groups, x, y, 256 / NI_BLOCK_##format * (int)sizeof(ni_record_##format), blocks); \
    }

NI_DOT(vnni_q4_0, q4_0, vnni_block32, parts_q4_0, 8)
NI_DOT(vnni_q4_1, q4_1, vnni_block32, parts_q4_1, 0)
NI_DOT(vnni_q5_0, q5_0, vnni_block32, parts_q5_0, 16)
NI_DOT(vnni_q5_1, q5_1, vnni_block32, parts_q5_1, 0)
NI_DOT_STARTED(vnni_q8_0, q8_0, vnni_blocks_q8_0)
NI_DOT(vnni_q4_k, q4_k, vnni_block256, parts_q4_k)
NI_DOT(vnni_q5_k, q5_k, vnni_block256, parts_q5_k)
#endif
