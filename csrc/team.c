#define _GNU_SOURCE
#include "team.h"
#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* How long a worker spins before it sleeps, at a barrier and between jobs.  A futex wake-up costs 30 to 60 us, and what it waits for is
 * rarely further away: a token's next barrier, or the next token of a stream, 60 to 170 us of somebody's Python later.  More would
 * gain little there, and loses where others want the CPUs: of two programs a core, spinning for 1 ms was a third slower than for 0.5. */
enum { STACK_GAP = 65536, LEAST_STACK = 4 * STACK_GAP, SPIN_NS = 200000 };

typedef struct { _Alignas(NI_LINE) atomic_int cpu; } seen_on;

struct ni_team {
    int n, n_nodes, n_points;
    int64_t spin;                           /* ns */
    ni_worker *worker;
    ni_meeting *meeting;                    /* n_points */
    ni_point **point;                       /* n_points: each node's on pages of its own, which its workers touch first */
    uint8_t *pages;
    size_t bytes;                           /* of the pages */
    int *cpu;
    seen_on *seen;
    pthread_t runner;
    pid_t pid;
    int started;                            /* threads that OpenMP really gave */
    int pin_error;
    atomic_uint ready;                      /* 0 starting, 1 up, 2 failed */
    _Alignas(NI_LINE) atomic_int cancel;
    _Alignas(NI_LINE) ni_job job;
    void *arg;
    atomic_uint posted;                     /* number of the last job handed out */
    _Alignas(NI_LINE) atomic_uint finished;    /* number of the last job done */
};

int ni_fail(ni_status *st, int code, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    st->code = code;
    vsnprintf(st->text, sizeof st->text, format, ap);
    va_end(ap);
    return -1;
}

void ni_node_barrier(const ni_worker *me) {
    if (me->size > 1) ni_meet(me->point, me->of_node, NULL, me->team->spin);
}

int ni_team_barrier(const ni_worker *me) { return ni_meet(me->point, NULL, me->cancel, me->team->spin); }

/* Hands out the job, or the end: to each point where workers begin. */
static void post(ni_team *t, ni_job job, void *arg) {
    unsigned number = atomic_load(&t->posted) + 1;
    t->job = job, t->arg = arg;
    atomic_store(&t->posted, number);
    for (int i = 0; i < t->n_points; i++)
        if (t->meeting[i].workers) atomic_store_explicit(&t->point[i]->posted, number, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);      /* between the stores and ni_wake's looks, once for all */
    for (int i = 0; i < t->n_points; i++)
        if (t->meeting[i].workers) ni_wake(&t->point[i]->posted, &t->point[i]->idle);
}

/* A worker's life. */
static __attribute__((noinline)) void serve(ni_team *t, int w) {
    const ni_worker *me = &t->worker[w];
    for (unsigned last = 0;;) {
        ni_wait_change(&me->point->posted, last, &me->point->idle, t->spin);
        last++;
        if (!t->job) return;
        t->job(me, t->arg);
        atomic_store_explicit(&t->seen[w].cpu, sched_getcpu(), memory_order_relaxed);
        if (ni_arrive(me->point)) {
            atomic_store(&t->finished, last);
            ni_futex_wake(&t->finished);
        }
    }
}

/* The same, on the pages that renew_stack gave back. */
static __attribute__((noinline)) void serve_below(ni_team *t, int w) {
    uint8_t gap[STACK_GAP];
    __asm__ volatile("" :: "r"(gap) : "memory");
    serve(t, w);
    __asm__ volatile("" :: "r"(gap) : "memory");    /* no jump instead of the call */
}

/* The thread that made this one touched the stack's top, and with a huge page much of the rest, on a node of its own: pages that hold
 * nothing yet go back, so that the next touch, by a pinned thread, places them anew.  And no huge ones: where the stack happens to lie
 * so that its used end reaches into an aligned 2 MiB, each worker would take these.
 * 0: there is no room for a gap (OMP_STACKSIZE, ulimit -s), and all stays as it is. */
static __attribute__((noinline)) int renew_stack(void) {
    pthread_attr_t attr;
    void *low;
    size_t size;
    int room = 0;
    if (pthread_getattr_np(pthread_self(), &attr)) return 0;
    if (!pthread_attr_getstack(&attr, &low, &size) && (room = size >= LEAST_STACK)) {
        uintptr_t end = ((uintptr_t)__builtin_frame_address(0) - STACK_GAP / 2) & ~(uintptr_t)4095;
        madvise(low, size, MADV_NOHUGEPAGE);
        if (end > (uintptr_t)low) madvise(low, end - (uintptr_t)low, MADV_DONTNEED);
    }
    pthread_attr_destroy(&attr);
    return room;
}

/* CPU numbers go past what a cpu_set_t holds. */
static int pin(int cpu) {
    size_t bytes = CPU_ALLOC_SIZE(cpu + 1);
    cpu_set_t *set = CPU_ALLOC(cpu + 1);
    if (!set) return ENOMEM;
    CPU_ZERO_S(bytes, set);
    CPU_SET_S(cpu, bytes, set);
    int e = sched_setaffinity(0, bytes, set) ? errno : 0;
    CPU_FREE(set);
    return e;
}

/* The thread becomes our own: what it inherits is the process's, or numactl's. */
static int settle(int cpu) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    ni_floats_default();
    ni_memory_local();
    return pin(cpu);
}

/* By one worker of each node: its node's meeting points; worker 0 makes those of all nodes too. */
static void make_points(ni_team *t, int node) {
    for (int i = 0; i < t->n_points; i++) {
        const ni_meeting *m = &t->meeting[i];
        if (m->node == node || (m->node < 0 && node == 0))
            t->point[i]->size = m->size, t->point[i]->up = m->up < 0 ? NULL : t->point[m->up];
    }
}

static void work(ni_team *t, int w) {
    int e = settle(t->cpu[w]);
    if (e) __atomic_store_n(&t->pin_error, e, __ATOMIC_RELAXED);
    const int renewed = renew_stack();
    if (t->worker[w].rank == 0) make_points(t, t->worker[w].node);
    #pragma omp barrier
    #pragma omp master
    {
        atomic_store(&t->ready, t->started == t->n ? 1 : 2);
        ni_futex_wake(&t->ready);
    }
    if (t->started == t->n) (renewed ? serve_below : serve)(t, w);
}

static void *run(void *arg) {
    ni_team *t = arg;
    omp_set_dynamic(0);
    #pragma omp parallel num_threads(t->n)
    {
        #pragma omp single
        t->started = omp_get_num_threads();
        work(t, omp_get_thread_num());
    }
    return NULL;
}

static int distinct_cpus(const int *cpus, int n) {
    int distinct = 0;
    for (int i = 0; i < n; i++) {
        int seen = 0;
        for (int j = 0; j < i; j++) seen |= cpus[j] == cpus[i];
        distinct += !seen;
    }
    return distinct;
}

static void team_free(ni_team *t) {
    if (t->pages) munmap(t->pages, t->bytes);
    free(t->worker), free(t->meeting), free(t->point), free(t->cpu), free(t->seen), free(t);
}

static void *idle(void *arg) {
    atomic_uint *over = arg;
    while (!atomic_load(over)) ni_futex_wait(over, 0, -1);
    return NULL;
}

/* Can n threads be had at once?  0 or an errno.  OpenMP would end the whole process where it gets none. */
static int try_threads(int n) {
    pthread_t *thread = malloc(sizeof *thread * (size_t)n);
    atomic_uint over = 0;
    int got = 0, e = thread ? 0 : ENOMEM;
    while (!e && got < n) if (!(e = pthread_create(&thread[got], NULL, idle, &over))) got++;
    atomic_store(&over, 1);
    ni_futex_wake(&over);
    while (got) pthread_join(thread[--got], NULL);
    free(thread);
    return e;
}

static int start_runner(ni_team *t, ni_status *st) {
    /* Signals belong to the caller's threads: the workers inherit a full mask. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = try_threads(t->n);
    if (!e) e = pthread_create(&t->runner, NULL, run, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e) return ni_fail(st, e == ENOMEM ? NI_ERR_MEMORY : NI_ERR_SYSTEM, "cannot start %d threads: %s", t->n, strerror(e));
    while (atomic_load(&t->ready) == 0) ni_futex_wait(&t->ready, 0, -1);
    if (atomic_load(&t->ready) == 1 && !t->pin_error) return 0;
    if (atomic_load(&t->ready) == 1) {
        ni_fail(st, t->pin_error == ENOMEM ? NI_ERR_MEMORY : NI_ERR_SYSTEM, "a worker could not be pinned to its CPU: %s",
                strerror(t->pin_error));
        post(t, NULL, NULL);
    } else {
        ni_fail(st, NI_ERR_SYSTEM, "OpenMP gave %d threads where %d were asked for; look at OMP_THREAD_LIMIT and "
                "OMP_MAX_ACTIVE_LEVELS", t->started, t->n);
    }
    pthread_join(t->runner, NULL);
    return -1;
}

/* Room for the points: each node's on pages of its own; those of several nodes beside the first one's. */
static int lay_out_points(ni_team *t) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int pass = 0; pass < 2; pass++) {
        size_t at = 0;
        for (int node = 0; node < t->n_nodes; node++) {
            for (int i = 0; i < t->n_points; i++)
                if (t->meeting[i].node == node || (t->meeting[i].node < 0 && node == 0)) {
                    if (pass) t->point[i] = (ni_point *)(t->pages + at);
                    at += sizeof(ni_point);
                }
            at = (at + page - 1) / page * page;
        }
        if (pass) break;
        void *pages = mmap(NULL, at, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) return -1;
        t->pages = pages, t->bytes = at;
        madvise(pages, at, MADV_NOHUGEPAGE);
    }
    return 0;
}

/* Who is who, and meets where. */
static void describe(ni_team *t, const int *nodes, const int *of_worker) {
    for (int w = 0; w < t->n; w++) {
        int top = of_worker[w];
        while (t->meeting[top].up >= 0 && t->meeting[t->meeting[top].up].node >= 0) top = t->meeting[top].up;
        t->worker[w] = (ni_worker){.worker = w, .n_workers = t->n, .node = nodes[w], .n_nodes = t->n_nodes,
                                   .rank = w && nodes[w] == nodes[w - 1] ? t->worker[w - 1].rank + 1 : 0, .team = t,
                                   .point = t->point[of_worker[w]], .of_node = t->point[top], .cancel = &t->cancel};
        atomic_store(&t->seen[w].cpu, -1);
    }
    for (int w = t->n - 1; w >= 0; w--)
        t->worker[w].size = w + 1 < t->n && nodes[w] == nodes[w + 1] ? t->worker[w + 1].size : t->worker[w].rank + 1;
}

static void *lines(size_t bytes) {
    size_t whole = (bytes + NI_LINE - 1) / NI_LINE * NI_LINE;
    void *found = aligned_alloc(NI_LINE, whole);
    return found ? memset(found, 0, whole) : NULL;
}

ni_team *ni_team_open(const int *cpus, const int *nodes, const int *domains, int n, int n_nodes, ni_status *st) {
    if (n < 1 || n > NI_MOST_WORKERS || n_nodes < 1 || n_nodes > n) {
        ni_fail(st, NI_ERR_VALUE, "a team needs at least one worker for every node; found %d workers on %d nodes", n, n_nodes);
        return NULL;
    }
    for (int w = 0; w < n; w++)
        if (cpus[w] < 0 || cpus[w] >= NI_MOST_CPUS || nodes[w] != (w ? nodes[w - 1] : 0) + (w && nodes[w] != nodes[w - 1])
            || nodes[w] >= n_nodes) {
            ni_fail(st, NI_ERR_VALUE, "worker %d: CPU %d, node %d; CPUs must be below %d and node numbers ascend without gaps from 0",
                    w, cpus[w], nodes[w], NI_MOST_CPUS);
            return NULL;
        }
    ni_team *t = lines(sizeof *t);
    if (!t) { ni_fail(st, NI_ERR_MEMORY, "no memory for a team of %d workers", n); return NULL; }
    t->n = n, t->n_nodes = n_nodes, t->pid = getpid();
    int *of_worker = malloc(sizeof *of_worker * (size_t)n);
    t->worker = calloc((size_t)n, sizeof *t->worker);
    t->meeting = calloc(2 * (size_t)n, sizeof *t->meeting);
    t->point = calloc(2 * (size_t)n, sizeof *t->point);
    t->cpu = malloc(sizeof *t->cpu * (size_t)n);
    t->seen = lines(sizeof *t->seen * (size_t)n);
    int complete = of_worker && t->worker && t->meeting && t->point && t->cpu && t->seen;
    if (complete) {
        t->n_points = ni_meetings(nodes, domains, n, t->meeting, of_worker);
        complete = !lay_out_points(t);
    }
    if (complete) {
        memcpy(t->cpu, cpus, sizeof *cpus * (size_t)n);
        /* Never more spinning threads than CPUs. */
        t->spin = distinct_cpus(cpus, n) == n ? SPIN_NS : 0;
        describe(t, nodes, of_worker);
    } else {
        ni_fail(st, NI_ERR_MEMORY, "no memory for a team of %d workers", n);
    }
    free(of_worker);
    if (!complete || start_runner(t, st)) { team_free(t); return NULL; }
    return t;
}

void ni_team_close(ni_team *t) {
    if (!t) return;
    if (t->pid == getpid()) {
        while (!ni_team_wait(t, 1000)) ni_team_cancel(t);
        post(t, NULL, NULL);
        pthread_join(t->runner, NULL);
    }
    team_free(t);
}

int ni_team_start(ni_team *t, ni_job job, void *arg, ni_status *st) {
    if (atomic_load(&t->finished) != atomic_load(&t->posted))
        return ni_fail(st, NI_ERR_VALUE, "the team is still at work; wait for it before handing it another job");
    atomic_store(&t->cancel, 0);
    post(t, job, arg);
    return 0;
}

int ni_team_wait(ni_team *t, int ms) {
    unsigned posted = atomic_load(&t->posted), finished = atomic_load(&t->finished);
    if (finished == posted) return 1;
    ni_futex_wait(&t->finished, finished, ms * (int64_t)1000000);
    return atomic_load(&t->finished) == posted;
}

void ni_team_cancel(ni_team *t) { atomic_store(&t->cancel, 1); }
int ni_team_cancelled(const ni_team *t) { return atomic_load(&((ni_team *)t)->cancel); }
int ni_team_size(const ni_team *t) { return t->n; }
const ni_worker *ni_team_worker(const ni_team *t, int w) { return &t->worker[w]; }

void ni_team_cpus(const ni_team *t, int *cpus) {
    for (int w = 0; w < t->n; w++) cpus[w] = atomic_load_explicit(&t->seen[w].cpu, memory_order_relaxed);
}

int ni_team_meetings(const ni_team *t, ni_meeting *m, int room) {
    for (int i = 0; i < t->n_points && i < room; i++) m[i] = t->meeting[i], m[i].size = t->point[i]->size;
    return t->n_points;
}

int ni_omp_n_places(void) { return omp_get_proc_bind() == omp_proc_bind_false ? 0 : omp_get_num_places(); }

int ni_omp_place(int place, int *cpus, int n) {
    int found = omp_get_place_num_procs(place);
    if (cpus && found <= n) omp_get_place_proc_ids(place, cpus);
    return found;
}
