/* v16: sixteen float lanes, whatever the machine has: one zmm, two ymm, four NEON registers, or a plain array.
 *
 * The includer defines V16_AVX512, V16_AVX2 or V16_NEON first, or none for the array. Every operation gives the same bits
 * in all forms: each is either exact or one correctly rounded IEEE operation per lane, and sums over lanes use one
 * fixed tree (v16_sum). max and min are those of x86: `a > b ? a : b` and `a < b ? a : b`, so the second operand wins
 * for NaN and for zeros of either sign. Assumes the default rounding mode, subnormals on, -ffp-contract=off. Addresses
 * need no alignment.
 */
#ifndef NI_V16_H
#define NI_V16_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../formats/half.h"
#include "intrinsics.h"

#if defined(V16_AVX512)
#define V16_AVX2
#endif

#if defined(V16_AVX2)
#define V16_FN static inline __attribute__((always_inline, unused))

/* 8 half floats, 8 bfloat16. */
V16_FN __m256 v16_8_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
V16_FN __m256 v16_8_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

/* Lanes l and l+8, then l+4, then l+2, then l+1: the one tree of every lane sum. */
V16_FN float v16_sum_halves(__m256 lo, __m256 hi) {
    __m256 a = _mm256_add_ps(lo, hi);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
V16_FN float v16_hmax_halves(__m256 lo, __m256 hi) {
    __m256 a = _mm256_max_ps(lo, hi);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
#endif

#if defined(V16_AVX512)

typedef __m512 v16;
typedef __m512i v16i;
typedef __mmask16 v16m;

V16_FN v16 v16_set1(float x) { return _mm512_set1_ps(x); }
V16_FN v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
V16_FN void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
V16_FN v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
V16_FN v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
V16_FN v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
V16_FN v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
V16_FN v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
V16_FN v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
V16_FN v16 v16_abs(v16 a) { return _mm512_abs_ps(a); }
V16_FN v16 v16_copysign(v16 a, v16 s) {
    __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(sign, _mm512_castps_si512(s), _mm512_castps_si512(a), 0xca));
}
V16_FN v16 v16_shift_exponent(v16 a, v16 t) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
V16_FN v16m v16_less(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
V16_FN v16 v16_select(v16m m, v16 a, v16 b) { return _mm512_mask_blend_ps(m, b, a); }
V16_FN v16m v16_range(int lo, int hi) {
    __m512i i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_cmpge_epi32_mask(i, _mm512_set1_epi32(lo)) & _mm512_cmplt_epi32_mask(i, _mm512_set1_epi32(hi));
}
V16_FN v16 v16_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
V16_FN void v16_store_f16(uint16_t *p, v16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
V16_FN v16 v16_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
V16_FN void v16_store_bf16(uint16_t *p, v16 a) {
    const __m512i u = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i top = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, near, quiet), 16);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(top));
}
V16_FN v16 v16_swap_pairs(v16 a) { return _mm512_permute_ps(a, 0xb1); }
V16_FN v16 v16_load_twice(const float *p) {
    __m512i i = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(i, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}
V16_FN v16 v16_addsub(v16 a, v16 b) { return _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0x5555, a, b); }
V16_FN float v16_sum(v16 a) {
    return v16_sum_halves(_mm512_castps512_ps256(a),
                          _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
}
V16_FN float v16_hmax(v16 a) {
    return v16_hmax_halves(_mm512_castps512_ps256(a),
                           _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
}
V16_FN v16i v16_rint(v16 a) { return _mm512_cvtps_epi32(a); }
V16_FN int v16i_sum(v16i a) { return _mm512_reduce_add_epi32(a); }
V16_FN void v16i_store_i8(int8_t *p, v16i a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(a)); }
V16_FN void v16i_store_i16(int16_t *p, v16i a) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(a)); }
V16_FN v16i v16i_zero(void) { return _mm512_setzero_si512(); }
V16_FN v16 v16_from_i32(v16i a) { return _mm512_cvtepi32_ps(a); }

typedef __m512i v16p;
V16_FN v16p v16p_load_i8(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
V16_FN v16i v16p_even(v16p a) { return _mm512_srai_epi32(_mm512_slli_epi32(a, 16), 16); }
V16_FN v16i v16p_odd(v16p a) { return _mm512_srai_epi32(a, 16); }
V16_FN v16i v16i_madd(v16i sum, v16p a, const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, _mm512_set1_epi32(pair));
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, _mm512_set1_epi32(pair)));
#endif
}
/* Fours of rows are turned within their quarters, then the quarters. */
V16_FN void v16_turn(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + i * from_stride);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        const __m512d x = _mm512_castps_pd(b[i / 4 * 4 + i % 4 / 2]), y = _mm512_castps_pd(b[i / 4 * 4 + 2 + i % 4 / 2]);
        a[i] = _mm512_castpd_ps(i % 2 ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512 x = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88), y = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88);
        const __m512 z = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd), w = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
        _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(x, y, 0x88));
        _mm512_storeu_ps(to + (4 + i) * to_stride, _mm512_shuffle_f32x4(z, w, 0x88));
        _mm512_storeu_ps(to + (8 + i) * to_stride, _mm512_shuffle_f32x4(x, y, 0xdd));
        _mm512_storeu_ps(to + (12 + i) * to_stride, _mm512_shuffle_f32x4(z, w, 0xdd));
    }
}

#elif defined(V16_AVX2)

typedef struct { __m256 lo, hi; } v16;
typedef struct { __m256i lo, hi; } v16i;
typedef struct { __m256 lo, hi; } v16m;

V16_FN v16 v16_set1(float x) { __m256 v = _mm256_set1_ps(x); return (v16){v, v}; }
V16_FN v16 v16_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
V16_FN void v16_store(float *p, v16 a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
V16_FN v16 v16_add(v16 a, v16 b) { return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
V16_FN v16 v16_sub(v16 a, v16 b) { return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
V16_FN v16 v16_mul(v16 a, v16 b) { return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
V16_FN v16 v16_div(v16 a, v16 b) { return (v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
V16_FN v16 v16_max(v16 a, v16 b) { return (v16){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
V16_FN v16 v16_min(v16 a, v16 b) { return (v16){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
V16_FN v16 v16_abs(v16 a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
V16_FN v16 v16_copysign(v16 a, v16 s) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, s.lo)),
                 _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, s.hi))};
}
V16_FN __m256 v16_shift_exponent_half(__m256 a, __m256 t) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
V16_FN v16 v16_shift_exponent(v16 a, v16 t) {
    return (v16){v16_shift_exponent_half(a.lo, t.lo), v16_shift_exponent_half(a.hi, t.hi)};
}
V16_FN v16m v16_less(v16 a, v16 b) {
    return (v16m){_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
V16_FN v16 v16_select(v16m m, v16 a, v16 b) {
    return (v16){_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}
V16_FN __m256 v16_range_half(__m256i i, int lo, int hi) {
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(lo), i);
    return _mm256_castsi256_ps(_mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), i)));
}
V16_FN v16m v16_range(int lo, int hi) {
    return (v16m){v16_range_half(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), lo, hi),
                  v16_range_half(_mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15), lo, hi)};
}
V16_FN v16 v16_load_f16(const uint16_t *p) { return (v16){v16_8_f16(p), v16_8_f16(p + 8)}; }
V16_FN void v16_store_f16(uint16_t *p, v16 a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
V16_FN v16 v16_load_bf16(const uint16_t *p) { return (v16){v16_8_bf16(p), v16_8_bf16(p + 8)}; }
V16_FN __m256i v16_to_bf16_half(__m256 a) {
    const __m256i u = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i near = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(near, quiet, nan), 16);
}
V16_FN void v16_store_bf16(uint16_t *p, v16 a) {
    const __m256i b = _mm256_packus_epi32(v16_to_bf16_half(a.lo), v16_to_bf16_half(a.hi));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(b, 0xd8));
}
V16_FN v16 v16_swap_pairs(v16 a) { return (v16){_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)}; }
V16_FN v16 v16_load_twice(const float *p) {
    __m256 a = _mm256_loadu_ps(p);
    return (v16){_mm256_permutevar8x32_ps(a, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
                 _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}
V16_FN v16 v16_addsub(v16 a, v16 b) { return (v16){_mm256_addsub_ps(a.lo, b.lo), _mm256_addsub_ps(a.hi, b.hi)}; }
V16_FN float v16_sum(v16 a) { return v16_sum_halves(a.lo, a.hi); }
V16_FN float v16_hmax(v16 a) { return v16_hmax_halves(a.lo, a.hi); }
V16_FN v16i v16_rint(v16 a) { return (v16i){_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
V16_FN int v16i_sum(v16i a) {
    __m256i b = _mm256_add_epi32(a.lo, a.hi);
    __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    c = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}
V16_FN void v16i_store_i8(int8_t *p, v16i a) {
    __m256i b = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1)));
}
V16_FN void v16i_store_i16(int16_t *p, v16i a) {
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8));
}
V16_FN v16i v16i_zero(void) { return (v16i){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
V16_FN v16 v16_from_i32(v16i a) { return (v16){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

typedef struct { __m256i lo, hi; } v16p;
V16_FN v16p v16p_load_i8(const int8_t *p) {
    return (v16p){_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)),
                  _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
V16_FN v16i v16p_even(v16p a) {
    return (v16i){_mm256_srai_epi32(_mm256_slli_epi32(a.lo, 16), 16), _mm256_srai_epi32(_mm256_slli_epi32(a.hi, 16), 16)};
}
V16_FN v16i v16p_odd(v16p a) { return (v16i){_mm256_srai_epi32(a.lo, 16), _mm256_srai_epi32(a.hi, 16)}; }
V16_FN v16i v16i_madd(v16i sum, v16p a, const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    const __m256i v = _mm256_set1_epi32(pair);
    return (v16i){_mm256_add_epi32(sum.lo, _mm256_madd_epi16(a.lo, v)), _mm256_add_epi32(sum.hi, _mm256_madd_epi16(a.hi, v))};
}
/* A quarter: 8 rows of 8. */
V16_FN void v16_turn_8(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    __m256 a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(from + i * from_stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const __m256d x = _mm256_castps_pd(b[i / 4 * 4 + i % 4 / 2]), y = _mm256_castps_pd(b[i / 4 * 4 + 2 + i % 4 / 2]);
        a[i] = _mm256_castpd_ps(i % 2 ? _mm256_unpackhi_pd(x, y) : _mm256_unpacklo_pd(x, y));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(a[i], a[4 + i], 0x20));
        _mm256_storeu_ps(to + (4 + i) * to_stride, _mm256_permute2f128_ps(a[i], a[4 + i], 0x31));
    }
}
V16_FN void v16_turn(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    for (int i = 0; i < 4; i++)
        v16_turn_8(from + i / 2 * 8 * from_stride + i % 2 * 8, from_stride, to + i % 2 * 8 * to_stride + i / 2 * 8, to_stride);
}

#elif defined(V16_NEON)
#define V16_FN static inline __attribute__((always_inline, unused))
#include "neon_v16.h"

#else

#define V16_FN static inline __attribute__((unused))    /* arrays: inlining all of them gains nothing but code */

typedef struct { float f[16]; } v16;
typedef struct { int32_t i[16]; } v16i;
typedef struct { int32_t i[16]; } v16m;
typedef struct { int16_t i[32]; } v16p;

#define V16_EACH(T, member, expr) T r; for (int l = 0; l < 16; l++) r.member[l] = (expr); return r

V16_FN v16 v16_set1(float x) { V16_EACH(v16, f, x); }
V16_FN v16 v16_load(const float *p) { V16_EACH(v16, f, p[l]); }
V16_FN void v16_store(float *p, v16 a) { memcpy(p, a.f, sizeof a.f); }
V16_FN v16 v16_add(v16 a, v16 b) { V16_EACH(v16, f, a.f[l] + b.f[l]); }
V16_FN v16 v16_sub(v16 a, v16 b) { V16_EACH(v16, f, a.f[l] - b.f[l]); }
V16_FN v16 v16_mul(v16 a, v16 b) { V16_EACH(v16, f, a.f[l] * b.f[l]); }
V16_FN v16 v16_div(v16 a, v16 b) { V16_EACH(v16, f, a.f[l] / b.f[l]); }
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) { V16_EACH(v16, f, __builtin_fmaf(a.f[l], b.f[l], c.f[l])); }
V16_FN v16 v16_max(v16 a, v16 b) { V16_EACH(v16, f, a.f[l] > b.f[l] ? a.f[l] : b.f[l]); }
V16_FN v16 v16_min(v16 a, v16 b) { V16_EACH(v16, f, a.f[l] < b.f[l] ? a.f[l] : b.f[l]); }
V16_FN v16 v16_abs(v16 a) { V16_EACH(v16, f, __builtin_fabsf(a.f[l])); }
V16_FN v16 v16_copysign(v16 a, v16 s) { V16_EACH(v16, f, __builtin_copysignf(a.f[l], s.f[l])); }
V16_FN v16 v16_shift_exponent(v16 a, v16 t) {
    V16_EACH(v16, f, ni_bits_f32(ni_f32_bits(a.f[l]) + (ni_f32_bits(t.f[l]) << 23)));
}
V16_FN v16m v16_less(v16 a, v16 b) { V16_EACH(v16m, i, -(a.f[l] < b.f[l])); }
V16_FN v16 v16_select(v16m m, v16 a, v16 b) { V16_EACH(v16, f, m.i[l] ? a.f[l] : b.f[l]); }
V16_FN v16m v16_range(int lo, int hi) { V16_EACH(v16m, i, -(l >= lo && l < hi)); }
V16_FN v16 v16_load_f16(const uint16_t *p) { V16_EACH(v16, f, ni_f16_to_f32(p[l])); }
V16_FN void v16_store_f16(uint16_t *p, v16 a) { for (int l = 0; l < 16; l++) p[l] = ni_f32_to_f16(a.f[l]); }
V16_FN v16 v16_load_bf16(const uint16_t *p) { V16_EACH(v16, f, ni_bf16_to_f32(p[l])); }
V16_FN void v16_store_bf16(uint16_t *p, v16 a) { for (int l = 0; l < 16; l++) p[l] = ni_f32_to_bf16(a.f[l]); }
V16_FN v16 v16_swap_pairs(v16 a) { V16_EACH(v16, f, a.f[l ^ 1]); }
V16_FN v16 v16_load_twice(const float *p) { V16_EACH(v16, f, p[l / 2]); }
V16_FN v16 v16_addsub(v16 a, v16 b) { V16_EACH(v16, f, l & 1 ? a.f[l] + b.f[l] : a.f[l] - b.f[l]); }
V16_FN float v16_sum(v16 a) {
    for (int n = 8; n; n /= 2)
        for (int l = 0; l < n; l++) a.f[l] += a.f[l + n];
    return a.f[0];
}
V16_FN float v16_hmax(v16 a) {
    for (int n = 8; n; n /= 2)
        for (int l = 0; l < n; l++) a.f[l] = a.f[l] > a.f[l + n] ? a.f[l] : a.f[l + n];
    return a.f[0];
}
/* Through 2^23 and a half: rounds as the hardware conversion does, without a call to libm.  |a| < 2^22. */
V16_FN v16i v16_rint(v16 a) {
    V16_EACH(v16i, i, (int32_t)(ni_f32_bits(a.f[l] + 0x1.8p23f) - ni_f32_bits(0x1.8p23f)));
}
V16_FN int v16i_sum(v16i a) {
    int s = 0;
    for (int l = 0; l < 16; l++) s += a.i[l];
    return s;
}
V16_FN void v16i_store_i8(int8_t *p, v16i a) { for (int l = 0; l < 16; l++) p[l] = (int8_t)a.i[l]; }
V16_FN void v16i_store_i16(int16_t *p, v16i a) { for (int l = 0; l < 16; l++) p[l] = (int16_t)a.i[l]; }
V16_FN v16i v16i_zero(void) { V16_EACH(v16i, i, 0); }
V16_FN v16 v16_from_i32(v16i a) { V16_EACH(v16, f, (float)a.i[l]); }
/* 32 bytes as 16 pairs, and what a pair of numbers adds to each lane: sum[l] + a[2 l] x[0] + a[2 l + 1] x[1]. */
V16_FN v16p v16p_load_i8(const int8_t *p) {
    v16p r;
    for (int l = 0; l < 32; l++) r.i[l] = p[l];
    return r;
}
V16_FN v16i v16i_madd(v16i sum, v16p a, const int16_t *x) { V16_EACH(v16i, i, sum.i[l] + a.i[2 * l] * x[0] + a.i[2 * l + 1] * x[1]); }
/* The first, and the second number of each pair. */
V16_FN v16i v16p_even(v16p a) { V16_EACH(v16i, i, a.i[2 * l]); }
V16_FN v16i v16p_odd(v16p a) { V16_EACH(v16i, i, a.i[2 * l + 1]); }
#undef V16_EACH

#endif

#if !defined(V16_AVX2)
/* 16 rows of 16 floats, `from_stride` floats apart, become columns. */
V16_FN void v16_turn(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[i * to_stride + j] = from[j * from_stride + i];
}
#endif

/* The first n < 16 lanes; the others read as zero and are not written. */
V16_FN v16 v16_load_n(const float *p, int64_t n) {
    float b[16] = {0};
    memcpy(b, p, (size_t)n * sizeof *b);
    return v16_load(b);
}
V16_FN void v16_store_n(float *p, v16 a, int64_t n) {
    float b[16];
    v16_store(b, a);
    memcpy(p, b, (size_t)n * sizeof *b);
}
#endif
