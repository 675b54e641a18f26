/* y_j row (t, s) = W_j[id(t, s)] h row, plus that expert's bias: every row meets one of the matrices.
 * t: h, ids? [T][used] (without: slot s meets matrix s), y0, y1?, y2? [T][used][N].  w: W0, W1?, W2? of experts, and their biases b0?, b1?,
 * b2? (floats [E][N]).  h: a row per token, which all of its slots read, or one per slot.
 *
 * Of every expert a node's workers multiply the same rows, those that lie on it, whatever the router says.  The rows of all experts that
 * somebody chose are cut among them as one long matrix, by what they cost (cut.h): an expert's bytes are read once and serve all its tokens. */
#include "panels.h"
#include "seam.h"

enum {
    BLOCK_BYTES = 256 << 10,    /* as in matmul.c */
    BEGINNING = 5 << 10,        /* what is asked for of the next run of row groups, as far as dots ask ahead */
    LAST = 2                    /* row groups before its turn: sooner, and it would not be near any more */
};

typedef struct {
    float tail[NI_DOTS][NI_ROWS];
    int32_t *first, *row;       /* rows of y that meet expert e: row[first[e] .. first[e + 1]) */
    uint8_t *near;              /* activations of one block of tokens, side by side */
    ni_panel_memory *panels;
    const int32_t *gathered;    /* the rows that are there */
    const uint8_t *next;        /* the row groups whose turn is after this one's, if they are known */
} memory;

static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

static size_t near_bytes(size_t k) { return NI_PANEL_TOKENS * (5 * k + 3 * (k / 8)) + 5 * 64; }

static int64_t used_of(const ni_ctx *c, const ni_op *op) { return c->tensors[op->t[2]].per_token; }

size_t ni_scratch_matmul_grouped(const ni_ctx *c, const ni_op *op) {
    const size_t rows = (size_t)(c->max_tokens * used_of(c, op)), k = (size_t)ni_width(c, op, 0);
    return aligned((size_t)(c->weights[op->w[0]].experts + 1) * sizeof(int32_t)) + aligned(rows * sizeof(int32_t))
           + near_bytes(k) + ni_panel_bytes((int64_t)rows);
}

static memory carve(const ni_ctx *c, const ni_op *op) {
    const size_t rows = (size_t)(c->max_tokens * used_of(c, op)), k = (size_t)ni_width(c, op, 0);
    uint8_t *at = c->scratch;
    memory m = {.first = (int32_t *)at};
    at += aligned((size_t)(c->weights[op->w[0]].experts + 1) * sizeof(int32_t));
    m.row = (int32_t *)at, at += aligned(rows * sizeof(int32_t));
    m.near = at, at += near_bytes(k);
    m.panels = (ni_panel_memory *)at;
    return m;
}

/* Sorts the rows by expert; rows of one stay in order. */
static void sort_rows(const ni_ctx *c, const ni_op *op, int64_t experts, int64_t used, memory *m) {
    const int64_t n = ni_rows(c, op) * used;
    const int32_t *ids = op->t[1] < 0 ? NULL : ni_ids(c, op, 1);
    memset(m->first, 0, (size_t)(experts + 1) * sizeof *m->first);
    for (int64_t i = 0; i < n; i++) m->first[1 + (ids ? ids[i] : i % used)]++;
    for (int64_t e = 0; e < experts; e++) m->first[e + 1] += m->first[e];
    for (int64_t i = n - 1; i >= 0; i--) m->row[--m->first[1 + (ids ? ids[i] : i % used)]] = (int32_t)i;
    /* Each beginning now stands one further on: its own place. */
    for (int64_t e = 0; e < experts; e++) m->first[e] = m->first[e + 1];
    m->first[experts] = (int32_t)n;
}

/* Row group g of expert e. */
static const uint8_t *group_at(const ni_ctx *c, const ni_weight *w, int64_t e, int64_t g) {
    return (const uint8_t *)w->here + (size_t)e * ni_expert_bytes(w, c->copy) + (size_t)g * ni_group_bytes(w->type, w->k);
}

static int64_t row_of_h(const ni_ctx *c, const ni_op *op, int64_t row) { return c->tensors[op->t[0]].per_token == 1 ? row / used_of(c, op) : row; }

static void copy_row(void *to, const void *from, int64_t i, int64_t row, size_t bytes) {
    if (from) memcpy((uint8_t *)to + (size_t)i * bytes, (const uint8_t *)from + (size_t)row * bytes, bytes);
}

/* The activations of n rows, which lie apart, side by side. */
static ni_act gather(const ni_ctx *c, const ni_op *op, const ni_act *x, const int32_t *row, int64_t n, memory *m) {
    const size_t k = (size_t)x->k, size[5] = {4 * k, k, k / 8, k / 8, k / 8};
    const void *from[5] = {x->f, x->q, x->d, x->m, x->s};
    void *to[5];
    uint8_t *at = m->near;
    for (int i = 0; i < 5; i++) to[i] = from[i] ? at : NULL, at += from[i] ? aligned((size_t)n * size[i]) : 0;
    if (m->gathered != row)
        for (int64_t t = 0; t < n; t++)
            for (int i = 0; i < 5; i++) copy_row(to[i], from[i], t, row_of_h(c, op, row[t]), size[i]);
    m->gathered = row;
    return (ni_act){.k = x->k, .f = to[0], .q = to[1], .d = to[2], .m = to[3], .s = to[4]};
}

/* Row groups [g0, g1) of one expert's matrix times n rows: all at once where there is a kernel for so many, else over blocks that stay in
 * L2 meanwhile.  Before the last groups the beginning of what comes next is asked for: its first lines would be waited for. */
static void few_rows(const ni_ctx *c, const ni_op *op, const ni_weight *w, const uint8_t *packed, const ni_act *x, const int32_t *row, int64_t n,
                     int64_t g0, int64_t g1, float *y, memory *m) {
    const size_t bytes = ni_group_bytes(w->type, w->k);
    const int64_t whole = w->n / NI_ROWS, most = ni_k->dots[w->type] ? NI_DOTS : 1;
    const int64_t step = n <= most ? g1 - g0 : ni_max(1, BLOCK_BYTES / (int64_t)bytes);
    for (int64_t g = g0, end; g < g1; g = end) {
        end = g < g1 - LAST ? ni_min(g + step, g1 - LAST) : g1;
        const int64_t full = ni_min(end, whole);
        if (end == g1 && m->next) ni_fetch(m->next, BEGINNING);
        for (int64_t t = 0, left = (n + most - 1) / most, k; t < n; t += k, left--) {
            ni_act own[NI_DOTS];
            float *out[NI_DOTS], *tail[NI_DOTS];
            k = (n - t + left - 1) / left;
            for (int64_t i = 0; i < k; i++) {
                own[i] = ni_act_of_token(x, row_of_h(c, op, row[t + i]));
                out[i] = y + row[t + i] * w->n + g * NI_ROWS, tail[i] = m->tail[i];
            }
            if (full > g) ni_dots_of(ni_k, w->type, packed + (size_t)g * bytes, full - g, own, (int)k, out);
            if (full == end) continue;
            ni_dots_of(ni_k, w->type, packed + (size_t)full * bytes, 1, own, (int)k, tail);
            for (int64_t i = 0; i < k; i++) memcpy(out[i] + (full - g) * NI_ROWS, tail[i], (size_t)(w->n - full * NI_ROWS) * sizeof *y);
        }
    }
}

static void many_rows(const ni_ctx *c, const ni_weight *w, const uint8_t *packed, const ni_act *x, const int32_t *row, int64_t n, int64_t g0,
                      int64_t g1, float *y, memory *m) {
    const int with_min = ni_formats[w->type].kind == NI_PANEL_MIN;
    for (int64_t g = g0; g < g1; g += NI_PANEL_GROUPS) {
        const int64_t groups = ni_min(NI_PANEL_GROUPS, g1 - g);
        const float *acc = ni_block_times_tokens(ni_k, w->type, packed + (size_t)g * ni_group_bytes(w->type, w->k), groups, x, (int)n,
                                                 m->panels, c->me->cancel);
        if (ni_hurry(c)) return;
        const float *accm = acc + groups * n * NI_ROWS;
        for (int64_t t = 0; t < n; t++)
            for (int64_t i = 0; i < groups; i++) {
                const float *from = acc + (i * n + t) * NI_ROWS, *min = accm + (i * n + t) * NI_ROWS;
                float *out = y + row[t] * w->n + (g + i) * NI_ROWS;
                const int64_t rows = ni_min(NI_ROWS, w->n - (g + i) * NI_ROWS);
                for (int64_t r = 0; r < rows; r++) out[r] = with_min ? from[r] + min[r] : from[r];
            }
    }
}

static void count(const ni_ctx *c, const ni_weight *w, int64_t groups, int64_t values, int64_t rows) {
    c->work[0] += groups * (int64_t)ni_group_bytes(w->type, values);
    c->work[1] += groups * NI_ROWS * values * rows;
}

/* Expert e's bias to finished rows of y. */
static void add_bias(const ni_ctx *c, const ni_op *op, int j, int64_t e, const int32_t *row, int64_t n, int64_t g0, int64_t g1, float *y) {
    const float *bias = ni_copy_of(c, op, 3 + j);
    const int64_t width = c->weights[op->w[j]].n, r0 = g0 * NI_ROWS, r1 = ni_min(g1 * NI_ROWS, width);
    if (!bias) return;
    for (int64_t t = 0; t < n; t++) ni_k->vec.add(y + row[t] * width + r0, bias + e * width + r0, r1 - r0, y + row[t] * width + r0);
}

/* Row groups [g0, g1) of matrix j of expert e times n rows. */
static void multiply(const ni_ctx *c, const ni_op *op, int j, int64_t e, const int32_t *row, int64_t n, int64_t g0, int64_t g1, memory *m) {
    const ni_weight *w = &c->weights[op->w[j]];
    const uint8_t *packed = group_at(c, w, e, 0);
    const ni_act x = ni_act_of(c, op, 0);
    float *y = ni_floats(c, op, 2 + j);
    if (ni_are_few(n, w->type)) few_rows(c, op, w, packed, &x, row, n, g0, g1, y, m);
    else for (int64_t t = 0; t < n; t += NI_PANEL_TOKENS) {
        const int64_t count = ni_min(NI_PANEL_TOKENS, n - t);
        const ni_act near = gather(c, op, &x, row + t, count, m);
        many_rows(c, w, packed, &near, row + t, count, g0, g1, y, m);
    }
    add_bias(c, op, j, e, row, n, g0, g1, y);
    count(c, w, g1 - g0, w->k, n);
}

/* ---- a row group that two workers share ------------------------------------------------------------------------ */

/* Continues the seam's sums of the spot's row group by values [k0, k1) of K; at its end they are the result. */
static void continue_group(const ni_ctx *c, const ni_op *op, const ni_choice *r, const ni_spot *at, int64_t k0, int64_t k1, ni_seam *seam,
                           memory *m) {
    const ni_weight *w = &c->weights[op->w[at->matrix]];
    const int32_t *row = m->row + m->first[at->expert];
    const int64_t rows = m->first[at->expert + 1] - m->first[at->expert], g = r->part[at->matrix].first + at->group;
    const uint8_t *packed = group_at(c, w, at->expert, g);
    const ni_act x = ni_act_of(c, op, 0), near = gather(c, op, &x, row, rows, m);
    float *acc = seam->sums, *accm = acc + rows * NI_ROWS;
    if (k0 == 0) memset(acc, 0, (size_t)(2 * rows * NI_ROWS) * sizeof *acc);
    ni_continue_sums(ni_k, w->type, packed, 1, &near, k0, k1, (int)rows, acc, accm, m->panels, (uint8_t *)(m->panels + 1), c->me->cancel);
    count(c, w, 1, k1 - k0, rows);
    if (k1 < w->k) return;
    const int with_min = ni_formats[w->type].kind == NI_PANEL_MIN;
    float *y = ni_floats(c, op, 2 + (int)at->matrix);
    const int64_t width = ni_min(NI_ROWS, w->n - g * NI_ROWS);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < width; i++)
            y[row[t] * w->n + g * NI_ROWS + i] = with_min ? acc[t * NI_ROWS + i] + accm[t * NI_ROWS + i] : acc[t * NI_ROWS + i];
    add_bias(c, op, (int)at->matrix, at->expert, row, rows, g, g + 1, y);
}

/* This worker's part begins (who = 1) or ends (0) within the spot's row group: it does its side of it, and the rest if it comes second. */
static void share_group(const ni_ctx *c, const ni_op *op, const ni_choice *r, const ni_spot *at, int who, memory *m) {
    if (!at->slab) return;
    ni_seam *seam = ni_seam_of(c, op, c->me->rank - who);
    if (!who) continue_group(c, op, r, at, 0, at->slab * NI_SLAB, seam, m);
    if (ni_comes_second(c, op, seam, who)) continue_group(c, op, r, at, at->slab * NI_SLAB, r->k, seam, m);
}

/* Row groups of each expert that this worker's node multiplies: those that lie there, or its workers' share. */
static void node_groups(const ni_ctx *c, const ni_weight *w, int64_t *own) {
    if (w->bounds) own[0] = w->bounds[c->copy], own[1] = w->bounds[c->copy + 1];
    else ni_node_cut(w->n, c->me->worker - c->me->rank, c->me->size, c->me->n_workers, &own[0], &own[1]);
}

typedef struct { int64_t e, g0, g1; int j; } run;

static void run_rows(const ni_ctx *c, const ni_op *op, const run *r, memory *m) {
    const int32_t *first = m->first + r->e;
    if (r->g0 < r->g1) multiply(c, op, r->j, r->e, m->row + first[0], first[1] - first[0], r->g0, r->g1, m);
}

/* The whole row groups of a span; each run of them once it is known which one comes next. */
static void run_span(const ni_ctx *c, const ni_op *op, const ni_choice *r, const ni_span *s, memory *m) {
    run now = {.g1 = 0}, next;
    for (next.e = s->from.expert; next.e <= s->to.expert && next.e < r->experts; next.e++)
        for (next.j = 0; next.j < r->n; next.j++) {
            if (!ni_between(r, s, next.e, next.j, &next.g0, &next.g1)) continue;
            m->next = group_at(c, &c->weights[op->w[next.j]], next.e, next.g0);
            run_rows(c, op, &now, m);
            if (ni_hurry(c)) return;
            now = next;
        }
    m->next = NULL;
    run_rows(c, op, &now, m);
}

void ni_op_matmul_grouped(const ni_ctx *c, const ni_op *op) {
    const int64_t experts = c->weights[op->w[0]].experts, used = used_of(c, op);
    memory m = carve(c, op);
    sort_rows(c, op, experts, used, &m);
    const ni_weight *w[NI_MATRICES];
    int64_t own[NI_MATRICES][2], n_pieces;
    int n = 0;
    for (; n < NI_MATRICES && op->w[n] >= 0; n++) w[n] = &c->weights[op->w[n]], node_groups(c, w[n], own[n]);
    const ni_choice r = ni_choice_of(w, n, experts, m.first, ni_rows(c, op), own, c->me->size, c->sizes);
    const ni_span part = ni_own_of(&r, c->me->rank);
    share_group(c, op, &r, &part.to, 0, &m);
    run_span(c, op, &r, &part, &m);
    share_group(c, op, &r, &part.from, 1, &m);
    const int64_t crew = ni_pieces_of(&r, c->me->rank, &n_pieces);
    for (int64_t i; (i = ni_take(c, op, crew, n_pieces)) >= 0;) {
        const ni_span piece = ni_piece_of(&r, crew, i);
        run_span(c, op, &r, &piece, &m);
    }
}
