/* What an op sees: its operands for this worker, the step, and the kernels.  Ops know no OpenMP and no libnuma, cannot fail and do not allocate.
 *
 * T: rows of the step this op works on.  A tensor that is per node is written by that node's workers alone, each a part; a shared
 * one by all workers of the team. */
#ifndef NI_OPS_H
#define NI_OPS_H
#include <math.h>
#include <string.h>
#include "../cut.h"
#include "../team.h"

/* Where a worker leaves the sums of a row group that the next one of its node continues.  mark: the number of the matmul (step by step,
 * op by op), times two, plus who came last to this place: 0 the worker itself, 1 the next. */
typedef struct {
    _Alignas(64) atomic_llong mark;
    _Alignas(64) float sums[];  /* [tokens][NI_ROWS], then those of the minimums */
} ni_seam;

/* A segment of a step, by the position of its last token. */
typedef struct { int64_t last, n, segment; } ni_place;

typedef struct {
    const ni_worker *me;    /* = &own, a copy near the worker */
    ni_worker own;
    const ni_step *step;
    const ni_op *ops;
    const ni_tensor *tensors;
    const ni_weight *weights;
    int copy;               /* index in ni_weight.copy for this worker's node */
    int max_tokens;
    const ni_place *places; /* the step's segments, the longest first */
    const int32_t *slots;   /* per segment of the step: where its attention's parts start; -1: it leaves none (ops/units.h) */
    const ni_sizes *sizes;  /* = &own_sizes */
    ni_sizes own_sizes;
    int64_t n_ops;
    /* In the node's memory.  taken: by crew, per op: how many of the pieces that its workers share have been taken.  seams: sets of one
     * for each worker; seam_set: per op, which of them it uses, for matmuls without a barrier between them may not use the same. */
    atomic_int *taken;
    size_t taken_stride;    /* from crew to crew */
    const int32_t *seam_set;
    uint8_t *seams;
    size_t seam_bytes;
    int64_t *work;          /* = own_work: bytes of weights that this worker's matmuls read, and their multiply-adds */
    int64_t own_work[2];
    uint8_t *arena[2];      /* by storage class */
    uint8_t *scratch;       /* this worker's own, 64-byte aligned */
} ni_ctx;

#define NI_OP(name, signature) \
    void ni_op_##name(const ni_ctx *c, const ni_op *op); \
    size_t ni_scratch_##name(const ni_ctx *c, const ni_op *op);
#include "ops.def"
#undef NI_OP

static inline int64_t ni_rows(const ni_ctx *c, const ni_op *op) { return op->selected ? c->step->n_out : c->step->n_tokens; }

/* Rows of operand i: so many for each row of the step. */
static inline int64_t ni_rows_of(const ni_ctx *c, const ni_op *op, int i) { return ni_rows(c, op) * c->tensors[op->t[i]].per_token; }

static inline int ni_hurry(const ni_ctx *c) { return atomic_load_explicit(c->me->cancel, memory_order_relaxed); }

/* The next of a crew's n pieces of this op that nobody took, -1 if there is none.  Who comes late only reads the counter. */
static inline int64_t ni_take(const ni_ctx *c, const ni_op *op, int64_t crew, int64_t n) {
    atomic_int *taken = (atomic_int *)((uint8_t *)c->taken + (size_t)crew * c->taken_stride) + (op - c->ops);
    if (atomic_load_explicit(taken, memory_order_relaxed) >= n) return -1;
    const int64_t i = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
    return i < n ? i : -1;
}

static inline void *ni_part(const ni_ctx *c, const ni_tensor *t, int64_t offset) {
    return offset < 0 ? NULL : c->arena[t->storage] + offset;
}

/* The floats of operand i: [rows][width]. */
static inline float *ni_floats(const ni_ctx *c, const ni_op *op, int i) {
    return op->t[i] < 0 ? NULL : ni_part(c, &c->tensors[op->t[i]], c->tensors[op->t[i]].f);
}

/* The ids of operand i: [rows][width]. */
static inline int32_t *ni_ids(const ni_ctx *c, const ni_op *op, int i) { return ni_part(c, &c->tensors[op->t[i]], c->tensors[op->t[i]].i); }

static inline int64_t ni_width(const ni_ctx *c, const ni_op *op, int i) { return c->tensors[op->t[i]].width; }

/* Weight operand i: this node's copy, or NULL. */
static inline const void *ni_copy_of(const ni_ctx *c, const ni_op *op, int i) {
    return op->w[i] < 0 ? NULL : c->weights[op->w[i]].here;
}

static inline ni_act ni_act_of(const ni_ctx *c, const ni_op *op, int i) {
    const ni_tensor *t = &c->tensors[op->t[i]];
    return (ni_act){.k = t->width, .f = ni_part(c, t, t->f), .q = ni_part(c, t, t->q), .d = ni_part(c, t, t->d),
                    .m = ni_part(c, t, t->m), .s = ni_part(c, t, t->s)};
}

/* Stores values [a, a + n) of row `row` of operand i in every form the tensor has; a is a multiple of 32, and n is unless the row ends there. */
static inline void ni_put(const ni_ctx *c, const ni_op *op, int i, int64_t row, int64_t a, int64_t n, const float *x) {
    const ni_tensor *t = &c->tensors[op->t[i]];
    float *f = ni_part(c, t, t->f);
    int64_t k = t->width;
    if (f && f + row * k + a != x) memcpy(f + row * k + a, x, (size_t)n * sizeof *x);
    if (t->q < 0) return;
    float *d = ni_part(c, t, t->d), *m = ni_part(c, t, t->m);
    int16_t *s = ni_part(c, t, t->s);
    ni_k->vec.quantize(x, n, (int8_t *)ni_part(c, t, t->q) + row * k + a, d + (row * k + a) / 32,
                       m ? m + (row * k + a) / 32 : NULL, s ? s + (row * k + a) / 16 : NULL);
}

/* Cuts `rows` rows of `width` values among the workers of a node: whole rows where there are enough of them, else slices of rows, which
 * start at multiples of 64.  ni_next_slice gives this worker's, one after the other. */
typedef struct { int64_t unit, end, slices, width; } ni_slices;

static inline ni_slices ni_slices_for(int64_t size, int64_t rank, int64_t rows, int64_t width) {
    int64_t most = (width + 63) / 64, want = (size + rows - 1) / (rows ? rows : 1);
    ni_slices s = {.slices = want < most ? want : most, .width = width};
    ni_cut(rows * s.slices, size, rank, &s.unit, &s.end);
    return s;
}

static inline ni_slices ni_slices_of(const ni_ctx *c, int64_t rows, int64_t width) {
    return ni_slices_for(c->me->size, c->me->rank, rows, width);
}

/* Row *row, values [*a, *b) of it; 0 once there is no more. */
static inline int ni_next_slice(ni_slices *s, int64_t *row, int64_t *a, int64_t *b) {
    if (s->unit >= s->end) return 0;
    int64_t blocks = (s->width + 63) / 64;
    *row = s->unit / s->slices;
    ni_cut(blocks, s->slices, s->unit % s->slices, a, b);
    *a *= 64;
    *b = *b * 64 < s->width ? *b * 64 : s->width;
    s->unit++;
    return 1;
}

/* The segment of row t of the step. */
static inline const ni_segment *ni_segment_of(const ni_step *s, int64_t t) {
    const ni_segment *own = s->segments;
    while (t >= own->row0 + own->n) own++;
    return own;
}

/* The position of row t of the step. */
static inline int64_t ni_position(const ni_step *s, int64_t t) {
    const ni_segment *own = ni_segment_of(s, t);
    return own->pos0 + t - own->row0;
}

/* log(1 + exp(x)); from 20 on it is x. */
static inline float ni_softplus(float x) { return x > 20.0f ? x : (float)log1p(exp((double)x)); }

/* 1 / (1 + exp(-x)) of n values; y may be x. */
static inline void ni_sigmoid(const float *x, int64_t n, float *y) {
    static const float ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    for (int64_t i = 0; i < n; i += 16) ni_k->vec.sigmoid_mul(x + i, ones, ni_min(16, n - i), y + i);
}
#endif
