/* out = what a bank of residual streams holds and the stream itself, times the softmax of their scores, in that order.
 * t: bank [T][m * D], x [T][D], scores [T][m + 1], out [T][D]. */
#include "ops.h"

size_t ni_scratch_res_mix(const ni_ctx *c, const ni_op *op) {
    return (size_t)(2 * ni_width(c, op, 1) + ni_width(c, op, 2)) * sizeof(float);
}

/* The softmax of n scores. */
static void shares(const float *scores, int64_t n, float *out) {
    float most = scores[0], sum = 0.0f;
    for (int64_t i = 1; i < n; i++) most = scores[i] > most ? scores[i] : most;
    ni_k->vec.exp(scores, most, n, out);
    for (int64_t i = 0; i < n; i++) sum += out[i];
    for (int64_t i = 0; i < n; i++) out[i] /= sum;
}

void ni_op_res_mix(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 1), m = ni_width(c, op, 0) / n;
    float *sum = (float *)c->scratch, *term = sum + n, *share = term + n;
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const float *bank = ni_floats(c, op, 0) + row * m * n + a;
        shares(ni_floats(c, op, 2) + row * (m + 1), m + 1, share);
        ni_k->vec.scale_mul(bank, share[0], NULL, b - a, sum);
        for (int64_t j = 1; j <= m; j++) {
            ni_k->vec.scale_mul(j < m ? bank + j * n : ni_floats(c, op, 1) + row * n + a, share[j], NULL, b - a, term);
            ni_k->vec.add(sum, term, b - a, sum);
        }
        ni_put(c, op, 3, row, a, b - a, sum);
    }
}
