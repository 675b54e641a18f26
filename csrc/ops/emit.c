/* Hands hidden states out: of the selected rows, as the result of a plan that stops before the logits; or of all rows, beside the result,
 * where whoever runs the step wants them.
 * t: h (with floats).  i: 1 for all rows.  The first node writes; the others hold the same values. */
#include "ops.h"

size_t ni_scratch_emit(const ni_ctx *c, const ni_op *op) { (void)c, (void)op; return 0; }

void ni_op_emit(const ni_ctx *c, const ni_op *op) {
    float *to = op->i[0] ? c->step->hidden : c->step->out;
    if (c->me->node || !to) return;
    int64_t n = ni_width(c, op, 0), row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&s, &row, &a, &b))
        memcpy(to + row * n + a, ni_floats(c, op, 0) + row * n + a, (size_t)(b - a) * sizeof(float));
}
