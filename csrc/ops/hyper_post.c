/* Hyper-connections, what a layer says: out stream i = coef[i] y + sum over streams j of C[j][i] x_j, or coef[i] y + x_i where streams are not
 * mixed.  Without coef, which comes of hyper_pre.c, every stream is y: so they begin.
 * t: y [T][D], x? [T][n D], coef? [T][n], or [T][n + n n], out [T][n D].  i: 0 streams n. */
#include "ops.h"

enum { BLOCK = 512 };   /* values that stay in the first cache meanwhile */

size_t ni_scratch_hyper_post(const ni_ctx *c, const ni_op *op) { return ((size_t)ni_width(c, op, 3) + BLOCK) * sizeof(float); }

/* Values [a, b) of stream i of a row. */
static void spread(const float *y, const float *x, const float *coef, int64_t n, int64_t width, int mixed, int64_t i, int64_t a, int64_t b,
                   float *term, float *out) {
    for (int64_t end; a < b; out += end - a, a = end) {
        end = ni_min(b, a + BLOCK);
        if (!coef) {
            memcpy(out, y + a, (size_t)(end - a) * sizeof *out);
            continue;
        }
        ni_k->vec.scale_mul(y + a, coef[i], NULL, end - a, out);
        if (!mixed) ni_k->vec.add(x + i * width + a, out, end - a, out);
        for (int64_t j = 0; mixed && j < n; j++) {
            ni_k->vec.scale_mul(x + j * width + a, coef[n + j * n + i], NULL, end - a, term);
            ni_k->vec.add(out, term, end - a, out);
        }
    }
}

void ni_op_hyper_post(const ni_ctx *c, const ni_op *op) {
    const int64_t n = op->i[0], width = ni_width(c, op, 0), m = op->t[2] < 0 ? 0 : ni_width(c, op, 2);
    const float *y = ni_floats(c, op, 0), *x = ni_floats(c, op, 1), *coef = ni_floats(c, op, 2);
    float *term = (float *)c->scratch, *out = term + BLOCK;
    int64_t row, a, b;
    ni_slices s = ni_slices_of(c, ni_rows(c, op), n * width);
    while (ni_next_slice(&s, &row, &a, &b)) {
        for (int64_t at = a, end; at < b; at = end) {
            const int64_t i = at / width;
            end = ni_min(b, (i + 1) * width);
            spread(y + row * width, x ? x + row * n * width : NULL, coef ? coef + row * m : NULL, n, width, m > n, i, at - i * width,
                   end - i * width, term, out + (at - a));
        }
        ni_put(c, op, 3, row, a, b - a, out);
    }
}
