/* How keys and values of one kv-head lie in a chunk of NI_CHUNK positions.  There, and for the kernels, widths are multiples of 16: a head of
 * another width is padded with zeros (ni_padded), which change no score, no scale of q8_0 and no other value.
 *
 * f16, bf16, f32: keys [NI_CHUNK/16][e][16 positions], values [ev/16][NI_CHUNK][16 values].  Both are read as rows of 16 numbers in
 * the order in which they lie: a stream.
 *
 * q8_0: a number is d * q, with a half d for 32 values of one position (for 16, where the width ends with a half block).
 * Two consecutive summands of a sum lie side by side, as pairs: of values of a head (keys) or of positions (values).
 *   keys    [NI_CHUNK/16] of: per block of 32 values: d [16 positions], then q [16 pairs][16 positions][2]
 *   values  per block of 32 values: d [NI_CHUNK], then q [2][NI_CHUNK/2][16 values][2]
 *
 * Where a head's values are the first columns of its keys, its chunk is one matrix of latent rows, and these lie like values of width e.
 */
#ifndef NI_KV_LAYOUT_H
#define NI_KV_LAYOUT_H
#include <stddef.h>
#include <stdint.h>

#define NI_CHUNK 256    /* positions of a KV chunk: attention is cut by shape, never by team size */

#define NI_LATENT_TILE 32       /* queries that attend_latent takes at a time: each number of the memory is widened once for them */
#define NI_LATENT_SCRATCH(e) (NI_LATENT_TILE * ((e) + NI_CHUNK + 16) + 16 * ((e) > NI_CHUNK ? (e) : NI_CHUNK))

#define NI_INDEX_BLOCKS 4       /* blocks of 16 positions whose keys an indexer's heads meet at a time */
#define NI_INDEX_SCRATCH(e) (NI_INDEX_BLOCKS * 16 * (e))

typedef enum {
#define NI_KV(name) NI_KV_##name,
#include "kv.def"
#undef NI_KV
    NI_N_KV_TYPES
} ni_kv_type;

static inline int64_t ni_padded(int64_t width) { return (width + 15) / 16 * 16; }

/* Bytes per position of a head's keys, or of its values; any width. */
static inline int64_t ni_kv_bytes(ni_kv_type type, int64_t width) {
    width = ni_padded(width);
    return type == NI_KV_q8_0 ? width + 2 * ((width + 31) / 32) : type == NI_KV_f32 ? 4 * width : 2 * width;
}

static inline size_t ni_kv_chunk_bytes(ni_kv_type type, int64_t e, int64_t ev) {
    return NI_CHUNK * (size_t)(ni_kv_bytes(type, e) + ni_kv_bytes(type, ev));
}
#endif
