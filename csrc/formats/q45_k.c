/* Q4_K and Q5_K: 256 values in 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.
 *
 * Byte 32c + j of `q` holds value j of sub-block 2c (low nibble) and of sub-block 2c + 1 (high); bit s of byte j of
 * `high` is the fifth bit of value j of sub-block s.
 */
#include "pack.h"

/* Widens the 12 bytes of packed scales to bytes: words 0, 1: scales of sub-blocks 0-3, 4-7; words 2, 3: minimums.
 * Scales 0-3 and minimums 0-3 are the low 6 bits of bytes 0-3 and 4-7; the upper 2 bits of those bytes top the
 * nibbles of bytes 8-11, which hold scales 4-7 (low) and minimums 4-7 (high). */
static inline void widen_scales(const uint8_t packed[12], uint32_t out[4]) {
    const uint32_t a = ni_load_u32(packed), b = ni_load_u32(packed + 4), c = ni_load_u32(packed + 8);
    out[0] = a & 0x3f3f3f3fu;
    out[1] = (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
    out[2] = b & 0x3f3f3f3fu;
    out[3] = (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u);
}

void ni_decode_q4_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q4_k *in = (const ni_block_q4_k *)blocks;
    for (int64_t b = 0; b < n_blocks; b++) {
        const float d = ni_load_f16(in[b].d), dmin = ni_load_f16(in[b].dmin);
        uint32_t words[4];
        uint8_t sc[16];   /* 8 scales, 8 minimums */
        widen_scales(in[b].scales, words);
        memcpy(sc, words, 16);
        for (int s = 0; s < 8; s++, out += 32) {
            const float scale = d * (float)sc[s], min = dmin * (float)sc[8 + s];
            const uint8_t *q = in[b].q + 32 * (s / 2);
            for (int j = 0; j < 32; j++) out[j] = scale * (float)(q[j] >> 4 * (s % 2) & 15) - min;
        }
    }
}

void ni_decode_q5_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q5_k *in = (const ni_block_q5_k *)blocks;
    for (int64_t b = 0; b < n_blocks; b++) {
        const float d = ni_load_f16(in[b].d), dmin = ni_load_f16(in[b].dmin);
        uint32_t words[4];
        uint8_t sc[16];
        widen_scales(in[b].scales, words);
        memcpy(sc, words, 16);
        for (int s = 0; s < 8; s++, out += 32) {
            const float scale = d * (float)sc[s], min = dmin * (float)sc[8 + s];
            const uint8_t *q = in[b].q + 32 * (s / 2);
            for (int j = 0; j < 32; j++)
                out[j] = scale * (float)((q[j] >> 4 * (s % 2) & 15) | (in[b].high[j] >> s & 1) << 4) - min;
        }
    }
}

static inline void interleave_scales(const ni_blocks *in, size_t offset, ni_scale_pair out[restrict 8]) {
    ni_fetch_next(in, offset, 12);
    for (int r = 0; r < NI_ROWS; r++) {
        uint32_t words[4];
        widen_scales(in->row[r] + offset, words);
        for (int s = 0; s < 8; s++) {
            out[s].sc[r] = (uint8_t)(words[s / 4] >> 8 * (s % 4));
            out[s].mn[r] = (uint8_t)(words[2 + s / 4] >> 8 * (s % 4));
        }
    }
}

static inline void pack_q4_k(const ni_blocks *in, ni_record_q4_k *out) {
    ni_interleave_u16(in, offsetof(ni_block_q4_k, d), out->d);
    ni_interleave_u16(in, offsetof(ni_block_q4_k, dmin), out->dmin);
    interleave_scales(in, offsetof(ni_block_q4_k, scales), out->s);
    ni_interleave(in, offsetof(ni_block_q4_k, q), 32, out->q);
}

static inline void pack_q5_k(const ni_blocks *in, ni_record_q5_k *out) {
    ni_interleave_u16(in, offsetof(ni_block_q5_k, d), out->d);
    ni_interleave_u16(in, offsetof(ni_block_q5_k, dmin), out->dmin);
    interleave_scales(in, offsetof(ni_block_q5_k, scales), out->s);
    ni_interleave(in, offsetof(ni_block_q5_k, high), 8, out->high);
    ni_interleave(in, offsetof(ni_block_q5_k, q), 32, out->q);
}

NI_DEFINE_PACK(q4_k)
NI_DEFINE_PACK(q5_k)

void ni_unpack_row_q4_k(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q4_k *in = (const ni_record_q4_k *)group;
    for (int64_t b = 0; b < k / 256; b++) {
        const float d = ni_f16_to_f32(in[b].d[r]), dmin = ni_f16_to_f32(in[b].dmin[r]);
        for (int s = 0; s < 8; s++, out += 32) {
            const float scale = d * (float)in[b].s[s].sc[r], min = dmin * (float)in[b].s[s].mn[r];
            for (int j = 0; j < 32; j++) {
                const int q = in[b].q[8 * (s / 2) + j / 4][4 * r + j % 4] >> 4 * (s % 2) & 15;
                out[j] = scale * (float)q - min;
            }
        }
    }
}

void ni_unpack_row_q5_k(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q5_k *in = (const ni_record_q5_k *)group;
    for (int64_t b = 0; b < k / 256; b++) {
        const float d = ni_f16_to_f32(in[b].d[r]), dmin = ni_f16_to_f32(in[b].dmin[r]);
        for (int s = 0; s < 8; s++, out += 32) {
            const float scale = d * (float)in[b].s[s].sc[r], min = dmin * (float)in[b].s[s].mn[r];
            for (int j = 0; j < 32; j++) {
                const int low = in[b].q[8 * (s / 2) + j / 4][4 * r + j % 4] >> 4 * (s % 2) & 15;
                const int high = in[b].high[j / 4][4 * r + j % 4] >> s & 1;
                out[j] = scale * (float)(low | high << 4) - min;
            }
        }
    }
}
