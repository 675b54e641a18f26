/* Advances heads' matrices position by position and reads them (isa/recurrence.h): gated delta rule (arXiv:2412.06464), or, without beta,
 * linear attention with decay.  A head and 16 of its columns are a piece of work, so that few heads keep many workers busy, and a worker's
 * stay in its caches over the tokens of a segment.  A unit of state is a head: [columns / 16][rows][16] floats.
 * t: q, k, v [T] (a head's values are within a row), decay? [T][heads] or [T][heads][rows], beta? [T][heads], out [T][heads * ev].
 * w: skip? [heads], times which v is added to the result; decay? [heads], where it is the same for all tokens.
 * f: eps (>= 0: q and k are divided by sqrt(sum of squares + eps) first), scale of q.
 * i: state (state.h); as the names below say. */
#include "../isa/recurrence.h"
#include "state.h"

enum {
    GROUPS = NI_STATE_INTS,     /* heads of q and k, of which each serves heads / groups of the others: */
    TILED,                      /* 0: neighbours; 1: those whose number leaves the same rest */
    EK, EV,                     /* width of a head of q and k, and of v */
    Q0, K0, V0,                 /* first value of the first head in a row */
    WIDE,                       /* decay has a number for each row of the state */
    DELTA,                      /* the delta rule; else beta, where there is one, is a factor on v */
};
enum { AT_ONCE = 16 };          /* tokens whose q and k are made ready */

static int64_t rows_of(const ni_op *op) { return (op->i[EK] + NI_STATE_ROWS - 1) / NI_STATE_ROWS * NI_STATE_ROWS; }
static int64_t blocks_of(const ni_op *op) { return (op->i[EV] + NI_STATE_COLUMNS - 1) / NI_STATE_COLUMNS; }

size_t ni_scratch_recur(const ni_ctx *c, const ni_op *op) {
    (void)c;
    return (size_t)(AT_ONCE * (4 * rows_of(op) + 2) + (2 * AT_ONCE + 1) * blocks_of(op) * NI_STATE_COLUMNS) * sizeof(float);
}

typedef struct { float *q, *k, *kd, *decay, *beta, *v, *out, *sum; } work;

/* One head of q or k, normed, scaled and padded. */
static void load(const ni_op *op, const float *x, float scale, int64_t rows, float *to) {
    const int64_t e = op->i[EK];
    if (op->f[0] >= 0.0f) scale *= 1.0f / sqrtf(ni_k->vec.sum_squares(x, e) + op->f[0]);
    ni_k->vec.scale_mul(x, scale, NULL, e, to);
    for (int64_t i = e; i < rows; i++) to[i] = 0.0f;
}

/* Makes a head's tokens ready, which stand in rows t0 ... of the step. */
static void prepare(const ni_ctx *c, const ni_op *op, int64_t head, int64_t t0, int64_t n, const work *w) {
    const int64_t heads = op->i[NI_STATE_units], rows = rows_of(op), e = op->i[EK];
    const int64_t group = op->i[TILED] ? head % op->i[GROUPS] : head / (heads / op->i[GROUPS]);
    const float *decay = ni_floats(c, op, 3), *beta = ni_floats(c, op, 4), *fixed = ni_copy_of(c, op, 1);
    for (int64_t i = 0; i < n; i++) {
        const int64_t t = t0 + i;
        float *k = w->k + i * rows, *kd = w->kd + i * rows, *d = w->decay + (op->i[WIDE] ? i * rows : i);
        load(op, ni_floats(c, op, 0) + t * ni_width(c, op, 0) + op->i[Q0] + group * e, op->f[1], rows, w->q + i * rows);
        load(op, ni_floats(c, op, 1) + t * ni_width(c, op, 1) + op->i[K0] + group * e, 1.0f, rows, k);
        if (op->i[WIDE]) {
            memcpy(d, decay + (t * heads + head) * e, (size_t)e * sizeof *d);
            for (int64_t j = e; j < rows; j++) d[j] = 0.0f;
        } else *d = fixed ? fixed[head] : decay[t * heads + head];
        if (beta) w->beta[i] = beta[t * heads + head];
        if (!op->i[DELTA]) continue;
        ni_k->vec.scale_mul(k, op->i[WIDE] ? 1.0f : *d, op->i[WIDE] ? d : NULL, rows, kd);
    }
}

/* Blocks [b0, b1) of a head over the tokens of a segment. */
static void advance(const ni_ctx *c, const ni_op *op, const ni_segment *s, int64_t head, int64_t b0, int64_t b1, const work *w) {
    const ni_state_part p = ni_state_part_of(op);
    const int64_t ev = op->i[EV], rows = rows_of(op), heads = p.units, first = b0 * NI_STATE_COLUMNS;
    const int64_t place = ni_state_at(&p, head) + b0 * rows * NI_STATE_COLUMNS * (int64_t)sizeof(float);
    const int64_t width = (b1 - b0) * NI_STATE_COLUMNS, full = first + width <= ev, count = ni_min(width, ev - first);
    const float *skip = ni_copy_of(c, op, 0), *from = s->state ? (const float *)(s->state + place) : NULL;
    ni_recurrence r = {.rows = rows, .blocks = b1 - b0, .wide = op->i[WIDE], .delta = op->i[DELTA], .q = w->q, .k = w->k, .kd = w->kd,
                       .decay = w->decay, .beta = op->t[4] < 0 ? NULL : w->beta};
    int64_t pos = s->pos0;
    for (int64_t i = 0; i < s->n_stops; i++) {
        float *to = (float *)(s->stops[i].to + place);
        if (!from) memset(to, 0, (size_t)(width * rows) * sizeof *to), from = to;
        for (int64_t n; pos < s->stops[i].pos && !ni_hurry(c); pos += n) {
            const int64_t t = s->row0 + pos - s->pos0;
            n = ni_min(AT_ONCE, s->stops[i].pos - pos);
            prepare(c, op, head, t, n, w);
            const float *v = ni_floats(c, op, 2) + t * ni_width(c, op, 2) + op->i[V0] + head * ev + first;
            float *out = ni_floats(c, op, 5) + (t * heads + head) * ev + first;
            r.n_tokens = (int)n, r.v = v, r.out = out, r.v_stride = ni_width(c, op, 2), r.out_stride = heads * ev;
            if (!full) {    /* the last block is wider than what is left of the head */
                memset(w->v, 0, (size_t)(n * width) * sizeof *w->v);
                for (int64_t j = 0; j < n; j++) memcpy(w->v + j * width, v + j * r.v_stride, (size_t)count * sizeof *v);
                r.v = w->v, r.out = w->out, r.v_stride = r.out_stride = width;
            }
            ni_k->vec.recur(from, to, &r);
            for (int64_t j = 0; skip && j < n; j++) {
                ni_k->vec.scale_mul(r.v + j * r.v_stride, skip[head], NULL, width, w->sum);
                ni_k->vec.add(r.out + j * r.out_stride, w->sum, width, r.out + j * r.out_stride);
            }
            if (!full) for (int64_t j = 0; j < n; j++) memcpy(out + j * heads * ev, w->out + j * width, (size_t)count * sizeof *v);
            from = to;
        }
    }
}

void ni_op_recur(const ni_ctx *c, const ni_op *op) {
    const ni_state_part p = ni_state_part_of(op);
    const int64_t rows = rows_of(op), blocks = blocks_of(op), n_segments = c->step->n_segments;
    float *at = (float *)c->scratch;
    const work w = {.q = at, .k = at + AT_ONCE * rows, .kd = at + 2 * AT_ONCE * rows, .decay = at + 3 * AT_ONCE * rows,
                    .beta = at + AT_ONCE * (4 * rows + 1), .v = at + AT_ONCE * (4 * rows + 2),
                    .out = at + AT_ONCE * (4 * rows + 2 + blocks * NI_STATE_COLUMNS),
                    .sum = at + AT_ONCE * (4 * rows + 2 + 2 * blocks * NI_STATE_COLUMNS)};
    int64_t h0, h1, a, b, before = 0;
    ni_state_own(&p, c->me, &h0, &h1);
    const int64_t units = (h1 - h0) * blocks;
    ni_cut(c->step->n_tokens * units, c->me->size, c->me->rank, &a, &b);
    for (int64_t i = 0; i < n_segments; i++) {
        /* Of this segment, whose pieces cost as much as it has tokens, those that begin in a .. b - 1. */
        const ni_segment *s = &c->step->segments[i];
        const int64_t end = ni_min(units, (ni_max(b - before, 0) + s->n - 1) / s->n);
        for (int64_t u = ni_max(0, (a - before + s->n - 1) / s->n), next; u < end; u = next) {
            next = ni_min(end, (u / blocks + 1) * blocks);
            advance(c, op, s, h0 + u / blocks, u % blocks, u % blocks + next - u, &w);
        }
        before += s->n * units;
    }
}
