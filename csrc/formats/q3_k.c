/* Q3_K: 256 values of 3 bits in 16 sub-blocks of 16, each with a 6-bit scale.
 *
 * Half h (128 values) has quarters t = 0..3 of 32 values: bits 2t, 2t + 1 of byte 32h + l of `q` are the low bits of value l of quarter
 * t; bit 4h + t of byte l of `high` is its third.  Bytes 0-7 of `scales` hold the low nibbles of scales 0-7 (low) and 8-15 (high); bits
 * 2c, 2c + 1 of byte 8 + i top scale 4c + i. */
#include "pack.h"

void ni_decode_q3_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q3_k *in = (const ni_block_q3_k *)blocks;
    for (int64_t b = 0; b < n_blocks; b++) {
        const float d = ni_load_f16(in[b].d);
        for (int s = 0; s < 16; s++, out += 16) {
            const int unit = s / 2, sc = (in[b].scales[s % 8] >> 4 * (s / 8) & 15) | (in[b].scales[8 + s % 4] >> 2 * (s / 4) & 3) << 4;
            const float scale = d * (float)(sc - 32);
            const uint8_t *q = in[b].q + 32 * (unit / 4) + 16 * (s % 2), *high = in[b].high + 16 * (s % 2);
            for (int l = 0; l < 16; l++)
                out[l] = scale * (float)(((q[l] >> 2 * (unit % 4) & 3) | (high[l] >> unit & 1) << 2) - 4);
        }
    }
}

/* Four scales are a dword already: the file's order within a line is ours. */
static inline void interleave_scales(const ni_blocks *in, ni_record_q3_k *out) {
    ni_fetch_next(in, offsetof(ni_block_q3_k, scales), 12);
    for (int r = 0; r < NI_ROWS; r++) {
        const uint8_t *scales = in->row[r] + offsetof(ni_block_q3_k, scales);
        const uint32_t a = ni_load_u32(scales), b = ni_load_u32(scales + 4);
        const uint32_t words[3] = {(a & 0x0f0f0f0fu) | (b & 0x0f0f0f0fu) << 4, (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u),
                                   ni_load_u32(scales + 8)};
        uint8_t *const to[3] = {out->low[0], out->low[1], out->upper};
        for (int i = 0; i < 3; i++) {
            const uint16_t first = (uint16_t)words[i], second = (uint16_t)(words[i] >> 16);
            memcpy(to[i] + 2 * r, &first, 2);
            memcpy(to[i] + 32 + 2 * r, &second, 2);
        }
    }
}

static inline void pack_q3_k(const ni_blocks *in, ni_record_q3_k *out) {
    ni_dwords low[2][8][4], high[8][4];   /* by half, dword, four of the rows */
    ni_interleave_u16(in, offsetof(ni_block_q3_k, d), out->d);
    interleave_scales(in, out);
    ni_interleave(in, offsetof(ni_block_q3_k, q), 16, (ni_vector *)low);
    ni_interleave(in, offsetof(ni_block_q3_k, high), 8, (ni_vector *)high);
#pragma GCC unroll 8   /* for shifts by constants */
    for (int u = 0; u < 8; u++)
        for (int r = 0; r < 4; r++) {
            ni_dwords kg[8];
            for (int g = 0; g < 8; g++)
                kg[g] = (low[u / 4][g][r] >> 2 * (u % 4) & 0x03030303) | (high[g][r] >> u & 0x01010101) << 2;
            const ni_dwords last[3] = {(kg[3] & 0x03030303) << 6, (kg[7] & 0x03030303) << 6,
                                       (kg[3] & 0x04040404) << 4 | (kg[7] & 0x04040404) << 5};
            for (int j = 0; j < 3; j++) {
                const ni_dwords v = kg[j] | kg[j + 4] << 3 | last[j];
                memcpy(out->v[u][j] + 16 * r, &v, 16);
            }
        }
}

NI_DEFINE_PACK(q3_k)

void ni_unpack_row_q3_k(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q3_k *in = (const ni_record_q3_k *)group;
    for (int64_t b = 0; b < k / 256; b++) {
        const float d = ni_f16_to_f32(in[b].d[r]);
        for (int s = 0; s < 16; s++, out += 16) {
            const int c = s / 4, e = s % 2, at = 32 * (s / 2 % 2) + 2 * r + e;
            const int sc = (in[b].low[c / 2][at] >> 4 * (c % 2) & 15) | (in[b].upper[at] >> 2 * c & 3) << 4;
            const float scale = d * (float)(sc - 32);
            const ni_vector *v = in[b].v[s / 2];
            for (int l = 0; l < 16; l++) {
                const int byte = 4 * r + l % 4, g = l / 4;
                const int q = g < 3 ? v[g][byte] >> 3 * e & 7 : v[e][byte] >> 6 | (v[2][byte] >> (6 + e) & 1) << 2;
                out[l] = scale * (float)(q - 4);
            }
        }
    }
}
