/* Q2_K: 256 values of 2 bits in 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum.
 *
 * Half h (128 values) has quarters t = 0..3 of 32 values: bits 2t, 2t + 1 of byte 32h + l of `q` are value l of quarter t.  Byte s of
 * `scales` has the scale of sub-block s in its low nibble, the minimum in its high one. */
#include "units.h"

void ni_decode_q2_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q2_k *in = (const ni_block_q2_k *)blocks;
    for (int64_t b = 0; b < n_blocks; b++) {
        const float d = ni_load_f16(in[b].d), dmin = ni_load_f16(in[b].dmin);
        for (int s = 0; s < 16; s++, out += 16) {
            const float scale = d * (float)(in[b].scales[s] & 15), min = dmin * (float)(in[b].scales[s] >> 4);
            const uint8_t *q = in[b].q + 32 * (s / 8) + 16 * (s % 2);
            for (int l = 0; l < 16; l++) out[l] = scale * (float)(q[l] >> s / 2 % 4 * 2 & 3) - min;
        }
    }
}

static inline void pack_q2_k(const ni_blocks *in, ni_record_q2_k *out) {
    ni_interleave_u16(in, offsetof(ni_block_q2_k, d), out->d);
    ni_interleave_u16(in, offsetof(ni_block_q2_k, dmin), out->dmin);
    for (int u = 0; u < 8; u++) ni_interleave_u16(in, offsetof(ni_block_q2_k, scales) + 2 * (size_t)u, out->s[u]);
    ni_pack_halves2(in, offsetof(ni_block_q2_k, q), out->q);
}

NI_DEFINE_PACK(q2_k)

void ni_unpack_row_q2_k(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q2_k *in = (const ni_record_q2_k *)group;
    for (int64_t b = 0; b < k / 256; b++) {
        const float d = ni_f16_to_f32(in[b].d[r]), dmin = ni_f16_to_f32(in[b].dmin[r]);
        for (int s = 0; s < 16; s++, out += 16) {
            const int both = in[b].s[s / 2][r] >> 8 * (s % 2);
            const float scale = d * (float)(both & 15), min = dmin * (float)(both >> 4 & 15);
            for (int l = 0; l < 16; l++) out[l] = scale * (float)ni_unit2_value(in[b].q[s / 2], r, 16 * (s % 2) + l) - min;
        }
    }
}
