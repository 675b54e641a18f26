/* Small pieces of the AVX-512 matmul kernels.  Included by avx512.c only, after its target.
 *
 * A row group's 16 rows are the 16 lanes of one zmm register: a vector of 64 quant bytes is one load, and vpdpbusd adds
 * the 4 products of a k-group (unsigned weight x signed activation) to each row's 32-bit sum, which cannot overflow. */
#ifndef NI_AVX512_UTIL_H
#define NI_AVX512_UTIL_H
#include <string.h>
#include "intrinsics.h"
#include "kernels.h"

#define NI_INLINE static inline __attribute__((always_inline))

/* Bytes of one packed record (formats.h). */
enum {
    REC_F32 = 64, REC_F16 = 32, REC_Q4_0 = 288, REC_Q4_1 = 320, REC_Q5_0 = 352, REC_Q5_1 = 384, REC_Q8_0 = 544,
    REC_Q4_K = 2368, REC_Q5_K = 2880, REC_Q6_K = 3360
};

NI_INLINE __m512i load64(const void *p) { return _mm512_loadu_si512(p); }
NI_INLINE void store64(void *p, __m512i v) { _mm512_storeu_si512(p, v); }

/* 16 half floats, as two ymm: on Zen 4 the conversion to a zmm takes 1.35 cycles, two to ymm take 1. */
NI_INLINE __m512 load_f16(const uint8_t *p) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p))),
                              _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16))), 1);
}

/* 16 bfloat16. */
NI_INLINE __m512 load_bf16(const uint8_t *p) {
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

/* 16 unsigned or signed bytes as floats. */
NI_INLINE __m512 load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
NI_INLINE __m512 load_i8(const uint8_t *p) {
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

/* Q6_K: the values of quarter t of a half, from low nibbles (those of t and t - 2 share a vector) and high bits. */
NI_INLINE __m512i q6_value(__m512i v, __m512i h, int t) {
    return join(t >= 2 ? _mm512_srli_epi16(v, 4) : v, move_bits(h, 2 * t, 4), 63);
}
#endif
