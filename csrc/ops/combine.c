/* Gathers what attention left, per node: folds the chunks' parts of decoding sequences in order, copies the rows of the others.
 * t: parts, rows [T][H * ev], o.  i: attention.h. */
#include "attention.h"

size_t ni_scratch_combine(const ni_ctx *c, const ni_op *op) { return (size_t)(ni_width(c, op, 2) + op->i[3]) * sizeof(float); }

static void fold(const ni_attention *n, float *parts, int64_t slot, int64_t head, int64_t pos, float *acc) {
    int64_t j0 = ni_first_seen(n, pos) / NI_CHUNK;
    const float *part = ni_part_of(n, parts, slot, head, j0);
    float m = part[0], l = part[1];
    memcpy(acc, part + 16, (size_t)n->ev * sizeof *acc);
    for (int64_t j = j0 + 1; j <= pos / NI_CHUNK; j++) {
        part = ni_part_of(n, parts, slot, head, j);
        ni_k->vec.merge(&m, &l, acc, part[0], part[1], part + 16, n->ev);
    }
    ni_k->vec.scale_mul(acc, 1.0f / l, NULL, n->ev, acc);
}

void ni_op_combine(const ni_ctx *c, const ni_op *op) {
    ni_attention n = ni_attention_of(op);
    float *parts = ni_floats(c, op, 0), *row_in = ni_floats(c, op, 1), *o = (float *)c->scratch;
    int64_t width = ni_width(c, op, 2), slot = 0;
    /* A unit is the fewest heads whose values fill blocks of 32, the quantiser's step. */
    int64_t heads = 1;
    while (heads * n.ev % 32 && heads < n.heads) heads++;
    int64_t per_row = (n.heads + heads - 1) / heads, a, b;
    ni_cut(ni_rows(c, op) * per_row, c->me->size, c->me->rank, &a, &b);
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        int in_parts = ni_in_parts(&n, s, slot);
        for (int64_t u = ni_max(a, s->row0 * per_row); u < ni_min(b, (s->row0 + s->n) * per_row); u++) {
            int64_t row = u / per_row, h0 = u % per_row * heads, h1 = ni_min(n.heads, h0 + heads);
            const float *x = row_in + row * width + h0 * n.ev;
            if (in_parts) {
                for (int64_t h = h0; h < h1; h++) fold(&n, parts, slot, h, s->pos0, o + (h - h0) * n.ev);
                x = o;
            }
            ni_put(c, op, 2, row, h0 * n.ev, (h1 - h0) * n.ev, x);
        }
        slot += in_parts;
    }
}
