/* What ik_impl.h asks of AVX2, with CB_VNNI defined of AVX-VNNI; and the gemm of IQ2_K to IQ6_K, whose panels hold the value + 128, in
 * sub-blocks of 16. */
#ifndef NI_AVX2_IK_H
#define NI_AVX2_IK_H
#include "avx2_codebook.h"
#include "avx2_table4.h"

/* Of bytes, vpdpbusd takes the unsigned ones.  Without it, signed ones are multiplied as |v| * sign(x, v). */
#if defined(CB_VNNI)
#define IK_OFFSET(low) 128
#else
#define IK_OFFSET(low) (low)
#endif
NI_INLINE cb_part ik_dot(cb_part s, cb_part v, const int8_t *x, int offset) {
    if (offset) return cb_dot(s, v, x);
    s = _mm256_add_epi32(s, widen(_mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(bcast4(x), v))));
    IN_ORDER(s);
    return s;
}
NI_INLINE cb_part ik_add(cb_part a, cb_part b) { return _mm256_add_epi32(a, b); }
NI_INLINE cb_part ik_sub(cb_part a, cb_part b) { return _mm256_sub_epi32(a, b); }
NI_INLINE cb_part ik_add8(cb_part a, cb_part b) { return _mm256_add_epi8(a, b); }
NI_INLINE cb_part ik_sub8(cb_part a, cb_part b) { return _mm256_sub_epi8(a, b); }
NI_INLINE cb_part ik_abs8(cb_part a) { return _mm256_abs_epi8(a); }
NI_INLINE cb_part ik_mask(cb_part v, int n) {
    const __m256i bit = _mm256_set1_epi32((int)(1u << n));
    return _mm256_cmpeq_epi32(_mm256_and_si256(v, bit), bit);
}
NI_INLINE cb_part ik_pick2(const cb_table *t, cb_part index) {   /* by bit 4, in the place of bit 7 */
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(t[0], index), _mm256_shuffle_epi8(t[1], index), _mm256_slli_epi16(index, 3));
}
NI_INLINE cb_part ik_pick4(const cb_table *t, cb_part index) {
    return _mm256_blendv_epi8(ik_pick2(t, index), ik_pick2(t + 2, index), _mm256_slli_epi16(index, 2));
}
NI_INLINE void ik_zip(cb_part a, cb_part b, cb_part out[2]) {   /* unpacked, a row's two lanes lie side by side */
    const __m256 low = _mm256_castsi256_ps(_mm256_unpacklo_epi8(a, b)), high = _mm256_castsi256_ps(_mm256_unpackhi_epi8(a, b));
    out[0] = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
    out[1] = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
}
NI_INLINE cb_part ik_sums(const cb_part x[4]) {   /* pairs of bytes, pairs of pairs, then bytes to their rows */
    const __m256i one = _mm256_set1_epi8(1);
    const __m256i a = _mm256_packus_epi16(_mm256_maddubs_epi16(x[0], one), _mm256_maddubs_epi16(x[1], one));
    const __m256i b = _mm256_packus_epi16(_mm256_maddubs_epi16(x[2], one), _mm256_maddubs_epi16(x[3], one));
    const __m256i sums = _mm256_packus_epi16(_mm256_maddubs_epi16(a, one), _mm256_maddubs_epi16(b, one));
    const __m128i rows = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm256_shuffle_epi8(sums, _mm256_broadcastsi128_si256(rows));
}
NI_INLINE v16 ik_low_halves(const uint8_t *p) {
    const __m256i low = _mm256_set1_epi32(0xffff), a = _mm256_and_si256(load32(p), low), b = _mm256_and_si256(load32(p + 32), low);
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    return (v16){_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}

#include "ik_impl.h"

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
