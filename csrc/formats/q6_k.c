/* Q6_K: 256 values of 6 bits in 16 sub-blocks of 16, each with a signed 8-bit scale.
 *
 * Half h (128 values) has quarters t = 0..3 of 32 values.  Byte 64h + 32(t % 2) + l of `q` holds the low 4 bits of
 * value l of quarter t (low nibble for t < 2, else high); bits 2t, 2t + 1 of byte 32h + l of `high` are its upper bits.
 */
#include "pack.h"

void ni_decode_q6_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q6_k *in = (const ni_block_q6_k *)blocks;
    for (int64_t b = 0; b < n_blocks; b++) {
        const float d = ni_load_f16(in[b].d);
        for (int quarter = 0; quarter < 8; quarter++, out += 32) {
            const int h = quarter / 4, t = quarter % 4;
            const uint8_t *q = in[b].q + 64 * h + 32 * (t % 2), *high = in[b].high + 32 * h;
            const int8_t *sc = (const int8_t *)in[b].sc + 2 * quarter;
            const float scale[2] = {d * (float)sc[0], d * (float)sc[1]};
            for (int l = 0; l < 32; l++)
                out[l] = scale[l / 16] * (float)(((q[l] >> 4 * (t / 2) & 15) | (high[l] >> 2 * t & 3) << 4) - 32);
        }
    }
}

/* out[s][r] = scale s of row r: transposes dwords, then the bytes within four rows, then the dwords that those make up. */
static inline void interleave_scales(const ni_blocks *in, int8_t out[restrict 16][NI_ROWS]) {
    ni_vector sc[4];
    ni_interleave(in, offsetof(ni_block_q6_k, sc), 4, sc);
    for (int j = 0; j < 4; j++) {
        uint8_t bytes[4][16];
        ni_dwords x[4], y[4];
        for (int i = 0; i < 4; i++)
            for (int b = 0; b < 16; b++) bytes[i][b] = sc[j][16 * i + b % 4 * 4 + b / 4];
        memcpy(x, bytes, sizeof x);
        ni_transpose(x, y);
        memcpy(out[4 * j], y, sizeof y);
    }
}

/* Packs 16 values of quarter t to `first` and 16 of quarter t + 2 to `second`; the two quarters share the bytes of l and h.
 * l, h: [dword][four rows] of `q` and `high`.  odd: whether t is 1 (then its upper bits are bits 2, 3 of h) or 0. */
static inline __attribute__((always_inline)) void merge(const ni_dwords l[4][4], const ni_dwords h[4][4], const int odd,
                                                        ni_vector first[restrict 3], ni_vector second[restrict 3]) {
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++) {
            const ni_dwords last = j == 1 ? l[3][r] : j == 2 ? l[3][r] << 2 : odd ? h[3][r] : h[3][r] << 2;
            /* What comes above the low nibbles: for quarter t in the low nibbles, for t + 2 in the high ones. */
            const ni_dwords upper = ((odd ? h[j][r] >> 2 : h[j][r]) & 0x33333333) | (last & 0xcccccccc);
            const ni_dwords x = (l[j][r] & 0x0f0f0f0f) | (upper << 4 & 0xf0f0f0f0);
            const ni_dwords y = (l[j][r] >> 4 & 0x0f0f0f0f) | (upper & 0xf0f0f0f0);
            memcpy(first[j] + 16 * r, &x, 16);
            memcpy(second[j] + 16 * r, &y, 16);
        }
}

static inline void pack_q6_k(const ni_blocks *in, ni_record_q6_k *out) {
    ni_interleave_u16(in, offsetof(ni_block_q6_k, d), out->d);
    interleave_scales(in, out->sc);
    ni_dwords low[2][2][8][4], high[2][8][4];   /* by half, quarter, dword, four of the rows */
    ni_interleave(in, offsetof(ni_block_q6_k, q), 32, (ni_vector *)low);
    ni_interleave(in, offsetof(ni_block_q6_k, high), 16, (ni_vector *)high);
#pragma GCC unroll 8   /* for shifts by constants */
    for (int i = 0; i < 8; i++) {
        const int half = i / 4, t = i / 2 % 2, part = i % 2, s = 8 * half + 2 * t + part;
        merge(low[half][t] + 4 * part, high[half] + 4 * part, t, out->v[s], out->v[s + 4]);
    }
}

NI_DEFINE_PACK(q6_k)

void ni_unpack_row_q6_k(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q6_k *in = (const ni_record_q6_k *)group;
    for (int64_t b = 0; b < k / 256; b++) {
        const float d = ni_f16_to_f32(in[b].d[r]);
        for (int s = 0; s < 16; s++, out += 16) {
            const float scale = d * (float)in[b].sc[s][r];
            for (int l = 0; l < 4; l++) {
                const int v0 = in[b].v[s][0][4 * r + l], v1 = in[b].v[s][1][4 * r + l], v2 = in[b].v[s][2][4 * r + l];
                out[l] = scale * (float)((v0 & 63) - 32);
                out[l + 4] = scale * (float)((v1 & 63) - 32);
                out[l + 8] = scale * (float)((v2 & 63) - 32);
                out[l + 12] = scale * (float)((v0 >> 6 << 4 | v1 >> 6 << 2 | v2 >> 6) - 32);
            }
        }
    }
}
