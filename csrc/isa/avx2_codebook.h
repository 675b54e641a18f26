/* What codebook_impl.h asks of AVX2; with CB_VNNI defined, of AVX-VNNI. */
#ifndef NI_AVX2_CODEBOOK_H
#define NI_AVX2_CODEBOOK_H
#include "avx2_util.h"

enum { CB_PARTS = 2 };
#define CB_IN_REGISTERS 0
typedef __m256i cb_part, cb_table;

NI_INLINE cb_part cb_load(const void *p) { return load32(p); }
NI_INLINE void cb_store(uint8_t *p, cb_part v) { _mm256_storeu_si256((__m256i *)p, v); }
NI_INLINE cb_part cb_set(uint32_t u) { return _mm256_set1_epi32((int)u); }
NI_INLINE cb_part cb_halves(const uint16_t *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
NI_INLINE cb_part cb_and(cb_part a, cb_part b) { return _mm256_and_si256(a, b); }
NI_INLINE cb_part cb_or(cb_part a, cb_part b) { return _mm256_or_si256(a, b); }
NI_INLINE cb_part cb_xor(cb_part a, cb_part b) { return _mm256_xor_si256(a, b); }
NI_INLINE cb_part cb_mul(cb_part a, cb_part b) { return _mm256_mullo_epi32(a, b); }
NI_INLINE cb_part cb_left(cb_part v, int n) { return _mm256_slli_epi32(v, n); }
NI_INLINE cb_part cb_right(cb_part v, int n) { return _mm256_srli_epi32(v, n); }
NI_INLINE cb_part cb_left16(cb_part v, int n) { return _mm256_slli_epi16(v, n); }
NI_INLINE cb_table cb_table_of(const uint8_t *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }
NI_INLINE cb_part cb_pick(cb_table t, cb_part index) { return _mm256_shuffle_epi8(t, index); }
NI_INLINE cb_part cb_dot(cb_part s, cb_part v, const int8_t *x) {
#if defined(CB_VNNI)
    s = _mm256_dpbusd_avx_epi32(s, v, bcast4(x));
#else   /* two products: at most 2 * 127 * 127, so that nothing saturates */
    s = _mm256_add_epi32(s, widen(_mm256_maddubs_epi16(v, bcast4(x))));
#endif
    IN_ORDER(s);
    return s;
}
NI_INLINE v16 cb_floats(const cb_part *p) { return (v16){_mm256_cvtepi32_ps(p[0]), _mm256_cvtepi32_ps(p[1])}; }
NI_INLINE void cb_shuffle(const int8_t *x, const uint8_t *order, int8_t *y) {
    const __m128i v = _mm_loadu_si128((const __m128i *)x);
    _mm_storeu_si128((__m128i *)y, _mm_shuffle_epi8(v, _mm_loadu_si128((const __m128i *)order)));
}

#include "codebook_impl.h"
#endif
