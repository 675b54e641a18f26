/* y = W h (plus a bias) on every node for itself: for a matrix so small that doing it several times costs less than a barrier of the team,
 * as a router's.  Its copy on every node is whole.  A row is summed in parts of NI_SLAB values of K, which `mix` then adds in their order:
 * a router has few rows, and so there is something to do for all of a node's workers.
 * t: h [T], y [T][parts][N].  w: W, -, -, bias? (floats, added to the first part). */
#include "ops.h"
#include "panels.h"

typedef struct {
    float out[NI_PANEL_GROUPS * NI_ROWS];
    ni_panel_memory panels;
} score_memory;

size_t ni_scratch_score(const ni_ctx *c, const ni_op *op) {
    return offsetof(score_memory, panels) + ni_panel_bytes((int64_t)c->max_tokens * c->tensors[op->t[0]].per_token);
}

/* Row groups [g, g + groups) times n rows, over values [k0, k1) of K, as rows of y that lie `stride` values apart. */
static void multiply(const ni_ctx *c, const ni_weight *w, const ni_act *x, int64_t n, int64_t g, int64_t groups, int64_t k0, int64_t k1,
                     const float *bias, float *y, int64_t stride) {
    score_memory *mem = (score_memory *)c->scratch;
    const size_t bytes = ni_group_bytes(w->type, w->k);
    const uint8_t *packed = (const uint8_t *)w->here + (size_t)g * bytes;
    const int64_t first = g * NI_ROWS, count = ni_min(groups * NI_ROWS, w->n - first);
    const int few = ni_are_few(n, w->type), with_min = ni_formats[w->type].kind == NI_PANEL_MIN;
    float *acc = (float *)(&mem->panels + 1), *accm = acc + groups * n * NI_ROWS;
    if (!few) {
        memset(acc, 0, (size_t)(2 * groups * n * NI_ROWS) * sizeof *acc);
        ni_continue_sums(ni_k, w->type, packed, groups, x, k0, k1, (int)n, acc, accm, &mem->panels, (uint8_t *)(accm + groups * n * NI_ROWS),
                         c->me->cancel);
    }
    for (int64_t t = 0; t < n; t++, y += stride) {
        if (few) {
            ni_act own = ni_act_of_token(x, t);
            ni_act_from(&own, k0, k1);
            if (k1 - k0 == w->k) ni_k->dot[w->type](packed, groups, &own, mem->out);
            else for (int64_t i = 0; i < groups; i++)
                ni_k->dot[w->type](packed + (size_t)i * bytes + ni_group_bytes(w->type, k0), 1, &own, mem->out + i * NI_ROWS);
        } else for (int64_t i = 0; i < groups * NI_ROWS; i++) {
            const int64_t at = (i / NI_ROWS * n + t) * NI_ROWS + i % NI_ROWS;
            mem->out[i] = with_min ? acc[at] + accm[at] : acc[at];
        }
        if (bias) ni_k->vec.add(mem->out, bias + first, count, mem->out);
        memcpy(y + first, mem->out, (size_t)count * sizeof *y);
    }
    c->work[0] += groups * (int64_t)(ni_group_bytes(w->type, k1) - ni_group_bytes(w->type, k0));
    c->work[1] += groups * NI_ROWS * (k1 - k0) * n;
}

void ni_op_score(const ni_ctx *c, const ni_op *op) {
    const ni_weight *w = &c->weights[op->w[0]];
    const int64_t n_rows = ni_rows_of(c, op, 0), parts = c->tensors[op->t[1]].per_token / c->tensors[op->t[0]].per_token;
    const ni_act x = ni_act_of(c, op, 0);
    const ni_scoring s = ni_scoring_of(w, parts, n_rows, c->me->size);
    int64_t a, b, t0, t1;
    ni_cut(s.blocks * parts * s.columns, c->me->size, c->me->rank, &a, &b);
    for (int64_t unit = a; unit < b && !ni_hurry(c); unit++) {
        const int64_t part = unit / s.columns % parts, g = unit / s.columns / parts * s.groups, k0 = parts > 1 ? part * NI_SLAB : 0;
        ni_cut(n_rows, s.columns, unit % s.columns, &t0, &t1);
        const ni_act own = ni_act_of_token(&x, t0);
        multiply(c, w, &own, t1 - t0, g, ni_min(s.groups, ni_n_groups(w) - g), k0, parts > 1 ? ni_min(k0 + NI_SLAB, w->k) : w->k,
                 part ? NULL : ni_copy_of(c, op, 3), ni_floats(c, op, 1) + (t0 * parts + part) * w->n, parts * w->n);
    }
}
