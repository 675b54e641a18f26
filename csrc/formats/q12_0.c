/* Q1_0 and Q2_0: 128 values of 1 bit, or 64 of 2 bits, one after the other from the lowest bit on, with one scale. */
#include "units.h"

void ni_decode_q1_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q1_0 *in = (const ni_block_q1_0 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 128) {
        const float d = ni_load_f16(in[b].d);
        for (int k = 0; k < 128; k++) out[k] = d * (float)(2 * (in[b].q[k / 8] >> k % 8 & 1) - 1);
    }
}

void ni_decode_q2_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q2_0 *in = (const ni_block_q2_0 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 64) {
        const float d = ni_load_f16(in[b].d);
        for (int k = 0; k < 64; k++) out[k] = d * (float)((in[b].q[k / 4] >> k % 4 * 2 & 3) - 1);
    }
}

static inline void pack_q1_0(const ni_blocks *in, ni_record_q1_0 *out) {
    uint32_t q[4 * NI_ROWS];   /* by unit and row */
    ni_interleave_u16(in, offsetof(ni_block_q1_0, d), out->d);
    ni_interleave(in, offsetof(ni_block_q1_0, q), 4, (ni_vector *)q);
    for (int i = 0; i < 4 * NI_ROWS; i++) q[i] = ni_transpose_bits(q[i]);
    memcpy(out->q, q, sizeof q);
}

/* Exchanges the bits of `mask` with those `shift` above them, in every dword. */
static inline ni_dwords swap(ni_dwords u, uint32_t mask, int shift) {
    const ni_dwords t = (u ^ u >> shift) & mask;
    return u ^ t ^ t << shift;
}

/* The file's bytes are k-groups.  A vector of a unit holds four of them, kg 2j, 2j + 4, 2j + 1, 2j + 5, as bytes whose bit pairs are
 * values of k; a transposition makes them bit pairs whose bytes are values of k. */
static inline void pack_q2_0(const ni_blocks *in, ni_record_q2_0 *out) {
    ni_dwords q[4][4];   /* by dword, four of the rows */
    ni_interleave_u16(in, offsetof(ni_block_q2_0, d), out->d);
    ni_interleave(in, offsetof(ni_block_q2_0, q), 4, (ni_vector *)q);
    for (int u = 0; u < 2; u++)
        for (int r = 0; r < 4; r++) {
            const ni_dwords a = q[2 * u][r], b = q[2 * u + 1][r];
            for (int j = 0; j < 2; j++) {
                const ni_dwords x = a >> 16 * j, y = b >> 16 * j;
                ni_dwords v = (x & 0xff) | (y & 0xff) << 8 | (x & 0xff00) << 8 | (y & 0xff00) << 16;
                v = swap(v, 0x00cc00cc, 6);    /* byte and bit pair, their low index bits */
                v = swap(v, 0x0000f0f0, 12);   /* their high ones */
                memcpy(out->q[u][j] + 16 * r, &v, 16);
            }
        }
}

NI_DEFINE_PACK(q1_0)
NI_DEFINE_PACK(q2_0)

void ni_unpack_row_q1_0(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q1_0 *in = (const ni_record_q1_0 *)group;
    for (int64_t i = 0; i < k; i++) {
        const int l = (int)(i % 32);
        out[i] = ni_f16_to_f32(in[i / 128].d[r]) * (float)(2 * (in[i / 128].q[i / 32 % 4][4 * r + l % 4] >> l / 4 & 1) - 1);
    }
}

void ni_unpack_row_q2_0(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q2_0 *in = (const ni_record_q2_0 *)group;
    for (int64_t i = 0; i < k; i += 32)
        for (int l = 0; l < 32; l++)
            *out++ = ni_f16_to_f32(in[i / 64].d[r]) * (float)(ni_unit2_value(in[i / 64].q[i / 32 % 2], r, l) - 1);
}
