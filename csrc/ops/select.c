/* Chooses the positions, or blocks of them, with the best scores, for each token that sees more than it may attend to; of equal ones the
 * lower win.
 * t: scores [T][lists][blocks], ids [T][lists][so many as are chosen], ascending.  i: 0 lists of a token, 1 positions of a block, 2 how many
 * of the last blocks are chosen whatever their scores, 3 1: blocks are compressed rows, of which those count that are complete.
 *
 * A score becomes an unsigned integer of the same order, and the least that is chosen is found digit by digit, by counting, from the
 * first digit on; so a token costs a few passes over its scores, whatever they are.  NaN counts as less than any.  Never returns early: ids
 * are in range. */
#include "attention.h"

enum { DIGIT = 11 };    /* bits of the longest */
static const int shifts[] = {21, 10, 0}, sizes[] = {1 << DIGIT, 1 << DIGIT, 1 << 10};

size_t ni_scratch_select(const ni_ctx *c, const ni_op *op) {
    (void)c, (void)op;
    return sizeof(uint32_t) << DIGIT;
}

static uint32_t rank_of(float score) {
    uint32_t x;
    score += 0.0f;      /* no -0: it would count as less than 0 */
    memcpy(&x, &score, sizeof x);
    if ((x & 0x7fffffff) > 0x7f800000) return 0;
    return x >> 31 ? ~x : x | 0x80000000;
}

/* Numbers of the k best of n > k scores. */
static void choose(const float *score, int64_t n, int64_t k, uint32_t *count, int32_t *ids) {
    uint32_t least = 0, known = 0;      /* digits of the least that is chosen, and which bits those are */
    int64_t left = k;                   /* to be chosen among those that have these digits */
    for (int d = 0; d < 3; d++) {
        const int shift = shifts[d];
        const uint32_t mask = (uint32_t)sizes[d] - 1;
        memset(count, 0, (mask + 1) * sizeof *count);
        for (int64_t i = 0; i < n; i++) {
            const uint32_t x = rank_of(score[i]);
            if ((x & known) == least) count[x >> shift & mask]++;
        }
        uint32_t digit = mask;
        while (count[digit] < left) left -= count[digit--];
        least |= digit << shift, known |= mask << shift;
    }
    /* One more place is written than is kept, but none behind the last. */
    for (int64_t i = 0, m = 0; m < k; i++) {
        const uint32_t x = rank_of(score[i]);
        const int tied = x == least && left > 0;
        ids[m] = (int32_t)i;
        m += x > least || tied, left -= tied;
    }
}

void ni_op_select(const ni_ctx *c, const ni_op *op) {
    const int64_t lists = op->i[0], chosen = ni_width(c, op, 1) / lists, width = ni_width(c, op, 0) / lists, last = ni_min(op->i[2], chosen);
    int64_t a, b;
    ni_cut(c->step->n_tokens, c->me->size, c->me->rank, &a, &b);
    for (int64_t t = a; t < b; t++) {
        const int64_t n = (ni_position(c->step, t) + op->i[3]) / op->i[1] + !op->i[3];
        for (int64_t list = t * lists; n > chosen && list < (t + 1) * lists; list++) {
            int32_t *ids = ni_ids(c, op, 1) + list * chosen;
            if (last < chosen) choose(ni_floats(c, op, 0) + list * width, n - last, chosen - last, (uint32_t *)c->scratch, ids);
            for (int64_t i = 1; i <= last; i++) ids[chosen - i] = (int32_t)(n - i);
        }
    }
}
