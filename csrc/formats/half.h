/* Half floats and bfloat16 to floats and back, in integers: the same bits whatever the instruction set and the denormal mode.  The tables
 * of vector kernels have the hardware's conversions instead (isa/v16.h), which must agree. */
#ifndef NI_HALF_H
#define NI_HALF_H
#include <stdint.h>
#include <string.h>

static inline float ni_bits_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t ni_f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* Exact.  A signalling NaN becomes quiet, as in hardware. */
static inline float ni_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fffu;
    uint32_t u;
    if (magnitude >= 0x7c00)
        u = 0x7f800000u | magnitude << 13 | (magnitude > 0x7c00 ? 0x00400000u : 0);
    else if (magnitude >= 0x0400)
        u = (magnitude << 13) + ((127u - 15u) << 23);
    else
        u = ni_f32_bits((float)(int)magnitude * 0x1p-24f);   /* a subnormal half is a normal float */
    return ni_bits_f32(u | sign);
}

/* Rounds to nearest, ties to even; from 65520 on the result is infinite.  A NaN becomes quiet and keeps its upper
 * bits, as in hardware. */
static inline uint16_t ni_f32_to_f16(float f) {
    const uint32_t u = ni_f32_bits(f), magnitude = u & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    uint32_t h;
    if (magnitude > 0x7f800000u)
        h = 0x7e00u | (magnitude >> 13 & 0x03ffu);
    else if (magnitude >= 0x477ff000u)                       /* 65520 */
        h = 0x7c00u;
    else if (magnitude >= 0x38800000u)                       /* 2^-14, the least normal half */
        h = (magnitude + 0x0fffu + (magnitude >> 13 & 1) - ((127u - 15u) << 23)) >> 13;
    else                                                     /* the ulp of 0.5 is 2^-24, the least subnormal */
        h = ni_f32_bits(ni_bits_f32(magnitude) + 0.5f) - 0x3f000000u;
    return (uint16_t)(h | sign);
}

static inline float ni_bf16_to_f32(uint16_t h) { return ni_bits_f32((uint32_t)h << 16); }

/* Rounds to nearest, ties to even.  A NaN becomes quiet and keeps its upper bits. */
static inline uint16_t ni_f32_to_bf16(float f) {
    const uint32_t u = ni_f32_bits(f);
    return (uint16_t)((f != f ? u | 0x00400000u : u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
#endif
