/* A row group that two workers of a node share: the earlier one begins it and leaves the sums, the later one continues them.
 *
 * Both come here, the earlier one with the sums in place; the one who comes second ends the group.  So neither waits: the earlier one's
 * part is the first that it does, the later one's the last, and seldom does the later one come first. */
#ifndef NI_SEAM_H
#define NI_SEAM_H
#include "ops.h"

/* The seam behind the worker of that rank: sums, then the minimums' sums. */
static inline ni_seam *ni_seam_of(const ni_ctx *c, const ni_op *op, int64_t rank) {
    return (ni_seam *)(c->seams + c->seam_bytes * (size_t)(c->seam_set[op - c->ops] * c->me->size + rank));
}

/* Who: 0 the earlier worker, 1 the later one.  The mark is the number of this op, of all that the plan ever runs. */
static inline int ni_comes_second(const ni_ctx *c, const ni_op *op, ni_seam *seam, int who) {
    const int64_t number = c->step->number * c->n_ops + (op - c->ops);
    return atomic_exchange_explicit(&seam->mark, 2 * number + who, memory_order_acq_rel) == 2 * number + !who;
}
#endif
