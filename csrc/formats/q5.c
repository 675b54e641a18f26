/* Q5_0 and Q5_1: 32 values of 5 bits.  The low 4 bits as in Q4_0; bit k of the word `high` is the fifth of value k. */
#include "pack.h"

static inline int low(const uint8_t q[16], int k) { return k < 16 ? q[k] & 15 : q[k - 16] >> 4; }

void ni_decode_q5_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q5_0 *in = (const ni_block_q5_0 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 32) {
        const float d = ni_load_f16(in[b].d);
        const uint32_t high = ni_load_u32(in[b].high);
        for (int k = 0; k < 32; k++) out[k] = d * (float)((low(in[b].q, k) | (int)(high >> k & 1) << 4) - 16);
    }
}

void ni_decode_q5_1(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_q5_1 *in = (const ni_block_q5_1 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 32) {
        const float d = ni_load_f16(in[b].d), m = ni_load_f16(in[b].m);
        const uint32_t high = ni_load_u32(in[b].high);
        for (int k = 0; k < 32; k++) out[k] = d * (float)(low(in[b].q, k) | (int)(high >> k & 1) << 4) + m;
    }
}

/* All rows are gathered before the first is worked on, so that the compiler may take several at a time. */
static inline void interleave_high(const ni_blocks *in, size_t offset, uint8_t *restrict out) {
    uint32_t u[NI_ROWS];
    ni_fetch_next(in, offset, 4);
    for (int r = 0; r < NI_ROWS; r++) u[r] = ni_load_u32(in->row[r] + offset);
    for (int r = 0; r < NI_ROWS; r++) u[r] = ni_transpose_bits(u[r]);
    memcpy(out, u, sizeof u);
}

static inline void pack_q5_0(const ni_blocks *in, ni_record_q5_0 *out) {
    ni_interleave_u16(in, offsetof(ni_block_q5_0, d), out->d);
    interleave_high(in, offsetof(ni_block_q5_0, high), out->high);
    ni_interleave(in, offsetof(ni_block_q5_0, q), 4, out->q);
}

static inline void pack_q5_1(const ni_blocks *in, ni_record_q5_1 *out) {
    ni_interleave_u16(in, offsetof(ni_block_q5_1, d), out->d);
    ni_interleave_u16(in, offsetof(ni_block_q5_1, m), out->m);
    interleave_high(in, offsetof(ni_block_q5_1, high), out->high);
    ni_interleave(in, offsetof(ni_block_q5_1, q), 4, out->q);
}

NI_DEFINE_PACK(q5_0)
NI_DEFINE_PACK(q5_1)

/* Value k of row r, from the vectors of a record. */
static inline int value(const ni_vector high, const ni_vector q[4], int r, int k) {
    const int byte = 4 * r + k % 4, g = k / 4;
    return (g < 4 ? q[g][byte] & 15 : q[g - 4][byte] >> 4) | (high[byte] >> g & 1) << 4;
}

void ni_unpack_row_q5_0(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q5_0 *in = (const ni_record_q5_0 *)group;
    for (int64_t b = 0; b < k / 32; b++, out += 32) {
        const float d = ni_f16_to_f32(in[b].d[r]);
        for (int j = 0; j < 32; j++) out[j] = d * (float)(value(in[b].high, in[b].q, r, j) - 16);
    }
}

void ni_unpack_row_q5_1(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_q5_1 *in = (const ni_record_q5_1 *)group;
    for (int64_t b = 0; b < k / 32; b++, out += 32) {
        const float d = ni_f16_to_f32(in[b].d[r]), m = ni_f16_to_f32(in[b].m[r]);
        for (int j = 0; j < 32; j++) out[j] = d * (float)value(in[b].high, in[b].q, r, j) + m;
    }
}
