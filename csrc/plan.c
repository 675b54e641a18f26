/* Runs a checked plan: every worker walks the list of ops and meets the others where the list says so. */
#define _GNU_SOURCE
#include "ops/ops.h"
#include <stdlib.h>
#include <time.h>

typedef struct {
    const char *name, *signature;
    void (*run)(const ni_ctx *, const ni_op *);
    size_t (*scratch)(const ni_ctx *, const ni_op *);
} op_entry;

static const op_entry registry[] = {
#define NI_OP(name, signature) {#name, signature, ni_op_##name, ni_scratch_##name},
#include "ops/ops.def"
#undef NI_OP
};
enum { N_OPS = sizeof registry / sizeof *registry };

const char *ni_op_name(int code) { return code >= 0 && code < N_OPS ? registry[code].name : NULL; }
const char *ni_op_signature(int code) { return code >= 0 && code < N_OPS ? registry[code].signature : NULL; }

struct ni_plan {
    int n_ops, n_workers, n_nodes, timing;
    ni_op *ops;
    ni_tensor *tensors;
    ni_weight *weights;
    ni_ctx *ctx;                        /* per worker */
    ni_arena shared, *node, *scratch;   /* scratch: per node, its workers' side by side */
    const ni_step *step;
    ni_step current;
    int64_t *op_ns, *barrier_ns;
};

static void *copy_of(const void *from, size_t bytes) {
    void *to = malloc(bytes ? bytes : 1);
    if (to && bytes) memcpy(to, from, bytes);
    return to;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Every index that the ops will use without looking. */
static int check(const ni_plan_spec *s, ni_status *st) {
    for (int i = 0; i < s->n_ops; i++) {
        const ni_op *op = &s->ops[i];
        if (op->code < 0 || op->code >= N_OPS) return ni_fail(st, NI_ERR_VALUE, "op %d has code %d; codes are 0 to %d", i, op->code, N_OPS - 1);
        for (int j = 0; j < 6; j++)
            if (op->t[j] >= s->n_tensors) return ni_fail(st, NI_ERR_VALUE, "op %d (%s) names tensor %d of %d", i, registry[op->code].name, op->t[j], s->n_tensors);
        for (int j = 0; j < 4; j++)
            if (op->w[j] >= s->n_weights) return ni_fail(st, NI_ERR_VALUE, "op %d (%s) names weight %d of %d", i, registry[op->code].name, op->w[j], s->n_weights);
    }
    return 0;
}

static int open_arenas(ni_plan *p, ni_team *t, const ni_plan_spec *s, const int *os_nodes, ni_status *st) {
    size_t scratch = 64;
    for (int i = 0; i < s->n_ops; i++) {
        size_t need = registry[s->ops[i].code].scratch(&p->ctx[0], &p->ops[i]);
        if (need > scratch) scratch = need;
    }
    scratch = (scratch + 4095) / 4096 * 4096;
    if (ni_arena_open(&p->shared, (size_t)s->arena_bytes[NI_SHARED], NULL, 0, 0, st)) return -1;
    for (int w = 0; w < p->n_workers; w++) {
        const ni_worker *me = ni_team_worker(t, w);
        int node = me->node;
        if (me->rank == 0 && (ni_arena_open(&p->node[node], (size_t)s->arena_bytes[NI_PER_NODE], &os_nodes[node], 1, 0, st)
                              || ni_arena_open(&p->scratch[node], scratch * (size_t)me->size, &os_nodes[node], 1, 0, st)))
            return -1;
        p->ctx[w].arena[NI_SHARED] = p->shared.base;
        p->ctx[w].arena[NI_PER_NODE] = p->node[node].base;
        p->ctx[w].scratch = (uint8_t *)p->scratch[node].base + scratch * (size_t)me->rank;
    }
    return 0;
}

ni_plan *ni_plan_open(ni_team *t, const ni_plan_spec *s, const int *node_map, const int *os_nodes, ni_status *st) {
    if (check(s, st)) return NULL;
    ni_plan *p = calloc(1, sizeof *p);
    if (!p) { ni_fail(st, NI_ERR_MEMORY, "no memory for a plan"); return NULL; }
    p->n_ops = s->n_ops, p->n_workers = ni_team_size(t), p->n_nodes = ni_team_worker(t, 0)->n_nodes;
    p->ops = copy_of(s->ops, sizeof *s->ops * (size_t)s->n_ops);
    p->tensors = copy_of(s->tensors, sizeof *s->tensors * (size_t)s->n_tensors);
    p->weights = copy_of(s->weights, sizeof *s->weights * (size_t)s->n_weights);
    p->ctx = calloc((size_t)p->n_workers, sizeof *p->ctx);
    p->node = calloc((size_t)p->n_nodes, sizeof *p->node);
    p->scratch = calloc((size_t)p->n_nodes, sizeof *p->scratch);
    p->op_ns = calloc((size_t)s->n_ops, sizeof *p->op_ns);
    p->barrier_ns = calloc((size_t)s->n_ops, sizeof *p->barrier_ns);
    if (!p->ops || !p->tensors || !p->weights || !p->ctx || !p->node || !p->scratch || !p->op_ns || !p->barrier_ns) {
        ni_fail(st, NI_ERR_MEMORY, "no memory for a plan of %d ops", s->n_ops);
        ni_plan_close(p);
        return NULL;
    }
    for (int w = 0; w < p->n_workers; w++) {
        const ni_worker *me = ni_team_worker(t, w);
        p->ctx[w] = (ni_ctx){.me = me, .step = &p->current, .tensors = p->tensors, .weights = p->weights,
                             .copy = node_map[me->node], .max_tokens = s->max_tokens};
    }
    if (open_arenas(p, t, s, os_nodes, st)) { ni_plan_close(p); return NULL; }
    return p;
}

void ni_plan_close(ni_plan *p) {
    if (!p) return;
    for (int i = 0; p->node && i < p->n_nodes; i++) ni_arena_close(&p->node[i]);
    for (int i = 0; p->scratch && i < p->n_nodes; i++) ni_arena_close(&p->scratch[i]);
    ni_arena_close(&p->shared);
    free(p->ops), free(p->tensors), free(p->weights), free(p->ctx), free(p->node), free(p->scratch), free(p->op_ns), free(p->barrier_ns);
    free(p);
}

int64_t ni_plan_bytes(const ni_plan *p) {
    size_t sum = p->shared.bytes;
    for (int i = 0; i < p->n_nodes; i++) sum += p->node[i].bytes + p->scratch[i].bytes;
    return (int64_t)sum;
}

/* Does the barrier before op i; 1 if all must leave. */
static int meet(const ni_worker *me, int barrier) {
    if (barrier == NI_BARRIER_TEAM) return ni_team_barrier(me);
    if (barrier == NI_BARRIER_NODE) ni_node_barrier(me);
    return 0;
}

static void run(const ni_worker *me, void *arg) {
    ni_plan *p = arg;
    const ni_ctx *c = &p->ctx[me->worker];
    int timing = p->timing && me->worker == 0;
    int64_t t0 = timing ? now() : 0;
    for (int i = 0; i < p->n_ops; i++) {
        if (meet(me, p->ops[i].barrier)) return;
        int64_t t1 = timing ? now() : 0;
        registry[p->ops[i].code].run(c, &p->ops[i]);
        if (timing) {
            p->barrier_ns[i] += t1 - t0;
            t0 = now();
            p->op_ns[i] += t0 - t1;
        }
    }
}

int ni_plan_start(ni_team *t, ni_plan *p, const ni_step *s, ni_status *st) {
    if (s->n_tokens < 1 || s->n_tokens > p->ctx[0].max_tokens)
        return ni_fail(st, NI_ERR_VALUE, "a step of %d tokens was asked for; the plan takes 1 to %d", s->n_tokens, p->ctx[0].max_tokens);
    /* A running step still reads its own description in p. */
    if (!ni_team_wait(t, 0)) return ni_fail(st, NI_ERR_VALUE, "the team is still at work; wait for it before handing it another step");
    p->current = *s;
    return ni_team_start(t, run, p, st);
}

/* xorshift64*: any generator will do, it only shuffles. */
static uint64_t next_random(uint64_t *x) {
    *x ^= *x >> 12, *x ^= *x << 25, *x ^= *x >> 27;
    return *x * 0x2545F4914F6CDD1DULL;
}

/* A worker at a barrier may go on once all of its group have arrived there. */
static int may_go(const ni_plan *p, const int *at, int w) {
    int barrier = at[w] < p->n_ops ? p->ops[at[w]].barrier : NI_BARRIER_NONE;
    for (int o = 0; o < p->n_workers && barrier; o++)
        if ((barrier == NI_BARRIER_TEAM || p->ctx[o].me->node == p->ctx[w].me->node) && at[o] < at[w]) return 0;
    return at[w] < p->n_ops;
}

void ni_plan_run_shuffled(ni_team *t, ni_plan *p, const ni_step *s, uint64_t seed) {
    (void)t;
    p->current = *s;
    int *at = calloc((size_t)p->n_workers, sizeof *at);
    seed = seed ? seed : 1;
    for (int left = at ? p->n_workers : 0; left;) {
        int w = (int)(next_random(&seed) % (uint64_t)p->n_workers);
        if (!may_go(p, at, w)) continue;
        /* One op, or all up to the next barrier: both extremes of how far a worker runs ahead. */
        do {
            registry[p->ops[at[w]].code].run(&p->ctx[w], &p->ops[at[w]]);
            at[w]++;
        } while (at[w] < p->n_ops && !p->ops[at[w]].barrier && next_random(&seed) % 8);
        if (at[w] == p->n_ops) left--;
    }
    free(at);
}

void ni_plan_set_timing(ni_plan *p, int on) { p->timing = on; }

void ni_plan_times(ni_plan *p, int64_t *op_ns, int64_t *barrier_ns) {
    memcpy(op_ns, p->op_ns, sizeof *op_ns * (size_t)p->n_ops);
    memcpy(barrier_ns, p->barrier_ns, sizeof *barrier_ns * (size_t)p->n_ops);
    memset(p->op_ns, 0, sizeof *op_ns * (size_t)p->n_ops);
    memset(p->barrier_ns, 0, sizeof *barrier_ns * (size_t)p->n_ops);
}
