/* The hidden state before each token: row t of out is row t - 1 of h, but of a segment's first token it is what the segment brings
 * (ni_segment.hidden), or zeros where it brings nothing.
 * t: h?, out.  Without h a segment has one token, and another's row is zeros. */
#include "ops.h"

size_t ni_scratch_before(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 1) * sizeof(float); }

void ni_op_before(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 1);
    const float *h = ni_floats(c, op, 0);
    float *zeros = memset(c->scratch, 0, (size_t)n * sizeof *zeros);
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const ni_segment *own = ni_segment_of(c->step, row);
        const float *x = row == own->row0 ? own->hidden : h ? h + (row - 1) * n : NULL;
        ni_put(c, op, 1, row, a, b - a, (x ? x : zeros) + a);
    }
}
