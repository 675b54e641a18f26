/* y = W h (plus a bias) on every node for itself: for a matrix so small that doing it several times costs less than a barrier of the team,
 * as a router's.  Its copy on every node is whole.
 * t: h, y.  w: W, -, -, bias? (floats). */
#include "ops.h"
#include "panels.h"

size_t ni_scratch_score(const ni_ctx *c, const ni_op *op) { (void)c, (void)op; return NI_SCORED * NI_ROWS * sizeof(float); }

void ni_op_score(const ni_ctx *c, const ni_op *op) {
    const ni_weight *w = &c->weights[op->w[0]];
    const int64_t n_rows = ni_rows_of(c, op, 0), n_groups = ni_n_groups(w), block = ni_scored(n_groups, n_rows, c->me->size);
    const ni_act x = ni_act_of(c, op, 0);
    const float *bias = ni_copy_of(c, op, 3);
    float *out = (float *)c->scratch, *y = ni_floats(c, op, 1);
    int64_t a, b;
    ni_cut((n_groups + block - 1) / block * n_rows, c->me->size, c->me->rank, &a, &b);
    for (int64_t unit = a; unit < b; unit++) {      /* all rows pass over a block while it is near */
        const int64_t g = unit / n_rows * block, row = unit % n_rows, n = ni_min(block, n_groups - g);
        const int64_t first = g * NI_ROWS, count = ni_min(n * NI_ROWS, w->n - first);
        const ni_act own = ni_act_of_token(&x, row);
        ni_k->dot[w->type]((const uint8_t *)w->here + (size_t)g * ni_group_bytes(w->type, w->k), n, &own, out);
        if (bias) ni_k->vec.add(out, bias + first, count, out);
        memcpy(y + row * w->n + first, out, (size_t)count * sizeof *y);
    }
}
