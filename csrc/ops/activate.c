/* a = act(x), the middle of a feed-forward network without a gate.
 * t: x, a.  i: 0 GELU (tanh form), 1 squared ReLU, 2 xIELU, 3 x from -f[0] to f[0], 4 what of x lies above its row's mean by more than f[0]
 * of the row's standard deviations: only that much of it, 0 elsewhere.  f: xIELU's alpha_p, alpha_n, beta, eps. */
#include "ops.h"

size_t ni_scratch_activate(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 1) * sizeof(float); }

/* Values [a, b) of max(x - mean - times * deviation, 0), to out [b - a]; out has room for all n. */
static void above(const float *x, int64_t n, int64_t a, int64_t b, float times, float *out) {
    const float mean = ni_k->vec.sum(x, n) / (float)n;
    ni_k->vec.minus(x, mean, n, out);
    const float least = mean + times * sqrtf(ni_k->vec.sum_squares(out, n) / (float)(n - 1));
    for (int64_t i = a; i < b; i++) {
        const float over = x[i] - least;
        out[i - a] = over < 0.0f ? 0.0f : over;
    }
}

void ni_op_activate(const ni_ctx *c, const ni_op *op) {
    int64_t n = ni_width(c, op, 1), row, a, b;
    float *out = (float *)c->scratch;
    ni_slices s = ni_slices_of(c, ni_rows_of(c, op, 0), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const float *x = ni_floats(c, op, 0) + row * n + a;
        if (op->i[0] == 0) ni_k->vec.gelu(x, b - a, out);
        else if (op->i[0] == 1) ni_k->vec.relu_squared(x, b - a, out);
        else if (op->i[0] == 3) for (int64_t i = 0; i < b - a; i++) out[i] = x[i] > op->f[0] ? op->f[0] : x[i] < -op->f[0] ? -op->f[0] : x[i];
        else if (op->i[0] == 4) above(x - a, n, a, b, op->f[0], out);
        else ni_k->vec.xielu(x, op->f[0], op->f[1], op->f[2], op->f[3], b - a, out);
        ni_put(c, op, 1, row, a, b - a, out);
    }
}
