/* IQ4_NL, IQ4_XS, MXFP4 and NVFP4 with AVX2: a shuffle of bytes looks up what 32 quants stand for.  Decode as in avx2_dot.h.
 *
 * MXFP4 and NVFP4 are looked up with their offset, 0 .. 24: a pair of products is at most 2 * 127 * 24, so 4 k-groups fit 16 bits.  With
 * IQ4's values, -127 .. 113, only one pair does, |w| * sign(x, w), as Q8_0's. */
#ifndef NI_AVX2_TABLE4_H
#define NI_AVX2_TABLE4_H
#include "avx2_dot.h"
#include "avx2_gemm.h"
#include "avx2_unpack.h"
#include "../formats/table4.h"

/* A table for look_up. */
NI_INLINE __m256i table_of(const int8_t values[16], int offset) {
    const __m128i v = _mm_loadu_si128((const __m128i *)values);
    return _mm256_broadcastsi128_si256(_mm_add_epi8(v, _mm_set1_epi8((char)offset)));
}

NI_INLINE __m256i look_up(__m256i table, __m256i nibbles) { return _mm256_shuffle_epi8(table, nibbles); }

/* Scales of MXFP4, 2^(e - 128), of 8 rows: the larger of two patterns, of which the first is right from e = 2 on and the second below. */
NI_INLINE __m256 load_e8m0_half(const uint8_t *e) {
    const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)e)), one = _mm256_set1_epi32(1);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(v, one), 23), subnormal = _mm256_slli_epi32(_mm256_add_epi32(v, one), 21);
    return _mm256_castsi256_ps(_mm256_max_epi32(normal, subnormal));
}

/* Scales of NVFP4 of 8 rows: they are half floats but for the width of the exponent. */
NI_INLINE __m256 load_ue4m3_half(const uint8_t *sc) {
    const __m128i v = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)sc));
    const __m128i half = _mm_slli_epi16(_mm_and_si128(v, _mm_set1_epi16(0x7f)), 7);
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(128.0f));
}

/* ---- decode ------------------------------------------------------------------------------------------------------ */

/* Sums of a block of 32 of IQ4, 16 rows. */
NI_INLINE void iq4_sums(const ni_vector q[4], const int8_t *x, __m256i table, __m256i s[2]) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m256i x0 = bcast4(x + 4 * j), x1 = bcast4(x + 16 + 4 * j);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i v = load32(q[j] + 32 * i), lo = look_up(table, low_nibbles(v)), hi = look_up(table, high_nibbles(v));
            const __m256i a = widen(_mm256_maddubs_epi16(_mm256_abs_epi8(lo), _mm256_sign_epi8(x0, lo)));
            const __m256i c = widen(_mm256_maddubs_epi16(_mm256_abs_epi8(hi), _mm256_sign_epi8(x1, hi)));
            s[i] = j ? _mm256_add_epi32(s[i], _mm256_add_epi32(a, c)) : _mm256_add_epi32(a, c);
            IN_ORDER(s[i]);
        }
    }
}

NI_INLINE void dot_block_iq4_nl(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_iq4_nl *in = (const ni_record_iq4_nl *)w;
    const __m256i table = table_of(ni_iq4, 0);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t b = 0; b < x->k / 32; b++, in++) {
        const __m256 dx = _mm256_broadcast_ss(x->d + b);
        __m256i s[2];
        iq4_sums(in->q, x->q + 32 * b, table, s);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i]), _mm256_mul_ps(load_f16(in->d + 8 * i), dx), acc[i]);
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

/* Scales of sub-block s of IQ4_XS, 8 rows from row i on. */
NI_INLINE __m256 iq4_xs_scale(const ni_record_iq4_xs *in, int s, int i) {
    return _mm256_mul_ps(load_f16(in->d + i), load_i8(in->s[s].sc + i));
}

NI_INLINE void dot_block_iq4_xs(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_iq4_xs *in = (const ni_record_iq4_xs *)w;
    const __m256i table = table_of(ni_iq4, 0);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t b = 0; b < x->k / 32; b += 8, in++)
        for (int s = 0; s < 8; s++) {
            const __m256 dx = _mm256_broadcast_ss(x->d + b + s);
            __m256i sum[2];
            fetch_iq4_xs(in, s);
            iq4_sums(in->s[s].q, x->q + 32 * (b + s), table, sum);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++)
                acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i]), _mm256_mul_ps(iq4_xs_scale(in, s, 8 * i), dx), acc[i]);
        }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

NI_INLINE void dot_block_mxfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_mxfp4 *in = (const ni_record_mxfp4 *)w;
    const __m256i table = table_of(ni_fp4, NI_FP4_OFFSET);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t b = 0; b < x->k / 32; b++, in++) {
        const int8_t *xq = x->q + 32 * b;
        __m256i lo[2], hi[2];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m256i x0 = bcast4(xq + 4 * j), x1 = bcast4(xq + 16 + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m256i v = load32(in->q[j] + 32 * i);
                const __m256i a = _mm256_maddubs_epi16(look_up(table, low_nibbles(v)), x0);
                const __m256i c = _mm256_maddubs_epi16(look_up(table, high_nibbles(v)), x1);
                lo[i] = j ? _mm256_add_epi16(lo[i], a) : a;
                hi[i] = j ? _mm256_add_epi16(hi[i], c) : c;
                IN_ORDER(lo[i]);
                IN_ORDER(hi[i]);
            }
        }
        const __m256 dx = _mm256_broadcast_ss(x->d + b);
        const __m256i offset = offset32(x->s + 2 * b, NI_FP4_OFFSET);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i s = _mm256_sub_epi32(_mm256_add_epi32(widen(lo[i]), widen(hi[i])), offset);
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_mul_ps(load_e8m0_half(in->e + 8 * i), dx), acc[i]);
        }
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

NI_INLINE void dot_block_nvfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_nvfp4 *in = (const ni_record_nvfp4 *)w;
    const __m256i table = table_of(ni_fp4, NI_FP4_OFFSET);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t b = 0; b < x->k / 16; b += 4, in++)
        for (int s = 0; s < 4; s++) {
            const int8_t *xq = x->q + 16 * (b + s);
            const __m256i offset = _mm256_set1_epi32(NI_FP4_OFFSET * x->s[b + s]);
            const __m256 dx = _mm256_broadcast_ss(x->d + (b + s) / 2);
            __m256i sum[2];
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                const __m256i x0 = bcast4(xq + 4 * j), x1 = bcast4(xq + 8 + 4 * j);
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const __m256i v = load32(in->q[s][j] + 32 * i);
                    const __m256i a = _mm256_maddubs_epi16(look_up(table, low_nibbles(v)), x0);
                    const __m256i c = _mm256_maddubs_epi16(look_up(table, high_nibbles(v)), x1);
                    sum[i] = j ? _mm256_add_epi16(sum[i], _mm256_add_epi16(a, c)) : _mm256_add_epi16(a, c);
                    IN_ORDER(sum[i]);
                }
            }
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m256 scale = _mm256_mul_ps(load_ue4m3_half(in->sc[s] + 8 * i), dx);
                acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(widen(sum[i]), offset)), scale, acc[i]);
            }
        }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

NI_DOT(iq4_nl, iq4_nl, dot_block_iq4_nl)
NI_DOT(iq4_xs, iq4_xs, dot_block_iq4_xs)
NI_DOT(mxfp4, mxfp4, dot_block_mxfp4)
NI_DOT(nvfp4, nvfp4, dot_block_nvfp4)

/* ---- prefill ----------------------------------------------------------------------------------------------------- */

/* n vectors of nibbles to 2 n of values. */
NI_INLINE void unpack_table(const ni_vector *q, int n, __m256i table, uint8_t *out) {
#pragma GCC unroll 8
    for (int i = 0; i < 2 * n; i++) {
        const __m256i v = load32(q[0] + 32 * i);
        store32(out + 32 * i, look_up(table, low_nibbles(v)));
        store32(out + 64 * n + 32 * i, look_up(table, high_nibbles(v)));
    }
}

static void unpack_iq4_nl(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_nl);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
#pragma GCC unroll 2
        for (int i = 0; i < NI_ROWS; i += 8) _mm256_storeu_ps(p->scale + NI_ROWS * b + i, load_f16(in->d + i));
        unpack_table(in->q, 4, table_of(ni_iq4, 0), p->q + 512 * b);
    }
}

static void unpack_iq4_xs(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_xs);
    for (int64_t b = 0; b < nk / 32; b += 8, in++)
        for (int s = 0; s < 8; s++) {
#pragma GCC unroll 2
            for (int i = 0; i < NI_ROWS; i += 8)
                _mm256_storeu_ps(p->scale + NI_ROWS * (b + s) + i, iq4_xs_scale(in, s, i));
            unpack_table(in->s[s].q, 4, table_of(ni_iq4, 0), p->q + 512 * (b + s));
        }
}

static void unpack_mxfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(mxfp4);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
#pragma GCC unroll 2
        for (int i = 0; i < NI_ROWS; i += 8) _mm256_storeu_ps(p->scale + NI_ROWS * b + i, load_e8m0_half(in->e + i));
        unpack_table(in->q, 4, table_of(ni_fp4, NI_FP4_OFFSET), p->q + 512 * b);
    }
}

static void unpack_nvfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(nvfp4);
    for (int64_t b = 0; b < nk / 16; b += 4, in++)
        for (int s = 0; s < 4; s++) {
#pragma GCC unroll 2
            for (int i = 0; i < NI_ROWS; i += 8) _mm256_storeu_ps(p->scale + NI_ROWS * (b + s) + i, load_ue4m3_half(in->sc[s] + i));
            unpack_table(in->q[s], 2, table_of(ni_fp4, NI_FP4_OFFSET), p->q + 256 * (b + s));
        }
}

/* Sub-blocks of 16: their 4 k-groups fit 16 bits. */
NI_INLINE void tile_nvfp4(const ni_panel *p, int64_t nk, gemm_tokens a, int M, float *acc) {
    const uint8_t *w = p->q;
    const float *scale = p->scale;
    for (int64_t b = 0; b < nk / 16; b++, w += 256, scale += NI_ROWS) {
        __m256i s[6][2];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m256i w0 = load32(w + 64 * j), w1 = load32(w + 64 * j + 32);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const __m256i xb = bcast4(a.q + m * a.k + 16 * b + 4 * j);
                const __m256i v0 = _mm256_maddubs_epi16(w0, xb), v1 = _mm256_maddubs_epi16(w1, xb);
                s[m][0] = j ? _mm256_add_epi16(s[m][0], v0) : v0;
                s[m][1] = j ? _mm256_add_epi16(s[m][1], v1) : v1;
                IN_ORDER(s[m][0]);
                IN_ORDER(s[m][1]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b / 2);
            const __m256i offset = _mm256_set1_epi32(NI_FP4_OFFSET * a.s[m * a.k16 + b]);
            finish(_mm256_sub_epi32(widen(s[m][0]), offset), scale, dx, acc + NI_ROWS * m);
            finish(_mm256_sub_epi32(widen(s[m][1]), offset), scale + 8, dx, acc + NI_ROWS * m + 8);
        }
        KEEP_IN_MEMORY;
    }
}

NI_GEMM(mxfp4, 6, 0, tile_q4(p, nk, a, m_, NI_FP4_OFFSET, out))
NI_GEMM(nvfp4, 6, 0, tile_nvfp4(p, nk, a, m_, out))

static void gather_mxfp4(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    gather_starts(x, k0, nk, n_tokens, NI_FP4_OFFSET, to, slab);
}
#endif
