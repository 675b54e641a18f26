/* Norms and rotates the new keys and stores keys and values, if it keeps any, in the KV memory, in its type, by the node that owns the chunk.
 * t: k, v? (absent where rows are latent, and of an indexer), rope table?.  w: k norm? (floats).  f: eps.  i: attention.def. */
#include "attention.h"

size_t ni_scratch_kv_append(const ni_ctx *c, const ni_op *op) {
    (void)c;
    return (size_t)(ni_padded(op->i[NI_ATTENTION_e]) + ni_padded(op->i[NI_ATTENTION_ev])) * sizeof(float);
}

/* kv-heads of which a node holds chunk j: first, first + step, ...; and so it is for the chunks before `end`. */
typedef struct { int64_t first, step, count, end; } heads;

static heads heads_at(const ni_attention *n, const ni_worker *me, int64_t j) {
    const int64_t nodes = me->n_nodes, per_node = n->kv_heads / nodes, turn = j / n->turn;
    if (n->kv_heads % nodes == 0) return (heads){me->node * per_node, 1, per_node, INT64_MAX / NI_CHUNK};
    const int64_t first = (me->node + nodes - turn % nodes) % nodes;
    return (heads){first, nodes, (n->kv_heads - first + nodes - 1) / nodes, (turn + 1) * n->turn};
}

void ni_op_kv_append(const ni_ctx *c, const ni_op *op) {
    ni_attention n = ni_attention_of(op);
    const float *k = ni_floats(c, op, 0), *v = ni_floats(c, op, 1), *table = ni_floats(c, op, 2), *w = ni_copy_of(c, op, 0);
    const int64_t e = ni_padded(n.e), ev = ni_padded(n.ev);
    float *key = (float *)c->scratch, *value = key + e;
    ni_pad(key, n.e), ni_pad(value, n.ev);
    int64_t units = 0, size = c->me->size;   /* units of the node so far: they go round its workers */
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        const int64_t end = s->pos0 + s->n;
        for (int64_t from = s->pos0 / 16 * 16, to; from < end; from = to) {
            const heads h = heads_at(&n, c->me, from / NI_CHUNK);
            to = ni_min(end, h.end * NI_CHUNK);
            /* A unit is 16 positions of a kv-head: they share cache lines of the key layout. */
            const int64_t count = (to - from + 15) / 16 * h.count;
            for (int64_t u = (c->me->rank + size - units % size) % size; u < count; u += size) {
                const int64_t g = h.first + u % h.count * h.step, p0 = from + u / h.count * 16, j = p0 / NI_CHUNK;
                uint8_t *keys = ni_keys(&n, s, g, j);
                for (int64_t p = ni_max(p0, s->pos0); p < ni_min(p0 + 16, to); p++) {
                    int64_t row = s->row0 + p - s->pos0;
                    ni_rotate(&n, k + (row * n.kv_heads + g) * n.e, w, op->f[0], table, row, key);
                    if (n.latent) {
                        n.kv->store_value(key, e, keys, (int)(p % NI_CHUNK));
                        continue;
                    }
                    n.kv->store_key(key, e, keys, (int)(p % NI_CHUNK));
                    if (!v) continue;
                    const float *from = v + (row * n.kv_heads + g) * n.ev;
                    if (ev != n.ev) from = memcpy(value, from, (size_t)n.ev * sizeof *value);
                    n.kv->store_value(from, ev, ni_values(&n, s, g, j), (int)(p % NI_CHUNK));
                }
            }
            units += count;
        }
    }
}
