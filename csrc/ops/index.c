/* Scores of an indexer: what positions, blocks of them, or compressed rows, are worth to the tokens that choose among more than they may attend to.
 * t: q [T][H * e], weights? [T][H], rope table?, kv, scores.  w: q norm? [e] (floats).  f: factor on the weights, eps.  i: attention.def, of
 * one kv-head without values; chosen and block: as of attend.
 * With weights, scores [T][positions] are sums over the heads (arXiv:2512.02556).  Without, every head has a list of its own, for a kv-head
 * of attention, and scores [T][H][blocks] are the largest q . k of a block.
 *
 * A unit is a chunk for one token, and a worker's are chunks that its node holds. */
#include "attention.h"

size_t ni_scratch_index(const ni_ctx *c, const ni_op *op) {
    (void)c;
    const size_t e = (size_t)ni_padded(op->i[NI_ATTENTION_e]), heads = (size_t)op->i[NI_ATTENTION_heads];
    return (2 * heads * (e + 1) + NI_CHUNK + NI_INDEX_SCRATCH(e)) * sizeof(float);
}

/* Chunks that a token at `pos` sees. */
static int64_t chunks_seen(const ni_attention *n, int64_t pos) {
    return n->ratio ? (ni_rows_seen(n, pos) * n->ratio + NI_CHUNK - 1) / NI_CHUNK : pos / NI_CHUNK + 1;
}

/* Keys of chunk j. */
static const uint8_t *keys_of(const ni_attention *n, const ni_segment *s, int64_t j) {
    if (!n->ratio) return ni_keys(n, s, 0, j);
    int64_t at;
    const uint8_t *chunk = ni_row_at(n, s, j * (NI_CHUNK / n->ratio), &at);
    return chunk + at * ni_kv_bytes((ni_kv_type)n->kv_type, n->e);      /* rows begin at multiples of 16 */
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

/* Queries, normed and rotated, and their weights, scaled; without weights each query is there twice, as it is and negative, with weights
 * 1 and -1: what they add up to is q . k. */
static void load_heads(const ni_ctx *c, const ni_op *op, const ni_attention *n, int64_t row, float *q, float *w) {
    const float *from = ni_floats(c, op, 0) + row * n->heads * n->e, *table = ni_floats(c, op, 2), *weights = ni_floats(c, op, 1);
    const int64_t e = ni_padded(n->e);
    for (int64_t h = 0; h < n->heads; h++, from += n->e) {
        ni_rotate(n, from, ni_copy_of(c, op, 0), op->f[1], table, row, q);
        ni_pad(q, n->e);
        q += e;
        if (weights) continue;
        ni_k->vec.scale_mul(q - e, -1.0f, NULL, e, q);
        q += e, w[2 * h] = 1.0f, w[2 * h + 1] = -1.0f;
    }
    if (weights) ni_k->vec.scale_mul(weights + row * n->heads, op->f[0], NULL, n->heads, w);
}

/* The largest of n scores. */
static float largest(const float *x, int64_t n) {
    float top = x[0];
    for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

/* Units a .. b - 1 of a token at `pos`. */
static void score(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, int64_t pos, int64_t a, int64_t b) {
    const int64_t e = ni_padded(n->e), row = s->row0 + pos - s->pos0, width = ni_width(c, op, 4);
    const int apart = op->t[1] < 0;
    const int64_t of_head = width / n->heads, per_chunk = NI_CHUNK / n->block;
    float *q = (float *)c->scratch, *w = q + 2 * n->heads * e, *at = w + 2 * n->heads, *memory = at + NI_CHUNK;
    float *scores = ni_floats(c, op, 4) + row * width;
    load_heads(c, op, n, row, q, w);
    for (int64_t u = a; u < b && !ni_hurry(c); u++) {
        const int64_t j = chunk_of(n, c->me, u), rows = n->ratio ? NI_CHUNK / n->ratio : NI_CHUNK;
        const int64_t seen = ni_min(rows, (n->ratio ? ni_rows_seen(n, pos) : pos + 1) - j * rows);
        const uint8_t *keys = keys_of(n, s, j), *next = u + 1 < b ? keys_of(n, s, chunk_of(n, c->me, u + 1)) : keys;
        const int blocks = (int)(seen + 15) / 16;
        if (!apart) n->kv->index(q, w, (int)n->heads, e, keys, next, blocks, scores + j * rows, memory);
        for (int64_t h = 0; apart && h < n->heads; h++) {
            n->kv->index(q + 2 * h * e, w + 2 * h, 2, e, keys, h + 1 < n->heads ? keys : next, blocks, at, memory);
            for (int64_t i = 0; i < seen; i += n->block)
                scores[h * of_head + j * per_chunk + i / n->block] = largest(at + i, ni_min(n->block, seen - i));
        }
    }
}

void ni_op_index(const ni_ctx *c, const ni_op *op) {
    const ni_attention n = ni_attention_of(op);
    int64_t total = 0, before = 0, a, b;
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        for (int64_t t = ni_unchosen(&n, s); t < s->n; t++) total += held(&n, c->me, chunks_seen(&n, s->pos0 + t));
    }
    ni_cut(total, c->me->size, c->me->rank, &a, &b);
    for (int i = 0; i < c->step->n_segments && before < b; i++) {
        const ni_segment *s = &c->step->segments[i];
        for (int64_t t = ni_unchosen(&n, s); t < s->n && before < b; t++) {
            const int64_t units = held(&n, c->me, chunks_seen(&n, s->pos0 + t));
            const int64_t first = ni_max(0, a - before), end = ni_min(units, b - before);
            if (first < end) score(c, op, &n, s, s->pos0 + t, first, end);
            before += units;
        }
    }
}
