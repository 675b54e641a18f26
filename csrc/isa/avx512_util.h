/* Small pieces of the AVX-512 matmul kernels.  Included by avx512.c only, after its target.
 *
 * A row group's 16 rows are the 16 lanes of one zmm register: a vector of 64 quant bytes is one load, and vpdpbusd adds
 * the 4 products of a k-group (unsigned weight x signed activation) to each row's 32-bit sum, which cannot overflow. */
#ifndef NI_AVX512_UTIL_H
#define NI_AVX512_UTIL_H
#include <string.h>
#include "intrinsics.h"
#include "kernels.h"
#include "parts.h"
#include "v16.h"

#define NI_INLINE static inline __attribute__((always_inline))

NI_INLINE __m512i load64(const void *p) { return _mm512_loadu_si512(p); }
NI_INLINE void store64(void *p, __m512i v) { _mm512_storeu_si512(p, v); }

/* 16 half floats, as two ymm: on Zen 4 the conversion to a zmm takes 1.35 cycles, two to ymm take 1. */
NI_INLINE __m512 load_f16(const void *p) {
    const uint16_t *h = p;
    return _mm512_insertf32x8(_mm512_castps256_ps512(v16_8_f16(h)), v16_8_f16(h + 8), 1);
}

/* 16 unsigned or signed bytes as floats. */
NI_INLINE __m512 load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
NI_INLINE __m512 load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* Four bytes, for every row: the activations of a k-group, or two 16-bit sums. */
NI_INLINE __m512i bcast4(const void *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* low * s[0] + high * s[1], for every row: -offset * (sums of the activations), where vpdpbusd goes on. */
NI_INLINE __m512i start_at(const int16_t *s, int low, int high) {
    return _mm512_madd_epi16(bcast4(s), _mm512_set1_epi32((int32_t)((uint32_t)high << 16 | (uint16_t)low)));
}

NI_INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
NI_INLINE __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

/* 16 times the high nibbles: saves the shift where a sum can be divided at the end. */
NI_INLINE __m512i high_in_place(__m512i v) { return _mm512_andnot_si512(_mm512_set1_epi8(15), v); }

/* Bit `from` of every byte, moved to bit `to`; bits come along that the caller masks off. */
NI_INLINE __m512i move_bits(__m512i v, int from, int to) {
    return from < to ? _mm512_slli_epi16(v, (unsigned)(to - from)) :
           from > to ? _mm512_srli_epi16(v, (unsigned)(from - to)) : v;
}

/* The low nibble of `nibble` and, above it, bits 4 .. of `bits`; max_q is the mask of all. */
NI_INLINE __m512i join(__m512i nibble, __m512i bits, int max_q) {
    const __m512i v = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), nibble, bits, 0xca);   /* bitwise a ? b : c */
    return _mm512_and_si512(v, _mm512_set1_epi8((char)max_q));
}

/* The two values of Q5_* that a byte holds; fifth bits are bit g of h. */
NI_INLINE __m512i q5_low(__m512i v, __m512i h, int g) { return join(v, move_bits(h, g, 4), 31); }
NI_INLINE __m512i q5_high(__m512i v, __m512i h, int g) { return q5_low(_mm512_srli_epi16(v, 4), h, g); }

/* Q6_K: the 4 k-groups of a sub-block, from its 3 vectors. */
NI_INLINE void q6_values(const uint8_t *p, __m512i v[4]) {
    const __m512i a = load64(p), b = load64(p + 64), c = load64(p + 128), mask = _mm512_set1_epi8(63);
    v[0] = _mm512_and_si512(a, mask);
    v[1] = _mm512_and_si512(b, mask);
    v[2] = _mm512_and_si512(c, mask);
    v[3] = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x30), _mm512_srli_epi16(a, 2), _mm512_srli_epi16(b, 4), 0xca);
    v[3] = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x3c), v[3], _mm512_srli_epi16(c, 6), 0xca);
    v[3] = _mm512_and_si512(v[3], mask);
}

/* Q6_K: s0 * sc0 + s1 * sc1.  All of it whole numbers below 2^24, so floats are exact. */
NI_INLINE __m512 q6_isum(__m512i s0, __m512i s1, __m512 sc0, __m512 sc1) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(s1), sc1, _mm512_mul_ps(_mm512_cvtepi32_ps(s0), sc0));
}
#endif
