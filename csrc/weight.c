/* Packing a file's matrix into the copies of all nodes, each by that node's own threads, so that first touch puts the
 * pages where they belong even where the kernel refuses mbind. */
#include "team.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    ni_weight w;
    const uint8_t *src;
    size_t row_bytes;
    int64_t row0, row1;
} pack_job;

/* Is there an earlier node with the same copy?  It does the work then. */
static int done_elsewhere(void *const *copy, int node) {
    for (int i = 0; i < node; i++) if (copy[i] == copy[node]) return 1;
    return 0;
}

static void pack(const ni_worker *me, void *arg) {
    pack_job *job = arg;
    const ni_weight *w = &job->w;
    if (w->bounds || !done_elsewhere(w->copy, me->node)) {
        size_t group_bytes = ni_group_bytes(w->type, w->k);
        int64_t g0 = job->row0 / NI_ROWS, g1 = (job->row1 + NI_ROWS - 1) / NI_ROWS, a, b;
        if (w->bounds) {
            g0 = g0 > w->bounds[me->node] ? g0 : w->bounds[me->node];
            g1 = g1 < w->bounds[me->node + 1] ? g1 : w->bounds[me->node + 1];
        }
        ni_cut(g1 > g0 ? g1 - g0 : 0, me->size, me->rank, &a, &b);
        for (int64_t g = g0 + a; g < g0 + b && !atomic_load_explicit(me->cancel, memory_order_relaxed); g++) {
            int64_t row = g * NI_ROWS, rows = job->row1 - row < NI_ROWS ? job->row1 - row : NI_ROWS;
            ni_formats[w->type].pack(job->src + (size_t)row * job->row_bytes, job->row_bytes, (int)rows, w->k,
                                     (uint8_t *)w->copy[me->node] + (size_t)g * group_bytes);
        }
    }
    /* The last worker out frees the job: nobody reads it after the barrier. */
    ni_team_barrier(me);
    if (me->worker == 0) free(job);
}

int ni_pack_start(ni_team *t, const ni_weight *w, const uint8_t *src, size_t row_bytes, int64_t row0, int64_t row1, ni_status *st) {
    if (row0 % NI_ROWS || row0 < 0 || row1 > w->n || row0 > row1)
        return ni_fail(st, NI_ERR_VALUE, "rows %lld to %lld of a matrix of %lld rows cannot be packed; the first must be a multiple of %d",
                       (long long)row0, (long long)row1, (long long)w->n, NI_ROWS);
    pack_job *job = malloc(sizeof *job);
    if (!job) return ni_fail(st, NI_ERR_MEMORY, "no memory for a packing job");
    *job = (pack_job){*w, src, row_bytes, row0, row1};
    int e = ni_team_start(t, pack, job, st);
    if (e) free(job);
    return e;
}

void ni_matmul_cut(const ni_weight *const *w, int n, int n_workers, int worker, int64_t *g0, int64_t *g1) {
    int64_t total = 0, from, to;
    for (int j = 0; j < n; j++) total += (int64_t)ni_packed_bytes(w[j]->type, w[j]->n, w[j]->k);
    ni_cut(total, n_workers, worker, &from, &to);
    for (int j = 0; j < n; j++) {
        /* A group belongs to the worker in whose part it begins. */
        int64_t bytes = (int64_t)ni_group_bytes(w[j]->type, w[j]->k), groups = (w[j]->n + NI_ROWS - 1) / NI_ROWS;
        int64_t a = from <= 0 ? 0 : (from + bytes - 1) / bytes, b = to <= 0 ? 0 : (to + bytes - 1) / bytes;
        g0[j] = a < groups ? a : groups;
        g1[j] = b < groups ? b : groups;
        from -= groups * bytes, to -= groups * bytes;
    }
}

typedef struct {
    const uint8_t *src;
    size_t bytes;
    void *const *copy;
} copy_job;

static void copy(const ni_worker *me, void *arg) {
    copy_job *job = arg;
    if (me->rank == 0 && !done_elsewhere(job->copy, me->node)) memcpy(job->copy[me->node], job->src, job->bytes);
    ni_team_barrier(me);
    if (me->worker == 0) free(job);
}

int ni_copy_start(ni_team *t, const uint8_t *src, size_t bytes, void *const *copy_to, ni_status *st) {
    copy_job *job = malloc(sizeof *job);
    if (!job) return ni_fail(st, NI_ERR_MEMORY, "no memory for a copying job");
    *job = (copy_job){src, bytes, copy_to};
    int e = ni_team_start(t, copy, job, st);
    if (e) free(job);
    return e;
}
