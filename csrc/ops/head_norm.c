/* Each head normed by itself, behind or before a gate: out = norm(x) * w * act(gate), or norm(x * act(gate)) * w (RMSNorm, arXiv:1910.07467),
 * on every node.
 * t: x [T][heads * e], gate? [T][heads * e], out.  w: w [e], or [heads * e].  f: eps.
 * i: 0 heads; 1 act: SiLU, sigmoid; 2 1: the gate comes first; 3 1: w has values of each head's own. */
#include "ops.h"

enum { SILU, SIGMOID };

/* Heads that are stored at once: as many as fill blocks of 32, the quantiser's step. */
static int64_t at_once(const ni_ctx *c, const ni_op *op) {
    const int64_t heads = op->i[0], e = ni_width(c, op, 0) / heads;
    int64_t n = 1;
    while (n * e % 32 && n < heads) n++;
    return n;
}

size_t ni_scratch_head_norm(const ni_ctx *c, const ni_op *op) {
    return (size_t)(at_once(c, op) * (ni_width(c, op, 0) / op->i[0])) * sizeof(float);
}

static void gate(const ni_op *op, const float *g, const float *x, int64_t n, float *out) {
    (op->i[1] == SILU ? ni_k->vec.silu_mul : ni_k->vec.sigmoid_mul)(g, x, n, out);
}

void ni_op_head_norm(const ni_ctx *c, const ni_op *op) {
    const int64_t heads = op->i[0], width = ni_width(c, op, 0), e = width / heads, n = at_once(c, op), units = (heads + n - 1) / n;
    const float *w = ni_copy_of(c, op, 0);
    float *out = (float *)c->scratch;
    int64_t a, b;
    ni_cut(ni_rows(c, op) * units, c->me->size, c->me->rank, &a, &b);
    for (int64_t u = a; u < b; u++) {
        const int64_t row = u / units, h0 = u % units * n, h1 = ni_min(heads, h0 + n);
        for (int64_t h = h0; h < h1; h++) {
            const float *x = ni_floats(c, op, 0) + row * width + h * e, *g = op->t[1] < 0 ? NULL : ni_floats(c, op, 1) + row * width + h * e;
            float *y = out + (h - h0) * e;
            if (g && op->i[2]) gate(op, g, x, e, y), x = y;
            ni_k->vec.scale_mul(x, 1.0f / sqrtf(ni_k->vec.sum_squares(x, e) / (float)e + op->f[0]), w + (op->i[3] ? h * e : 0), e, y);
            if (g && !op->i[2]) gate(op, g, y, e, y);
        }
        ni_put(c, op, 2, row, h0 * e, (h1 - h0) * e, out);
    }
}
