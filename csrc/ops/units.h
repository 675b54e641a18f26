/* A step's attention as units of work.  All units of a node lie in one line, as long as they are expensive, and each of its workers takes
 * those whose middle is in its stretch of the line: found by arithmetic, however many units there are. */
#ifndef NI_UNITS_H
#define NI_UNITS_H
#include "attention.h"

enum { NI_TILE = NI_LATENT_TILE };  /* queries of a unit: enough to make K and V conversions cheap, few enough for L2 */

typedef struct {
    int64_t segment;
    int64_t g, first, count;    /* queries first .. of (token, head in group) of kv-head g, tokens outermost */
    int64_t j0, j1;             /* chunks j0 .. j1 - 1 */
    int64_t part;               /* of a decoding sequence: which part this is; -1: all that the queries see */
} ni_unit;

/* Units of one segment in their order. */
typedef struct {
    const ni_segment *s;
    int64_t n;                  /* queries: of the segment's tokens, those that attend to all they see */
    int split;                  /* in parts: a unit per run */
    int64_t g0, heads, tiles;   /* kv-heads g0 .. , units of queries per kv-head */
    int64_t from;               /* split: first position seen */
    ni_runs runs;               /* split: those of the sequence; else one for all */
    int node, n_nodes;          /* n_nodes > 1: only runs that this node holds */
} ni_line;

typedef struct {
    const ni_attention *n;
    const ni_step *step;
    const ni_place *places;
    const int32_t *slots;
    const ni_worker *me;
    int64_t *before;            /* per place, and one more: cost of all segments in places before it */
    int pass, place;
    int64_t a, b;               /* the worker's stretch of the line */
    int64_t unit, end;          /* of the place's segment: the next one, and the first that is not the worker's */
    ni_line line;
} ni_walk;

/* before: room for n_segments + 1. */
void ni_walk_start(ni_walk *w, const ni_attention *n, const ni_step *step, const ni_place *places, const int32_t *slots,
                   const ni_worker *me, int64_t *before);
/* The worker's next unit; 0 after the last. */
int ni_walk_next(ni_walk *w, ni_unit *u);

/* Puts the segments into places, the longest first: all that follows depends on that order, not on the step's.  slots[segment]: where its parts start, counted in parts of one head, or -1 where it leaves none.  There is room for the parts of
 * `part_runs` runs per head: the longest sequences are split.  Room for n_segments each. */
void ni_deal_slots(const ni_op *attend, const ni_step *step, ni_place *places, int32_t *slots);
#endif
