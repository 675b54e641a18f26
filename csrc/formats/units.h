/* Internal to formats/: 2-bit quants as units of 32 values (formats.h). */
#ifndef NI_UNITS_OF_BITS_H
#define NI_UNITS_OF_BITS_H
#include "pack.h"

/* Packs one unit from its 8 k-groups, 2 bits in each byte; four of the rows, `at` bytes into the vectors. */
static inline void ni_pack_unit2(const ni_dwords kg[8], int at, ni_vector out[restrict 2]) {
    for (int j = 0; j < 2; j++) {
        const ni_dwords v = kg[2 * j] | kg[2 * j + 4] << 2 | kg[2 * j + 1] << 4 | kg[2 * j + 5] << 6;
        memcpy(out[j] + at, &v, 16);
    }
}

/* The 64 bytes of quants of Q2_K and TQ2_0: half h, byte l has in bits 2t, 2t + 1 value l of unit 4h + t. */
static inline void ni_pack_halves2(const ni_blocks *in, size_t offset, ni_vector out[restrict 8][2]) {
    ni_dwords q[2][8][4];   /* by half, dword, four of the rows */
    ni_interleave(in, offset, 16, (ni_vector *)q);
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 4   /* for shifts by constants */
        for (int t = 0; t < 4; t++)
            for (int r = 0; r < 4; r++) {
                ni_dwords kg[8];
                for (int g = 0; g < 8; g++) kg[g] = q[h][g][r] >> 2 * t & 0x03030303;
                ni_pack_unit2(kg, 16 * r, out[4 * h + t]);
            }
}

/* Value k of row r of a unit, as it is stored. */
static inline int ni_unit2_value(const ni_vector q[2], int r, int k) {
    const int g = k / 4;
    return q[g / 2 % 2][4 * r + k % 4] >> (2 * (g / 4) + 4 * (g % 2)) & 3;
}
#endif
