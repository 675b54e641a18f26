/* Turns heads back by their positions' angles: what was attended to in rotated values becomes relative to the token (DeepSeek V4, whose values
 * are its keys).
 * t: x [T][H e], table [T][n_rot], out.  i: 0 heads, 1 first value of a head that is turned, 2 how many are, 3 1: pairs (i, i + n_rot / 2). */
#include "ops.h"

/* Heads that are stored at once: as many as fill blocks of 32, the quantiser's step. */
static int64_t heads_at_once(const ni_op *op, int64_t e) {
    int64_t n = 1;
    while (n * e % 32 && n < op->i[0]) n++;
    return n;
}

size_t ni_scratch_turn(const ni_ctx *c, const ni_op *op) {
    const int64_t e = ni_width(c, op, 0) / op->i[0];
    return (size_t)(heads_at_once(op, e) * e + op->i[2]) * sizeof(float);
}

void ni_op_turn(const ni_ctx *c, const ni_op *op) {
    const int64_t heads = op->i[0], n_rot = op->i[2], e = ni_width(c, op, 0) / heads, at_once = heads_at_once(op, e);
    const int64_t units = (heads + at_once - 1) / at_once;
    float *sine = (float *)c->scratch, *x = sine + n_rot;
    int64_t u, end;
    ni_cut(ni_rows(c, op) * units, c->me->size, c->me->rank, &u, &end);
    for (; u < end; u++) {
        const int64_t row = u / units, h0 = u % units * at_once, h1 = ni_min(heads, h0 + at_once);
        const float *cosine = ni_floats(c, op, 1) + row * n_rot;
        memcpy(x, ni_floats(c, op, 0) + (row * heads + h0) * e, (size_t)((h1 - h0) * e) * sizeof *x);
        ni_k->vec.scale_mul(cosine + n_rot / 2, -1.0f, NULL, n_rot / 2, sine);
        for (int64_t h = 0; h < h1 - h0; h++)
            (op->i[3] ? ni_k->vec.rope_neox : ni_k->vec.rope_norm)(x + h * e + op->i[1], cosine, sine, n_rot);
        ni_put(c, op, 2, row, h0 * e, (h1 - h0) * e, x);
    }
}
