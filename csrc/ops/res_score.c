/* Scores of residual streams: of those that a bank holds, in their order, then of the stream itself: sum of norm(v) w, with the RMS norm.
 * t: bank [T][m * D], x [T][D], scores [T][m + 1].  w: w [D] (floats).  f: eps. */
#include "ops.h"

size_t ni_scratch_res_score(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 1) * sizeof(float); }

void ni_op_res_score(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 1), m = ni_width(c, op, 0) / n;
    const float *w = ni_copy_of(c, op, 0);
    float *normed = (float *)c->scratch;
    int64_t unit, end;
    ni_cut(ni_rows(c, op) * (m + 1), c->me->size, c->me->rank, &unit, &end);
    for (; unit < end; unit++) {
        const int64_t row = unit / (m + 1), j = unit % (m + 1);
        const float *v = j < m ? ni_floats(c, op, 0) + (row * m + j) * n : ni_floats(c, op, 1) + row * n;
        ni_k->vec.scale_mul(v, 1.0f / sqrtf(ni_k->vec.sum_squares(v, n) / (float)n + op->f[0]), w, n, normed);
        ni_floats(c, op, 2)[unit] = ni_k->vec.sum(normed, n);
    }
}
