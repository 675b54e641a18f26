/* Selective scan, position by position (isa/recurrence.h; arXiv:2312.00752).  16 channels are a unit of state, [rows][16] floats, and the
 * least piece of work; a worker's stay in its caches over the tokens of a segment.
 * t: x, dt [T][D], b, c [T][N], out [T][D].  w: a [D / 16][rows][16], skip [D].  i: state (state.h). */
#include "../isa/recurrence.h"
#include "state.h"

enum { AT_ONCE = 16 };          /* tokens whose b and c are made ready */

static int64_t rows_of(const ni_ctx *c, const ni_op *op) { return (ni_width(c, op, 2) + NI_STATE_ROWS - 1) / NI_STATE_ROWS * NI_STATE_ROWS; }

size_t ni_scratch_scan(const ni_ctx *c, const ni_op *op) { return (size_t)(2 * AT_ONCE * rows_of(c, op)) * sizeof(float); }

/* Rows t ... of b or c, padded. */
static void load(const ni_ctx *c, const ni_op *op, int operand, int64_t t, int64_t n, int64_t rows, float *to) {
    const int64_t width = ni_width(c, op, operand);
    const float *from = ni_floats(c, op, operand) + t * width;
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + i * rows, from + i * width, (size_t)width * sizeof *to);
        for (int64_t j = width; j < rows; j++) to[i * rows + j] = 0.0f;
    }
}

/* Units [u0, u1), which lie side by side, over the tokens of a segment. */
static void advance(const ni_ctx *c, const ni_op *op, const ni_state_part *p, const ni_segment *s, int64_t u0, int64_t u1) {
    const int64_t d = ni_width(c, op, 0), rows = rows_of(c, op), first = u0 * NI_STATE_COLUMNS, place = ni_state_at(p, u0);
    const float *from = s->state ? (const float *)(s->state + place) : NULL;
    float *b = (float *)c->scratch, *at_c = b + AT_ONCE * rows;
    ni_scan r = {.rows = rows, .channels = ni_min(u1 * NI_STATE_COLUMNS, d) - first, .a = (const float *)ni_copy_of(c, op, 0) + first * rows,
                 .skip = (const float *)ni_copy_of(c, op, 1) + first, .b = b, .c = at_c, .x_stride = d, .dt_stride = d, .out_stride = d};
    int64_t pos = s->pos0;
    for (int64_t i = 0; i < s->n_stops; i++) {
        float *to = (float *)(s->stops[i].to + place);
        if (!from) memset(to, 0, (size_t)((u1 - u0) * p->unit_bytes)), from = to;
        for (int64_t n; pos < s->stops[i].pos && !ni_hurry(c); pos += n) {
            const int64_t t = s->row0 + pos - s->pos0, at = t * d + first;
            n = ni_min(AT_ONCE, s->stops[i].pos - pos);
            load(c, op, 2, t, n, rows, b), load(c, op, 3, t, n, rows, at_c);
            r.n_tokens = (int)n, r.x = ni_floats(c, op, 0) + at, r.dt = ni_floats(c, op, 1) + at, r.out = ni_floats(c, op, 4) + at;
            ni_k->vec.scan(from, to, &r);
            from = to;
        }
    }
}

void ni_op_scan(const ni_ctx *c, const ni_op *op) {
    const ni_state_part p = ni_state_part_of(op);
    int64_t u0, u1, a, b, before = 0;
    ni_state_own(&p, c->me, &u0, &u1);
    ni_cut(c->step->n_tokens * (u1 - u0), c->me->size, c->me->rank, &a, &b);
    for (int64_t i = 0; i < c->step->n_segments; before += c->step->segments[i++].n * (u1 - u0)) {
        /* Of this segment, whose units cost as much as it has tokens, those that begin in a .. b - 1. */
        const ni_segment *s = &c->step->segments[i];
        const int64_t end = ni_min(u1, u0 + (ni_max(b - before, 0) + s->n - 1) / s->n);
        for (int64_t u = u0 + (ni_max(a - before, 0) + s->n - 1) / s->n, next; u < end; u = next) {
            next = ni_min(end, ni_state_end(&p, u));
            advance(c, op, &p, s, u, next);
        }
    }
}
