/* The values that quants of 4 bits stand for in IQ4_NL, IQ4_XS, MXFP4 and NVFP4, and the scales of the last two.  For formats/ and isa/. */
#ifndef NI_TABLE4_H
#define NI_TABLE4_H
#include "half.h"

/* Whole numbers.  fp4: sign, two bits of exponent, one of mantissa (E2M1 of the OCP's microscaling formats), times 2. */
static const int8_t ni_iq4[16] __attribute__((unused)) = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t ni_fp4[16] __attribute__((unused)) = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

enum { NI_FP4_OFFSET = 12 };   /* fp4 + 12 is not negative: what panels of MXFP4 and NVFP4 hold */

/* MXFP4's scale, 2^(e - 128): half of E8M0's, since ni_fp4 is twice E2M1's.  The two smallest are subnormal.  255, a NaN in the OCP's
 * specification, is 2^127, as in llama.cpp and gguf.quants. */
static inline float ni_e8m0_half(uint8_t e) {
    return ni_bits_f32(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* NVFP4's scale: half of UE4M3's, (8 + mantissa) * 2^(exponent - 11).  The topmost bit has no meaning; 0x7f without it is 0. */
static inline float ni_ue4m3_half(uint8_t sc) {
    return sc == 0x7f ? 0.0f : ni_f16_to_f32((uint16_t)((sc & 0x7f) << 7)) * 128.0f;
}
#endif
