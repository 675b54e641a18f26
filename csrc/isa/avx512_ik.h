/* IQ4_K and IQ4_KS with AVX-512: their panels.  IQ4_K's hold the value + 128, as those of IQ2_K to IQ6_K do, which NVFP4's gemm multiplies:
 * its sub-blocks are as long. */
#ifndef NI_AVX512_IK_H
#define NI_AVX512_IK_H
#include "avx512_table4.h"

/* Bytes of 4 in the rows whose bit i of `bits` is set. */
NI_INLINE __m512i higher_by_4(__m512i bits, int i) {
    return _mm512_maskz_set1_epi32(_mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << i)), 0x04040404);
}

static void unpack_iq4_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_k);
    const __m512i table = table_of(ni_iq4, 128);
    for (int64_t b = 0; b < nk / 256; b++, in++) {
        const __m512i d_extra = load64(in->d_extra), extra = _mm512_srli_epi32(d_extra, 16), high = load64(in->high);
        const __m512 d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(d_extra));
        for (int s = 0; s < 16; s++) {
            const __m512i low = load64(in->low[s / 8]);
            const __m512i low4 = _mm512_and_si512(_mm512_srli_epi32(low, (unsigned)(4 * (s % 8))), _mm512_set1_epi32(15));
            const __m512i high2 = _mm512_and_si512(_mm512_srli_epi32(high, (unsigned)(2 * s)), _mm512_set1_epi32(3));
            const __m512i sc = _mm512_sub_epi32(_mm512_or_si512(low4, _mm512_slli_epi32(high2, 4)), _mm512_set1_epi32(32));
            const __m512i higher = higher_by_4(extra, s);
            _mm512_storeu_ps(p->scale + NI_ROWS * (16 * b + s), _mm512_mul_ps(d, _mm512_cvtepi32_ps(sc)));
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512i v = load64(in->q[s / 2 * 4 + j]), places = s % 2 ? high_nibbles(v) : low_nibbles(v);
                store64(p->q + 256 * (16 * b + s) + 64 * j, _mm512_add_epi8(look_up(table, places), higher));
            }
        }
    }
}

static void unpack_iq4_ks(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_ks);
    const __m512i table = table_of(ni_iq4, 0);
    for (int64_t b = 0; b < nk / 256; b++, in++)
        for (int s = 0; s < 8; s++) {
            const __m512i sc = _mm512_srli_epi32(load64(in->sc[s / 4]), (unsigned)(8 * (s % 4))), higher = higher_by_4(sc, 0);
            const __m512i whole = _mm512_sub_epi32(_mm512_and_si512(sc, _mm512_set1_epi32(254)), _mm512_set1_epi32(127));
            _mm512_storeu_ps(p->scale + NI_ROWS * (8 * b + s), _mm512_mul_ps(_mm512_loadu_ps(in->d), _mm512_cvtepi32_ps(whole)));
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512i v = load64(in->q[4 * s + j]);
                uint8_t *out = p->q + 512 * (8 * b + s) + 64 * j;
                store64(out, _mm512_add_epi8(look_up(table, low_nibbles(v)), higher));
                store64(out + 256, _mm512_add_epi8(look_up(table, high_nibbles(v)), higher));
            }
        }
}
#endif
