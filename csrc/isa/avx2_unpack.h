/* Packed records to panels (kernels.h) with AVX2: quants as bytes in order of k, scales and minimums as floats. */
#ifndef NI_AVX2_UNPACK_H
#define NI_AVX2_UNPACK_H
#include "avx2_util.h"

NI_INLINE void store32(uint8_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

/* Q4_0, Q4_1, Q5_0, Q5_1. */
NI_INLINE void unpack_block32(const uint8_t *group, int64_t k0, int64_t nk, int bits, int has_min, ni_panel *p) {
    const int fifth = has_min ? 64 : 32, quants = fifth + (bits == 5 ? 64 : 0), record = quants + 256;
    const uint8_t *w = group + k0 / 32 * record;
    uint8_t *q = p->q;
    for (int64_t b = 0; b < nk / 32; b++, w += record, q += 512)
        for (int half = 0; half < 2; half++) {
            const __m256i h = load32(w + fifth + 32 * half);
            _mm256_storeu_ps(p->scale + NI_ROWS * b + 8 * half, load_f16(w + 16 * half));
            if (has_min) _mm256_storeu_ps(p->min + NI_ROWS * b + 8 * half, load_f16(w + 32 + 16 * half));
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m256i v = load32(w + quants + 64 * j + 32 * half);
                store32(q + 64 * j + 32 * half, bits == 5 ? q5_low(v, h, j) : low_nibbles(v));
                store32(q + 64 * (j + 4) + 32 * half, bits == 5 ? q5_high(v, h, j + 4) : high_nibbles(v));
            }
        }
}

#define NI_UNPACK(name, ...)                                                                   \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) { __VA_ARGS__; }

NI_UNPACK(q4_0, unpack_block32(group, k0, nk, 4, 0, p))
NI_UNPACK(q4_1, unpack_block32(group, k0, nk, 4, 1, p))
NI_UNPACK(q5_0, unpack_block32(group, k0, nk, 5, 0, p))
NI_UNPACK(q5_1, unpack_block32(group, k0, nk, 5, 1, p))

static void unpack_q8_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    const uint8_t *w = group + k0 / 32 * REC_Q8_0;
    for (int64_t b = 0; b < nk / 32; b++, w += REC_Q8_0) {
        _mm256_storeu_ps(p->scale + NI_ROWS * b, load_f16(w));
        _mm256_storeu_ps(p->scale + NI_ROWS * b + 8, load_f16(w + 16));
#pragma GCC unroll 16
        for (int i = 0; i < 512; i += 32) store32(p->q + 512 * b + i, load32(w + 32 + i));
    }
}

/* Q4_K, Q5_K. */
NI_INLINE void unpack_block256(const uint8_t *group, int64_t k0, int64_t nk, int bits, ni_panel *p) {
    const int fifth = 64 + 256, quants = fifth + (bits == 5 ? 512 : 0), record = quants + 2048;
    const uint8_t *w = group + k0 / 256 * record;
    for (int64_t b = 0; b < nk / 32; b += 8, w += record) {
        touch(w, record);
        for (int half = 0; half < 2; half++) {
            const __m256 d = load_f16(w + 16 * half);
            const __m256 dmin = _mm256_xor_ps(load_f16(w + 32 + 16 * half), _mm256_set1_ps(-0.0f));
            for (int s = 0; s < 8; s++) {
                const uint8_t *sc = w + 64 + 32 * s + 8 * half;
                _mm256_storeu_ps(p->scale + NI_ROWS * (b + s) + 8 * half, _mm256_mul_ps(d, load_u8(sc)));
                _mm256_storeu_ps(p->min + NI_ROWS * (b + s) + 8 * half, _mm256_mul_ps(dmin, load_u8(sc + 16)));
            }
            for (int i = 0; i < 8; i++) {
                const __m256i h = load32(w + fifth + 64 * i + 32 * half);
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) {
                    __m256i v = load32(w + quants + 512 * c + 64 * i + 32 * half);
                    uint8_t *q = p->q + 512 * (b + 2 * c) + 64 * i + 32 * half;
                    store32(q, bits == 5 ? q5_low(v, h, 2 * c) : low_nibbles(v));
                    store32(q + 512, bits == 5 ? q5_high(v, h, 2 * c + 1) : high_nibbles(v));
                }
            }
        }
    }
}

NI_UNPACK(q4_k, unpack_block256(group, k0, nk, 4, p))
NI_UNPACK(q5_k, unpack_block256(group, k0, nk, 5, p))

static void unpack_q6_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    const uint8_t *w = group + k0 / 256 * REC_Q6_K;
    (void)nk;   /* a slab is one block */
    for (int half = 0; half < 2; half++) _mm256_storeu_ps(p->min + 8 * half, load_f16(w + 16 * half));
    for (int i = 0; i < 32; i++) _mm256_storeu_ps(p->scale + 8 * i, load_i8(w + 32 + 8 * i));
    for (int s = 0; s < 16; s++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m256i v[4];
            q6_values(w + 288 + 192 * s + 32 * half, v);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) store32(p->q + 256 * s + 64 * j + 32 * half, v[j]);
        }
}

static void unpack_f32(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    memcpy(p->f, group + k0 * REC_F32, (size_t)nk * REC_F32);
}

static void unpack_f16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    for (int64_t i = 0; i < 2 * nk; i++) _mm256_storeu_ps(p->f + 8 * i, load_f16(group + k0 * REC_F16 + 16 * i));
}

static void unpack_bf16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    for (int64_t i = 0; i < 2 * nk; i++) _mm256_storeu_ps(p->f + 8 * i, load_bf16(group + k0 * REC_F16 + 16 * i));
}
#endif
