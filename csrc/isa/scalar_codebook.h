/* unpack of IQ1, IQ2 and IQ3 in portable C: a row and a pair of words (codebook.h) at a time.  Included by scalar.c. */
#ifndef NI_SCALAR_CODEBOOK_H
#define NI_SCALAR_CODEBOOK_H
#include "../formats/codebook.h"
#include "parts.h"

/* n values of row r, from k-group kg of the panel on. */
static inline void put_values(ni_panel *p, int64_t kg, int r, const uint8_t *q, int n) {
    for (int i = 0; i < n; i++) p->q[(kg + i / 4) * 4 * NI_ROWS + 4 * r + i % 4] = q[i];
}

static void unpack_iq3_xxs(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq3_xxs);
    for (int64_t s = 0; s < nk / 32; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const ni_part_iq3 *part = &in[s / 8].part[s % 8];
            const uint32_t signs = ni_load_u32(part->signs + 4 * r), all = ni_all_signs_iq3(signs);
            p->scale[NI_ROWS * s + r] = ni_f16_to_f32(in[s / 8].d[r]) * 0.25f * (float)(2 * (signs >> 28) + 1);
            for (int i = 0; i < 4; i++) {
                uint8_t q[8];
                const uint32_t pair = ni_pair(&ni_book_iq3_xxs, ni_load_u32(part->q[i / 2] + 4 * r), i % 2, 0, 0);
                ni_values_of_pair_iq3(pair, all, i, ni_values_iq3_xxs, q);
                put_values(p, 8 * s + 2 * i, r, q, 8);
            }
        }
}

static void unpack_iq3_s(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq3_s);
    for (int64_t s = 0; s < nk / 32; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const ni_record_iq3_s *block = in + s / 8;
            const ni_part_iq3 *part = &block->part[s % 8];
            const uint32_t high = ni_load_u32(block->high[s % 8 / 4] + 4 * r), signs = ni_load_u32(part->signs + 4 * r);
            p->scale[NI_ROWS * s + r] = ni_f16_to_f32(block->d[r]) * (float)(2 * (ni_load_u32(block->sc + 4 * r) >> 4 * (s % 8) & 15) + 1);
            for (int i = 0; i < 4; i++) {
                uint8_t q[8];
                const uint32_t places = ni_load_u32(part->q[i / 2] + 4 * r);
                const uint32_t pair = ni_pair_high(&ni_book_iq3_s, places, i % 2, high, 4 * (int)(s % 4) + i, 1);
                ni_values_of_pair_iq3(pair, signs, i, ni_values_iq3_s, q);
                put_values(p, 8 * s + 2 * i, r, q, 8);
            }
        }
}

/* Pair i of a part: 16 values; signs: of the whole part, complete. */
static inline void put_pair(ni_panel *p, int64_t s, int r, int i, uint32_t pair, uint32_t signs, const uint8_t values[16]) {
    uint8_t q[16];
    ni_values_of_pair_iq2(pair, signs, i, values, q);
    put_values(p, 8 * s + 4 * i, r, q, 16);
}

static void unpack_iq2_xxs(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq2_xxs);
    for (int64_t s = 0; s < nk / 32; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const ni_part_iq2 *part = &in[s / 8].part[s % 8];
            const uint32_t q = ni_load_u32(part->q[0] + 4 * r), signs = ni_load_u32(part->signs + 4 * r), all = ni_all_signs_iq2(signs);
            const uint32_t sc = (signs >> 14 & 3) | (signs >> 28 & 12);
            p->scale[NI_ROWS * s + r] = ni_f16_to_f32(in[s / 8].d[r]) * 0.125f * (float)(2 * sc + 1);
            for (int i = 0; i < 2; i++) put_pair(p, s, r, i, ni_pair(&ni_book_iq2_xxs, q, i, 0, 0), all, ni_values_iq2);
        }
}

/* What IQ2_XS, IQ2_S and IQ1_M have for the panel's min: d / 8. */
static inline void eighths(float *out, const uint16_t *d) {
    for (int r = 0; r < NI_ROWS; r++) out[r] = 0.125f * ni_f16_to_f32(d[r]);
}

static void unpack_iq2_xs(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq2_xs);
    (void)nk;   /* a slab is one block */
    eighths(p->min, in->d);
    for (int s = 0; s < 16; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const ni_part_iq2 *part = &in->part[s / 2];
            const uint32_t q = ni_load_u32(part->q[0] + 4 * r), signs = ni_load_u32(part->signs + 4 * r);
            p->scale[NI_ROWS * s + r] = (float)(2 * (ni_load_u32(in->sc[s / 8] + 4 * r) >> 4 * (s % 8) & 15) + 1);
            put_pair(p, s / 2, r, s % 2, ni_pair_high(&ni_book_iq2_xs, q, s % 2, signs, 14 + s % 2, 1), ni_all_signs_iq2(signs),
                     ni_values_iq2);
        }
}

static void unpack_iq2_s(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq2_s);
    (void)nk;
    eighths(p->min, in->d);
    for (int s = 0; s < 16; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const ni_part_iq2 *part = &in->part[s / 2];
            const uint32_t q = ni_load_u32(part->q[0] + 4 * r), high = ni_load_u32(in->high[s / 8] + 4 * r);
            p->scale[NI_ROWS * s + r] = (float)(2 * (ni_load_u32(in->sc[s / 8] + 4 * r) >> 4 * (s % 8) & 15) + 1);
            put_pair(p, s / 2, r, s % 2, ni_pair_high(&ni_book_iq2_s, q, s % 2, high, 2 * (s % 8), 2), ni_load_u32(part->signs + 4 * r),
                     ni_values_iq2);
        }
}

static void unpack_iq1_s(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq1_s);
    for (int64_t s = 0; s < nk / 32; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const ni_part_iq1 *part = &in[s / 8].part[s % 8];
            const uint32_t q = ni_load_u32(part->q + 4 * r), h = part->h[r];
            p->scale[NI_ROWS * s + r] = ni_f16_to_f32(in[s / 8].d[r]) * 0.125f * (float)(2 * (h >> 12 & 7) + 1);
            for (int i = 0; i < 2; i++)
                put_pair(p, s, r, i, ni_pair(&ni_book_iq1, q, i, h >> 6 * i & 7, h >> (6 * i + 3) & 7), 0 - (h >> 15), ni_values_iq1_s);
        }
}

static void unpack_iq1_m(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(iq1_m);
    (void)nk;
    eighths(p->min, in->d);
    for (int s = 0; s < 16; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const ni_part_iq1 *part = &in->part[s / 2];
            const uint32_t q = ni_load_u32(part->q + 4 * r), h = part->h[r] >> 8 * (s % 2);
            const uint32_t down = (h >> 3 & 1) * 0xffff + (h >> 7 & 1) * 0xffff0000;
            uint32_t sc = 0;
            for (int e = 0; e < 3; e++) sc |= (uint32_t)(in->sc[e][r] >> s & 1) << e;
            p->scale[NI_ROWS * s + r] = (float)(2 * sc + 1);
            put_pair(p, s / 2, r, s % 2, ni_pair(&ni_book_iq1, q, s % 2, h & 7, h >> 4 & 7), down, ni_values_iq1_m);
        }
}
#endif
