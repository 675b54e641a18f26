/* Packed records to panels (kernels.h) with AVX-512: quants as bytes in order of k, scales and minimums as floats. */
#ifndef NI_AVX512_UNPACK_H
#define NI_AVX512_UNPACK_H
#include "avx512_util.h"

/* Q4_0, Q4_1, Q5_0, Q5_1. */
NI_INLINE void unpack_block32(const uint8_t *group, int64_t k0, int64_t nk, const ni_parts at, ni_panel *p) {
    const uint8_t *w = group + k0 / 32 * at.bytes;
    uint8_t *q = p->q;
    for (int64_t b = 0; b < nk / 32; b++, w += at.bytes, q += 512) {
        const __m512i h = at.high ? load64(w + at.high) : _mm512_setzero_si512();
        _mm512_storeu_ps(p->scale + NI_ROWS * b, load_f16(w));
        if (at.min) _mm512_storeu_ps(p->min + NI_ROWS * b, load_f16(w + at.min));
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512i v = load64(w + at.q + 64 * j);
            store64(q + 64 * j, at.high ? q5_low(v, h, j) : low_nibbles(v));
            store64(q + 64 * (j + 4), at.high ? q5_high(v, h, j + 4) : high_nibbles(v));
        }
    }
}

static void unpack_q4_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, parts_q4_0, p);
}
static void unpack_q4_1(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, parts_q4_1, p);
}
static void unpack_q5_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, parts_q5_0, p);
}
static void unpack_q5_1(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block32(group, k0, nk, parts_q5_1, p);
}

static void unpack_q8_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q8_0);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
        _mm512_storeu_ps(p->scale + NI_ROWS * b, load_f16(in->d));
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) store64(p->q + 512 * b + 64 * j, load64(in->q[j]));
    }
}

/* Q4_K, Q5_K. */
NI_INLINE void unpack_block256(const uint8_t *group, int64_t k0, int64_t nk, const ni_parts at, ni_panel *p) {
    const uint8_t *w = group + k0 / 256 * at.bytes;
    for (int64_t b = 0; b < nk / 32; b += 8, w += at.bytes) {
        const __m512 d = load_f16(w), dmin = _mm512_xor_ps(load_f16(w + at.min), _mm512_set1_ps(-0.0f));
        for (int s = 0; s < 8; s++) {
            const ni_scale_pair *in = (const ni_scale_pair *)(w + at.s) + s;
            _mm512_storeu_ps(p->scale + NI_ROWS * (b + s), _mm512_mul_ps(d, load_u8(in->sc)));
            _mm512_storeu_ps(p->min + NI_ROWS * (b + s), _mm512_mul_ps(dmin, load_u8(in->mn)));
        }
        __m512i h[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) h[i] = at.high ? load64(w + at.high + 64 * i) : _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++)
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const __m512i v = load64(w + at.q + 512 * c + 64 * i);
                uint8_t *q = p->q + 512 * (b + 2 * c) + 64 * i;
                store64(q, at.high ? q5_low(v, h[i], 2 * c) : low_nibbles(v));
                store64(q + 512, at.high ? q5_high(v, h[i], 2 * c + 1) : high_nibbles(v));
            }
    }
}

static void unpack_q4_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block256(group, k0, nk, parts_q4_k, p);
}
static void unpack_q5_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    unpack_block256(group, k0, nk, parts_q5_k, p);
}

static void unpack_q6_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q6_k);
    (void)nk;   /* a slab is one block */
    _mm512_storeu_ps(p->min, load_f16(in->d));
    for (int s = 0; s < 16; s++) {
        __m512i v[4];
        _mm512_storeu_ps(p->scale + NI_ROWS * s, load_i8(in->sc[s]));
        q6_values(in->v[s][0], v);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) store64(p->q + 256 * s + 64 * j, v[j]);
    }
}

static void unpack_f32(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f32);
    memcpy(p->f, in, (size_t)nk * sizeof *in);
}

static void unpack_f16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f16);
    for (int64_t i = 0; i < nk; i++) _mm512_storeu_ps(p->f + NI_ROWS * i, load_f16(in[i].value));
}

static void unpack_bf16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(bf16);
    for (int64_t i = 0; i < nk; i++) _mm512_storeu_ps(p->f + NI_ROWS * i, v16_load_bf16(in[i].value));
}
#endif
