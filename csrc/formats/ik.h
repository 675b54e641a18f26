/* The formats of ik_llama.cpp: IQ2_K to IQ6_K, IQ2_KS to IQ5_KS, IQ2_KL and Q6_0.  For formats/ and isa/.
 *
 * A quant is a place in a table of whole numbers, of which a type has one; a sub-block whose bit in `extra` is set takes its numbers a
 * little higher.  In a record the dwords of the sixteen blocks are interleaved, as they are in the file, after the half with which a block
 * begins whose length is no multiple of 4.
 *
 * Where the rows of a file begin with a scale each record has it, too: so records are all alike, for 2.9 % of IQ4_KS, the most. */
#ifndef NI_IK_H
#define NI_IK_H
#include "records.h"

#define NI_IK_FORMATS(F) \
    F(iq4_k) F(iq5_k) F(iq6_k) F(iq3_k) F(iq2_k) F(q6_0) F(iq4_ks) F(iq5_ks) F(iq3_ks) F(iq2_ks) F(iq2_kl)

/* The scales of a block's sub-blocks, and its quants, by which they are multiplied.  d: the row's scale, or the block's. */
#define NI_READ(name) void ni_read_##name(float d, const ni_block_##name *in, float *scale, int8_t *q);
NI_IK_FORMATS(NI_READ)
#undef NI_READ

/* d, where a row, a record's lane or a block begins with it. */
static inline float ni_load_d(const uint8_t *at, int head) {
    float d;
    if (head != 4) return ni_load_f16(at);
    memcpy(&d, at, 4);
    return d;
}

/* Takes the block of row r of a record, as the file had it, and returns its d. */
static inline float ni_take_block(const uint8_t *record, int r, int head, size_t bytes, uint8_t *block) {
    const uint8_t *d = head ? record + head * r : block;
    record += NI_ROWS * head;
    if (bytes % 4) {
        memcpy(block, record + 2 * r, 2);
        block += 2, record += 2 * NI_ROWS;
    }
    for (size_t i = 0; i < bytes / 4; i++) memcpy(block + 4 * i, record + i * sizeof(ni_vector) + 4 * (size_t)r, 4);
    return ni_load_d(d, head);
}
#endif
