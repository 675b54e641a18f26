/* y_j = scale * (W_j h + b_j) for up to three matrices that read the same input; where there is a cap, cap * tanh(y_j / cap) of it.
 * t: h, y0, y1?, y2? (-1 for y0: the step's `out`).  w: W0, W1?, W2?, and their biases b0?, b1?, b2? (floats).  f: scale, cap (0: none).
 *
 * The matrices' rows are cut over the workers as one long run, so that q/k/v and gate/up cost one stage; cut.h says how.  Part of the work
 * lies in pieces, which workers take as they get free: cores are never equally fast for long.  One token, or a few, stream packed
 * rows through dot; more go through panels, unpacked once and used for all. */
#include "panels.h"
#include "seam.h"

enum { BLOCK_BYTES = 256 << 10 };   /* a part of L2 */

typedef struct {
    float last[NI_DOTS][NI_ROWS];   /* of a matrix whose rows end within a group */
    ni_panel_memory panels;     /* and more behind it */
} matmul_memory;

size_t ni_scratch_matmul(const ni_ctx *c, const ni_op *op) {
    return offsetof(matmul_memory, panels) + ni_panel_bytes((int64_t)c->max_tokens * c->tensors[op->t[0]].per_token);
}

/* An op of this step, as this worker's node sees it. */
typedef struct {
    const ni_ctx *c;
    const ni_op *op;
    const ni_weight *w[NI_MATRICES];
    ni_act x;
    matmul_memory *mem;
    ni_run run;
} matmul;

static float *result(const matmul *m, int j) { return m->op->t[1 + j] < 0 ? m->c->step->out : ni_floats(m->c, m->op, 1 + j); }

static void count(const matmul *m, const ni_weight *w, int64_t groups, int64_t values, int64_t tokens) {
    m->c->work[0] += groups * (int64_t)ni_group_bytes(w->type, values);
    m->c->work[1] += groups * NI_ROWS * values * tokens;
}

/* All tokens at once where there is a kernel for so many; else a block of row groups stays in L2 while they pass over it. */
static void few_tokens(const ni_ctx *c, const ni_weight *w, const uint8_t *packed, const ni_act *x, int64_t n_tokens, int64_t g0,
                       int64_t g1, float *y, matmul_memory *p) {
    const size_t group_bytes = ni_group_bytes(w->type, w->k);
    const int64_t whole = ni_min(g1, w->n / NI_ROWS), most = ni_k->dots[w->type] ? NI_DOTS : 1;
    const int64_t step = n_tokens <= most ? g1 - g0 : ni_max(1, BLOCK_BYTES / (int64_t)group_bytes);
    for (int64_t g = g0; g < g1 && !ni_hurry(c); g += step) {
        const int64_t end = ni_min(g + step, g1), full = ni_min(end, whole);
        for (int64_t t = 0, left = (n_tokens + most - 1) / most, k; t < n_tokens; t += k, left--) {
            ni_act own[NI_DOTS];
            float *out[NI_DOTS], *last[NI_DOTS];
            k = (n_tokens - t + left - 1) / left;
            for (int64_t i = 0; i < k; i++)
                own[i] = ni_act_of_token(x, t + i), out[i] = y + (t + i) * w->n + g * NI_ROWS, last[i] = p->last[i];
            if (full > g) ni_dots_of(ni_k, w->type, packed + (size_t)g * group_bytes, full - g, own, (int)k, out);
            if (full == end) continue;
            ni_dots_of(ni_k, w->type, packed + (size_t)full * group_bytes, 1, own, (int)k, last);
            for (int64_t i = 0; i < k; i++) memcpy(out[i] + (full - g) * NI_ROWS, last[i], (size_t)(w->n - full * NI_ROWS) * sizeof *y);
        }
    }
}

/* A block's sums [groups][n_tokens][NI_ROWS], with those of the minimums behind them, to y [n_tokens][rows], `stride` values apart: token
 * by token, for a token's rows lie together. */
static void put_sums(const float *sums, int64_t groups, int64_t n_tokens, int with_min, float *y, int64_t stride, int64_t rows) {
    for (int64_t t = 0; t < n_tokens; t++, y += stride) {
        const float *acc = sums + t * NI_ROWS, *accm = acc + groups * n_tokens * NI_ROWS;
        float *restrict out = y;
        int64_t r = 0;
        for (; r + NI_ROWS <= rows; r += NI_ROWS, acc += n_tokens * NI_ROWS, accm += n_tokens * NI_ROWS) {
            if (with_min) for (int i = 0; i < NI_ROWS; i++) out[r + i] = acc[i] + accm[i];
            else memcpy(out + r, acc, NI_ROWS * sizeof *out);
        }
        for (int64_t i = 0; r + i < rows; i++) out[r + i] = with_min ? acc[i] + accm[i] : acc[i];
    }
}

static void many_tokens(const ni_ctx *c, const ni_weight *w, const uint8_t *packed, const ni_act *x, int64_t n_tokens, int64_t g0,
                        int64_t g1, float *y, ni_panel_memory *mem) {
    const size_t group_bytes = ni_group_bytes(w->type, w->k);
    const int with_min = ni_formats[w->type].kind == NI_PANEL_MIN;
    for (int64_t g = g0; g < g1; g += NI_PANEL_GROUPS) {
        int64_t groups = ni_min(NI_PANEL_GROUPS, g1 - g);
        for (int64_t t = 0, left = (n_tokens + NI_PANEL_TOKENS - 1) / NI_PANEL_TOKENS, n; t < n_tokens; t += n, left--) {
            n = (n_tokens - t + left - 1) / left;
            const ni_act own = ni_act_of_token(x, t);
            const float *sums = ni_block_times_tokens(ni_k, w->type, packed + (size_t)g * group_bytes, groups, &own, (int)n, mem, c->me->cancel);
            if (ni_hurry(c)) return;
            put_sums(sums, groups, n, with_min, y + t * w->n + g * NI_ROWS, w->n, ni_min(groups * NI_ROWS, w->n - g * NI_ROWS));
        }
    }
}

/* Bias, scale and cap of rows [r0, r1) of matrix j whose sums are finished, of all tokens from y on: once, by whoever finished them. */
static void finish(const matmul *m, int j, float *y, int64_t n_tokens, int64_t r0, int64_t r1) {
    const float *bias = ni_copy_of(m->c, m->op, NI_MATRICES + j), scale = m->op->f[0], cap = m->op->f[1];
    for (int64_t t = 0, n = r1 - r0; t < n_tokens; t++) {
        float *row = y + t * m->w[j]->n + r0;
        if (bias) ni_k->vec.add(row, bias + r0, n, row);
        if (scale != 1.0f) ni_k->vec.scale_mul(row, scale, NULL, n, row);
        if (cap > 0) ni_k->vec.softcap(row, cap, n, row);
    }
}

static void multiply(const matmul *m, const ni_block *b) {
    const int64_t n_tokens = b->t1 - b->t0;
    const ni_act x = ni_act_of_token(&m->x, b->t0);
    int64_t g0, g1;
    for (int j = 0; j < m->run.n && n_tokens > 0; j++) {
        const ni_weight *w = m->w[j];
        if (!ni_of_matrix(&m->run, b, j, &g0, &g1)) continue;
        float *y = result(m, j) + b->t0 * w->n;
        if (ni_are_few(n_tokens, w->type)) few_tokens(m->c, w, ni_copy_of(m->c, m->op, j), &x, n_tokens, g0, g1, y, m->mem);
        else many_tokens(m->c, w, ni_copy_of(m->c, m->op, j), &x, n_tokens, g0, g1, y, &m->mem->panels);
        finish(m, j, y, n_tokens, g0 * NI_ROWS, ni_min(g1 * NI_ROWS, w->n));
        count(m, w, g1 - g0, w->k, n_tokens);
    }
}

/* ---- a row group that two workers of a crew share ---------------------------------------------------------------- */

/* Continues the seam's sums by the block, part of one row group; at its end they are the result. */
static void continue_group(const matmul *m, const ni_block *b, ni_seam *seam) {
    const size_t n = (size_t)m->run.n_tokens * NI_ROWS;
    int64_t g, g1;
    int j = 0;
    while (!ni_of_matrix(&m->run, b, j, &g, &g1)) j++;
    const ni_weight *w = m->w[j];
    if (b->k0 == 0) memset(seam->sums, 0, 2 * n * sizeof *seam->sums);
    const uint8_t *packed = (const uint8_t *)ni_copy_of(m->c, m->op, j) + (size_t)g * ni_group_bytes(w->type, w->k);
    ni_panel_memory *mem = &m->mem->panels;
    ni_continue_sums(ni_k, w->type, packed, 1, &m->x, b->k0, b->k1, (int)m->run.n_tokens, seam->sums, seam->sums + n, mem,
                     (uint8_t *)(mem + 1), m->c->me->cancel);
    count(m, w, 1, b->k1 - b->k0, m->run.n_tokens);
    if (b->k1 < w->k) return;
    const int64_t r0 = g * NI_ROWS, r1 = ni_min(r0 + NI_ROWS, w->n);
    put_sums(seam->sums, 1, m->run.n_tokens, ni_formats[w->type].kind == NI_PANEL_MIN, result(m, j) + r0, w->n, r1 - r0);
    finish(m, j, result(m, j), m->run.n_tokens, r0, r1);
}

static void begin_group(const matmul *m, const ni_block *b, ni_seam *seam) {
    if (b->g0 == b->g1) return;
    const ni_block rest = {b->g0, b->g1, b->k1, m->run.k, b->t0, b->t1};
    continue_group(m, b, seam);
    if (ni_comes_second(m->c, m->op, seam, 0)) continue_group(m, &rest, seam);
}

/* ---- line and grid --------------------------------------------------------------------------------------------- */

static void run_line(const matmul *m) {
    const int64_t rank = m->c->me->rank;
    const ni_crew crew = ni_crew_of(&m->run, rank, m->c->sizes);
    const ni_share own = ni_share_of(&m->run, &crew, rank);
    begin_group(m, &own.tail, ni_seam_of(m->c, m->op, rank));
    multiply(m, &own.whole);
    if (own.head.g0 < own.head.g1) {
        ni_seam *seam = ni_seam_of(m->c, m->op, rank - 1);
        if (ni_comes_second(m->c, m->op, seam, 1)) continue_group(m, &own.head, seam);
    }
    for (int64_t i; (i = ni_take(m->c, m->op, crew.number, crew.n_pieces)) >= 0;) {
        const ni_block piece = ni_crew_piece(&m->run, &crew, i);
        multiply(m, &piece);
    }
}

static void run_grid(const matmul *m) {
    const ni_grid grid = ni_grid_of(&m->run, m->c->sizes);
    const ni_block own = ni_grid_share(&m->run, &grid, m->c->me->rank);
    multiply(m, &own);
    for (int64_t i; (i = ni_take(m->c, m->op, 0, grid.rows * grid.columns)) >= 0;) {
        const ni_block piece = ni_grid_piece(&m->run, &grid, i, m->c->sizes);
        multiply(m, &piece);
    }
}

void ni_op_matmul(const ni_ctx *c, const ni_op *op) {
    const int64_t n_tokens = ni_rows_of(c, op, 0);
    if (n_tokens == 0) return;
    matmul m = {.c = c, .op = op, .x = ni_act_of(c, op, 0), .mem = (matmul_memory *)c->scratch};
    int n = 0;
    for (; n < NI_MATRICES && op->w[n] >= 0; n++) m.w[n] = &c->weights[op->w[n]];
    m.run = ni_run_of(m.w, n, n_tokens, c->me->worker - c->me->rank, c->me->size, c->me->n_workers, c->sizes);
    if (ni_is_line(&m.run, c->sizes)) run_line(&m);
    else run_grid(&m);
}
