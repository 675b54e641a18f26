/* Small pieces of the NEON matmul kernels.  Included after the file's target.
 *
 * A row group's 16 rows are 4 registers of 4 rows ("quads").  A vector of 64 quant bytes is 4 loads, and sdot adds the
 * 4 products of a k-group to each row's 32-bit sum, with the activations of a k-group taken from a lane of a register
 * that holds four of them.  sdot is signed x signed: unsigned quants are at most 63, so they are signed bytes too. */
#ifndef NI_NEON_UTIL_H
#define NI_NEON_UTIL_H
#include "intrinsics.h"
#include "kernels.h"
#include "parts.h"
#include "v16.h"

#define NI_INLINE static inline __attribute__((always_inline))
/* No load moves across: left alone, gcc loads early, what it then has to spill. */
#define LOADS_STAY __asm__ volatile("" ::: "memory")
#define QUADS(i) _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)

/* s + the products of the rows' k-group in w with k-group g (0..3) of x. */
NI_INLINE int32x4_t dot4(int32x4_t s, uint8x16_t w, int8x16_t x, int g) {
    const int8x16_t v = vreinterpretq_s8_u8(w);
    switch (g) {
    case 0: return vdotq_laneq_s32(s, v, x, 0);
    case 1: return vdotq_laneq_s32(s, v, x, 1);
    case 2: return vdotq_laneq_s32(s, v, x, 2);
    default: return vdotq_laneq_s32(s, v, x, 3);
    }
}

/* 16 unsigned or signed bytes as floats. */
NI_INLINE v16 load_u8(const uint8_t *p) {
    const uint8x16_t v = vld1q_u8(p);
    const uint16x8_t lo = vmovl_u8(vget_low_u8(v)), hi = vmovl_high_u8(v);
    return (v16){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_high_u16(lo)),
                  vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_high_u16(hi))}};
}
NI_INLINE v16 load_i8(const int8_t *p) {
    const int8x16_t v = vld1q_s8(p);
    const int16x8_t lo = vmovl_s8(vget_low_s8(v)), hi = vmovl_high_s8(v);
    return (v16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
                  vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi))}};
}

NI_INLINE uint8x16_t low_nibbles(uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }
NI_INLINE uint8x16_t high_nibbles(uint8x16_t v) { return vshrq_n_u8(v, 4); }

/* The low nibble of v and, above it, the bits of h from bit `from` on; max_q is the mask of all. */
NI_INLINE uint8x16_t join(uint8x16_t v, uint8x16_t h, int from, int max_q) {
    return vandq_u8(vsliq_n_u8(v, h >> from, 4), vdupq_n_u8((uint8_t)max_q));
}

/* The two values of Q5_* that a byte holds; their fifth bits are bit g of h. */
NI_INLINE uint8x16_t q5_low(uint8x16_t v, uint8x16_t h, int g) { return join(v, h, g, 31); }
NI_INLINE uint8x16_t q5_high(uint8x16_t v, uint8x16_t h, int g) { return join(high_nibbles(v), h, g, 31); }

/* Q6_K: the 4 k-groups of a sub-block, 4 rows, from its 3 vectors. */
NI_INLINE void q6_values(const uint8_t *p, uint8x16_t v[4]) {
    const uint8x16_t a = vld1q_u8(p), b = vld1q_u8(p + 64), c = vld1q_u8(p + 128), mask = vdupq_n_u8(63);
    v[0] = vandq_u8(a, mask);
    v[1] = vandq_u8(b, mask);
    v[2] = vandq_u8(c, mask);
    v[3] = vshrq_n_u8(vsriq_n_u8(vsriq_n_u8(a, b, 2), c, 4), 2);
}
#endif
