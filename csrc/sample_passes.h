/* The passes over logits that sample.c is made of; private to it.
 *
 * How it is fast: one pass over the logits finds the maximum of every block of 32, and a cut by value then visits only
 * the blocks whose maximum passes it. min_p is such a cut; top_k becomes one, because at least k tokens reach the k-th
 * greatest block maximum; top_p tries a few falling cuts until enough mass is above. What remains is cut exactly by a
 * radix selection, and the exponential is kept of what remains only (top_p alone needs the sum of all). Passes over all logits are SIMD
 * of the table in use (isa/sample_impl.h). */
#ifndef NI_SAMPLE_PASSES_H
#define NI_SAMPLE_PASSES_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "isa/kernels.h"
#include "isa/sample_impl.h"
#include "sample.h"

enum { BLOCK = NI_SAMPLE_BLOCK, BUCKETS = 2048 };

/* Keys (isa/sample_impl.h) of the ends. */
#define KEY_INF 0x7f800000
#define KEY_MINUS_INF (-0x7f800000 - 1)
#define KEY_LOWEST (-0x7f800000) /* -FLT_MAX: the least logit that has a chance */

static inline int32_t key_of(float x) { return ni_sample_key(x); }

static inline float value_of(int32_t key) { return ni_sample_value(key); }

/* The key of the least float >= v, at least KEY_LOWEST.  v <= FLT_MAX */
static int32_t key_at_least(double v) {
    if (!(v > -(double)FLT_MAX)) return KEY_LOWEST;
    float f = (float)v;
    return key_of(f) + ((double)f < v);
}

/* ---- scratch ---- */

typedef struct {
    double *hist;   /* BUCKETS */
    double *mass;   /* per block of weights */
    float *weight;  /* per candidate, padded with zeros to whole blocks */
    int32_t *block; /* greatest key of each block of logits */
    int32_t *id;    /* candidates, ids ascending; room for one block more than n_vocab */
    int32_t *key;
    int32_t *most;  /* most candidates that there were, since ni_sample_trim */
    double total; /* of the weights */
} scratch;

enum { HEAD = 2 }; /* doubles before all that, for `most` */

static size_t blocks_of(int32_t n) { return ((size_t)n + BLOCK - 1) / BLOCK; }

/* Of what stands before the candidates, and of all. */
static size_t fixed_bytes(int32_t n_vocab) { return 8 * (HEAD + BUCKETS) + 12 * (blocks_of(n_vocab) + 1); }
static size_t scratch_bytes(int32_t n_vocab) { return fixed_bytes(n_vocab) + 12 * BLOCK * (blocks_of(n_vocab) + 1); }

static scratch lay_out(void *memory, int32_t n_vocab) {
    size_t n_blocks = blocks_of(n_vocab) + 1;
    scratch t = {0};
    t.most = memory;
    t.hist = (double *)memory + HEAD;
    t.mass = t.hist + BUCKETS;
    t.block = (int32_t *)(t.mass + n_blocks);
    t.weight = (float *)(t.block + n_blocks);
    t.id = (int32_t *)(t.weight + n_blocks * BLOCK);
    t.key = t.id + n_blocks * BLOCK;
    return t;
}

/* ---- passes ---- */

/* Fills t->block and *top, the greatest key.  0, NI_SAMPLE_NAN or NI_SAMPLE_EMPTY.
 * A NaN's key is beyond that of the infinity of its sign, so minimum and maximum find it for free. */
static int scan(const float *logits, int32_t n, scratch *t, int32_t *top) {
    int32_t high = INT32_MIN, low = INT32_MAX, whole = n / BLOCK * BLOCK;
    ni_k->vec.sample_keys(logits, whole, t->block, &low, &high);
    if (whole < n) {
        float padded[BLOCK];
        for (int j = 0; j < BLOCK; j++) padded[j] = j < n - whole ? logits[whole + j] : -INFINITY;
        ni_k->vec.sample_keys(padded, BLOCK, t->block + whole / BLOCK, &low, &high);
    }
    *top = high;
    if (high > KEY_INF || low < KEY_MINUS_INF) return NI_SAMPLE_NAN;
    return high == KEY_MINUS_INF ? NI_SAMPLE_EMPTY : 0;
}

/* Lists the logits with key >= least in t->id and t->key and returns their number. Needs scan's t->block. */
static int32_t collect(const float *logits, int32_t n, int32_t least, scratch *t) {
    int32_t whole = n / BLOCK * BLOCK, count = (int32_t)ni_k->vec.sample_collect(logits, whole, t->block, least, t->id, t->key);
    for (int32_t i = whole; i < n; i++) {
        if (key_of(logits[i]) < least) continue;
        t->id[count] = i;
        t->key[count++] = key_of(logits[i]);
    }
    *t->most = count > *t->most ? count : *t->most;
    return count;
}

/* Pads the first n of t->weight to whole blocks, fills t->mass and t->total. */
static void sum_weights(int32_t n, scratch *t) {
    size_t n_blocks = blocks_of(n);
    for (size_t i = (size_t)n; i < n_blocks * BLOCK; i++) t->weight[i] = 0.0f;
    t->total = 0;
    for (size_t b = 0; b < n_blocks; b++) t->total += t->mass[b] = ni_sample_sum(t->weight + b * BLOCK);
}

/* t->weight = exp((value - max) / T) for the first n of t->key; then sums.
 * max == +inf: 1 for candidates (the caller collected only those at +inf). */
static void weigh(int32_t n, float max, float inverse_t, scratch *t) {
    float *w = t->weight;
    if (max > FLT_MAX)
        for (int32_t i = 0; i < n; i++) w[i] = 1.0f;
    else
        ni_k->vec.sample_weigh(t->key, n, max, inverse_t, w);
    sum_weights(n, t);
}

/* The weights of the block of logits that begins at i: zeros past the end. */
static void weigh_block(const float *logits, int32_t n, int32_t i, float max, float inverse_t, float *w) {
    for (int32_t j = 0; j < BLOCK; j++) w[j] = j < n - i ? ni_sample_exp((logits[i + j] - max) * inverse_t) : 0.0f;
}

/* t->mass and t->total of all logits, whose weights are kept nowhere. max is finite. */
static void weigh_all(const float *logits, int32_t n, float max, float inverse_t, scratch *t) {
    int32_t whole = n / BLOCK * BLOCK;
    ni_k->vec.sample_masses(logits, whole, max, inverse_t, t->mass);
    if (whole < n) {
        float w[BLOCK];
        weigh_block(logits, n, whole, max, inverse_t, w);
        t->mass[whole / BLOCK] = ni_sample_sum(w);
    }
    t->total = 0;
    for (size_t b = 0; b < blocks_of(n); b++) t->total += t->mass[b];
}

typedef struct {
    int32_t key;  /* keep what is greater */
    int32_t ties; /* and so many of the equal ones, in order */
} cut;

/* In the order (key descending, index ascending): keep while the weight of those before is < target.
 * weight NULL: all 1.  n >= 1.  Radix selection: a histogram of the distance from the greatest key, over as many bits
 * as the keys' range has, 11 at a time; at most 3 rounds, exact with ties, and no input makes it slow. */
static cut select_cut(const int32_t *keys, const float *weight, int32_t n, double target, double *hist) {
    int32_t high = keys[0], low = keys[0];
    for (int32_t i = 1; i < n; i++) {
        high = keys[i] > high ? keys[i] : high;
        low = keys[i] < low ? keys[i] : low;
    }
    double before = 0;
    for (;;) {
        uint32_t range = (uint32_t)high - (uint32_t)low, last, b = 0;
        int shift = 0;
        while (range >> shift >= BUCKETS) shift++;
        last = range >> shift;
        if (last > 0) {
            memset(hist, 0, (last + 1) * sizeof *hist);
            for (int32_t i = 0; i < n; i++) {
                uint32_t d = (uint32_t)high - (uint32_t)keys[i];
                if (d <= range) hist[d >> shift] += weight ? weight[i] : 1.0;
            }
            while (b < last && before + hist[b] < target) before += hist[b++];
        }
        uint32_t from = b << shift, to = from + ((1u << shift) - 1);
        low = to < range ? (int32_t)((uint32_t)high - to) : low;
        high = (int32_t)((uint32_t)high - from);
        if (shift == 0) break;
    }
    /* Equal keys have equal weights: ties is the least count with before + count * each >= target. */
    double each = 1;
    for (int32_t i = 0; weight; i++)
        if (keys[i] == high) {
            each = weight[i];
            break;
        }
    double ties = (target - before) / each; /* inf or NaN where each is 0: all of them, none has a chance */
    return (cut){high, ties < n ? (int32_t)ceil(ties) : n};
}

/* Drops candidates beyond the cut; their weights too if there are any yet, which are then summed anew. Returns the
 * number kept. */
static int32_t keep(cut c, int32_t n, int weighted, scratch *t) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t k = t->key[i];
        if (k < c.key || (k == c.key && c.ties-- <= 0)) continue;
        t->id[count] = t->id[i];
        t->key[count] = k;
        if (weighted) t->weight[count] = t->weight[i];
        count++;
    }
    if (weighted) sum_weights(count, t);
    return count;
}

static int32_t keep_top_k(int32_t k, int32_t n, scratch *t) {
    return n > k ? keep(select_cut(t->key, NULL, n, k, t->hist), n, 0, t) : n;
}

/* A key that at least k of the n logits reach, from the block maxima; KEY_LOWEST if they cannot tell. */
static int32_t key_of_top_k(int32_t k, int32_t n, scratch *t) {
    int32_t n_blocks = (int32_t)blocks_of(n);
    if (k > n_blocks) return KEY_LOWEST;
    int32_t key = select_cut(t->block, NULL, n_blocks, k, t->hist).key;
    return key > KEY_LOWEST ? key : KEY_LOWEST;
}

#endif
