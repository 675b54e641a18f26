/* What a head forgets, and how much it learns: numbers of each head, of parts of rows.
 * A row of x is pieces of equal width; of each, `count` values from `first` on count, and those of all pieces are the heads.
 * t: x, out [T][heads].  w: bias? [heads], factor? [heads].
 * i: 0 kind: sigmoid(x + bias); log(1 + exp(x + bias)); exp(factor log(1 + exp(x + bias))); exp(bound sigmoid(factor (x + bias)));
 *    1 pieces, 2 first, 3 count.  f: bound. */
#include "ops.h"

enum { SIGMOID, SOFTPLUS, DECAY, BOUNDED };

size_t ni_scratch_gates(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 1) * 2 * sizeof(float); }

void ni_op_gates(const ni_ctx *c, const ni_op *op) {
    const int64_t heads = ni_width(c, op, 1), width = ni_width(c, op, 0), pieces = op->i[1], first = op->i[2], count = op->i[3];
    const float *bias = ni_copy_of(c, op, 0), *factor = ni_copy_of(c, op, 1);
    float *x = (float *)c->scratch, *one = x + heads;
    int64_t row, end;
    ni_cut(ni_rows(c, op), c->me->size, c->me->rank, &row, &end);
    for (int64_t i = 0; i < heads; i++) one[i] = 1.0f;
    for (; row < end; row++) {
        for (int64_t i = 0; i < pieces; i++)
            memcpy(x + i * count, ni_floats(c, op, 0) + row * width + i * (width / pieces) + first, (size_t)count * sizeof *x);
        if (bias) ni_k->vec.add(x, bias, heads, x);
        if (op->i[0] == BOUNDED) ni_k->vec.scale_mul(x, 1.0f, factor, heads, x);
        if (op->i[0] == SIGMOID || op->i[0] == BOUNDED) ni_k->vec.sigmoid_mul(x, one, heads, x);
        else ni_k->vec.softplus(x, heads, x);
        if (op->i[0] == DECAY) ni_k->vec.scale_mul(x, 1.0f, factor, heads, x);
        if (op->i[0] == BOUNDED) ni_k->vec.scale_mul(x, op->f[0], NULL, heads, x);
        if (op->i[0] == DECAY || op->i[0] == BOUNDED) ni_k->vec.exp(x, 0.0f, heads, x);
        ni_put(c, op, 1, row, 0, heads, x);
    }
}
