/* x = scale * row of the embedding table, per token.
 * t: x.  w: table.  f: scale. */
#include "ops.h"

size_t ni_scratch_embed(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * sizeof(float); }

void ni_op_embed(const ni_ctx *c, const ni_op *op) {
    const ni_weight *w = &c->weights[op->w[0]];
    float *x = (float *)c->scratch;
    int64_t a, b;
    ni_cut(ni_rows(c, op), c->me->size, c->me->rank, &a, &b);
    for (int64_t t = a; t < b; t++) {
        int64_t id = c->step->ids[t];
        /* In a sharded table the row may lie on another node: one row a token. */
        int from = c->copy;
        if (w->bounds) for (from = 0; id / NI_ROWS >= w->bounds[from + 1];) from++;
        ni_formats[w->type].unpack_row((const uint8_t *)w->copy[from] + (size_t)(id / NI_ROWS) * ni_group_bytes(w->type, w->k),
                                       (int)(id % NI_ROWS), w->k, x);
        if (op->f[0] != 1.0f) ni_k->vec.scale_mul(x, op->f[0], NULL, w->k, x);
        ni_put(c, op, 0, t, 0, w->k, x);
    }
}
