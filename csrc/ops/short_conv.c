/* Causal convolution along positions, a channel for itself: out[t][c] = act(sum over taps j of w[j][c] x[t - taps + 1 + j][c]), which every
 * node computes for itself.  Its state is the last taps - 1 inputs: 16 channels are a unit, [taps - 1][16] floats.  Before position 0
 * inputs are 0.
 * t: x [T][C], out.  w: kernel [taps][C], bias? [C].  i: state (state.h), taps, 1: SiLU. */
#include "state.h"

enum { TAPS = NI_STATE_INTS, SILU, MOST_TAPS = 16 };

size_t ni_scratch_short_conv(const ni_ctx *c, const ni_op *op) {
    return (size_t)(op->i[TAPS] * ((ni_width(c, op, 0) + 15) / 16 * 16)) * sizeof(float);
}

/* Inputs of the 16 channels of a unit, `back` positions before a segment's first (1 .. taps - 1); NULL: there were none. */
static const float *before(const ni_state_part *p, const ni_segment *s, int64_t unit, int64_t taps, int64_t back) {
    return s->state ? (const float *)(s->state + ni_state_at(p, unit)) + (taps - 1 - back) * 16 : NULL;
}

/* Channels [a, b) of the same position, to `to`. */
static void gather(const ni_state_part *p, const ni_segment *s, int64_t taps, int64_t back, int64_t a, int64_t b, float *to) {
    for (int64_t c = a, n; c < b; c += n, to += n) {
        const float *from = before(p, s, c / 16, taps, back);
        n = ni_min(b, (c / 16 + 1) * 16) - c;
        if (from) memcpy(to, from + c % 16, (size_t)n * sizeof *to);
        else memset(to, 0, (size_t)n * sizeof *to);
    }
}

/* The inputs that a unit keeps behind position `pos`, by the node to which it belongs. */
static void keep(const ni_state_part *p, const ni_segment *s, const float *x, int64_t width, int64_t taps, int64_t unit, const ni_stop *stop) {
    float *to = (float *)(stop->to + ni_state_at(p, unit));
    const int64_t n = ni_min(16, width - unit * 16);
    memset(to, 0, (size_t)p->unit_bytes);
    for (int64_t j = 0; j < taps - 1; j++, to += 16) {
        const int64_t at = stop->pos - (taps - 1) + j - s->pos0;
        const float *from = at < 0 ? before(p, s, unit, taps, -at) : x + (s->row0 + at) * width + unit * 16;
        if (from) memcpy(to, from, (size_t)n * sizeof *to);
    }
}

void ni_op_short_conv(const ni_ctx *c, const ni_op *op) {
    const ni_state_part p = ni_state_part_of(op);
    const int64_t n = ni_width(c, op, 0), taps = op->i[TAPS];
    const float *x = ni_floats(c, op, 0), *w = ni_copy_of(c, op, 0), *bias = ni_copy_of(c, op, 1);
    float *y = (float *)c->scratch, *past = y + (n + 15) / 16 * 16;
    const float *inputs[MOST_TAPS];
    int64_t row, a, b;
    int i = 0;
    ni_slices slices = ni_slices_of(c, ni_rows(c, op), n);
    while (ni_next_slice(&slices, &row, &a, &b)) {
        while (row >= c->step->segments[i].row0 + c->step->segments[i].n) i++;
        const ni_segment *s = &c->step->segments[i];
        for (int64_t j = 0; j < taps; j++) {
            const int64_t from = row - (taps - 1) + j;
            if (from >= s->row0) {
                inputs[j] = x + from * n + a;
                continue;
            }
            gather(&p, s, taps, s->row0 - from, a, b, past + j * (b - a));
            inputs[j] = past + j * (b - a);
        }
        ni_k->vec.short_conv(inputs, (int)taps, w + a, n, bias ? bias + a : NULL, op->i[SILU], b - a, y);
        ni_put(c, op, 1, row, a, b - a, y);
    }
    int64_t u0, u1, first, end;
    ni_state_own(&p, c->me, &u0, &u1);
    ni_cut(u1 - u0, c->me->size, c->me->rank, &first, &end);
    for (i = 0; i < c->step->n_segments; i++)
        for (int64_t k = 0; k < c->step->segments[i].n_stops; k++)
            for (int64_t u = u0 + first; u < u0 + end; u++)
                keep(&p, &c->step->segments[i], x, n, taps, u, &c->step->segments[i].stops[k]);
}
