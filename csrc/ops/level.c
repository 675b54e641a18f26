/* out row (t, s) = y row (t, s), made as long as row t of x: y rms(x) / max(rms(y), sqrt(least)).
 * t: x [T][D], y [T][used][D], out [T][used][D].  f: least mean square of y that counts as such. */
#include "ops.h"

size_t ni_scratch_level(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * sizeof(float); }

void ni_op_level(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 0), used = c->tensors[op->t[1]].per_token;
    float *out = (float *)c->scratch;
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op) * used, n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const float *x = ni_floats(c, op, 0) + row / used * n, *y = ni_floats(c, op, 1) + row * n;
        const float wanted = ni_k->vec.sum_squares(x, n) / (float)n, found = ni_k->vec.sum_squares(y, n) / (float)n;
        ni_k->vec.scale_mul(y + a, sqrtf(wanted) / sqrtf(found > op->f[0] ? found : op->f[0]), NULL, b - a, out);
        ni_put(c, op, 2, row, a, b - a, out);
    }
}
