/* IQ1_S and IQ1_M: 256 values; eight of them are a word of a code book of 2048, with digits for -1, 0, 1, all shifted by an eighth.
 *
 * IQ1_S: byte l of `q` and, above them, bits 3 (l % 4) .. of the 16 bits l / 4 of `h`: the place of word l; these 16 bits also hold the
 * scale of 32 values (bits 12-14) and whether their shift is down (bit 15).  IQ1_M: nibble l of `h`: three bits of a place, and whether
 * the shift of the word is down; the four times 16 bits of `sc` hold 3 bits of scale for each of 4 sub-blocks of 16 values, and a
 * nibble of d. */
#include "pack.h"
#include "codebook.h"

/* A word; down: its shift. */
static inline void decode8(unsigned word, unsigned down, float d, unsigned sc, float *out) {
    const float scale = d * (float)(2 * (sc & 7) + 1) * 0.125f;
    for (int i = 0; i < 8; i++) {
        const unsigned digit = word >> (8 * (i % 2) + 2 * (i / 2)) & 3;
        out[i] = scale * (float)(ni_values_iq1_s[digit | (down & 1) << 2] - NI_OFFSET_iq1_s);
    }
}

void ni_decode_iq1_s(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq1_s *in = (const ni_block_iq1_s *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, in++)
        for (int l = 0; l < 32; l++, out += 8) {
            const unsigned h = ni_load_u16(in->h + 2 * (l / 4));
            decode8(ni_book_iq1.word[in->q[l] | (h >> 3 * (l % 4) & 7) << 8], h >> 15, ni_load_f16(in->d), h >> 12, out);
        }
}

static inline uint16_t d_of_iq1_m(const uint8_t *sc) {
    unsigned d = 0;
    for (int j = 0; j < 4; j++) d |= (unsigned)(sc[2 * j + 1] >> 4) << 4 * j;
    return (uint16_t)d;
}

void ni_decode_iq1_m(const uint8_t *blocks, int64_t n_blocks, float *out) {
    const ni_block_iq1_m *in = (const ni_block_iq1_m *)blocks;
    for (int64_t b = 0; b < n_blocks; b++, in++)
        for (int l = 0; l < 32; l++, out += 8) {
            const unsigned h = in->h[l / 2] >> 4 * (l % 2), sc = ni_load_u16(in->sc + 2 * (l / 8)) >> 3 * (l / 2 % 4);
            decode8(ni_book_iq1.word[in->q[l] | (h & 7) << 8], h >> 3, ni_f16_to_f32(d_of_iq1_m(in->sc)), sc, out);
        }
}

static inline void pack_parts(const ni_blocks *in, size_t q_at, size_t h_at, ni_part_iq1 *out) {
    ni_vector q[8];
    ni_interleave(in, q_at, 8, q);
    for (int s = 0; s < 8; s++) {
        ni_swap_places(q[s], out[s].q);
        ni_interleave_u16(in, h_at + 2 * (size_t)s, out[s].h);
    }
}

static inline void pack_iq1_s(const ni_blocks *in, ni_record_iq1_s *out) {
    ni_interleave_u16(in, offsetof(ni_block_iq1_s, d), out->d);
    pack_parts(in, offsetof(ni_block_iq1_s, q), offsetof(ni_block_iq1_s, h), out->part);
}

static inline void pack_iq1_m(const ni_blocks *in, ni_record_iq1_m *out) {
    pack_parts(in, offsetof(ni_block_iq1_m, q), offsetof(ni_block_iq1_m, h), out->part);
    for (int r = 0; r < NI_ROWS; r++) {
        const uint8_t *sc = in->row[r] + offsetof(ni_block_iq1_m, sc);
        out->d[r] = d_of_iq1_m(sc);
        for (int e = 0; e < 3; e++) {
            unsigned bits = 0;
            for (int s = 0; s < 16; s++) bits |= (unsigned)(ni_load_u16(sc + 2 * (s / 4)) >> (3 * (s % 4) + e) & 1) << s;
            out->sc[e][r] = (uint16_t)bits;
        }
    }
}

NI_DEFINE_PACK(iq1_s)
NI_DEFINE_PACK(iq1_m)

/* 16 values of row r, pair p of a part; high0, high1: upper bits of its places; down: signs of its shift, as codebook.h has them. */
static inline void unpack_pair(const ni_part_iq1 *in, int r, int p, uint32_t high0, uint32_t high1, uint32_t down, float d, uint32_t sc,
                               float *out) {
    uint8_t q[16];
    const float scale = d * (0.125f * (float)(2 * sc + 1));
    ni_values_of_pair_iq2(ni_pair(&ni_book_iq1, ni_load_u32(in->q + 4 * r), p, high0 & 7, high1 & 7), down, p, ni_values_iq1_s, q);
    for (int i = 0; i < 16; i++) out[i] = scale * (float)(q[i] - NI_OFFSET_iq1_s);
}

void ni_unpack_row_iq1_s(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq1_s *in = (const ni_record_iq1_s *)group;
    for (int64_t b = 0; b < k / 256; b++, in++)
        for (int s = 0; s < 16; s++, out += 16) {
            const uint32_t h = in->part[s / 2].h[r];
            unpack_pair(&in->part[s / 2], r, s % 2, h >> 6 * (s % 2), h >> (6 * (s % 2) + 3), h >> 15 ? 0xffffffff : 0,
                        ni_f16_to_f32(in->d[r]), h >> 12 & 7, out);
        }
}

void ni_unpack_row_iq1_m(const uint8_t *group, int r, int64_t k, float *out) {
    const ni_record_iq1_m *in = (const ni_record_iq1_m *)group;
    for (int64_t b = 0; b < k / 256; b++, in++)
        for (int s = 0; s < 16; s++, out += 16) {
            const uint32_t h = in->part[s / 2].h[r] >> 8 * (s % 2), down = (h & 8 ? 0xffff : 0) | (h & 128 ? 0xffff0000 : 0);
            uint32_t sc = 0;
            for (int e = 0; e < 3; e++) sc |= (uint32_t)(in->sc[e][r] >> s & 1) << e;
            unpack_pair(&in->part[s / 2], r, s % 2, h, h >> 4, down, ni_f16_to_f32(in->d[r]), sc, out);
        }
}
