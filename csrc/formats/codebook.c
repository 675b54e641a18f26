/* The code books, put together from the sets of numbers that their words write. */
#include "codebook.h"
#include "codebook_sets.h"

#define BOOK(name, n)                                     \
    static struct {                                       \
        _Alignas(64) uint32_t lower[n], upper[n];         \
        uint16_t word[n];                                 \
    } name;                                               \
    const ni_book ni_book_##name = {name.word, name.lower, name.upper};
BOOK(iq3_xxs, 256)
BOOK(iq3_s, 512)
BOOK(iq2_xxs, 256)
BOOK(iq2_xs, 512)
BOOK(iq2_s, 1024)
BOOK(iq1, 2048)

uint32_t ni_signs_iq3[256];
uint16_t ni_signs_iq2[256];

#define IQ3(o, a, b, c, d, e, f, g, h) {o + a, o + b, o + c, o + d, o + e, o + f, o + g, o + h, \
                                        o - a, o - b, o - c, o - d, o - e, o - f, o - g, o - h}
#define TWICE(...) {__VA_ARGS__, __VA_ARGS__}
#define IQ2(o, a, b, c) TWICE(o + a, o + b, o + c, o, o - a, o - b, o - c, o)
#define IQ1(o) TWICE(o - 7, o + 1, o + 9, o, o - 9, o - 1, o + 7, o)
const uint8_t ni_values_iq3_xxs[16] = IQ3(NI_OFFSET_iq3_xxs, 4, 12, 20, 28, 36, 44, 52, 62);
const uint8_t ni_values_iq3_s[16] = IQ3(NI_OFFSET_iq3_s, 1, 3, 5, 7, 9, 11, 13, 15);
const uint8_t ni_values_iq2[16] = IQ2(NI_OFFSET_iq2_s, 8, 25, 43);
const uint8_t ni_values_iq1_s[16] = IQ1(NI_OFFSET_iq1_s);
const uint8_t ni_values_iq1_m[16] = IQ1(NI_OFFSET_iq1_m);

/* The words of a set, in ascending order of the numbers that their digits write. */
static void fill(uint16_t *words, uint32_t *lower, uint32_t *upper, const uint64_t *set, int items, int base, int digits, int width) {
    for (int n = 0; n < 64 * items; n++) {
        if (!(set[n / 64] >> n % 64 & 1)) continue;
        unsigned word = 0;
        for (int i = 0, rest = n; i < digits; i++, rest /= base) word |= (unsigned)(rest % base) << (8 * (i % 2) + i / 2 * width);
        *words++ = (uint16_t)word, *lower++ = word, *upper++ = word << 16;
    }
}

#define FILL(book, set, ...) fill(book.word, book.lower, book.upper, set, (int)(sizeof set / sizeof *set), __VA_ARGS__)
__attribute__((constructor)) static void fill_all(void) {
    FILL(iq3_xxs, set_iq3_xxs, 8, 4, 4);
    FILL(iq3_s, set_iq3_s, 8, 4, 4);
    FILL(iq2_xxs, set_iq2_xxs, 3, 8, 2);
    FILL(iq2_xs, set_iq2_xs, 3, 8, 2);
    FILL(iq2_s, set_iq2_s, 3, 8, 2);
    FILL(iq1, set_iq1_s, 3, 8, 2);
    for (unsigned s = 0; s < 256; s++)
        for (int i = 0; i < 8; i++) {
            ni_signs_iq3[s] |= (s >> i & 1) << (16 * (i / 4) + 8 * (i % 2) + 4 * (i / 2 % 2));
            ni_signs_iq2[s] |= (uint16_t)((s >> i & 1) << (8 * (i % 2) + 2 * (i / 2)));
        }
}
