/* What the sampler does with every logit (../sample_passes.h): keys, weights and sums of weights, block by block of 32.
 *
 * Plain C, from which gcc makes the SIMD of each table; operations are one by one, without fused multiply-adds, so all give the same bits.
 */
#ifndef NI_SAMPLE_IMPL_H
#define NI_SAMPLE_IMPL_H
#include <stdint.h>
#include "../formats/half.h"

enum { NI_SAMPLE_BLOCK = 32 };

/* A float's bits as an integer in the same order; the map is its own inverse. -0 becomes +0, since they are equal. */
static inline int32_t ni_sample_key(float x) {
    int32_t i = (int32_t)ni_f32_bits(x + 0.0f);
    return i ^ (int32_t)((uint32_t)(i >> 31) >> 1);
}

static inline float ni_sample_value(int32_t key) {
    return ni_bits_f32((uint32_t)(key ^ (int32_t)((uint32_t)(key >> 31) >> 1)));
}

/* e^x for x <= 0, relative error below 1e-7; exactly 1 at 0, and 0 below e^-87.7, where floats go denormal.
 * x = n ln 2 + r, ln 2 in two parts, the first short enough for n * ln2_high to be exact; the polynomial
 * 1 + r + r^2 q(r) is a minimax fit on |r| <= ln 2 / 2 (relative error 3e-9). Adding 1.5 * 2^23 + 127 rounds to an
 * integer and leaves the exponent of 2^n in the low bits, 0 for the least x. The limit is taken on the bits, where a
 * negative number's size is in unsigned order, because gcc makes branches, not SIMD, of float comparisons. */
static inline float ni_sample_exp(float x) {
    const float shifter = 12583039.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    uint32_t u = ni_f32_bits(x), limit = ni_f32_bits(-88.0f);
    float c = ni_bits_f32(u < limit ? u : limit);
    float t = c * 1.44269504f + shifter;
    float n = t - shifter;
    float r = (c - n * ln2_high) - n * ln2_low;
    float q = (((0.00138145988f * r + 0.00836871658f) * r + 0.04166838899f) * r + 0.16666521132f) * r + 0.49999994040f;
    return (q * (r * r) + r + 1.0f) * ni_bits_f32(ni_f32_bits(t) << 23);
}

typedef float ni_float8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef double ni_double8 __attribute__((vector_size(64)));

/* The sum of a block's weights, in the one order that all blocks have: eight lanes, then a tree. */
static inline double ni_sample_sum(const float *w) {
    ni_double8 lane = {0};
    for (int j = 0; j < NI_SAMPLE_BLOCK; j += 8) lane += __builtin_convertvector(*(const ni_float8 *)(w + j), ni_double8);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

#ifdef NI_VEC
static void NI_VEC(sample_keys)(const float *x, int64_t n, int32_t *most, int32_t *low, int32_t *high) {
    int32_t lowest = *low, highest = *high;
    for (int64_t i = 0; i < n; i += NI_SAMPLE_BLOCK) {
        int32_t greatest = INT32_MIN, least = INT32_MAX;
        for (int j = 0; j < NI_SAMPLE_BLOCK; j++) {
            const int32_t k = ni_sample_key(x[i + j]);
            greatest = k > greatest ? k : greatest;
            least = k < least ? k : least;
        }
        *most++ = greatest;
        highest = greatest > highest ? greatest : highest;
        lowest = least < lowest ? least : lowest;
    }
    *low = lowest;
    *high = highest;
}

static void NI_VEC(sample_masses)(const float *x, int64_t n, float max, float inverse_t, double *mass) {
    for (int64_t i = 0; i < n; i += NI_SAMPLE_BLOCK) {
        float w[NI_SAMPLE_BLOCK];
        for (int j = 0; j < NI_SAMPLE_BLOCK; j++) w[j] = ni_sample_exp((x[i + j] - max) * inverse_t);
        *mass++ = ni_sample_sum(w);
    }
}

static void NI_VEC(sample_weigh)(const int32_t *key, int64_t n, float max, float inverse_t, float *w) {
    for (int64_t i = 0; i < n; i++) w[i] = ni_sample_exp((ni_sample_value(key[i]) - max) * inverse_t);
}

/* The hits of a block become bits, by operations that gcc makes SIMD of; then there is a turn per hit, not per logit. */
static int64_t NI_VEC(sample_collect)(const float *x, int64_t n, const int32_t *most, int32_t least, int32_t *id, int32_t *key) {
    static const int32_t bit[NI_SAMPLE_BLOCK] = {1 << 0,  1 << 1,  1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                                 1 << 8,  1 << 9,  1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15,
                                                 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22, 1 << 23,
                                                 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30, INT32_MIN};
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += NI_SAMPLE_BLOCK) {
        if (most[i / NI_SAMPLE_BLOCK] < least) continue;
        int32_t k[NI_SAMPLE_BLOCK], found = 0;
        for (int j = 0; j < NI_SAMPLE_BLOCK; j++) {
            k[j] = ni_sample_key(x[i + j]);
            found |= -(k[j] >= least) & bit[j];
        }
        if (found == -1) {
            for (int j = 0; j < NI_SAMPLE_BLOCK; j++) {
                id[count + j] = (int32_t)i + j;
                key[count + j] = k[j];
            }
            count += NI_SAMPLE_BLOCK;
            continue;
        }
        for (uint32_t hits = (uint32_t)found; hits; hits &= hits - 1) {
            const int j = __builtin_ctz(hits);
            id[count] = (int32_t)i + j;
            key[count++] = k[j];
        }
    }
    return count;
}
#endif
#endif
