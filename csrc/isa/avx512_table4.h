/* IQ4_NL, IQ4_XS, MXFP4 and NVFP4 with AVX-512: a shuffle of bytes looks up what 64 quants stand for, IQ4's plus 128, MXFP4's and
 * NVFP4's plus 12, and sums start at -128 or -12 * sum(x).  Decode as in avx512_dot.h. */
#ifndef NI_AVX512_TABLE4_H
#define NI_AVX512_TABLE4_H
#include "avx512_dot.h"
#include "avx512_gemm.h"
#include "../formats/table4.h"

/* A table for look_up. */
NI_INLINE __m512i table_of(const int8_t values[16], int offset) {
    const __m128i v = _mm_loadu_si128((const __m128i *)values);
    return _mm512_broadcast_i32x4(_mm_add_epi8(v, _mm_set1_epi8((char)offset)));
}

NI_INLINE __m512i look_up(__m512i table, __m512i nibbles) { return _mm512_shuffle_epi8(table, nibbles); }

/* Scales of MXFP4, 2^(e - 128): the larger of two patterns, of which the first is right from e = 2 on and the second below. */
NI_INLINE __m512 load_e8m0_half(const uint8_t *e) {
    const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)e)), one = _mm512_set1_epi32(1);
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(v, one), 23), subnormal = _mm512_slli_epi32(_mm512_add_epi32(v, one), 21);
    return _mm512_castsi512_ps(_mm512_max_epi32(normal, subnormal));
}

/* Scales of NVFP4: they are half floats but for the width of the exponent. */
NI_INLINE __m512 load_ue4m3_half(const uint8_t *sc) {
    const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)sc));
    const __m256i half = _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x7f)), 7);
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(128.0f));
}

/* ---- decode ------------------------------------------------------------------------------------------------------ */

/* start + the products of 2 n k-groups, n vectors. */
NI_INLINE __m512i table4_sums(const ni_vector *q, int n, const int8_t *x, __m512i table, __m512i start) {
    __m512i lo = start, hi = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) {
        const __m512i v = load64(q[j]);
        lo = _mm512_dpbusd_epi32(lo, look_up(table, low_nibbles(v)), bcast4(x + 4 * j));
        hi = _mm512_dpbusd_epi32(hi, look_up(table, high_nibbles(v)), bcast4(x + 4 * (j + n)));
    }
    return _mm512_add_epi32(lo, hi);
}

NI_INLINE __m512 dot_blocks_iq4_nl(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m512 acc) {
    const ni_record_iq4_nl *in = (const ni_record_iq4_nl *)w;
    const __m512i table = table_of(ni_iq4, 128);
    for (int64_t b = 0; b < n; b++, in++) {
        const __m512 scale = _mm512_mul_ps(load_f16(in->d), _mm512_set1_ps(d[b]));
        acc = finish(table4_sums(in->q, 4, q + 32 * b, table, bcast4(start + b)), scale, acc);
    }
    return acc;
}

NI_INLINE __m512 dot_blocks_iq4_xs(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m512 acc) {
    const ni_record_iq4_xs *in = (const ni_record_iq4_xs *)w;
    const __m512i table = table_of(ni_iq4, 128);
    for (int64_t b = 0; b < n; b += 8, in++) {
        const __m512 d256 = load_f16(in->d);
#pragma GCC unroll 1
        for (int s = 0; s < 8; s++) {
            fetch_iq4_xs(in, s);
            const __m512 scale = _mm512_mul_ps(_mm512_mul_ps(d256, load_i8(in->s[s].sc)), _mm512_set1_ps(d[b + s]));
            acc = finish(table4_sums(in->s[s].q, 4, q + 32 * (b + s), table, bcast4(start + b + s)), scale, acc);
        }
    }
    return acc;
}

NI_INLINE void dot_block_mxfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_mxfp4 *in = (const ni_record_mxfp4 *)w;
    const __m512i table = table_of(ni_fp4, NI_FP4_OFFSET);
    __m512 acc = _mm512_setzero_ps();
    for (int64_t b = 0; b < x->k / 32; b++, in++) {
        const __m512 scale = _mm512_mul_ps(load_e8m0_half(in->e), _mm512_set1_ps(x->d[b]));
        const __m512i start = start_at(x->s + 2 * b, -NI_FP4_OFFSET, -NI_FP4_OFFSET);
        acc = finish(table4_sums(in->q, 4, x->q + 32 * b, table, start), scale, acc);
    }
    _mm512_storeu_ps(y, acc);
}

NI_INLINE void dot_block_nvfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_nvfp4 *in = (const ni_record_nvfp4 *)w;
    const __m512i table = table_of(ni_fp4, NI_FP4_OFFSET);
    __m512 acc = _mm512_setzero_ps();
    for (int64_t b = 0; b < x->k / 16; b += 4, in++)
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            const __m512 scale = _mm512_mul_ps(load_ue4m3_half(in->sc[s]), _mm512_set1_ps(x->d[(b + s) / 2]));
            const __m512i start = _mm512_set1_epi32(-NI_FP4_OFFSET * x->s[b + s]);
            acc = finish(table4_sums(in->q[s], 2, x->q + 16 * (b + s), table, start), scale, acc);
        }
    _mm512_storeu_ps(y, acc);
}

NI_DOT_STARTED(iq4_nl, iq4_nl, dot_blocks_iq4_nl)
NI_DOT_STARTED(iq4_xs, iq4_xs, dot_blocks_iq4_xs)
NI_DOT(mxfp4, mxfp4, dot_block_mxfp4)
NI_DOT(nvfp4, nvfp4, dot_block_nvfp4)

/* ---- prefill ----------------------------------------------------------------------------------------------------- */

/* n vectors of nibbles to 2 n of values. */
NI_INLINE void unpack_table(const ni_vector *q, int n, __m512i table, uint8_t *out) {
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) {
        const __m512i v = load64(q[j]);
        store64(out + 64 * j, look_up(table, low_nibbles(v)));
        store64(out + 64 * (j + n), look_up(table, high_nibbles(v)));
    }
}

static void unpack_iq4_nl(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_nl);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
        _mm512_storeu_ps(p->scale + NI_ROWS * b, load_f16(in->d));
        unpack_table(in->q, 4, table_of(ni_iq4, 0), p->q + 512 * b);
    }
}

static void unpack_iq4_xs(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_xs);
    for (int64_t b = 0; b < nk / 32; b += 8, in++)
        for (int s = 0; s < 8; s++) {
            _mm512_storeu_ps(p->scale + NI_ROWS * (b + s), _mm512_mul_ps(load_f16(in->d), load_i8(in->s[s].sc)));
            unpack_table(in->s[s].q, 4, table_of(ni_iq4, 0), p->q + 512 * (b + s));
        }
}

static void unpack_mxfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(mxfp4);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
        _mm512_storeu_ps(p->scale + NI_ROWS * b, load_e8m0_half(in->e));
        unpack_table(in->q, 4, table_of(ni_fp4, NI_FP4_OFFSET), p->q + 512 * b);
    }
}

static void unpack_nvfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(nvfp4);
    for (int64_t b = 0; b < nk / 16; b += 4, in++)
        for (int s = 0; s < 4; s++) {
            _mm512_storeu_ps(p->scale + NI_ROWS * (b + s), load_ue4m3_half(in->sc[s]));
            unpack_table(in->q[s], 2, table_of(ni_fp4, NI_FP4_OFFSET), p->q + 256 * (b + s));
        }
}

/* Sub-blocks of 16: otherwise as tile_quants. */
NI_INLINE void tile_nvfp4(const ni_panel *p, int64_t nk, const ni_act *a, int64_t t, int M, float *out) {
    const int8_t *q = a->q + t * NI_SLAB;
    const float *scale = p->scale, *d = a->d + t * (NI_SLAB / 32);
    const int32_t *start = a->start + t * (NI_SLAB / 16);
    const uint8_t *w = p->q;
    __m512 acc[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) acc[m] = _mm512_loadu_ps(out + NI_ROWS * m);
    for (int64_t b = 0; b < nk / 16; b++, q += 16, w += 256, scale += NI_ROWS, start++) {
        __m512i s[TILE];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) s[m] = bcast_load(start + NI_SLAB / 16 * m);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512i v = load64(w + 64 * j);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) s[m] = dot4(s[m], v, q + NI_SLAB * m + 4 * j);
        }
        const __m512 sc = _mm512_loadu_ps(scale);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            acc[m] = finish(s[m], _mm512_mul_ps(sc, _mm512_set1_ps(d[NI_SLAB / 32 * m + b / 2])), acc[m]);
            IN_ORDER(acc[m]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) _mm512_storeu_ps(out + NI_ROWS * m, acc[m]);
}

NI_GATHER(mxfp4, LONG, 32, NI_FP4_OFFSET, 0)
NI_GATHER(nvfp4, NI_SLAB, 16, NI_FP4_OFFSET, 0)
NI_GATHER(offset128, NI_SLAB, 16, 128, 0)   /* with NVFP4's gemm: avx512_ik.h */
NI_GEMM(mxfp4, TILE, 0, (void)accm, tile_quants(p, nk, x, t, m_, NI_FP4_OFFSET, NULL, out))
NI_GEMM(nvfp4, TILE, 0, (void)accm, tile_nvfp4(p, nk, x, t, m_, out))
#endif
