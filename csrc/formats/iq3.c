/* IQ3_XXS and IQ3_S: 256 values; four of them are a word of a code book of 256 or 512, with a sign each, and 32 share a scale of 4 bits.
 *
 * IQ3_XXS: byte l of `q` is the place of word l.  Dword s of `signs` holds, for the 8 words of part s, four times 7 signs of 8 values, and
 * the scale in its upper four bits.  IQ3_S: bit l % 8 of byte l / 8 of `high` is the ninth bit of the place of word l; bit k % 8 of byte
 * k / 8 of `signs` is the sign of value k; nibble s of `sc` is the scale of part s. */
#include "pack.h"
#include "codebook.h"

/* Eight values: two words and a byte of signs. */
static inline void decode8(unsigned first, unsigned second, unsigned signs, const uint8_t values[16], int offset, float scale, float *out) {
    for (int i = 0; i < 8; i++) {
        const unsigned digit = (i < 4 ? first : second) >> (8 * (i % 2) + 4 * (i / 2 % 2)) & 7;
        out[i] = scale * (float)(values[digit | (signs >> i & 1) << 3] - offset);
    }
}

/* 7 signs with the eighth. */
static inline unsigned eight(unsigned signs) {
    signs &= 127;
    return signs | (unsigned)__builtin_parity(signs) << 7;
}

void ni_decode_iq3_xxs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq3_xxs *in = (const ni_block_iq3_xxs *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, in++)
        for (int l = 0; l < 64; l += 2, out += 8) {
            const uint32_t signs = ni_load_u32(in->signs + 4 * (l / 8));
            const float scale = ni_load_f16(in->d) * (0.5f + (float)(signs >> 28)) * 0.5f;
            decode8(ni_book_iq3_xxs.word[in->q[l]], ni_book_iq3_xxs.word[in->q[l + 1]], eight(signs >> 7 * (l / 2 % 4)), ni_values_iq3_xxs,
                    NI_OFFSET_iq3_xxs, scale, out);
        }
}

void ni_decode_iq3_s(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq3_s *in = (const ni_block_iq3_s *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, in++)
        for (int l = 0; l < 64; l += 2, out += 8) {
            const float scale = ni_load_f16(in->d) * (float)(1 + 2 * (in->sc[l / 16] >> 4 * (l / 8 % 2) & 15));
            const unsigned high = in->high[l / 8] >> l % 8;
            const unsigned first = in->q[l] | (high & 1) << 8, second = in->q[l + 1] | (high >> 1 & 1) << 8;
            decode8(ni_book_iq3_s.word[first], ni_book_iq3_s.word[second], in->signs[l / 2], ni_values_iq3_s, NI_OFFSET_iq3_s, scale, out);
        }
}

/* The places' vectors of all parts; order: codebook.h. */
static inline void pack_places(const ni_blocks *in, size_t at, ni_part_iq3 *out) {
    ni_vector q[16];
    ni_interleave(in, at, 16, q);
    for (int i = 0; i < 16; i++) ni_swap_places(q[i], out[i / 2].q[i % 2]);
}

static inline void pack_iq3_xxs(const ni_blocks *in, ni_record_iq3_xxs *out) {
    ni_interleave_u16(in, offsetof(ni_block_iq3_xxs, d), out->d);
    pack_places(in, offsetof(ni_block_iq3_xxs, q), out->part);
    for (int s = 0; s < 8; s++)
        for (int r = 0; r < NI_ROWS; r++) {
            const uint32_t file = ni_load_u32(in->row[r] + offsetof(ni_block_iq3_xxs, signs) + 4 * s);
            uint32_t signs = file & 0xf0000000;
            for (int p = 0; p < 4; p++) signs |= ni_signs_iq3[file >> 7 * p & 127] << p;
            ni_put_u32(out->part[s].signs, r, signs);
        }
}

static inline void pack_iq3_s(const ni_blocks *in, ni_record_iq3_s *out) {
    ni_interleave_u16(in, offsetof(ni_block_iq3_s, d), out->d);
    pack_places(in, offsetof(ni_block_iq3_s, q), out->part);
    for (int r = 0; r < NI_ROWS; r++) {
        const uint8_t *block = in->row[r], *high = block + offsetof(ni_block_iq3_s, high);
        ni_put_u32(out->sc, r, ni_load_u32(block + offsetof(ni_block_iq3_s, sc)));
        for (int s = 0; s < 8; s++) {
            const uint8_t *file = block + offsetof(ni_block_iq3_s, signs) + 4 * s;
            uint32_t signs = 0;
            for (int p = 0; p < 4; p++) signs |= ni_signs_iq3[file[p]] << p;
            ni_put_u32(out->part[s].signs, r, signs);
        }
        for (int j = 0; j < 2; j++) {
            uint32_t bits = 0;   /* of words 0, 2, 4, 6 of a part in the lower half, of the others in the upper one */
            for (int l = 0; l < 32; l++) bits |= (uint32_t)(high[4 * j + l / 8] >> l % 8 & 1) << (16 * (l % 2) + l / 2);
            ni_put_u32(out->high[j], r, bits);
        }
    }
}

NI_DEFINE_PACK(iq3_xxs)
NI_DEFINE_PACK(iq3_s)

/* 32 values of row r of a part.  high: the dword with the ninth bits, from bit `at` on; none for IQ3_XXS (n = 0). */
static inline void unpack_part(const ni_part_iq3 *in, int r, const ni_book *book, uint32_t high, int at, int n, uint32_t signs,
                               const uint8_t values[16], int offset, float scale, float *out) {
    for (int p = 0; p < 4; p++, out += 8) {
        uint8_t q[8];
        const uint32_t pair = ni_pair_high(book, ni_load_u32(in->q[p / 2] + 4 * r), p % 2, high, at + p, n);
        ni_values_of_pair_iq3(pair, signs, p, values, q);
        for (int i = 0; i < 8; i++) out[i] = scale * (float)(q[i] - offset);
    }
}

void ni_unpack_row_iq3_xxs(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq3_xxs *in = (const ni_record_iq3_xxs *)group;
    for (int64_t b = 0; b < k / 256; b++, in++)
        for (int s = 0; s < 8; s++, out += 32) {
            const uint32_t signs = ni_load_u32(in->part[s].signs + 4 * r);
            const float scale = ni_f16_to_f32(in->d[r]) * (0.25f * (float)(2 * (signs >> 28) + 1));
            unpack_part(&in->part[s], r, &ni_book_iq3_xxs, 0, 0, 0, ni_all_signs_iq3(signs), ni_values_iq3_xxs, NI_OFFSET_iq3_xxs, scale,
                        out);
        }
}

void ni_unpack_row_iq3_s(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq3_s *in = (const ni_record_iq3_s *)group;
    for (int64_t b = 0; b < k / 256; b++, in++)
        for (int s = 0; s < 8; s++, out += 32) {
            const float scale = ni_f16_to_f32(in->d[r]) * (float)(2 * (ni_load_u32(in->sc + 4 * r) >> 4 * s & 15) + 1);
            unpack_part(&in->part[s], r, &ni_book_iq3_s, ni_load_u32(in->high[s / 4] + 4 * r), 4 * (s % 4), 1,
                        ni_load_u32(in->part[s].signs + 4 * r), ni_values_iq3_s, NI_OFFSET_iq3_s, scale, out);
        }
}
