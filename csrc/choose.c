#include "choose.h"
#include <sys/mman.h>
#include <unistd.h>
#include "team.h"

static size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

/* What the sampler wants, then room for masked logits; both in whole pages. */
static size_t sampler_bytes(int32_t n_vocab) { return rounded(ni_sample_scratch_bytes(n_vocab), (size_t)sysconf(_SC_PAGESIZE)); }
static size_t masked_bytes(int32_t n_vocab) { return rounded(sizeof(float) * (size_t)n_vocab, (size_t)sysconf(_SC_PAGESIZE)); }

/* No huge pages: of what is reserved little is used. */
void *ni_choose_scratch_open(int32_t n_vocab, int n, size_t *each) {
    *each = sampler_bytes(n_vocab) + masked_bytes(n_vocab);
    void *p = mmap(NULL, *each * (size_t)n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, *each * (size_t)n, MADV_NOHUGEPAGE);
    return p;
}

void ni_choose_scratch_close(void *scratch, size_t each, int n) {
    if (scratch) munmap(scratch, each * (size_t)n);
}

size_t ni_choose_kept_bytes(int32_t n_vocab) { return ni_sample_kept_bytes(n_vocab); }

void ni_choose(ni_choice *c, int64_t stride, void *scratch) {
    const int32_t n_vocab = ni_sampler_n_vocab(c->sampler);
    float *masked = (float *)((uint8_t *)scratch + sampler_bytes(n_vocab));
    c->n = c->status = 0;
    for (int32_t i = 0; i < c->rows && !c->status; i++) {
        float *logits = c->logits + i * stride;
        if (c->mask) {
            ni_mask_logits(logits, c->mask, n_vocab, masked);
            logits = masked;
        }
        const int32_t token = ni_sample(c->sampler, logits, c->again, scratch);
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
    uint8_t *own = job->scratch + (size_t)me->worker * job->scratch_bytes;
    int i, masks = 0;
    while ((i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->n) {
        ni_choose(&job->choices[i], job->stride, own);
        masks |= job->choices[i].mask != NULL;
    }
    ni_sample_trim(own, job->n_vocab);
    if (masks) madvise(own + sampler_bytes(job->n_vocab), masked_bytes(job->n_vocab), MADV_DONTNEED);
}

int ni_choosing_start(ni_team *t, ni_choosing *job, ni_status *st) { return ni_team_start(t, choose, job, st); }
