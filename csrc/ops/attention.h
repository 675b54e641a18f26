/* What kv_append, attend and combine share: the layer's shape, its place in the KV memory, and parts of a sum over chunks.
 *
 * i: 0 heads H, 1 kv-heads G, 2 key width E, 3 value width, 4 n_rot, 5 neox (1) or norm (0) pairs, 6 window (0: none),
 *    7 first byte of the layer in the KV memory / NI_KV_UNIT, 8 chunks reserved per head, 9 slots for parts,
 *    10 type of the KV memory.
 */
#ifndef NI_ATTENTION_H
#define NI_ATTENTION_H
#include <math.h>
#include "ops.h"

#define NI_KV_UNIT 4096     /* layers start at multiples of it */

typedef struct {
    int64_t heads, kv_heads, e, ev, n_rot, neox, window, n_chunks, slots, group;
    int64_t offset;
    ni_kv_type type;
    const struct ni_kv_kernels *kv;     /* those of the type */
} ni_attention;

static inline ni_attention ni_attention_of(const ni_op *op) {
    const int32_t *i = op->i;
    return (ni_attention){i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[8], i[9], i[0] / i[1], (int64_t)i[7] * NI_KV_UNIT,
                          (ni_kv_type)i[10], &ni_k->vec.kv[i[10]]};
}

static inline uint8_t *ni_keys(const ni_attention *n, const ni_segment *s, int64_t g, int64_t j) {
    return s->base + n->offset + (size_t)(g * n->n_chunks + j) * ni_kv_chunk_bytes(n->type, n->e, n->ev);
}

static inline uint8_t *ni_values(const ni_attention *n, const ni_segment *s, int64_t g, int64_t j) {
    return ni_keys(n, s, g, j) + NI_CHUNK * ni_kv_bytes(n->type, n->e);
}

/* First position that a query at `pos` sees. */
static inline int64_t ni_first_seen(const ni_attention *n, int64_t pos) {
    return n->window && pos >= n->window ? pos - n->window + 1 : 0;
}

/* A decoding sequence's work is spread over workers chunk by chunk: each chunk's part goes to a slot. */
static inline int ni_in_parts(const ni_attention *n, const ni_segment *s, int64_t slot) { return s->n == 1 && slot < n->slots; }

/* Part of chunk j for one head: m, l, acc[ev]. */
static inline float *ni_part_of(const ni_attention *n, float *parts, int64_t slot, int64_t head, int64_t j) {
    return parts + ((slot * n->heads + head) * n->n_chunks + j) * (n->ev + 16);
}

/* Norms (w may be NULL) and rotates one head of e values into out. */
static inline void ni_rotate(const ni_ctx *c, const ni_attention *n, const float *x, const float *w, float eps, const float *table,
                             int64_t row, float *out) {
    if (w) ni_k->vec.scale_mul(x, 1.0f / sqrtf(ni_k->vec.sum_squares(x, n->e) / (float)n->e + eps), w, n->e, out);
    else memcpy(out, x, (size_t)n->e * sizeof *out);
    if (!table) return;
    const float *cosine = table + row * n->n_rot;
    (void)c;
    (n->neox ? ni_k->vec.rope_neox : ni_k->vec.rope_norm)(out, cosine, cosine + n->n_rot / 2, n->n_rot);
}
#endif
