/* What ik_impl.h asks of AVX-512.  Panels of IQ2_K to IQ6_K hold the value + 128 and are multiplied by NVFP4's gemm: its sub-blocks are as
 * long. */
#ifndef NI_AVX512_IK_H
#define NI_AVX512_IK_H
#include "avx512_codebook.h"
#include "avx512_table4.h"

#define IK_OFFSET(low) 128
NI_INLINE cb_part ik_dot(cb_part s, cb_part v, const int8_t *x, int offset) { (void)offset; return cb_dot(s, v, x); }
NI_INLINE cb_part ik_add(cb_part a, cb_part b) { return _mm512_add_epi32(a, b); }
NI_INLINE cb_part ik_sub(cb_part a, cb_part b) { return _mm512_sub_epi32(a, b); }
NI_INLINE cb_part ik_add8(cb_part a, cb_part b) { return _mm512_add_epi8(a, b); }
NI_INLINE cb_part ik_sub8(cb_part a, cb_part b) { return _mm512_sub_epi8(a, b); }
NI_INLINE cb_part ik_abs8(cb_part a) { return _mm512_abs_epi8(a); }
NI_INLINE cb_part ik_mask(cb_part v, int n) { return _mm512_maskz_set1_epi32(_mm512_test_epi32_mask(v, _mm512_set1_epi32(1 << n)), -1); }
NI_INLINE cb_part ik_pick2(const cb_table *t, cb_part index) {
    const __mmask64 second = _mm512_test_epi8_mask(index, _mm512_set1_epi8(16));
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(t[0], index), second, t[1], index);
}
NI_INLINE cb_part ik_pick4(const cb_table *t, cb_part index) {
    const __mmask64 last = _mm512_test_epi8_mask(index, _mm512_set1_epi8(32));
    return _mm512_mask_blend_epi8(last, ik_pick2(t, index), ik_pick2(t + 2, index));
}
NI_INLINE void ik_zip(cb_part a, cb_part b, cb_part out[2]) {   /* unpacked, a row's two lanes lie side by side */
    const __m512 low = _mm512_castsi512_ps(_mm512_unpacklo_epi8(a, b)), high = _mm512_castsi512_ps(_mm512_unpackhi_epi8(a, b));
    out[0] = _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0x88));
    out[1] = _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0xdd));
}
NI_INLINE cb_part ik_sums(const cb_part x[4]) {   /* pairs of bytes, pairs of pairs, then bytes to their rows */
    const __m512i one = _mm512_set1_epi8(1);
    const __m512i a = _mm512_packus_epi16(_mm512_maddubs_epi16(x[0], one), _mm512_maddubs_epi16(x[1], one));
    const __m512i b = _mm512_packus_epi16(_mm512_maddubs_epi16(x[2], one), _mm512_maddubs_epi16(x[3], one));
    const __m512i sums = _mm512_packus_epi16(_mm512_maddubs_epi16(a, one), _mm512_maddubs_epi16(b, one));
    return _mm512_shuffle_epi8(sums, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}
NI_INLINE v16 ik_low_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(load64(p))); }

#include "ik_impl.h"
#endif
