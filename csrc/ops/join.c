/* Parts of heads, moved: out head h = the part of a's head h, then that of b's, for each row of the step.
 * t: a, b?, out, [T] x heads pieces of equal width each, whether as rows or within rows.  i: heads, first value and width of the part of a,
 * then of b. */
#include "ops.h"

static int64_t head_width(const ni_op *op) { return op->i[2] + (op->t[1] < 0 ? 0 : op->i[4]); }

/* Heads that are stored at once: a row each, or as many as fill blocks of 32, the quantiser's step. */
static int64_t heads_at_once(const ni_ctx *c, const ni_op *op) {
    int64_t n = 1;
    if (c->tensors[op->t[2]].per_token == 1) while (n * head_width(op) % 32 && n < op->i[0]) n++;
    return n;
}

size_t ni_scratch_join(const ni_ctx *c, const ni_op *op) { return (size_t)(heads_at_once(c, op) * head_width(op)) * sizeof(float); }

void ni_op_join(const ni_ctx *c, const ni_op *op) {
    const int64_t heads = op->i[0], width = head_width(op), at_once = heads_at_once(c, op), units = (heads + at_once - 1) / at_once;
    const int rows = c->tensors[op->t[2]].per_token > 1;
    float *x = (float *)c->scratch;
    int64_t first, end;
    ni_cut(ni_rows(c, op) * units, c->me->size, c->me->rank, &first, &end);
    for (int64_t u = first; u < end; u++) {
        const int64_t t = u / units, h0 = u % units * at_once, h1 = ni_min(heads, h0 + at_once);
        for (int64_t h = h0; h < h1; h++) {
            float *to = x + (h - h0) * width;
            for (int j = 0; j < 2 && op->t[j] >= 0; j++) {
                const int64_t piece = ni_width(c, op, j) * c->tensors[op->t[j]].per_token / heads, n = op->i[2 + 2 * j];
                memcpy(to, ni_floats(c, op, j) + (t * heads + h) * piece + op->i[1 + 2 * j], (size_t)n * sizeof *to);
                to += n;
            }
        }
        if (rows) ni_put(c, op, 2, t * heads + h0, 0, width, x);
        else ni_put(c, op, 2, t, h0 * width, (h1 - h0) * width, x);
    }
}
