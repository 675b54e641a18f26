/* dot and unpack of IQ1, IQ2 and IQ3 (../formats/codebook.h) for vector tables.
 *
 * A part of 32 values goes in two steps.  First its words are looked up, in registers or word by word, and written to memory, which stays
 * in L1.  Then the vectors of words are taken apart.  Values come in the order in which shifts bring them out; dot
 * has the activations in that order, unpack sorts the values.
 *
 * The includer defines, with parts being what a vector of 64 bytes takes of its registers:
 *   cb_part, CB_PARTS                        a register; how many hold 64 bytes
 *   cb_load, cb_store, cb_set                of a part; of a dword, for all lanes
 *   cb_halves(p)                             16 bits for each dword lane, zero-extended
 *   cb_and, cb_or, cb_xor, cb_mul            of dwords
 *   cb_left(v, n), cb_right(v, n), cb_left16(v, n)      shifts of dwords, of words
 *   cb_table, cb_table_of(p), cb_pick(table, index)     16 bytes; those at bits 0-3 of the indexes, whose bit 7 is 0
 *   cb_dot(sum, v, x)                        sum + the products of the unsigned bytes v, below 128, and the 4 signed bytes x
 *   cb_floats(const cb_part[CB_PARTS])       the lanes as a v16
 *   cb_shuffle(x, order, y)                  16 bytes by a table of places, from x to y
 *   CB_IN_REGISTERS                          1 where there is
 *     cb_look_up(book, q, high, bits, even, odd, pairs), both pairs of words of a vector of places to pairs[0] and pairs[1]; a place has
 *     `bits` bits, 8 in q, the rest in both halves of the dwords `high`, from bit `even` on for the first pair and `odd` for the second */
#ifndef NI_CODEBOOK_IMPL_H
#define NI_CODEBOOK_IMPL_H
#include "../formats/codebook.h"
#include "scalar_look_up.h"
#include "v16.h"

#define CB_INLINE static inline __attribute__((always_inline))

typedef uint16_t cb_places[2 * NI_ROWS];   /* places of a pair of every row */
typedef uint32_t cb_pairs[NI_ROWS];        /* a pair of words of every row */

#define CB_EACH(i) _Pragma("GCC unroll 4") for (int i = 0; i < CB_PARTS; i++)
#define CB_PART(p, i) ((const uint8_t *)(p) + (64 / CB_PARTS) * (i))

/* Places of more than 8 bits, of both pairs of a vector q; upper bits as codebook.h has them for IQ2 and IQ3. */
CB_INLINE void put_places(const uint8_t *q, const uint8_t *high, int bits, int even, int odd, cb_places *places) {
    const cb_part byte = cb_set(0x00ff00ff), mask = cb_set(0x00010001u * ((1u << (bits - 8)) - 1));
    CB_EACH(i) {
        const cb_part v = cb_load(CB_PART(q, i)), h = cb_load(CB_PART(high, i));
        cb_store((uint8_t *)CB_PART(places[0], i), cb_or(cb_and(v, byte), cb_left(cb_and(cb_right(h, even), mask), 8)));
        cb_store((uint8_t *)CB_PART(places[1], i), cb_or(cb_and(cb_right(v, 8), byte), cb_left(cb_and(cb_right(h, odd), mask), 8)));
    }
}

/* The same for a part of IQ1: the upper bits are bits `step` l .. `step` l + 2 of h for word l. */
CB_INLINE void put_places_iq1(const ni_part_iq1 *in, int step, cb_places *places) {
    CB_EACH(i) {
        const cb_part q = cb_load(CB_PART(in->q, i)), h = cb_halves(in->h + NI_ROWS / CB_PARTS * i), byte = cb_set(0x00ff00ff);
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            const cb_part first = cb_and(cb_left(h, 8 - 2 * p * step), cb_set(0x0700));
            const cb_part second = cb_and(cb_left(h, 24 - (2 * p + 1) * step), cb_set(0x07000000));
            cb_store((uint8_t *)CB_PART(places[p], i), cb_or(cb_and(cb_right(q, 8 * p), byte), cb_or(first, second)));
        }
    }
}

/* ---- values of a part of 32, in one register: out[0..7], in the order in which they come --------------------------------------- */

CB_INLINE void values_iq3(const cb_pairs *pairs, int i, cb_part signs, cb_table values, cb_part out[8]) {
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
        const cb_part v = cb_or(cb_load(CB_PART(pairs[p], i)), cb_and(cb_left(signs, 3 - p), cb_set(0x88888888)));
        out[2 * p] = cb_pick(values, cb_and(v, cb_set(0x0f0f0f0f)));
        out[2 * p + 1] = cb_pick(values, cb_and(cb_right(v, 4), cb_set(0x0f0f0f0f)));
    }
}

/* cb_pick looks at bits 0-3 and 7 of an index.  So two shifts of digits, 4 bits apart, take one mask: bits 0, 1 and 4, 5 of every byte, the
 * signs put into bits 2 and 6. */
CB_INLINE void values_iq2(const cb_pairs *pairs, int i, cb_part signs, cb_table values, cb_part out[8]) {
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++) {
        const cb_part v = cb_load(CB_PART(pairs[p], i));
#pragma GCC unroll 2
        for (int e = 0; e < 2; e++) {
            const int up = 2 - 2 * e - p;
            const cb_part sign = cb_and(up < 0 ? cb_right(signs, -up) : cb_left(signs, up), cb_set(0x44444444));
            const cb_part index = cb_or(cb_and(cb_right(v, 2 * e), cb_set(0x33333333)), sign);
            out[4 * p + e] = cb_pick(values, index);
            out[4 * p + 2 + e] = cb_pick(values, cb_right(index, 4));
        }
    }
}

/* down: where the shift is down, bits 2 and 6 of every byte; one for each pair. */
CB_INLINE void values_iq1(const cb_pairs *pairs, int i, const cb_part down[2], cb_table values, cb_part out[8]) {
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++) {
        const cb_part v = cb_load(CB_PART(pairs[p], i));
#pragma GCC unroll 2
        for (int e = 0; e < 2; e++) {
            const cb_part index = cb_or(cb_and(cb_right(v, 2 * e), cb_set(0x33333333)), down[p]);
            out[4 * p + e] = cb_pick(values, index);
            out[4 * p + 2 + e] = cb_pick(values, cb_right(index, 4));
        }
    }
}

CB_INLINE cb_part all_signs_iq3(cb_part s) {
    s = cb_and(s, cb_set(0x0fffffff));
    cb_part t = cb_xor(s, cb_left(s, 16));
    t = cb_xor(t, cb_left(t, 8));
    t = cb_xor(t, cb_left(t, 4));
    return cb_or(s, cb_and(t, cb_set(0xf0000000)));
}
CB_INLINE cb_part all_signs_iq2(cb_part s) {
    s = cb_and(s, cb_set(0x3fff3fff));
    cb_part t = cb_xor(s, cb_left16(s, 8));
    t = cb_xor(t, cb_left16(t, 4));
    t = cb_xor(t, cb_left16(t, 2));
    return cb_or(s, cb_and(t, cb_set(0xc000c000)));
}

/* ---- a format: the places of a block's words; the words of part s; its values and scales ---------------------------------------- */

/* 2 n + 1 */
CB_INLINE v16 odd_of(const cb_part n[CB_PARTS]) {
    const v16 v = cb_floats(n);
    return v16_add(v16_add(v, v), v16_set1(1));
}

/* Of vector i of the places, in a block: its upper bits' vector, and where they are in it. */
#define CB_HIGH_iq3_s(in, i) (in)->high[(i) / 8], 9, 2 * ((i) % 8), 2 * ((i) % 8) + 1
#define CB_HIGH_iq2_xs(in, i) (in)->part[i].signs, 9, 14, 15
#define CB_HIGH_iq2_s(in, i) (in)->high[(i) / 4], 10, 4 * ((i) % 4), 4 * ((i) % 4) + 2

#define CB_PLACES(name, n) \
    CB_INLINE void places_##name(const ni_record_##name *in, cb_places *places) { \
        for (int i = 0; i < 8 * n && !CB_IN_REGISTERS; i++) put_places(in->part[i / n].q[i % n], CB_HIGH_##name(in, i), places + 2 * i); \
    }
CB_PLACES(iq3_s, 2)
CB_PLACES(iq2_xs, 1)
CB_PLACES(iq2_s, 1)
CB_INLINE void places_iq3_xxs(const ni_record_iq3_xxs *in, cb_places *places) { (void)in, (void)places; }
CB_INLINE void places_iq2_xxs(const ni_record_iq2_xxs *in, cb_places *places) { (void)in, (void)places; }
CB_INLINE void places_iq1_s(const ni_record_iq1_s *in, cb_places *places) {
    for (int s = 0; s < 8; s++) put_places_iq1(in->part + s, 3, places + 2 * s);
}
CB_INLINE void places_iq1_m(const ni_record_iq1_m *in, cb_places *places) {
    for (int s = 0; s < 8; s++) put_places_iq1(in->part + s, 4, places + 2 * s);
}

#if CB_IN_REGISTERS
#define CB_WORDS_8(name, q, pairs) cb_look_up(&ni_book_##name, q, q, 8, 0, 0, pairs)
#define CB_WORDS(name, in, q, i, places, pairs) cb_look_up(&ni_book_##name, q, CB_HIGH_##name(in, i), pairs)
#else
#define CB_WORDS_8(name, q, pairs) look_up_8(&ni_book_##name, q, pairs)
#define CB_WORDS(name, in, q, i, places, pairs) look_up_16(&ni_book_##name, (const uint16_t (*)[2 * NI_ROWS])(places) + 2 * (i), pairs)
#endif
#define CB_WORDS_OF(name) CB_INLINE void words_##name(const ni_record_##name *in, int s, cb_places *places, cb_pairs *pairs)
CB_WORDS_OF(iq3_xxs) {
    (void)places;
    CB_WORDS_8(iq3_xxs, in->part[s].q[0], pairs);
    CB_WORDS_8(iq3_xxs, in->part[s].q[1], pairs + 2);
}
CB_WORDS_OF(iq2_xxs) { (void)places, CB_WORDS_8(iq2_xxs, in->part[s].q[0], pairs); }
CB_WORDS_OF(iq3_s) {
    (void)in, (void)places;
    CB_WORDS(iq3_s, in, in->part[s].q[0], 2 * s, places, pairs);
    CB_WORDS(iq3_s, in, in->part[s].q[1], 2 * s + 1, places, pairs + 2);
}
CB_WORDS_OF(iq2_xs) { (void)in, (void)places, CB_WORDS(iq2_xs, in, in->part[s].q[0], s, places, pairs); }
CB_WORDS_OF(iq2_s) { (void)in, (void)places, CB_WORDS(iq2_s, in, in->part[s].q[0], s, places, pairs); }
CB_WORDS_OF(iq1_s) { (void)in, look_up_16(&ni_book_iq1, (const uint16_t (*)[2 * NI_ROWS])places + 2 * s, pairs); }
CB_WORDS_OF(iq1_m) { (void)in, look_up_16(&ni_book_iq1, (const uint16_t (*)[2 * NI_ROWS])places + 2 * s, pairs); }

/* Register i of a part: v: the values; n: the scale is 2 n + 1, times d and a constant; nested: one for each pair. */
#define CB_VALUES(name)                                                                                         \
    CB_INLINE void part_##name(const ni_record_##name *in, int s, const cb_pairs *pairs, int i, cb_table t, cb_part v[8], cb_part n[2])

CB_VALUES(iq3_xxs) {
    const cb_part signs = cb_load(CB_PART(in->part[s].signs, i));
    n[0] = cb_right(signs, 28);
    values_iq3(pairs, i, all_signs_iq3(signs), t, v);
}

CB_VALUES(iq3_s) {
    n[0] = cb_and(cb_right(cb_load(CB_PART(in->sc, i)), 4 * s), cb_set(15));
    values_iq3(pairs, i, cb_load(CB_PART(in->part[s].signs, i)), t, v);
}

CB_VALUES(iq2_xxs) {
    const cb_part signs = cb_load(CB_PART(in->part[s].signs, i));
    n[0] = cb_or(cb_and(cb_right(signs, 14), cb_set(3)), cb_and(cb_right(signs, 28), cb_set(12)));
    values_iq2(pairs, i, all_signs_iq2(signs), t, v);
}

/* Nibbles 2 s and 2 s + 1 of 16. */
CB_INLINE void scales_iq2(const ni_vector sc[2], int s, int i, cb_part n[2]) {
    const cb_part both = cb_right(cb_load(CB_PART(sc[s / 4], i)), 8 * (s % 4));
    n[0] = cb_and(both, cb_set(15));
    n[1] = cb_and(cb_right(both, 4), cb_set(15));
}

CB_VALUES(iq2_xs) {
    scales_iq2(in->sc, s, i, n);
    values_iq2(pairs, i, all_signs_iq2(cb_load(CB_PART(in->part[s].signs, i))), t, v);
}

CB_VALUES(iq2_s) {
    scales_iq2(in->sc, s, i, n);
    values_iq2(pairs, i, cb_load(CB_PART(in->part[s].signs, i)), t, v);
}

CB_VALUES(iq1_s) {
    const cb_part h = cb_halves(in->part[s].h + NI_ROWS / CB_PARTS * i), down = cb_mul(cb_right(h, 15), cb_set(0x44444444));
    const cb_part both[2] = {down, down};
    n[0] = cb_and(cb_right(h, 12), cb_set(7));
    values_iq1(pairs, i, both, t, v);
}

CB_VALUES(iq1_m) {
    const cb_part h = cb_halves(in->part[s].h + NI_ROWS / CB_PARTS * i);
    cb_part down[2];
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++) {   /* nibbles 2 p and 2 p + 1, for the lower and the upper half */
        const cb_part low = cb_and(cb_right(h, 8 * p + 3), cb_set(1)), high = cb_and(cb_right(h, 8 * p + 7), cb_set(1));
        down[p] = cb_or(cb_mul(low, cb_set(0x4444)), cb_mul(high, cb_set(0x44440000)));
        n[p] = cb_set(0);
#pragma GCC unroll 3
        for (int e = 0; e < 3; e++) {
            const cb_part bit = cb_and(cb_right(cb_halves(in->sc[e] + NI_ROWS / CB_PARTS * i), 2 * s + p), cb_set(1));
            n[p] = cb_or(n[p], cb_left(bit, e));
        }
    }
    values_iq1(pairs, i, down, t, v);
}

/* ---- unpack ---------------------------------------------------------------------------------------------------------------------- */

/* Halves of dwords a and b that belong together, to k-groups `first` and `second`. */
CB_INLINE void put_sorted(cb_part a, cb_part b, int i, uint8_t *q, int first, int second) {
    cb_store(q + 64 * first + 64 / CB_PARTS * i, cb_or(cb_and(a, cb_set(0xffff)), cb_left(b, 16)));
    cb_store(q + 64 * second + 64 / CB_PARTS * i, cb_or(cb_right(a, 16), cb_and(b, cb_set(0xffff0000))));
}

CB_INLINE void put_part(const cb_part v[8], int i, int is_iq3, uint8_t *q) {
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        if (is_iq3) put_sorted(v[j], v[j + 1], i, q, j, j + 1);
        else put_sorted(v[j], v[j + 1], i, q, j / 4 * 4 + j % 4 / 2, j / 4 * 4 + j % 4 / 2 + 2);
    }
}

/* For parts b = 0 .. n - 1 from record `in` on.  Words that are looked up one by one (lead = 1) are so while the part before is multiplied:
 * loads and arithmetic overlap.  Nor is a vector loaded, or a place, while what makes it up is still on its way to memory: that would wait
 * for all stores before it. */
#define CB_FOR_PARTS(name, n, lead)                                                                                              \
    _Alignas(64) cb_places places[32];                                                                                          \
    _Alignas(64) cb_pairs pairs[2][4];                                                                                          \
    for (int64_t ahead = 0, b = -(lead); b < (n) ; ahead++, b++) {                                                             \
        if (ahead % 8 == 0 && ahead < (n)) places_##name(in + ahead / 8, places);                                               \
        if (ahead < (n)) words_##name(in + ahead / 8, (int)(ahead % 8), places, pairs[ahead % 2]);                              \
        if (b < 0) continue;

/* Defines unpack_<name>.  factor: of d; nested: whether sub-blocks of 16 have scales of their own. */
#define CB_UNPACK(name, table, factor, is_iq3, nested, lead)                                                                    \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {                                      \
        RECORDS(name);                                                                                                          \
        const cb_table t = cb_table_of(table);                                                                                  \
        CB_FOR_PARTS(name, nk / 32, lead)                                                                                       \
            const v16 d = v16_mul(v16_load_f16(in[b / 8].d), v16_set1(factor));                                                 \
            float *scale = p->scale + (1 + nested) * NI_ROWS * b;                                                               \
            cb_part n[2][CB_PARTS];                                                                                             \
            CB_EACH(i) {                                                                                                        \
                cb_part v[8], own[2];                                                                                           \
                part_##name(in + b / 8, (int)(b % 8), pairs[b % 2], i, t, v, own);                                              \
                put_part(v, i, is_iq3, p->q + 512 * b);                                                                         \
                n[0][i] = own[0], n[1][i] = own[nested];                                                                        \
            }                                                                                                                   \
            if (!nested) v16_store(scale, v16_mul(d, odd_of(n[0])));                                                            \
            else v16_store(scale, odd_of(n[0])), v16_store(scale + NI_ROWS, odd_of(n[1])), v16_store(p->min, d);                \
        }                                                                                                                       \
    }

/* ---- dot ------------------------------------------------------------------------------------------------------------------------- */

static const uint8_t cb_order_iq3[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
static const uint8_t cb_order_iq2[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};

enum { CB_MOST = 8192 };   /* activations in order; longer ones come piece by piece, for every group anew */

/* One register's integer sums of k-groups j0 .. j1 of a part, which start at `start`. */
CB_INLINE cb_part sum_of(const cb_part v[8], int j0, int j1, const int8_t *x, int start) {
    cb_part s = cb_set((uint32_t)start);
#pragma GCC unroll 8
    for (int j = j0; j < j1; j++) s = cb_dot(s, v[j], x + 4 * j);
    return s;
}

/* Defines dot_<name>: arguments as CB_UNPACK.  Nested: scales times sums are whole numbers below 2^24, so that floats are exact. */
#define CB_DOT(name, table, factor, is_iq3, nested, lead)                                                                \
    CB_INLINE v16 dot_parts_##name(const ni_record_##name *in, int64_t count, const int8_t *x, const float *xd,          \
                                   const int16_t *sums, v16 acc) {                                                       \
        enum { OFFSET = NI_OFFSET_##name };                                                                              \
        const cb_table t = cb_table_of(table);                                                                           \
        v16 total = v16_set1(0);                                                                                         \
        CB_FOR_PARTS(name, count, lead)                                                                                   \
            const int8_t *xq = x + 32 * b;                                                                               \
            const int16_t *of_x = sums + 2 * b;                                                                          \
            cb_part n[2][CB_PARTS], s[2][CB_PARTS];                                                                      \
            CB_EACH(i) {                                                                                                 \
                cb_part v[8], own[2];                                                                                    \
                part_##name(in + b / 8, (int)(b % 8), pairs[b % 2], i, t, v, own);                                       \
                n[0][i] = own[0], n[1][i] = own[nested];                                                                 \
                s[0][i] = sum_of(v, 0, nested ? 4 : 8, xq, -OFFSET * (nested ? of_x[0] : of_x[0] + of_x[1]));            \
                s[1][i] = nested ? sum_of(v, 4, 8, xq, -OFFSET * of_x[1]) : s[0][i];                                     \
            }                                                                                                            \
            const v16 d = v16_mul(v16_load_f16(in[b / 8].d), v16_set1(factor)), dx = v16_set1(xd[b]);                    \
            if (!nested) {                                                                                               \
                acc = v16_fma(cb_floats(s[0]), v16_mul(v16_mul(d, odd_of(n[0])), dx), acc);                              \
                continue;                                                                                                \
            }                                                                                                            \
            const v16 isum = v16_fma(cb_floats(s[1]), odd_of(n[1]), v16_mul(cb_floats(s[0]), odd_of(n[0])));             \
            total = v16_fma(isum, dx, total);                                                                            \
            if (b % 8 == 7) acc = v16_fma(total, d, acc), total = v16_set1(0);                                           \
        }                                                                                                                \
        return acc;                                                                                                      \
    }                                                                                                                    \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {                              \
        _Alignas(64) int8_t q[CB_MOST];                                                                                  \
        const ni_record_##name *in = (const ni_record_##name *)w;                                                        \
        for (int64_t g = 0; g < n_groups; g++, y += NI_ROWS) {                                                           \
            v16 acc = v16_set1(0);                                                                                       \
            for (int64_t k = 0, n; k < x->k; k += n, in += n / 256) {                                                    \
                n = x->k - k < CB_MOST ? x->k - k : CB_MOST;                                                             \
                for (int64_t i = 0; i < n && (g == 0 || x->k > CB_MOST); i += 16)                                        \
                    cb_shuffle(x->q + k + i, is_iq3 ? cb_order_iq3 : cb_order_iq2, q + i);                               \
                acc = dot_parts_##name(in, n / 32, q,  x->d + k / 32, x->s + k / 16, acc);                               \
            }                                                                                                            \
            v16_store(y, acc);                                                                                           \
        }                                                                                                                \
    }

#define CB_KERNELS(...) CB_UNPACK(__VA_ARGS__) CB_DOT(__VA_ARGS__)
CB_KERNELS(iq3_xxs, ni_values_iq3_xxs, 0.25f, 1, 0, !CB_IN_REGISTERS)
CB_KERNELS(iq3_s, ni_values_iq3_s, 1.0f, 1, 0, !CB_IN_REGISTERS)
CB_KERNELS(iq2_xxs, ni_values_iq2, 0.125f, 0, 0, !CB_IN_REGISTERS)
CB_KERNELS(iq2_xs, ni_values_iq2, 0.125f, 0, 1, !CB_IN_REGISTERS)
CB_KERNELS(iq2_s, ni_values_iq2, 0.125f, 0, 1, !CB_IN_REGISTERS)
CB_KERNELS(iq1_s, ni_values_iq1_s, 0.125f, 0, 0, 1)
CB_KERNELS(iq1_m, ni_values_iq1_m, 0.125f, 0, 1, 1)
#endif
