/* Decode with NEON: one token; the packed bytes are streamed once, one row group at a time.  A block's sums start at
 * -offset * sum(x) where the format has an offset.
 *
 * Checked in emulation only: no Arm machine has timed these loops. */
#ifndef NI_NEON_DOT_H
#define NI_NEON_DOT_H
#include "neon_util.h"
#include "dot_groups.h"

/* acc = fma(isum, scale * d, acc) */
NI_INLINE float32x4_t finish(int32x4_t isum, float32x4_t scale, float d, float32x4_t acc) {
    return vfmaq_f32(acc, vcvtq_f32_s32(isum), vmulq_n_f32(scale, d));
}

/* Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32. */
NI_INLINE void dot_block32(const uint8_t *w, const ni_parts at, int offset, const ni_act *x, float *y) {
    v16 acc = v16_set1(0), accm = acc;
    for (int64_t b = 0; b < x->k / 32; b++, w += at.bytes) {
        const int8x16_t x0 = vld1q_s8(x->q + 32 * b), x1 = vld1q_s8(x->q + 32 * b + 16);
        const v16 d = v16_load_f16((const uint16_t *)w);
        const int32x4_t start = vdupq_n_s32(offset ? -offset * (x->s[2 * b] + x->s[2 * b + 1]) : 0);
        int32x4_t s[4];
        uint8x16_t h[4];
        QUADS(i) {
            s[i] = start;
            h[i] = at.high ? vld1q_u8(w + at.high + 16 * i) : vdupq_n_u8(0);
        }
        QUADS(j) {
            QUADS(i) {
                const uint8x16_t v = vld1q_u8(w + at.q + 64 * j + 16 * i);
                s[i] = dot4(s[i], at.high ? q5_low(v, h[i], j) : low_nibbles(v), x0, j);
                s[i] = dot4(s[i], at.high ? q5_high(v, h[i], j + 4) : high_nibbles(v), x1, j);
            }
            LOADS_STAY;
        }
        QUADS(i) acc.v[i] = finish(s[i], d.v[i], x->d[b], acc.v[i]);
        if (at.min) accm = v16_fma(v16_load_f16((const uint16_t *)(w + at.min)), v16_set1(x->m[b]), accm);
    }
    v16_store(y, at.min ? v16_add(acc, accm) : acc);
}

NI_INLINE void dot_block_q8_0(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q8_0 *in = (const ni_record_q8_0 *)w;
    v16 acc = v16_set1(0);
    for (int64_t b = 0; b < x->k / 32; b++, in++) {
        const int8x16_t x0 = vld1q_s8(x->q + 32 * b), x1 = vld1q_s8(x->q + 32 * b + 16);
        const v16 d = v16_load_f16(in->d);
        int32x4_t s[4];
        QUADS(i) s[i] = vdupq_n_s32(0);
        QUADS(j) QUADS(i) s[i] = dot4(s[i], vld1q_u8(in->q[j] + 16 * i), x0, j);
        QUADS(j) QUADS(i) s[i] = dot4(s[i], vld1q_u8(in->q[j + 4] + 16 * i), x1, j);
        QUADS(i) acc.v[i] = finish(s[i], d.v[i], x->d[b], acc.v[i]);
    }
    v16_store(y, acc);
}

/* Q4_K, Q5_K.  Sub-blocks 2c and 2c + 1 share their vectors of nibbles, all sub-blocks the vectors of fifth bits. */
NI_INLINE void dot_block256(const uint8_t *w, const ni_parts at, const ni_act *x, float *y) {
    v16 acc = v16_set1(0), accm = acc;
    for (int64_t b = 0; b < x->k / 32; b += 8, w += at.bytes) {
        const v16 d = v16_load_f16((const uint16_t *)w), dmin = v16_load_f16((const uint16_t *)(w + at.min));
        v16 scale[8];
        for (int s = 0; s < 8; s++) {
            const ni_scale_pair *p = (const ni_scale_pair *)(w + at.s) + s;
            const v16 low = v16_mul(dmin, load_u8(p->mn));
            scale[s] = v16_mul(d, load_u8(p->sc));
            QUADS(i) accm.v[i] = vfmsq_f32(accm.v[i], low.v[i], vdupq_n_f32(x->m[b + s]));
        }
        QUADS(c) {
            const int8_t *xq = x->q + 32 * b + 64 * c;
            int32x4_t lo[4], hi[4];
            QUADS(i) lo[i] = hi[i] = vdupq_n_s32(0);
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) {
                const int8x16_t x0 = vld1q_s8(xq + 16 * e), x1 = vld1q_s8(xq + 32 + 16 * e);
                QUADS(j) {
                    QUADS(i) {
                        const int lane = 64 * (4 * e + j) + 16 * i;
                        const uint8x16_t v = vld1q_u8(w + at.q + 512 * c + lane);
                        const uint8x16_t h = at.high ? vld1q_u8(w + at.high + lane) : v;
                        lo[i] = dot4(lo[i], at.high ? q5_low(v, h, 2 * c) : low_nibbles(v), x0, j);
                        hi[i] = dot4(hi[i], at.high ? q5_high(v, h, 2 * c + 1) : high_nibbles(v), x1, j);
                    }
                    LOADS_STAY;
                }
            }
            QUADS(i) acc.v[i] = finish(lo[i], scale[2 * c].v[i], x->d[b + 2 * c], acc.v[i]);
            QUADS(i) acc.v[i] = finish(hi[i], scale[2 * c + 1].v[i], x->d[b + 2 * c + 1], acc.v[i]);
            LOADS_STAY;
        }
    }
    v16_store(y, v16_add(acc, accm));
}

NI_INLINE void dot_block_q6_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q6_k *in = (const ni_record_q6_k *)w;
    v16 acc = v16_set1(0);
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        v16 total = v16_set1(0);
        for (int64_t b = 0; b < 8; b++) {
            int32x4_t isum[4];
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) {
                const int64_t s = 2 * b + e;
                const int8x16_t xq = vld1q_s8(x->q + k + 16 * s);
                const int16x8_t sc0 = vmovl_s8(vld1_s8(in->sc[s])), sc1 = vmovl_s8(vld1_s8(in->sc[s] + 8));
                QUADS(i) {
                    const int16x8_t sc = i < 2 ? sc0 : sc1;
                    const int32x4_t scale = vmovl_s16(i % 2 ? vget_high_s16(sc) : vget_low_s16(sc));
                    int32x4_t part = vdupq_n_s32(-32 * x->s[k / 16 + s]);
                    uint8x16_t v[4];
                    q6_values(in->v[s][0] + 16 * i, v);
                    QUADS(j) part = dot4(part, v[j], xq, j);
                    isum[i] = e ? vmlaq_s32(isum[i], part, scale) : vmulq_s32(part, scale);
                }
                LOADS_STAY;
            }
            QUADS(i) total.v[i] = vfmaq_n_f32(total.v[i], vcvtq_f32_s32(isum[i]), x->d[k / 32 + b]);
        }
        acc = v16_fma(total, v16_load_f16(in->d), acc);
    }
    v16_store(y, acc);
}

/* F32, F16, BF16: `groups` row groups, `stride` bytes apart, side by side, so that the chains of fma overlap. */
NI_INLINE void dot_float(const uint8_t *w, size_t stride, int groups, ni_type type, const ni_act *x, float *y) {
    const int record = type == NI_F32 ? sizeof(ni_record_f32) : sizeof(ni_record_f16);
    float32x4_t acc[4][4];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) QUADS(i) acc[g][i] = vdupq_n_f32(0);
    for (int64_t k = 0; k < x->k; k++, w += record)
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++)
            QUADS(i) {
                const uint8_t *p = w + (size_t)g * stride + i * record / 4;
                const float32x4_t v = type == NI_F32 ? vld1q_f32((const float *)p) :
                                      type == NI_F16 ? v16_part_f16((const uint16_t *)p) :
                                      v16_part_bf16((const uint16_t *)p);
                acc[g][i] = vfmaq_n_f32(acc[g][i], v, x->f[k]);
            }
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) QUADS(i) vst1q_f32(y + NI_ROWS * g + 4 * i, acc[g][i]);
}

NI_DOT_FLOAT(f32, NI_F32)
NI_DOT_FLOAT(f16, NI_F16)
NI_DOT_FLOAT(bf16, NI_BF16)
NI_DOT(q4_0, q4_0, dot_block32, parts_q4_0, 8)
NI_DOT(q4_1, q4_1, dot_block32, parts_q4_1, 0)
NI_DOT(q5_0, q5_0, dot_block32, parts_q5_0, 16)
NI_DOT(q5_1, q5_1, dot_block32, parts_q5_1, 0)
NI_DOT(q8_0, q8_0, dot_block_q8_0)
NI_DOT(q4_k, q4_k, dot_block256, parts_q4_k)
NI_DOT(q5_k, q5_k, dot_block256, parts_q5_k)
NI_DOT(q6_k, q6_k, dot_block_q6_k)
#endif
