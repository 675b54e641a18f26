/* Internal to formats/: what quantised formats are packed with.
 *
 * Packing runs once, at load, and should cost little more than a copy.  Most of it is the transposing of dwords, written in the
 * compiler's own vectors, which every target has.
 */
#ifndef NI_PACK_H
#define NI_PACK_H
#include "records.h"

/* The blocks of sixteen rows that become one record.
 *
 * Sixteen rows are more streams than the hardware fetches ahead.  But the sixteen rows that follow are one stretch of the file, and a
 * record stands for a share of it as long as its own blocks.  While a record is packed its share is asked for, little by little: with
 * each part of the blocks that is read, as many bytes as were read. */
typedef struct {
    const uint8_t *row[NI_ROWS];
    const uint8_t *next;   /* the record's share of the next sixteen rows */
} ni_blocks;

typedef union {
#define NI_FORMAT(NAME, name, ...) ni_block_##name name;
#include "formats.def"
#undef NI_FORMAT
} ni_any_block;

/* Rows that are missing read zeros. */
static inline ni_blocks ni_blocks_at(const uint8_t *src, size_t row_bytes, int rows, size_t offset) {
    static const uint8_t zeros[sizeof(ni_any_block)];
    ni_blocks in = {.next = src + NI_ROWS * (row_bytes + offset)};
    for (int r = 0; r < NI_ROWS; r++) in.row[r] = r < rows ? src + (size_t)r * row_bytes + offset : zeros;
    return in;
}

static inline void ni_fetch_next(const ni_blocks *in, size_t offset, size_t bytes) {
    ni_fetch(in->next + NI_ROWS * offset, NI_ROWS * bytes);
}

typedef uint32_t ni_dwords __attribute__((vector_size(16)));
#if defined(__clang__)
#define NI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else   /* gcc has __builtin_shufflevector since version 12 only */
#define NI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ni_dwords){__VA_ARGS__})
#endif

/* y[j] lane i = x[i] lane j. */
static inline void ni_transpose(const ni_dwords x[4], ni_dwords y[4]) {
    const ni_dwords low01 = NI_SHUFFLE(x[0], x[1], 0, 4, 1, 5), high01 = NI_SHUFFLE(x[0], x[1], 2, 6, 3, 7);
    const ni_dwords low23 = NI_SHUFFLE(x[2], x[3], 0, 4, 1, 5), high23 = NI_SHUFFLE(x[2], x[3], 2, 6, 3, 7);
    y[0] = NI_SHUFFLE(low01, low23, 0, 1, 4, 5), y[1] = NI_SHUFFLE(low01, low23, 2, 3, 6, 7);
    y[2] = NI_SHUFFLE(high01, high23, 0, 1, 4, 5), y[3] = NI_SHUFFLE(high01, high23, 2, 3, 6, 7);
}

/* out[j], row r = dword j at byte `offset` of the block of row r, in tiles of 4 rows by 4 dwords.  n % 4 == 0. */
static inline void ni_interleave(const ni_blocks *in, size_t offset, int n, ni_vector *restrict out) {
    for (int j = 0; j < n; j += 4) {
        ni_fetch_next(in, offset + 4 * (size_t)j, 16);
        for (int r = 0; r < NI_ROWS; r += 4) {
            ni_dwords x[4], y[4];
            for (int i = 0; i < 4; i++) memcpy(&x[i], in->row[r + i] + offset + 4 * (size_t)j, 16);
            ni_transpose(x, y);
            for (int i = 0; i < 4; i++) memcpy(out[j + i] + 4 * r, &y[i], 16);
        }
    }
}

static inline void ni_interleave_u16(const ni_blocks *in, size_t offset, uint16_t out[restrict NI_ROWS]) {
    ni_fetch_next(in, offset, 2);
    for (int r = 0; r < NI_ROWS; r++) out[r] = ni_load_u16(in->row[r] + offset);
}

/* Exchanges the bits of `mask` with those `shift` above them. */
static inline uint32_t ni_swap_bits(uint32_t u, uint32_t mask, int shift) {
    const uint32_t t = (u ^ u >> shift) & mask;
    return u ^ t ^ t << shift;
}

/* Moves bit 4g + b to bit 8b + g: the index (g2 g1 g0 b1 b0) turns into (b1 b0 g2 g1 g0), by exchanges of two index
 * bits at a time. */
static inline uint32_t ni_transpose_bits(uint32_t u) {
    u = ni_swap_bits(u, 0x00aa00aau, 7);      /* exchanges index bits 0 and 3 */
    u = ni_swap_bits(u, 0x0000ccccu, 14);     /* 1 and 4 */
    u = ni_swap_bits(u, 0x0a0a0a0au, 3);      /* 0 and 2 */
    return ni_swap_bits(u, 0x0c0c0c0cu, 2);   /* 1 and 2 */
}

static inline void ni_put_u32(ni_vector out, int r, uint32_t u) { memcpy(out + 4 * r, &u, 4); }

/* Of every dword, bytes 0, 2, 1, 3. */
static inline void ni_swap_places(const ni_vector in, ni_vector out) {
    for (int i = 0; i < 4 * NI_ROWS; i++) out[i] = in[i / 4 * 4 + i % 2 * 2 + i / 2 % 2];
}

/* Defines ni_pack_<name> from pack_<name>, which packs one record. */
#define NI_DEFINE_PACK(name) \
    void ni_pack_##name(const uint8_t *src, size_t row_bytes, int rows, int64_t k, uint8_t *dst) { \
        ni_record_##name *record = (ni_record_##name *)dst; \
        for (int64_t b = 0; b < k / NI_BLOCK_##name; b++) { \
            const ni_blocks in = ni_blocks_at(src, row_bytes, rows, (size_t)b * sizeof(ni_block_##name)); \
            pack_##name(&in, &record[b]); \
        } \
    }
#endif
