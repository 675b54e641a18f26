/* Chooses experts for each token from their scores, best first, and weighs them.
 * t: scores [T][E], ids [T][used], weights [T][used], shared? [T][used]: the one that each chosen expert shares with others.
 * w: bias? (floats [E]: counts for choosing, not for weighing), factors? (floats [E]: each expert's own on its weight),
 *    table? (int32 [V][used]: the experts of each token of the vocabulary, which are not chosen then).
 * i: 0 gating: NI_SOFTMAX of all scores, NI_SIGMOID, NI_CHOSEN: softmax of the chosen alone, NI_ROOT: square root of log(1 + exp(score)),
 *    NI_LATE: sigmoids of the chosen, which are chosen by score; NI_SPARSE: as of `nearly_tied`, choice by choice;
 *    1 1 to divide weights by their sum; 2 groups, 3 groups that may be chosen from, 4 how many of its best make a group's score, 1 or 2;
 *    5 how many neighbours share another expert (0: none).
 * f: factor on the weights.
 *
 * Ids are in range and differ, whatever the scores are, NaN too; of equal scores the one with the lower index wins. */
#include <math.h>
#include "ops.h"

enum { NI_SOFTMAX = 0, NI_SIGMOID = 1, NI_CHOSEN = 2, NI_ROOT = 3, NI_LATE = 4, NI_SPARSE = 5, NI_MAX_GROUPS = 64 };
#define NI_LEAST_SUM 0x1p-14f   /* that weights are divided by */
#define NI_TIED 0.02f           /* how far below the best score, as a share of it, others still count */

size_t ni_scratch_route(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 0) * 4 * sizeof(float); }

/* The best of x[a .. b) that is not taken; a first one if none is better than any. */
static int64_t best(const float *x, const float *taken, int64_t a, int64_t b) {
    int64_t found = -1;
    for (int64_t i = a; i < b; i++)
        if (!taken[i] && (found < 0 || x[i] > x[found])) found = i;
    return found;
}

/* Takes all experts of the groups that are not among the best. */
static void take_groups(const ni_op *op, const float *x, int64_t n, float *taken) {
    const int64_t groups = op->i[2], size = n / groups;
    float score[NI_MAX_GROUPS], out[NI_MAX_GROUPS] = {0};
    for (int64_t g = 0; g < groups; g++) {
        const int64_t a = g * size, first = best(x, taken, a, a + size);
        taken[first] = 1;
        const int64_t second = best(x, taken, a, a + size);
        taken[first] = 0;
        score[g] = second < 0 || op->i[4] < 2 ? x[first] : x[first] + x[second];
    }
    for (int64_t i = 0; i < op->i[3]; i++) out[best(score, out, 0, groups)] = 1;
    for (int64_t i = 0; i < n; i++) taken[i] = !out[i / size];
}

static float largest(const float *x, int64_t n) {
    float m = x[0];
    for (int64_t i = 1; i < n; i++) if (x[i] > m) m = x[i];
    return m;
}

/* exp(x - max) / sum */
static void softmax(const float *x, int64_t n, float *y) {
    ni_k->vec.exp(x, largest(x, n), n, y);
    ni_k->vec.scale_mul(y, 1.0f / ni_k->vec.sum(y, n), NULL, n, y);
}

/* SparseMixer's weight (arXiv:2310.00811) of the best of those that are not taken: its softmax among those that are nearly as good. */
static float nearly_tied(const float *score, const float *taken, int64_t n, int64_t first, float *mine) {
    const float top = score[first];
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++) {
        const float size = fabsf(score[i]) > top ? fabsf(score[i]) : top;
        if (!taken[i] && !((top - score[i]) / size > NI_TIED)) mine[m++] = score[i];
    }
    ni_k->vec.exp(mine, top, m, mine);
    return 1.0f / ni_k->vec.sum(mine, m);
}

static void route(const ni_op *op, const float *score, const float *bias, const float *factors, const int32_t *given, int64_t n,
                  int64_t used, float *mine, int32_t *ids, float *weights) {
    float *gate = mine, *choice = mine + n, *taken = choice + n;
    if (op->i[0] == NI_SOFTMAX) softmax(score, n, gate);
    else if (op->i[0] == NI_SIGMOID) ni_sigmoid(score, n, gate);
    else if (op->i[0] == NI_ROOT) for (int64_t i = 0; i < n; i++) gate[i] = sqrtf(ni_softplus(score[i]));
    else memcpy(gate, score, (size_t)n * sizeof *gate);
    if (bias) ni_k->vec.add(gate, bias, n, choice);
    else choice = gate;
    memset(taken, 0, (size_t)n * sizeof *taken);
    if (op->i[2] > 1) take_groups(op, choice, n, taken);
    for (int64_t s = 0; s < used; s++) {
        const int64_t i = given ? given[s] : best(choice, taken, 0, n);
        weights[s] = op->i[0] == NI_SPARSE ? nearly_tied(gate, taken, n, i, taken + n) : gate[i];
        taken[i] = 1;
        ids[s] = (int32_t)i;
    }
    if (op->i[0] == NI_CHOSEN) softmax(weights, used, weights);
    if (op->i[0] == NI_LATE) ni_sigmoid(weights, used, weights);
    if (op->i[1]) {
        float sum = 0.0f;
        for (int64_t s = 0; s < used; s++) sum += weights[s];
        for (int64_t s = 0; s < used; s++) weights[s] /= sum > NI_LEAST_SUM ? sum : NI_LEAST_SUM;
    }
    for (int64_t s = 0; s < used; s++) weights[s] *= factors ? op->f[0] * factors[ids[s]] : op->f[0];
}

void ni_op_route(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 0), used = ni_width(c, op, 1);
    const int32_t *table = ni_copy_of(c, op, 2);
    int64_t a, b;
    ni_cut(ni_rows(c, op), c->me->size, c->me->rank, &a, &b);
    for (int64_t t = a; t < b; t++) {
        int32_t *ids = ni_ids(c, op, 1) + t * used;
        route(op, ni_floats(c, op, 0) + t * n, ni_copy_of(c, op, 0), ni_copy_of(c, op, 1), table ? table + c->step->ids[t] * used : NULL,
              n, used, (float *)c->scratch, ids, ni_floats(c, op, 2) + t * used);
        for (int64_t s = 0; op->t[3] >= 0 && s < used; s++) ni_ids(c, op, 3)[t * used + s] = ids[s] / op->i[5];
    }
}
