/* Worker threads: the only user of OpenMP.
 *
 * A private runner thread opens one parallel region that lasts as long as the team, so libgomp's pool, its spin policy and the
 * pinning never meet the caller's thread.  Whatever the process has set for its threads, workers have their own memory policy (local),
 * floating-point mode (default) and signal mask (all).  Between jobs they spin for 0.2 ms, then sleep on a futex.
 */
#ifndef NI_TEAM_H
#define NI_TEAM_H
#include <stdarg.h>
#include "barrier.h"

typedef struct {
    int worker, n_workers;      /* over the team */
    int node, n_nodes;          /* node index */
    int rank, size;             /* within the node */
    ni_team *team;
    ni_point *point, *of_node;  /* where it begins to meet others, and where all of its node have met */
    const atomic_int *cancel;   /* set: results will be thrown away, hurry */
} ni_worker;

typedef void (*ni_job)(const ni_worker *me, void *arg);

/* Hands a job to all workers and returns at once; 0, or -1 if one is running. */
int ni_team_start(ni_team *t, ni_job job, void *arg, ni_status *st);
const ni_worker *ni_team_worker(const ni_team *t, int w);

/* Barriers for use inside a job.  The team barrier returns 1 if all must leave the job because it was cancelled: every worker gets the same answer. */
void ni_node_barrier(const ni_worker *me);
int ni_team_barrier(const ni_worker *me);

/* numa.c: pages that the calling thread touches first, in memory without a policy of its own, come from its node from now on. */
void ni_memory_local(void);

/* Fills a status; returns -1. */
int ni_fail(ni_status *st, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Part r of n of `total` units: [*a, *b). */
static inline void ni_cut(int64_t total, int64_t n, int64_t r, int64_t *a, int64_t *b) {
    *a = total * r / n;
    *b = total * (r + 1) / n;
}
#endif
