/* IQ4_NL, IQ4_XS, MXFP4 and NVFP4 with AVX-VNNI: avx2_table4.h's walk, with vpdpbusd.  IQ4's values are looked up plus 128, MXFP4's and
 * NVFP4's plus 12; sums start at -128 or -12 * sum(x). */
#ifndef NI_AVXVNNI_TABLE4_H
#define NI_AVXVNNI_TABLE4_H
#include "avxvnni_gemm.h"
#include "avx2_table4.h"

/* Continues the sums of 16 rows by 2 n k-groups, n vectors. */
NI_INLINE void vnni_table4(const ni_vector *q, int n, const int8_t *x, __m256i table, __m256i s[2]) {
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) {
        const __m256i x0 = bcast4(x + 4 * j), x1 = bcast4(x + 4 * (j + n));
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i v = load32(q[j] + 32 * i);
            s[i] = dpbusd(s[i], look_up(table, low_nibbles(v)), x0);
            s[i] = dpbusd(s[i], look_up(table, high_nibbles(v)), x1);
            IN_ORDER(s[i]);
        }
    }
}

NI_INLINE void vnni_blocks_iq4_nl(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m256 acc[2]) {
    const ni_record_iq4_nl *in = (const ni_record_iq4_nl *)w;
    const __m256i table = table_of(ni_iq4, 128);
    for (int64_t b = 0; b < n; b++, in++) {
        const __m256 dx = _mm256_broadcast_ss(d + b);
        __m256i s[2];
        s[0] = s[1] = _mm256_set1_epi32(start[b]);
        vnni_table4(in->q, 4, q + 32 * b, table, s);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) acc[i] = vnni_add(s[i], _mm256_mul_ps(load_f16(in->d + 8 * i), dx), acc[i]);
    }
}

NI_INLINE void vnni_blocks_iq4_xs(const uint8_t *w, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m256 acc[2]) {
    const ni_record_iq4_xs *in = (const ni_record_iq4_xs *)w;
    const __m256i table = table_of(ni_iq4, 128);
    for (int64_t b = 0; b < n; b += 8, in++)
        for (int e = 0; e < 8; e++) {
            const __m256 dx = _mm256_broadcast_ss(d + b + e);
            __m256i s[2];
            fetch_iq4_xs(in, e);
            s[0] = s[1] = _mm256_set1_epi32(start[b + e]);
            vnni_table4(in->s[e].q, 4, q + 32 * (b + e), table, s);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) acc[i] = vnni_add(s[i], _mm256_mul_ps(iq4_xs_scale(in, e, 8 * i), dx), acc[i]);
        }
}

NI_INLINE void vnni_block_mxfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_mxfp4 *in = (const ni_record_mxfp4 *)w;
    const __m256i table = table_of(ni_fp4, NI_FP4_OFFSET);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t b = 0; b < x->k / 32; b++, in++) {
        const __m256 dx = _mm256_broadcast_ss(x->d + b);
        __m256i s[2];
        s[0] = s[1] = offset32(x->s + 2 * b, -NI_FP4_OFFSET);
        vnni_table4(in->q, 4, x->q + 32 * b, table, s);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) acc[i] = vnni_add(s[i], _mm256_mul_ps(load_e8m0_half(in->e + 8 * i), dx), acc[i]);
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

NI_INLINE void vnni_block_nvfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_nvfp4 *in = (const ni_record_nvfp4 *)w;
    const __m256i table = table_of(ni_fp4, NI_FP4_OFFSET);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t b = 0; b < x->k / 16; b += 4, in++)
        for (int j = 0; j < 4; j++) {
            const __m256 dx = _mm256_broadcast_ss(x->d + (b + j) / 2);
            __m256i s[2];
            s[0] = s[1] = _mm256_set1_epi32(-NI_FP4_OFFSET * x->s[b + j]);
            vnni_table4(in->q[j], 2, x->q + 16 * (b + j), table, s);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) acc[i] = vnni_add(s[i], _mm256_mul_ps(load_ue4m3_half(in->sc[j] + 8 * i), dx), acc[i]);
        }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

NI_DOT_STARTED(vnni_iq4_nl, iq4_nl, vnni_blocks_iq4_nl)
NI_DOT_STARTED(vnni_iq4_xs, iq4_xs, vnni_blocks_iq4_xs)
NI_DOT(vnni_mxfp4, mxfp4, vnni_block_mxfp4)
NI_DOT(vnni_nvfp4, nvfp4, vnni_block_nvfp4)
NI_GEMM_VNNI(mxfp4, NI_FP4_OFFSET)
#endif
