/* The kernels in portable C: the definition that every other table is measured against, bit for bit.  Here every type has unpack, gather
 * and gemm, from which tables that lack one take it; dot is made of them (complete.c), so that the two cannot differ.
 */
#include "kernels.h"
#include "gather_impl.h"
#include "parts.h"
#include "../formats/ik.h"
#include "../formats/table4.h"
#include "scalar_codebook.h"
#include <math.h>

static inline void copy_vector(uint8_t *out, const ni_vector in) { memcpy(out, in, sizeof(ni_vector)); }

static inline void low_nibbles(uint8_t *out, const ni_vector in) {
    for (int i = 0; i < 4 * NI_ROWS; i++) out[i] = in[i] & 15;
}

static inline void high_nibbles(uint8_t *out, const ni_vector in) {
    for (int i = 0; i < 4 * NI_ROWS; i++) out[i] = in[i] >> 4;
}

/* Puts bit `shift` of `in` on top of the nibbles in out. */
static inline void add_bit(uint8_t *out, const ni_vector in, int shift) {
    for (int i = 0; i < 4 * NI_ROWS; i++) out[i] |= (uint8_t)((in[i] >> shift & 1) << 4);
}

static inline void halves(float *out, const uint16_t *in) {
    for (int r = 0; r < NI_ROWS; r++) out[r] = ni_f16_to_f32(in[r]);
}

#define VECTOR(i) (p->q + (size_t)(i) * sizeof(ni_vector))   /* k-group i of the panel */

static void unpack_f32(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f32);
    memcpy(p->f, in, (size_t)nk * sizeof *in);
}

static void unpack_f16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f16);
    for (int64_t i = 0; i < nk; i++) halves(p->f + NI_ROWS * i, in[i].value);
}

static void unpack_bf16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(bf16);
    for (int64_t i = 0; i < NI_ROWS * nk; i++) p->f[i] = ni_bf16_to_f32(in[i / NI_ROWS].value[i % NI_ROWS]);
}

/* The 4-bit body that Q4_0 .. Q5_1 share: vectors 8b .. 8b + 7. */
static inline void unpack_nibbles(const ni_vector q[4], int64_t b, ni_panel *p) {
    for (int j = 0; j < 4; j++) {
        low_nibbles(VECTOR(8 * b + j), q[j]);
        high_nibbles(VECTOR(8 * b + 4 + j), q[j]);
    }
}

static void unpack_q4_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q4_0);
    for (int64_t b = 0; b < nk / 32; b++) {
        halves(p->scale + NI_ROWS * b, in[b].d);
        unpack_nibbles(in[b].q, b, p);
    }
}

static void unpack_q4_1(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q4_1);
    for (int64_t b = 0; b < nk / 32; b++) {
        halves(p->scale + NI_ROWS * b, in[b].d);
        halves(p->min + NI_ROWS * b, in[b].m);
        unpack_nibbles(in[b].q, b, p);
    }
}

static void unpack_q5_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q5_0);
    for (int64_t b = 0; b < nk / 32; b++) {
        halves(p->scale + NI_ROWS * b, in[b].d);
        unpack_nibbles(in[b].q, b, p);
        for (int g = 0; g < 8; g++) add_bit(VECTOR(8 * b + g), in[b].high, g);
    }
}

static void unpack_q5_1(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q5_1);
    for (int64_t b = 0; b < nk / 32; b++) {
        halves(p->scale + NI_ROWS * b, in[b].d);
        halves(p->min + NI_ROWS * b, in[b].m);
        unpack_nibbles(in[b].q, b, p);
        for (int g = 0; g < 8; g++) add_bit(VECTOR(8 * b + g), in[b].high, g);
    }
}

static void unpack_q8_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q8_0);
    for (int64_t b = 0; b < nk / 32; b++) {
        halves(p->scale + NI_ROWS * b, in[b].d);
        for (int j = 0; j < 8; j++) copy_vector(VECTOR(8 * b + j), in[b].q[j]);
    }
}

static inline void unpack_k_scales(const uint16_t *d, const uint16_t *dmin, const ni_scale_pair s[8], int64_t b,
                                   ni_panel *p) {
    for (int i = 0; i < 8; i++)
        for (int r = 0; r < NI_ROWS; r++) {
            p->scale[NI_ROWS * (8 * b + i) + r] = ni_f16_to_f32(d[r]) * (float)s[i].sc[r];
            p->min[NI_ROWS * (8 * b + i) + r] = -(ni_f16_to_f32(dmin[r]) * (float)s[i].mn[r]);
        }
}

/* The 4-bit body that Q4_K and Q5_K share: vectors 64b .. 64b + 63. */
static inline void unpack_k_nibbles(const ni_vector q[32], int64_t b, ni_panel *p) {
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < 8; i++) {
            low_nibbles(VECTOR(64 * b + 16 * c + i), q[8 * c + i]);
            high_nibbles(VECTOR(64 * b + 16 * c + 8 + i), q[8 * c + i]);
        }
}

static void unpack_q4_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q4_k);
    for (int64_t b = 0; b < nk / 256; b++) {
        unpack_k_scales(in[b].d, in[b].dmin, in[b].s, b, p);
        unpack_k_nibbles(in[b].q, b, p);
    }
}

static void unpack_q5_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q5_k);
    for (int64_t b = 0; b < nk / 256; b++) {
        unpack_k_scales(in[b].d, in[b].dmin, in[b].s, b, p);
        unpack_k_nibbles(in[b].q, b, p);
        for (int s = 0; s < 8; s++)
            for (int i = 0; i < 8; i++) add_bit(VECTOR(64 * b + 8 * s + i), in[b].high[i], s);
    }
}

static void unpack_q6_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q6_k);
    for (int64_t b = 0; b < nk / 256; b++) {
        halves(p->min + NI_ROWS * b, in[b].d);
        for (int s = 0; s < 16; s++) {
            for (int r = 0; r < NI_ROWS; r++) p->scale[NI_ROWS * (16 * b + s) + r] = (float)in[b].sc[s][r];
            const uint8_t *v0 = in[b].v[s][0], *v1 = in[b].v[s][1], *v2 = in[b].v[s][2];
            uint8_t *out = VECTOR(64 * b + 4 * s);
            for (size_t i = 0; i < sizeof(ni_vector); i++) {
                out[i] = v0[i] & 63;
                out[i + sizeof(ni_vector)] = v1[i] & 63;
                out[i + 2 * sizeof(ni_vector)] = v2[i] & 63;
                out[i + 3 * sizeof(ni_vector)] = (uint8_t)(v0[i] >> 6 << 4 | v1[i] >> 6 << 2 | v2[i] >> 6);
            }
        }
    }
}

#include "scalar_units.h"
/* n vectors of nibbles to 2 n vectors of values from a table, plus an offset. */
static inline void look_up(uint8_t *out, const ni_vector *q, int n, const int8_t table[16], int offset) {
    for (int i = 0; i < n; i++)
        for (size_t j = 0; j < sizeof(ni_vector); j++) {
            out[i * sizeof(ni_vector) + j] = (uint8_t)(table[q[i][j] & 15] + offset);
            out[(i + n) * sizeof(ni_vector) + j] = (uint8_t)(table[q[i][j] >> 4] + offset);
        }
}

static void unpack_iq4_nl(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_nl);
    for (int64_t b = 0; b < nk / 32; b++) {
        halves(p->scale + NI_ROWS * b, in[b].d);
        look_up(VECTOR(8 * b), in[b].q, 4, ni_iq4, 0);
    }
}

static void unpack_iq4_xs(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq4_xs);
    for (int64_t b = 0; b < nk / 32; b++) {
        const ni_record_iq4_xs *record = in + b / 8;
        for (int r = 0; r < NI_ROWS; r++) p->scale[NI_ROWS * b + r] = ni_f16_to_f32(record->d[r]) * (float)record->s[b % 8].sc[r];
        look_up(VECTOR(8 * b), record->s[b % 8].q, 4, ni_iq4, 0);
    }
}

static void unpack_mxfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(mxfp4);
    for (int64_t b = 0; b < nk / 32; b++) {
        for (int r = 0; r < NI_ROWS; r++) p->scale[NI_ROWS * b + r] = ni_e8m0_half(in[b].e[r]);
        look_up(VECTOR(8 * b), in[b].q, 4, ni_fp4, NI_FP4_OFFSET);
    }
}

static void unpack_nvfp4(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(nvfp4);
    for (int64_t s = 0; s < nk / 16; s++) {
        for (int r = 0; r < NI_ROWS; r++) p->scale[NI_ROWS * s + r] = ni_ue4m3_half(in[s / 4].sc[s % 4][r]);
        look_up(VECTOR(4 * s), in[s / 4].q[s % 4], 2, ni_fp4, NI_FP4_OFFSET);
    }
}

/* ik_llama.cpp's: row by row, as the file's blocks.  An offset is 128. */
#define UNPACK(name)                                                                                                            \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {                                      \
        enum { BLOCK = NI_BLOCK_##name, SUBS = BLOCK / NI_SUB_##name };                                                         \
        RECORDS(name);                                                                                                          \
        for (int64_t b = 0; b < nk / BLOCK; b++)                                                                                \
            for (int r = 0; r < NI_ROWS; r++) {                                                                                 \
                ni_block_##name block;                                                                                          \
                float scale[SUBS];                                                                                              \
                int8_t q[BLOCK];                                                                                                \
                const float d = ni_take_block((const uint8_t *)&in[b], r, NI_HEAD_##name, sizeof block, (uint8_t *)&block);     \
                ni_read_##name(d, &block, scale, q);                                                                            \
                for (int i = 0; NI_OFFSET_##name && i < BLOCK; i++) q[i] = (int8_t)(q[i] ^ NI_OFFSET_##name);                   \
                for (int s = 0; s < SUBS; s++) p->scale[NI_ROWS * (SUBS * b + s) + r] = scale[s];                               \
                for (int g = 0; g < BLOCK / 4; g++) memcpy(VECTOR(BLOCK / 4 * b + g) + 4 * r, q + 4 * g, 4);                    \
            }                                                                                                                   \
    }
NI_IK_FORMATS(UNPACK)

/* One sub-block of `sub` values: sum of q * xq per row. */
static inline void dot_block(const uint8_t *q, const int8_t *xq, int sub, int is_signed, int32_t isum[NI_ROWS]) {
    for (int r = 0; r < NI_ROWS; r++) isum[r] = 0;
    for (int g = 0; g < sub / 4; g++)
        for (int r = 0; r < NI_ROWS; r++)
            for (int b = 0; b < 4; b++) {
                const uint8_t w = q[g * 4 * NI_ROWS + 4 * r + b];
                isum[r] += (is_signed ? (int8_t)w : w) * xq[4 * g + b];
            }
}

static void gemm_float(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc) {
    for (int t = 0; t < n_tokens; t++, acc += NI_ROWS) {
        const float *xf = x->f + t * x->k + k0;
        for (int64_t i = 0; i < nk; i++)
            for (int r = 0; r < NI_ROWS; r++) acc[r] = fmaf(p->f[NI_ROWS * i + r], xf[i], acc[r]);
    }
}

static void gemm_quantised(const ni_format *format, const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x,
                           int n_tokens, float *acc, float *accm) {
    const int sub = format->sub;
    for (int t = 0; t < n_tokens; t++) {
        float *a = acc + NI_ROWS * t, *am = accm + NI_ROWS * t;
        for (int64_t b = 0; b < nk / sub; b++) {
            const int64_t k = k0 + b * sub, block = t * (x->k / 32) + k / 32;
            const float *scale = p->scale + NI_ROWS * b;
            int32_t isum[NI_ROWS];
            dot_block(p->q + NI_ROWS * sub * b, x->q + t * x->k + k, sub, format->kind == NI_PANEL_SIGNED, isum);
            if (format->kind == NI_PANEL_OFFSET) {
                const int16_t *s = x->s + t * (x->k / 16) + k / 16;
                const int32_t sum = sub == 32 ? s[0] + s[1] : s[0];
                for (int r = 0; r < NI_ROWS; r++) isum[r] -= format->offset * sum;
            }
            for (int r = 0; r < NI_ROWS; r++) a[r] = fmaf((float)isum[r], scale[r] * x->d[block], a[r]);
            if (format->kind == NI_PANEL_MIN)
                for (int r = 0; r < NI_ROWS; r++) am[r] = fmaf(p->min[NI_ROWS * b + r], x->m[block], am[r]);
        }
    }
}

/* Nested scales: a slab is one block of 256. */
static void gemm_nested(const ni_format *format, const ni_panel *p, int64_t k0, const ni_act *x, int n_tokens,
                        float *acc) {
    const int sub = format->sub, has_min = format->kind == NI_PANEL_NESTED_MIN;
    const float *dmin = p->f, *mn = p->f + NI_ROWS;
    for (int t = 0; t < n_tokens; t++, acc += NI_ROWS) {
        float total[NI_ROWS] = {0}, totalm[NI_ROWS] = {0};
        for (int64_t k = 0; k < 256; k += 32) {
            const float d = x->d[(t * x->k + k0 + k) / 32];
            int32_t isum[NI_ROWS] = {0}, imin[NI_ROWS] = {0};
            for (int64_t i = k; i < k + 32; i += sub) {
                const int64_t at = t * x->k + k0 + i;
                int32_t part[NI_ROWS];
                dot_block(p->q + NI_ROWS * i, x->q + at, sub, 0, part);
                for (int r = 0; r < NI_ROWS; r++) {
                    isum[r] += (int32_t)p->scale[NI_ROWS * (i / sub) + r] * (part[r] - format->offset * x->s[at / 16]);
                    if (has_min) imin[r] += (int32_t)mn[NI_ROWS * (i / sub) + r] * x->s[at / 16];
                }
            }
            for (int r = 0; r < NI_ROWS; r++) {
                total[r] = fmaf((float)isum[r], d, total[r]);
                totalm[r] = fmaf((float)imin[r], d, totalm[r]);
            }
        }
        for (int r = 0; r < NI_ROWS; r++) {
            acc[r] = fmaf(total[r], p->min[r], acc[r]);
            if (has_min) acc[r] = fmaf(-totalm[r], dmin[r], acc[r]);
        }
    }
}

static void gemm(const ni_format *format, const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc,
                 float *accm) {
    if (format->kind == NI_PANEL_FLOAT) gemm_float(p, k0, nk, x, n_tokens, acc);
    else if (format->kind >= NI_PANEL_NESTED) gemm_nested(format, p, k0, x, n_tokens, acc);
    else gemm_quantised(format, p, k0, nk, x, n_tokens, acc, accm);
}

#define NI_FORMAT(NAME, name, ...)                                                                                              \
    static void gemm_##name(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) { \
        gemm(&ni_formats[NI_##NAME], p, k0, nk, x, n_tokens, acc, accm);                                                        \
    }
#include "../formats/formats.def"
#undef NI_FORMAT

#define NI_VEC(name) name##_scalar
#include "vec_impl.h"
#include "panel_dots.h"

/* gather by kind of panel */
#define gather_FLOAT gather_f32
#define gather_OFFSET gather_quants
#define gather_MIN gather_quants
#define gather_SIGNED gather_quants
#define gather_NESTED gather_quants
#define gather_NESTED_MIN gather_quants

const ni_own_kernels ni_own_scalar = {
    .name = "scalar",
    .types = {
#define NI_FORMAT(NAME, name, ggml_type, block, kind, ...) \
        [NI_##NAME] = {.unpack = unpack_##name, .gather = gather_##kind, .gemm = gemm_##name},
#include "../formats/formats.def"
#undef NI_FORMAT
    },
    .panel_dots = NI_VEC(panel_dots),
    .vec = NI_VEC_TABLE,
};
