/* The formats of ik_llama.cpp. */
#include "pack.h"
#include "ik.h"
#include "table4.h"

/* Values of places, without the bit in `extra`; and how much higher they are with it. */
static const int8_t iq2[4] = {-31, -13, 1, 17}, iq3[8] = {-63, -40, -23, -10, 1, 13, 28, 47};
static const int8_t iq5[32] = {-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
                               -1,   5,    11,   17,  23,  29,  36,  43,  51,  59,  68,  77,  87,  97,  109, 121};
static const int8_t iq6[64] = {-127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54,
                               -51,  -47,  -44,  -40,  -37,  -34, -31, -28, -25, -22, -19, -16, -13, -11, -8,  -5,
                               -2,   0,    3,    6,    9,    12,  14,  17,  20,  23,  27,  30,  33,  36,  40,  44,
                               47,   51,   55,   59,   63,   68,  72,  77,  82,  87,  92,  98,  103, 109, 115, 121};
enum { HIGHER_2 = 5, HIGHER_3 = 4, HIGHER_4 = 4, HIGHER_5 = 2, HIGHER_6 = 1 };

static inline int bit(const uint8_t *bits, int i) { return bits[i / 8] >> i % 8 & 1; }
static inline int two_bits(const uint8_t *bits, int i) { return bits[i / 4] >> 2 * (i % 4) & 3; }
static inline int nibble(const uint8_t *nibbles, int i) { return nibbles[i / 2] >> 4 * (i % 2) & 15; }

void ni_read_iq4_k(const ni_block_iq4_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        scale[s] = ni_load_f16(in->d) * (float)((nibble(in->low, s) | two_bits(in->high, s) << 4) - 32);
        for (int j = 0; j < 16; j++)
            q[j] = (int8_t)(ni_iq4[in->q[s / 2 * 16 + j] >> 4 * (s % 2) & 15] + HIGHER_4 * bit(in->extra, s));
    }
}

/* In 32 bytes of q value j of 64 is the low nibble of byte j (j < 32), or the high one of byte j - 32. */
void ni_read_iq5_k(const ni_block_iq5_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int c = s / 4, at = s % 2 * 16, upper = s / 2 % 2;
        scale[s] = ni_load_f16(in->d) * (float)((nibble(in->low, s) | two_bits(in->high, s) << 4) - 32);
        for (int j = at; j < at + 16; j++) {
            const int place = (in->q[32 * c + j] >> 4 * upper & 15) | (in->fifth[j] >> (2 * c + upper) & 1) << 4;
            q[j - at] = (int8_t)(iq5[place] + HIGHER_5 * bit(in->extra, s));
        }
    }
}

void ni_read_iq6_k(const ni_block_iq6_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int c = s / 4, at = s % 2 * 16, upper = s / 2 % 2;
        scale[s] = ni_load_f16(in->d) * (float)(int8_t)in->sc[s];
        for (int j = at; j < at + 16; j++) {
            const int place = (in->q[32 * c + j] >> 4 * upper & 15) | (in->upper[c / 2 * 32 + j] >> (4 * (c % 2) + 2 * upper) & 3) << 4;
            q[j - at] = (int8_t)(iq6[place] + HIGHER_6 * bit(in->extra, s));
        }
    }
}

/* 128 values in 32 bytes: value j is in bits 2 (j / 32) of byte j % 32. */
void ni_read_iq3_k(const ni_block_iq3_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int sc = 2 * nibble(in->sc, s) + 1, at = s % 2 * 16;
        scale[s] = ni_load_f16(in->d) * (float)(bit(in->sign, s) ? -sc : sc);
        for (int j = at; j < at + 16; j++) {
            const int place = (in->q[s / 8 * 32 + j] >> 2 * (s / 2 % 4) & 3) | (in->third[j] >> s / 2 & 1) << 2;
            q[j - at] = (int8_t)(iq3[place] + HIGHER_3 * bit(in->extra, s));
        }
    }
}

void ni_read_iq2_k(const ni_block_iq2_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int at = s % 2 * 16;
        scale[s] = ni_load_f16(in->d) * (float)(nibble(in->sc, s) - 8);
        for (int j = at; j < at + 16; j++)
            q[j - at] = (int8_t)(iq2[in->q[s / 8 * 32 + j] >> 2 * (s / 2 % 4) & 3] + HIGHER_2 * bit(in->extra, s));
    }
}

void ni_read_q6_0(const ni_block_q6_0 *in, float *scale, int8_t *q) {
    scale[0] = ni_load_f16(in->d);
    for (int j = 0; j < 32; j++) {
        const int i = j % 16, upper = j / 16;
        q[j] = (int8_t)((in->q[i] >> 4 * upper & 15) + 16 * (in->upper[i % 8] >> (4 * (i / 8) + 2 * upper) & 3) - 32);
    }
}

/* Interleaves whole blocks: what is no multiple of 16 bytes first, half and dwords, then tiles. */
static inline void pack_blocks(const ni_blocks *in, size_t bytes, uint8_t *out) {
    const size_t half = bytes % 4, n = bytes / 4 % 4;
    if (half) ni_interleave_u16(in, 0, (uint16_t *)out);
    ni_vector *vectors = (ni_vector *)(out + half * NI_ROWS);
    ni_fetch_next(in, half, 4 * n);
    for (size_t i = 0; i < n; i++)
        for (int r = 0; r < NI_ROWS; r++) memcpy(vectors[i] + 4 * r, in->row[r] + half + 4 * i, 4);
    ni_interleave(in, half + 4 * n, (int)(bytes / 16 * 4), vectors + n);
}

static inline void multiply(const float *scale, const int8_t *q, int n, int sub, float *out) {
    for (int i = 0; i < n; i++) out[i] = scale[i / sub] * (float)q[i];
}

#define DEFINE(name)                                                                                                        \
    static inline void pack_##name(const ni_blocks *in, ni_record_##name *out) {                                            \
        pack_blocks(in, sizeof(ni_block_##name), (uint8_t *)out);                                                           \
    }                                                                                                                       \
    NI_DEFINE_PACK(name)                                                                                                    \
    static inline void decode_##name(const ni_block_##name *in, float *out) {                                               \
        float scale[16];                                                                                                    \
        int8_t q[256];                                                                                                      \
        ni_read_##name(in, scale, q);                                                                                       \
        multiply(scale, q, NI_BLOCK_##name, NI_SUB_##name, out);                                                            \
    }                                                                                                                       \
    void ni_decode_##name(const uint8_t *blocks, int64_t n_blocks, float *out) {                                            \
        const ni_block_##name *in = (const ni_block_##name *)blocks;                                                        \
        for (int64_t b = 0; b < n_blocks; b++) decode_##name(&in[b], out + b * NI_BLOCK_##name);                            \
    }                                                                                                                       \
    void ni_unpack_row_##name(const uint8_t *group, int r, int64_t k, float *out) {                                         \
        const ni_record_##name *in = (const ni_record_##name *)group;                                                       \
        for (int64_t b = 0; b < k / NI_BLOCK_##name; b++) {                                                                 \
            ni_block_##name block;                                                                                          \
            ni_take_block((const uint8_t *)&in[b], r, sizeof block, (uint8_t *)&block);                                     \
            decode_##name(&block, out + b * NI_BLOCK_##name);                                                               \
        }                                                                                                                   \
    }
NI_IK_FORMATS(DEFINE)
