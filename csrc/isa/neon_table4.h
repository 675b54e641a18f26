/* IQ4_NL, IQ4_XS, MXFP4 and NVFP4 with NEON: a table of 16 bytes in a register looks up what 16 quants stand for.  Their values are
 * signed, as sdot wants them; only panels of MXFP4 and NVFP4 hold them with their offset.  Decode as in neon_dot.h.
 *
 * Included behind the table's gemm. */
#ifndef NI_NEON_TABLE4_H
#define NI_NEON_TABLE4_H
#include "neon_dot.h"
#include "neon_gemm.h"
#include "../formats/table4.h"

/* A table for look_up. */
NI_INLINE uint8x16_t table_of(const int8_t values[16], int offset) {
    return vreinterpretq_u8_s8(vaddq_s8(vld1q_s8(values), vdupq_n_s8((int8_t)offset)));
}

NI_INLINE uint8x16_t look_up(uint8x16_t table, uint8x16_t nibbles) { return vqtbl1q_u8(table, nibbles); }

/* Scales of MXFP4, 2^(e - 128): the larger of two patterns, of which the first is right from e = 2 on and the second below. */
NI_INLINE v16 load_e8m0_half(const uint8_t *e) {
    v16 scale;
    const uint8x16_t v = vld1q_u8(e);
    const uint16x8_t lo = vmovl_u8(vget_low_u8(v)), hi = vmovl_high_u8(v);
    QUADS(i) {
        const uint16x8_t w = i < 2 ? lo : hi;
        const int32x4_t u = vreinterpretq_s32_u32(i % 2 ? vmovl_high_u16(w) : vmovl_u16(vget_low_u16(w))), one = vdupq_n_s32(1);
        const int32x4_t normal = vshlq_n_s32(vsubq_s32(u, one), 23), subnormal = vshlq_n_s32(vaddq_s32(u, one), 21);
        scale.v[i] = vreinterpretq_f32_s32(vmaxq_s32(normal, subnormal));
    }
    return scale;
}

/* Scales of NVFP4: they are half floats but for the width of the exponent. */
NI_INLINE v16 load_ue4m3_half(const uint8_t *sc) {
    const uint8x16_t v = vandq_u8(vld1q_u8(sc), vdupq_n_u8(0x7f));
    uint16_t half[NI_ROWS];
    vst1q_u16(half, vshll_n_u8(vget_low_u8(v), 7));
    vst1q_u16(half + 8, vshll_n_u8(vget_high_u8(v), 7));
    return v16_mul(v16_load_f16(half), v16_set1(128.0f));
}

/* ---- decode ------------------------------------------------------------------------------------------------------ */

/* Sums of a block of 32, 4 vectors. */
NI_INLINE void table4_sums(const ni_vector q[4], const int8_t *x, uint8x16_t table, int32x4_t s[4]) {
    const int8x16_t x0 = vld1q_s8(x), x1 = vld1q_s8(x + 16);
    QUADS(i) s[i] = vdupq_n_s32(0);
    QUADS(j) {
        QUADS(i) {
            const uint8x16_t v = vld1q_u8(q[j] + 16 * i);
            s[i] = dot4(s[i], look_up(table, low_nibbles(v)), x0, j);
            s[i] = dot4(s[i], look_up(table, high_nibbles(v)), x1, j);
        }
        LOADS_STAY;
    }
}

NI_INLINE void dot_block_iq4_nl(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_iq4_nl *in = (const ni_record_iq4_nl *)w;
    const uint8x16_t table = table_of(ni_iq4, 0);
    v16 acc = v16_set1(0);
    for (int64_t b = 0; b < x->k / 32; b++, in++) {
        const v16 d = v16_load_f16(in->d);
        int32x4_t s[4];
        table4_sums(in->q, x->q + 32 * b, table, s);
        QUADS(i) acc.v[i] = finish(s[i], d.v[i], x->d[b], acc.v[i]);
    }
    v16_store(y, acc);
}

NI_INLINE void dot_block_iq4_xs(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_iq4_xs *in = (const ni_record_iq4_xs *)w;
    const uint8x16_t table = table_of(ni_iq4, 0);
    v16 acc = v16_set1(0);
    for (int64_t b = 0; b < x->k / 32; b += 8, in++) {
        const v16 d = v16_load_f16(in->d);
        for (int e = 0; e < 8; e++) {
            const v16 scale = v16_mul(d, load_i8(in->s[e].sc));
            int32x4_t s[4];
            table4_sums(in->s[e].q, x->q + 32 * (b + e), table, s);
            QUADS(i) acc.v[i] = finish(s[i], scale.v[i], x->d[b + e], acc.v[i]);
        }
    }
    v16_store(y, acc);
}

NI_INLINE void dot_block_mxfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_mxfp4 *in = (const ni_record_mxfp4 *)w;
    const uint8x16_t table = table_of(ni_fp4, 0);
    v16 acc = v16_set1(0);
    for (int64_t b = 0; b < x->k / 32; b++, in++) {
        const v16 scale = load_e8m0_half(in->e);
        int32x4_t s[4];
        table4_sums(in->q, x->q + 32 * b, table, s);
        QUADS(i) acc.v[i] = finish(s[i], scale.v[i], x->d[b], acc.v[i]);
    }
    v16_store(y, acc);
}

NI_INLINE void dot_block_nvfp4(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_nvfp4 *in = (const ni_record_nvfp4 *)w;
    const uint8x16_t table = table_of(ni_fp4, 0);
    v16 acc = v16_set1(0);
    for (int64_t b = 0; b < x->k / 16; b += 4, in++)
        for (int e = 0; e < 4; e++) {
            const int8x16_t xq = vld1q_s8(x->q + 16 * (b + e));
            const v16 scale = load_ue4m3_half(in->sc[e]);
            QUADS(i) {
                const uint8x16_t v0 = vld1q_u8(in->q[e][0] + 16 * i), v1 = vld1q_u8(in->q[e][1] + 16 * i);
                int32x4_t s = dot4(vdupq_n_s32(0), look_up(table, low_nibbles(v0)), xq, 0);
                s = dot4(s, look_up(table, low_nibbles(v1)), xq, 1);
                s = dot4(s, look_up(table, high_nibbles(v0)), xq, 2);
                s = dot4(s, look_up(table, high_nibbles(v1)), xq, 3);
                acc.v[i] = finish(s, scale.v[i], x->d[(b + e) / 2], acc.v[i]);
            }
        }
    v16_store(y, acc);
}

NI_DOT(iq4_nl, iq4_nl, dot_block_iq4_nl)
NI_DOT(iq4_xs, iq4_xs, dot_block_iq4_xs)
NI_DOT(mxfp4, mxfp4, dot_block_mxfp4)
NI_DOT(nvfp4, nvfp4, dot_block_nvfp4)

/* ---- prefill ----------------------------------------------------------------------------------------------------- */

/* n vectors of nibbles to 2 n of values. */
NI_INLINE void unpack_table(const ni_vector *q, int n, uint8x16_t table, uint8_t *out) {
    for (int i = 0; i < 4 * n; i++) {
        const uint8x16_t v = vld1q_u8(q[0] + 16 * i);
        vst1q_u8(out + 16 * i, look_up(table, low_nibbles(v)));
        vst1q_u8(out + 64 * n + 16 * i, look_up(table, high_nibbles(v)));
    }
}

static void unpack_iq4_nl(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_nl);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
        v16_store(p->scale + NI_ROWS * b, v16_load_f16(in->d));
        unpack_table(in->q, 4, table_of(ni_iq4, 0), p->q + 512 * b);
    }
}

static void unpack_iq4_xs(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_xs);
    for (int64_t b = 0; b < nk / 32; b += 8, in++)
        for (int s = 0; s < 8; s++) {
            v16_store(p->scale + NI_ROWS * (b + s), v16_mul(v16_load_f16(in->d), load_i8(in->s[s].sc)));
            unpack_table(in->s[s].q, 4, table_of(ni_iq4, 0), p->q + 512 * (b + s));
        }
}

static void unpack_mxfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(mxfp4);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
        v16_store(p->scale + NI_ROWS * b, load_e8m0_half(in->e));
        unpack_table(in->q, 4, table_of(ni_fp4, NI_FP4_OFFSET), p->q + 512 * b);
    }
}

static void unpack_nvfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(nvfp4);
    for (int64_t b = 0; b < nk / 16; b += 4, in++)
        for (int s = 0; s < 4; s++) {
            v16_store(p->scale + NI_ROWS * (b + s), load_ue4m3_half(in->sc[s]));
            unpack_table(in->q[s], 2, table_of(ni_fp4, NI_FP4_OFFSET), p->q + 256 * (b + s));
        }
}

NI_GEMM(mxfp4, 32, NI_FP4_OFFSET, 0)

/* Tokens whose integer sums fit the registers beside their activations. */
enum { TILE_OF_16 = 4 };

/* Sub-blocks of 16, by sdot.  offset: what bytes have, where they are below 128; 128, which is taken off: they become signed. */
NI_INLINE void tile_of_16(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *a, int64_t t, int M, int offset, float *out) {
    const int64_t k = a->k;
    const int8_t *q = a->q + t * k + k0;
    const float *d = a->d + (t * k + k0) / 32;
    const int16_t *sums = a->s + (t * k + k0) / 16;
    const uint8x16_t flip = vdupq_n_u8(offset == 128 ? 128 : 0);
    for (int64_t b = 0; b < nk / 16; b++) {
        int32x4_t s[TILE_OF_16][4];
        int8x16_t x[TILE_OF_16];
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            x[m] = vld1q_s8(q + m * k + 16 * b);
            QUADS(i) s[m][i] = vdupq_n_s32(offset == 128 ? 0 : -offset * sums[m * k / 16 + b]);
        }
        QUADS(g) {
            QUADS(i) {
                const uint8x16_t bytes = veorq_u8(vld1q_u8(p->q + 256 * b + 64 * g + 16 * i), flip);
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) s[m][i] = dot4(s[m][i], bytes, x[m], g);
            }
            LOADS_STAY;
        }
        QUADS(i) {
            const float32x4_t sc = vld1q_f32(p->scale + NI_ROWS * b + 4 * i);
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) {
                float *y = out + NI_ROWS * m + 4 * i;
                vst1q_f32(y, finish(s[m][i], sc, d[m * k / 32 + b / 2], vld1q_f32(y)));
            }
        }
    }
}

#define NI_GEMM_OF_16(name, offset)                                                                                                   \
    static void gemm_##name(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {      \
        (void)accm;                                                                                                                   \
        int t = 0;                                                                                                                    \
        for (; t + TILE_OF_16 <= n_tokens; t += TILE_OF_16)                                                                           \
            tile_of_16(p, k0, nk, x, t, TILE_OF_16, offset, acc + (size_t)t * NI_ROWS);                                               \
        for (; t < n_tokens; t++) tile_of_16(p, k0, nk, x, t, 1, offset, acc + (size_t)t * NI_ROWS);                                  \
    }
NI_GEMM_OF_16(nvfp4, NI_FP4_OFFSET)
NI_GEMM_OF_16(offset128, 128)
#endif
