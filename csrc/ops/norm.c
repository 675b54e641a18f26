/* Residual and RMS norm: sum = x + y, h = sum / rms(sum) * w0; y is itself normed by w1 first where there is a w1.
 * Source of RMSNorm: arXiv:1910.07467.
 * t: x, y?, sum?, h?.  w: w0 (floats, for h), w1? (floats, for y).  f: eps.  i: 1 to gather x and y from the selected rows.
 *
 * With fewer rows than workers a row is cut into slices.  Every worker then computes the whole row, and stores its slice: the
 * row is short, and the barrier that sharing the sum of squares would need costs more. */
#include <math.h>
#include "ops.h"

size_t ni_scratch_norm(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * 2 * sizeof(float); }

static float inverse_rms(const float *x, int64_t n, float eps) {
    return 1.0f / sqrtf(ni_k->vec.sum_squares(x, n) / (float)n + eps);
}

void ni_op_norm(const ni_ctx *c, const ni_op *op) {
    int64_t n = ni_width(c, op, 0), row, a, b;
    const float *w0 = ni_copy_of(c, op, 0), *w1 = ni_copy_of(c, op, 1);
    float eps = op->f[0], *sum = (float *)c->scratch, *h = sum + n;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        int64_t from = op->i[0] ? c->step->out_rows[row] : row;
        const float *x = ni_floats(c, op, 0) + from * n;
        if (op->t[1] >= 0) {
            const float *y = ni_floats(c, op, 1) + from * n;
            if (w1) ni_k->vec.scale_mul(y, inverse_rms(y, n, eps), w1, n, h), y = h;
            ni_k->vec.add(x, y, n, sum);
            x = sum;
            if (op->t[2] >= 0) ni_put(c, op, 2, row, a, b - a, x + a);
        }
        if (op->t[3] < 0) continue;
        ni_k->vec.scale_mul(x + a, inverse_rms(x, n, eps), w0 + a, b - a, h);
        ni_put(c, op, 3, row, a, b - a, h);
    }
}
