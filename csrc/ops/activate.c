/* a = act(x), the middle of a feed-forward network without a gate.
 * t: x, a.  i: 0 GELU (tanh form), 1 squared ReLU, 2 xIELU, 3 x from -f[0] to f[0].  f: xIELU's alpha_p, alpha_n, beta, eps. */
#include "ops.h"

size_t ni_scratch_activate(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 1) * sizeof(float); }

void ni_op_activate(const ni_ctx *c, const ni_op *op) {
    int64_t n = ni_width(c, op, 1), row, a, b;
    float *out = (float *)c->scratch;
    ni_slices s = ni_slices_of(c, ni_rows_of(c, op, 0), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const float *x = ni_floats(c, op, 0) + row * n + a;
        if (op->i[0] == 0) ni_k->vec.gelu(x, b - a, out);
        else if (op->i[0] == 1) ni_k->vec.relu_squared(x, b - a, out);
        else if (op->i[0] == 3) for (int64_t i = 0; i < b - a; i++) out[i] = x[i] > op->f[0] ? op->f[0] : x[i] < -op->f[0] ? -op->f[0] : x[i];
        else ni_k->vec.xielu(x, op->f[0], op->f[1], op->f[2], op->f[3], b - a, out);
        ni_put(c, op, 1, row, a, b - a, out);
    }
}
