/* IQ2_XXS, IQ2_XS and IQ2_S: 256 values; eight of them are a word of a code book of 256, 512 or 1024, with a sign each.
 *
 * IQ2_XXS: 8 times two dwords of `q` for 32 values: the places of 4 words, a byte each; then four times 7 signs, and the scale of the 32
 * values in the upper four bits.  IQ2_XS: 32 times 16 bits: a place in 9 of them, then 7 signs; nibble s of `sc`: the scale of
 * sub-block s of 16 values.  IQ2_S: byte l of `q` and, above them, bits 2 (l % 4) .. of byte l / 4 of `high`: the place of word l;
 * a byte of `signs` for each word; `sc` as IQ2_XS. */
#include "pack.h"
#include "codebook.h"

static inline void decode8(unsigned word, unsigned signs, float scale, float *out) {
    for (int i = 0; i < 8; i++) {
        const unsigned digit = word >> (8 * (i % 2) + 2 * (i / 2)) & 3;
        out[i] = scale * (float)(ni_values_iq2[digit | (signs >> i & 1) << 2] - NI_OFFSET_iq2_s);
    }
}

/* 7 signs with the eighth. */
static inline unsigned eight(unsigned signs) {
    signs &= 127;
    return signs | (unsigned)__builtin_parity(signs) << 7;
}

static inline float scale_of(const uint8_t *d, unsigned sc) { return ni_load_f16(d) * (0.5f + (float)(sc & 15)) * 0.25f; }

void ni_decode_iq2_xxs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq2_xxs *in = (const ni_block_iq2_xxs *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, in++)
        for (int l = 0; l < 32; l++, out += 8) {
            const uint8_t *q = in->q + 8 * (l / 4);
            const uint32_t signs = ni_load_u32(q + 4);
            decode8(ni_book_iq2_xxs.word[q[l % 4]], eight(signs >> 7 * (l % 4)), scale_of(in->d, signs >> 28), out);
        }
}

void ni_decode_iq2_xs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq2_xs *in = (const ni_block_iq2_xs *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, in++)
        for (int l = 0; l < 32; l++, out += 8) {
            const unsigned q = ni_load_u16(in->q + 2 * l);
            decode8(ni_book_iq2_xs.word[q & 511], eight(q >> 9), scale_of(in->d, in->sc[l / 4] >> 4 * (l / 2 % 2)), out);
        }
}

void ni_decode_iq2_s(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq2_s *in = (const ni_block_iq2_s *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, in++)
        for (int l = 0; l < 32; l++, out += 8)
            decode8(ni_book_iq2_s.word[in->q[l] | (in->high[l / 4] >> 2 * (l % 4) & 3) << 8], in->signs[l],
                    scale_of(in->d, in->sc[l / 4] >> 4 * (l / 2 % 2)), out);
}

/* A row's dwords of a part: signs of 4 words, a byte each. */
static inline uint32_t join_signs(uint32_t s) {
    return ni_signs_iq2[s & 255] | (uint32_t)ni_signs_iq2[s >> 8 & 255] << 16 | (uint32_t)ni_signs_iq2[s >> 16 & 255] << 1 |
           (uint32_t)ni_signs_iq2[s >> 24] << 17;
}

/* Four bits to those that the eighth signs leave free: bits 0, 1 to 14, 15 and 2, 3 to 30, 31. */
static inline uint32_t in_free_bits(uint32_t v) { return (v & 3) << 14 | (v & 12) << 28; }

static inline void pack_iq2_xxs(const ni_blocks *in, ni_record_iq2_xxs *out) {
    ni_vector q[16];
    ni_interleave_u16(in, offsetof(ni_block_iq2_xxs, d), out->d);
    ni_interleave(in, offsetof(ni_block_iq2_xxs, q), 16, q);
    for (int s = 0; s < 8; s++) {
        ni_swap_places(q[2 * s], out->part[s].q[0]);
        for (int r = 0; r < NI_ROWS; r++) {
            const uint32_t file = ni_load_u32(q[2 * s + 1] + 4 * r);
            const uint32_t bytes = (file & 127) | (file & 127 << 7) << 1 | (file & 127 << 14) << 2 | (file & 127 << 21) << 3;
            ni_put_u32(out->part[s].signs, r, join_signs(bytes) | in_free_bits(file >> 28));
        }
    }
}

static inline void pack_iq2_xs(const ni_blocks *in, ni_record_iq2_xs *out) {
    ni_interleave_u16(in, offsetof(ni_block_iq2_xs, d), out->d);
    for (int r = 0; r < NI_ROWS; r++) {
        const uint8_t *block = in->row[r];
        for (int j = 0; j < 2; j++) ni_put_u32(out->sc[j], r, ni_load_u32(block + offsetof(ni_block_iq2_xs, sc) + 4 * j));
        for (int s = 0; s < 8; s++) {
            uint32_t places = 0, signs = 0, high = 0;
            for (int l = 0; l < 4; l++) {
                const uint32_t q = ni_load_u16(block + offsetof(ni_block_iq2_xs, q) + 8 * s + 2 * l);
                places |= (q & 255) << 8 * (l / 2 + l % 2 * 2);
                high |= (q >> 8 & 1) << (l / 2 + l % 2 * 2);
                signs |= (q >> 9) << 8 * l;
            }
            ni_put_u32(out->part[s].q[0], r, places);
            ni_put_u32(out->part[s].signs, r, join_signs(signs) | in_free_bits(high));
        }
    }
    ni_fetch_next(in, 0, sizeof(ni_block_iq2_xs));
}

static inline void pack_iq2_s(const ni_blocks *in, ni_record_iq2_s *out) {
    ni_vector q[8];
    ni_interleave_u16(in, offsetof(ni_block_iq2_s, d), out->d);
    ni_interleave(in, offsetof(ni_block_iq2_s, q), 8, q);
    for (int s = 0; s < 8; s++) ni_swap_places(q[s], out->part[s].q[0]);
    ni_interleave(in, offsetof(ni_block_iq2_s, signs), 8, q);
    for (int s = 0; s < 8; s++)
        for (int r = 0; r < NI_ROWS; r++) ni_put_u32(out->part[s].signs, r, join_signs(ni_load_u32(q[s] + 4 * r)));
    for (int r = 0; r < NI_ROWS; r++) {
        const uint8_t *block = in->row[r], *high = block + offsetof(ni_block_iq2_s, high);
        for (int j = 0; j < 2; j++) {
            uint32_t bits = 0;   /* of words 0 and 2 of a part in the lower half, of 1 and 3 in the upper one */
            for (int l = 0; l < 16; l++) bits |= (uint32_t)(high[4 * j + l / 4] >> 2 * (l % 4) & 3) << (16 * (l % 2) + 2 * (l / 2));
            ni_put_u32(out->high[j], r, bits);
            ni_put_u32(out->sc[j], r, ni_load_u32(block + offsetof(ni_block_iq2_s, sc) + 4 * j));
        }
    }
}

NI_DEFINE_PACK(iq2_xxs)
NI_DEFINE_PACK(iq2_xs)
NI_DEFINE_PACK(iq2_s)

/* 16 values of row r: pair p of a part.  high: the dword with the places' upper n bits, from bit `at` on. */
static inline void unpack_pair(const ni_part_iq2 *in, int r, int p, const ni_book *book, uint32_t high, int at, int n, uint32_t signs,
                               float d, uint32_t sc, float *out) {
    uint8_t q[16];
    const float scale = d * (0.125f * (float)(2 * (sc & 15) + 1));
    ni_values_of_pair_iq2(ni_pair_high(book, ni_load_u32(in->q[0] + 4 * r), p, high, at, n), signs, p, ni_values_iq2, q);
    for (int i = 0; i < 16; i++) out[i] = scale * (float)(q[i] - NI_OFFSET_iq2_s);
}

void ni_unpack_row_iq2_xxs(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq2_xxs *in = (const ni_record_iq2_xxs *)group;
    for (int64_t b = 0; b < k / 256; b++, in++)
        for (int s = 0; s < 16; s++, out += 16) {
            const ni_part_iq2 *part = &in->part[s / 2];
            const uint32_t signs = ni_load_u32(part->signs + 4 * r);
            unpack_pair(part, r, s % 2, &ni_book_iq2_xxs, 0, 0, 0, ni_all_signs_iq2(signs), ni_f16_to_f32(in->d[r]),
                        (signs >> 14 & 3) | (signs >> 28 & 12), out);
        }
}

void ni_unpack_row_iq2_xs(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq2_xs *in = (const ni_record_iq2_xs *)group;
    for (int64_t b = 0; b < k / 256; b++, in++)
        for (int s = 0; s < 16; s++, out += 16) {
            const ni_part_iq2 *part = &in->part[s / 2];
            const uint32_t signs = ni_load_u32(part->signs + 4 * r);
            unpack_pair(part, r, s % 2, &ni_book_iq2_xs, signs, 14 + s % 2, 1, ni_all_signs_iq2(signs), ni_f16_to_f32(in->d[r]),
                        ni_load_u32(in->sc[s / 8] + 4 * r) >> 4 * (s % 8), out);
        }
}

void ni_unpack_row_iq2_s(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq2_s *in = (const ni_record_iq2_s *)group;
    for (int64_t b = 0; b < k / 256; b++, in++)
        for (int s = 0; s < 16; s++, out += 16) {
            const ni_part_iq2 *part = &in->part[s / 2];
            unpack_pair(part, r, s % 2, &ni_book_iq2_s, ni_load_u32(in->high[s / 8] + 4 * r), 2 * (s % 8), 2,
                        ni_load_u32(part->signs + 4 * r), ni_f16_to_f32(in->d[r]), ni_load_u32(in->sc[s / 8] + 4 * r) >> 4 * (s % 8), out);
        }
}
