/* What this machine can do: how fast a team's workers read, the limit that decoding is measured against, and what it costs them
 * to meet, the price of every dependence between ops. */
#include "team.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_STREAMS = 8 };

typedef struct {
    void *const *node;      /* per node: its memory */
    size_t bytes;           /* of each */
    int streams, write;
    uint64_t *sum;          /* per worker: keeps the loads alive */
} read_job;

typedef uint64_t v2 __attribute__((vector_size(16), aligned(16)));

/* One pass over n bytes (a multiple of 64 * streams), in `streams` parallel runs. */
static uint64_t read_pass(const uint8_t *p, size_t n, int streams) {
    v2 s[4] = {{0}};
    size_t run = n / (size_t)streams / 64 * 64;
    for (size_t i = 0; i < run; i += 64)
        for (int j = 0; j < streams; j++) {
            const v2 *x = (const v2 *)(p + (size_t)j * run + i);
            s[0] ^= x[0], s[1] ^= x[1], s[2] ^= x[2], s[3] ^= x[3];
        }
    v2 all = s[0] ^ s[1] ^ s[2] ^ s[3];
    return all[0] ^ all[1];
}

static void read_all(const ni_worker *me, void *arg) {
    read_job *job = arg;
    int64_t a, b;
    ni_cut((int64_t)(job->bytes / 4096), me->size, me->rank, &a, &b);
    uint8_t *p = (uint8_t *)job->node[me->node] + a * 4096;
    if (job->write) memset(p, 1, (size_t)(b - a) * 4096);
    else job->sum[me->worker] = read_pass(p, (size_t)(b - a) * 4096, job->streams);
}

/* Runs the job; nanoseconds from handing it out to the last worker's end, -1 on error. */
static int64_t time_job(ni_team *t, ni_job job, void *arg, ni_status *st) {
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    int e = ni_team_start(t, job, arg, st);
    while (!e && !ni_team_wait(t, 1000)) {}
    clock_gettime(CLOCK_MONOTONIC, &t1);
    return e ? -1 : (int64_t)(t1.tv_sec - t0.tv_sec) * 1000000000 + t1.tv_nsec - t0.tv_nsec;
}

int64_t ni_read_time(ni_team *t, void *const *node, size_t bytes, int streams, ni_status *st) {
    if (streams < 0 || streams > MOST_STREAMS)
        return ni_fail(st, NI_ERR_VALUE, "%d read streams were asked for; wanted 0 to %d", streams, MOST_STREAMS);
    uint64_t *sum = calloc((size_t)ni_team_size(t), sizeof *sum);
    if (!sum) return ni_fail(st, NI_ERR_MEMORY, "no memory to measure the read bandwidth");
    read_job job = {node, bytes, streams, streams == 0, sum};
    int64_t ns = time_job(t, read_all, &job, st);
    free(sum);
    return ns;
}

typedef struct {
    int64_t n, ns;
    int team;
} barrier_job;

/* Worker 0 looks at the clock within the job: waking the team is no part of a barrier's cost. */
static void meet_all(const ni_worker *me, void *arg) {
    barrier_job *job = arg;
    struct timespec t0, t1;
    if (ni_team_barrier(me)) return;
    if (me->worker == 0) clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int64_t i = 0; i < job->n; i++) {
        if (!job->team) ni_node_barrier(me);
        else if (ni_team_barrier(me)) return;
    }
    if (me->worker) return;
    clock_gettime(CLOCK_MONOTONIC, &t1);
    job->ns = (int64_t)(t1.tv_sec - t0.tv_sec) * 1000000000 + t1.tv_nsec - t0.tv_nsec;
}

int64_t ni_barrier_time(ni_team *t, int64_t n, int team, ni_status *st) {
    if (n < 1) return ni_fail(st, NI_ERR_VALUE, "%lld barriers were asked for; wanted 1 or more", (long long)n);
    barrier_job job = {.n = n, .team = team};
    return time_job(t, meet_all, &job, st) < 0 ? -1 : job.ns;
}
