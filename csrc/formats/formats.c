/* The table of formats. */
#include "records.h"

#define FUNCTIONS(name) ni_decode_##name, ni_pack_##name, ni_unpack_row_##name
#define BYTES(name) (int)sizeof(ni_block_##name), (int)sizeof(ni_record_##name)

const ni_format ni_formats[NI_N_TYPES] = {
    /* name, ggml_type, block, block_bytes, record_bytes, kind, sub, offset, max_q */
    [NI_F32] = {"F32", 0, 1, 4, 4 * NI_ROWS, NI_PANEL_FLOAT, 0, 0, 0, FUNCTIONS(f32)},
    [NI_F16] = {"F16", 1, 1, 2, 2 * NI_ROWS, NI_PANEL_FLOAT, 0, 0, 0, FUNCTIONS(f16)},
    [NI_BF16] = {"BF16", 30, 1, 2, 2 * NI_ROWS, NI_PANEL_FLOAT, 0, 0, 0, FUNCTIONS(bf16)},
    [NI_Q4_0] = {"Q4_0", 2, 32, BYTES(q4_0), NI_PANEL_OFFSET, 32, 8, 15, FUNCTIONS(q4_0)},
    [NI_Q4_1] = {"Q4_1", 3, 32, BYTES(q4_1), NI_PANEL_MIN, 32, 0, 15, FUNCTIONS(q4_1)},
    [NI_Q5_0] = {"Q5_0", 6, 32, BYTES(q5_0), NI_PANEL_OFFSET, 32, 16, 31, FUNCTIONS(q5_0)},
    [NI_Q5_1] = {"Q5_1", 7, 32, BYTES(q5_1), NI_PANEL_MIN, 32, 0, 31, FUNCTIONS(q5_1)},
    [NI_Q8_0] = {"Q8_0", 8, 32, BYTES(q8_0), NI_PANEL_SIGNED, 32, 0, 0, FUNCTIONS(q8_0)},
    [NI_Q4_K] = {"Q4_K", 12, 256, BYTES(q4_k), NI_PANEL_MIN, 32, 0, 15, FUNCTIONS(q4_k)},
    [NI_Q5_K] = {"Q5_K", 13, 256, BYTES(q5_k), NI_PANEL_MIN, 32, 0, 31, FUNCTIONS(q5_k)},
    [NI_Q6_K] = {"Q6_K", 14, 256, BYTES(q6_k), NI_PANEL_NESTED, 16, 32, 63, FUNCTIONS(q6_k)},
};

/* Sizes that the layout in formats.h promises. */
#define CHECK(name, block, record) \
    _Static_assert(sizeof(ni_block_##name) == (block) && sizeof(ni_record_##name) == (record), #name)
CHECK(q4_0, 18, 32 + 256);
CHECK(q4_1, 20, 64 + 256);
CHECK(q5_0, 22, 32 + 64 + 256);
CHECK(q5_1, 24, 64 + 64 + 256);
CHECK(q8_0, 34, 32 + 512);
CHECK(q4_k, 144, 64 + 256 + 2048);
CHECK(q5_k, 176, 64 + 256 + 512 + 2048);
CHECK(q6_k, 210, 32 + 256 + 16 * 192);
