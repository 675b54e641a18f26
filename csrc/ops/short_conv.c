/* Causal convolution along positions, a channel for itself: out[t][c] = act(sum over taps j of w[j][c] x[t - taps + 1 + j][c]), which every
 * node computes for itself.  Its state is the last taps - 1 inputs; 32 channels are a unit, and a node's lie side by side:
 * [taps - 1][its channels] floats.  Before position 0 inputs are 0.
 * t: x [T][C], out.  w: kernel [taps][C], bias? [C].  i: state (state.h), taps, 1: SiLU. */
#include "state.h"

enum { TAPS = NI_STATE_INTS, SILU, MOST_TAPS = 16, UNIT = 32 };   /* channels: the step of the quantiser */

size_t ni_scratch_short_conv(const ni_ctx *c, const ni_op *op) {
    return 2 * (size_t)ni_width(c, op, 0) * sizeof(float);
}

/* Channels that lie side by side in a state: those from c to before `end`, of tap j (0: the oldest) `at` + j * `tap` bytes behind the beginning
 * of the block. */
typedef struct { int64_t end, at, tap; } run;

static run run_at(const ni_state_part *p, int64_t width, int64_t c) {
    const int64_t node = (p->nodes * (c / UNIT + 1) - 1) / p->units, first = p->units * node / p->nodes, end = p->units * (node + 1) / p->nodes;
    return (run){ni_min(width, end * UNIT), node * p->stride + p->offset + (c - first * UNIT) * (int64_t)sizeof(float),
                 (end - first) * UNIT * (int64_t)sizeof(float)};
}

/* Channels [a, b) of row `row`, a segment's. */
static void convolve(const ni_ctx *c, const ni_op *op, const ni_state_part *p, const ni_segment *s, int64_t row, int64_t a, int64_t b) {
    const int64_t width = ni_width(c, op, 0), taps = op->i[TAPS];
    const float *w = ni_copy_of(c, op, 0), *bias = ni_copy_of(c, op, 1), *inputs[MOST_TAPS];
    float *y = (float *)c->scratch, *zeros = y + width;
    const int64_t begins = row - (taps - 1) >= s->row0;   /* nothing of the state is needed */
    for (int64_t end; a < b; a = end) {
        const run r = run_at(p, width, a);
        end = begins ? b : ni_min(b, r.end);
        for (int64_t j = 0; j < taps; j++) {
            const int64_t from = row - (taps - 1) + j;
            if (from >= s->row0) inputs[j] = ni_floats(c, op, 0) + from * width + a;
            else inputs[j] = s->state ? (const float *)(s->state + r.at + (taps - 1 + from - s->row0) * r.tap) : zeros;
        }
        ni_k->vec.short_conv(inputs, (int)taps, w + a, width, bias ? bias + a : NULL, op->i[SILU], end - a, y);
        ni_put(c, op, 1, row, a, end - a, y);
    }
}

/* The inputs of channels [a, b) before position stop->pos, for the state there. */
static void keep(const ni_ctx *c, const ni_op *op, const ni_state_part *p, const ni_segment *s, const ni_stop *stop, int64_t a, int64_t b) {
    const int64_t width = ni_width(c, op, 0), taps = op->i[TAPS];
    for (int64_t end; a < b; a = end) {
        const run r = run_at(p, width, a);
        end = ni_min(b, r.end);
        for (int64_t j = 0; j < taps - 1; j++) {
            const int64_t at = stop->pos - (taps - 1) + j - s->pos0;
            uint8_t *to = stop->to + r.at + j * r.tap;
            const size_t bytes = (size_t)(end - a) * sizeof(float);
            if (at >= 0) memcpy(to, ni_floats(c, op, 0) + (s->row0 + at) * width + a, bytes);
            else if (s->state) memcpy(to, s->state + r.at + (taps - 1 + at) * r.tap, bytes);
            else memset(to, 0, bytes);
        }
    }
}

void ni_op_short_conv(const ni_ctx *c, const ni_op *op) {
    const ni_state_part p = ni_state_part_of(op);
    const int64_t n = ni_width(c, op, 0);
    int64_t row, a, b, u0, u1;
    int i = 0;
    memset((float *)c->scratch + n, 0, (size_t)n * sizeof(float));
    ni_slices slices = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&slices, &row, &a, &b)) {
        while (row >= c->step->segments[i].row0 + c->step->segments[i].n) i++;
        convolve(c, op, &p, &c->step->segments[i], row, a, b);
    }
    ni_state_own(&p, c->me, &u0, &u1);
    ni_cut(u1 - u0, c->me->size, c->me->rank, &a, &b);
    a = (u0 + a) * UNIT, b = ni_min(n, (u0 + b) * UNIT);
    for (i = 0; i < c->step->n_segments; i++)
        for (int64_t k = 0; k < c->step->segments[i].n_stops; k++)
            keep(c, op, &p, &c->step->segments[i], &c->step->segments[i].stops[k], a, b);
}
