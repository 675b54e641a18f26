/* The formats of 1 to 3 bits with AVX-VNNI: avx2_units.h's units, with vpdpbusd; a sub-block's sums are one dword a row.
 *
 * The two sums of a unit stand side by side as words, and one product of words applies both scales. */
#ifndef NI_AVXVNNI_UNITS_H
#define NI_AVXVNNI_UNITS_H
#include "avx2_units.h"
#include "avxvnni_gemm.h"

/* Sums of kg 0-3 and kg 4-7 with 32 activations, as words; the second taken from `scaled` bits up. */
NI_INLINE __m256i vnni_pair_sums(const __m256i v[8], const int8_t *x, int scaled) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0;
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        s0 = dpbusd(s0, v[g], bcast4(x + 4 * g));
        s1 = dpbusd(s1, v[g + 4], bcast4(x + 4 * g + 16));
        IN_ORDER(s0);
        IN_ORDER(s1);
    }
    return _mm256_blend_epi16(s0, _mm256_slli_epi32(s1, 16 - scaled), 0xaa);
}

NI_INLINE void vnni_block_q2_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q2_k *in = (const ni_record_q2_k *)w;
    __m256 acc[2];
    acc[0] = acc[1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        __m256 total[2], totalm[2];
        total[0] = total[1] = totalm[0] = totalm[1] = _mm256_setzero_ps();
        for (int u = 0; u < 8; u++) {
            const __m256 d = _mm256_broadcast_ss(x->d + k / 32 + u);
            const __m256i sums = bcast4((const int8_t *)(x->s + k / 16 + 2 * u));
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m256i both = words_u8(in->s[u] + 8 * i);
                __m256i v[8];
                unit2_values(in->q[u][0] + 32 * i, v);
                const __m256i pair = vnni_pair_sums(v, x->q + k + 32 * u, 2);
                total[i] = add_product(_mm256_madd_epi16(pair, mask_bits(both, 15)), d, total[i]);
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

NI_INLINE void vnni_block_q3_k(const uint8_t *w, const ni_act *x, float *y) {
    const ni_record_q3_k *in = (const ni_record_q3_k *)w;
    __m256 acc[2];
    acc[0] = acc[1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < x->k; k += 256, in++) {
        int8_t sc[256];
        __m256 total[2];
        total[0] = total[1] = _mm256_setzero_ps();
        widen_q3_scales(in, sc);
        for (int u = 0; u < 8; u++) {
            const __m256 d = _mm256_broadcast_ss(x->d + k / 32 + u);
            const __m256i offset = _mm256_slli_epi16(bcast4((const int8_t *)(x->s + k / 16 + 2 * u)), 2);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                __m256i v[8];
                unit3_values(in->v[u][0] + 32 * i, v);
                const __m256i pair = _mm256_sub_epi16(vnni_pair_sums(v, x->q + k + 32 * u, 3), offset);
                total[i] = add_product(_mm256_madd_epi16(pair, words_i8(sc + 32 * u + 16 * i)), d, total[i]);
            }
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) acc[i] = _mm256_fmadd_ps(total[i], load_f16(in->d + 8 * i), acc[i]);
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

NI_DOT(vnni_q2_k, q2_k, vnni_block_q2_k)
NI_DOT(vnni_q3_k, q3_k, vnni_block_q3_k)

NI_DOT(vnni_tq2_0, tq2_0, dot_units, 8, 2, vnni_pair_sums)
NI_DOT(vnni_q1_0, q1_0, dot_units, 4, 1, vnni_pair_sums)
NI_DOT(vnni_q2_0, q2_0, dot_units, 2, 2, vnni_pair_sums)

/* Prefill, as avx512_units.h has it: a quant times its scale fits a byte, 3 * 15 of Q2_K, and of Q3_K -124 to 128, with 124 added. */
enum { WHOLE = 124 };

/* The panel's (q - offset) * sc + add, for a slab of 256. */
NI_INLINE void multiply_in(const ni_panel *p, int offset, int add, uint8_t out[NI_SLAB * NI_ROWS]) {
    const __m256i even = _mm256_set1_epi16(255), ones = _mm256_set1_epi32(0x01010101);
    for (int s = 0; s < NI_SLAB / 16; s++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i whole = _mm256_cvtps_epi32(_mm256_loadu_ps(p->scale + NI_ROWS * s + 8 * i));
            const __m256i sc = _mm256_mullo_epi32(_mm256_and_si256(whole, _mm256_set1_epi32(255)), ones);
            const __m256i rest = _mm256_sub_epi32(_mm256_set1_epi32(add), _mm256_mullo_epi32(whole, _mm256_set1_epi32(offset)));
            const __m256i start = _mm256_mullo_epi32(rest, ones);
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                const __m256i q = load32(p->q + 256 * s + 64 * g + 32 * i);
                const __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(q, even), sc);
                const __m256i b = _mm256_maddubs_epi16(_mm256_andnot_si256(even, q), sc);
                store32(out + 256 * s + 64 * g + 32 * i, _mm256_add_epi16(_mm256_add_epi16(a, _mm256_slli_epi16(b, 8)), start));
            }
        }
}

/* A block of 256 times any number of tokens, without minimums. */
NI_INLINE void vnni_whole(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, int offset, int add, float *acc) {
    enum { MOST = 6 * VNNI_TILE };
    uint8_t q[NI_SLAB * NI_ROWS];
    float ones[NI_SLAB / 32 * NI_ROWS], total[MOST * NI_ROWS];
    const ni_panel with = {.q = q, .scale = ones};
    const __m256 d[2] = {_mm256_loadu_ps(p->min), _mm256_loadu_ps(p->min + 8)};
    multiply_in(p, offset, add, q);
    for (int i = 0; i < NI_SLAB / 32 * NI_ROWS; i++) ones[i] = 1;
    for (int t = 0, n; t < n_tokens; t += n) {
        const ni_act own = {.k = x->k, .q = x->q + t * x->k, .d = x->d + t * (x->k / 32), .s = x->s + t * (x->k / 16)};
        n = n_tokens - t < MOST ? n_tokens - t : MOST;
        memset(total, 0, sizeof total);
        vnni_quants(&with, k0, nk, &own, n, add, NULL, total);
        for (int i = 0; i < 2 * n; i++, acc += 8)
            _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_loadu_ps(total + 8 * i), d[i % 2], _mm256_loadu_ps(acc)));
    }
}

static void gemm_vnni_q3_k(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {
    (void)accm;
    vnni_whole(p, k0, nk, x, n_tokens, 4, WHOLE, acc);
}

static void gemm_vnni_q2_k(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm) {
    (void)accm;
    vnni_whole(p, k0, nk, x, n_tokens, 0, 0, acc);
    subtract_minimums(p, k0, nk, x, n_tokens, acc);
}
#endif
