/* What kv_append, attend, combine, index and compress share: the layer's shape (attention.def), its place in the KV memory, and parts of a sum over chunks.
 *
 * A query folds its chunks in runs (ni_runs_of): first each run's chunks, then the runs, both in order.  A tile of queries does all of
 * it in one unit of work; a decoding sequence may instead leave a part per run, from as many workers as there are runs, which combine.c
 * folds.  The bits are the same.  A query for which positions are chosen folds pieces of their list in its order, in either way.
 */
#ifndef NI_ATTENTION_H
#define NI_ATTENTION_H
#include <math.h>
#include "ops.h"

#define NI_KV_UNIT NI_CHUNK     /* chunks of all layers and types are multiples of it */

enum {
#define NI_ATTENTION_INT(name) NI_ATTENTION_##name,
#include "attention.def"
#undef NI_ATTENTION_INT
    NI_N_ATTENTION_INTS
};
_Static_assert((int)NI_N_ATTENTION_INTS <= (int)NI_OP_INTS, "an op has no room for attention's integers");

typedef struct {
#define NI_ATTENTION_INT(name) int64_t name;
#include "attention.def"
#undef NI_ATTENTION_INT
    int64_t group;                      /* heads that share a kv-head */
    const struct ni_kv_kernels *kv;     /* those of the type */
} ni_attention;

static inline ni_attention ni_attention_of(const ni_op *op) {
    return (ni_attention){
#define NI_ATTENTION_INT(name) .name = op->i[NI_ATTENTION_##name],
#include "attention.def"
#undef NI_ATTENTION_INT
        .group = op->i[NI_ATTENTION_heads] / op->i[NI_ATTENTION_kv_heads], .kv = &ni_k->vec.kv[op->i[NI_ATTENTION_kv_type]]};
}

static inline uint8_t *ni_keys(const ni_attention *n, const ni_segment *s, int64_t g, int64_t j) {
    return s->tables[n->table].at[j] + (n->offset + g * n->stride) * NI_KV_UNIT;
}

static inline uint8_t *ni_values(const ni_attention *n, const ni_segment *s, int64_t g, int64_t j) {
    return ni_keys(n, s, g, j) + NI_CHUNK * ni_kv_bytes((ni_kv_type)n->kv_type, n->e);
}

/* Ends one head of `width` values with the zeros that pad it. */
static inline void ni_pad(float *x, int64_t width) { memset(x + width, 0, (size_t)(ni_padded(width) - width) * sizeof *x); }

/* First position that a query at `pos` sees. */
static inline int64_t ni_first_seen(const ni_attention *n, int64_t pos) {
    if (!n->window || pos < n->window) return 0;
    return n->pieces ? pos / n->window * n->window : pos - n->window + 1;
}

static inline ni_runs ni_query_runs(const ni_attention *n, int64_t pos) { return ni_runs_of(ni_first_seen(n, pos), pos, n->most_runs); }

/* Compressed rows that a query at `pos` sees: those whose positions are all there. */
static inline int64_t ni_rows_seen(const ni_attention *n, int64_t pos) { return (pos + 1) / n->ratio; }

/* The chunk that holds compressed row r, and which of its rows it is. */
static inline uint8_t *ni_row_at(const ni_attention *n, const ni_segment *s, int64_t r, int64_t *at) {
    const int64_t per_chunk = NI_CHUNK / n->ratio;
    *at = n->rows_first + r % per_chunk;
    return s->tables[n->rows_table].at[r / per_chunk] + n->rows_offset * NI_KV_UNIT;
}

/* First query for which an indexer chooses, if there is one: it sees more blocks, or compressed rows or pools that are complete, than are
 * chosen. */
static inline int64_t ni_first_chosen(const ni_attention *n) {
    if (n->ratio || n->pools) return (n->chosen + 1) * (n->ratio ? n->ratio : n->block) - 1;
    return n->chosen * n->block;
}

static inline int ni_is_chosen(const ni_attention *n, int64_t pos) { return n->chosen && pos >= ni_first_chosen(n); }

/* Queries of a segment, its first ones, for which none does. */
static inline int64_t ni_unchosen(const ni_attention *n, const ni_segment *s) {
    return n->chosen ? ni_max(0, ni_min(s->n, ni_first_chosen(n) - s->pos0)) : s->n;
}

/* Whether a query at `pos` attends to a list: to what was chosen, or to its window and compressed rows behind it. */
static inline int ni_is_listed(const ni_attention *n, int64_t pos) { return n->ratio || ni_is_chosen(n, pos); }

/* Queries of a segment, its first ones, that attend to all that they see, and to no list. */
static inline int64_t ni_unlisted(const ni_attention *n, const ni_segment *s) { return n->ratio ? 0 : ni_unchosen(n, s); }

/* Entries of the list. */
static inline int64_t ni_entries(const ni_attention *n, int64_t pos) {
    if (n->pools) return n->chosen * n->block + (pos + 1) % n->block;
    if (!n->ratio) return n->chosen;
    return pos + 1 - ni_first_seen(n, pos) + (ni_is_chosen(n, pos) ? n->chosen : ni_rows_seen(n, pos));
}

/* Of a list, entries that are summed together: with compressed rows as few as make at most `most_runs` pieces. */
static inline int64_t ni_list_piece(const ni_attention *n, int64_t pos) {
    if (!n->ratio) return n->piece;
    int64_t piece = 16;
    while (piece < NI_CHUNK && ni_entries(n, pos) > piece * n->most_runs) piece *= 2;
    return piece;
}

/* Parts that a query at `pos` folds. */
static inline int64_t ni_parts_of(const ni_attention *n, int64_t pos) {
    if (ni_is_listed(n, pos)) return (ni_entries(n, pos) + ni_list_piece(n, pos) - 1) / ni_list_piece(n, pos);
    const ni_runs runs = ni_query_runs(n, pos);
    return runs.end - runs.first;
}

/* Parts of one head that a sequence decoding at `pos` has room for: enough for any window and list, so that all layers place parts
 * alike. */
static inline int64_t ni_parts_at(const ni_attention *n, int64_t pos) {
    return ni_max(n->least_parts, ni_min(pos / NI_CHUNK + 1, n->most_runs));
}

/* Part k (0: its first run) of one head of a sequence whose parts start at `slot`: m, l, 14 unused, acc[ev]. */
static inline float *ni_part_of(const ni_attention *n, float *parts, int64_t slot, int64_t pos, int64_t head, int64_t k) {
    return parts + (slot * n->heads + head * ni_parts_at(n, pos) + k) * (n->ev + 16);
}

/* acc / l, the values of one head [ev]; its sink (NULL: it has none) is one more score, of no value. */
static inline void ni_finish(const ni_attention *n, float m, float l, const float *acc, const float *sink, float *out) {
    float factor = 1.0f / l;
    if (sink) {
        const float top = m > *sink ? m : *sink;
        float e[2] = {m - top, *sink - top};
        ni_k->vec.exp(e, 0.0f, 2, e);
        factor = e[0] / (l * e[0] + e[1]);
    }
    ni_k->vec.scale_mul(acc, factor, NULL, n->ev, out);
}

/* Norms (w may be NULL) and rotates (table may be NULL) one head of e values into out, in this order or the other. */
static inline void ni_rotate(const ni_attention *n, const float *x, const float *w, float eps, const float *table, int64_t row, float *out) {
    memcpy(out, x, (size_t)n->e * sizeof *out);
    const float *cosine = table ? table + row * n->n_rot : NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == !n->norm_last) {
            if (table) (n->neox ? ni_k->vec.rope_neox : ni_k->vec.rope_norm)(out + n->rot, cosine, cosine + n->n_rot / 2, n->n_rot);
        } else if (w) ni_k->vec.scale_mul(out, 1.0f / sqrtf(ni_k->vec.sum_squares(out, n->e) / (float)n->e + eps), w, n->e, out);
    }
}
#endif
