/* What ik_impl.h asks of NEON. */
#ifndef NI_NEON_IK_H
#define NI_NEON_IK_H
#include "neon_codebook.h"

#define IK_OFFSET(low) 0   /* sdot takes signed bytes */
#define IK_BYTES(a) vreinterpretq_u8_u32(a)
NI_INLINE cb_part ik_dot(cb_part s, cb_part v, const int8_t *x, int offset) { (void)offset; return cb_dot(s, v, x); }
NI_INLINE cb_part ik_add(cb_part a, cb_part b) { return vaddq_u32(a, b); }
NI_INLINE cb_part ik_sub(cb_part a, cb_part b) { return vsubq_u32(a, b); }
NI_INLINE cb_part ik_add8(cb_part a, cb_part b) { return vreinterpretq_u32_u8(vaddq_u8(IK_BYTES(a), IK_BYTES(b))); }
NI_INLINE cb_part ik_sub8(cb_part a, cb_part b) { return vreinterpretq_u32_u8(vsubq_u8(IK_BYTES(a), IK_BYTES(b))); }
NI_INLINE cb_part ik_abs8(cb_part a) { return vreinterpretq_u32_s8(vabsq_s8(vreinterpretq_s8_u32(a))); }
NI_INLINE cb_part ik_mask(cb_part v, int n) { return vtstq_u32(v, vdupq_n_u32(1u << n)); }
NI_INLINE cb_part ik_pick2(const cb_table *t, cb_part index) {
    const uint8x16x2_t both = {{t[0], t[1]}};
    return vreinterpretq_u32_u8(vqtbl2q_u8(both, IK_BYTES(index)));
}
NI_INLINE cb_part ik_pick4(const cb_table *t, cb_part index) {
    const uint8x16x4_t all = {{t[0], t[1], t[2], t[3]}};
    return vreinterpretq_u32_u8(vqtbl4q_u8(all, IK_BYTES(index)));
}
NI_INLINE void ik_zip(cb_part a, cb_part b, cb_part out[2]) {   /* zipped, a row's two lanes lie side by side */
    const cb_part low = vreinterpretq_u32_u8(vzip1q_u8(IK_BYTES(a), IK_BYTES(b)));
    const cb_part high = vreinterpretq_u32_u8(vzip2q_u8(IK_BYTES(a), IK_BYTES(b)));
    out[0] = vuzp1q_u32(low, high), out[1] = vuzp2q_u32(low, high);
}
NI_INLINE cb_part ik_sums(const cb_part x[4]) {   /* pairs of bytes, pairs of pairs, then bytes to their rows */
    static const uint8_t rows[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t a = vpaddq_u8(IK_BYTES(x[0]), IK_BYTES(x[1])), b = vpaddq_u8(IK_BYTES(x[2]), IK_BYTES(x[3]));
    return vreinterpretq_u32_u8(vqtbl1q_u8(vpaddq_u8(a, b), vld1q_u8(rows)));
}
NI_INLINE v16 ik_low_halves(const uint8_t *p) {
    v16 r;
    QUADS(i) r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(cb_load(p + 16 * i))));
    return r;
}

#include "ik_impl.h"
#endif
