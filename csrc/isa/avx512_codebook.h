/* What codebook_impl.h asks of AVX-512.  Words are looked up in registers: one permutation finds 32 words of 64, so that a gather of 16
 * words from memory, 16 loads, is replaced by 2 (256 words) to 16 (1024) instructions and as many to choose among their results. */
#ifndef NI_AVX512_CODEBOOK_H
#define NI_AVX512_CODEBOOK_H
#include "avx512_util.h"
#include "../formats/codebook.h"

enum { CB_PARTS = 1 };
#define CB_IN_REGISTERS 1
typedef __m512i cb_part, cb_table;

NI_INLINE cb_part cb_load(const void *p) { return load64(p); }
NI_INLINE void cb_store(uint8_t *p, cb_part v) { store64(p, v); }
NI_INLINE cb_part cb_set(uint32_t u) { return _mm512_set1_epi32((int)u); }
NI_INLINE cb_part cb_halves(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
NI_INLINE cb_part cb_and(cb_part a, cb_part b) { return _mm512_and_si512(a, b); }
NI_INLINE cb_part cb_or(cb_part a, cb_part b) { return _mm512_or_si512(a, b); }
NI_INLINE cb_part cb_xor(cb_part a, cb_part b) { return _mm512_xor_si512(a, b); }
NI_INLINE cb_part cb_mul(cb_part a, cb_part b) { return _mm512_mullo_epi32(a, b); }
NI_INLINE cb_part cb_left(cb_part v, int n) { return _mm512_slli_epi32(v, (unsigned)n); }
NI_INLINE cb_part cb_right(cb_part v, int n) { return _mm512_srli_epi32(v, (unsigned)n); }
NI_INLINE cb_part cb_left16(cb_part v, int n) { return _mm512_slli_epi16(v, (unsigned)n); }
NI_INLINE cb_table cb_table_of(const uint8_t *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
NI_INLINE cb_part cb_pick(cb_table t, cb_part index) { return _mm512_shuffle_epi8(t, index); }
NI_INLINE cb_part cb_dot(cb_part s, cb_part v, const int8_t *x) { return _mm512_dpbusd_epi32(s, v, bcast4(x)); }
NI_INLINE v16 cb_floats(const cb_part *p) { return _mm512_cvtepi32_ps(p[0]); }
NI_INLINE void cb_shuffle(const int8_t *x, const uint8_t *order, int8_t *y) {
    const __m128i v = _mm_loadu_si128((const __m128i *)x);
    _mm_storeu_si128((__m128i *)y, _mm_shuffle_epi8(v, _mm_loadu_si128((const __m128i *)order)));
}

NI_INLINE void cb_look_up(const ni_book *book, const uint8_t *q, const uint8_t *high, int bits, int even, int odd,
                       uint32_t (*pairs)[NI_ROWS]) {
#pragma GCC unroll 2
    for (int o = 0; o < 2; o++) {
        const __m512i place = o ? _mm512_srli_epi16(load64(q), 8) : load64(q);
        __m512i v[16];
#pragma GCC unroll 16
        for (int i = 0; i < 1 << (bits - 6); i++)
            v[i] = _mm512_permutex2var_epi16(load64(book->word + 64 * i), place, load64(book->word + 64 * i + 32));
#pragma GCC unroll 4
        for (int b = 6; b < bits; b++) {
            const __m512i from = b < 8 ? place : load64(high);
            const __mmask32 set = _mm512_test_epi16_mask(from, _mm512_set1_epi16((short)(1u << (b < 8 ? b : (o ? odd : even) + b - 8))));
#pragma GCC unroll 8
            for (int i = 0; i < 1 << (bits - 1 - b); i++) v[i] = _mm512_mask_blend_epi16(set, v[2 * i], v[2 * i + 1]);
        }
        store64(pairs[o], v[0]);
    }
}

#include "codebook_impl.h"
#endif
