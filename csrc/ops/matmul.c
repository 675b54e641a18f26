/* y_j = W_j h for up to three matrices that read the same input.
 * t: h, y0, y1?, y2? (-1 for y0: the step's `out`).  w: W0, W1?, W2?.
 *
 * Rows are cut over all workers in proportion to the bytes they read, all matrices as one long one, so that q/k/v and gate/up
 * cost one stage.  One token, or a few, stream packed rows through dot; more go through panels, unpacked once and used for all. */
#include "ops.h"

enum { SUBS = NI_SLAB / 16, BLOCK_BYTES = 256 << 10 };  /* the most sub-blocks of a panel; a part of L2 */

typedef struct {
    _Alignas(64) uint8_t q[NI_SLAB * NI_ROWS];
    float scale[SUBS * NI_ROWS], min[SUBS * NI_ROWS];
    float f[NI_SLAB * NI_ROWS];
    float tail[NI_ROWS];
} panel_memory;

size_t ni_scratch_matmul(const ni_ctx *c, const ni_op *op) {
    (void)op;
    return sizeof(panel_memory) + (size_t)c->max_tokens * NI_ROWS * 2 * sizeof(float);
}

static ni_act act_of_token(const ni_act *x, int64_t t) {
    ni_act own = *x;
    if (x->f) own.f += t * x->k;
    if (x->q) own.q += t * x->k, own.d += t * (x->k / 32);
    if (x->m) own.m += t * (x->k / 32);
    if (x->s) own.s += t * (x->k / 16);
    return own;
}

/* A block of row groups stays in L2 while every token passes over it. */
static void few_tokens(const ni_ctx *c, const ni_weight *w, const uint8_t *packed, const ni_act *x, int64_t n_tokens, int64_t g0,
                       int64_t g1, float *y, panel_memory *p) {
    size_t group_bytes = ni_group_bytes(w->type, w->k);
    int64_t whole = ni_min(g1, w->n / NI_ROWS), step = n_tokens == 1 ? g1 - g0 : ni_max(1, BLOCK_BYTES / (int64_t)group_bytes);
    for (int64_t g = g0; g < g1 && !ni_hurry(c); g += step) {
        int64_t end = ni_min(g + step, g1), full = ni_min(end, whole);
        for (int64_t t = 0; t < n_tokens; t++) {
            ni_act own = act_of_token(x, t);
            if (full > g) ni_k->dot[w->type](packed + (size_t)g * group_bytes, full - g, &own, y + t * w->n + g * NI_ROWS);
            if (full == end) continue;
            ni_k->dot[w->type](packed + (size_t)full * group_bytes, 1, &own, p->tail);
            memcpy(y + t * w->n + full * NI_ROWS, p->tail, (size_t)(w->n - full * NI_ROWS) * sizeof *y);
        }
    }
}

static void many_tokens(const ni_ctx *c, const ni_weight *w, const uint8_t *packed, const ni_act *x, int64_t n_tokens, int64_t g0,
                        int64_t g1, float *y, panel_memory *mem) {
    size_t group_bytes = ni_group_bytes(w->type, w->k);
    const uint8_t *end = packed + (size_t)g1 * group_bytes;
    const ptrdiff_t ahead = (ptrdiff_t)ni_group_bytes(w->type, NI_SLAB);
    ni_panel panel = {mem->q, mem->scale, mem->min, mem->f};
    float *acc = (float *)(mem + 1), *accm = acc + n_tokens * NI_ROWS;
    int with_min = ni_formats[w->type].kind == NI_PANEL_MIN;
    for (int64_t g = g0; g < g1 && !ni_hurry(c); g++) {
        memset(acc, 0, (size_t)n_tokens * NI_ROWS * (with_min ? 2 : 1) * sizeof *acc);
        for (int64_t k0 = 0; k0 < w->k; k0 += NI_SLAB) {
            int64_t nk = ni_min(NI_SLAB, w->k - k0);
            ni_k->unpack[w->type](packed + (size_t)g * group_bytes, k0, nk, &panel);
            /* A dozen tokens last less than the memory takes to answer: ask for the next slab now.  Groups lie one after the other. */
            const uint8_t *next = packed + (size_t)g * group_bytes + ni_group_bytes(w->type, k0 + nk);
            for (const uint8_t *stop = end - next > ahead ? next + ahead : end; next < stop; next += 64) __builtin_prefetch(next, 0, 2);
            ni_k->gemm[w->type](&panel, k0, nk, x, (int)n_tokens, acc, accm);
        }
        int64_t row = g * NI_ROWS, rows = ni_min(NI_ROWS, w->n - row);
        for (int64_t t = 0; t < n_tokens; t++) {
            float *out = y + t * w->n + row;
            if (with_min) for (int64_t r = 0; r < rows; r++) out[r] = acc[t * NI_ROWS + r] + accm[t * NI_ROWS + r];
            else memcpy(out, acc + t * NI_ROWS, (size_t)rows * sizeof *out);
        }
    }
}

void ni_op_matmul(const ni_ctx *c, const ni_op *op) {
    int64_t n_tokens = ni_rows(c, op), g0[3], g1[3];
    if (n_tokens == 0) return;
    ni_act x = ni_act_of(c, op, 0);
    const ni_weight *w[3] = {NULL};
    int n = 0;
    while (n < 3 && op->w[n] >= 0) w[n] = &c->weights[op->w[n]], n++;
    ni_matmul_cut(w, n, c->me->n_workers, c->me->worker, g0, g1);
    for (int j = 0; j < n; j++) {
        if (g0[j] >= g1[j]) continue;
        float *y = op->t[1 + j] < 0 ? c->step->out : ni_floats(c, op, 1 + j);
        panel_memory *mem = (panel_memory *)c->scratch;
        if (n_tokens <= ni_max(1, ni_k->few[w[j]->type])) few_tokens(c, w[j], ni_copy_of(c, op, j), &x, n_tokens, g0[j], g1[j], y, mem);
        else many_tokens(c, w[j], ni_copy_of(c, op, j), &x, n_tokens, g0[j], g1[j], y, mem);
    }
}
