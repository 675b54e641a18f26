/* Runs a checked plan: every worker walks the list of ops and meets the others where the list says so. */
#define _GNU_SOURCE
#include "ops/units.h"
#include "ops/panels.h"
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
enum {
#define NI_OP(name, signature) CODE_##name,
#include "ops/ops.def"
#undef NI_OP
    N_OPS
};

const char *ni_op_name(int code) { return code >= 0 && code < N_OPS ? registry[code].name : NULL; }
const char *ni_op_signature(int code) { return code >= 0 && code < N_OPS ? registry[code].signature : NULL; }

/* What workers read at every op, one copy per node: on another node's memory it would cost a trip over the link each time. */
typedef struct {
    ni_op *ops;
    ni_tensor *tensors;
    ni_weight *weights;
    int32_t *seam_set;      /* per op: ni_ctx */
    uint8_t *seams;
    atomic_int *taken;      /* by crew, per op; seams and these begin as zeros, for they lie in fresh memory */
} node_tables;

struct ni_plan {
    int n_ops, n_workers, n_nodes, timing;
    int stateful;                       /* an op reads and leaves recurrent state */
    int64_t n_steps;                    /* begun so far */
    ni_sizes sizes;
    size_t scratch_bytes;               /* of a worker, its ni_ctx at the beginning included */
    int32_t *seam_set;                  /* as in node_tables, with the number of sets behind it */
    size_t seam_bytes, taken_stride;
    const ni_op *ops;                   /* the first node's copy */
    ni_ctx **ctx;                       /* per worker, at the start of its scratch memory */
    ni_arena shared, *node, *scratch, *table;   /* per node; scratch: its workers' side by side */
    node_tables *tables;
    ni_step current;
    const ni_op *attend;                /* the first, for the slots; NULL: none */
    ni_place *places;                   /* room for max_tokens */
    int32_t *slots;
    int64_t *op_ns, *barrier_ns;
    int64_t *stamps;                    /* per worker: n_stamps(p) of its last timed step; NULL until timing is first switched on */
};

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static size_t n_stamps(const ni_plan *p) { return 1 + 2 * (size_t)p->n_ops; }

/* Every index that the ops will use without looking. */
static int check(const ni_plan_spec *s, ni_status *st) {
    for (int i = 0; i < s->n_ops; i++) {
        const ni_op *op = &s->ops[i];
        if (op->code < 0 || op->code >= N_OPS) return ni_fail(st, NI_ERR_VALUE, "op %d has code %d; codes are 0 to %d", i, op->code, N_OPS - 1);
        for (int j = 0; j < NI_OP_TENSORS; j++)
            if (op->t[j] >= s->n_tensors) return ni_fail(st, NI_ERR_VALUE, "op %d (%s) names tensor %d of %d", i, registry[op->code].name, op->t[j], s->n_tensors);
        for (int j = 0; j < NI_OP_WEIGHTS; j++)
            if (op->w[j] >= s->n_weights) return ni_fail(st, NI_ERR_VALUE, "op %d (%s) names weight %d of %d", i, registry[op->code].name, op->w[j], s->n_weights);
    }
    return 0;
}

static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Matmuls that no barrier parts use seams of their own: a worker may be at the second while its neighbour is at the first. */
static void deal_seam_sets(const ni_plan_spec *s, int32_t *seam_set) {
    int32_t next = 0, most = 0;
    for (int i = 0; i < s->n_ops; i++) {
        if (s->ops[i].barrier) next = 0;
        seam_set[i] = next;
        if (registry[s->ops[i].code].run == ni_op_matmul || registry[s->ops[i].code].run == ni_op_matmul_grouped) next++;
        if (next > most) most = next;
    }
    seam_set[s->n_ops] = most;
}

static int check_sizes(const ni_sizes *z, ni_status *st) {
    if (z->crew > 0 && z->piece_bytes > 0 && z->exact_groups >= 0 && z->line_tokens >= 0 && z->line_tokens <= NI_PANEL_TOKENS
        && z->tile_groups > 0 && z->tile_tokens > 0)
        return 0;
    return ni_fail(st, NI_ERR_VALUE, "crew %d, piece_bytes %d, exact_groups %d, line_tokens %d, tile_groups %d, tile_tokens %d: sizes of "
                   "work must be positive, line_tokens at most %d", z->crew, z->piece_bytes, z->exact_groups, z->line_tokens,
                   z->tile_groups, z->tile_tokens, NI_PANEL_TOKENS);
}

static int open_arenas(ni_plan *p, ni_team *t, const ni_plan_spec *s, size_t scratch, const int *os_nodes, ni_status *st) {
    const size_t same = aligned(sizeof *s->ops * (size_t)s->n_ops) + aligned(sizeof *s->tensors * (size_t)s->n_tensors)
                        + aligned(sizeof *s->weights * (size_t)s->n_weights) + aligned(sizeof *p->seam_set * (size_t)s->n_ops);
    if (ni_arena_open(&p->shared, (size_t)s->arena_bytes[NI_SHARED], NULL, 0, 0, st)) return -1;
    for (int w = 0; w < p->n_workers; w++) {
        const ni_worker *me = ni_team_worker(t, w);
        const int *at = &os_nodes[me->node];
        const size_t tables = same + p->seam_bytes * (size_t)(p->seam_set[p->n_ops] * me->size)
                              + p->taken_stride * (size_t)ni_crews(me->size, &p->sizes);
        if (me->rank == 0 && (ni_arena_open(&p->node[me->node], (size_t)s->arena_bytes[NI_PER_NODE], at, 1, 0, st)
                              || ni_arena_open(&p->scratch[me->node], scratch * (size_t)me->size, at, 1, 0, st)
                              || ni_arena_open(&p->table[me->node], tables, at, 1, 0, st)))
            return -1;
    }
    return 0;
}

typedef struct {
    ni_plan *p;
    const ni_plan_spec *spec;
    const int *node_map;
    size_t scratch;
} build_job;

static void *put(uint8_t **at, const void *from, size_t bytes) {
    void *to = *at;
    if (bytes) memcpy(to, from, bytes);
    *at += aligned(bytes);
    return to;
}

/* Each node's tables are written by its own workers: first touch places them where mbind is refused. */
static void build(const ni_worker *me, void *arg) {
    const build_job *job = arg;
    ni_plan *p = job->p;
    const ni_plan_spec *s = job->spec;
    node_tables *own = &p->tables[me->node];
    if (me->rank == 0) {
        uint8_t *at = p->table[me->node].base;
        own->ops = put(&at, s->ops, sizeof *s->ops * (size_t)s->n_ops);
        own->tensors = put(&at, s->tensors, sizeof *s->tensors * (size_t)s->n_tensors);
        own->weights = put(&at, s->weights, sizeof *s->weights * (size_t)s->n_weights);
        own->seam_set = put(&at, p->seam_set, sizeof *p->seam_set * (size_t)s->n_ops);
        own->seams = at;
        own->taken = (atomic_int *)(at + p->seam_bytes * (size_t)(p->seam_set[p->n_ops] * me->size));
        for (int i = 0; i < s->n_weights; i++) own->weights[i].here = s->weights[i].copy[job->node_map[me->node]];
    }
    ni_node_barrier(me);
    uint8_t *mine = (uint8_t *)p->scratch[me->node].base + job->scratch * (size_t)me->rank;
    ni_ctx *c = (ni_ctx *)mine;
    *c = (ni_ctx){.own = *me, .step = &p->current, .ops = own->ops, .tensors = own->tensors, .weights = own->weights,
                  .copy = job->node_map[me->node], .max_tokens = s->max_tokens, .own_sizes = p->sizes, .n_ops = p->n_ops,
                  .taken = own->taken, .taken_stride = p->taken_stride, .seam_set = own->seam_set, .seams = own->seams,
                  .seam_bytes = p->seam_bytes, .places = p->places, .slots = p->slots, .scratch = mine + aligned(sizeof *c)};
    c->me = &c->own;
    c->sizes = &c->own_sizes, c->work = c->own_work;
    c->arena[NI_SHARED] = p->shared.base;
    c->arena[NI_PER_NODE] = p->node[me->node].base;
    p->ctx[me->worker] = c;
    ni_team_barrier(me);
}

ni_plan *ni_plan_open(ni_team *t, const ni_plan_spec *s, const int *node_map, const int *os_nodes, ni_status *st) {
    if (check(s, st) || check_sizes(&s->sizes, st)) return NULL;
    ni_plan *p = calloc(1, sizeof *p);
    if (!p) { ni_fail(st, NI_ERR_MEMORY, "no memory for a plan"); return NULL; }
    p->n_ops = s->n_ops, p->n_workers = ni_team_size(t), p->n_nodes = ni_team_worker(t, 0)->n_nodes;
    size_t n = (size_t)p->n_nodes;
    p->ctx = calloc((size_t)p->n_workers, sizeof *p->ctx);
    p->node = calloc(n, sizeof *p->node), p->scratch = calloc(n, sizeof *p->scratch), p->table = calloc(n, sizeof *p->table);
    p->tables = calloc(n, sizeof *p->tables);
    p->seam_set = calloc((size_t)s->n_ops + 1, sizeof *p->seam_set);
    p->op_ns = calloc((size_t)s->n_ops, sizeof *p->op_ns);
    p->barrier_ns = calloc((size_t)s->n_ops, sizeof *p->barrier_ns);
    p->places = calloc((size_t)s->max_tokens, sizeof *p->places);
    p->slots = calloc((size_t)s->max_tokens, sizeof *p->slots);
    if (!p->ctx || !p->node || !p->scratch || !p->table || !p->tables || !p->seam_set || !p->op_ns || !p->barrier_ns || !p->places
        || !p->slots) {
        ni_fail(st, NI_ERR_MEMORY, "no memory for a plan of %d ops", s->n_ops);
        ni_plan_close(p);
        return NULL;
    }
    p->sizes = s->sizes;
    deal_seam_sets(s, p->seam_set);
    p->seam_bytes = sizeof(ni_seam) + (size_t)ni_min(s->max_tokens, s->sizes.line_tokens) * 2 * NI_ROWS * sizeof(float);
    p->taken_stride = aligned(sizeof(atomic_int) * (size_t)s->n_ops);
    ni_ctx asking = {.tensors = s->tensors, .weights = s->weights, .max_tokens = s->max_tokens};
    size_t scratch = 64;
    for (int i = 0; i < s->n_ops; i++) {
        size_t need = registry[s->ops[i].code].scratch(&asking, &s->ops[i]);
        if (need > scratch) scratch = need;
    }
    scratch = p->scratch_bytes = (aligned(sizeof asking) + scratch + 4095) / 4096 * 4096;
    build_job job = {p, s, node_map, scratch};
    if (open_arenas(p, t, s, scratch, os_nodes, st) || ni_team_start(t, build, &job, st)) { ni_plan_close(p); return NULL; }
    while (!ni_team_wait(t, 1000)) {}
    p->ops = p->tables[0].ops;
    for (int i = 0; i < s->n_ops && !p->attend; i++)
        if (p->ops[i].code == CODE_attend) p->attend = &p->ops[i];
    for (int i = 0; i < s->n_ops; i++)
        p->stateful |= p->ops[i].code == CODE_short_conv || p->ops[i].code == CODE_recur || p->ops[i].code == CODE_scan;
    return p;
}

void ni_plan_close(ni_plan *p) {
    if (!p) return;
    for (int i = 0; p->node && i < p->n_nodes; i++) ni_arena_close(&p->node[i]);
    for (int i = 0; p->scratch && i < p->n_nodes; i++) ni_arena_close(&p->scratch[i]);
    for (int i = 0; p->table && i < p->n_nodes; i++) ni_arena_close(&p->table[i]);
    ni_arena_close(&p->shared);
    free(p->ctx), free(p->node), free(p->scratch), free(p->table), free(p->tables), free(p->op_ns), free(p->barrier_ns);
    free(p->seam_set), free(p->places), free(p->slots), free(p->stamps), free(p);
}

int64_t ni_plan_bytes(const ni_plan *p) {
    size_t sum = p->shared.bytes;
    for (int i = 0; i < p->n_nodes; i++) sum += p->node[i].bytes + p->scratch[i].bytes + p->table[i].bytes;
    return (int64_t)sum;
}

/* Does the barrier before op i; 1 if all must leave. */
static int meet(const ni_worker *me, int barrier) {
    if (barrier == NI_BARRIER_TEAM) return ni_team_barrier(me);
    if (barrier == NI_BARRIER_NODE) ni_node_barrier(me);
    return 0;
}

/* At the start of a step, by one worker of each node, with no barrier of its own: a matmul reads what others wrote, so one stands before
 * the first in any case. */
static void begin(const ni_plan *p, const ni_ctx *c) {
    if (c->me->rank) return;
    for (int64_t crew = 0; crew < ni_crews(c->me->size, &p->sizes); crew++) {
        atomic_int *taken = (atomic_int *)((uint8_t *)c->taken + (size_t)crew * c->taken_stride);
        for (int i = 0; i < p->n_ops; i++) atomic_store_explicit(&taken[i], 0, memory_order_relaxed);
    }
}

static void run(const ni_worker *me, void *arg) {
    ni_plan *p = arg;
    const ni_ctx *c = p->ctx[me->worker];
    begin(p, c);
    int64_t *stamp = p->timing ? p->stamps + n_stamps(p) * (size_t)me->worker : NULL;
    if (stamp) *stamp = now();
    for (int i = 0; i < p->n_ops; i++) {
        const ni_op *op = &c->ops[i];
        if (meet(c->me, op->barrier)) return;
        if (stamp) stamp[1] = now();
        registry[op->code].run(c, op);
        if (!stamp) continue;
        stamp[2] = now();
        if (me->worker == 0) p->barrier_ns[i] += stamp[1] - stamp[0], p->op_ns[i] += stamp[2] - stamp[1];
        stamp += 2;
    }
}

static void set_step(ni_plan *p, const ni_step *s) {
    p->current = *s;
    p->current.number = ++p->n_steps;
    if (p->attend) ni_deal_slots(p->attend, s, p->places, p->slots);
}

/* Whether a segment has a state to begin with and stops in order, the last at its end. */
static int check_stops(const ni_segment *s) {
    int64_t pos = s->pos0;
    for (int64_t i = 0; i < s->n_stops; pos = s->stops[i++].pos)
        if (s->stops[i].pos <= pos || !s->stops[i].to) return -1;
    return pos == s->pos0 + s->n && (s->state || !s->pos0) ? 0 : -1;
}

int ni_plan_start(ni_team *t, ni_plan *p, const ni_step *s, ni_status *st) {
    if (s->n_tokens < 1 || s->n_tokens > p->ctx[0]->max_tokens)
        return ni_fail(st, NI_ERR_VALUE, "a step of %d tokens was asked for; the plan takes 1 to %d", s->n_tokens, p->ctx[0]->max_tokens);
    for (int i = 0; i < s->n_segments && p->stateful; i++)
        if (check_stops(&s->segments[i])) return ni_fail(st, NI_ERR_VALUE, "segment %d of a step over recurrent state: wanted the state "
                                                              "before its position %lld, if that is not 0, and places for it behind, up to "
                                                              "its end", i, (long long)s->segments[i].pos0);
    int64_t covered = 0;
    for (int i = 0; i < s->n_segments; covered += s->segments[i++].n)
        if (s->segments[i].n < 1 || s->segments[i].row0 != covered)
            return ni_fail(st, NI_ERR_VALUE, "segment %d of a step has %lld tokens from row %lld; wanted 1 or more from row %lld", i,
                           (long long)s->segments[i].n, (long long)s->segments[i].row0, (long long)covered);
    if (covered != s->n_tokens)
        return ni_fail(st, NI_ERR_VALUE, "a step's segments have %lld tokens; the step has %d", (long long)covered, s->n_tokens);
    /* A running step still reads its own description in p. */
    if (!ni_team_wait(t, 0)) return ni_fail(st, NI_ERR_VALUE, "the team is still at work; wait for it before handing it another step");
    set_step(p, s);
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
        if ((barrier == NI_BARRIER_TEAM || p->ctx[o]->me->node == p->ctx[w]->me->node) && at[o] < at[w]) return 0;
    return at[w] < p->n_ops;
}

void ni_plan_run_shuffled(ni_team *t, ni_plan *p, const ni_step *s, uint64_t seed) {
    (void)t;
    set_step(p, s);
    int *at = calloc((size_t)p->n_workers, sizeof *at);
    seed = seed ? seed : 1;
    for (int w = 0; w < p->n_workers; w++) begin(p, p->ctx[w]);
    for (int left = at ? p->n_workers : 0; left;) {
        int w = (int)(next_random(&seed) % (uint64_t)p->n_workers);
        if (!may_go(p, at, w)) continue;
        /* One op, or all up to the next barrier: both extremes of how far a worker runs ahead. */
        do {
            registry[p->ops[at[w]].code].run(p->ctx[w], &p->ctx[w]->ops[at[w]]);
            at[w]++;
        } while (at[w] < p->n_ops && !p->ops[at[w]].barrier && next_random(&seed) % 8);
        if (at[w] == p->n_ops) left--;
    }
    free(at);
}

int ni_plan_set_timing(ni_plan *p, int on, ni_status *st) {
    if (on && !p->stamps) {
        p->stamps = calloc(n_stamps(p) * (size_t)p->n_workers, sizeof *p->stamps);
        if (!p->stamps) return ni_fail(st, NI_ERR_MEMORY, "no memory for the times of %d ops and %d workers", p->n_ops, p->n_workers);
    }
    p->timing = on;
    return 0;
}

void ni_plan_fill(ni_plan *p, float value) {
    for (size_t i = 0; i < p->shared.bytes / sizeof value; i++) ((float *)p->shared.base)[i] = value;
    for (int n = 0; n < p->n_nodes; n++)
        for (size_t i = 0; i < p->node[n].bytes / sizeof value; i++) ((float *)p->node[n].base)[i] = value;
    for (int w = 0; w < p->n_workers; w++) {
        float *at = (float *)p->ctx[w]->scratch;
        for (size_t i = 0; i < (p->scratch_bytes - aligned(sizeof(ni_ctx))) / sizeof value; i++) at[i] = value;
    }
    for (int n = 0, w = 0; n < p->n_nodes; w += p->ctx[w]->me->size, n++)
        for (int i = 0; i < p->seam_set[p->n_ops] * p->ctx[w]->me->size; i++) {
            ni_seam *seam = (ni_seam *)(p->tables[n].seams + p->seam_bytes * (size_t)i);
            for (size_t f = 0; f < (p->seam_bytes - sizeof *seam) / sizeof value; f++) seam->sums[f] = value;
        }
}

void ni_plan_work(ni_plan *p, int64_t *work) {
    for (int w = 0; w < p->n_workers; w++)
        for (int i = 0; i < 2; i++) work[2 * w + i] = p->ctx[w]->work[i], p->ctx[w]->work[i] = 0;
}

int ni_slice(int64_t rows, int64_t width, int64_t size, int64_t rank, int64_t i, int64_t *row, int64_t *a, int64_t *b) {
    ni_slices s = ni_slices_for(size, rank, rows, width);
    s.unit += i;
    return ni_next_slice(&s, row, a, b);
}

int ni_plan_workers(const ni_plan *p) { return p->n_workers; }

int ni_plan_stamps(const ni_plan *p, int64_t *stamps, ni_status *st) {
    if (!p->stamps) return ni_fail(st, NI_ERR_VALUE, "the plan has no stamps: timing was never switched on");
    memcpy(stamps, p->stamps, n_stamps(p) * (size_t)p->n_workers * sizeof *stamps);
    return 0;
}

void ni_plan_times(ni_plan *p, int64_t *op_ns, int64_t *barrier_ns) {
    memcpy(op_ns, p->op_ns, sizeof *op_ns * (size_t)p->n_ops);
    memcpy(barrier_ns, p->barrier_ns, sizeof *barrier_ns * (size_t)p->n_ops);
    memset(p->op_ns, 0, sizeof *op_ns * (size_t)p->n_ops);
    memset(p->barrier_ns, 0, sizeof *barrier_ns * (size_t)p->n_ops);
}
