/* Residual and norm: sum = x + y + z, h = norm(sum) * w0 + b0; y is itself normed first where there is a w1, z where there is a w2.
 * norm(x) = x / rms(x) (RMSNorm, arXiv:1910.07467), or (x - mean) / rms(x - mean) (LayerNorm, arXiv:1607.06450).
 * t: x, y?, z?, sum?, h?.  w: w0?, w1?, w2? and their biases b0?, b1?, b2? (floats).  f: eps.
 * i: 0 1 to gather x, y and z from the selected rows; 1 1 for LayerNorm; 2 how many rows have weights of their own: row r takes part
 *    r mod i[2] of w0.
 *
 * With fewer rows than workers a row is cut into slices.  Every worker then computes the whole row, and stores its slice: the
 * row is short, and the barrier that sharing the sum of squares would need costs more. */
#include <math.h>
#include "ops.h"

size_t ni_scratch_norm(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * 2 * sizeof(float); }

/* Values [a, b) of x [n] normed by weight operand j, to their places in out [n]. */
static void normed(const ni_ctx *c, const ni_op *op, int j, int64_t row, const float *x, int64_t n, int64_t a, int64_t b, float *out) {
    const float *w = ni_copy_of(c, op, j), *bias = ni_copy_of(c, op, 3 + j);
    if (w && !j) w += row % op->i[2] * n;
    if (op->i[1]) ni_k->vec.minus(x, ni_k->vec.sum(x, n) / (float)n, n, out), x = out;
    float scale = 1.0f / sqrtf(ni_k->vec.sum_squares(x, n) / (float)n + op->f[0]);
    ni_k->vec.scale_mul(x + a, scale, w ? w + a : NULL, b - a, out + a);
    if (bias) ni_k->vec.add(out + a, bias + a, b - a, out + a);
}

void ni_op_norm(const ni_ctx *c, const ni_op *op) {
    int64_t n = ni_width(c, op, 0), row, a, b;
    float *sum = (float *)c->scratch, *h = sum + n;
    ni_slices s = ni_slices_of(c, ni_rows_of(c, op, 0), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        int64_t from = op->i[0] ? c->step->out_rows[row] : row;
        const float *x = ni_floats(c, op, 0) + from * n;
        for (int j = 1; j <= 2 && op->t[j] >= 0; j++) {
            const float *y = ni_floats(c, op, j) + from * n;
            if (op->w[j] >= 0) normed(c, op, j, row, y, n, 0, n, h), y = h;
            ni_k->vec.add(x, y, n, sum);
            x = sum;
        }
        if (op->t[3] >= 0) ni_put(c, op, 3, row, a, b - a, x + a);
        if (op->t[4] < 0) continue;
        normed(c, op, 0, row, x, n, a, b, h);
        ni_put(c, op, 4, row, a, b - a, h + a);
    }
}
