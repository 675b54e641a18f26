/* Internal to formats/: the loop that every quantised format packs with.
 *
 * Packing runs once, at load, at the speed of memory; what it does is move dwords, so plain loops do.
 */
#ifndef NI_PACK_H
#define NI_PACK_H
#include "records.h"

/* Block b of each row; rows that are missing read zeros. */
static inline void ni_rows_at(const uint8_t *src, size_t row_bytes, int rows, size_t offset,
                              const uint8_t *in[NI_ROWS]) {
    static const uint8_t zeros[sizeof(ni_block_q6_k)];   /* as large as the largest block */
    for (int r = 0; r < NI_ROWS; r++) in[r] = r < rows ? src + (size_t)r * row_bytes + offset : zeros;
}

/* out[j], row r = dword j at byte `offset` of the block of row r. */
static inline void ni_interleave(const uint8_t *const in[NI_ROWS], size_t offset, int n, ni_vector *restrict out) {
    for (int j = 0; j < n; j++)
        for (int r = 0; r < NI_ROWS; r++) memcpy(out[j] + 4 * r, in[r] + offset + 4 * (size_t)j, 4);
}

static inline void ni_interleave_u16(const uint8_t *const in[NI_ROWS], size_t offset, uint16_t out[restrict NI_ROWS]) {
    for (int r = 0; r < NI_ROWS; r++) out[r] = ni_load_u16(in[r] + offset);
}

/* Defines ni_pack_<name> from pack_<name>, which packs one record. */
#define NI_DEFINE_PACK(name, n_values) \
    void ni_pack_##name(const uint8_t *src, size_t row_bytes, int rows, int64_t k, uint8_t *dst) { \
        ni_record_##name *record = (ni_record_##name *)dst; \
        const uint8_t *in[NI_ROWS]; \
        for (int64_t b = 0; b < k / (n_values); b++) { \
            ni_rows_at(src, row_bytes, rows, (size_t)b * sizeof(ni_block_##name), in); \
            pack_##name(in, &record[b]); \
        } \
    }
#endif
