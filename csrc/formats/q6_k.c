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

static inline void pack_q6_k(const uint8_t *const in[NI_ROWS], ni_record_q6_k *out) {
    ni_interleave_u16(in, offsetof(ni_block_q6_k, d), out->d);
    for (int r = 0; r < NI_ROWS; r++)
        for (int s = 0; s < 16; s++) out->sc[s][r] = (int8_t)in[r][offsetof(ni_block_q6_k, sc) + (size_t)s];
    ni_interleave(in, offsetof(ni_block_q6_k, q), 32, out->q);
    ni_interleave(in, offsetof(ni_block_q6_k, high), 16, out->high);
}

NI_DEFINE_PACK(q6_k, 256)

void ni_unpack_row_q6_k(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q6_k *in = (const ni_record_q6_k *)group;
    for (int64_t b = 0; b < k / 256; b++) {
        const float d = ni_f16_to_f32(in[b].d[r]);
        for (int quarter = 0; quarter < 8; quarter++, out += 32) {
            const int h = quarter / 4, t = quarter % 4;
            for (int l = 0; l < 32; l++) {
                const int byte = 4 * r + l % 4;
                const int low = in[b].q[16 * h + 8 * (t % 2) + l / 4][byte] >> 4 * (t / 2) & 15;
                const int high = in[b].high[8 * h + l / 4][byte] >> 2 * t & 3;
                out[l] = d * (float)in[b].sc[2 * quarter + l / 16][r] * (float)((low | high << 4) - 32);
            }
        }
    }
}
