/* IQ1, IQ2 and IQ3: values by code book, and how packed records hold them.
 *
 * The file holds, for 4 (IQ3) or 8 (IQ1, IQ2) consecutive values, the place of a word in a list, the format's code book, and, but for IQ1,
 * a sign for each value.  A word has a digit per value: 0..7 for IQ3, 0..2 for the others.  Digits are magnitudes, IQ1's -1, 0, 1.
 *
 * Here a word has 16 bits: digit i in byte i % 2, in bits (i / 2) w ..., w being 4 for IQ3 and 2 for the others.  Two neighbouring words
 * of a row, a *pair*, make up the row's dword of a vector: the first in its lower half.  Its digits are then brought out by shifts and
 * masks, each time four of them, one in the low bits of every byte; the sign joins them there, and one shuffle of bytes makes values.
 *
 *   IQ3   a pair has 8 values (k = 0..7 below); shifts by 0, 4     bring out k = 0 1 4 5 and 2 3 6 7
 *   IQ2   a pair has 16 values;                 shifts by 0, 2, 4, 6:        0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15
 *
 * Records hold 32 values (a *part*) of all rows together:
 *
 *   places   a vector, lower 8 bits: the four bytes of a row's dword are those of words 0, 2, 1, 3: even bytes of one pair, odd of the next
 *            (IQ3, with 8 words: two vectors)
 *   signs    a vector of dwords, bits set where a value is negative.
 *            IQ3: bit p of every nibble is pair p's (0..3); the nibbles lie as a pair's digits do
 *            IQ2: bits 2j + p of every byte are pair p's (0, 1), for the digits that a shift by 2j brings out
 *
 * IQ3_XXS, IQ2_XXS and IQ2_XS have 7 signs for 8 values; the eighth is negative if an odd number of the 7 are.  These last values lie in
 * the upper nibble of the dword (IQ3) or in the upper two bits of each half (IQ2), which hold something else instead. */
#ifndef NI_CODEBOOK_H
#define NI_CODEBOOK_H
#include "records.h"

/* What is taken from a value's unsigned form: NI_OFFSET_iq3_s = 16. */
enum {
#define NI_FORMAT(NAME, name, ggml_type, block, kind, sub, offset, ...) NI_OFFSET_##name = offset,
#include "formats.def"
#undef NI_FORMAT
};

/* A code book: the words; each in the lower and in the upper half of a dword.  Complete from the start of the process; aligned for
 * vectors. */
typedef struct {
    const uint16_t *word;
    const uint32_t *lower, *upper;
} ni_book;
extern const ni_book ni_book_iq3_xxs, ni_book_iq3_s, ni_book_iq2_xxs, ni_book_iq2_xs, ni_book_iq2_s, ni_book_iq1;

/* A byte of signs, bit i for value i, as pair 0 has it: IQ3's 8 values, IQ2's word. */
extern uint32_t ni_signs_iq3[256];
extern uint16_t ni_signs_iq2[256];

/* What digits stand for, from the offset on: item digit + 8 s (IQ3) or digit + 4 s, s being the sign bit; for IQ1 digit g with the shift
 * of the format, 8 (g - 1) + 1, or - 1 if s is set.  Twice 8 items for IQ1 and IQ2, whose index has 3 bits. */
extern const uint8_t ni_values_iq3_xxs[16], ni_values_iq3_s[16], ni_values_iq2[16], ni_values_iq1_s[16], ni_values_iq1_m[16];

/* Signs with the eighth of each eight restored. */
static inline uint32_t ni_all_signs_iq3(uint32_t s) {
    s &= 0x0fffffff;
    uint32_t t = s ^ s << 16;
    t ^= t << 8;
    t ^= t << 4;
    return s | (t & 0xf0000000);
}
static inline uint32_t ni_all_signs_iq2(uint32_t s) {
    s &= 0x3fff3fff;
    uint32_t t = s ^ (s & 0x00ff00ff) << 8;
    t ^= (t & 0x0fff0fff) << 4;
    t ^= (t & 0x3fff3fff) << 2;
    return s | (t & 0xc000c000);
}

/* A pair of words; q: their places' dword, odd: which pair of it; high: above the lower 8 bits, of the first word and the second. */
static inline uint32_t ni_pair(const ni_book *book, uint32_t q, int odd, uint32_t high0, uint32_t high1) {
    q >>= 8 * odd;
    return book->lower[(q & 255) | high0 << 8] | book->upper[(q >> 16 & 255) | high1 << 8];
}

/* The same, the upper `n` bits standing in both halves of a dword, from bit `at` on. */
static inline uint32_t ni_pair_high(const ni_book *book, uint32_t q, int odd, uint32_t high, int at, int n) {
    const uint32_t mask = (1u << n) - 1;
    return ni_pair(book, q, odd, high >> at & mask, high >> (16 + at) & mask);
}

/* IQ3: the 8 values of pair p. */
static inline void ni_values_of_pair_iq3(uint32_t pair, uint32_t signs, int p, const uint8_t values[16], uint8_t out[8]) {
    pair |= signs << (3 - p) & 0x88888888;
    for (int i = 0; i < 8; i++) out[i] = values[pair >> (16 * (i / 4) + 8 * (i % 2) + 4 * (i / 2 % 2)) & 15];
}

/* IQ1 and IQ2: the 16 values of pair p.  IQ1 has for signs: all bits of a word's half set, or none. */
static inline void ni_values_of_pair_iq2(uint32_t pair, uint32_t signs, int p, const uint8_t values[16], uint8_t out[16]) {
    for (int i = 0; i < 16; i++) {
        const int byte = 16 * (i / 8) + 8 * (i % 2), at = 2 * (i / 2 % 4);
        out[i] = values[(pair >> (byte + at) & 3) | (signs >> (byte + at + p) & 1) << 2];
    }
}
#endif
