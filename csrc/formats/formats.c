/* The table of formats. */
#include "records.h"

const ni_format ni_formats[NI_N_TYPES] = {
#define NI_FORMAT(NAME, name, ggml_type, block, kind, sub, offset, max_q, head)                                                    \
    [NI_##NAME] = {#NAME, ggml_type, block, sizeof(ni_block_##name), sizeof(ni_record_##name), NI_PANEL_##kind, sub, offset, max_q, head, \
                   ni_decode_##name, ni_pack_##name, ni_unpack_row_##name},
#include "formats.def"
#undef NI_FORMAT
};

/* Records follow one another, and each starts where 32-byte vectors do; but MXFP4's, of 272 bytes, where 16-byte vectors do. */
#define NI_FORMAT(NAME, name, ...) _Static_assert(sizeof(ni_record_##name) % (NI_##NAME == NI_MXFP4 ? 16 : 32) == 0, #NAME);
#include "formats.def"
#undef NI_FORMAT
