/* The formats of ik_llama.cpp: IQ2_K to IQ6_K and Q6_0.  For formats/ and isa/.
 *
 * A quant is a place in a table of whole numbers, of which a type has one; a sub-block whose bit in `extra` is set takes its numbers a
 * little higher.  In a record the dwords of the sixteen blocks are interleaved, as they are in the file, after the half with which a block
 * begins whose length is no multiple of 4. */
#ifndef NI_IK_H
#define NI_IK_H
#include "records.h"

#define NI_IK_FORMATS(F) F(iq4_k) F(iq5_k) F(iq6_k) F(iq3_k) F(iq2_k) F(q6_0)

/* The scales of a block's sub-blocks, and its quants, by which they are multiplied. */
#define NI_READ(name) void ni_read_##name(const ni_block_##name *in, float *scale, int8_t *q);
NI_IK_FORMATS(NI_READ)
#undef NI_READ

/* The block of row r of a record, as the file had it. */
static inline void ni_take_block(const uint8_t *record, int r, size_t bytes, uint8_t *block) {
    if (bytes % 4) {
        memcpy(block, record + 2 * r, 2);
        block += 2, record += 2 * NI_ROWS;
    }
    for (size_t i = 0; i < bytes / 4; i++) memcpy(block + 4 * i, record + i * sizeof(ni_vector) + 4 * (size_t)r, 4);
}
#endif
