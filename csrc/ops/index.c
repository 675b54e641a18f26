/* Scores of an indexer (arXiv:2512.02556): what positions are worth to the tokens that choose among more than they may attend to.
 * t: q [T][H * e], weights [T][H], rope table?, kv, scores [T][positions].  f: factor on the weights.  i: attention.def, of one kv-head
 * without values; chosen: as of attend.
 *
 * A unit is a chunk for one token, and a worker's are chunks that its node holds. */
#include "attention.h"

size_t ni_scratch_index(const ni_ctx *c, const ni_op *op) {
    (void)c;
    const size_t e = (size_t)ni_padded(op->i[NI_ATTENTION_e]), heads = (size_t)op->i[NI_ATTENTION_heads];
    return (heads * (e + 1) + NI_INDEX_SCRATCH(e)) * sizeof(float);
}

/* Chunks below x that the worker's node holds. */
static int64_t held(const ni_attention *n, const ni_worker *me, int64_t x) {
    const int64_t round = n->turn * me->n_nodes;
    return x / round * n->turn + ni_max(0, ni_min(n->turn, x % round - me->node * n->turn));
}

/* The i-th chunk that it holds. */
static int64_t chunk_of(const ni_attention *n, const ni_worker *me, int64_t i) {
    return (i / n->turn * me->n_nodes + me->node) * n->turn + i % n->turn;
}

/* Queries, rotated, and their weights, scaled. */
static void load_heads(const ni_ctx *c, const ni_op *op, const ni_attention *n, int64_t row, float *q, float *w) {
    const float *from = ni_floats(c, op, 0) + row * n->heads * n->e, *table = ni_floats(c, op, 2);
    for (int64_t h = 0; h < n->heads; h++, from += n->e, q += ni_padded(n->e)) {
        ni_rotate(n, from, NULL, 0.0f, table, row, q);
        ni_pad(q, n->e);
    }
    ni_k->vec.scale_mul(ni_floats(c, op, 1) + row * n->heads, op->f[0], NULL, n->heads, w);
}

/* Units a .. b - 1 of a token at `pos`. */
static void score(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, int64_t pos, int64_t a, int64_t b) {
    const int64_t e = ni_padded(n->e), row = s->row0 + pos - s->pos0;
    float *q = (float *)c->scratch, *w = q + n->heads * e, *memory = w + n->heads;
    float *scores = ni_floats(c, op, 4) + row * ni_width(c, op, 4);
    load_heads(c, op, n, row, q, w);
    for (int64_t u = a; u < b && !ni_hurry(c); u++) {
        const int64_t j = chunk_of(n, c->me, u), blocks = (ni_min(NI_CHUNK, pos + 1 - j * NI_CHUNK) + 15) / 16;
        const uint8_t *keys = ni_keys(n, s, 0, j), *next = u + 1 < b ? ni_keys(n, s, 0, chunk_of(n, c->me, u + 1)) : keys;
        n->kv->index(q, w, (int)n->heads, e, keys, next, (int)blocks, scores + j * NI_CHUNK, memory);
    }
}

void ni_op_index(const ni_ctx *c, const ni_op *op) {
    const ni_attention n = ni_attention_of(op);
    int64_t total = 0, before = 0, a, b;
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        for (int64_t t = ni_unlisted(&n, s); t < s->n; t++) total += held(&n, c->me, (s->pos0 + t) / NI_CHUNK + 1);
    }
    ni_cut(total, c->me->size, c->me->rank, &a, &b);
    for (int i = 0; i < c->step->n_segments && before < b; i++) {
        const ni_segment *s = &c->step->segments[i];
        for (int64_t t = ni_unlisted(&n, s); t < s->n && before < b; t++) {
            const int64_t units = held(&n, c->me, (s->pos0 + t) / NI_CHUNK + 1);
            const int64_t first = ni_max(0, a - before), end = ni_min(units, b - before);
            if (first < end) score(c, op, &n, s, s->pos0 + t, first, end);
            before += units;
        }
    }
}
