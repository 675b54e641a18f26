/* TQ1_0 and TQ2_0: 256 values of -1, 0, 1 (TQ2_0: or 2) with one scale.
 *
 * TQ2_0 has its bits where Q2_K has them.  TQ1_0 has base-3 digits, five in a byte: a byte of 256 stands for the fraction byte / 256, whose
 * next digit is what leaves the byte when it is multiplied by 3.  Digit n of byte m is value 32n + m (m < 32), 160 + 16n + m - 32 (m < 48),
 * or 240 + 4n + m - 48, of the last four bytes, which have four digits. */
#include "units.h"

/* Digit n of a byte. */
static inline int digit(int byte, int n) {
    for (; n > 0; n--) byte = byte * 3 & 0xff;
    return byte * 3 >> 8;
}

/* Where value k lies: the byte; *n: the digit. */
static inline int byte_of(int k, int *n) {
    if (k < 160) return *n = k / 32, k % 32;
    if (k < 240) return *n = (k - 160) / 16, 32 + k % 16;
    return *n = (k - 240) / 4, 48 + k % 4;
}

void ni_decode_tq1_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_tq1_0 *in = (const ni_block_tq1_0 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, out += 256) {
        const float d = ni_load_f16(in[b].d);
        for (int k = 0, n; k < 256; k++) {
            const int at = byte_of(k, &n);
            out[k] = d * (float)(digit(at < 48 ? in[b].q[at] : in[b].last[at - 48], n) - 1);
        }
    }
}

void ni_decode_tq2_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_tq2_0 *in = (const ni_block_tq2_0 *)blocks;
    for (int64_t b = 0; b < n_blocks; b++) {
        const float d = ni_load_f16(in[b].d);
        for (int u = 0; u < 8; u++, out += 32)
            for (int l = 0; l < 32; l++) out[l] = d * (float)((in[b].q[32 * (u / 4) + l] >> 2 * (u % 4) & 3) - 1);
    }
}

static inline void pack_tq1_0(const ni_blocks *in, ni_record_tq1_0 *out) {
    ni_interleave_u16(in, offsetof(ni_block_tq1_0, d), out->d);
    ni_interleave(in, offsetof(ni_block_tq1_0, q), 12, out->q);
    ni_fetch_next(in, offsetof(ni_block_tq1_0, last), 4);
    for (int r = 0; r < NI_ROWS; r++) memcpy(out->q[12] + 4 * r, in->row[r] + offsetof(ni_block_tq1_0, last), 4);
}

static inline void pack_tq2_0(const ni_blocks *in, ni_record_tq2_0 *out) {
    ni_interleave_u16(in, offsetof(ni_block_tq2_0, d), out->d);
    ni_pack_halves2(in, offsetof(ni_block_tq2_0, q), out->q);
}

NI_DEFINE_PACK(tq1_0)
NI_DEFINE_PACK(tq2_0)

void ni_unpack_row_tq1_0(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_tq1_0 *in = (const ni_record_tq1_0 *)group;
    for (int64_t b = 0; b < k / 256; b++, out += 256) {
        const float d = ni_f16_to_f32(in[b].d[r]);
        for (int i = 0, n; i < 256; i++) {
            const int at = byte_of(i, &n);
            out[i] = d * (float)(digit(in[b].q[at / 4][4 * r + at % 4], n) - 1);
        }
    }
}

void ni_unpack_row_tq2_0(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_tq2_0 *in = (const ni_record_tq2_0 *)group;
    for (int64_t i = 0; i < k; i += 32)
        for (int l = 0; l < 32; l++)
            *out++ = ni_f16_to_f32(in[i / 256].d[r]) * (float)(ni_unit2_value(in[i / 256].q[i / 32 % 8], r, l) - 1);
}
