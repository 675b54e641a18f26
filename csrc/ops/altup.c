/* AltUp (arXiv:2301.13310): several residual streams, of which the layer computes the first alone.
 * Without y the streams are predicted: out_j = x_j + sum over i of c(j, i) x_i; with what a layer made of the first they are corrected:
 * out_j = x_j + (1 + c(j)) (y - x_0).  c = C tanh(R norm(v)), v being x_0, or y.  Without a router out is x.
 * What all streams but the first have missed is added to them first: x_j = x_j + z for j > 0.
 * t: x [T][n * D], y? [T][D], z? [T][D], out [T][n * D], row? [T][D]: the first of out, times the scale where there is one.
 * w: norm? [D], R? [n][D], C? [n * n][n], or [n][n] to correct, scale? [D] (all floats).  i: n.  f: eps.
 *
 * As in norm.c, every worker computes c of a row of which it stores a slice: there is little of it. */
#include "ops.h"

enum { X, Y, Z, OUT, ROW };
enum { NORM, ROUTER, COEFFICIENTS, SCALE };
enum { NI_STREAMS = 16 };   /* at most */

typedef struct {
    float m[NI_STREAMS], c[NI_STREAMS * NI_STREAMS];
    float x[];      /* [n + 2][D] */
} altup_memory;

size_t ni_scratch_altup(const ni_ctx *c, const ni_op *op) {
    return sizeof(altup_memory) + (size_t)(ni_width(c, op, X) + 2 * (ni_width(c, op, X) / op->i[0])) * sizeof(float);
}

/* c of v [D]: `count` numbers; h, t: room for D values each. */
static void coefficients(const ni_ctx *c, const ni_op *op, const float *v, int64_t d, int64_t count, altup_memory *mem, float *h, float *t) {
    const int64_t n = op->i[0];
    const float *router = ni_copy_of(c, op, ROUTER), *w = ni_copy_of(c, op, COEFFICIENTS);
    ni_k->vec.scale_mul(v, 1.0f / sqrtf(ni_k->vec.sum_squares(v, d) / (float)d + op->f[0]), ni_copy_of(c, op, NORM), d, h);
    for (int64_t i = 0; i < n; i++) {
        ni_k->vec.scale_mul(h, 1.0f, router + i * d, d, t);
        mem->m[i] = ni_k->vec.sum(t, d);
    }
    ni_k->vec.softcap(mem->m, 1.0f, n, mem->m);     /* tanh */
    for (int64_t k = 0; k < count; k++) {
        float sum = 0.0f;
        for (int64_t i = 0; i < n; i++) sum += w[k * n + i] * mem->m[i];
        mem->c[k] = sum;
    }
}

void ni_op_altup(const ni_ctx *c, const ni_op *op) {
    const int64_t n = op->i[0], d = ni_width(c, op, X) / n;
    const int predicts = op->t[Y] < 0;
    const float *scale = ni_copy_of(c, op, SCALE);
    altup_memory *mem = (altup_memory *)c->scratch;
    float *h = mem->x + n * d, *t = h + d;
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), d);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const int64_t size = b - a;
        const float *x = ni_floats(c, op, X) + row * n * d, *y = predicts ? NULL : ni_floats(c, op, Y) + row * d;
        if (op->w[ROUTER] >= 0) coefficients(c, op, predicts ? x : y, d, predicts ? n * n : n, mem, h, t);
        for (int64_t j = 0; j < n; j++) {
            if (j && op->t[Z] >= 0) ni_k->vec.add(x + j * d + a, ni_floats(c, op, Z) + row * d + a, size, mem->x + j * size);
            else memcpy(mem->x + j * size, x + j * d + a, (size_t)size * sizeof *x);
        }
        if (!predicts) {
            ni_k->vec.scale_mul(mem->x, -1.0f, NULL, size, t);
            ni_k->vec.add(y + a, t, size, t);       /* what the prediction lacked */
        }
        for (int64_t j = 0; j < n; j++) {
            float *out = h;
            if (op->w[ROUTER] < 0) out = mem->x + j * size;
            else if (predicts) {
                ni_k->vec.scale_mul(mem->x, mem->c[j * n], NULL, size, h);
                for (int64_t i = 1; i < n; i++) {
                    ni_k->vec.scale_mul(mem->x + i * size, mem->c[j * n + i], NULL, size, t);
                    ni_k->vec.add(h, t, size, h);
                }
                ni_k->vec.add(h, mem->x + j * size, size, h);
            } else {
                ni_k->vec.scale_mul(t, 1.0f + mem->c[j], NULL, size, h);
                ni_k->vec.add(h, mem->x + j * size, size, h);
            }
            ni_put(c, op, OUT, row, j * d + a, size, out);
            if (j || op->t[ROW] < 0) continue;
            if (scale) ni_k->vec.scale_mul(out, 1.0f, scale + a, size, h), out = h;
            ni_put(c, op, ROW, row, a, size, out);
        }
    }
}
