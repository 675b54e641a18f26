/* y_j = W_j h + b_j for up to three matrices that read the same input.
 * t: h, y0, y1?, y2? (-1 for y0: the step's `out`).  w: W0, W1?, W2?, and their biases b0?, b1?, b2? (floats).
 *
 * Rows are cut over all workers in proportion to the bytes they read, all matrices as one long one, so that q/k/v and gate/up
 * cost one stage.  The last quarter of each worker's part lies in pieces, which the workers of its node take as they get free: cores
 * are never equally fast for long.  One token, or a few, stream packed rows through dot; more go through panels, unpacked once and
 * used for all. */
#include "ops.h"
#include "panels.h"

enum {
    BLOCK_BYTES = 256 << 10,    /* a part of L2 */
    PIECES = 32,                /* of a worker's part, at most */
    PIECE_BYTES = 64 << 10,     /* at least: some microseconds, many times what taking a piece costs */
    FLOAT_GROUPS = 4            /* row groups that dots of float weights take at once */
};

typedef struct {
    float tail[NI_ROWS];
    ni_panel_memory panels;     /* and more behind it */
} matmul_memory;

size_t ni_scratch_matmul(const ni_ctx *c, const ni_op *op) {
    return offsetof(matmul_memory, panels) + ni_panel_bytes((int64_t)c->max_tokens * c->tensors[op->t[0]].per_token);
}

/* A block of row groups stays in L2 while every token passes over it. */
static void few_tokens(const ni_ctx *c, const ni_weight *w, const uint8_t *packed, const ni_act *x, int64_t n_tokens, int64_t g0,
                       int64_t g1, float *y, matmul_memory *p) {
    size_t group_bytes = ni_group_bytes(w->type, w->k);
    int64_t whole = ni_min(g1, w->n / NI_ROWS), step = n_tokens == 1 ? g1 - g0 : ni_max(1, BLOCK_BYTES / (int64_t)group_bytes);
    for (int64_t g = g0; g < g1 && !ni_hurry(c); g += step) {
        int64_t end = ni_min(g + step, g1), full = ni_min(end, whole);
        for (int64_t t = 0; t < n_tokens; t++) {
            ni_act own = ni_act_of_token(x, t);
            if (full > g) ni_k->dot[w->type](packed + (size_t)g * group_bytes, full - g, &own, y + t * w->n + g * NI_ROWS);
            if (full == end) continue;
            ni_k->dot[w->type](packed + (size_t)full * group_bytes, 1, &own, p->tail);
            memcpy(y + t * w->n + full * NI_ROWS, p->tail, (size_t)(w->n - full * NI_ROWS) * sizeof *y);
        }
    }
}

/* A block's sums [groups][n_tokens][NI_ROWS], with those of the minimums behind them, to y [n_tokens][rows], `stride` values apart: token
 * by token, for a token's rows lie together. */
static void put_sums(const float *sums, int64_t groups, int64_t n_tokens, int with_min, float *y, int64_t stride, int64_t rows) {
    for (int64_t t = 0; t < n_tokens; t++, y += stride) {
        const float *acc = sums + t * NI_ROWS, *accm = acc + groups * n_tokens * NI_ROWS;
        float *restrict out = y;
        int64_t r = 0;
        for (; r + NI_ROWS <= rows; r += NI_ROWS, acc += n_tokens * NI_ROWS, accm += n_tokens * NI_ROWS) {
            if (with_min) for (int i = 0; i < NI_ROWS; i++) out[r + i] = acc[i] + accm[i];
            else memcpy(out + r, acc, NI_ROWS * sizeof *out);
        }
        for (int64_t i = 0; r + i < rows; i++) out[r + i] = with_min ? acc[i] + accm[i] : acc[i];
    }
}

static void many_tokens(const ni_ctx *c, const ni_weight *w, const uint8_t *packed, const ni_act *x, int64_t n_tokens, int64_t g0,
                        int64_t g1, float *y, ni_panel_memory *mem) {
    const size_t group_bytes = ni_group_bytes(w->type, w->k);
    const int with_min = ni_formats[w->type].kind == NI_PANEL_MIN;
    for (int64_t g = g0; g < g1; g += NI_PANEL_GROUPS) {
        int64_t groups = ni_min(NI_PANEL_GROUPS, g1 - g);
        for (int64_t t = 0, left = (n_tokens + NI_PANEL_TOKENS - 1) / NI_PANEL_TOKENS, n; t < n_tokens; t += n, left--) {
            n = (n_tokens - t + left - 1) / left;
            const ni_act own = ni_act_of_token(x, t);
            const float *sums = ni_block_times_tokens(ni_k, w->type, packed + (size_t)g * group_bytes, groups, &own, (int)n, mem, c->me->cancel);
            if (ni_hurry(c)) return;
            put_sums(sums, groups, n, with_min, y + t * w->n + g * NI_ROWS, w->n, ni_min(groups * NI_ROWS, w->n - g * NI_ROWS));
        }
    }
}

/* Adds a bias to rows [r0, r1) that are finished, of all tokens: once, by whoever finished them. */
static void add_bias(const float *bias, float *y, int64_t stride, int64_t n_tokens, int64_t r0, int64_t r1) {
    for (int64_t t = 0; t < n_tokens; t++, y += stride) ni_k->vec.add(y + r0, bias + r0, r1 - r0, y + r0);
}

static int are_few(int64_t n_tokens, const ni_weight *w) { return n_tokens <= ni_max(1, ni_k->few[w->type]); }

/* Parts a .. b-1 of `parts`, of the matrices together. */
static void multiply(const ni_ctx *c, const ni_op *op, const ni_weight *const *w, int n, int64_t parts, int64_t a, int64_t b) {
    const int64_t n_tokens = ni_rows_of(c, op, 0);
    const ni_act x = ni_act_of(c, op, 0);
    matmul_memory *mem = (matmul_memory *)c->scratch;
    int64_t g0[3], g1[3];
    ni_matmul_cut(w, n, parts, a, b, g0, g1);
    for (int j = 0; j < n; j++) {
        if (g0[j] >= g1[j]) continue;
        float *y = op->t[1 + j] < 0 ? c->step->out : ni_floats(c, op, 1 + j);
        if (are_few(n_tokens, w[j])) few_tokens(c, w[j], ni_copy_of(c, op, j), &x, n_tokens, g0[j], g1[j], y, mem);
        else many_tokens(c, w[j], ni_copy_of(c, op, j), &x, n_tokens, g0[j], g1[j], y, &mem->panels);
        const float *bias = ni_copy_of(c, op, 3 + j);
        if (bias) add_bias(bias, y, w[j]->n, n_tokens, g0[j] * NI_ROWS, ni_min(g1[j] * NI_ROWS, w[j]->n));
    }
}

void ni_op_matmul(const ni_ctx *c, const ni_op *op) {
    const int64_t n_tokens = ni_rows_of(c, op, 0), worker = c->me->worker, size = c->me->size;
    if (n_tokens == 0) return;
    const ni_weight *w[3] = {NULL};
    int64_t bytes = 0, groups = 0, least = 1;
    int n = 0;
    for (; n < 3 && op->w[n] >= 0; n++) {
        w[n] = &c->weights[op->w[n]];
        bytes += (int64_t)ni_packed_bytes(w[n]->type, w[n]->n, w[n]->k), groups += (w[n]->n + NI_ROWS - 1) / NI_ROWS;
        if (!are_few(n_tokens, w[n])) least = NI_PANEL_GROUPS;   /* a whole block, for its tokens are gathered anew */
        else if (ni_formats[w[n]->type].kind == NI_PANEL_FLOAT) least = ni_max(least, FLOAT_GROUPS);
    }
    int64_t pieces = ni_min(PIECES, ni_min(bytes / PIECE_BYTES, groups / least) / c->me->n_workers);
    if (size == 1 || pieces < 4) pieces = 1;   /* one part per worker, whole */
    const int64_t shared = pieces / 4, own = pieces - shared, parts = pieces * c->me->n_workers;
    multiply(c, op, w, n, parts, worker * pieces, worker * pieces + own);
    atomic_int *taken = &c->taken[op - c->ops];
    for (int i; atomic_load_explicit(taken, memory_order_relaxed) < size * shared;) {
        if ((i = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed)) >= size * shared) return;
        const int64_t part = (worker - c->me->rank + i / shared) * pieces + own + i % shared;
        multiply(c, op, w, n, parts, part, part + 1);
    }
}
