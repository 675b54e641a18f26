/* Causal attention over the KV memory (arXiv:1706.03762, grouped as in arXiv:2305.13245).
 * t: q, rope table?, kv, parts, out [T][H * ev], ids? [T][G * chosen], compressed rows?.  w: q norm?, sinks? [H] (floats).  f: eps, scale, score cap (0:
 * none), temperature.
 * i: attention.def.
 *
 * Every query folds its chunks in an order that depends on its position alone (attention.h), and so do its bits.  units.h says which
 * units of this work are this worker's: tiles of queries with all that they see, whose rows go to `out`, and runs of decoding
 * sequences, which become parts.
 *
 * Queries that attend to chosen positions (arXiv:2512.02556), to chosen blocks, or to a window and compressed rows, cost what their list
 * is long.  Their units, tiles of the heads of a
 * token and kv-head with the whole list or, of a decoding sequence, a piece of it, are dealt over the workers of the node that holds the
 * kv-head, or, where positions go round the nodes, over the team, whoever holds them. */
#include "units.h"

enum { AHEAD = 16 };     /* entries of a list that are asked for before they are needed */

/* Sums over chunks, per query: maximum of the scores, sum of the probabilities, weighted values (padded, as kv_layout.h has it). */
typedef struct { float *m, *l, *acc; } sums;

typedef struct {
    int64_t *before;
    float *q, *score;
    sums chunk, run, all;   /* of the last chunk; of the run so far; of the runs before it */
} tile_memory;

static size_t floats_before(const ni_ctx *c) { return (2 * ((size_t)c->max_tokens + 1) + 15) / 16 * 16; }

/* Of the kernel's own memory. */
static size_t score_floats(int64_t latent, size_t e) { return latent ? NI_LATENT_SCRATCH(e) : NI_TILE * (NI_CHUNK + e); }

size_t ni_scratch_attend(const ni_ctx *c, const ni_op *op) {
    const size_t e = (size_t)ni_padded(op->i[NI_ATTENTION_e]), ev = (size_t)ni_padded(op->i[NI_ATTENTION_ev]);
    return (floats_before(c) + NI_TILE * (e + 3 * (ev + 2)) + score_floats(op->i[NI_ATTENTION_latent], e)) * sizeof(float);
}

static tile_memory carve(const ni_ctx *c, const ni_attention *n) {
    tile_memory t = {.before = (int64_t *)c->scratch};
    float *at = (float *)c->scratch + floats_before(c);
    const size_t e = (size_t)ni_padded(n->e);
    t.q = at, at += NI_TILE * e;
    t.score = at, at += score_floats(n->latent, e);
    for (int i = 0; i < 3; i++) {
        sums *s = (sums *[]){&t.chunk, &t.run, &t.all}[i];
        s->acc = at, at += NI_TILE * ni_padded(n->ev);
        s->m = at, s->l = at + NI_TILE, at += 2 * NI_TILE;
    }
    return t;
}

/* The unit's queries, normed, rotated and scaled. */
static void load_queries(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, const ni_unit *u, float *q) {
    const float *from = ni_floats(c, op, 0), *table = ni_floats(c, op, 1), *w = ni_copy_of(c, op, 0);
    const int64_t padded = ni_padded(n->e);
    for (int64_t j = 0; j < u->count; j++, q += padded) {
        int64_t row = s->row0 + (u->first + j) / n->group, head = u->g * n->group + (u->first + j) % n->group;
        float scale = op->f[1];
        if (n->floor) scale *= (float)(1 + op->f[3] * log((double)((s->pos0 + row - s->row0 + n->ahead) / n->floor + 1)));
        ni_rotate(n, from + (row * n->heads + head) * n->e, w, op->f[0], table, row, q);
        ni_k->vec.scale_mul(q, scale, NULL, n->e, q);
        ni_pad(q, n->e);
    }
}

/* Folds query i of `x` into `to`, or, as the first, starts with it. */
static void fold(const ni_attention *n, const sums *to, const sums *x, int64_t i, int first) {
    float *acc = to->acc + i * ni_padded(n->ev), *part = x->acc + i * ni_padded(n->ev);
    if (!first) {
        ni_k->vec.merge(&to->m[i], &to->l[i], acc, x->m[i], x->l[i], part, n->ev);
        return;
    }
    to->m[i] = x->m[i], to->l[i] = x->l[i];
    memcpy(acc, part, (size_t)n->ev * sizeof *acc);
}

/* Leaves in t->all what the queries see of the unit's chunks. */
static void attend(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, const ni_unit *u, const tile_memory *t) {
    const int64_t e = ni_padded(n->e), ev = ni_padded(n->ev);
    int64_t from_chunk[NI_TILE], last_chunk[NI_TILE];
    int lo[NI_TILE], hi[NI_TILE], shift[NI_TILE];
    for (int64_t i = 0; i < u->count; i++) {
        const int64_t pos = s->pos0 + (u->first + i) / n->group;
        from_chunk[i] = ni_max(u->j0, ni_first_seen(n, pos) / NI_CHUNK), last_chunk[i] = ni_min(u->j1 - 1, pos / NI_CHUNK);
        shift[i] = ni_query_runs(n, pos).shift;
    }
    for (int64_t j = u->j0; j < u->j1 && !ni_hurry(c); j++) {
        int64_t from = u->count, to = 0;
        for (int64_t i = 0; i < u->count; i++) {
            const int64_t pos = s->pos0 + (u->first + i) / n->group;
            lo[i] = (int)ni_max(0, ni_first_seen(n, pos) - j * NI_CHUNK);
            hi[i] = (int)ni_min(NI_CHUNK, pos + 1 - j * NI_CHUNK);
            if (lo[i] < hi[i]) from = ni_min(from, i), to = i + 1;     /* those in between see it too: positions ascend */
        }
        if (from >= to) continue;
        const uint8_t *keys = ni_keys(n, s, u->g, j), *next = ni_keys(n, s, u->g, ni_min(j + 1, u->j1 - 1));
        const float *q = t->q + from * e;
        float *m = t->chunk.m + from, *l = t->chunk.l + from, *acc = t->chunk.acc + from * ev;
        if (n->latent)
            n->kv->attend_latent(q, (int)(to - from), e, ev, keys, next, lo + from, hi + from, op->f[2], m, l, acc, t->score);
        else
            n->kv->attend(q, (int)(to - from), e, ev, keys, ni_values(n, s, u->g, j), next, lo + from, hi + from, op->f[2], m, l,
                          acc, t->score);
        for (int64_t i = from; i < to; i++) {
            const int64_t run = j >> shift[i], first_run = from_chunk[i] >> shift[i];
            const int begins = j == from_chunk[i] || j == run << shift[i], ends = j == last_chunk[i] || j + 1 == (run + 1) << shift[i];
            if (!begins || !ends) fold(n, &t->run, &t->chunk, i, begins);
            if (ends) fold(n, &t->all, begins ? &t->chunk : &t->run, i, run == first_run);
        }
    }
}

static void put_rows(const ni_attention *n, const ni_segment *s, const ni_unit *u, const sums *all, const float *sinks, float *out) {
    for (int64_t i = 0; i < u->count; i++) {
        int64_t row = s->row0 + (u->first + i) / n->group, head = u->g * n->group + (u->first + i) % n->group;
        ni_finish(n, all->m[i], all->l[i], all->acc + i * ni_padded(n->ev), sinks ? sinks + head : NULL, out + (row * n->heads + head) * n->ev);
    }
}

static void put_parts(const ni_attention *n, const ni_segment *s, const ni_unit *u, const sums *all, int64_t slot, float *parts) {
    for (int64_t i = 0; i < u->count; i++) {
        float *part = ni_part_of(n, parts, slot, s->pos0, u->g * n->group + u->first + i, u->part);
        part[0] = all->m[i], part[1] = all->l[i];
        memcpy(part + 16, all->acc + i * ni_padded(n->ev), (size_t)n->ev * sizeof *part);
    }
}

static void put(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, const ni_unit *u, const sums *all) {
    if (u->part < 0) put_rows(n, s, u, all, ni_copy_of(c, op, 1), ni_floats(c, op, 4));
    else put_parts(n, s, u, all, c->slots[u->segment], ni_floats(c, op, 3));
}

/* What the unit's queries, of the token at `pos`, have of a block: its part of t->chunk. */
static void attend_block(const ni_op *op, const ni_attention *n, const ni_segment *s, const ni_unit *u, int64_t pos, int64_t block,
                         int64_t next, const tile_memory *t) {
    const int64_t from = block * n->block, j = from / NI_CHUNK;
    int lo[NI_TILE], hi[NI_TILE];
    for (int64_t i = 0; i < u->count; i++) {
        lo[i] = (int)(from % NI_CHUNK);
        hi[i] = (int)ni_min(lo[i] + n->block, pos + 1 - j * NI_CHUNK);
    }
    n->kv->attend(t->q, (int)u->count, ni_padded(n->e), ni_padded(n->ev), ni_keys(n, s, u->g, j), ni_values(n, s, u->g, j),
                  ni_keys(n, s, u->g, next * n->block / NI_CHUNK), lo, hi, op->f[2], t->chunk.m, t->chunk.l, t->chunk.acc, t->score);
}

/* Entry i of the list of a query at `pos`: the chunk that holds it, and which of its rows it is.  Beside compressed rows the window comes
 * first. */
static const uint8_t *entry(const ni_attention *n, const ni_segment *s, const int32_t *ids, int64_t pos, int64_t i, int32_t *at) {
    const int64_t from = ni_first_seen(n, pos), rows = n->ratio ? i - (pos + 1 - from) : -1;
    if (rows >= 0) {
        int64_t row;
        const uint8_t *chunk = ni_row_at(n, s, ids ? ids[rows] : rows, &row);
        *at = (int32_t)row;
        return chunk;
    }
    const int64_t listed = n->chosen * n->block;
    const int64_t p = n->ratio ? from + i : !n->pools ? ids[i] : i < listed ? ids[i / n->block] * n->block + i % n->block
                                                                            : (pos + 1) / n->block * n->block + i - listed;
    *at = (int32_t)(p % NI_CHUNK);
    return ni_keys(n, s, 0, p / NI_CHUNK);
}

/* Leaves in t->all what the unit's queries, of one token, have of pieces first .. end - 1 of its list. */
static void attend_pieces(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, const ni_unit *u,
                          int64_t first, int64_t end, const tile_memory *t) {
    const uint8_t *of[NI_CHUNK + AHEAD];
    int32_t at[NI_CHUNK + AHEAD];
    const int64_t token = u->first / n->group, pos = s->pos0 + token, piece = ni_list_piece(n, pos), entries = ni_entries(n, pos);
    const int32_t *ids = ni_is_chosen(n, pos) ? ni_ids(c, op, 5) + ((s->row0 + token) * n->kv_heads + u->g) * n->chosen : NULL;
    for (int64_t k = first; k < end && !ni_hurry(c); k++) {
        const int64_t from = k * piece, count = ni_min(piece, entries - from), ahead = ni_min(count + AHEAD, entries - from);
        if (n->latent) {
            for (int64_t i = 0; i < ahead; i++) of[i] = entry(n, s, ids, pos, from + i, &at[i]);
            n->kv->attend_listed(t->q, (int)u->count, ni_padded(n->e), ni_padded(n->ev), of, at, (int)count, (int)ahead, op->f[2],
                                 t->chunk.m, t->chunk.l, t->chunk.acc, t->score);
        } else attend_block(op, n, s, u, pos, ids[k], ids[ni_min(k + 1, end - 1)], t);
        for (int64_t i = 0; i < u->count; i++) fold(n, &t->all, &t->chunk, i, k == first);
    }
}

/* The worker's units of queries that attend to chosen positions: those that begin in its stretch of all of them in a line. */
static void attend_listed(const ni_ctx *c, const ni_op *op, const ni_attention *n, const tile_memory *t) {
    /* Where kv-heads divide evenly each is one node's. */
    const int own = n->kv_heads % c->me->n_nodes == 0;
    const int64_t heads = own ? n->kv_heads / c->me->n_nodes : n->kv_heads, g0 = own ? heads * c->me->node : 0;
    const int64_t tiles = (n->group + NI_TILE - 1) / NI_TILE;
    int64_t total = 0, before = 0, all = 0, a, b;
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        for (int64_t row = ni_unlisted(n, s); row < s->n; row++) total += heads * tiles * ni_parts_of(n, s->pos0 + row);
    }
    ni_cut(total, own ? c->me->size : c->me->n_workers, own ? c->me->rank : c->me->worker, &a, &b);
    for (int i = 0; i < c->step->n_segments && before < b; i++) {
        const ni_segment *s = &c->step->segments[i];
        for (int64_t row = ni_unlisted(n, s); row < s->n && before < b; row++, before += all) {
            /* Of a decoding sequence a piece's tiles stand side by side: they read the same memory. */
            const int64_t pieces = ni_parts_of(n, s->pos0 + row), parts = c->slots[i] >= 0 ? pieces : 1, cost = pieces / parts;
            all = heads * tiles * pieces;
            const int64_t end = ni_min(all / cost, (b - before + cost - 1) / cost);
            int64_t loaded = -1;
            for (int64_t unit = ni_max(0, (a - before + cost - 1) / cost); unit < end && !ni_hurry(c); unit++) {
                const int64_t g = unit / (tiles * parts), part = unit / tiles % parts, first = unit % tiles * NI_TILE;
                const ni_unit u = {.segment = i, .g = g0 + g, .first = row * n->group + first, .count = ni_min(NI_TILE, n->group - first),
                                   .part = c->slots[i] >= 0 ? part : -1};
                if (loaded != g * tiles + unit % tiles) load_queries(c, op, n, s, &u, t->q);
                loaded = g * tiles + unit % tiles;
                attend_pieces(c, op, n, s, &u, part, part + cost, t);
                put(c, op, n, s, &u, &t->all);
            }
        }
    }
}

void ni_op_attend(const ni_ctx *c, const ni_op *op) {
    const ni_attention n = ni_attention_of(op);
    const tile_memory t = carve(c, &n);
    ni_walk walk;
    ni_unit u, loaded = {.segment = -1};
    ni_walk_start(&walk, &n, c->step, c->places, c->slots, c->me, t.before);
    if (n.chosen || n.ratio) attend_listed(c, op, &n, &t);
    while (!ni_hurry(c) && ni_walk_next(&walk, &u)) {
        const ni_segment *s = &c->step->segments[u.segment];
        if (u.segment != loaded.segment || u.g != loaded.g || u.first != loaded.first) load_queries(c, op, &n, s, &u, t.q);
        loaded = u;
        attend(c, op, &n, s, &u, &t);
        put(c, op, &n, s, &u, &t.all);
    }
}
