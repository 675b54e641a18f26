/* Hyper-connections (arXiv:2409.19606, as of arXiv:2512.24880), what a layer reads: of each token's n residual streams a weighted sum, normed;
 * and how what the layer says will be spread over the streams (hyper_post.c).
 * t: x [T][n D], mixes? [T][m], h [T][D], coef? [T][n], or [T][n + n n].  w: scale?, base? [m] (floats), of h's norm.
 * i: 0 1 to take x and mixes from the selected rows; 1 streams n; 2 rounds of Sinkhorn's normalisation, 0: streams are not mixed.
 * f: 0 eps of the norms; 1 eps of what follows; 2 factor on what is spread; 3 what is added to that.
 *
 * Mixes are a matrix's products with x, which are divided by the root mean square of x here; m is n (weights of the sum alone), 2 n or
 * 2 n + n n.  Each third of them has a scale of its own.
 *   weights of the sum   sigmoid(scale[0] mix + base) + eps
 *   coef, first n        factor sigmoid(scale[1] mix + base) + what is added
 *   the rest             C[from][to]: softmax over `to` of scale[2] mix + base, plus eps; then sums over `from`, and over `to`, in turns,
 *                        are made 1: each C is divided by its sum + eps
 * Without mixes the sum is a mean.
 *
 * As in norm.c, workers that share a row each compute all of it, and store their slice. */
#include "ops.h"

enum { SELECTED, STREAMS, ROUNDS };

size_t ni_scratch_hyper_pre(const ni_ctx *c, const ni_op *op) {
    const size_t n = (size_t)op->i[STREAMS];
    return (2 * (size_t)ni_width(c, op, 2) + 2 * n + n * n) * sizeof(float);
}

/* Makes sums over rows of C [n][n] 1, or (step n, across 1) over columns. */
static void divide(float *x, int64_t n, int64_t step, int64_t across, float eps) {
    for (int64_t i = 0; i < n; i++, x += across) {
        float sum = 0.0f;
        for (int64_t j = 0; j < n; j++) sum += x[j * step];
        for (int64_t j = 0; j < n; j++) x[j * step] /= sum + eps;
    }
}

/* Nearly doubly stochastic: [from][to]. */
static void sinkhorn(float *x, int64_t n, int64_t rounds, float eps) {
    for (int64_t i = 0; i < n; i++) {
        float *row = x + i * n, top = row[0];
        for (int64_t j = 1; j < n; j++) top = row[j] > top ? row[j] : top;
        ni_k->vec.exp(row, top, n, row);
        float sum = 0.0f;
        for (int64_t j = 0; j < n; j++) sum += row[j];
        for (int64_t j = 0; j < n; j++) row[j] = row[j] / sum + eps;
    }
    divide(x, n, n, 1, eps);
    for (int64_t i = 1; i < rounds; i++) divide(x, n, 1, n, eps), divide(x, n, n, 1, eps);
}

/* Weights of the sum, then of what is spread, then C, as far as there are mixes of them. */
static void weights(const ni_ctx *c, const ni_op *op, const float *x, const float *mixes, float *w) {
    const int64_t n = op->i[STREAMS], m = ni_width(c, op, 1), width = ni_width(c, op, 0);
    const float *scale = ni_copy_of(c, op, 0), *base = ni_copy_of(c, op, 1);
    const float inverse = 1.0f / sqrtf(ni_k->vec.sum_squares(x, width) / (float)width + op->f[0]);
    for (int64_t i = 0; i < m; i++) w[i] = mixes[i] * inverse * scale[i < 2 * n ? i / n : 2] + base[i];
    ni_sigmoid(w, ni_min(m, 2 * n), w);
    for (int64_t i = 0; i < n; i++) w[i] += op->f[1];
    for (int64_t i = n; i < ni_min(m, 2 * n); i++) w[i] = w[i] * op->f[2] + op->f[3];
    if (m > 2 * n) sinkhorn(w + 2 * n, n, op->i[ROUNDS], op->f[1]);
}

void ni_op_hyper_pre(const ni_ctx *c, const ni_op *op) {
    const int64_t n = op->i[STREAMS], width = ni_width(c, op, 2), m = op->t[1] < 0 ? 0 : ni_width(c, op, 1);
    const float *norm = ni_copy_of(c, op, 2);
    float *sum = (float *)c->scratch, *term = sum + width, *w = term + width;
    int64_t row, a, b;
    for (int64_t i = 0; i < n; i++) w[i] = 1.0f / (float)n;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), width);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const int64_t from = op->i[SELECTED] ? c->step->out_rows[row] : row;
        const float *x = ni_floats(c, op, 0) + from * n * width;
        if (m) weights(c, op, x, ni_floats(c, op, 1) + from * m, w);
        if (op->t[3] >= 0 && a == 0) memcpy(ni_floats(c, op, 3) + row * (m - n), w + n, (size_t)(m - n) * sizeof *w);
        ni_k->vec.scale_mul(x, w[0], NULL, width, sum);
        for (int64_t i = 1; i < n; i++) {
            ni_k->vec.scale_mul(x + i * width, w[i], NULL, width, term);
            ni_k->vec.add(sum, term, width, sum);
        }
        const float scale = 1.0f / sqrtf(ni_k->vec.sum_squares(sum, width) / (float)width + op->f[0]);
        ni_k->vec.scale_mul(sum + a, scale, norm + a, b - a, sum + a);
        ni_put(c, op, 2, row, a, b - a, sum + a);
    }
}
