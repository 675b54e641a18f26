/* Choosing the next token from logits.
 *
 * One ni_sampler per sequence holds the sequence's settings, its random seed, how many tokens it has produced, and how
 * often each token occurred. One ni_sample scratch buffer per calling thread (ni_sample_scratch_bytes) serves any
 * number of samplers. Nothing here allocates, prints or fails after ni_sampler_new; nothing uses threads.
 *
 * Steps, in order (those of vLLM's V1 sampler):
 *   1. logit_bias is added; stop tokens get -inf while fewer than min_tokens tokens were produced
 *   2. repetition penalty r (tokens of prompt and output): l > 0 ? l / r : l * r
 *      then frequency (output only): l - f * count;  then presence (output only): l - p
 *   3. temperature == 0: the greatest logit, done
 *   4. l / temperature;  min_p: keep probability >= min_p * greatest probability
 *   5. top_k: keep the k most probable;  top_p, over what top_k left, renormalised: keep a token while the mass of the
 *      more probable ones is < top_p (so at least one stays)
 *   6. draw from what is left, renormalised
 * Wherever tokens are equal the lowest id goes first, so greedy and all cuts are deterministic.
 *
 * Numbers: steps 1 and 2 compute in double and round once to float each. Weights exp((l - max) / T) are float with a
 * relative error of about 1e-7 * (1 + |(l - max) / T|), their sums are double. The exponential is our own and libm is
 * used for one logarithm per call only, so a seed gives the same tokens on every machine.
 * +inf: the tokens at +inf share all the mass. -inf: never chosen.
 *
 * Random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), key = seed,
 * counter = number of tokens produced. A counter-based generator has no state to carry: token i of a sequence draws the
 * same number whatever shares its batch, however its prompt was cut, and after a fork or a rewind. For a token that was
 * drawn and refused there is a second number, of the counter plus 2^63.
 */
#ifndef NI_SAMPLE_H
#define NI_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

/* Negative results. All other results are token ids or counts, >= 0. */
enum {
    NI_SAMPLE_NAN = -1,          /* a logit is NaN */
    NI_SAMPLE_EMPTY = -2,        /* every logit is -inf: nothing can be chosen */
    NI_SAMPLE_BAD_ARGUMENT = -3, /* a setting or an id is out of range */
    NI_SAMPLE_NO_MEMORY = -4
};

/* Why the output ends with a token. */
enum { NI_SAMPLE_STOP = 1, NI_SAMPLE_LENGTH = 2 };

#define NI_LOGPROBS_MAX 1024 /* most entries ni_top_logprobs lists */

typedef struct {
    double temperature;        /* >= 0, finite; 0 = greedy; positive values below 1e-30 act as 1e-30 */
    double top_p;              /* (0, 1]; 1 = off */
    double min_p;              /* [0, 1]; 0 = off */
    double repetition_penalty; /* > 0, finite; 1 = off */
    double presence_penalty;   /* finite as a float; 0 = off */
    double frequency_penalty;  /* finite as a float; 0 = off */
    int32_t top_k;             /* >= 0; 0 = off */
    int32_t min_tokens;        /* >= 0; stop tokens are banned until so many tokens were produced */
    int64_t max_tokens;        /* >= 0; the output ends with so many; 0 = never */
    uint64_t seed;
} ni_sampler_params;

typedef struct ni_sampler ni_sampler; /* not for two threads at once */

/* Bytes of scratch that ni_sample, ni_sampler_distribution and ni_top_logprobs need for n_vocab logits; the buffer must
 * be aligned to 16 bytes. It begins as zeros, and no call needs what another one left there. */
size_t ni_sample_scratch_bytes(int32_t n_vocab);

/* Most of the scratch is room for candidates, which are few as a rule. Where there were many, this gives the pages behind the first some
 * to the system again, so that no more than ni_sample_kept_bytes of it hold memory. */
void ni_sample_trim(void *scratch, int32_t n_vocab);
size_t ni_sample_kept_bytes(int32_t n_vocab);

/* A new sampler, or NULL with *status = NI_SAMPLE_BAD_ARGUMENT or NI_SAMPLE_NO_MEMORY. Everything is copied. All ids
 * must lie in [0, n_vocab). stop_ids: tokens that end the output. */
ni_sampler *ni_sampler_new(const ni_sampler_params *params, int32_t n_vocab, const int32_t *prompt, int64_t n_prompt,
                           const int32_t *bias_ids, const float *bias, int32_t n_bias, const int32_t *stop_ids,
                           int32_t n_stop, int *status);
void ni_sampler_free(ni_sampler *s); /* NULL is fine */
int32_t ni_sampler_n_vocab(const ni_sampler *s);

/* Copies logits to out, those whose bit in the mask is 0 as -inf; a NaN stays one, so that a mask hides no broken model.
 * mask: bit i % 32 of word i / 32 is token i's; at least n bits. n >= 1; out does not overlap the others. */
void ni_mask_logits(const float *logits, const uint32_t *mask, int32_t n, float *out);

/* Chooses a token: its id, or NI_SAMPLE_NAN or NI_SAMPLE_EMPTY. Does not count it: call ni_sampler_accept.
 * logits (n_vocab floats) are changed while this runs and have their old bits again when it returns.
 * again: 0, or 1 to draw with the position's second number. */
int32_t ni_sample(ni_sampler *s, float *logits, int again, void *scratch);

/* What ni_sample would draw from: writes ids (ascending) and probabilities (sum 1) of the tokens with a chance, n_vocab
 * entries of room each, and returns their number, or NI_SAMPLE_NAN or NI_SAMPLE_EMPTY. Greedy: one token. */
int32_t ni_sampler_distribution(ni_sampler *s, float *logits, void *scratch, int32_t *ids, double *probs);

/* Records that the sequence got this token, chosen here or not. 0, or that the output ends with it: NI_SAMPLE_STOP (it is one of the stop
 * ids) before NI_SAMPLE_LENGTH; or NI_SAMPLE_BAD_ARGUMENT. */
int ni_sampler_accept(ni_sampler *s, int32_t id);

/* The number that a sampler with this seed draws for its token at this position (0 = first of the output): uniform on
 * the multiples of 2^-53 in [0, 1). */
double ni_sample_uniform(uint64_t seed, uint64_t position);

/* Natural-log probabilities of the model itself: log_softmax(logits), without temperature, penalties or cuts.
 * Writes the k most probable (0 <= k <= NI_LOGPROBS_MAX; fewer where logits are -inf) to ids and logprobs, most
 * probable first, and for `chosen` its log-probability and its rank (1 = most probable). Returns the number written, or
 * NI_SAMPLE_NAN, NI_SAMPLE_EMPTY or NI_SAMPLE_BAD_ARGUMENT. Absolute error below 1e-6 + half an ulp of the result. */
int32_t ni_top_logprobs(const float *logits, int32_t n_vocab, int32_t chosen, int32_t k, void *scratch, int32_t *ids,
                        float *logprobs, float *chosen_logprob, int32_t *chosen_rank);

#endif
