/* dot and unpack of ik_llama.cpp's types (../formats/ik.h) for vector tables, 32 values of a row at a time ("a unit").
 *
 * Included behind codebook_impl.h, on whose operations it stands.  The includer defines, too:
 *   IK_OFFSET(low)                 what dot wants added to bytes; low: what makes them lie between 0 and 127, or 0 where nothing does
 *   ik_dot(sum, v, x, offset)      sum + the products of the bytes v, which have the offset, and the 4 signed bytes x
 *   ik_add, ik_sub, ik_add8, ik_sub8, ik_abs8       of dwords; of bytes
 *   ik_mask(v, n)                  all bits of the lanes whose bit n is set
 *   ik_pick2(t, index), ik_pick4   as cb_pick, of 2 or 4 tables that follow one another
 *   ik_zip(a, b, out)              of each lane, the bytes of a and b in turn: two lanes, one in out[0], one in out[1]
 *   ik_sums(x)                     in byte j of a lane, the sum of the four bytes of x[j], each below 64
 *   ik_low_halves(p)               the lower halves of 16 dwords, half floats, as a v16 */
#ifndef NI_IK_IMPL_H
#define NI_IK_IMPL_H
#include "codebook_impl.h"
#include "../formats/ik.h"
#include "../formats/table4.h"

#define IK_LOAD(vector) cb_load(CB_PART(vector, i))
#define IK_EACH(j, n) _Pragma("GCC unroll 8") for (int j = 0; j < (n); j++)

typedef struct { cb_table t[4]; } ik_tables;

/* The tables that 16 n values make, with an offset. */
CB_INLINE void ik_fill(cb_table *t, const int8_t *values, int n, int offset) {
    for (int i = 0; i < n; i++) {
        uint8_t bytes[16];
        for (int j = 0; j < 16; j++) bytes[j] = (uint8_t)(values[16 * i + j] + offset);
        t[i] = cb_table_of(bytes);
    }
}

/* ---- pieces that types share ------------------------------------------------------------------------------------------------------ */

CB_INLINE cb_part ik_bits(cb_part v, int from, uint32_t mask) { return cb_and(cb_right(v, from), cb_set(mask)); }

/* Nibble `upper` of 8 vectors; of 4 the lower nibbles, then the upper ones. */
CB_INLINE void nibbles_of_8(const ni_vector *q, int upper, int i, cb_part v[8]) {
    IK_EACH(j, 8) v[j] = ik_bits(IK_LOAD(q[j]), 4 * upper, 0x0f0f0f0f);
}
CB_INLINE void nibbles_of_4(const ni_vector *q, int i, cb_part v[8]) {
    IK_EACH(j, 4) v[j] = ik_bits(IK_LOAD(q[j]), 0, 0x0f0f0f0f), v[j + 4] = ik_bits(IK_LOAD(q[j]), 4, 0x0f0f0f0f);
}

/* Puts bit `bit` of the bytes of h to bit `to` of v. */
CB_INLINE cb_part with_bit(cb_part v, cb_part h, int bit, int to) {
    return cb_or(v, cb_and(bit < to ? cb_left(h, to - bit) : cb_right(h, bit - to), cb_set(0x01010101u << to)));
}

/* Places of 2 bits in 16 vectors, and third bits. */
CB_INLINE void places_of_16(const ni_vector *q, int u, int i, cb_part v[8]) {
    IK_EACH(j, 8) v[j] = ik_bits(IK_LOAD(q[u / 4 * 8 + j]), 2 * (u % 4), 0x03030303);
}
CB_INLINE void third_bits(const ni_vector *third, int u, int i, cb_part v[8]) {
    IK_EACH(j, 8) v[j] = with_bit(v[j], IK_LOAD(third[j]), u, 2);
}

/* Of a lane: nibbles 2 u and 2 u + 1 of 16, in two vectors; nibble u / 4 of byte u % 4; byte u of 8, in two vectors. */
CB_INLINE void pair_of_nibbles(const ni_vector *sc, int u, int i, cb_part out[2]) {
    const cb_part both = cb_right(IK_LOAD(sc[u / 4]), 8 * (u % 4));
    out[0] = cb_and(both, cb_set(15)), out[1] = ik_bits(both, 4, 15);
}
CB_INLINE cb_part nibble_of_byte(const uint8_t *sc, int u, int i) { return ik_bits(IK_LOAD(sc), 8 * (u % 4) + 4 * (u / 4), 15); }
CB_INLINE cb_part byte_of_8(const ni_vector *sc, int u, int i) { return ik_bits(IK_LOAD(sc[u / 4]), 8 * (u % 4), 255); }
CB_INLINE cb_part less(cb_part v, uint32_t n) { return ik_sub(v, cb_set(n)); }

/* ---- a type: register i of unit u of a record -------------------------------------------------------------------------------------- *
 * v: its eight k-groups, as they stand in the tables.  sc: what d is multiplied by, a whole number; of types with sub-blocks of 16 two.
 * higher: lanes that take higher values, one or two, too. */
#define IK_UNIT(name)                                                                                                            \
    CB_INLINE void unit_##name(const ni_record_##name *in, int u, int i, const ik_tables *t, int offset, cb_part v[8],            \
                               cb_part sc[2], cb_part higher[2])

/* Scales of 6 bits, and which lanes are higher, of IQ4_K and IQ5_K. */
CB_INLINE void six_bits(const ni_vector *low, const uint8_t *high, const uint8_t *d_extra, int u, int i, cb_part sc[2], cb_part higher[2]) {
    pair_of_nibbles(low, u, i, sc);
    for (int e = 0; e < 2; e++) {
        sc[e] = less(cb_or(sc[e], cb_left(ik_bits(IK_LOAD(high), 4 * u + 2 * e, 3), 4)), 32);
        higher[e] = ik_mask(IK_LOAD(d_extra), 16 + 2 * u + e);
    }
}

IK_UNIT(iq4_k) {
    (void)offset;
    six_bits(in->low, in->high, in->d_extra, u, i, sc, higher);
    nibbles_of_4(in->q + 4 * u, i, v);
    IK_EACH(j, 8) v[j] = cb_pick(t->t[0], v[j]);
}

IK_UNIT(iq5_k) {
    (void)offset;
    six_bits(in->low, in->high, in->d_extra, u, i, sc, higher);
    nibbles_of_8(in->q + u / 2 * 8, u % 2, i, v);
    IK_EACH(j, 8) v[j] = ik_pick2(t->t, with_bit(v[j], IK_LOAD(in->fifth[j]), u, 4));
}

IK_UNIT(iq6_k) {
    (void)offset;
    for (int e = 0; e < 2; e++) {
        const cb_part byte = ik_bits(IK_LOAD(in->sc[u / 2]), 16 * (u % 2) + 8 * e, 255);
        sc[e] = less(cb_xor(byte, cb_set(128)), 128);
        higher[e] = ik_mask(IK_LOAD(in->d_extra), 16 + 2 * u + e);
    }
    nibbles_of_8(in->q + u / 2 * 8, u % 2, i, v);
    IK_EACH(j, 8) {
        const cb_part upper = ik_bits(IK_LOAD(in->upper[u / 4 * 8 + j]), 2 * (u % 4), 0x03030303);
        v[j] = ik_pick4(t->t, cb_or(v[j], cb_left(upper, 4)));
    }
}

IK_UNIT(iq3_k) {
    (void)offset;
    pair_of_nibbles(in->sc, u, i, sc);
    for (int e = 0; e < 2; e++) {
        const cb_part odd = cb_or(ik_add(sc[e], sc[e]), cb_set(1)), negative = ik_mask(IK_LOAD(in->extra_sign), 16 + 2 * u + e);
        sc[e] = ik_sub(cb_xor(odd, negative), negative);
        higher[e] = ik_mask(IK_LOAD(in->extra_sign), 2 * u + e);
    }
    places_of_16(in->q, u, i, v);
    third_bits(in->third, u, i, v);
    IK_EACH(j, 8) v[j] = cb_pick(t->t[0], v[j]);
}

IK_UNIT(iq2_k) {
    (void)offset;
    pair_of_nibbles(in->sc, u, i, sc);
    for (int e = 0; e < 2; e++) sc[e] = less(sc[e], 8), higher[e] = ik_mask(IK_LOAD(in->d_extra), 16 + 2 * u + e);
    places_of_16(in->q, u, i, v);
    IK_EACH(j, 8) v[j] = cb_pick(t->t[0], v[j]);
}

IK_UNIT(q6_0) {
    (void)u, (void)t;
    sc[0] = cb_set(1), higher[0] = cb_set(0);
    nibbles_of_4(in->q, i, v);
    IK_EACH(j, 8) {
        const cb_part upper = ik_bits(IK_LOAD(in->upper[j % 2]), 2 * (j / 4) + 4 * (j % 4 / 2), 0x03030303);
        v[j] = ik_add8(cb_or(v[j], cb_left(upper, 4)), cb_set((uint32_t)((offset - 32) & 255) * 0x01010101u));
    }
}

CB_INLINE void scale_and_bit(cb_part byte, cb_part *sc, cb_part *higher) {
    *sc = less(cb_and(byte, cb_set(254)), 127), *higher = ik_mask(byte, 0);
}

IK_UNIT(iq4_ks) {
    (void)offset;
    scale_and_bit(byte_of_8(in->sc, u, i), sc, higher);
    nibbles_of_4(in->q + 4 * u, i, v);
    IK_EACH(j, 8) v[j] = cb_pick(t->t[0], v[j]);
}

IK_UNIT(iq4_kss) {
    (void)offset;
    cb_part byte = cb_set(0);
    IK_EACH(j, 4) {   /* two words, and no bit of the upper one shifts into the lower one: its lowest is taken off first */
        const cb_part words = IK_LOAD(in->q[4 * u + j]), lowest = cb_and(words, cb_set(0x00010001));
        const cb_part upper = cb_xor(words, lowest), nibbles = cb_xor(upper, cb_right(upper, 1));
        byte = cb_or(byte, cb_left(cb_and(cb_or(lowest, cb_right(lowest, 15)), cb_set(3)), 2 * j));
        v[j] = cb_pick(t->t[0], cb_and(nibbles, cb_set(0x0f0f0f0f)));
        v[j + 4] = cb_pick(t->t[0], ik_bits(nibbles, 4, 0x0f0f0f0f));
    }
    scale_and_bit(byte, sc, higher);
}

IK_UNIT(iq5_ks) {
    (void)offset;
    scale_and_bit(byte_of_8(in->sc, u, i), sc, higher);
    nibbles_of_8(in->q + u / 2 * 8, u % 2, i, v);
    IK_EACH(j, 8) v[j] = ik_pick2(t->t, with_bit(v[j], IK_LOAD(in->fifth[j]), u, 4));
}

IK_UNIT(iq3_ks) {
    (void)offset;
    const cb_part extra = cb_halves(in->extra + NI_ROWS / CB_PARTS * i);
    sc[0] = less(cb_or(nibble_of_byte(in->sc, u, i), cb_left(ik_bits(extra, u, 1), 4)), 16);
    higher[0] = ik_mask(extra, 8 + u);
    places_of_16(in->q, u, i, v);
    third_bits(in->third, u, i, v);
    IK_EACH(j, 8) v[j] = cb_pick(t->t[0], v[j]);
}

IK_UNIT(iq2_ks) {
    (void)offset;
    const cb_part extra = cb_halves(in->extra + NI_ROWS / CB_PARTS * i);
    sc[0] = less(cb_or(ik_bits(IK_LOAD(in->sc), 4 * u, 15), cb_left(ik_bits(extra, 8 + u, 1), 4)), 16);
    higher[0] = ik_mask(extra, u);
    places_of_16(in->q, u, i, v);
    IK_EACH(j, 8) v[j] = cb_pick(t->t[0], v[j]);
}

IK_UNIT(iq2_kl) {
    (void)offset;
    const cb_part high = cb_halves(in->high + NI_ROWS / CB_PARTS * i);
    sc[0] = less(cb_or(nibble_of_byte(in->low, u, i), cb_left(ik_bits(high, 2 * u, 3), 4)), 32);
    higher[0] = cb_set(0);
    IK_EACH(j, 4) {
        const cb_part place = with_bit(ik_bits(IK_LOAD(in->q[u / 2 * 4 + j]), 4 * (u % 2), 0x0f0f0f0f), IK_LOAD(in->fifth[j]), u, 4);
        ik_zip(ik_pick2(t->t, place), ik_pick2(t->t + 2, place), v + 2 * j);
    }
}

/* Steps 4 h + 1 .. 4 h + 4 of a trellis from each lane's place: bytes of values plus 126. */
CB_INLINE cb_part four_steps(cb_part place, int h) {
    const uint32_t k = NI_TRELLIS, k2 = k * k, k4 = k2 * k2, first = h ? k4 * k : k;
    cb_part x[4];
    IK_EACH(j, 4) {
        const uint32_t factor = j == 0 ? first : j == 1 ? first * k : j == 2 ? first * k2 : first * k2 * k;
        x[j] = cb_and(cb_mul(place, cb_set(factor)), cb_set(0x3f3f3f3f));
    }
    return ik_sums(x);
}

CB_INLINE cb_part start_of_trellis(cb_part place) { return ik_add(place, cb_set(NI_TRELLIS_FIRST)); }
CB_INLINE cb_part trellis_offset(int offset) { return cb_set((uint32_t)((offset - 126) & 255) * 0x01010101u); }

/* IQ4's values, from tables that have an offset. */
CB_INLINE cb_part iq4_scale(cb_part index, cb_table t, int offset) { return less(cb_and(cb_pick(t, index), cb_set(255)), (uint32_t)offset); }

IK_UNIT(iq1_kt) {
    const cb_part byte = byte_of_8(in->sc, u, i), q = IK_LOAD(in->q[u]), upper = cb_right(IK_LOAD(in->upper[u % 4]), 4 * (u / 4));
    sc[0] = iq4_scale(cb_and(byte, cb_set(15)), t->t[0], 128), higher[0] = cb_set(0);
    IK_EACH(g, 4) {
        const cb_part low = cb_or(ik_bits(q, 8 * g, 255), cb_left(ik_bits(upper, 8 * g, 15), 8));
        const cb_part place = start_of_trellis(cb_or(low, cb_left(ik_bits(byte, 4 + g, 1), 12)));
        v[2 * g] = ik_add8(four_steps(place, 0), trellis_offset(offset));
        v[2 * g + 1] = ik_add8(four_steps(place, 1), trellis_offset(offset));
    }
}

IK_UNIT(iq2_kt) {
    sc[0] = iq4_scale(nibble_of_byte(in->sc, u, i), t->t[0], 128), higher[0] = cb_set(0);
    IK_EACH(g, 4) {
        const cb_part place = start_of_trellis(ik_bits(IK_LOAD(in->q[2 * u + g / 2]), 16 * (g % 2), 0xffff));
        v[2 * g] = ik_add8(four_steps(place, 0), trellis_offset(offset));
        v[2 * g + 1] = ik_add8(four_steps(place, 1), trellis_offset(offset));
    }
}

/* -126 .. 126 without their signs, then with those that are stored. */
CB_INLINE cb_part with_signs(cb_part sums, cb_part signs, int u, int offset) {
    const cb_part negative = ik_sub8(cb_set(0), ik_bits(signs, u, 0x01010101)), value = ik_abs8(ik_add8(sums, trellis_offset(0)));
    return ik_add8(ik_sub8(cb_xor(value, negative), negative), cb_set((uint32_t)offset * 0x01010101u));
}

IK_UNIT(iq3_kt) {
    (void)t;
    sc[0] = nibble_of_byte(in->sc, u, i), higher[0] = cb_set(0);
    IK_EACH(g, 4) {
        const cb_part place = start_of_trellis(ik_bits(IK_LOAD(in->q[2 * u + g / 2]), 16 * (g % 2), 0xffff));
        v[2 * g] = with_signs(four_steps(place, 0), IK_LOAD(in->signs[2 * g]), u, offset);
        v[2 * g + 1] = with_signs(four_steps(place, 1), IK_LOAD(in->signs[2 * g + 1]), u, offset);
    }
}

IK_UNIT(iq4_kt) {
    (void)t;
    const cb_part dword = IK_LOAD(in->sc[u]);
    sc[0] = less(ik_bits(dword, 1, 127), 64), higher[0] = cb_set(0);
    const cb_part start = start_of_trellis(cb_left(cb_and(dword, cb_set(1)), 15));
    IK_EACH(g, 8) {
        const cb_part q = IK_LOAD(in->q[2 * u + g / 4]), upper = cb_right(IK_LOAD(in->upper[u % 4 * 2 + g / 4]), 4 * (u / 4));
        const cb_part low = cb_or(ik_bits(q, 8 * (g % 4), 255), cb_left(ik_bits(upper, 8 * (g % 4), 15), 8));
        const cb_part place = ik_add(start, cb_or(low, cb_left(ik_bits(dword, 8 + 3 * g, 7), 12)));
        v[g] = ik_add8(four_steps(place, 0), trellis_offset(offset));
    }
}

/* ---- unpack and dot ---------------------------------------------------------------------------------------------------------------- */

enum { IK_MOST = 16384 };   /* activations whose sums are taken once for all groups; of longer rows they are for every group anew */

/* Defines unpack_<name> and dot_<name>.  row_d: d of the record `in`; fill: tables to `t`, with an offset; subs: sub-blocks of a unit; more:
 * by how much values of higher lanes are so, which dot adds as more * sum(x); low: as IK_OFFSET has it.  dot asks for the bytes of a later
 * record, a part with each unit: on Zen 5 the hardware alone reads IQ4_K to IQ6_K at a third of the speed. */
#define IK_KERNELS(name, row_d, fill, subs, more, low)                                                                               \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {                                      \
        enum { UNITS = NI_BLOCK_##name / 32, OFFSET = NI_OFFSET_##name };                                                       \
        RECORDS(name);                                                                                                          \
        ik_tables t;                                                                                                            \
        fill(t.t, OFFSET);                                                                                                      \
        for (int64_t b = 0; b < nk / NI_BLOCK_##name; b++, in++)                                                                \
            for (int u = 0; u < UNITS; u++) {                                                                                   \
                const int64_t unit = UNITS * b + u;                                                                             \
                cb_part sc[subs][CB_PARTS];                                                                                     \
                CB_EACH(i) {                                                                                                    \
                    cb_part v[8], own[2], higher[2];                                                                            \
                    unit_##name(in, u, i, &t, OFFSET, v, own, higher);                                                          \
                    IK_EACH(j, 8) {                                                                                             \
                        if (more) v[j] = ik_add8(v[j], cb_and(higher[j * subs / 8], cb_set(more * 0x01010101u)));               \
                        cb_store(p->q + 512 * unit + 64 * j + 64 / CB_PARTS * i, v[j]);                                         \
                    }                                                                                                           \
                    for (int e = 0; e < subs; e++) sc[e][i] = own[e];                                                           \
                }                                                                                                               \
                for (int e = 0; e < subs; e++)                                                                                  \
                    v16_store(p->scale + NI_ROWS * (subs * unit + e), v16_mul(row_d, cb_floats(sc[e])));                        \
            }                                                                                                                   \
    }                                                                                                                           \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {                                     \
        enum { UNITS = NI_BLOCK_##name / 32, PART = sizeof(ni_record_##name) / UNITS, OFFSET = IK_OFFSET(low) };                \
        const ni_record_##name *in = (const ni_record_##name *)w;                                                               \
        int16_t own_sums[IK_MOST / 32];                                                                                         \
        ik_tables t;                                                                                                            \
        fill(t.t, OFFSET);                                                                                                      \
        for (int64_t g = 0; g < n_groups; g++, y += NI_ROWS) {                                                                  \
            v16 acc = v16_set1(0);                                                                                              \
            for (int64_t k = 0, n; k < x->k; k += n) {                                                                          \
                n = x->k - k < IK_MOST ? x->k - k : IK_MOST;                                                                    \
                if (subs == 1 && (OFFSET || more) && (g == 0 || x->k > IK_MOST)) ik_sum_up(x->q + k, n, own_sums);              \
                const int16_t *sums = subs == 1 ? own_sums : x->s + k / 16;                                                     \
                for (int64_t b = 0; b < n / NI_BLOCK_##name; b++, in++) {                                                       \
                    const v16 scale = row_d;                                                                                    \
                    for (int u = 0; u < UNITS; u++) {                                                                           \
                        const int64_t unit = UNITS * b + u;                                                                     \
                        ni_ask_ahead((const uint8_t *)in + u * PART, PART);                                                     \
                        const int8_t *xq = x->q + k + 32 * unit;                                                                \
                        cb_part sc[subs][CB_PARTS], s[subs][CB_PARTS];                                                          \
                        CB_EACH(i) {                                                                                            \
                            cb_part v[8], own[2], higher[2];                                                                    \
                            unit_##name(in, u, i, &t, OFFSET, v, own, higher);                                                  \
                            for (int e = 0; e < subs; e++) {                                                                    \
                                const int of_x = OFFSET || more ? sums[subs * unit + e] : 0;                                    \
                                cb_part sum = cb_set((uint32_t)(-OFFSET * of_x));                                               \
                                if (more) sum = ik_add(sum, cb_and(higher[e], cb_set((uint32_t)(more * of_x))));                \
                                IK_EACH(j, 8 / subs) sum = ik_dot(sum, v[8 / subs * e + j], xq + 32 / subs * e + 4 * j, OFFSET); \
                                s[e][i] = sum, sc[e][i] = own[e];                                                               \
                            }                                                                                                   \
                        }                                                                                                       \
                        const v16 dx = v16_set1(x->d[k / 32 + unit]);                                                           \
                        for (int e = 0; e < subs; e++)                                                                          \
                            acc = v16_fma(cb_floats(s[e]), v16_mul(v16_mul(scale, cb_floats(sc[e])), dx), acc);                 \
                    }                                                                                                           \
                }                                                                                                               \
            }                                                                                                                   \
            v16_store(y, acc);                                                                                                  \
        }                                                                                                                       \
    }

/* Sums of 32 of n values. */
static void ik_sum_up(const int8_t *q, int64_t n, int16_t *sums) {
    for (int64_t b = 0; b < n / 32; b++) {
        int sum = 0;
        for (int j = 0; j < 32; j++) sum += q[32 * b + j];
        sums[b] = (int16_t)sum;
    }
}

#define IK_NO_TABLE(t, offset) ((void)(t))
#define IK_TABLE_2(t, offset) ik_fill(t, ni_iq2, 1, offset)
#define IK_TABLE_3(t, offset) ik_fill(t, ni_iq3, 1, offset)
#define IK_TABLE_4(t, offset) ik_fill(t, ni_iq4, 1, offset)
#define IK_TABLE_5(t, offset) ik_fill(t, ni_iq5, 2, offset)
#define IK_TABLE_6(t, offset) ik_fill(t, ni_iq6, 4, offset)
#define IK_PAIRS(t, offset) ik_fill(t, ni_iq2_first, 2, offset), ik_fill(t + 2, ni_iq2_second, 2, offset)
#define IK_SCALES(t, offset) ik_fill(t, ni_iq4, 1, 128)
#define IK_ROW_D(factor) v16_mul(v16_load(in->d), v16_set1(factor))

IK_KERNELS(iq4_k, ik_low_halves(in->d_extra), IK_TABLE_4, 2, NI_HIGHER_4, 0)
IK_KERNELS(iq5_k, ik_low_halves(in->d_extra), IK_TABLE_5, 2, NI_HIGHER_5, 0)
IK_KERNELS(iq6_k, ik_low_halves(in->d_extra), IK_TABLE_6, 2, NI_HIGHER_6, 0)
IK_KERNELS(iq3_k, v16_load_f16(in->d), IK_TABLE_3, 2, NI_HIGHER_3, 63)
IK_KERNELS(iq2_k, ik_low_halves(in->d_extra), IK_TABLE_2, 2, NI_HIGHER_2, 31)
IK_KERNELS(q6_0, v16_load_f16(in->d), IK_NO_TABLE, 1, 0, 32)
IK_KERNELS(iq4_ks, v16_load(in->d), IK_TABLE_4, 1, NI_HIGHER_4, 0)
IK_KERNELS(iq5_ks, v16_load(in->d), IK_TABLE_5, 1, NI_HIGHER_5, 0)
IK_KERNELS(iq3_ks, v16_load_f16(in->d), IK_TABLE_3, 1, NI_HIGHER_3, 63)
IK_KERNELS(iq2_ks, v16_load_f16(in->d), IK_TABLE_2, 1, NI_HIGHER_2, 31)
IK_KERNELS(iq2_kl, v16_load_f16(in->d), IK_PAIRS, 1, 0, 63)
IK_KERNELS(iq4_kss, v16_load(in->d), IK_TABLE_4, 1, NI_HIGHER_4, 0)
IK_KERNELS(iq1_kt, v16_load(in->d), IK_SCALES, 1, 0, 0)
IK_KERNELS(iq2_kt, IK_ROW_D(NI_MORE_IQ2_KT), IK_SCALES, 1, 0, 0)
IK_KERNELS(iq3_kt, IK_ROW_D(NI_MORE_IQ3_KT), IK_NO_TABLE, 1, 0, 0)
IK_KERNELS(iq4_kt, v16_load(in->d), IK_NO_TABLE, 1, 0, 0)
#endif
