/* The formats of ik_llama.cpp. */
#include "pack.h"
#include "ik.h"
#include "table4.h"

static inline int bit(const uint8_t *bits, int i) { return bits[i / 8] >> i % 8 & 1; }
static inline int two_bits(const uint8_t *bits, int i) { return bits[i / 4] >> 2 * (i % 4) & 3; }
static inline int nibble(const uint8_t *nibbles, int i) { return nibbles[i / 2] >> 4 * (i % 2) & 15; }

void ni_read_iq4_k(float d, const ni_block_iq4_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        scale[s] = d * (float)((nibble(in->low, s) | two_bits(in->high, s) << 4) - 32);
        for (int j = 0; j < 16; j++)
            q[j] = (int8_t)(ni_iq4[in->q[s / 2 * 16 + j] >> 4 * (s % 2) & 15] + NI_HIGHER_4 * bit(in->extra, s));
    }
}

/* In 32 bytes of q value j of 64 is the low nibble of byte j (j < 32), or the high one of byte j - 32. */
void ni_read_iq5_k(float d, const ni_block_iq5_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int c = s / 4, at = s % 2 * 16, upper = s / 2 % 2;
        scale[s] = d * (float)((nibble(in->low, s) | two_bits(in->high, s) << 4) - 32);
        for (int j = at; j < at + 16; j++) {
            const int place = (in->q[32 * c + j] >> 4 * upper & 15) | (in->fifth[j] >> (2 * c + upper) & 1) << 4;
            q[j - at] = (int8_t)(ni_iq5[place] + NI_HIGHER_5 * bit(in->extra, s));
        }
    }
}

void ni_read_iq6_k(float d, const ni_block_iq6_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int c = s / 4, at = s % 2 * 16, upper = s / 2 % 2;
        scale[s] = d * (float)(int8_t)in->sc[s];
        for (int j = at; j < at + 16; j++) {
            const int place = (in->q[32 * c + j] >> 4 * upper & 15) | (in->upper[c / 2 * 32 + j] >> (4 * (c % 2) + 2 * upper) & 3) << 4;
            q[j - at] = (int8_t)(ni_iq6[place] + NI_HIGHER_6 * bit(in->extra, s));
        }
    }
}

/* 128 values in 32 bytes: value j is in bits 2 (j / 32) of byte j % 32. */
void ni_read_iq3_k(float d, const ni_block_iq3_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int sc = 2 * nibble(in->sc, s) + 1, at = s % 2 * 16;
        scale[s] = d * (float)(bit(in->sign, s) ? -sc : sc);
        for (int j = at; j < at + 16; j++) {
            const int place = (in->q[s / 8 * 32 + j] >> 2 * (s / 2 % 4) & 3) | (in->third[j] >> s / 2 & 1) << 2;
            q[j - at] = (int8_t)(ni_iq3[place] + NI_HIGHER_3 * bit(in->extra, s));
        }
    }
}

void ni_read_iq2_k(float d, const ni_block_iq2_k *in, float *scale, int8_t *q) {
    for (int s = 0; s < 16; s++, q += 16) {
        const int at = s % 2 * 16;
        scale[s] = d * (float)(nibble(in->sc, s) - 8);
        for (int j = at; j < at + 16; j++)
            q[j - at] = (int8_t)(ni_iq2[in->q[s / 8 * 32 + j] >> 2 * (s / 2 % 4) & 3] + NI_HIGHER_2 * bit(in->extra, s));
    }
}

void ni_read_q6_0(float d, const ni_block_q6_0 *in, float *scale, int8_t *q) {
    scale[0] = d;
    for (int j = 0; j < 32; j++) {
        const int i = j % 16, upper = j / 16;
        q[j] = (int8_t)((in->q[i] >> 4 * upper & 15) + 16 * (in->upper[i % 8] >> (4 * (i / 8) + 2 * upper) & 3) - 32);
    }
}

/* The scale's lowest bit says which table. */
void ni_read_iq4_ks(float d, const ni_block_iq4_ks *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++, q += 32) {
        scale[s] = d * (float)((in->sc[s] & 254) - 127);
        for (int j = 0; j < 32; j++)
            q[j] = (int8_t)(ni_iq4[in->q[16 * s + j % 16] >> 4 * (j / 16) & 15] + NI_HIGHER_4 * (in->sc[s] & 1));
    }
}

void ni_read_iq5_ks(float d, const ni_block_iq5_ks *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++, q += 32) {
        scale[s] = d * (float)((in->sc[s] & 254) - 127);
        for (int j = 0; j < 32; j++) {
            const int place = (in->q[s / 2 * 32 + j] >> 4 * (s % 2) & 15) | (in->fifth[j] >> s & 1) << 4;
            q[j] = (int8_t)(ni_iq5[place] + NI_HIGHER_5 * (in->sc[s] & 1));
        }
    }
}

/* Of `extra`, the lower byte has the scales' fifth bits. */
void ni_read_iq3_ks(float d, const ni_block_iq3_ks *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++, q += 32) {
        scale[s] = d * (float)((in->sc[s % 4] >> 4 * (s / 4) & 15) + 16 * bit(in->extra, s) - 16);
        for (int j = 0; j < 32; j++) {
            const int place = (in->q[s / 4 * 32 + j] >> 2 * (s % 4) & 3) | (in->third[j] >> s & 1) << 2;
            q[j] = (int8_t)(ni_iq3[place] + NI_HIGHER_3 * bit(in->extra, 8 + s));
        }
    }
}

/* Here, the upper byte. */
void ni_read_iq2_ks(float d, const ni_block_iq2_ks *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++, q += 32) {
        scale[s] = d * (float)(nibble(in->sc, s) + 16 * bit(in->extra, 8 + s) - 16);
        for (int j = 0; j < 32; j++) q[j] = (int8_t)(ni_iq2[in->q[s / 4 * 32 + j] >> 2 * (s % 4) & 3] + NI_HIGHER_2 * bit(in->extra, s));
    }
}

void ni_read_iq2_kl(float d, const ni_block_iq2_kl *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++, q += 32) {
        scale[s] = d * (float)(((in->low[s % 4] >> 4 * (s / 4) & 15) | two_bits(in->high, s) << 4) - 32);
        for (int j = 0; j < 16; j++) {
            const int place = (in->q[s / 2 * 16 + j] >> 4 * (s % 2) & 15) | (in->fifth[j] >> s & 1) << 4;
            q[2 * j] = ni_iq2_first[place], q[2 * j + 1] = ni_iq2_second[place];
        }
    }
}

/* The upper fifteen bits of a word stand for the nibbles of four values: xor the same bits, shifted down by one.  The lowest bits of eight
 * words are a scale as IQ4_KS has it. */
void ni_read_iq4_kss(float d, const ni_block_iq4_kss *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++, q += 32) {
        int sc = 0;
        for (int i = 0; i < 8; i++) sc |= (in->q[16 * s + 2 * i] & 1) << i;
        scale[s] = d * (float)((sc & 254) - 127);
        for (int i = 0; i < 8; i++) {
            const unsigned word = ni_load_u16(in->q + 16 * s + 2 * i) & 0xfffe, nibbles = word ^ word >> 1;
            for (int j = 0; j < 4; j++) {   /* values 2i, 2i + 16, 2i + 1, 2i + 17 */
                const int value = ni_iq4[nibbles >> 4 * j & 15] + NI_HIGHER_4 * (sc & 1);
                q[2 * i + j / 2 + 16 * (j % 2)] = (int8_t)value;
            }
        }
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

/* The rows' heads, of which missing ones are zeros, and the blocks. */
static inline void pack_record(const uint8_t *src, size_t row_bytes, int rows, size_t head, size_t offset, size_t bytes, uint8_t *out) {
    const ni_blocks in = ni_blocks_at(src, row_bytes, rows, offset);
    for (int r = 0; r < NI_ROWS; r++)
        if (r < rows) memcpy(out + head * (size_t)r, src + row_bytes * (size_t)r, head);
        else memset(out + head * (size_t)r, 0, head);
    pack_blocks(&in, bytes, out + head * NI_ROWS);
}

#define DEFINE(name)                                                                                                            \
    enum { BLOCK_##name = NI_BLOCK_##name, HEAD_##name = NI_HEAD_##name };                                                      \
    void ni_pack_##name(const uint8_t *src, size_t row_bytes, int rows, int64_t k, uint8_t *dst) {                              \
        ni_record_##name *out = (ni_record_##name *)dst;                                                                        \
        for (int64_t b = 0; b < k / BLOCK_##name; b++) {                                                                        \
            const size_t offset = HEAD_##name + (size_t)b * sizeof(ni_block_##name);                                            \
            pack_record(src, row_bytes, rows, HEAD_##name, offset, sizeof(ni_block_##name), (uint8_t *)&out[b]);                \
        }                                                                                                                       \
    }                                                                                                                           \
    static inline void decode_##name(float d, const ni_block_##name *in, float *out) {                                          \
        float scale[16];                                                                                                        \
        int8_t q[256];                                                                                                          \
        ni_read_##name(d, in, scale, q);                                                                                        \
        multiply(scale, q, BLOCK_##name, NI_SUB_##name, out);                                                                   \
    }                                                                                                                           \
    void ni_decode_##name(const uint8_t *blocks, int64_t n_blocks, float *out) {                                                \
        const ni_block_##name *in = (const ni_block_##name *)(blocks + HEAD_##name);                                            \
        for (int64_t b = 0; b < n_blocks; b++) {                                                                                \
            const float d = ni_load_d(HEAD_##name ? blocks : (const uint8_t *)&in[b], HEAD_##name);                             \
            decode_##name(d, &in[b], out + b * BLOCK_##name);                                                                   \
        }                                                                                                                       \
    }                                                                                                                           \
    void ni_unpack_row_##name(const uint8_t *group, int r, int64_t k, float *out) {                                             \
        const ni_record_##name *in = (const ni_record_##name *)group;                                                           \
        for (int64_t b = 0; b < k / BLOCK_##name; b++) {                                                                        \
            ni_block_##name block;                                                                                              \
            const float d = ni_take_block((const uint8_t *)&in[b], r, HEAD_##name, sizeof block, (uint8_t *)&block);            \
            decode_##name(d, &block, out + b * BLOCK_##name);                                                                   \
        }                                                                                                                       \
    }
NI_IK_FORMATS(DEFINE)
