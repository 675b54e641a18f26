/* Q8_0: 32 signed bytes with one scale. */
#include "pack.h"

void ni_decode_q8_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q8_0 *in = (const ni_block_q8_0 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 32) {
        const float d = ni_load_f16(in[b].d);
        for (int k = 0; k < 32; k++) out[k] = d * (float)(int8_t)in[b].q[k];
    }
}

static inline void pack_q8_0(const ni_blocks *in, ni_record_q8_0 *out) {
    ni_interleave_u16(in, offsetof(ni_block_q8_0, d), out->d);
    ni_interleave(in, offsetof(ni_block_q8_0, q), 8, out->q);
}

NI_DEFINE_PACK(q8_0)

void ni_unpack_row_q8_0(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q8_0 *in = (const ni_record_q8_0 *)group;
    for (int64_t b = 0; b < k / 32; b++, out += 32) {
        const float d = ni_f16_to_f32(in[b].d[r]);
        for (int j = 0; j < 32; j++) out[j] = d * (float)(int8_t)in[b].q[j / 4][4 * r + j % 4];
    }
}
