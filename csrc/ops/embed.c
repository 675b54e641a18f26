/* x = scale * row of the embedding table, per token; plus the row of its position, where positions have a table too.
 * t: x.  w: table, positions? (a context is at most as long).  f: scale. */
#include "ops.h"

size_t ni_scratch_embed(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * 2 * sizeof(float); }

/* Row i of a table.  Of a sharded one it may lie on another node: one row a token. */
static void row_of(const ni_ctx *c, int weight, int64_t i, float *x) {
    const ni_weight *w = &c->weights[weight];
    int from = c->copy;
    if (w->bounds) for (from = 0; i / NI_ROWS >= w->bounds[from + 1];) from++;
    ni_formats[w->type].unpack_row((const uint8_t *)w->copy[from] + (size_t)(i / NI_ROWS) * ni_group_bytes(w->type, w->k),
                                   (int)(i % NI_ROWS), w->k, x);
}

void ni_op_embed(const ni_ctx *c, const ni_op *op) {
    float *x = (float *)c->scratch, *more = x + ni_width(c, op, 0);
    int64_t n = ni_width(c, op, 0), a, b;
    ni_cut(ni_rows(c, op), c->me->size, c->me->rank, &a, &b);
    for (int64_t t = a; t < b; t++) {
        row_of(c, op->w[0], c->step->ids[t], x);
        if (op->f[0] != 1.0f) ni_k->vec.scale_mul(x, op->f[0], NULL, n, x);
        if (op->w[1] >= 0) {
            row_of(c, op->w[1], ni_position(c->step, t), more);
            ni_k->vec.add(x, more, n, x);
        }
        ni_put(c, op, 0, t, 0, n, x);
    }
}
