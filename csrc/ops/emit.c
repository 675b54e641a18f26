/* Hands the hidden state of the selected rows out: the result of a plan that stops before the logits.
 * t: h (with floats).  The first node writes; the others hold the same values. */
#include "ops.h"

size_t ni_scratch_emit(const ni_ctx *c, const ni_op *op) { (void)c, (void)op; return 0; }

void ni_op_emit(const ni_ctx *c, const ni_op *op) {
    if (c->me->node) return;
    int64_t n = ni_width(c, op, 0), row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&s, &row, &a, &b))
        memcpy(c->step->out + row * n + a, ni_floats(c, op, 0) + row * n + a, (size_t)(b - a) * sizeof(float));
}
