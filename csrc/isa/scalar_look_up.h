/* Code books looked up word by word: for instruction sets that do not find 16-bit words in registers, and for IQ1, whose book is too large.
 *
 * Gathers are no faster: they load word by word too.  What counts is the number of loads, two for a word, and that nothing else happens:
 * words lie in memory twice, in either half of a dword, and places of more than 8 bits are put together in vectors, long before. */
#ifndef NI_SCALAR_LOOK_UP_H
#define NI_SCALAR_LOOK_UP_H
#include "../formats/codebook.h"

#define LOOK_UP static inline __attribute__((always_inline)) void

/* Left alone, gcc takes bytes out of vectors and puts dwords into them, one by one. */
#define NOT_IN_VECTORS __asm__ volatile("" ::: "memory")

/* Two pairs of words, for every row.  Places of 8 bits: a vector as records have it. */
LOOK_UP look_up_8(const ni_book *book, const uint8_t *q, uint32_t (*restrict pairs)[NI_ROWS]) {
    const uint32_t *lower = book->lower, *upper = book->upper;
#pragma GCC unroll 16
    for (int r = 0; r < NI_ROWS; r++) {
        NOT_IN_VECTORS;
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) pairs[p][r] = lower[q[4 * r + p]] | upper[q[4 * r + 2 + p]];
    }
}

/* Places of 16 bits: pair by pair. */
LOOK_UP look_up_16(const ni_book *book, const uint16_t (*places)[2 * NI_ROWS], uint32_t (*restrict pairs)[NI_ROWS]) {
    const uint32_t *lower = book->lower, *upper = book->upper;
#pragma GCC unroll 16
    for (int r = 0; r < NI_ROWS; r++) {
        NOT_IN_VECTORS;
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) pairs[p][r] = lower[places[p][2 * r]] | upper[places[p][2 * r + 1]];
    }
}
#endif
