/* IQ4_NL, IQ4_XS, MXFP4 and NVFP4: quants of 4 bits that stand for the values of a table.
 *
 * In 16 bytes of a block (8 with NVFP4) byte j holds value j (low nibble) and value j + 16 (j + 8). */
#include "pack.h"
#include "table4.h"

/* n values (32 or 16) of n / 2 bytes. */
static inline void look_up(const uint8_t *q, int n, float scale, const int8_t table[16], float *out) {
    for (int j = 0; j < n / 2; j++) {
        out[j] = scale * (float)table[q[j] & 15];
        out[j + n / 2] = scale * (float)table[q[j] >> 4];
    }
}

/* The same of row r of n / 8 packed vectors. */
static inline void look_up_row(const ni_vector *q, int r, int n, float scale, const int8_t table[16], float *out) {
    uint8_t bytes[16];
    for (int j = 0; j < n / 8; j++) memcpy(bytes + 4 * j, q[j] + 4 * r, 4);
    look_up(bytes, n, scale, table, out);
}

/* Scale of sub-block s of IQ4_XS: 4 bits in `low`, 2 in `high`, minus 32. */
static inline int scale_of(const ni_block_iq4_xs *in, int s) {
    return ((in->low[s / 2] >> 4 * (s % 2) & 15) | (ni_load_u16(in->high) >> 2 * s & 3) << 4) - 32;
}

void ni_decode_iq4_nl(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq4_nl *in = (const ni_block_iq4_nl *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 32) look_up(in[b].q, 32, ni_load_f16(in[b].d), ni_iq4, out);
}

void ni_decode_iq4_xs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq4_xs *in = (const ni_block_iq4_xs *)blocks;
    for (int64_t b = 0; b < n_blocks; b++)
        for (int s = 0; s < 8; s++, out += 32)
            look_up(in[b].q + 16 * s, 32, ni_load_f16(in[b].d) * (float)scale_of(&in[b], s), ni_iq4, out);
}

void ni_decode_mxfp4(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_mxfp4 *in = (const ni_block_mxfp4 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 32) look_up(in[b].q, 32, ni_e8m0_half(in[b].e), ni_fp4, out);
}

void ni_decode_nvfp4(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_nvfp4 *in = (const ni_block_nvfp4 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++)
        for (int s = 0; s < 4; s++, out += 16) look_up(in[b].q + 8 * s, 16, ni_ue4m3_half(in[b].sc[s]), ni_fp4, out);
}

static inline void pack_iq4_nl(const ni_blocks *in, ni_record_iq4_nl *out) {
    ni_interleave_u16(in, offsetof(ni_block_iq4_nl, d), out->d);
    ni_interleave(in, offsetof(ni_block_iq4_nl, q), 4, out->q);
}

static inline void pack_iq4_xs(const ni_blocks *in, ni_record_iq4_xs *out) {
    ni_interleave_u16(in, offsetof(ni_block_iq4_xs, d), out->d);
    ni_fetch_next(in, offsetof(ni_block_iq4_xs, high), 6);
    for (int r = 0; r < NI_ROWS; r++)
        for (int s = 0; s < 8; s++) out->s[s].sc[r] = (int8_t)scale_of((const ni_block_iq4_xs *)in->row[r], s);
    for (int s = 0; s < 8; s++) ni_interleave(in, offsetof(ni_block_iq4_xs, q) + 16 * (size_t)s, 4, out->s[s].q);
}

static inline void pack_mxfp4(const ni_blocks *in, ni_record_mxfp4 *out) {
    ni_fetch_next(in, offsetof(ni_block_mxfp4, e), 1);
    for (int r = 0; r < NI_ROWS; r++) out->e[r] = in->row[r][offsetof(ni_block_mxfp4, e)];
    ni_interleave(in, offsetof(ni_block_mxfp4, q), 4, out->q);
}

static inline void pack_nvfp4(const ni_blocks *in, ni_record_nvfp4 *out) {
    ni_fetch_next(in, offsetof(ni_block_nvfp4, sc), 4);
    for (int r = 0; r < NI_ROWS; r++)
        for (int s = 0; s < 4; s++) {
            const uint8_t sc = ((const ni_block_nvfp4 *)in->row[r])->sc[s];
            out->sc[s][r] = sc == 0x7f ? 0 : sc;
        }
    ni_interleave(in, offsetof(ni_block_nvfp4, q), 8, out->q[0]);
}

NI_DEFINE_PACK(iq4_nl)
NI_DEFINE_PACK(iq4_xs)
NI_DEFINE_PACK(mxfp4)
NI_DEFINE_PACK(nvfp4)

void ni_unpack_row_iq4_nl(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq4_nl *in = (const ni_record_iq4_nl *)group;
    for (int64_t b = 0; b < k / 32; b++, out += 32) look_up_row(in[b].q, r, 32, ni_f16_to_f32(in[b].d[r]), ni_iq4, out);
}

void ni_unpack_row_iq4_xs(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq4_xs *in = (const ni_record_iq4_xs *)group;
    for (int64_t b = 0; b < k / 256; b++)
        for (int s = 0; s < 8; s++, out += 32)
            look_up_row(in[b].s[s].q, r, 32, ni_f16_to_f32(in[b].d[r]) * (float)in[b].s[s].sc[r], ni_iq4, out);
}

void ni_unpack_row_mxfp4(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_mxfp4 *in = (const ni_record_mxfp4 *)group;
    for (int64_t b = 0; b < k / 32; b++, out += 32) look_up_row(in[b].q, r, 32, ni_e8m0_half(in[b].e[r]), ni_fp4, out);
}

void ni_unpack_row_nvfp4(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_nvfp4 *in = (const ni_record_nvfp4 *)group;
    for (int64_t b = 0; b < k / 64; b++)
        for (int s = 0; s < 4; s++, out += 16) look_up_row(in[b].q[s], r, 16, ni_ue4m3_half(in[b].sc[s][r]), ni_fp4, out);
}
