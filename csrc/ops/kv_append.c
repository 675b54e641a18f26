/* Norms and rotates the new keys and stores keys and values in the KV memory, in its type, by the node that owns the chunk.
 * t: k, v, rope table?.  w: k norm? (floats).  f: eps.  i: attention.def. */
#include "attention.h"

size_t ni_scratch_kv_append(const ni_ctx *c, const ni_op *op) {
    (void)c;
    return (size_t)op->i[NI_ATTENTION_e] * sizeof(float);
}

void ni_op_kv_append(const ni_ctx *c, const ni_op *op) {
    ni_attention n = ni_attention_of(op);
    const float *k = ni_floats(c, op, 0), *v = ni_floats(c, op, 1), *table = ni_floats(c, op, 2), *w = ni_copy_of(c, op, 0);
    float *key = (float *)c->scratch;
    int64_t unit = 0;
    for (int i = 0; i < c->step->n_segments; i++) {
        const ni_segment *s = &c->step->segments[i];
        int64_t end = s->pos0 + s->n;
        for (int64_t g = 0; g < n.kv_heads; g++)
            /* A unit is 16 positions: they share cache lines of the key layout. */
            for (int64_t p0 = s->pos0 / 16 * 16; p0 < end; p0 += 16) {
                int64_t j = p0 / NI_CHUNK;
                if (ni_kv_node(g, j, n.kv_heads, n.turn, c->me->n_nodes) != c->me->node || unit++ % c->me->size != c->me->rank) continue;
                uint8_t *keys = ni_keys(&n, s, g, j), *values = ni_values(&n, s, g, j);
                for (int64_t p = ni_max(p0, s->pos0); p < ni_min(p0 + 16, end); p++) {
                    int64_t row = s->row0 + p - s->pos0;
                    ni_rotate(c, &n, k + (row * n.kv_heads + g) * n.e, w, op->f[0], table, row, key);
                    n.kv->store_key(key, n.e, keys, (int)(p % NI_CHUNK));
                    n.kv->store_value(v + (row * n.kv_heads + g) * n.ev, n.ev, values, (int)(p % NI_CHUNK));
                }
            }
    }
}
