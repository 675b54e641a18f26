/* Decode with AVX2: one token; the packed bytes are streamed once.
 *
 * Measured on Zen 4: one row group at a time, its lines met strictly in order and no software prefetch is fastest:
 * nothing then disturbs the hardware's prefetchers (two groups at once, or prefetches ahead, read 40 % slower).  Where
 * a record's order is not the order of use, its lines are touched in order first.  Float types are the exception: one
 * FMA chain per 8 rows needs several groups in flight.
 *
 * 16-bit sums stay exact: a pair of products is at most 2 * 127 * max_q, so 8 k-groups of 4-bit quants fit and 4 of
 * 5-bit.  For Q6_K see write_starts. */
#ifndef NI_AVX2_DOT_H
#define NI_AVX2_DOT_H
#include "avx2_util.h"
#include "dot_groups.h"

/* Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32. */
NI_INLINE void dot_block32(const uint8_t *w, const ni_parts at, int offset, const ni_act *x, float *y) {
    __m256 acc[2], accm[2];
    acc[0] = acc[1] = accm[0] = accm[1] = _mm256_setzero_ps();
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b++, w += at.bytes) {
        const int8_t *xq = x->q + 32 * b;
        __m256i lo[2], hi[2];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m256i x0 = bcast4(xq + 4 * j), x1 = bcast4(xq + 16 + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const uint8_t *p = w + 32 * i;
                const __m256i v = load32(p + at.q + 64 * j), h = at.high ? load32(p + at.high) : v;
                __m256i a = _mm256_maddubs_epi16(at.high ? q5_low(v, h, j) : low_nibbles(v), x0);
                __m256i c = _mm256_maddubs_epi16(at.high ? q5_high(v, h, j + 4) : high_nibbles(v), x1);
                lo[i] = j ? _mm256_add_epi16(lo[i], a) : a;
                hi[i] = j ? _mm256_add_epi16(hi[i], c) : c;
                IN_ORDER(lo[i]);
                IN_ORDER(hi[i]);
            }
        }
        const __m256 dx = _mm256_broadcast_ss(x->d + b);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const uint8_t *p = w + 16 * i;
            __m256i s;
            if (at.high) s = _mm256_add_epi32(widen(lo[i]), widen(hi[i]));
            else s = widen(_mm256_add_epi16(lo[i], hi[i]));
            if (offset) s = _mm256_sub_epi32(s, offset32(x->s + 2 * b, offset));
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_mul_ps(load_f16(p), dx), acc[i]);
            if (at.min) accm[i] = _mm256_fmadd_ps(load_f16(p + at.min), _mm256_broadcast_ss(x->m + b), accm[i]);
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) _mm256_storeu_ps(y + 8 * i, at.min ? _mm256_add_ps(acc[i], accm[i]) : acc[i]);
}

/* Q8_0.  |w| * sign(x, w): a pair is at most 2 * 128 * 127, and x is never -128, so nothing saturates. */
NI_INLINE void dot_block_q8_0(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q8_0 *in = (const ni_record_q8_0 *)w;
    __m256 acc[2];
    acc[0] = acc[1] = _mm256_setzero_ps();
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b++, in++) {
        __m256i s[2];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i xb = bcast4(x->q + 32 * b + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                __m256i v = load32(in->q[j] + 32 * i);
                v = widen(_mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(xb, v)));
                s[i] = j ? _mm256_add_epi32(s[i], v) : v;
                IN_ORDER(s[i]);
            }
        }
        const __m256 dx = _mm256_broadcast_ss(x->d + b);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i]), _mm256_mul_ps(load_f16(in->d + 8 * i), dx), acc[i]);
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

/* The header of a record of Q4_K or Q5_K, blocks b .. b + 7 of x: all minimums; the scales wait in memory. */
NI_INLINE void use_header(const uint8_t *w, const ni_parts at, const ni_act *x, int64_t b, float scale[8][NI_ROWS], __m256 accm[2]) {
    ni_ask_ahead(w, at.bytes);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m256 d = load_f16(w + 16 * i), dmin = load_f16(w + at.min + 16 * i);
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) {
            const ni_scale_pair *p = (const ni_scale_pair *)(w + at.s) + s;
            const __m256 dx = _mm256_broadcast_ss(x->d + b + s), mx = _mm256_broadcast_ss(x->m + b + s);
            _mm256_storeu_ps(scale[s] + 8 * i, _mm256_mul_ps(_mm256_mul_ps(d, load_u8(p->sc + 8 * i)), dx));
            accm[i] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, load_u8(p->mn + 8 * i)), mx, accm[i]);
        }
    }
    if (at.high) touch(w + at.high, at.q - at.high);
    asm volatile("" ::: "memory");   /* no load moves across */
}

/* Q4_K, Q5_K.  The header is used up first, so that lines are met in order.  Sub-blocks 2c and 2c + 1 share their
 * vectors of nibbles. */
NI_INLINE void dot_block256(const uint8_t *w, const ni_parts at, const ni_act *x, float *y) {
    __m256 acc[2], accm[2];
    acc[0] = acc[1] = accm[0] = accm[1] = _mm256_setzero_ps();
    const int64_t n = x->k / 32;
    for (int64_t b = 0; b < n; b += 8, w += at.bytes) {
        float scale[8][NI_ROWS];
        use_header(w, at, x, b, scale, accm);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const int8_t *xq = x->q + 32 * b + 64 * c;
            __m256i s[2][2], part[2][2];
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                const __m256i x0 = bcast4(xq + 4 * j), x1 = bcast4(xq + 32 + 4 * j);
                const int start = j == 0 || (at.high && j == 4);
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const uint8_t *p = w + 32 * i + 64 * j;
                    const __m256i v = load32(p + at.q + 512 * c), h = at.high ? load32(p + at.high) : v;
                    __m256i lo = _mm256_maddubs_epi16(at.high ? q5_low(v, h, 2 * c) : low_nibbles(v), x0);
                    __m256i hi = _mm256_maddubs_epi16(at.high ? q5_high(v, h, 2 * c + 1) : high_nibbles(v), x1);
                    if (at.high && j == 4) {
                        part[0][i] = widen(s[0][i]);
                        part[1][i] = widen(s[1][i]);
                    }
                    s[0][i] = start ? lo : _mm256_add_epi16(s[0][i], lo);
                    s[1][i] = start ? hi : _mm256_add_epi16(s[1][i], hi);
                    IN_ORDER(s[0][i]);
                    IN_ORDER(s[1][i]);
                }
            }
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++)
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    __m256i sum = widen(s[e][i]);
                    if (at.high) sum = _mm256_add_epi32(sum, part[e][i]);
                    const __m256 sc = _mm256_loadu_ps(scale[2 * c + e] + 8 * i);
                    acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), sc, acc[i]);
                }
            asm volatile("" ::: "memory");
        }
    }
    _mm256_storeu_ps(y, _mm256_add_ps(acc[0], accm[0]));
    _mm256_storeu_ps(y + 8, _mm256_add_ps(acc[1], accm[1]));
}

/* Q6_K: 8 products q * x do not fit a 16-bit sum, but 8 products (q - 32) * x do: at most 8 * 32 * 127.  So sums that
 * start at -32 * (sum of the 8 x) come out right, however they wrap on the way.
 *
 * Writes starts for n / 16 sub-blocks, of the even and the odd pairs side by side; n is a multiple of 128.  first, second: what the sums
 * of the two sub-blocks of 32 values are multiplied with, 32 for Q6_K. */
NI_INLINE void write_starts(const int8_t *q, int64_t n, int first, int second, int32_t *start) {
    const __m256i factor = _mm256_setr_m128i(_mm_set1_epi8((char)first), _mm_set1_epi8((char)second));
    for (int64_t k = 0; k < n; k += 128) {
        __m256i t[4], u[2];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) t[i] = _mm256_maddubs_epi16(factor, load32(q + k + 32 * i));
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
            u[i] = _mm256_add_epi16(_mm256_unpacklo_epi32(t[2 * i], t[2 * i + 1]),
                                    _mm256_unpackhi_epi32(t[2 * i], t[2 * i + 1]));
        __m256i s = _mm256_add_epi16(_mm256_unpacklo_epi64(u[0], u[1]), _mm256_unpackhi_epi64(u[0], u[1]));
        s = _mm256_permutevar8x32_epi32(s, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(start + k / 16), _mm256_sub_epi16(_mm256_setzero_si256(), s));
    }
}

/* n values; start: write_starts of them. */
NI_INLINE void dot_block_q6_k(const ni_record_q6_k *in, int64_t n, const int8_t *q, const float *d, const int32_t *start,
                              __m256 acc[2]) {
    for (int64_t k = 0; k < n; k += 256, in++) {
        __m256 total[2];
        total[0] = total[1] = _mm256_setzero_ps();
        for (int64_t s = 0; s < 16; s += 2) {
            const int8_t *xq = q + k + 16 * s;
            __m256i sum[2];
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++)
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    __m256i v[4], part = _mm256_set1_epi32(start[k / 16 + s + e]);
                    q6_values(in->v[s + e][0] + 32 * i, v);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++) {
                        part = _mm256_add_epi16(part, _mm256_maddubs_epi16(v[j], bcast4(xq + 16 * e + 4 * j)));
                        IN_ORDER(part);
                    }
                    part = _mm256_madd_epi16(part, q6_scales(in->sc[s + e] + 8 * i));
                    sum[i] = e ? _mm256_add_epi32(sum[i], part) : part;
                }
            const __m256 dx = _mm256_broadcast_ss(d + k / 32 + s / 2);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) total[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i]), dx, total[i]);
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) acc[i] = _mm256_fmadd_ps(total[i], load_f16(in->d + 8 * i), acc[i]);
    }
}

/* Defines dot_<name>, of blocks of 256.  The starts are taken once for all groups, unless K is so long that they do not fit the stack's
 * share. */
#define NI_DOT_NESTED(name, first, second)                                                          \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {          \
        enum { MOST = 16384 };                                                                       \
        int32_t start[MOST / 16];                                                                    \
        const ni_record_##name *in = (const ni_record_##name *)w;                                    \
        for (int64_t g = 0; g < n_groups; g++, y += NI_ROWS) {                                       \
            __m256 acc[2];                                                                           \
            acc[0] = acc[1] = _mm256_setzero_ps();                                                   \
            for (int64_t k = 0, n; k < x->k; k += n, in += n / 256) {                                \
                n = x->k - k < MOST ? x->k - k : MOST;                                               \
                if (g == 0 || x->k > MOST) write_starts(x->q + k, n, first, second, start);          \
                dot_block_##name(in, n, x->q + k, x->d + k / 32, start, acc);                        \
            }                                                                                        \
            _mm256_storeu_ps(y, acc[0]);                                                             \
            _mm256_storeu_ps(y + 8, acc[1]);                                                         \
        }                                                                                            \
    }
NI_DOT_NESTED(q6_k, 32, 32)

/* F32, F16, BF16: `groups` row groups, `stride` bytes apart, side by side. */
NI_INLINE void dot_float(const uint8_t *w, size_t stride, int groups, ni_type type, const ni_act *x, float *y) {
    const int record = type == NI_F32 ? sizeof(ni_record_f32) : sizeof(ni_record_f16), n = 2 * groups;
    __m256 acc[8];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) acc[i] = _mm256_setzero_ps();
    for (int64_t k = 0; k < x->k; k++, w += record) {
        const __m256 xb = _mm256_broadcast_ss(x->f + k);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            const uint8_t *p = w + (size_t)(i / 2) * stride + i % 2 * (record / 2);
            const __m256 v = type == NI_F16 ? load_f16(p) : type == NI_BF16 ? load_bf16(p)
                                                                            : _mm256_loadu_ps((const float *)p);
            acc[i] = _mm256_fmadd_ps(v, xb, acc[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) _mm256_storeu_ps(y + 8 * i, acc[i]);
}

NI_DOT_FLOAT(f32, NI_F32)
NI_DOT_FLOAT(f16, NI_F16)
NI_DOT_FLOAT(bf16, NI_BF16)
NI_DOT(q4_0, q4_0, dot_block32, parts_q4_0, 8)
NI_DOT(q4_1, q4_1, dot_block32, parts_q4_1, 0)
NI_DOT(q5_0, q5_0, dot_block32, parts_q5_0, 16)
NI_DOT(q5_1, q5_1, dot_block32, parts_q5_1, 0)
NI_DOT(q8_0, q8_0, dot_block_q8_0)
NI_DOT(q4_k, q4_k, dot_block256, parts_q4_k)
NI_DOT(q5_k, q5_k, dot_block256, parts_q5_k)
#endif
