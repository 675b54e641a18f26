#include "choose.h"
#include "team.h"

static size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t ni_choose_scratch_bytes(int32_t n_vocab) {
    return lines(ni_sample_scratch_bytes(n_vocab)) + lines(sizeof(float) * (size_t)n_vocab);
}

void ni_choose(ni_choice *c, int64_t stride, void *scratch) {
    const int32_t n_vocab = ni_sampler_n_vocab(c->sampler);
    float *masked = (float *)((uint8_t *)scratch + lines(ni_sample_scratch_bytes(n_vocab)));
    c->n = c->status = 0;
    for (int32_t i = 0; i < c->rows && !c->status; i++) {
        float *logits = c->logits + i * stride;
        if (c->mask) {
            ni_mask_logits(logits, c->mask, n_vocab, masked);
            logits = masked;
        }
        const int32_t token = ni_sample(c->sampler, logits, scratch);
        if (token < 0) {
            c->status = token;
            return;
        }
        if (c->n_logprobs >= 0) {
            const int64_t at = (int64_t)i * c->n_logprobs;
            ni_logprob *p = &c->logprobs[i];
            const int32_t listed = ni_top_logprobs(c->own + i * stride, n_vocab, token, c->n_logprobs, scratch, c->top_ids + at,
                                                   c->top + at, &p->logprob, &p->rank);
            if (listed < 0) {
                c->status = listed;
                return;
            }
            p->n = listed;
        }
        c->tokens[c->n++] = token;
        if (c->hold) return;
        c->status = ni_sampler_accept(c->sampler, token);
        if (i + 1 < c->rows && token != c->proposed[i]) return;
    }
}

static void choose(const ni_worker *me, void *arg) {
    ni_choosing *job = arg;
    int i;
    while ((i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->n)
        ni_choose(&job->choices[i], job->stride, job->scratch + (size_t)me->worker * job->scratch_bytes);
}

int ni_choosing_start(ni_team *t, ni_choosing *job, ni_status *st) { return ni_team_start(t, choose, job, st); }
