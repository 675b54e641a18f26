/* What codebook_impl.h asks of NEON. */
#ifndef NI_NEON_CODEBOOK_H
#define NI_NEON_CODEBOOK_H
#include "neon_util.h"

enum { CB_PARTS = 4 };
#define CB_IN_REGISTERS 0
typedef uint32x4_t cb_part;
typedef uint8x16_t cb_table;

NI_INLINE cb_part cb_load(const void *p) { return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)p)); }
NI_INLINE void cb_store(uint8_t *p, cb_part v) { vst1q_u8(p, vreinterpretq_u8_u32(v)); }
NI_INLINE cb_part cb_set(uint32_t u) { return vdupq_n_u32(u); }
NI_INLINE cb_part cb_halves(const uint16_t *p) { return vmovl_u16(vld1_u16(p)); }
NI_INLINE cb_part cb_and(cb_part a, cb_part b) { return vandq_u32(a, b); }
NI_INLINE cb_part cb_or(cb_part a, cb_part b) { return vorrq_u32(a, b); }
NI_INLINE cb_part cb_xor(cb_part a, cb_part b) { return veorq_u32(a, b); }
NI_INLINE cb_part cb_mul(cb_part a, cb_part b) { return vmulq_u32(a, b); }
NI_INLINE cb_part cb_left(cb_part v, int n) { return vshlq_u32(v, vdupq_n_s32(n)); }
NI_INLINE cb_part cb_right(cb_part v, int n) { return vshlq_u32(v, vdupq_n_s32(-n)); }
NI_INLINE cb_part cb_left16(cb_part v, int n) { return vreinterpretq_u32_u16(vshlq_u16(vreinterpretq_u16_u32(v), vdupq_n_s16((short)n))); }
NI_INLINE cb_table cb_table_of(const uint8_t *p) { return vld1q_u8(p); }
NI_INLINE cb_part cb_pick(cb_table t, cb_part index) {
    return vreinterpretq_u32_u8(vqtbl1q_u8(t, vandq_u8(vreinterpretq_u8_u32(index), vdupq_n_u8(15))));
}
NI_INLINE cb_part cb_dot(cb_part s, cb_part v, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    const int8x16_t w = vreinterpretq_s8_u32(v);   /* below 128 */
    return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(s), w, vreinterpretq_s8_s32(vdupq_n_s32(four))));
}
NI_INLINE v16 cb_floats(const cb_part *p) {
    v16 r;
    QUADS(i) r.v[i] = vcvtq_f32_s32(vreinterpretq_s32_u32(p[i]));
    return r;
}
NI_INLINE void cb_shuffle(const int8_t *x, const uint8_t *order, int8_t *y) {
    vst1q_u8((uint8_t *)y, vqtbl1q_u8(vld1q_u8((const uint8_t *)x), vld1q_u8(order)));
}

#include "codebook_impl.h"
#endif
