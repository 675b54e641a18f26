/* AVX-512 and AVX-VNNI for a CPU that has AVX2, FMA and F16C: SIMDe's emulation, and what Debian 12's version of it
 * (0.7.4) lacks or has wrong.  Brought in by gcc's -include, in front of a file of csrc/isa. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_INLINE   /* the kernels are unrolled: with every function inlined they take gcc a minute */
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#define SHIM static __attribute__((noinline, unused))

/* Wrong: the alias wants four arguments. */
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

/* Lacking: the VEX form, which does what the EVEX form does. */
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(s, u, v) simde_mm256_dpbusd_epi32(s, u, v)

/* Lacking: the rest.  First what AVX2 has for halves. */
#define SHIM_HALVES(name, result, part, argument, low, high)                     \
    SHIM result shim_mm512_##name(argument a) {                                  \
        result##_private r;                                                      \
        r.part[0] = _mm256_##name(low), r.part[1] = _mm256_##name(high);         \
        return result##_from_private(r);                                         \
    }
#define LOW128 _mm256_castsi256_si128(a)
#define HIGH128 _mm256_extracti128_si256(a, 1)
SHIM_HALVES(cvtepu8_epi32, simde__m512i, m256i, __m128i, a, _mm_srli_si128(a, 8))
SHIM_HALVES(cvtepi8_epi32, simde__m512i, m256i, __m128i, a, _mm_srli_si128(a, 8))
SHIM_HALVES(cvtepu8_epi16, simde__m512i, m256i, __m256i, LOW128, HIGH128)
SHIM_HALVES(cvtepu16_epi32, simde__m512i, m256i, __m256i, LOW128, HIGH128)
SHIM_HALVES(cvtepi16_epi32, simde__m512i, m256i, __m256i, LOW128, HIGH128)
SHIM_HALVES(cvtph_ps, simde__m512, m256, __m256i, LOW128, HIGH128)
SHIM_HALVES(cvtepi32_ps, simde__m512, m256, __m512i, simde__m512i_to_private(a).m256i[0],
            simde__m512i_to_private(a).m256i[1])
SHIM_HALVES(cvtps_epi32, simde__m512i, m256i, __m512, simde__m512_to_private(a).m256[0],
            simde__m512_to_private(a).m256[1])

SHIM __m256i shim_mm512_cvtps_ph(__m512 a) {
    const simde__m512_private v = simde__m512_to_private(a);
    return _mm256_set_m128i(_mm256_cvtps_ph(v.m256[1], _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(v.m256[0], _MM_FROUND_TO_NEAREST_INT));
}
SHIM __m512 shim_mm512_permute_ps(__m512 a, int order) {
    const simde__m512_private v = simde__m512_to_private(a);
    simde__m512_private r;
    for (int i = 0; i < 16; i++) r.f32[i] = v.f32[i / 4 * 4 + (order >> i % 4 * 2 & 3)];
    return simde__m512_from_private(r);
}
SHIM __m512 shim_mm512_shuffle_f32x4(__m512 a, __m512 b, int order) {
    const simde__m512_private v[2] = {simde__m512_to_private(a), simde__m512_to_private(b)};
    simde__m512_private r;
    for (int i = 0; i < 16; i++) r.f32[i] = v[i / 8].f32[4 * (order >> i / 4 * 2 & 3) + i % 4];
    return simde__m512_from_private(r);
}
SHIM __m512i shim_mm512_srai_epi32(__m512i a, unsigned n) {
    simde__m512i_private v = simde__m512i_to_private(a);
    for (int i = 0; i < 16; i++) v.i32[i] >>= n;
    return simde__m512i_from_private(v);
}
SHIM __m256i shim_mm512_cvtepi32_epi16(__m512i a) {
    const simde__m512i_private v = simde__m512i_to_private(a);
    simde__m256i_private r;
    for (int i = 0; i < 16; i++) r.i16[i] = (int16_t)v.i32[i];
    return simde__m256i_from_private(r);
}
SHIM int32_t shim_mm512_reduce_add_epi32(__m512i a) {
    const simde__m512i_private v = simde__m512i_to_private(a);
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += v.i32[i];
    return sum;
}

/* What is masked off is 0, and not read. */
#define SHIM_MASKZ_LOADU(name, result, part, element)                                                             \
    SHIM result shim_##name(uint32_t mask, const void *p) {                                                       \
        result##_private r;                                                                                       \
        for (size_t i = 0; i < sizeof r / sizeof(element); i++)                                                   \
            r.part[i] = mask >> i & 1 ? ((const element *)p)[i] : 0;                                              \
        return result##_from_private(r);                                                                          \
    }
SHIM_MASKZ_LOADU(mm512_maskz_loadu_ps, simde__m512, f32, float)
SHIM_MASKZ_LOADU(mm256_maskz_loadu_ps, simde__m256, f32, float)
SHIM_MASKZ_LOADU(mm256_maskz_loadu_epi16, simde__m256i, i16, int16_t)

#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi16
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi16_epi32
#undef _mm512_cvtph_ps
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtps_epi32
#undef _mm512_cvtps_ph
#undef _mm512_permute_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_srai_epi32
#undef _mm512_cvtepi32_epi16
#undef _mm512_reduce_add_epi32
#undef _mm512_maskz_loadu_ps
#undef _mm256_maskz_loadu_ps
#undef _mm256_maskz_loadu_epi16
#undef _mm512_cmplt_epi32_mask
#define _mm512_cvtepu8_epi32 shim_mm512_cvtepu8_epi32
#define _mm512_cvtepi8_epi32 shim_mm512_cvtepi8_epi32
#define _mm512_cvtepu8_epi16 shim_mm512_cvtepu8_epi16
#define _mm512_cvtepu16_epi32 shim_mm512_cvtepu16_epi32
#define _mm512_cvtepi16_epi32 shim_mm512_cvtepi16_epi32
#define _mm512_cvtph_ps shim_mm512_cvtph_ps
#define _mm512_cvtepi32_ps shim_mm512_cvtepi32_ps
#define _mm512_cvtps_epi32 shim_mm512_cvtps_epi32
#define _mm512_cvtps_ph(a, rounding) shim_mm512_cvtps_ph(a)   /* to nearest, as the kernels have it */
#define _mm512_permute_ps shim_mm512_permute_ps
#define _mm512_shuffle_f32x4 shim_mm512_shuffle_f32x4
#define _mm512_srai_epi32 shim_mm512_srai_epi32
#define _mm512_cvtepi32_epi16 shim_mm512_cvtepi32_epi16
#define _mm512_reduce_add_epi32 shim_mm512_reduce_add_epi32
#define _mm512_maskz_loadu_ps shim_mm512_maskz_loadu_ps
#define _mm256_maskz_loadu_ps shim_mm256_maskz_loadu_ps
#define _mm256_maskz_loadu_epi16 shim_mm256_maskz_loadu_epi16
#define _mm512_cmplt_epi32_mask(a, b) simde_mm512_cmpgt_epi32_mask(b, a)
