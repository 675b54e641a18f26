/* out = sum over slots s, in their order, of weight_s * y_s; then plus `also`, times sigmoid(gate) where there is a gate: what a token's
 * experts say, and the shared one.
 * t: y [T][used][D], weights? [T][used] (1 without), also? [T][D], gate? [T], out [T][D].  f: factor on all of it. */
#include "ops.h"

size_t ni_scratch_mix(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * 2 * sizeof(float); }

void ni_op_mix(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 0), used = c->tensors[op->t[0]].per_token;
    const float *also = ni_floats(c, op, 2), *gate = ni_floats(c, op, 3);
    float *sum = (float *)c->scratch, *term = sum + n;
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const float *y = ni_floats(c, op, 0) + row * used * n + a, *weight = ni_floats(c, op, 1);
        if (weight) weight += row * used;
        ni_k->vec.scale_mul(y, weight ? weight[0] : 1.0f, NULL, b - a, sum);
        for (int64_t i = 1; i < used; i++) {
            ni_k->vec.scale_mul(y + i * n, weight ? weight[i] : 1.0f, NULL, b - a, term);
            ni_k->vec.add(sum, term, b - a, sum);
        }
        if (also) {
            const float *x = also + row * n + a;
            if (gate) {
                float share;
                ni_sigmoid(&gate[row], 1, &share);
                ni_k->vec.scale_mul(x, share, NULL, b - a, term);
                x = term;
            }
            ni_k->vec.add(sum, x, b - a, sum);
        }
        if (op->f[0] != 1.0f) ni_k->vec.scale_mul(sum, op->f[0], NULL, b - a, sum);
        ni_put(c, op, 4, row, a, b - a, sum);
    }
}
