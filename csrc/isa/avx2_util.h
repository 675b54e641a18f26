/* Small pieces of the AVX2 matmul kernels.  Included after the file's target.
 *
 * A row group's 16 rows are two halves of 8 rows, one ymm register each.  A vector of 64 quant bytes is thus two loads,
 * and every function that takes a half (0 or 1) expects pointers already moved to it. */
#ifndef NI_AVX2_UTIL_H
#define NI_AVX2_UTIL_H
#include <string.h>
#include "intrinsics.h"
#include "kernels.h"
#include "parts.h"
#include "v16.h"

#define NI_INLINE static inline __attribute__((always_inline))

/* Keeps gcc from putting an addition off: gcc 12 would hold every product in a register of its own and spill. */
#define IN_ORDER(v) asm volatile("" : "+x"(v))

NI_INLINE __m256i load32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* 8 half floats, 8 bfloat16. */
NI_INLINE __m256 load_f16(const void *p) { return v16_8_f16(p); }
NI_INLINE __m256 load_bf16(const void *p) { return v16_8_bf16(p); }

/* 8 unsigned or signed bytes as floats. */
NI_INLINE __m256 load_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
NI_INLINE __m256 load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* Loads a byte of every line, in order, before the lines are used in another order.  Not unrolled: the prefetcher learns the stride
 * from one load instruction that repeats (3 x faster). */
NI_INLINE void touch(const uint8_t *p, int bytes) {
#pragma GCC unroll 1
    for (int i = 0; i < bytes; i += 64) (void)*(const volatile uint8_t *)(p + i);
}

/* The 4 activations of a k-group, for every row. */
NI_INLINE __m256i bcast4(const int8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

/* offset * (sum of 32 activations), from their two sums of 16. */
NI_INLINE __m256i offset32(const int16_t *s, int offset) {
    int32_t v;
    memcpy(&v, s, 4);
    return _mm256_madd_epi16(_mm256_set1_epi32(v), _mm256_set1_epi16((short)offset));
}

/* Adds pairs of 16-bit sums to 32 bits. */
NI_INLINE __m256i widen(__m256i s) { return _mm256_madd_epi16(s, _mm256_set1_epi16(1)); }

NI_INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
NI_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

/* `width` bits of every byte, moved from bit `from` to bit `to`; all others 0. */
NI_INLINE __m256i move_bits(__m256i v, int from, int to, int width) {
    v = from < to ? _mm256_slli_epi16(v, to - from) : from > to ? _mm256_srli_epi16(v, from - to) : v;
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(((1 << width) - 1) << to)));
}

/* 5-bit values: the low or high nibbles of v with bit g of h. */
NI_INLINE __m256i q5_low(__m256i v, __m256i h, int g) {
    return _mm256_or_si256(low_nibbles(v), move_bits(h, g, 4, 1));
}
NI_INLINE __m256i q5_high(__m256i v, __m256i h, int g) {
    return _mm256_or_si256(high_nibbles(v), move_bits(h, g, 4, 1));
}

/* Q6_K: the 4 k-groups of a sub-block, from its 3 vectors. */
NI_INLINE void q6_values(const uint8_t *p, __m256i v[4]) {
    const __m256i a = load32(p), b = load32(p + 64), c = load32(p + 128), mask = _mm256_set1_epi8(63);
    v[0] = _mm256_and_si256(a, mask);
    v[1] = _mm256_and_si256(b, mask);
    v[2] = _mm256_and_si256(c, mask);
    v[3] = _mm256_or_si256(_mm256_srli_epi16(_mm256_andnot_si256(mask, c), 2), _mm256_andnot_si256(mask, b));
    v[3] = _mm256_or_si256(_mm256_srli_epi16(v[3], 2), _mm256_andnot_si256(mask, a));
    v[3] = _mm256_srli_epi16(v[3], 2);
}

/* Q6_K: the scales of 8 rows as 16 bits, each twice, to multiply pairs of 16-bit sums with. */
NI_INLINE __m256i q6_scales(const int8_t *p) {
    const __m256i v = _mm256_broadcastsi128_si256(_mm_loadl_epi64((const __m128i *)p));
    const __m256i twice = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
                                           4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(v, twice), 8);
}
#endif
