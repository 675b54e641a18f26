/* The formats of ik_llama.cpp: IQ2_K to IQ6_K, IQ2_KS to IQ5_KS, IQ4_KSS, IQ2_KL, Q6_0 and the trellis types, IQ1_KT to IQ4_KT (trellis.c).
 * For formats/ and isa/.
 *
 * A quant is a place in a table of whole numbers, of which a type has one; a sub-block whose bit in `extra` is set takes its numbers a
 * little higher.  In a record the dwords of the sixteen blocks are interleaved, as they are in the file, after the half with which a block
 * begins whose length is no multiple of 4.
 *
 * Where the rows of a file begin with a scale each record has it, too: so records are all alike, for 2.9 % of IQ4_KS, 3.1 % of IQ4_KSS
 * and IQ4_KT, and 7.1 % of IQ1_KT, the most. */
#ifndef NI_IK_H
#define NI_IK_H
#include "records.h"

#define NI_IK_FORMATS(F) \
    F(iq4_k) F(iq5_k) F(iq6_k) F(iq3_k) F(iq2_k) F(q6_0) F(iq4_ks) F(iq5_ks) F(iq3_ks) F(iq2_ks) F(iq2_kl) F(iq4_kss) \
    F(iq1_kt) F(iq2_kt) F(iq3_kt) F(iq4_kt)

#define NI_IK_TABLE static const int8_t __attribute__((unused))

/* Values of places, without the bit in `extra`; and how much higher they are with it. */
NI_IK_TABLE ni_iq2[16] = {-31, -13, 1, 17}, ni_iq3[16] = {-63, -40, -23, -10, 1, 13, 28, 47};
NI_IK_TABLE ni_iq5[32] = {-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
                          -1,   5,    11,   17,  23,  29,  36,  43,  51,  59,  68,  77,  87,  97,  109, 121};
NI_IK_TABLE ni_iq6[64] = {-127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54,
                          -51,  -47,  -44,  -40,  -37,  -34, -31, -28, -25, -22, -19, -16, -13, -11, -8,  -5,
                          -2,   0,    3,    6,    9,    12,  14,  17,  20,  23,  27,  30,  33,  36,  40,  44,
                          47,   51,   55,   59,   63,   68,  72,  77,  82,  87,  92,  98,  103, 109, 115, 121};
enum { NI_HIGHER_2 = 5, NI_HIGHER_3 = 4, NI_HIGHER_4 = 4, NI_HIGHER_5 = 2, NI_HIGHER_6 = 1 };

/* Pairs of values of IQ2_KL. */
NI_IK_TABLE ni_iq2_first[32] = {-63, -63, -40, -40, -40, -40, -23, -23, -23, -23, -23, -10, -10, -10, -10, 1,
                                1,   1,   1,   1,   13,  13,  13,  13,  13,  28,  28,  28,  28,  28,  47,  47};
NI_IK_TABLE ni_iq2_second[32] = {-23, 13, -63, -10, 13,  47,  -40, -23, 1,  13,  28,  -63, 1,  13, 47,  -23,
                                 -10, 1,  13,  28,  -40, -23, -10, 1,   13, -63, -23, 1,   28, 47, -23, 13};

/* What a step of a trellis multiplies by, what is added to a place at first, and what scales of rows are multiplied by (trellis.c). */
#define NI_TRELLIS 0xcbac1fedu
enum { NI_TRELLIS_FIRST = 4096 };
#define NI_MORE_IQ2_KT 1.05f
#define NI_MORE_IQ3_KT 1.01f

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
