/* The portable unpack of the formats of 1 to 3 bits: Q2_K, Q3_K, TQ1_0, TQ2_0, Q1_0, Q2_0.  Included by scalar.c, after its helpers. */
#ifndef NI_SCALAR_UNITS_H
#define NI_SCALAR_UNITS_H

/* A unit of 2-bit quants to 8 vectors of a panel. */
static inline void unpack_unit2(const ni_vector q[2], uint8_t *out) {
    for (int g = 0; g < 8; g++)
        for (size_t i = 0; i < sizeof(ni_vector); i++)
            out[(size_t)g * sizeof(ni_vector) + i] = q[g / 2 % 2][i] >> (2 * (g / 4) + 4 * (g % 2)) & 3;
}

static void unpack_q2_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q2_k);
    (void)nk;   /* a slab is one block */
    halves(p->min, in->d);
    halves(p->f, in->dmin);
    for (int u = 0; u < 8; u++) {
        for (int r = 0; r < NI_ROWS; r++)
            for (int e = 0; e < 2; e++) {
                p->scale[NI_ROWS * (2 * u + e) + r] = (float)(in->s[u][r] >> 8 * e & 15);
                p->f[NI_ROWS * (1 + 2 * u + e) + r] = (float)(in->s[u][r] >> (8 * e + 4) & 15);
            }
        unpack_unit2(in->q[u], VECTOR(8 * u));
    }
}

static void unpack_q3_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q3_k);
    (void)nk;
    halves(p->min, in->d);
    for (int s = 0; s < 16; s++) {
        const int c = s / 4, e = s % 2;
        const ni_vector *v = in->v[s / 2];
        uint8_t *out = VECTOR(4 * s);
        for (int r = 0; r < NI_ROWS; r++) {
            const int at = 32 * (s / 2 % 2) + 2 * r + e;
            p->scale[NI_ROWS * s + r] = (float)(((in->low[c / 2][at] >> 4 * (c % 2) & 15) | (in->upper[at] >> 2 * c & 3) << 4) - 32);
        }
        for (size_t i = 0; i < sizeof(ni_vector); i++) {
            for (size_t g = 0; g < 3; g++) out[g * sizeof(ni_vector) + i] = v[g][i] >> 3 * e & 7;
            out[3 * sizeof(ni_vector) + i] = (uint8_t)(v[e][i] >> 6 | (v[2][i] >> (6 + e) & 1) << 2);
        }
    }
}

/* Digit n of vector j becomes vector apart * n + j of out. */
static inline void unpack_digits(const ni_vector *q, int count, int digits, int apart, uint8_t *out) {
    for (int j = 0; j < count; j++)
        for (size_t i = 0; i < sizeof(ni_vector); i++) {
            uint8_t rest = q[j][i];
            for (int n = 0; n < digits; n++, rest = (uint8_t)(3 * rest))
                out[(size_t)(apart * n + j) * sizeof(ni_vector) + i] = (uint8_t)(3 * rest >> 8);
        }
}

static void unpack_tq1_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(tq1_0);
    for (int64_t b = 0; b < nk / 256; b++) {
        for (int s = 0; s < 8; s++) halves(p->scale + NI_ROWS * (8 * b + s), in[b].d);
        unpack_digits(in[b].q, 8, 5, 8, VECTOR(64 * b));
        unpack_digits(in[b].q + 8, 4, 5, 4, VECTOR(64 * b + 40));
        unpack_digits(in[b].q + 12, 1, 4, 1, VECTOR(64 * b + 60));
    }
}

static void unpack_tq2_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(tq2_0);
    for (int64_t i = 0; i < nk / 32; i++) {
        halves(p->scale + NI_ROWS * i, in[i / 8].d);
        unpack_unit2(in[i / 8].q[i % 8], VECTOR(8 * i));
    }
}

static void unpack_q1_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q1_0);
    for (int64_t i = 0; i < nk / 32; i++) {
        halves(p->scale + NI_ROWS * i, in[i / 4].d);
        for (int g = 0; g < 8; g++)
            for (size_t j = 0; j < sizeof(ni_vector); j++) VECTOR(8 * i + g)[j] = (uint8_t)((in[i / 4].q[i % 4][j] >> g & 1) << 1);
    }
}

static void unpack_q2_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q2_0);
    for (int64_t i = 0; i < nk / 32; i++) {
        halves(p->scale + NI_ROWS * i, in[i / 2].d);
        unpack_unit2(in[i / 2].q[i % 2], VECTOR(8 * i));
    }
}
#endif
