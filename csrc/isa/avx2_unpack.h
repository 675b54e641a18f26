/* Packed records to panels (kernels.h) with AVX2: quants as bytes in order of k, scales and minimums as floats. */
#ifndef NI_AVX2_UNPACK_H
#define NI_AVX2_UNPACK_H
#include "avx2_util.h"

NI_INLINE void store32(uint8_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

/* Q4_0, Q4_1, Q5_0, Q5_1. */
NI_INLINE void unpack_block32(const uint8_t *group, int64_t k0, int64_t nk, const ni_parts at, ni_panel *p) {
    const uint8_t *w = group + k0 / 32 * at.bytes;
    uint8_t *q = p->q;
    for (int64_t b = 0; b < nk / 32; b++, w += at.bytes, q += 512)
        for (int half = 0; half < 2; half++) {
            const __m256i h = load32(w + at.high + 32 * half);
            _mm256_storeu_ps(p->scale + NI_ROWS * b + 8 * half, load_f16(w + 16 * half));
            if (at.min) _mm256_storeu_ps(p->min + NI_ROWS * b + 8 * half, load_f16(w + at.min + 16 * half));
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m256i v = load32(w + at.q + 64 * j + 32 * half);
                store32(q + 64 * j + 32 * half, at.high ? q5_low(v, h, j) : low_nibbles(v));
                store32(q + 64 * (j + 4) + 32 * half, at.high ? q5_high(v, h, j + 4) : high_nibbles(v));
            }
        }
}

#define NI_UNPACK(name, ...)                                                                   \
    static void unpack_##name(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) { __VA_ARGS__; }

NI_UNPACK(q4_0, unpack_block32(group, k0, nk, parts_q4_0, p))
NI_UNPACK(q4_1, unpack_block32(group, k0, nk, parts_q4_1, p))
NI_UNPACK(q5_0, unpack_block32(group, k0, nk, parts_q5_0, p))
NI_UNPACK(q5_1, unpack_block32(group, k0, nk, parts_q5_1, p))

static void unpack_q8_0(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q8_0);
    for (int64_t b = 0; b < nk / 32; b++, in++) {
        _mm256_storeu_ps(p->scale + NI_ROWS * b, load_f16(in->d));
        _mm256_storeu_ps(p->scale + NI_ROWS * b + 8, load_f16(in->d + 8));
#pragma GCC unroll 16
        for (int i = 0; i < 512; i += 32) store32(p->q + 512 * b + i, load32(in->q[0] + i));
    }
}

/* Q4_K, Q5_K. */
NI_INLINE void unpack_block256(const uint8_t *group, int64_t k0, int64_t nk, const ni_parts at, ni_panel *p) {
    const uint8_t *w = group + k0 / 256 * at.bytes;
    for (int64_t b = 0; b < nk / 32; b += 8, w += at.bytes) {
        touch(w, at.bytes);
        for (int half = 0; half < 2; half++) {
            const __m256 d = load_f16(w + 16 * half);
            const __m256 dmin = _mm256_xor_ps(load_f16(w + at.min + 16 * half), _mm256_set1_ps(-0.0f));
            for (int s = 0; s < 8; s++) {
                const ni_scale_pair *in = (const ni_scale_pair *)(w + at.s) + s;
                _mm256_storeu_ps(p->scale + NI_ROWS * (b + s) + 8 * half, _mm256_mul_ps(d, load_u8(in->sc + 8 * half)));
                _mm256_storeu_ps(p->min + NI_ROWS * (b + s) + 8 * half, _mm256_mul_ps(dmin, load_u8(in->mn + 8 * half)));
            }
            for (int i = 0; i < 8; i++) {
                const __m256i h = load32(w + at.high + 64 * i + 32 * half);
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) {
                    __m256i v = load32(w + at.q + 512 * c + 64 * i + 32 * half);
                    uint8_t *q = p->q + 512 * (b + 2 * c) + 64 * i + 32 * half;
                    store32(q, at.high ? q5_low(v, h, 2 * c) : low_nibbles(v));
                    store32(q + 512, at.high ? q5_high(v, h, 2 * c + 1) : high_nibbles(v));
                }
            }
        }
    }
}

NI_UNPACK(q4_k, unpack_block256(group, k0, nk, parts_q4_k, p))
NI_UNPACK(q5_k, unpack_block256(group, k0, nk, parts_q5_k, p))

static void unpack_q6_k(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(q6_k);
    (void)nk;   /* a slab is one block */
    for (int half = 0; half < 2; half++) _mm256_storeu_ps(p->min + 8 * half, load_f16(in->d + 8 * half));
    for (int i = 0; i < 32; i++) _mm256_storeu_ps(p->scale + 8 * i, load_i8(in->sc[0] + 8 * i));
    for (int s = 0; s < 16; s++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m256i v[4];
            q6_values(in->v[s][0] + 32 * half, v);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) store32(p->q + 256 * s + 64 * j + 32 * half, v[j]);
        }
}

static void unpack_f32(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f32);
    memcpy(p->f, in, (size_t)nk * sizeof *in);
}

static void unpack_f16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(f16);
    for (int64_t i = 0; i < 2 * nk; i++) _mm256_storeu_ps(p->f + 8 * i, load_f16(in->value + 8 * i));
}

static void unpack_bf16(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p) {
    RECORDS(bf16);
    for (int64_t i = 0; i < 2 * nk; i++) _mm256_storeu_ps(p->f + 8 * i, load_bf16(in->value + 8 * i));
}
#endif
