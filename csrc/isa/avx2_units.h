/* The formats of 1 to 3 bits with AVX2: dot, unpack and gemm.  Included by avx2.c and avxvnni.c, after avx2_dot.h.
 *
 * A unit of 32 values is two sub-blocks.  The first's quants are moved to bit 0, the second's stay where they are, 4 or 8 times as large,
 * and their sum is divided.  Sums of a sub-block fit 16 bits, 4 k-groups of two products a lane; so the product of words that adds
 * pairs of lanes applies the scale, too. */
#ifndef NI_AVX2_UNITS_H
#define NI_AVX2_UNITS_H
#include "avx2_dot.h"
#include "avx2_gemm.h"
#include "avx2_unpack.h"

NI_INLINE __m256i mask_bits(__m256i v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi8((char)mask)); }

/* 32 bytes in a register: gcc would load them anew for each of their uses. */
NI_INLINE __m256i load_once(const uint8_t *p) {
    __m256i v = load32(p);
    IN_ORDER(v);
    return v;
}

/* A unit of 2 bits, one half of the rows: kg 0-3, and 4 times kg 4-7. */
NI_INLINE void unit2_values(const uint8_t *p, __m256i v[8]) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        const __m256i q = load_once(p + 64 * j), up = _mm256_srli_epi16(q, 4);
        v[2 * j] = mask_bits(q, 3), v[2 * j + 4] = mask_bits(q, 12);
        v[2 * j + 1] = mask_bits(up, 3), v[2 * j + 5] = mask_bits(up, 12);
    }
}

/* A unit of 3 bits: kg 0-3, and 8 times kg 4-7. */
NI_INLINE void unit3_values(const uint8_t *p, __m256i v[8]) {
    const __m256i a = load_once(p), b = load_once(p + 64), c = load_once(p + 128);
    v[0] = mask_bits(a, 7), v[1] = mask_bits(b, 7), v[2] = mask_bits(c, 7);
    v[4] = mask_bits(a, 56), v[5] = mask_bits(b, 56), v[6] = mask_bits(c, 56);
    v[3] = _mm256_or_si256(move_bits(a, 6, 0, 2), move_bits(c, 6, 2, 1));
    v[7] = _mm256_or_si256(move_bits(b, 6, 3, 2), move_bits(c, 7, 5, 1));
}

/* 16-bit sums of 4 k-groups. */
NI_INLINE __m256i unit_sum(const __m256i v[4], const int8_t *x) {
    __m256i s = _mm256_maddubs_epi16(v[0], bcast4(x));
#pragma GCC unroll 3
    for (int g = 1; g < 4; g++) {
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(v[g], bcast4(x + 4 * g)));
        IN_ORDER(s);
    }
    return s;
}

/* Of the pair of words of every row the first or the second, twice. */
NI_INLINE __m256i firsts(__m256i pairs) {
    return _mm256_shuffle_epi8(pairs, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13)));
}
NI_INLINE __m256i seconds(__m256i pairs) {
    return _mm256_shuffle_epi8(pairs, _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15)));
}

/* 16 bytes as words. */
NI_INLINE __m256i words_u8(const void *p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)); }
NI_INLINE __m256i words_i8(const void *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

/* acc = fma(isum, scale, acc) */
NI_INLINE __m256 add_product(__m256i isum, __m256 scale, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), scale, acc);
}

NI_INLINE void dot_block_q2_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q2_k *in = (const ni_record_q2_k *)w;
    __m256 acc[2];
    acc[0] = acc[1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        __m256 total[2], totalm[2];
        total[0] = total[1] = totalm[0] = totalm[1] = _mm256_setzero_ps();
        for (int u = 0; u < 8; u++) {
            const __m256 d = _mm256_broadcast_ss(x->d + k / 32 + u);
            const __m256i sums = bcast4((const int8_t *)(x->s + k / 16 + 2 * u));
            const int8_t *xq = x->q + k + 32 * u;
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m256i both = words_u8(in->s[u] + 8 * i), sc = mask_bits(both, 15);
                __m256i v[8];
                unit2_values(in->q[u][0] + 32 * i, v);
                const __m256i s0 = unit_sum(v, xq), s1 = _mm256_srai_epi16(unit_sum(v + 4, xq + 16), 2);
                const __m256i isum = _mm256_add_epi32(_mm256_madd_epi16(s0, firsts(sc)), _mm256_madd_epi16(s1, seconds(sc)));
                total[i] = add_product(isum, d, total[i]);
                totalm[i] = add_product(_mm256_madd_epi16(_mm256_srli_epi16(both, 4), sums), d, totalm[i]);
            }
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            acc[i] = _mm256_fmadd_ps(total[i], load_f16(in->d + 8 * i), acc[i]);
            acc[i] = _mm256_fnmadd_ps(totalm[i], load_f16(in->dmin + 8 * i), acc[i]);
        }
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

/* The scales of a record of Q3_K, less 32: line c in bytes 64 c. */
NI_INLINE void widen_q3_scales(const ni_record_q3_k *in, int8_t sc[256]) {
#pragma GCC unroll 2
    for (int i = 0; i < 64; i += 32) {
        const __m256i upper = load32(in->upper + i);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const __m256i low = load32(in->low[c / 2] + i);
            const __m256i v = _mm256_or_si256(c % 2 ? high_nibbles(low) : low_nibbles(low), move_bits(upper, 2 * c, 4, 2));
            _mm256_storeu_si256((__m256i *)(sc + 64 * c + i), _mm256_sub_epi8(v, _mm256_set1_epi8(32)));
        }
    }
}

/* n values.  The second sub-block's sums are 8 times as large: 4 * 2 * 8 * 7 * 127 does not fit 16 bits, but with q - 4 they do, at most
 * 4 * 2 * 8 * 4 * 127.  So they start where they come out right, however they wrap on the way (write_starts, of 4 and 32). */
NI_INLINE void dot_block_q3_k(const ni_record_q3_k *in, int64_t n, const int8_t *q, const float *d, const int32_t *start, __m256 acc[2]) {
    for (int64_t k = 0; k < n; k += 256, in++) {
        int8_t sc[256];
        __m256 total[2];
        total[0] = total[1] = _mm256_setzero_ps();
        widen_q3_scales(in, sc);
        for (int u = 0; u < 8; u++) {
            const __m256 dx = _mm256_broadcast_ss(d + k / 32 + u);
            const int8_t *xq = q + k + 32 * u;
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m256i pairs = words_i8(sc + 32 * u + 16 * i);
                __m256i v[8], s[2];
                unit3_values(in->v[u][0] + 32 * i, v);
#pragma GCC unroll 2
                for (int e = 0; e < 2; e++) {
                    s[e] = _mm256_set1_epi32(start[k / 16 + 2 * u + e]);
#pragma GCC unroll 4
                    for (int g = 0; g < 4; g++) {
                        s[e] = _mm256_add_epi16(s[e], _mm256_maddubs_epi16(v[4 * e + g], bcast4(xq + 16 * e + 4 * g)));
                        IN_ORDER(s[e]);
                    }
                }
                const __m256i s0 = _mm256_madd_epi16(s[0], firsts(pairs));
                const __m256i s1 = _mm256_madd_epi16(_mm256_srai_epi16(s[1], 3), seconds(pairs));
                total[i] = add_product(_mm256_add_epi32(s0, s1), dx, total[i]);
            }
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) acc[i] = _mm256_fmadd_ps(total[i], load_f16(in->d + 8 * i), acc[i]);
    }
}
NI_DOT(q2_k, q2_k, dot_block_q2_k)
NI_DOT_NESTED(q3_k, 4, 32)

static void unpack_q2_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q2_k);
    (void)nk;   /* a slab is one block */
    const __m256i nibble = _mm256_set1_epi32(15);
    for (int i = 0; i < 2; i++) {
        _mm256_storeu_ps(p->min + 8 * i, load_f16(in->d + 8 * i));
        _mm256_storeu_ps(p->f + 8 * i, load_f16(in->dmin + 8 * i));
    }
    for (int u = 0; u < 8; u++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i s = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(in->s[u] + 8 * i)));
            __m256i v[8];
            unit2_values(in->q[u][0] + 32 * i, v);
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) {
                const __m256i sc = _mm256_and_si256(_mm256_srli_epi32(s, 8 * e), nibble);
                const __m256i mn = _mm256_and_si256(_mm256_srli_epi32(s, 8 * e + 4), nibble);
                _mm256_storeu_ps(p->scale + NI_ROWS * (2 * u + e) + 8 * i, _mm256_cvtepi32_ps(sc));
                _mm256_storeu_ps(p->f + NI_ROWS * (1 + 2 * u + e) + 8 * i, _mm256_cvtepi32_ps(mn));
            }
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) store32(p->q + 512 * u + 64 * g + 32 * i, g < 4 ? v[g] : _mm256_srli_epi16(v[g], 2));
        }
}

static void unpack_q3_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q3_k);
    (void)nk;
    int8_t sc[256];
    widen_q3_scales(in, sc);
    for (int i = 0; i < 2; i++) _mm256_storeu_ps(p->min + 8 * i, load_f16(in->d + 8 * i));
    for (int u = 0; u < 8; u++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i pairs = words_i8(sc + 32 * u + 16 * i);
            __m256i v[8];
            unit3_values(in->v[u][0] + 32 * i, v);
            const __m256i first = _mm256_srai_epi32(_mm256_slli_epi32(pairs, 16), 16), second = _mm256_srai_epi32(pairs, 16);
            _mm256_storeu_ps(p->scale + NI_ROWS * 2 * u + 8 * i, _mm256_cvtepi32_ps(first));
            _mm256_storeu_ps(p->scale + NI_ROWS * (2 * u + 1) + 8 * i, _mm256_cvtepi32_ps(second));
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) store32(p->q + 512 * u + 64 * g + 32 * i, g < 4 ? v[g] : _mm256_srli_epi16(v[g], 3));
        }
}

static void gemm_q3_k(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {
    (void)accm;
    gemm_nested(p, k0, nk, x, n_tokens, 4, acc);
}

/* acc = fma(-(sum of mn * s), dmin, acc), of a block of 256; mn: [8 units][2 halves], words of two sub-blocks. */
NI_INLINE void tile_nested_min(const __m256i *mn, const float *dmin, gemm_tokens a, int M, float *acc) {
    __m256 total[6][2];
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) total[m][0] = total[m][1] = _mm256_setzero_ps();
    for (int64_t u = 0; u < 8; u++, mn += 2) {
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const __m256 d = _mm256_broadcast_ss(a.d + m * a.k32 + u);
            const __m256i s = bcast4((const int8_t *)(a.s + m * a.k16 + 2 * u));
            total[m][0] = add_product(_mm256_madd_epi16(mn[0], s), d, total[m][0]);
            total[m][1] = add_product(_mm256_madd_epi16(mn[1], s), d, total[m][1]);
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            float *to = acc + NI_ROWS * m + 8 * i;
            _mm256_storeu_ps(to, _mm256_fnmadd_ps(total[m][i], _mm256_loadu_ps(dmin + 8 * i), _mm256_loadu_ps(to)));
        }
}

NI_GEMM(nested_min, 6, 0, tile_nested_min((const __m256i *)p->q, p->min, a, m_, out))

NI_INLINE void subtract_minimums(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc) {
    __m256i mn[16];
    for (int i = 0; i < 16; i++) {
        const float *two = p->f + NI_ROWS * (1 + i / 2 * 2) + 8 * (i % 2);
        const __m256i first = _mm256_cvtps_epi32(_mm256_loadu_ps(two)), second = _mm256_cvtps_epi32(_mm256_loadu_ps(two + NI_ROWS));
        mn[i] = _mm256_or_si256(first, _mm256_slli_epi32(second, 16));
    }
    const ni_panel low = {.q = (uint8_t *)mn, .min = p->f};
    gemm_nested_min(&low, k0, nk, x, n_tokens, acc, NULL);
}

static void gemm_q2_k(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {
    (void)accm;
    gemm_nested(p, k0, nk, x, n_tokens, 0, acc);
    subtract_minimums(p, k0, nk, x, n_tokens, acc);
}

/* TQ1_0, TQ2_0, Q1_0, Q2_0: quants of at most 3, less 1. */
static void gather_offset1(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    gather_starts(x, k0, nk, n_tokens, 1, to, slab);
}
NI_GEMM(offset1, 6, 0, tile_q4(p, nk, a, m_, 1, out))

/* Q1_0: kg 0-3, and 16 times kg 4-7, half as large as a panel has them. */
NI_INLINE void unit1_values(const uint8_t *p, __m256i v[8]) {
    const __m256i q = load_once(p);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) v[g] = move_bits(q, g, 0, 1), v[g + 4] = move_bits(q, g + 4, 4, 1);
}

/* Sums of a unit's values with 32 activations, as words; kg 4-7 of v stand `scaled` bits too high. */
typedef __m256i sums_of_unit(const __m256i v[8], const int8_t *x, int scaled);

NI_INLINE __m256i word_sums(const __m256i v[8], const int8_t *x, int scaled) {
    return _mm256_add_epi16(unit_sum(v, x), _mm256_srai_epi16(unit_sum(v + 4, x + 16), scaled));
}

/* Units of 1 or 2 bits, `units` to a record, behind its d. */
NI_INLINE void dot_units(const uint8_t *w, int units, int bits, sums_of_unit *sums, const ni_act *x, float *y) {
    __m256 acc[2];
    acc[0] = acc[1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < x->k / 32;) {
        const __m256 scale[2] = {load_f16(w), load_f16(w + NI_ROWS)};
        w += 2 * NI_ROWS;
        for (int u = 0; u < units; u++, b++, w += 64 * bits) {
            const __m256 d = _mm256_broadcast_ss(x->d + b);
            const __m256i less = offset32(x->s + 2 * b, 1);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                __m256i v[8];
                if (bits == 1) unit1_values(w + 32 * i, v);
                else unit2_values(w + 32 * i, v);
                const __m256i both = sums(v, x->q + 32 * b, bits == 1 ? 4 : 2);
                const __m256i s = _mm256_madd_epi16(both, _mm256_set1_epi16(bits == 1 ? 2 : 1));
                acc[i] = add_product(_mm256_sub_epi32(s, less), _mm256_mul_ps(scale[i], d), acc[i]);
            }
        }
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

NI_DOT(tq2_0, tq2_0, dot_units, 8, 2, word_sums)
NI_DOT(q1_0, q1_0, dot_units, 4, 1, word_sums)
NI_DOT(q2_0, q2_0, dot_units, 2, 2, word_sums)

NI_INLINE void unpack_units(const uint8_t *group, int64_t k0, int64_t nk, int units, int bits, ni_panel *p) {
    const uint8_t *w = group + k0 / (32 * units) * (2 * NI_ROWS + 64 * bits * units);
    for (int64_t b = 0; b < nk / 32;) {
        const __m256 scale[2] = {load_f16(w), load_f16(w + NI_ROWS)};
        w += 2 * NI_ROWS;
        for (int u = 0; u < units; u++, b++, w += 64 * bits)
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                __m256i v[8];
                if (bits == 1) unit1_values(w + 32 * i, v);
                else unit2_values(w + 32 * i, v);
                _mm256_storeu_ps(p->scale + NI_ROWS * b + 8 * i, scale[i]);
#pragma GCC unroll 8
                for (int g = 0; g < 8; g++) {
                    const __m256i q = bits == 1 ? (g < 4 ? _mm256_slli_epi16(v[g], 1) : _mm256_srli_epi16(v[g], 3)) :
                                      g < 4 ? v[g] : _mm256_srli_epi16(v[g], 2);
                    store32(p->q + 512 * b + 64 * g + 32 * i, q);
                }
            }
    }
}

NI_UNPACK(tq2_0, unpack_units(group, k0, nk, 8, 2, p))
NI_UNPACK(q1_0, unpack_units(group, k0, nk, 4, 1, p))
NI_UNPACK(q2_0, unpack_units(group, k0, nk, 2, 2, p))

/* Digits of base 3: 3 v / 256 is 1 from 86 on and 2 from 171 on; its fraction, times 256, is what a byte keeps of 3 v. */
NI_INLINE void unpack_digits(const ni_vector *in, int count, int digits, int apart, uint8_t *out) {
    const __m256i one = _mm256_set1_epi8(1), most0 = _mm256_set1_epi8(85), most1 = _mm256_set1_epi8((char)170);
    for (int i = 0; i < 2 * count; i++) {
        __m256i v = load32(in[0] + 32 * i);
        for (int n = 0; n < digits; n++) {
            const __m256i a = _mm256_min_epu8(_mm256_subs_epu8(v, most0), one), b = _mm256_min_epu8(_mm256_subs_epu8(v, most1), one);
            store32(out + 64 * apart * n + 32 * i, _mm256_add_epi8(a, b));
            v = _mm256_add_epi8(_mm256_add_epi8(v, v), v);
        }
    }
}

static void unpack_tq1_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(tq1_0);
    for (int64_t b = 0; b < nk / 256; b++) {
        uint8_t *q = p->q + 4096 * b;
        for (int s = 0; s < 16; s++) _mm256_storeu_ps(p->scale + NI_ROWS * 8 * b + 8 * s, load_f16(in[b].d + 8 * (s % 2)));
        unpack_digits(in[b].q, 8, 5, 8, q);
        unpack_digits(in[b].q + 8, 4, 5, 4, q + 64 * 40);
        unpack_digits(in[b].q + 12, 1, 4, 1, q + 64 * 60);
    }
}
#endif
