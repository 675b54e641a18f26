/* Meeting points: where workers wait for each other, in levels, so that no cache line is written by more than MOST workers however
 * many there are.  Those of one L3 domain meet first (of a large one: groups of them), then the domains of a node, then the nodes.
 * The last to arrive at a point goes on to the next one for all of them, and lets them go when it has come back.
 */
#ifndef NI_BARRIER_H
#define NI_BARRIER_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include "ni.h"

#define NI_LINE 128    /* two cache lines: adjacent-line prefetch would couple neighbours */

/* Every line is written by those who meet here, and by whoever hands out jobs. */
typedef struct ni_point {
    _Alignas(NI_LINE) atomic_uint gen;         /* what those who wait here watch */
    atomic_int sleepers;
    int stop;                               /* what the team barrier that gen counts last has decided */
    _Alignas(NI_LINE) atomic_int arrived;
    int size;                               /* so many arrive: workers, and last ones of points below */
    struct ni_point *up;                    /* NULL: here all are together */
    _Alignas(NI_LINE) atomic_uint posted;      /* number of the last job, for workers that begin here */
    atomic_int idle;                        /* of them, those that sleep until the next one */
} ni_point;

/* A word that changes, and those who wait for that.  ni_wait_change spins for `spin` nanoseconds, then sleeps; after storing a new
 * value ni_wake wakes those who sleep. */
void ni_wait_change(atomic_uint *at, unsigned value, atomic_int *sleepers, int64_t spin);
void ni_wake(atomic_uint *at, atomic_int *sleepers);
void ni_futex_wait(atomic_uint *at, unsigned value, int64_t ns);   /* ns < 0: without end */
void ni_futex_wake(atomic_uint *at);

/* Meets all who meet at `top` or below it (NULL: all there are).  cancel: NULL, or a flag that the last of all looks at, for all of
 * them; returns what it saw. */
int ni_meet(ni_point *p, const ni_point *top, const atomic_int *cancel, int64_t spin);
/* Arrives without waiting; 1 for the last of all. */
int ni_arrive(ni_point *p);
#endif
