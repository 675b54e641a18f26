/* out row (t, s) = weight(t, s), or what a gate makes of it, times h row t, or h row (t, s): what a token's experts read where it is weighed
 * before them and not behind; heads behind gates.
 * t: h [T][D] or [T][used][D], weights [T][used], out [T][used][D].  i: 0 the weight, 1 its sigmoid, 2 log(1 + exp(weight)). */
#include "ops.h"

size_t ni_scratch_weigh(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * sizeof(float); }

void ni_op_weigh(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 0), used = ni_width(c, op, 1), shared = c->tensors[op->t[0]].per_token == 1 ? used : 1;
    const float *h = ni_floats(c, op, 0), *weights = ni_floats(c, op, 1);
    float *out = (float *)c->scratch;
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op) * used, n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        float weight = weights[row];
        if (op->i[0] == 2) weight = ni_softplus(weight);
        if (op->i[0] == 1) ni_sigmoid(&weight, 1, &weight);
        ni_k->vec.scale_mul(h + row / shared * n + a, weight, NULL, b - a, out);
        ni_put(c, op, 2, row, a, b - a, out);
    }
}
