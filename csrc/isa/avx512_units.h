/* The formats of 1 to 3 bits with AVX-512: dot, unpack and gemm.  Included by avx512.c, after avx512_dot.h and avx512_gemm.h.
 *
 * A unit of 32 values is two sub-blocks.  The first's quants are moved to bit 0, the second's stay where they are, 4 or 8 times as large:
 * so is their sum, by 2 or 3 bits, and it would have to move up 16 anyway, to stand beside the first as a pair of words.  One product of
 * words then applies both scales. */
#ifndef NI_AVX512_UNITS_H
#define NI_AVX512_UNITS_H
#include "avx512_dot.h"
#include "avx512_gemm.h"

NI_INLINE __m512i mask_bits(__m512i v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8((char)mask)); }

/* a where `mask` has ones, else b. */
NI_INLINE __m512i choose(int mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)mask), a, b, 0xca); }

/* 64 bytes in a register: gcc would load them anew for each of their uses, and half of the records lie across cache lines. */
NI_INLINE __m512i load_once(const uint8_t *p) {
    __m512i v = load64(p);
    IN_ORDER(v);
    return v;
}

/* A unit of 2 bits: kg 0-3, and 4 times kg 4-7. */
NI_INLINE void unit2_values(const uint8_t *p, __m512i v[8]) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        const __m512i q = load_once(p + 64 * j), up = _mm512_srli_epi16(q, 4);
        v[2 * j] = mask_bits(q, 3), v[2 * j + 4] = mask_bits(q, 12);
        v[2 * j + 1] = mask_bits(up, 3), v[2 * j + 5] = mask_bits(up, 12);
    }
}

/* A unit of 3 bits: kg 0-3, and 8 times kg 4-7. */
NI_INLINE void unit3_values(const uint8_t *p, __m512i v[8]) {
    const __m512i a = load_once(p), b = load_once(p + 64), c = load_once(p + 128);
    v[0] = mask_bits(a, 7), v[1] = mask_bits(b, 7), v[2] = mask_bits(c, 7);
    v[4] = mask_bits(a, 56), v[5] = mask_bits(b, 56), v[6] = mask_bits(c, 56);
    v[3] = mask_bits(choose(3, _mm512_srli_epi16(a, 6), _mm512_srli_epi16(c, 4)), 7);
    v[7] = mask_bits(choose(24, _mm512_srli_epi16(b, 3), _mm512_srli_epi16(c, 2)), 56);
}

/* Sums of kg 0-3 and kg 4-7 with 32 activations. */
NI_INLINE void unit_sums(const __m512i v[8], const int8_t *x, __m512i s[2]) {
    s[0] = s[1] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        s[0] = _mm512_dpbusd_epi32(s[0], v[g], bcast4(x + 4 * g));
        s[1] = _mm512_dpbusd_epi32(s[1], v[g + 4], bcast4(x + 4 * g + 16));
    }
}

/* The two sums as words, the second taken from `scaled` bits up. */
NI_INLINE __m512i pair_sums(const __m512i s[2], int scaled) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, s[0], _mm512_slli_epi32(s[1], (unsigned)(16 - scaled)));
}

/* 32 bytes as words. */
NI_INLINE __m512i words_u8(const void *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p)); }

NI_INLINE void dot_block_q2_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q2_k *in = (const ni_record_q2_k *)w;
    __m512 acc = _mm512_setzero_ps();
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        __m512 total = _mm512_setzero_ps(), totalm = total;
#pragma GCC unroll 2
        for (int u = 0; u < 8; u++) {
            const __m512 d = _mm512_set1_ps(x->d[k / 32 + u]);
            const __m512i both = words_u8(in->s[u]);
            __m512i v[8], s[2];
            unit2_values(in->q[u][0], v);
            unit_sums(v, x->q + k + 32 * u, s);
            const __m512i isum = _mm512_madd_epi16(pair_sums(s, 2), mask_bits(both, 15));
            const __m512i imin = _mm512_madd_epi16(_mm512_srli_epi16(both, 4), bcast4(x->s + k / 16 + 2 * u));
            total = finish(isum, d, total);
            totalm = finish(imin, d, totalm);
        }
        acc = _mm512_fmadd_ps(total, load_f16(in->d), acc);
        acc = _mm512_fnmadd_ps(totalm, load_f16(in->dmin), acc);
    }
    _mm512_storeu_ps(y, acc);
}

/* The scales of a record of Q3_K, less 32. */
NI_INLINE void widen_q3_scales(const ni_record_q3_k *in, __m512i line[4]) {
    const __m512i upper = load64(in->upper);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m512i low = load64(in->low[c / 2]), nibble = c % 2 ? _mm512_srli_epi16(low, 4) : low;
        line[c] = _mm512_sub_epi8(mask_bits(choose(15, nibble, move_bits(upper, 2 * c, 4)), 63), _mm512_set1_epi8(32));
    }
}

/* Of a line the half that belongs to unit u. */
NI_INLINE __m256i half_line(const __m512i line[4], int u) {
    return u % 2 ? _mm512_extracti64x4_epi64(line[u / 2], 1) : _mm512_castsi512_si256(line[u / 2]);
}

NI_INLINE void dot_block_q3_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q3_k *in = (const ni_record_q3_k *)w;
    __m512 acc = _mm512_setzero_ps();
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        __m512i line[4];
        __m512 total = _mm512_setzero_ps();
        widen_q3_scales(in, line);
#pragma GCC unroll 8
        for (int u = 0; u < 8; u++) {
            __m512i v[8], s[2];
            unit3_values(in->v[u][0], v);
            unit_sums(v, x->q + k + 32 * u, s);
            const __m512i offset = _mm512_slli_epi16(bcast4(x->s + k / 16 + 2 * u), 2);
            const __m512i isum = _mm512_madd_epi16(_mm512_sub_epi16(pair_sums(s, 3), offset), _mm512_cvtepi8_epi16(half_line(line, u)));
            total = finish(isum, _mm512_set1_ps(x->d[k / 32 + u]), total);
            LOADS_STAY;
        }
        acc = _mm512_fmadd_ps(total, load_f16(in->d), acc);
    }
    _mm512_storeu_ps(y, acc);
}

NI_DOT(q2_k, q2_k, dot_block_q2_k)
NI_DOT(q3_k, q3_k, dot_block_q3_k)

static void unpack_q2_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q2_k);
    (void)nk;   /* a slab is one block */
    _mm512_storeu_ps(p->min, load_f16(in->d));
    _mm512_storeu_ps(p->f, load_f16(in->dmin));
    for (int u = 0; u < 8; u++) {
        const __m512i s = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)in->s[u])), nibble = _mm512_set1_epi32(15);
        __m512i v[8];
        unit2_values(in->q[u][0], v);
#pragma GCC unroll 2
        for (int e = 0; e < 2; e++) {
            const __m512i sc = _mm512_and_si512(_mm512_srli_epi32(s, (unsigned)(8 * e)), nibble);
            const __m512i mn = _mm512_and_si512(_mm512_srli_epi32(s, (unsigned)(8 * e + 4)), nibble);
            _mm512_storeu_ps(p->scale + NI_ROWS * (2 * u + e), _mm512_cvtepi32_ps(sc));
            _mm512_storeu_ps(p->f + NI_ROWS * (1 + 2 * u + e), _mm512_cvtepi32_ps(mn));
        }
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) store64(p->q + 512 * u + 64 * g, g < 4 ? v[g] : _mm512_srli_epi16(v[g], 2));
    }
}

static void unpack_q3_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q3_k);
    (void)nk;
    __m512i line[4];
    widen_q3_scales(in, line);
    _mm512_storeu_ps(p->min, load_f16(in->d));
#pragma GCC unroll 8
    for (int u = 0; u < 8; u++) {
        const __m512i pair = _mm512_cvtepi16_epi32(half_line(line, u));
        const __m512i first = _mm512_srai_epi32(_mm512_slli_epi32(pair, 24), 24), second = _mm512_srai_epi32(pair, 8);
        __m512i v[8];
        unit3_values(in->v[u][0], v);
        _mm512_storeu_ps(p->scale + NI_ROWS * 2 * u, _mm512_cvtepi32_ps(first));
        _mm512_storeu_ps(p->scale + NI_ROWS * (2 * u + 1), _mm512_cvtepi32_ps(second));
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) store64(p->q + 512 * u + 64 * g, g < 4 ? v[g] : _mm512_srli_epi16(v[g], 3));
    }
}
/* Prefill.  A quant times its scale fits a byte: 3 * 15 of Q2_K, and of Q3_K -124 to 128, which is unsigned with 124 added.  So the
 * panel's scales are multiplied in once for all tokens, and a block of 32 needs no scales, only sums that start at
 * -124 * (sum of the activations). */
enum { WHOLE = 124 };

/* The panel's (q - offset) * sc + add, for a slab of 256.  The four rows of a lane have a table of four products each, for the low two bits
 * of q; where `wide`, its third bit adds 4 * sc.  As numbers of four digits the tables are multiples of sc: every digit fits a byte. */
NI_INLINE void multiply_in(const ni_panel *p, int offset, int add, int wide, uint8_t out[NI_SLAB * NI_ROWS]) {
    const __m512i lane = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);   /* where a row's table begins; byte 0 of each row */
    const __m512i digits = _mm512_set1_epi32(0x03020100 - offset * 0x01010101), more = _mm512_set1_epi32(add * 0x01010101);
    for (int s = 0; s < NI_SLAB / 16; s++) {
        const __m512i sc = _mm512_cvtps_epi32(_mm512_loadu_ps(p->scale + NI_ROWS * s));
        const __m512i table = _mm512_add_epi32(_mm512_mullo_epi32(sc, digits), more);
        const __m512i four = _mm512_shuffle_epi8(_mm512_slli_epi32(sc, 2), lane);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            const __m512i q = load64(p->q + 256 * s + 64 * g);
            __m512i v = _mm512_shuffle_epi8(table, wide ? choose(3, q, lane) : _mm512_or_si512(q, lane));
            if (wide) v = _mm512_mask_add_epi8(v, _mm512_cmpgt_epi8_mask(q, _mm512_set1_epi8(3)), v, four);
            store64(out + 256 * s + 64 * g, v);
        }
    }
}

/* A block of 256, weights with their scales multiplied in. */
NI_INLINE void tile_whole(const uint8_t *w, const float *scale256, const ni_act *a, int64_t t, int M, int offset, float *out) {
    const int8_t *q = a->q + t * NI_SLAB;
    const float *d = a->d + t * (NI_SLAB / 32);
    const int32_t *start = a->start + t * (NI_SLAB / 32);
    __m512 total[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int64_t b = 0; b < NI_SLAB / 32; b++, w += 512, q += 32, d++, start++) {
        __m512i s[TILE];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) s[m] = offset ? bcast_load(start + NI_SLAB / 32 * m) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m512i v = load64(w + 64 * j);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) s[m] = dot4(s[m], v, q + NI_SLAB * m + 4 * j);
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            total[m] = finish(s[m], _mm512_set1_ps(d[NI_SLAB / 32 * m]), total[m]);
            IN_ORDER(total[m]);
        }
    }
    const __m512 scale = _mm512_loadu_ps(scale256);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++, out += NI_ROWS) _mm512_storeu_ps(out, _mm512_fmadd_ps(total[m], scale, _mm512_loadu_ps(out)));
}

/* The minimums of a panel of Q2_K: words of the two sub-blocks of a unit. */
NI_INLINE void pair_minimums(const ni_panel *p, __m512i mn[NI_SLAB / 32]) {
    for (int u = 0; u < NI_SLAB / 32; u++) {
        const float *two = p->f + NI_ROWS * (1 + 2 * u);
        const __m512i first = _mm512_cvtps_epi32(_mm512_loadu_ps(two)), second = _mm512_cvtps_epi32(_mm512_loadu_ps(two + NI_ROWS));
        mn[u] = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
    }
}

/* acc = fma(-(sum of mn * s), dmin, acc); mn: [8 units], words of two sub-blocks. */
NI_INLINE void tile_whole_min(const __m512i *mn, const float *dmin, const ni_act *a, int64_t t, int M, float *out) {
    const float *d = a->d + t * (NI_SLAB / 32);
    const int32_t *pairs = a->start + t * (NI_SLAB / 32);
    __m512 total[TILE];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int64_t u = 0; u < NI_SLAB / 32; u++)
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            const __m512i sum = _mm512_madd_epi16(mn[u], bcast_load(pairs + u + NI_SLAB / 32 * m));
            total[m] = finish(sum, _mm512_set1_ps(d[u + NI_SLAB / 32 * m]), total[m]);
            IN_ORDER(total[m]);
        }
    const __m512 low = _mm512_loadu_ps(dmin);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++, out += NI_ROWS) _mm512_storeu_ps(out, _mm512_fnmadd_ps(total[m], low, _mm512_loadu_ps(out)));
}

NI_GATHER(q3_k, NI_SLAB, 32, WHOLE, 0)

/* Quants, scales and, as start, the pairs of sums of 16. */
static void gather_q2_k(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    fill_slab(x, k0, nk, n_tokens, to, slab, NI_SLAB, 32, 0, 0, 0);
    int16_t *s = (int16_t *)(to + (size_t)n_tokens * (NI_SLAB + NI_SLAB / 8));
    slab->start = (int32_t *)s;
    for (int64_t t = 0; t < n_tokens; t++) memcpy(s + t * (NI_SLAB / 16), x->s + (t * x->k + k0) / 16, (size_t)nk / 8);
}

NI_GEMM(q3_k, TILE, 0, (void)accm; (void)nk; _Alignas(64) uint8_t w[NI_SLAB * NI_ROWS]; multiply_in(p, 4, WHOLE, 1, w),
        tile_whole(w, p->min, x, t, m_, WHOLE, out))
NI_GEMM(q2_k, TILE, 0, (void)accm; (void)nk; _Alignas(64) uint8_t w[NI_SLAB * NI_ROWS]; __m512i mn[NI_SLAB / 32];
        multiply_in(p, 0, 0, 0, w); pair_minimums(p, mn),
        tile_whole(w, p->min, x, t, m_, 0, out); tile_whole_min(mn, p->f, x, t, m_, out))

/* TQ1_0, TQ2_0, Q1_0, Q2_0: quants of at most 3, less 1. */
NI_GATHER(offset1, LONG, 32, 1, 0)
NI_GEMM(offset1, TILE, 0, (void)accm, tile_quants(p, nk, x, t, m_, 1, NULL, out))

/* Q1_0: kg 0-3, and 16 times kg 4-7, half as large as a panel has them. */
NI_INLINE void unit1_values(const uint8_t *p, __m512i v[8]) {
    const __m512i q = load_once(p);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) v[g] = mask_bits(move_bits(q, g, 0), 1), v[g + 4] = mask_bits(move_bits(q, g, 0), 16);
}

/* Units of 1 or 2 bits, `units` to a record, behind its d. */
NI_INLINE void dot_units(const uint8_t *w, int units, int bits, const ni_act *x, float *y) {
    __m512 acc = _mm512_setzero_ps();
    for (int64_t b = 0; b < x->k / 32;) {
        const __m512 scale = load_f16(w);
        w += 2 * NI_ROWS;
        for (int u = 0; u < units; u++, b++, w += 64 * bits) {
            __m512i v[8], s[2];
            if (bits == 1) unit1_values(w, v);
            else unit2_values(w, v);
            unit_sums(v, x->q + 32 * b, s);
            __m512i isum = _mm512_add_epi32(s[0], _mm512_srai_epi32(s[1], bits == 1 ? 4 : 2));
            if (bits == 1) isum = _mm512_slli_epi32(isum, 1);
            isum = _mm512_add_epi32(isum, start_at(x->s + 2 * b, -1, -1));
            acc = finish(isum, _mm512_mul_ps(scale, _mm512_set1_ps(x->d[b])), acc);
        }
    }
    _mm512_storeu_ps(y, acc);
}

NI_DOT(tq2_0, tq2_0, dot_units, 8, 2)
NI_DOT(q1_0, q1_0, dot_units, 4, 1)
NI_DOT(q2_0, q2_0, dot_units, 2, 2)

NI_INLINE void unpack_units(const uint8_t *group, int64_t k0, int64_t nk, int units, int bits, ni_panel *p) {
    const uint8_t *w = group + k0 / (32 * units) * (2 * NI_ROWS + 64 * bits * units);
    for (int64_t b = 0; b < nk / 32;) {
        const __m512 scale = load_f16(w);
        w += 2 * NI_ROWS;
        for (int u = 0; u < units; u++, b++, w += 64 * bits) {
            __m512i v[8];
            if (bits == 1) unit1_values(w, v);
            else unit2_values(w, v);
            _mm512_storeu_ps(p->scale + NI_ROWS * b, scale);
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++) {
                const __m512i q = bits == 1 ? (g < 4 ? _mm512_slli_epi16(v[g], 1) : _mm512_srli_epi16(v[g], 3)) :
                                  g < 4 ? v[g] : _mm512_srli_epi16(v[g], 2);
                store64(p->q + 512 * b + 64 * g, q);
            }
        }
    }
}

#define NI_UNPACK_UNITS(name, units, bits)                                                     \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {     \
        unpack_units(group, k0, nk, units, bits, p);                                           \
    }
NI_UNPACK_UNITS(tq2_0, 8, 2)
NI_UNPACK_UNITS(q1_0, 4, 1)
NI_UNPACK_UNITS(q2_0, 2, 2)

/* Digits of base 3: 3 v / 256 is 1 from 86 on and 2 from 171 on; its fraction, times 256, is what a byte keeps of 3 v. */
NI_INLINE void unpack_digits(const ni_vector *in, int count, int digits, int apart, uint8_t *out) {
    const __m512i one = _mm512_set1_epi8(1), most0 = _mm512_set1_epi8(85), most1 = _mm512_set1_epi8((char)170);
    for (int i = 0; i < count; i++) {
        __m512i v = load64(in[i]);
        for (int n = 0; n < digits; n++) {
            const __m512i a = _mm512_min_epu8(_mm512_subs_epu8(v, most0), one), b = _mm512_min_epu8(_mm512_subs_epu8(v, most1), one);
            store64(out + 64 * (apart * n + i), _mm512_add_epi8(a, b));
            v = _mm512_add_epi8(_mm512_add_epi8(v, v), v);
        }
    }
}

static void unpack_tq1_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(tq1_0);
    for (int64_t b = 0; b < nk / 256; b++) {
        uint8_t *q = p->q + 4096 * b;
        for (int s = 0; s < 8; s++) _mm512_storeu_ps(p->scale + NI_ROWS * (8 * b + s), load_f16(in[b].d));
        unpack_digits(in[b].q, 8, 5, 8, q);
        unpack_digits(in[b].q + 8, 4, 5, 4, q + 64 * 40);
        unpack_digits(in[b].q + 12, 1, 4, 1, q + 64 * 60);
    }
}
#endif
