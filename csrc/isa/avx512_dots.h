/* Decode of 2 to NI_DOTS tokens at once with AVX-512, where that is not the dot itself (avx512_dot.h) with more tokens. */
#ifndef NI_AVX512_DOTS_H
#define NI_AVX512_DOTS_H
#include "avx512_dot.h"

/* Q8_0 as unsigned w + 128, of M tokens; start[t][b] = -128 * (sum of block b of token t). */
NI_INLINE void dots_block_q8_0(const ni_record_q8_0 *in, int64_t n, const ni_act *x, int64_t b0, int M, const int32_t (*start)[1024],
                               __m512 *acc) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    for (int64_t b = 0; b < n; b++, in++) {
        const __m512 d = load_f16(in->d);
        __m512i s[NI_DOTS];
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) s[t] = bcast4(&start[t][b]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m512i v = _mm512_xor_si512(load64(in->q[j]), sign);
#pragma GCC unroll 4
            for (int t = 0; t < M; t++) s[t] = _mm512_dpbusd_epi32(s[t], v, bcast4(x[t].q + 32 * (b0 + b) + 4 * j));
        }
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) acc[t] = finish(s[t], _mm512_mul_ps(d, _mm512_set1_ps(x[t].d[b0 + b])), acc[t]);
    }
}

NI_INLINE int32_t sum_of_32(const int8_t *q) {
    const __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)q));
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    return _mm_cvtsi128_si32(t) + _mm_extract_epi32(t, 1);
}

/* The sums of x are taken once for all groups, unless K is so long that they do not fit the stack's share. */
NI_INLINE void dots_groups_q8_0(const ni_record_q8_0 *in, int64_t n_groups, const ni_act *x, int M, float *const *y) {
    enum { MOST = 1024 };
    int32_t start[NI_DOTS][MOST];
    const int64_t n = x->k / 32;
    for (int64_t g = 0; g < n_groups; g++) {
        __m512 acc[NI_DOTS];
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) acc[t] = _mm512_setzero_ps();
        for (int64_t b = 0; b < n; b += MOST) {
            const int64_t part = n - b < MOST ? n - b : MOST;
            if (g == 0 || n > MOST)
                for (int t = 0; t < M; t++)
                    for (int64_t i = 0; i < part; i++) start[t][i] = -128 * sum_of_32(x[t].q + 32 * (b + i));
            dots_block_q8_0(in, part, x, b, M, start, acc);
            in += part;
        }
#pragma GCC unroll 4
        for (int t = 0; t < M; t++) _mm512_storeu_ps(y[t] + NI_ROWS * g, acc[t]);
    }
}

static void dots_q8_0(const uint8_t *w, int64_t n_groups, const ni_act *x, int n_tokens, float *const *y) {
    const ni_record_q8_0 *in = (const ni_record_q8_0 *)w;
    switch (n_tokens) {
    case 2: dots_groups_q8_0(in, n_groups, x, 2, y); break;
    case 3: dots_groups_q8_0(in, n_groups, x, 3, y); break;
    case 4: dots_groups_q8_0(in, n_groups, x, 4, y); break;
    }
}
#endif
