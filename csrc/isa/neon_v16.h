/* v16 as four NEON registers.  Included by v16.h, which says what every operation must give.
 *
 * vmaxq and vminq treat NaN and zeros of either sign otherwise than the contract does: compare and select instead. */
#ifndef NI_NEON_V16_H
#define NI_NEON_V16_H

typedef struct { float32x4_t v[4]; } v16;
typedef struct { int32x4_t v[4]; } v16i;
typedef struct { uint32x4_t v[4]; } v16m;
typedef struct { int16x8_t v[4]; } v16p;

#define V16_FOUR(f) {{f(0), f(1), f(2), f(3)}}   /* f(i): part i, lanes 4i .. 4i + 3 */
#define V16_RETURN(f) return (v16)V16_FOUR(f)

V16_FN float32x4_t v16_part_max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
V16_FN float32x4_t v16_part_min(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
V16_FN float32x4_t v16_part_shift(float32x4_t a, float32x4_t t) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vreinterpretq_s32_f32(t), 23)));
}
V16_FN float32x4_t v16_part_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
V16_FN float32x4_t v16_part_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
V16_FN float32x4_t v16_part_addsub(float32x4_t a, float32x4_t b) {
    const uint32x4_t even = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000u));
    return vaddq_f32(a, vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(b), even)));
}
V16_FN uint32x4_t v16_part_range(int32x4_t i, int lo, int hi) {
    return vandq_u32(vcgeq_s32(i, vdupq_n_s32(lo)), vcltq_s32(i, vdupq_n_s32(hi)));
}

#define ONE(i) vdupq_n_f32(x)
V16_FN v16 v16_set1(float x) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vld1q_f32(p + 4 * (i))
V16_FN v16 v16_load(const float *p) { V16_RETURN(ONE); }
#undef ONE
V16_FN void v16_store(float *p, v16 a) {
    vst1q_f32(p, a.v[0]), vst1q_f32(p + 4, a.v[1]), vst1q_f32(p + 8, a.v[2]), vst1q_f32(p + 12, a.v[3]);
}

#define ONE(i) vaddq_f32(a.v[i], b.v[i])
V16_FN v16 v16_add(v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vsubq_f32(a.v[i], b.v[i])
V16_FN v16 v16_sub(v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vmulq_f32(a.v[i], b.v[i])
V16_FN v16 v16_mul(v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vdivq_f32(a.v[i], b.v[i])
V16_FN v16 v16_div(v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vfmaq_f32(c.v[i], a.v[i], b.v[i])
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) v16_part_max(a.v[i], b.v[i])
V16_FN v16 v16_max(v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) v16_part_min(a.v[i], b.v[i])
V16_FN v16 v16_min(v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vabsq_f32(a.v[i])
V16_FN v16 v16_abs(v16 a) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vbslq_f32(vdupq_n_u32(0x80000000u), s.v[i], a.v[i])
V16_FN v16 v16_copysign(v16 a, v16 s) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) v16_part_shift(a.v[i], t.v[i])
V16_FN v16 v16_shift_exponent(v16 a, v16 t) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vcltq_f32(a.v[i], b.v[i])
V16_FN v16m v16_less(v16 a, v16 b) { return (v16m)V16_FOUR(ONE); }
#undef ONE
#define ONE(i) vbslq_f32(m.v[i], a.v[i], b.v[i])
V16_FN v16 v16_select(v16m m, v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) v16_part_range((int32x4_t){4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3}, lo, hi)
V16_FN v16m v16_range(int lo, int hi) { return (v16m)V16_FOUR(ONE); }
#undef ONE
#define ONE(i) v16_part_f16(p + 4 * (i))
V16_FN v16 v16_load_f16(const uint16_t *p) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vst1_u16(p + 4 * (i), vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])))
V16_FN void v16_store_f16(uint16_t *p, v16 a) { ONE(0), ONE(1), ONE(2), ONE(3); }
#undef ONE
#define ONE(i) v16_part_bf16(p + 4 * (i))
V16_FN v16 v16_load_bf16(const uint16_t *p) { V16_RETURN(ONE); }
#undef ONE
V16_FN uint16x4_t v16_part_to_bf16(float32x4_t a) {
    const uint32x4_t u = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t near = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), near, vorrq_u32(u, vdupq_n_u32(0x400000))), 16);
}
#define ONE(i) vst1_u16(p + 4 * (i), v16_part_to_bf16(a.v[i]))
V16_FN void v16_store_bf16(uint16_t *p, v16 a) { ONE(0), ONE(1), ONE(2), ONE(3); }
#undef ONE
#define ONE(i) vrev64q_f32(a.v[i])
V16_FN v16 v16_swap_pairs(v16 a) { V16_RETURN(ONE); }
#undef ONE
V16_FN v16 v16_load_twice(const float *p) {
    const float32x4_t a = vld1q_f32(p), b = vld1q_f32(p + 4);
    return (v16){{vzip1q_f32(a, a), vzip2q_f32(a, a), vzip1q_f32(b, b), vzip2q_f32(b, b)}};
}
#define ONE(i) v16_part_addsub(a.v[i], b.v[i])
V16_FN v16 v16_addsub(v16 a, v16 b) { V16_RETURN(ONE); }
#undef ONE

/* Lanes l and l+8, then l+4, then l+2, then l+1: the one tree of every lane sum. */
V16_FN float v16_sum(v16 a) {
    const float32x4_t b = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
    return vget_lane_f32(c, 0) + vget_lane_f32(c, 1);
}
V16_FN float v16_hmax(v16 a) {
    float32x4_t b = v16_part_max(v16_part_max(a.v[0], a.v[2]), v16_part_max(a.v[1], a.v[3]));
    b = v16_part_max(b, vextq_f32(b, b, 2));
    return vgetq_lane_f32(v16_part_max(b, vextq_f32(b, b, 1)), 0);
}

#define ONE(i) vcvtnq_s32_f32(a.v[i])
V16_FN v16i v16_rint(v16 a) { return (v16i)V16_FOUR(ONE); }
#undef ONE
V16_FN int v16i_sum(v16i a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
V16_FN void v16i_store_i8(int8_t *p, v16i a) {
    const int16x8_t lo = vcombine_s16(vqmovn_s32(a.v[0]), vqmovn_s32(a.v[1]));
    const int16x8_t hi = vcombine_s16(vqmovn_s32(a.v[2]), vqmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)));
}
V16_FN void v16i_store_i16(int16_t *p, v16i a) {
    vst1q_s16(p, vcombine_s16(vqmovn_s32(a.v[0]), vqmovn_s32(a.v[1])));
    vst1q_s16(p + 8, vcombine_s16(vqmovn_s32(a.v[2]), vqmovn_s32(a.v[3])));
}
#define ONE(i) vdupq_n_s32(0)
V16_FN v16i v16i_zero(void) { return (v16i)V16_FOUR(ONE); }
#undef ONE
#define ONE(i) vcvtq_f32_s32(a.v[i])
V16_FN v16 v16_from_i32(v16i a) { V16_RETURN(ONE); }
#undef ONE
#define ONE(i) vmovl_s8(vld1_s8(p + 8 * (i)))
V16_FN v16p v16p_load_i8(const int8_t *p) { return (v16p)V16_FOUR(ONE); }
#undef ONE
#define ONE(i) vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_s16(a.v[i]), 16), 16)
V16_FN v16i v16p_even(v16p a) { return (v16i)V16_FOUR(ONE); }
#undef ONE
#define ONE(i) vshrq_n_s32(vreinterpretq_s32_s16(a.v[i]), 16)
V16_FN v16i v16p_odd(v16p a) { return (v16i)V16_FOUR(ONE); }
#undef ONE
V16_FN int32x4_t v16_part_madd(int32x4_t sum, int16x8_t a, int16x8_t x) {
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(x)), vmull_high_s16(a, x)));
}
#define ONE(i) v16_part_madd(sum.v[i], a.v[i], pair)
V16_FN v16i v16i_madd(v16i sum, v16p a, const int16_t *x) {
    int32_t two;
    memcpy(&two, x, sizeof two);
    const int16x8_t pair = vreinterpretq_s16_s32(vdupq_n_s32(two));
    return (v16i)V16_FOUR(ONE);
}
#undef ONE
#undef V16_RETURN
#undef V16_FOUR
#endif
