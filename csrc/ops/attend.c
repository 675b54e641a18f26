/* Causal attention over the KV memory (arXiv:1706.03762, grouped as in arXiv:2305.13245).
 * t: q, rope table?, kv, parts, out [T][H * ev].  w: q norm? (floats).  f: eps, scale, score cap (0: none).  i: attention.h.
 *
 * Every query sums its chunks in order, so that the bits depend on the position alone.  A decoding sequence leaves one part per
 * chunk, computed by the node that holds the chunk; combine.c folds them.  Sequences with more tokens are cut into tiles of
 * queries, each folding its own chunks here. */
#include "attention.h"

enum { TILE = 32 };     /* queries per tile: enough to make K and V conversions cheap, few enough for L2 */

typedef struct { float *q, *score, *acc, *part, *m, *l, *part_m, *part_l; } tile_memory;

static tile_memory carve(float *at, const ni_attention *n) {
    tile_memory t;
    t.q = at, at += TILE * n->e;
    t.score = at, at += TILE * (NI_CHUNK + n->e);
    t.acc = at, at += TILE * n->ev;
    t.part = at, at += TILE * n->ev;
    t.m = at, t.l = at + TILE, t.part_m = at + 2 * TILE, t.part_l = at + 3 * TILE;
    return t;
}

size_t ni_scratch_attend(const ni_ctx *c, const ni_op *op) {
    (void)c;
    return (size_t)TILE * (size_t)(2 * op->i[2] + NI_CHUNK + 2 * op->i[3] + 4) * sizeof(float);
}

/* Queries first .. first + count of (token, head in group), tokens outermost, normed, rotated and scaled. */
static void load_queries(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, int64_t g, int64_t first,
                         int64_t count, float *q) {
    const float *from = ni_floats(c, op, 0), *table = ni_floats(c, op, 1), *w = ni_copy_of(c, op, 0);
    for (int64_t j = 0; j < count; j++) {
        int64_t row = s->row0 + (first + j) / n->group, head = g * n->group + (first + j) % n->group;
        ni_rotate(c, n, from + (row * n->heads + head) * n->e, w, op->f[0], table, row, q + j * n->e);
        ni_k->vec.scale_mul(q + j * n->e, op->f[1], NULL, n->e, q + j * n->e);
    }
}

static void attend_tile(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, int64_t g, int64_t first,
                        int64_t count, tile_memory t) {
    load_queries(c, op, n, s, g, first, count, t.q);
    int64_t last_pos = s->pos0 + (first + count - 1) / n->group, first_pos = s->pos0 + first / n->group;
    for (int64_t j = ni_first_seen(n, first_pos) / NI_CHUNK; j <= last_pos / NI_CHUNK && !ni_hurry(c); j++) {
        int lo[TILE], hi[TILE];
        int64_t from = count, to = 0;
        for (int64_t i = 0; i < count; i++) {
            int64_t pos = s->pos0 + (first + i) / n->group;
            lo[i] = (int)ni_max(0, ni_first_seen(n, pos) - j * NI_CHUNK);
            hi[i] = (int)ni_min(NI_CHUNK, pos + 1 - j * NI_CHUNK);
            if (lo[i] < hi[i]) from = ni_min(from, i), to = i + 1;     /* a run: positions ascend */
        }
        if (from >= to) continue;
        n->kv->attend(t.q + from * n->e, (int)(to - from), n->e, n->ev, ni_keys(n, s, g, j), ni_values(n, s, g, j), lo + from,
                      hi + from, op->f[2], t.part_m + from, t.part_l + from, t.part + from * n->ev, t.score);
        for (int64_t i = from; i < to; i++) {
            int64_t pos = s->pos0 + (first + i) / n->group;
            float *acc = t.acc + i * n->ev, *part = t.part + i * n->ev;
            if (j == ni_first_seen(n, pos) / NI_CHUNK) {
                t.m[i] = t.part_m[i], t.l[i] = t.part_l[i];
                memcpy(acc, part, (size_t)n->ev * sizeof *acc);
            } else {
                ni_k->vec.merge(&t.m[i], &t.l[i], acc, t.part_m[i], t.part_l[i], part, n->ev);
            }
        }
    }
    float *out = ni_floats(c, op, 4);
    for (int64_t i = 0; i < count; i++) {
        int64_t row = s->row0 + (first + i) / n->group, head = g * n->group + (first + i) % n->group;
        ni_k->vec.scale_mul(t.acc + i * n->ev, 1.0f / t.l[i], NULL, n->ev, out + (row * n->heads + head) * n->ev);
    }
}

/* Chunks of decoding sequences that this worker's node holds, times the tiles of a group's heads (they share keys and values): each
 * is a unit of work.  Worker by worker they are dealt in runs, so that each reads its chunks in the order in which they lie. */
typedef struct { int64_t unit, first, end; } share;

static int64_t tiles_of(const ni_attention *n) { return (n->group + TILE - 1) / TILE; }

static int64_t units_of(const ni_ctx *c, const ni_attention *n, const ni_segment *s) {
    int64_t j0 = ni_first_seen(n, s->pos0) / NI_CHUNK, j1 = s->pos0 / NI_CHUNK + 1, count = 0;
    for (int64_t g = 0; g < n->kv_heads; g++)
        for (int64_t j = j0; j < j1; j++) count += ni_kv_node(g, j, n->kv_heads, c->me->n_nodes) == c->me->node;
    return count * tiles_of(n);
}

static void attend_parts(const ni_ctx *c, const ni_op *op, const ni_attention *n, const ni_segment *s, int64_t slot, share *mine,
                         tile_memory t) {
    float *parts = ni_floats(c, op, 3);
    int64_t pos = s->pos0, j0 = ni_first_seen(n, pos) / NI_CHUNK, loaded = -1;
    for (int64_t g = 0; g < n->kv_heads; g++)
        for (int64_t h0 = 0; h0 < n->group; h0 += TILE)
            for (int64_t j = j0; j <= pos / NI_CHUNK; j++) {
                if (ni_kv_node(g, j, n->kv_heads, c->me->n_nodes) != c->me->node) continue;
                int64_t unit = mine->unit++;
                if (unit < mine->first || unit >= mine->end) continue;
                int64_t head = g * n->group + h0, count = ni_min(TILE, n->group - h0);
                int lo[TILE], hi[TILE];
                for (int64_t i = 0; i < count; i++) {
                    lo[i] = (int)ni_max(0, ni_first_seen(n, pos) - j * NI_CHUNK);
                    hi[i] = (int)ni_min(NI_CHUNK, pos + 1 - j * NI_CHUNK);
                }
                if (loaded != head) load_queries(c, op, n, s, g, h0, count, t.q), loaded = head;
                n->kv->attend(t.q, (int)count, n->e, n->ev, ni_keys(n, s, g, j), ni_values(n, s, g, j), lo, hi, op->f[2], t.m, t.l,
                              t.acc, t.score);
                for (int64_t i = 0; i < count; i++) {
                    float *part = ni_part_of(n, parts, slot, head + i, j);
                    part[0] = t.m[i], part[1] = t.l[i];
                    memcpy(part + 16, t.acc + i * n->ev, (size_t)n->ev * sizeof *part);
                }
            }
}

static share share_of(const ni_ctx *c, const ni_attention *n) {
    int64_t slot = 0, units = 0;
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        if (ni_in_parts(n, s, slot)) units += units_of(c, n, s), slot++;
    }
    share mine = {0};
    ni_cut(units, c->me->size, c->me->rank, &mine.first, &mine.end);
    return mine;
}

void ni_op_attend(const ni_ctx *c, const ni_op *op) {
    ni_attention n = ni_attention_of(op);
    tile_memory t = carve((float *)c->scratch, &n);
    share mine = share_of(c, &n);
    int64_t slot = 0, unit = 0;
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        if (ni_in_parts(&n, s, slot)) {
            attend_parts(c, op, &n, s, slot++, &mine, t);
            continue;
        }
        for (int64_t g = 0; g < n.kv_heads; g++) {
            /* A tile sees all chunks of its head: it belongs to the node where most of them are, or to any where they go round. */
            for (int64_t first = 0; first < s->n * n.group; first += TILE) {
                if (ni_kv_node(g, first / TILE, n.kv_heads, c->me->n_nodes) != c->me->node) continue;
                if (unit++ % c->me->size != c->me->rank) continue;
                if (ni_hurry(c)) return;
                attend_tile(c, op, &n, s, g, first, ni_min(TILE, s->n * n.group - first), t);
            }
        }
    }
}
