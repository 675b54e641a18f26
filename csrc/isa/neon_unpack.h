/* Packed records to panels (kernels.h) with NEON: quants as bytes in order of k, scales and minimums as floats. */
#ifndef NI_NEON_UNPACK_H
#define NI_NEON_UNPACK_H
#include "neon_util.h"

/* The body of a block of Q4_0 .. Q5_1; high: its fifth bits, or NULL. */
NI_INLINE void unpack_body32(const ni_vector q[4], const uint8_t *high, uint8_t *out) {
    QUADS(i) {
        const uint8x16_t h = high ? vld1q_u8(high + 16 * i) : vdupq_n_u8(0);
        QUADS(j) {
            const uint8x16_t v = vld1q_u8(q[j] + 16 * i);
            vst1q_u8(out + 64 * j + 16 * i, high ? q5_low(v, h, j) : low_nibbles(v));
            vst1q_u8(out + 64 * (j + 4) + 16 * i, high ? q5_high(v, h, j + 4) : high_nibbles(v));
        }
    }
}

#define NI_UNPACK32(name, minimum, fifth)                                                       \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {     \
        RECORDS(name);                                                                     \
        for (int64_t b = 0; b < nk / 32; b++) {                                                \
            v16_store(p->scale + NI_ROWS * b, v16_load_f16(in[b].d));                          \
            minimum;                                                                           \
            unpack_body32(in[b].q, fifth, p->q + 512 * b);                                     \
        }                                                                                      \
    }
NI_UNPACK32(q4_0, , NULL)
NI_UNPACK32(q4_1, v16_store(p->min + NI_ROWS * b, v16_load_f16(in[b].m)), NULL)
NI_UNPACK32(q5_0, , in[b].high)
NI_UNPACK32(q5_1, v16_store(p->min + NI_ROWS * b, v16_load_f16(in[b].m)), in[b].high)

static void unpack_q8_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q8_0);
    for (int64_t b = 0; b < nk / 32; b++) {
        v16_store(p->scale + NI_ROWS * b, v16_load_f16(in[b].d));
        memcpy(p->q + 512 * b, in[b].q, 512);
    }
}

/* Scales and minimums of a block of Q4_K or Q5_K. */
NI_INLINE void unpack_k_scales(const uint16_t *d, const uint16_t *dmin, const ni_scale_pair s[8], float *scale,
                               float *min) {
    const v16 vd = v16_load_f16(d), low = v16_load_f16(dmin);
    for (int i = 0; i < 8; i++) {
        const v16 product = v16_mul(low, load_u8(s[i].mn));
        v16_store(scale + NI_ROWS * i, v16_mul(vd, load_u8(s[i].sc)));
        QUADS(j) vst1q_f32(min + NI_ROWS * i + 4 * j, vnegq_f32(product.v[j]));
    }
}

/* The body of a block of Q4_K or Q5_K; high: the 8 vectors of fifth bits, or NULL. */
NI_INLINE void unpack_body256(const ni_vector q[32], const ni_vector *high, uint8_t *out) {
    for (int i = 0; i < 32; i++) {   /* vector i / 4, rows of quad i % 4 */
        const uint8x16_t h = high ? vld1q_u8(high[0] + 16 * i) : vdupq_n_u8(0);
        QUADS(c) {
            const uint8x16_t v = vld1q_u8(q[8 * c] + 16 * i);
            vst1q_u8(out + 1024 * c + 16 * i, high ? q5_low(v, h, 2 * c) : low_nibbles(v));
            vst1q_u8(out + 1024 * c + 512 + 16 * i, high ? q5_high(v, h, 2 * c + 1) : high_nibbles(v));
        }
    }
}

#define NI_UNPACK256(name, fifth)                                                                                   \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {                         \
        RECORDS(name);                                                                                        \
        for (int64_t b = 0; b < nk / 256; b++) {                                                                   \
            unpack_k_scales(in[b].d, in[b].dmin, in[b].s, p->scale + 8 * NI_ROWS * b, p->min + 8 * NI_ROWS * b);   \
            unpack_body256(in[b].q, fifth, p->q + 4096 * b);                                                       \
        }                                                                                                          \
    }
NI_UNPACK256(q4_k, NULL)
NI_UNPACK256(q5_k, in[b].high)

static void unpack_q6_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q6_k);
    (void)nk;   /* a slab is one block */
    v16_store(p->min, v16_load_f16(in->d));
    for (int s = 0; s < 16; s++) {
        v16_store(p->scale + NI_ROWS * s, load_i8(in->sc[s]));
        QUADS(i) {
            uint8x16_t v[4];
            q6_values(in->v[s][0] + 16 * i, v);
            QUADS(j) vst1q_u8(p->q + 256 * s + 64 * j + 16 * i, v[j]);
        }
    }
}

static void unpack_f32(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f32);
    memcpy(p->f, in, (size_t)nk * sizeof *in);
}

static void unpack_f16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f16);
    for (int64_t i = 0; i < nk; i++) v16_store(p->f + NI_ROWS * i, v16_load_f16(in[i].value));
}

static void unpack_bf16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(bf16);
    for (int64_t i = 0; i < nk; i++) v16_store(p->f + NI_ROWS * i, v16_load_bf16(in[i].value));
}
#endif
