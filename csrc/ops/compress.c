/* Compressed attention (DeepSeek V4): makes one row of keys, which are values too, of `ratio` positions, each column a softmax of its own over
 * them; then norms it and rotates it, as the first of its positions.  Where rows overlap, a row is made of the positions before too: W is
 * 2 e, of which the first half speaks for the row behind the position's own, and the second for its own.
 * t: kv [T][W], gate [T][W], rows.  w: bias of the gates [ratio][W], norm? [e], frequencies? (n_rot / 2 doubles).
 * f: eps, factor of cosines and sines.  i: attention.def, of one kv-head: e; ev = 2 W.
 *
 * The ring is a cache of the layer's last positions: kv and gate side by side, as values of float32, of which no more than a window is kept.
 * So what is made of positions of several steps has the bits of what is made of one.  A row is made in the step of its last position.  No
 * other op touches the ring, and this one reads what earlier steps have left there, so it is no operand.
 * Rows of several layers share chunks (ni_row_at); those of an indexer (latent 0) lie as keys. */
#include "attention.h"

typedef struct {
    ni_attention n;
    int64_t width;      /* W */
    int overlaps;
    const float *kv, *gate, *bias, *norm;
    const double *frequencies;
    float eps, factor;
} shape;

size_t ni_scratch_compress(const ni_ctx *c, const ni_op *op) {
    (void)c;
    return (size_t)(ni_padded(op->i[NI_ATTENTION_ev]) + 7 * ni_padded(op->i[NI_ATTENTION_e])) * sizeof(float);
}

static int is_mine(const ni_ctx *c, const ni_attention *n, int64_t j) {
    return ni_kv_node(0, j, 1, n->turn, c->me->n_nodes) == c->me->node;
}

/* Stores positions p0 .. p1 - 1 of the step in the ring. */
static void keep(const shape *x, const ni_segment *s, int64_t p0, int64_t p1, float *row) {
    for (int64_t p = p0; p < p1; p++) {
        const int64_t from = (s->row0 + p - s->pos0) * x->width;
        memcpy(row, x->kv + from, (size_t)x->width * sizeof *row);
        memcpy(row + x->width, x->gate + from, (size_t)x->width * sizeof *row);
        ni_pad(row, 2 * x->width);
        ni_k->vec.kv[NI_KV_f32].store_value(row, ni_padded(2 * x->width), ni_keys(&x->n, s, 0, p / NI_CHUNK), (int)(p % NI_CHUNK));
    }
}

/* Columns first .. first + count - 1 of what the ring holds of position p: values lie in columns of 16. */
static void recall(const shape *x, const ni_segment *s, int64_t p, int64_t first, int64_t count, float *to) {
    const float *chunk = (const float *)ni_keys(&x->n, s, 0, p / NI_CHUNK) + p % NI_CHUNK * 16;
    for (int64_t i = first; i < first + count; i++) *to++ = chunk[i / 16 * 16 * NI_CHUNK + i % 16];
}

/* Of position p, which speaks for the row behind its own, or not: e values and their gates. */
static void load(const shape *x, const ni_segment *s, int64_t p, int behind, float *value, float *gate) {
    const int64_t e = x->n.e, first = x->overlaps && !behind ? e : 0, at = (s->row0 + p - s->pos0) * x->width + first;
    if (p >= s->pos0) {
        memcpy(value, x->kv + at, (size_t)e * sizeof *value), memcpy(gate, x->gate + at, (size_t)e * sizeof *gate);
    } else {
        recall(x, s, p, first, e, value), recall(x, s, p, x->width + first, e, gate);
    }
    ni_k->vec.add(gate, x->bias + p % x->n.ratio * x->width + first, e, gate);
}

/* Row r before it is normed. */
static void make(const shape *x, const ni_segment *s, int64_t r, float *memory, float *out) {
    const int64_t e = x->n.e, padded = ni_padded(e), ratio = x->n.ratio, end = (r + 1) * ratio;
    const int64_t begin = ni_max(0, end - (x->overlaps ? 2 : 1) * ratio);
    float *value = memory, *gate = value + padded, *top = gate + padded, *sum = top + padded;
    for (int64_t i = 0; i < e; i++) top[i] = -INFINITY, sum[i] = out[i] = 0.0f;
    for (int64_t p = begin; p < end; p++) {
        load(x, s, p, p < r * ratio, value, gate);
        for (int64_t i = 0; i < e; i++) top[i] = gate[i] > top[i] ? gate[i] : top[i];
    }
    for (int64_t p = begin; p < end; p++) {
        load(x, s, p, p < r * ratio, value, gate);
        for (int64_t i = 0; i < e; i++) gate[i] -= top[i];
        ni_k->vec.exp(gate, 0.0f, e, gate);
        for (int64_t i = 0; i < e; i++) sum[i] += gate[i], out[i] += gate[i] * value[i];
    }
    for (int64_t i = 0; i < e; i++) out[i] /= sum[i];
}

static void store(const shape *x, const ni_segment *s, int64_t r, float *memory) {
    const ni_attention *n = &x->n;
    const int64_t padded = ni_padded(n->e), half = n->n_rot / 2;
    float *raw = memory, *out = raw + padded, *table = out + padded;    /* the table is no longer than e */
    make(x, s, r, table, raw);
    for (int64_t i = 0; i < half; i++) {
        const double angle = (double)(r * n->ratio) * x->frequencies[i];
        table[i] = (float)cos(angle) * x->factor, table[half + i] = (float)sin(angle) * x->factor;
    }
    ni_rotate(n, raw, x->norm, x->eps, half ? table : NULL, 0, out);
    ni_pad(out, n->e);
    int64_t at;
    uint8_t *chunk = ni_row_at(n, s, r, &at);
    if (n->latent) n->kv->store_value(out, padded, chunk, (int)at);
    else n->kv->store_key(out, padded, chunk, (int)at);
}

void ni_op_compress(const ni_ctx *c, const ni_op *op) {
    const shape x = {.n = ni_attention_of(op), .width = ni_width(c, op, 0), .overlaps = ni_width(c, op, 0) > op->i[NI_ATTENTION_e],
                     .kv = ni_floats(c, op, 0), .gate = ni_floats(c, op, 1), .bias = ni_copy_of(c, op, 0), .norm = ni_copy_of(c, op, 1),
                     .frequencies = ni_copy_of(c, op, 2), .eps = op->f[0], .factor = op->f[1]};
    const int64_t ratio = x.n.ratio;
    int64_t units = 0;  /* of the node so far: they go round its workers */
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        const int64_t end = s->pos0 + s->n;
        for (int64_t p = s->pos0, to; p < end; p = to) {
            to = ni_min(end, p / 16 * 16 + 16);     /* what lies side by side, of one chunk */
            if (is_mine(c, &x.n, p / NI_CHUNK) && units++ % c->me->size == c->me->rank) keep(&x, s, p, to, (float *)c->scratch);
        }
        for (int64_t r = s->pos0 / ratio; r < end / ratio && !ni_hurry(c); r++)
            if (is_mine(c, &x.n, r * ratio / NI_CHUNK) && units++ % c->me->size == c->me->rank) store(&x, s, r, (float *)c->scratch);
    }
}
