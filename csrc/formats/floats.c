/* F32, F16 and BF16: a record is one value of each of the 16 rows. */
#include "pack.h"

void ni_decode_f32(const uint8_t *blocks, int64_t n_blocks, float *out) { memcpy(out, blocks, sizeof(float) * (size_t)n_blocks); }

void ni_decode_f16(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_f16 *in = (const ni_block_f16 *)blocks;
    for (int64_t i = 0; i < n_blocks; i++) out[i] = ni_load_f16(in[i].value);
}

void ni_decode_bf16(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_bf16 *in = (const ni_block_bf16 *)blocks;
    for (int64_t i = 0; i < n_blocks; i++) out[i] = ni_bf16_to_f32(ni_load_u16(in[i].value));
}

/* A cache line of every row is copied out before it is used: where row_bytes is a multiple of 4096 the 16 lines share a set of the cache,
 * which holds fewer, so that reading a value of each in turn would fetch every line again and again. */
#define LINE 64

/* Always inline, so that `size` is a constant and the copies are single moves. */
static inline __attribute__((always_inline)) void transpose(const uint8_t *src, size_t row_bytes, int rows, int64_t k,
                                                            size_t size, uint8_t *dst) {
    const int64_t per_line = LINE / (int64_t)size;
    uint8_t line[NI_ROWS][LINE] __attribute__((aligned(64)));
    memset(line, 0, sizeof line);
    for (int64_t i = 0; i < k; i += per_line) {
        ni_fetch(src + NI_ROWS * (row_bytes + (size_t)i * size), NI_ROWS * LINE);
        const int64_t n = k - i < per_line ? k - i : per_line;
        for (int r = 0; r < rows; r++) {
            const uint8_t *from = src + (size_t)r * row_bytes + (size_t)i * size;
            if (n == per_line) memcpy(line[r], from, LINE);
            else memcpy(line[r], from, (size_t)n * size);
        }
        for (int64_t j = 0; j < n; j++, dst += NI_ROWS * size)
            for (size_t r = 0; r < NI_ROWS; r++) memcpy(dst + r * size, line[r] + (size_t)j * size, size);
    }
}

/* Defines ni_pack_<name>. */
#define PACK(name)                                                                                      \
    void ni_pack_##name(const uint8_t *src, size_t row_bytes, int rows, int64_t k, uint8_t *dst) {      \
        transpose(src, row_bytes, rows, k, sizeof(ni_block_##name), dst);                               \
    }
PACK(f32)
PACK(f16)
PACK(bf16)

void ni_unpack_row_f32(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_f32 *in = (const ni_record_f32 *)group;
    for (int64_t i = 0; i < k; i++) out[i] = in[i].value[r];
}

void ni_unpack_row_f16(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_f16 *in = (const ni_record_f16 *)group;
    for (int64_t i = 0; i < k; i++) out[i] = ni_f16_to_f32(in[i].value[r]);
}

void ni_unpack_row_bf16(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_bf16 *in = (const ni_record_bf16 *)group;
    for (int64_t i = 0; i < k; i++) out[i] = ni_bf16_to_f32(in[i].value[r]);
}
