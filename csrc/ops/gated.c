/* a = act(gate) * up, the middle of a gated feed-forward network (arXiv:2002.05202).
 * t: gate, up, a.  i: 0 SiLU, 1 GELU (tanh form). */
#include "ops.h"

size_t ni_scratch_gated(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 2) * sizeof(float); }

void ni_op_gated(const ni_ctx *c, const ni_op *op) {
    int64_t n = ni_width(c, op, 2), row, a, b;
    float *out = (float *)c->scratch;
    ni_slices s = ni_slices_of(c, ni_rows_of(c, op, 0), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const float *gate = ni_floats(c, op, 0) + row * n, *up = ni_floats(c, op, 1) + row * n;
        (op->i[0] ? ni_k->vec.gelu_mul : ni_k->vec.silu_mul)(gate + a, up + a, b - a, out);
        ni_put(c, op, 2, row, a, b - a, out);
    }
}
