/* Recurrent state: what ops that keep one share.
 *
 * A block of memory holds the state of all recurrent layers of a sequence at one position.  Each op has a part of it, which is units of
 * equal size (a head's matrix, 16 channels' last inputs).  Units are dealt to nodes in runs, and what belongs to a node lies together:
 * unit u of a part lies offset + (u - the node's first unit) * unit_bytes behind the node's stretch, of which each has `stride` bytes.
 * A step reads the block of the position where a segment begins, and writes others (ni_stop): so a step that ends early does no harm.
 */
#ifndef NI_STATE_H
#define NI_STATE_H
#include "ops.h"

/* The first integers of such an op, in order; sizes in units of NI_STATE_UNIT bytes. */
enum { NI_STATE_units, NI_STATE_unit_bytes, NI_STATE_offset, NI_STATE_stride, NI_STATE_nodes, NI_STATE_INTS };
enum { NI_STATE_UNIT = 64 };

typedef struct {
    int64_t units;              /* of all nodes together */
    int64_t unit_bytes, offset, stride;
    int64_t nodes;              /* to whom memory is dealt: the model's; a team of fewer computes all of it */
} ni_state_part;

static inline ni_state_part ni_state_part_of(const ni_op *op) {
    return (ni_state_part){op->i[NI_STATE_units], (int64_t)op->i[NI_STATE_unit_bytes] * NI_STATE_UNIT,
                           (int64_t)op->i[NI_STATE_offset] * NI_STATE_UNIT, (int64_t)op->i[NI_STATE_stride] * NI_STATE_UNIT,
                           op->i[NI_STATE_nodes]};
}

/* Where unit u lies behind the beginning of a block. */
static inline int64_t ni_state_at(const ni_state_part *p, int64_t u) {
    const int64_t node = (p->nodes * (u + 1) - 1) / p->units, first = p->units * node / p->nodes;
    return node * p->stride + p->offset + (u - first) * p->unit_bytes;
}

/* The unit behind the last of those that lie side by side with u. */
static inline int64_t ni_state_end(const ni_state_part *p, int64_t u) { return p->units * ((p->nodes * (u + 1) - 1) / p->units + 1) / p->nodes; }

/* Units [*a, *b) that the worker's node computes. */
static inline void ni_state_own(const ni_state_part *p, const ni_worker *me, int64_t *a, int64_t *b) {
    ni_cut(p->units, me->n_nodes, me->node, a, b);
}
#endif
