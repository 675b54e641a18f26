/* cos and sin of position * frequency, per token: [T][n_rot/2 cosines, n_rot/2 sines].
 * t: table.  w: frequencies, n_rot/2 doubles (radians per position).  f: factor on both (YaRN's attention factor, 1 otherwise).
 * Doubles: at position 100,000 a float angle would be off by 0.01. */
#include <math.h>
#include "ops.h"

size_t ni_scratch_rope_table(const ni_ctx *c, const ni_op *op) { (void)c, (void)op; return 0; }

void ni_op_rope_table(const ni_ctx *c, const ni_op *op) {
    const double *freq = ni_copy_of(c, op, 0);
    int64_t half = ni_width(c, op, 0) / 2, row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), half);
    while (ni_next_slice(&s, &row, &a, &b)) {
        double p = (double)ni_position(c->step, row);
        float *cosine = ni_floats(c, op, 0) + row * 2 * half, *sine = cosine + half;
        for (int64_t i = a; i < b; i++) {
            cosine[i] = (float)cos(p * freq[i]) * op->f[0];
            sine[i] = (float)sin(p * freq[i]) * op->f[0];
        }
    }
}
