/* out row (t, s) = weight(t, s) * h row t: what a token's experts read where it is weighed before them and not behind.
 * t: h [T][D], weights [T][used], out [T][used][D]. */
#include "ops.h"

size_t ni_scratch_weigh(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * sizeof(float); }

void ni_op_weigh(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 0), used = ni_width(c, op, 1);
    const float *h = ni_floats(c, op, 0), *weights = ni_floats(c, op, 1);
    float *out = (float *)c->scratch;
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op) * used, n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        ni_k->vec.scale_mul(h + row / used * n + a, weights[row], NULL, b - a, out);
        ni_put(c, op, 2, row, a, b - a, out);
    }
}
