/* The formats of 1 to 3 bits with NEON: dot, unpack and gemm.  Included after neon_dot.h and the file that defines gemm_quants.
 *
 * A unit of 32 values is two sub-blocks, whose sums are multiplied with their scales as whole numbers. */
#ifndef NI_NEON_UNITS_H
#define NI_NEON_UNITS_H
#include "neon_dot.h"

/* A unit of 2 bits, 4 rows: kg 0-7. */
NI_INLINE void unit2_values(const uint8_t *p, uint8x16_t v[8]) {
    const uint8x16_t mask = vdupq_n_u8(3);
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        const uint8x16_t q = vld1q_u8(p + 64 * j);
        v[2 * j] = vandq_u8(q, mask), v[2 * j + 4] = vandq_u8(vshrq_n_u8(q, 2), mask);
        v[2 * j + 1] = vandq_u8(vshrq_n_u8(q, 4), mask), v[2 * j + 5] = vshrq_n_u8(q, 6);
    }
}

/* A unit of 3 bits, 4 rows: kg 0-7. */
NI_INLINE void unit3_values(const uint8_t *p, uint8x16_t v[8]) {
    const uint8x16_t a = vld1q_u8(p), b = vld1q_u8(p + 64), c = vld1q_u8(p + 128), mask = vdupq_n_u8(7);
    v[0] = vandq_u8(a, mask), v[1] = vandq_u8(b, mask), v[2] = vandq_u8(c, mask);
    v[4] = vandq_u8(vshrq_n_u8(a, 3), mask), v[5] = vandq_u8(vshrq_n_u8(b, 3), mask), v[6] = vandq_u8(vshrq_n_u8(c, 3), mask);
    v[3] = vandq_u8(vsliq_n_u8(vshrq_n_u8(a, 6), vshrq_n_u8(c, 6), 2), mask);
    v[7] = vsliq_n_u8(vshrq_n_u8(b, 6), vshrq_n_u8(c, 7), 2);
}

/* Scales of 4 rows of a unit of Q3_K and Q2_K, as whole numbers: of the words of the rows the low and the high byte. */
NI_INLINE void split_i8(const int8_t *p, int32x4_t sc[2]) {
    const int16x4_t words = vld1_s16((const int16_t *)p);
    sc[0] = vmovl_s16(vshr_n_s16(vshl_n_s16(words, 8), 8));
    sc[1] = vmovl_s16(vshr_n_s16(words, 8));
}
NI_INLINE int32x4_t nibble_of(const uint16_t *p, int from) {
    const uint32x4_t v = vmovl_u16(vld1_u16(p));
    return vreinterpretq_s32_u32(vandq_u32(vshlq_u32(v, vdupq_n_s32(-from)), vdupq_n_u32(15)));
}

/* sc0 * (sum of kg 0-3 with x) + sc1 * (sum of kg 4-7), sums starting at start[0] and start[1]. */
NI_INLINE int32x4_t unit_sum(const uint8x16_t v[8], const int8_t *x, const int32_t start[2], int32x4_t sc0, int32x4_t sc1) {
    const int8x16_t x0 = vld1q_s8(x), x1 = vld1q_s8(x + 16);
    int32x4_t s0 = vdupq_n_s32(start[0]), s1 = vdupq_n_s32(start[1]);
    QUADS(j) {
        s0 = dot4(s0, v[j], x0, j);
        s1 = dot4(s1, v[j + 4], x1, j);
    }
    return vmlaq_s32(vmulq_s32(s0, sc0), s1, sc1);
}

NI_INLINE void dot_block_q2_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q2_k *in = (const ni_record_q2_k *)w;
    v16 acc = v16_set1(0);
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        v16 total = v16_set1(0), totalm = total;
        for (int64_t u = 0; u < 8; u++) {
            const int16_t *sums = x->s + k / 16 + 2 * u;
            const int32_t start[2] = {0, 0};
            const float d = x->d[k / 32 + u];
            QUADS(i) {
                const uint16_t *s = in->s[u] + 4 * i;
                uint8x16_t v[8];
                unit2_values(in->q[u][0] + 16 * i, v);
                const int32x4_t isum = unit_sum(v, x->q + k + 32 * u, start, nibble_of(s, 0), nibble_of(s, 8));
                const int32x4_t imin = vmlaq_n_s32(vmulq_n_s32(nibble_of(s, 4), sums[0]), nibble_of(s, 12), sums[1]);
                total.v[i] = vfmaq_n_f32(total.v[i], vcvtq_f32_s32(isum), d);
                totalm.v[i] = vfmaq_n_f32(totalm.v[i], vcvtq_f32_s32(imin), d);
            }
            LOADS_STAY;
        }
        const v16 dmin = v16_load_f16(in->dmin);
        acc = v16_fma(total, v16_load_f16(in->d), acc);
        QUADS(i) acc.v[i] = vfmsq_f32(acc.v[i], totalm.v[i], dmin.v[i]);
    }
    v16_store(y, acc);
}

/* The scales of a record of Q3_K, less 32: line c in bytes 64 c. */
NI_INLINE void widen_q3_scales(const ni_record_q3_k *in, int8_t sc[256]) {
    QUADS(i) {
        const uint8x16_t upper = vld1q_u8(in->upper + 16 * i), mask = vdupq_n_u8(63);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const uint8x16_t low = vld1q_u8(in->low[c / 2] + 16 * i);
            const uint8x16_t v = vandq_u8(vsliq_n_u8(c % 2 ? high_nibbles(low) : low, upper >> 2 * c, 4), mask);
            vst1q_u8((uint8_t *)sc + 64 * c + 16 * i, vsubq_u8(v, vdupq_n_u8(32)));
        }
    }
}

NI_INLINE void dot_block_q3_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q3_k *in = (const ni_record_q3_k *)w;
    v16 acc = v16_set1(0);
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        int8_t sc[256];
        v16 total = v16_set1(0);
        widen_q3_scales(in, sc);
        for (int64_t u = 0; u < 8; u++) {
            const int16_t *sums = x->s + k / 16 + 2 * u;
            const int32_t start[2] = {-4 * sums[0], -4 * sums[1]};
            QUADS(i) {
                uint8x16_t v[8];
                int32x4_t scale[2];
                split_i8(sc + 32 * u + 8 * i, scale);
                unit3_values(in->v[u][0] + 16 * i, v);
                const int32x4_t isum = unit_sum(v, x->q + k + 32 * u, start, scale[0], scale[1]);
                total.v[i] = vfmaq_n_f32(total.v[i], vcvtq_f32_s32(isum), x->d[k / 32 + u]);
            }
            LOADS_STAY;
        }
        acc = v16_fma(total, v16_load_f16(in->d), acc);
    }
    v16_store(y, acc);
}

NI_DOT(q2_k, q2_k, dot_block_q2_k)
NI_DOT(q3_k, q3_k, dot_block_q3_k)

static void unpack_q2_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q2_k);
    (void)nk;   /* a slab is one block */
    v16_store(p->min, v16_load_f16(in->d));
    v16_store(p->f, v16_load_f16(in->dmin));
    for (int u = 0; u < 8; u++)
        QUADS(i) {
            uint8x16_t v[8];
            unit2_values(in->q[u][0] + 16 * i, v);
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) {
                const uint16_t *s = in->s[u] + 4 * i;
                const int row = NI_ROWS * (2 * u + e) + 4 * i;
                vst1q_f32(p->scale + row, vcvtq_f32_s32(nibble_of(s, 8 * e)));
                vst1q_f32(p->f + NI_ROWS + row, vcvtq_f32_s32(nibble_of(s, 8 * e + 4)));
            }
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) vst1q_u8(p->q + 512 * u + 64 * g + 16 * i, v[g]);
        }
}

static void unpack_q3_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q3_k);
    (void)nk;
    int8_t sc[256];
    widen_q3_scales(in, sc);
    v16_store(p->min, v16_load_f16(in->d));
    for (int u = 0; u < 8; u++)
        QUADS(i) {
            uint8x16_t v[8];
            int32x4_t scale[2];
            split_i8(sc + 32 * u + 8 * i, scale);
            unit3_values(in->v[u][0] + 16 * i, v);
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) vst1q_f32(p->scale + NI_ROWS * (2 * u + e) + 4 * i, vcvtq_f32_s32(scale[e]));
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) vst1q_u8(p->q + 512 * u + 64 * g + 16 * i, v[g]);
        }
}

/* acc = fma(-(sum of mn * s), dmin, acc), after the products of a block of 256. */
static void gemm_q2_k(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {
    (void)accm;
    gemm_quants(p, k0, nk, x, n_tokens, 16, 0, acc);
    for (int64_t t = 0; t < n_tokens; t++)
        QUADS(i) {
            const int16_t *s = x->s + (t * x->k + k0) / 16;
            const float *d = x->d + (t * x->k + k0) / 32, *mn = p->f + NI_ROWS + 4 * i;
            float *to = acc + NI_ROWS * t + 4 * i;
            float32x4_t total = vdupq_n_f32(0);
            for (int64_t u = 0; u < 8; u++, mn += 2 * NI_ROWS) {
                /* whole numbers below 2^24, so floats are exact */
                const float32x4_t first = vmulq_n_f32(vld1q_f32(mn), (float)s[2 * u]);
                total = vfmaq_n_f32(total, vfmaq_n_f32(first, vld1q_f32(mn + NI_ROWS), (float)s[2 * u + 1]), d[u]);
            }
            vst1q_f32(to, vfmsq_f32(vld1q_f32(to), total, vld1q_f32(p->f + 4 * i)));
        }
}
NI_GEMM(q3_k, 16, 4, 0)
NI_GEMM(offset1, 32, 1, 0)

/* Q1_0, 4 rows: kg 0-7, 0 or 2. */
NI_INLINE void unit1_values(const uint8_t *p, uint8x16_t v[8]) {
    const uint8x16_t q = vld1q_u8(p);
    v[0] = vandq_u8(vshlq_n_u8(q, 1), vdupq_n_u8(2));
#pragma GCC unroll 7
    for (int g = 1; g < 8; g++) v[g] = vandq_u8(q >> (g - 1), vdupq_n_u8(2));
}

/* Units of 1 or 2 bits, `units` to a record, behind its d. */
NI_INLINE void dot_units(const uint8_t *w, int units, int bits, const ni_act *x, float *y) {
    v16 acc = v16_set1(0);
    for (int64_t b = 0; b < x->k / 32;) {
        const v16 scale = v16_load_f16((const uint16_t *)w);
        w += 2 * NI_ROWS;
        for (int u = 0; u < units; u++, b++, w += 64 * bits) {
            const int8x16_t x0 = vld1q_s8(x->q + 32 * b), x1 = vld1q_s8(x->q + 32 * b + 16);
            QUADS(i) {
                uint8x16_t v[8];
                int32x4_t s = vdupq_n_s32(-(x->s[2 * b] + x->s[2 * b + 1]));
                if (bits == 1) unit1_values(w + 16 * i, v);
                else unit2_values(w + 16 * i, v);
                QUADS(j) s = dot4(s, v[j], x0, j);
                QUADS(j) s = dot4(s, v[j + 4], x1, j);
                acc.v[i] = finish(s, scale.v[i], x->d[b], acc.v[i]);
            }
            LOADS_STAY;
        }
    }
    v16_store(y, acc);
}

NI_DOT(tq2_0, tq2_0, dot_units, 8, 2)
NI_DOT(q1_0, q1_0, dot_units, 4, 1)
NI_DOT(q2_0, q2_0, dot_units, 2, 2)

NI_INLINE void unpack_units(const uint8_t *group, int64_t k0, int64_t nk, int units, int bits, ni_panel *p) {
    const uint8_t *w = group + k0 / (32 * units) * (2 * NI_ROWS + 64 * bits * units);
    for (int64_t b = 0; b < nk / 32;) {
        const v16 scale = v16_load_f16((const uint16_t *)w);
        w += 2 * NI_ROWS;
        for (int u = 0; u < units; u++, b++, w += 64 * bits) {
            v16_store(p->scale + NI_ROWS * b, scale);
            QUADS(i) {
                uint8x16_t v[8];
                if (bits == 1) unit1_values(w + 16 * i, v);
                else unit2_values(w + 16 * i, v);
#pragma GCC unroll 8
                for (int g = 0; g < 8; g++) vst1q_u8(p->q + 512 * b + 64 * g + 16 * i, v[g]);
            }
        }
    }
}

#define NI_UNPACK_UNITS(name, units, bits)                                                     \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {     \
        unpack_units(group, k0, nk, units, bits, p);                                           \
    }
NI_UNPACK_UNITS(tq2_0, 8, 2)
NI_UNPACK_UNITS(q1_0, 4, 1)
NI_UNPACK_UNITS(q2_0, 2, 2)

/* Digits of base 3: 3 v / 256 is 1 from 86 on and 2 from 171 on; its fraction, times 256, is what a byte keeps of 3 v. */
NI_INLINE void unpack_digits(const ni_vector *in, int count, int digits, int apart, uint8_t *out) {
    for (int i = 0; i < 4 * count; i++) {
        uint8x16_t v = vld1q_u8(in[0] + 16 * i);
        for (int n = 0; n < digits; n++) {
            const uint8x16_t a = vshrq_n_u8(vcgtq_u8(v, vdupq_n_u8(85)), 7), b = vshrq_n_u8(vcgtq_u8(v, vdupq_n_u8(170)), 7);
            vst1q_u8(out + 64 * apart * n + 16 * i, vaddq_u8(a, b));
            v = vaddq_u8(vaddq_u8(v, v), v);
        }
    }
}

static void unpack_tq1_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(tq1_0);
    for (int64_t b = 0; b < nk / 256; b++) {
        uint8_t *q = p->q + 4096 * b;
        for (int s = 0; s < 8; s++) v16_store(p->scale + NI_ROWS * (8 * b + s), v16_load_f16(in[b].d));
        unpack_digits(in[b].q, 8, 5, 8, q);
        unpack_digits(in[b].q + 8, 4, 5, 4, q + 64 * 40);
        unpack_digits(in[b].q + 12, 1, 4, 1, q + 64 * 60);
    }
}
#endif
