/* Packed records to panels (kernels.h) with AVX-512: quants as bytes in order of k, scales and minimums as floats. */
#ifndef NI_AVX512_UNPACK_H
#define NI_AVX512_UNPACK_H
#include "avx512_util.h"

/* Q4_0, Q4_1, Q5_0, Q5_1. */
NI_INLINE void unpack_block32(const uint8_t *group, int64_t k0, int64_t nk, int bits, int has_min, ni_panel *p) {
    const int fifth = has_min ? 64 : 32, quants = fifth + (bits == 5 ? 64 : 0), record = quants + 256;
    const uint8_t *w = group + k0 / 32 * record;
    uint8_t *q = p->q;
    for (int64_t b = 0; b < nk / 32; b++, w += record, q += 512) {
        const __m512i h = bits == 5 ? load64(w + fifth) : _mm512_setzero_si512();
        _mm512_storeu_ps(p->scale + NI_ROWS * b, load_f16(w));
        if (has_min) _mm512_storeu_ps(p->min + NI_ROWS * b, load_f16(w + 32));
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512i v = load64(w + quants + 64 * j);
            store64(q + 64 * j, bits == 5 ? q5_low(v, h, j) : low_nibbles(v));
            store64(q + 64 * (j + 4), bits == 5 ? q5_high(v, h, j + 4) : high_nibbles(v));
        }
    }
}

static void unpack_q4_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, 4, 0, p);
}
static void unpack_q4_1(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, 4, 1, p);
}
static void unpack_q5_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, 5, 0, p);
}
static void unpack_q5_1(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, 5, 1, p);
}

static void unpack_q8_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    const uint8_t *w = group + k0 / 32 * REC_Q8_0;
    for (int64_t b = 0; b < nk / 32; b++, w += REC_Q8_0) {
        _mm512_storeu_ps(p->scale + NI_ROWS * b, load_f16(w));
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) store64(p->q + 512 * b + 64 * j, load64(w + 32 + 64 * j));
    }
}

/* Q4_K, Q5_K. */
NI_INLINE void unpack_block256(const uint8_t *group, int64_t k0, int64_t nk, int bits, ni_panel *p) {
    const int fifth = 64 + 256, quants = fifth + (bits == 5 ? 512 : 0), record = quants + 2048;
    const uint8_t *w = group + k0 / 256 * record;
    for (int64_t b = 0; b < nk / 32; b += 8, w += record) {
        const __m512 d = load_f16(w), dmin = _mm512_xor_ps(load_f16(w + 32), _mm512_set1_ps(-0.0f));
        for (int s = 0; s < 8; s++) {
            const uint8_t *sc = w + 64 + 32 * s;
            _mm512_storeu_ps(p->scale + NI_ROWS * (b + s), _mm512_mul_ps(d, load_u8(sc)));
            _mm512_storeu_ps(p->min + NI_ROWS * (b + s), _mm512_mul_ps(dmin, load_u8(sc + 16)));
        }
        __m512i h[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) h[i] = bits == 5 ? load64(w + fifth + 64 * i) : _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++)
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const __m512i v = load64(w + quants + 512 * c + 64 * i);
                uint8_t *q = p->q + 512 * (b + 2 * c) + 64 * i;
                store64(q, bits == 5 ? q5_low(v, h[i], 2 * c) : low_nibbles(v));
                store64(q + 512, bits == 5 ? q5_high(v, h[i], 2 * c + 1) : high_nibbles(v));
            }
    }
}

static void unpack_q4_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block256(group, k0, nk, 4, p);
}
static void unpack_q5_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block256(group, k0, nk, 5, p);
}

static void unpack_q6_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    const uint8_t *w = group + k0 / 256 * REC_Q6_K;
    (void)nk;   /* a slab is one block */
    _mm512_storeu_ps(p->min, load_f16(w));
    for (int s = 0; s < 16; s++) {
        __m512i v[4];
        _mm512_storeu_ps(p->scale + NI_ROWS * s, load_i8(w + 32 + 16 * s));
        q6_values(w + 288 + 192 * s, v);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) store64(p->q + 256 * s + 64 * j, v[j]);
    }
}

static void unpack_f32(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    memcpy(p->f, group + k0 * REC_F32, (size_t)nk * REC_F32);
}

static void unpack_f16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    for (int64_t i = 0; i < nk; i++) _mm512_storeu_ps(p->f + NI_ROWS * i, load_f16(group + (k0 + i) * REC_F16));
}

static void unpack_bf16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    for (int64_t i = 0; i < nk; i++) _mm512_storeu_ps(p->f + NI_ROWS * i, load_bf16(group + (k0 + i) * REC_F16));
}
#endif
