/* Choosing the next tokens of many sequences at once, on the workers of a team or on the calling thread.
 *
 * A choice is one sequence's part: one row of logits, or several in a row behind tokens that somebody proposed for it (speculation). Row 0
 * gives the next token; row i + 1 is what the model says after proposed[i], so it is used only if the token chosen from row i is just
 * that. What is chosen depends on the sequence alone: not on the others, on the order of work, or on whether tokens were proposed.
 */
#ifndef NI_CHOOSE_H
#define NI_CHOOSE_H
#include "ni.h"
#include "sample.h"

/* Log-probabilities of one token, as ni_top_logprobs gives them; ids and values lie in the choice's arrays. */
typedef struct {
    float logprob;
    int32_t rank, n;            /* n: entries of the list */
} ni_logprob;

typedef struct {
    ni_sampler *sampler;        /* no two choices have the same */
    float *logits;              /* rows, `stride` floats apart, of which the sampler takes n_vocab; written to meanwhile, as by ni_sample */
    const float *own;           /* the model's own logits, likewise, for log-probabilities */
    const uint32_t *mask;       /* as of ni_mask_logits, for row 0; NULL: none. With a mask rows is 1 */
    int32_t again;              /* as of ni_sample, for row 0; with 1 rows is 1 */
    const int32_t *proposed;    /* rows - 1 tokens */
    int32_t rows;               /* 0: this choice is left out */
    int32_t n_logprobs;         /* entries to list for each token; -1: no log-probabilities */
    int32_t hold;               /* 1: choose from row 0 without ni_sampler_accept, which the caller does */
    /* Results */
    int32_t *tokens;            /* rows */
    ni_logprob *logprobs;       /* rows, and n_logprobs ids and values for each */
    int32_t *top_ids;
    float *top;
    int32_t n;                  /* tokens chosen */
    int32_t status;             /* 0; NI_SAMPLE_STOP or _LENGTH with the last of them; or NI_SAMPLE_NAN or _EMPTY of the row after them */
} ni_choice;

/* Address space for samplers of at most n_vocab logits: *each bytes for each of n threads, which touch their own pages first. NULL: none. */
void *ni_choose_scratch_open(int32_t n_vocab, int n, size_t *each);
void ni_choose_scratch_close(void *scratch, size_t each, int n);
/* Bytes of one thread's that may hold memory between two jobs of a team. */
size_t ni_choose_kept_bytes(int32_t n_vocab);

/* Makes one choice on the calling thread, with one thread's scratch. */
void ni_choose(ni_choice *c, int64_t stride, void *scratch);

/* n choices, which workers take one by one. Wait with ni_team_wait; all of this must live as long. Runs to its end when cancelled, for it
 * takes milliseconds. */
typedef struct {
    ni_choice *choices;
    int64_t stride;
    uint8_t *scratch;           /* for each worker */
    size_t scratch_bytes;       /* of one */
    int32_t n_vocab;            /* that the scratch is for */
    int n, next;                /* next: 0 at first */
} ni_choosing;

int ni_choosing_start(ni_team *t, ni_choosing *job, ni_status *st);
#endif
