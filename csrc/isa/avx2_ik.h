/* IQ4_K and IQ4_KS with AVX2: their panels; and the gemm of IQ2_K to IQ6_K, whose panels hold the value + 128, in sub-blocks of 16. */
#ifndef NI_AVX2_IK_H
#define NI_AVX2_IK_H
#include "avx2_table4.h"

/* Bytes of 4 in the rows whose bit i of `bits` is set. */
NI_INLINE __m256i higher_by_4(__m256i bits, int i) {
    const __m256i bit = _mm256_and_si256(_mm256_srli_epi32(bits, i), _mm256_set1_epi32(1));
    return _mm256_and_si256(_mm256_cmpeq_epi32(bit, _mm256_set1_epi32(1)), _mm256_set1_epi8(4));
}

static void unpack_iq4_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_k);
    const __m256i table = table_of(ni_iq4, 128);
    for (int64_t b = 0; b < nk / 256; b++, in++)
        for (int i = 0; i < 2; i++) {   /* 8 rows each */
            const __m256i d_extra = load32(in->d_extra + 32 * i), extra = _mm256_srli_epi32(d_extra, 16), high = load32(in->high + 32 * i);
            const __m256i halves = _mm256_and_si256(d_extra, _mm256_set1_epi32(0xffff)), packed = _mm256_packus_epi32(halves, halves);
            const __m256 d = _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
            for (int s = 0; s < 16; s++) {
                const __m256i low = load32(in->low[s / 8] + 32 * i);
                const __m256i low4 = _mm256_and_si256(_mm256_srli_epi32(low, 4 * (s % 8)), _mm256_set1_epi32(15));
                const __m256i high2 = _mm256_and_si256(_mm256_srli_epi32(high, 2 * s), _mm256_set1_epi32(3));
                const __m256i sc = _mm256_sub_epi32(_mm256_or_si256(low4, _mm256_slli_epi32(high2, 4)), _mm256_set1_epi32(32));
                const __m256i higher = higher_by_4(extra, s);
                _mm256_storeu_ps(p->scale + NI_ROWS * (16 * b + s) + 8 * i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(sc)));
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const __m256i v = load32(in->q[s / 2 * 4 + j] + 32 * i), places = s % 2 ? high_nibbles(v) : low_nibbles(v);
                    const __m256i values = _mm256_add_epi8(look_up(table, places), higher);
                    _mm256_storeu_si256((__m256i *)(p->q + 256 * (16 * b + s) + 64 * j + 32 * i), values);
                }
            }
        }
}

static void unpack_iq4_ks(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_ks);
    const __m256i table = table_of(ni_iq4, 0);
    for (int64_t b = 0; b < nk / 256; b++, in++)
        for (int i = 0; i < 2; i++)
            for (int s = 0; s < 8; s++) {
                const __m256i sc = _mm256_srli_epi32(load32(in->sc[s / 4] + 32 * i), 8 * (s % 4)), higher = higher_by_4(sc, 0);
                const __m256i whole = _mm256_sub_epi32(_mm256_and_si256(sc, _mm256_set1_epi32(254)), _mm256_set1_epi32(127));
                const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(in->d + 8 * i), _mm256_cvtepi32_ps(whole));
                _mm256_storeu_ps(p->scale + NI_ROWS * (8 * b + s) + 8 * i, scale);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const __m256i v = load32(in->q[4 * s + j] + 32 * i);
                    uint8_t *out = p->q + 512 * (8 * b + s) + 64 * j + 32 * i;
                    _mm256_storeu_si256((__m256i *)out, _mm256_add_epi8(look_up(table, low_nibbles(v)), higher));
                    _mm256_storeu_si256((__m256i *)(out + 256), _mm256_add_epi8(look_up(table, high_nibbles(v)), higher));
                }
            }
}

/* Quants of 8 bits: a pair of products does not fit 16 bits, so bytes become words, the even ones and the odd ones. */
NI_INLINE void tile_offset128(const ni_panel *p, int64_t nk, gemm_tokens a, int M, float *acc) {
    const uint8_t *w = p->q;
    const float *scale = p->scale;
    const __m256i even = _mm256_set1_epi16(0xff);
    for (int64_t b = 0; b < nk / 16; b++, w += 256, scale += NI_ROWS) {
        __m256i s[6][2];
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) s[m][0] = s[m][1] = _mm256_set1_epi32(-128 * a.s[m * a.k16 + b]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m256i v = load32(w + 64 * j + 32 * i), w0 = _mm256_and_si256(v, even), w1 = _mm256_srli_epi16(v, 8);
#pragma GCC unroll 6
                for (int m = 0; m < M; m++) {
                    const __m256i x = bcast4(a.q + m * a.k + 16 * b + 4 * j);
                    const __m256i x0 = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x1 = _mm256_srai_epi16(x, 8);
                    const __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(w0, x0), _mm256_madd_epi16(w1, x1));
                    s[m][i] = _mm256_add_epi32(s[m][i], sums);
                    IN_ORDER(s[m][i]);
                }
            }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 dx = _mm256_broadcast_ss(a.d + m * a.k32 + b / 2);
            finish(s[m][0], scale, dx, acc + NI_ROWS * m);
            finish(s[m][1], scale + 8, dx, acc + NI_ROWS * m + 8);
        }
        KEEP_IN_MEMORY;
    }
}

NI_GEMM(offset128, 3, 0, tile_offset128(p, nk, a, m_, out))
#endif
