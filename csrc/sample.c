#include "sample.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sample_passes.h"

size_t ni_sample_scratch_bytes(int32_t n_vocab) { return scratch_bytes(n_vocab > 0 ? n_vocab : 0); }

enum { KEPT = 16384 }; /* candidates */

size_t ni_sample_kept_bytes(int32_t n_vocab) {
    size_t all = scratch_bytes(n_vocab), kept = fixed_bytes(n_vocab) + 3 * (KEPT * sizeof(float) + (size_t)sysconf(_SC_PAGESIZE));
    return kept < all ? kept : all;
}

static void give_back(void *from, void *to) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), a = ((uintptr_t)from + page - 1) / page * page, b = (uintptr_t)to / page * page;
    if (a < b) madvise((void *)a, b - a, MADV_DONTNEED);
}

void ni_sample_trim(void *memory, int32_t n_vocab) {
    scratch t = lay_out(memory, n_vocab);
    if (*t.most <= KEPT) return;
    *t.most = 0;
    give_back(t.weight + KEPT, t.id);
    give_back(t.id + KEPT, t.key);
    give_back(t.key + KEPT, (uint8_t *)memory + scratch_bytes(n_vocab));
}

double ni_sample_uniform(uint64_t seed, uint64_t position) {
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)((((uint64_t)c1 << 32) | c0) >> 11) * 0x1p-53;
}

/* ---- the sampler ---- */

struct ni_sampler {
    ni_sampler_params params;
    int32_t n_vocab;
    int64_t n_output;
    int32_t n_bias, n_stop, n_seen;
    int32_t *bias_ids, *stop_ids, *seen_ids; /* stop_ids: ascending; seen_ids: distinct tokens that a penalty may touch */
    float *bias, *bias_saved, *stop_saved, *seen_saved;
    uint32_t *count; /* 0 = not in seen_ids, else 1 + occurrences in the output; NULL without penalties */
};

static int bad_ids(const int32_t *ids, int64_t n, int32_t n_vocab) {
    if (n < 0) return 1;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab) return 1;
    return 0;
}

/* NaN fails every comparison, so each is written as what must hold. */
static int bad_params(const ni_sampler_params *p) {
    return !(p->temperature >= 0 && p->temperature <= DBL_MAX && p->top_p > 0 && p->top_p <= 1 && p->min_p >= 0 &&
             p->min_p <= 1 && p->repetition_penalty > 0 && p->repetition_penalty <= DBL_MAX &&
             fabs(p->presence_penalty) <= FLT_MAX && fabs(p->frequency_penalty) <= FLT_MAX && p->top_k >= 0 &&
             p->min_tokens >= 0 && p->max_tokens >= 0);
}

static int by_id(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void see(ni_sampler *s, int32_t id) {
    if (s->count[id]) return;
    s->count[id] = 1;
    s->seen_ids[s->n_seen++] = id;
}

ni_sampler *ni_sampler_new(const ni_sampler_params *params, int32_t n_vocab, const int32_t *prompt, int64_t n_prompt,
                           const int32_t *bias_ids, const float *bias, int32_t n_bias, const int32_t *stop_ids,
                           int32_t n_stop, int *status) {
    *status = NI_SAMPLE_BAD_ARGUMENT;
    if (n_vocab < 1 || n_vocab > INT32_MAX / 2 || bad_params(params) || bad_ids(prompt, n_prompt, n_vocab) ||
        bad_ids(bias_ids, n_bias, n_vocab) || bad_ids(stop_ids, n_stop, n_vocab))
        return NULL;
    for (int32_t i = 0; i < n_bias; i++)
        if (!(fabsf(bias[i]) <= FLT_MAX)) return NULL;

    *status = NI_SAMPLE_NO_MEMORY;
    ni_sampler *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->params = *params;
    s->n_vocab = n_vocab;
    s->n_bias = n_bias;
    s->n_stop = n_stop;
    int penalised = params->repetition_penalty != 1 || params->presence_penalty != 0 || params->frequency_penalty != 0;
    size_t a = (size_t)s->n_bias + 1, b = (size_t)s->n_stop + 1, c = penalised ? (size_t)n_vocab : 0;
    s->bias_ids = malloc(a * sizeof *s->bias_ids);
    s->bias = malloc(a * sizeof *s->bias);
    s->bias_saved = malloc(a * sizeof *s->bias_saved);
    s->stop_ids = malloc(b * sizeof *s->stop_ids);
    s->stop_saved = malloc(b * sizeof *s->stop_saved);
    int complete = s->bias_ids && s->bias && s->bias_saved && s->stop_ids && s->stop_saved;
    if (penalised) { /* room for every token; the kernel backs only the pages that are used */
        s->seen_ids = malloc(c * sizeof *s->seen_ids);
        s->seen_saved = malloc(c * sizeof *s->seen_saved);
        s->count = calloc(c, sizeof *s->count);
        complete = complete && s->seen_ids && s->seen_saved && s->count;
    }
    if (!complete) {
        ni_sampler_free(s);
        return NULL;
    }
    for (int32_t i = 0; i < s->n_bias; i++) {
        s->bias_ids[i] = bias_ids[i];
        s->bias[i] = bias[i];
    }
    for (int32_t i = 0; i < s->n_stop; i++) s->stop_ids[i] = stop_ids[i];
    qsort(s->stop_ids, (size_t)n_stop, sizeof *s->stop_ids, by_id);
    if (params->repetition_penalty != 1)
        for (int64_t i = 0; i < n_prompt; i++) see(s, prompt[i]);
    *status = 0;
    return s;
}

void ni_sampler_free(ni_sampler *s) {
    if (!s) return;
    free(s->bias_ids);
    free(s->bias);
    free(s->bias_saved);
    free(s->stop_ids);
    free(s->stop_saved);
    free(s->seen_ids);
    free(s->seen_saved);
    free(s->count);
    free(s);
}

int32_t ni_sampler_n_vocab(const ni_sampler *s) { return s->n_vocab; }

int ni_sampler_accept(ni_sampler *s, int32_t id) {
    if (id < 0 || id >= s->n_vocab) return NI_SAMPLE_BAD_ARGUMENT;
    if (s->count) {
        see(s, id);
        if (s->count[id] != UINT32_MAX) s->count[id]++;
    }
    s->n_output++;
    if (s->n_stop && bsearch(&id, s->stop_ids, (size_t)s->n_stop, sizeof id, by_id)) return NI_SAMPLE_STOP;
    return s->params.max_tokens && s->n_output >= s->params.max_tokens ? NI_SAMPLE_LENGTH : 0;
}

/* Steps 1 and 2, keeping the old values. No step can make a NaN or hide one. */
static void adjust(ni_sampler *s, float *logits) {
    const ni_sampler_params *p = &s->params;
    for (int32_t i = 0; i < s->n_bias; i++) {
        float *l = logits + s->bias_ids[i];
        s->bias_saved[i] = *l;
        *l = (float)((double)*l + s->bias[i]);
    }
    for (int32_t i = 0; i < s->n_seen; i++) {
        int32_t id = s->seen_ids[i];
        uint32_t times = s->count[id] - 1;
        float l = logits[id];
        s->seen_saved[i] = l;
        l = (float)(l > 0 ? l / p->repetition_penalty : l * p->repetition_penalty);
        if (times) l = (float)(l - p->frequency_penalty * times - p->presence_penalty);
        logits[id] = l;
    }
    if (s->n_output < p->min_tokens)
        for (int32_t i = 0; i < s->n_stop; i++) {
            float *l = logits + s->stop_ids[i];
            s->stop_saved[i] = *l;
            if (*l == *l) *l = -INFINITY;
        }
}

static void restore(const ni_sampler *s, float *logits) {
    if (s->n_output < s->params.min_tokens)
        for (int32_t i = s->n_stop; i-- > 0;) logits[s->stop_ids[i]] = s->stop_saved[i];
    for (int32_t i = s->n_seen; i-- > 0;) logits[s->seen_ids[i]] = s->seen_saved[i];
    for (int32_t i = s->n_bias; i-- > 0;) logits[s->bias_ids[i]] = s->bias_saved[i];
}

/* How far below the greatest logit, in units of the temperature, the cut lies above which there is `target` of `total` weight, and a quarter
 * of the rest: a guess from some of the blocks, where above `depth` there is the weight `have`. */
static double guess_depth(const float *logits, int32_t n, float max, float inverse_t, double depth, double have, double target, double total) {
    enum { PER_UNIT = 2, DEPTHS = 90 * PER_UNIT, SOME = 128 };
    double mass[DEPTHS] = {0}, sum = 0, above = have;
    int32_t step = (int32_t)blocks_of(n) / SOME + 1;
    for (int32_t i = 0; i < n; i += step * BLOCK) {
        float w[BLOCK];
        weigh_block(logits, n, i, max, inverse_t, w);
        for (int j = 0; j < BLOCK; j++) {
            if (w[j] == 0) continue;
            double at = ((double)max - logits[i + j]) * inverse_t;
            if (at <= depth || at >= 90) continue;
            mass[(int)(at * PER_UNIT)] += w[j];
            sum += w[j];
        }
    }
    for (int d = 0; d < DEPTHS && sum > 0; d++) {
        above += mass[d] / sum * (total - have);
        if (above >= target + 0.25 * (total - target)) return (double)(d + 1) / PER_UNIT;
    }
    return 90;
}

/* top_p alone: the sum of all weights, then a cut, and lower ones if what is above it does not hold the mass that is wanted. */
static int32_t nucleus(const float *logits, int32_t n, float max, double temperature, double top_p, scratch *t) {
    float inverse_t = (float)(1 / temperature);
    weigh_all(logits, n, max, inverse_t, t);
    double total = t->total, target = top_p * total, depth = 4;
    for (int again = 0;; again++) {
        int32_t least = depth < 90 ? key_at_least(max - depth * temperature) : KEY_LOWEST;
        int32_t count = collect(logits, n, least, t);
        weigh(count, max, inverse_t, t);
        if (t->total >= target || least == KEY_LOWEST)
            return keep(select_cut(t->key, t->weight, count, target, t->hist), count, 1, t);
        depth = again ? depth * 1.5 : guess_depth(logits, n, max, inverse_t, depth, t->total, target, total);
    }
}

/* What of step 5 and 6 is left where every token is a candidate: weights are computed again for the block that is drawn. */
typedef struct {
    float max, inverse_t;
} whole;

/* Steps 3 to 5. Returns the number of candidates, ids in t->id, their weights in t->weight, summed; or n_vocab with *all filled, where
 * every token is one: then there are sums of blocks only. all->max is -inf otherwise. Negative: as scan. */
static int32_t candidates(const ni_sampler *s, const float *logits, scratch *t, whole *all) {
    const ni_sampler_params *p = &s->params;
    int32_t n = s->n_vocab, top, least = KEY_LOWEST;
    int status = scan(logits, n, t, &top);
    if (status) return status;
    all->max = -INFINITY;
    if (p->temperature == 0) {
        int32_t b = 0, i;
        while (t->block[b] != top) b++;
        for (i = b * BLOCK; key_of(logits[i]) != top;) i++;
        t->id[0] = i;
        t->weight[0] = 1.0f;
        sum_weights(1, t);
        return 1;
    }
    float max = value_of(top);
    double temperature = p->temperature < 1e-30 ? 1e-30 : p->temperature;
    float inverse_t = (float)(1 / temperature);
    int32_t k = p->top_k < n ? p->top_k : 0;
    if (top == KEY_INF)
        least = KEY_INF;
    else if (p->min_p > 0)
        least = key_at_least(max + temperature * log(p->min_p));
    if (least == KEY_LOWEST && !k) {
        if (p->top_p < 1) return nucleus(logits, n, max, temperature, p->top_p, t);
        weigh_all(logits, n, max, inverse_t, t);
        *all = (whole){max, inverse_t};
        return n;
    }
    if (k) {
        int32_t reached = key_of_top_k(k, n, t);
        least = reached > least ? reached : least;
    }
    int32_t count = collect(logits, n, least, t);
    if (k) count = keep_top_k(k, count, t);
    weigh(count, max, inverse_t, t);
    if (p->top_p < 1) count = keep(select_cut(t->key, t->weight, count, p->top_p * t->total, t->hist), count, 1, t);
    return count;
}

/* On the bits, by comparisons with constants, so that gcc makes SIMD of it: masks have no pattern to predict. */
static void mask_word(const float *logits, uint32_t word, int n, float *restrict out) {
    static const int32_t bit[32] = {1 << 0,  1 << 1,  1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                    1 << 8,  1 << 9,  1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15,
                                    1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22, 1 << 23,
                                    1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30, INT32_MIN};
    const int32_t minus_inf = KEY_INF | INT32_MIN;
    for (int j = 0; j < n; j++) {
        int32_t l = (int32_t)ni_f32_bits(logits[j]);
        int32_t keep = -(((int32_t)word & bit[j]) == bit[j]) | -((l & INT32_MAX) > KEY_INF);
        out[j] = ni_bits_f32((uint32_t)((l & keep) | (minus_inf & ~keep)));
    }
}

void ni_mask_logits(const float *logits, const uint32_t *mask, int32_t n, float *out) {
    int32_t i = 0;
    for (; i <= n - 32; i += 32) mask_word(logits + i, mask[i / 32], 32, out + i);
    if (i < n) mask_word(logits + i, mask[i / 32], n - i, out + i);
}

/* Step 6, on adjusted logits. */
static int32_t draw(const ni_sampler *s, const float *logits, int again, scratch *t) {
    whole all;
    int32_t n = candidates(s, logits, t, &all);
    if (n < 0) return n;
    double target = ni_sample_uniform(s->params.seed, (uint64_t)s->n_output | (uint64_t)again << 63) * t->total;
    int32_t b = 0, last_block = (int32_t)blocks_of(n) - 1, chosen = 0;
    while (b < last_block && target >= t->mass[b]) target -= t->mass[b++];
    while (b > 0 && t->mass[b] == 0) b--; /* rounding may carry the walk past the last weight */
    float block[BLOCK], *w = t->weight + b * BLOCK;
    if (all.max > -INFINITY) weigh_block(logits, n, b * BLOCK, all.max, all.inverse_t, w = block);
    for (int32_t i = 0; i < BLOCK && b * BLOCK + i < n; i++) {
        if (w[i] == 0) continue;
        chosen = b * BLOCK + i;
        if (target < w[i]) break;
        target -= w[i];
    }
    return all.max > -INFINITY ? chosen : t->id[chosen];
}

int32_t ni_sample(ni_sampler *s, float *logits, int again, void *memory) {
    scratch t = lay_out(memory, s->n_vocab);
    adjust(s, logits);
    int32_t token = draw(s, logits, again, &t);
    restore(s, logits);
    return token;
}

int32_t ni_sampler_distribution(ni_sampler *s, float *logits, void *memory, int32_t *out_ids, double *probs) {
    scratch t = lay_out(memory, s->n_vocab);
    whole all;
    adjust(s, logits);
    int32_t n = candidates(s, logits, &t, &all), count = 0;
    if (n > 0 && all.max > -INFINITY)
        for (int32_t i = 0; i < n; i += BLOCK) {
            weigh_block(logits, n, i, all.max, all.inverse_t, t.weight + i);
            for (int32_t j = 0; j < BLOCK; j++) t.id[i + j] = i + j;
        }
    restore(s, logits);
    if (n < 0) return n;
    for (int32_t i = 0; i < n; i++) {
        if (t.weight[i] == 0) continue;
        out_ids[count] = t.id[i];
        probs[count++] = t.weight[i] / t.total;
    }
    return count;
}

/* ---- log-probabilities ---- */

int32_t ni_top_logprobs(const float *logits, int32_t n_vocab, int32_t chosen, int32_t k, void *memory, int32_t *ids,
                        float *logprobs, float *chosen_logprob, int32_t *chosen_rank) {
    if (n_vocab < 1 || chosen < 0 || chosen >= n_vocab || k < 0 || k > NI_LOGPROBS_MAX) return NI_SAMPLE_BAD_ARGUMENT;
    scratch t = lay_out(memory, n_vocab);
    int32_t top, greater = 0, count = 0;
    int status = scan(logits, n_vocab, &t, &top);
    if (status) return status;

    float max = value_of(top);
    int endless = top == KEY_INF; /* then the tokens at +inf share the mass equally: log_softmax's limit */
    if (endless)
        weigh(collect(logits, n_vocab, KEY_INF, &t), max, 1.0f, &t);
    else
        weigh_all(logits, n_vocab, max, 1.0f, &t);
    double log_sum = log(t.total);
#define LOGPROB(key) (float)((key) == top ? -log_sum : ((double)value_of(key) - max) - log_sum)

    int32_t own = key_of(logits[chosen]);
    for (int32_t i = 0, b = 0; i < n_vocab; i += BLOCK, b++) {
        if (t.block[b] < own) continue;
        int32_t end = n_vocab - i < BLOCK ? n_vocab : i + BLOCK;
        for (int32_t j = i; j < end; j++) greater += key_of(logits[j]) > own || (key_of(logits[j]) == own && j < chosen);
    }
    *chosen_logprob = LOGPROB(own);
    *chosen_rank = greater + 1;

    if (k == 0) return 0;
    count = collect(logits, n_vocab, key_of_top_k(k, n_vocab, &t), &t);
    count = keep_top_k(k, count, &t);
    for (int32_t i = 0; i < count; i++) { /* insertion sort: few, and equal keys stay in order of id */
        int32_t id = t.id[i], key = t.key[i], j = i;
        for (; j > 0 && t.key[j - 1] < key; j--) {
            t.key[j] = t.key[j - 1];
            t.id[j] = t.id[j - 1];
        }
        t.key[j] = key;
        t.id[j] = id;
    }
    for (int32_t i = 0; i < count; i++) {
        ids[i] = t.id[i];
        logprobs[i] = LOGPROB(t.key[i]);
    }
    return count;
#undef LOGPROB
}
