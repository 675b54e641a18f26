/* Attention's products for few queries with AVX-512, included by attend_impl.h.
 *
 * There the conversion from halves sets the pace.  On Zen 4 one to a zmm takes 1.35 cycles of the pipes that the fma
 * needs, two to ymm take 1: up to 3 queries ymm registers are 1.1 to 1.6 times as fast. */
#ifndef NI_AVX512_ATTEND_H
#define NI_AVX512_ATTEND_H
#include "v16.h"

#define NI_ATT_FEW 3    /* queries, at most */

V16_FN __m256 NI_VEC(att_load_half)(const ni_kv_type type, const uint8_t *p) {
    if (type == NI_KV_f32) return _mm256_loadu_ps((const float *)p);
    return type == NI_KV_bf16 ? v16_8_bf16((const uint16_t *)p) : v16_8_f16((const uint16_t *)p);
}

/* out[j * out_stride + 16 b + l] = sum over i = i0 .. i1-1 of x[j * x_stride + i] * number l of row i of block b, for nq queries and nb
 * blocks, `block` bytes apart, of rows of 16 numbers.  +0 is added to the sums if `clean`. */
V16_FN void NI_VEC(att_few)(const ni_kv_type type, const int nq, const int nb, const float *x, int64_t x_stride,
                            int64_t i0, int64_t i1, const uint8_t *m, int64_t block, int64_t ahead, float *out,
                            int64_t out_stride, const int clean) {
    const int64_t row = NI_VEC(att_row)(type);
    __m256 sum[NI_ATT_FEW][8];
#pragma GCC unroll 8
    for (int j = 0; j < nq; j++)
#pragma GCC unroll 8
        for (int h = 0; h < 2 * nb; h++) sum[j][h] = _mm256_setzero_ps();
    for (int64_t i = i0; i < i1; i++)
#pragma GCC unroll 8
        for (int h = 0; h < 2 * nb; h++) {
            const uint8_t *p = m + h / 2 * block + row * i + row / 2 * (h % 2);
            if (h % 2 == 0) NI_ATT_PREFETCH(p, ahead);
            const __m256 v = NI_VEC(att_load_half)(type, p);
#pragma GCC unroll 8
            for (int j = 0; j < nq; j++)
                sum[j][h] = _mm256_fmadd_ps(_mm256_set1_ps(x[j * x_stride + i]), v, sum[j][h]);
        }
#pragma GCC unroll 8
    for (int j = 0; j < nq; j++)
#pragma GCC unroll 8
        for (int h = 0; h < 2 * nb; h++)
            _mm256_storeu_ps(out + j * out_stride + 8 * h,
                             clean ? _mm256_add_ps(sum[j][h], _mm256_setzero_ps()) : sum[j][h]);
}
#endif
