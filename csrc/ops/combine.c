/* Gathers what attention left, per node: folds the parts of decoding sequences in order, copies the rows of the others.
 * t: parts, rows [T][H * ev], o.  w: sinks? [H] (floats).  i: attention.def. */
#include "attention.h"

size_t ni_scratch_combine(const ni_ctx *c, const ni_op *op) {
    return (size_t)(ni_width(c, op, 2) + op->i[NI_ATTENTION_ev]) * sizeof(float);
}

static void fold(const ni_attention *n, float *parts, int64_t slot, int64_t head, int64_t pos, const float *sinks, float *acc) {
    const float *part = ni_part_of(n, parts, slot, pos, head, 0);
    float m = part[0], l = part[1];
    memcpy(acc, part + 16, (size_t)n->ev * sizeof *acc);
    for (int64_t k = 1; k < ni_parts_of(n, pos); k++) {
        part = ni_part_of(n, parts, slot, pos, head, k);
        ni_k->vec.merge(&m, &l, acc, part[0], part[1], part + 16, n->ev);
    }
    ni_finish(n, m, l, acc, sinks ? sinks + head : NULL, acc);
}

/* What one unit of a segment costs: the parts, or the row, to be read. */
static int64_t cost_of(const ni_ctx *c, const ni_attention *n, int segment) {
    return c->slots[segment] < 0 ? 1 : ni_parts_of(n, c->step->segments[segment].pos0);
}

void ni_op_combine(const ni_ctx *c, const ni_op *op) {
    ni_attention n = ni_attention_of(op);
    float *parts = ni_floats(c, op, 0), *row_in = ni_floats(c, op, 1), *o = (float *)c->scratch;
    int64_t width = ni_width(c, op, 2), total = 0, before = 0;
    /* A unit is the fewest heads whose values fill blocks of 32, the quantiser's step. */
    int64_t heads = 1;
    while (heads * n.ev % 32 && heads < n.heads) heads++;
    int64_t per_row = (n.heads + heads - 1) / heads, a, b;
    for (int i = 0; i < c->step->n_segments; i++) total += cost_of(c, &n, i) * c->step->segments[i].n * per_row;
    ni_cut(total, c->me->size, c->me->rank, &a, &b);
    for (int i = 0; i < c->step->n_segments && before < b; i++) {
        /* Those units of the segment that begin in a .. b - 1. */
        const ni_segment *s = &c->step->segments[i];
        const int64_t cost = cost_of(c, &n, i), units = s->n * per_row;
        const int64_t end = ni_min(units, (b - before + cost - 1) / cost);
        for (int64_t u = ni_max(0, (a - before + cost - 1) / cost); u < end; u++) {
            int64_t row = s->row0 + u / per_row, h0 = u % per_row * heads, h1 = ni_min(n.heads, h0 + heads);
            const float *x = row_in + row * width + h0 * n.ev;
            if (c->slots[i] >= 0) {
                for (int64_t h = h0; h < h1; h++) fold(&n, parts, c->slots[i], h, s->pos0, ni_copy_of(c, op, 0), o + (h - h0) * n.ev);
                x = o;
            }
            ni_put(c, op, 2, row, h0 * n.ev, (h1 - h0) * n.ev, x);
        }
        before += cost * units;
    }
}
