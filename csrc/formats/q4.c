/* Q4_0 and Q4_1: 32 values of 4 bits.  Byte j of a block holds value j (low nibble) and value j + 16 (high). */
#include "pack.h"

void ni_decode_q4_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q4_0 *in = (const ni_block_q4_0 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 32) {
        const float d = ni_load_f16(in[b].d);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((in[b].q[j] & 15) - 8);
            out[j + 16] = d * (float)((in[b].q[j] >> 4) - 8);
        }
    }
}

void ni_decode_q4_1(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q4_1 *in = (const ni_block_q4_1 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 32) {
        const float d = ni_load_f16(in[b].d), m = ni_load_f16(in[b].m);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(in[b].q[j] & 15) + m;
            out[j + 16] = d * (float)(in[b].q[j] >> 4) + m;
        }
    }
}

static inline void pack_q4_0(const ni_blocks *in, ni_record_q4_0 *out) {
    ni_interleave_u16(in, offsetof(ni_block_q4_0, d), out->d);
    ni_interleave(in, offsetof(ni_block_q4_0, q), 4, out->q);
}

static inline void pack_q4_1(const ni_blocks *in, ni_record_q4_1 *out) {
    ni_interleave_u16(in, offsetof(ni_block_q4_1, d), out->d);
    ni_interleave_u16(in, offsetof(ni_block_q4_1, m), out->m);
    ni_interleave(in, offsetof(ni_block_q4_1, q), 4, out->q);
}

NI_DEFINE_PACK(q4_0)
NI_DEFINE_PACK(q4_1)

void ni_unpack_row_q4_0(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q4_0 *in = (const ni_record_q4_0 *)group;
    for (int64_t b = 0; b < k / 32; b++, out += 32) {
        const float d = ni_f16_to_f32(in[b].d[r]);
        for (int j = 0; j < 16; j++) {
            const int q = in[b].q[j / 4][4 * r + j % 4];
            out[j] = d * (float)((q & 15) - 8);
            out[j + 16] = d * (float)((q >> 4) - 8);
        }
    }
}

void ni_unpack_row_q4_1(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q4_1 *in = (const ni_record_q4_1 *)group;
    for (int64_t b = 0; b < k / 32; b++, out += 32) {
        const float d = ni_f16_to_f32(in[b].d[r]), m = ni_f16_to_f32(in[b].m[r]);
        for (int j = 0; j < 16; j++) {
            const int q = in[b].q[j / 4][4 * r + j % 4];
            out[j] = d * (float)(q & 15) + m;
            out[j + 16] = d * (float)(q >> 4) + m;
        }
    }
}
