#define _GNU_SOURCE
#include "team.h"
#include <errno.h>
#include <linux/futex.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LINE 128    /* two cache lines: adjacent-line prefetch would couple neighbours */

/* Spins before sleeping.  A token's barriers are microseconds apart, a futex wake-up costs 30 to 60 us. */
enum { STACK_GAP = 65536, LEAST_STACK = 4 * STACK_GAP, SPIN_BARRIER = 20000, SPIN_IDLE = 2000 };

/* A page each: the node's own workers touch it first, so their waiting never crosses the link. */
typedef struct {
    _Alignas(4096) atomic_uint gen;         /* what waiters of this node watch */
    atomic_int sleepers;
    _Alignas(LINE) atomic_int arrived;
} node_barrier;

struct ni_team {
    node_barrier *node;                     /* n_nodes */
    _Alignas(LINE) atomic_int nodes_arrived;
    _Alignas(LINE) atomic_uint posted;      /* number of the last job handed out */
    atomic_int posted_sleepers;
    _Alignas(LINE) atomic_int running;      /* workers still in the job */
    _Alignas(LINE) atomic_uint finished;    /* number of the last job done */
    atomic_int cancel, stop;
    ni_job job;
    void *arg;
    int n, n_nodes, spin;
    ni_worker *worker;
    int *cpu;
    atomic_int *seen;
    pthread_t runner;
    pid_t pid;
    atomic_uint ready;                      /* 0 starting, 1 up, 2 failed */
    int started;                            /* threads that OpenMP really gave */
    int pin_error;
};

int ni_fail(ni_status *st, int code, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    st->code = code;
    vsnprintf(st->text, sizeof st->text, format, ap);
    va_end(ap);
    return -1;
}

static void futex_wait(atomic_uint *at, unsigned value, const struct timespec *timeout) {
    syscall(SYS_futex, (void *)at, FUTEX_WAIT_PRIVATE, value, timeout, NULL, 0);
}

static void futex_wake(atomic_uint *at) {
    syscall(SYS_futex, (void *)at, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0);
}

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits until *at differs from value: spins, then sleeps.  `sleepers` is raised before the last look, and the waker looks at it
 * after its store; both are sequentially consistent, so no wake-up is lost. */
static void wait_change(atomic_uint *at, unsigned value, atomic_int *sleepers, int spin) {
    for (int i = 0; i < spin; i++) {
        if (atomic_load_explicit(at, memory_order_acquire) != value) return;
        pause_cpu();
    }
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(at) == value) futex_wait(at, value, NULL);
    atomic_fetch_sub(sleepers, 1);
}

static void publish(atomic_uint *at, unsigned value, atomic_int *sleepers) {
    atomic_store(at, value);
    if (atomic_load(sleepers) > 0) futex_wake(at);
}

void ni_node_barrier(const ni_worker *me) {
    ni_team *t = me->team;
    node_barrier *b = &t->node[me->node];
    if (me->size == 1) return;
    unsigned gen = atomic_load_explicit(&b->gen, memory_order_acquire);
    if (atomic_fetch_add(&b->arrived, 1) + 1 == me->size) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        publish(&b->gen, gen + 1, &b->sleepers);
    } else {
        wait_change(&b->gen, gen, &b->sleepers, t->spin);
    }
}

int ni_team_barrier(const ni_worker *me) {
    ni_team *t = me->team;
    node_barrier *b = &t->node[me->node];
    unsigned gen = atomic_load_explicit(&b->gen, memory_order_acquire);
    if (atomic_fetch_add(&b->arrived, 1) + 1 == me->size) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        if (atomic_fetch_add(&t->nodes_arrived, 1) + 1 == t->n_nodes) {
            atomic_store_explicit(&t->nodes_arrived, 0, memory_order_relaxed);
            /* One worker decides for all: seen differently, the flag would leave some of them waiting. */
            atomic_store_explicit(&t->stop, atomic_load(&t->cancel), memory_order_relaxed);
            for (int i = 0; i < t->n_nodes; i++) {
                node_barrier *o = &t->node[i];
                publish(&o->gen, atomic_load_explicit(&o->gen, memory_order_relaxed) + 1, &o->sleepers);
            }
            return atomic_load_explicit(&t->stop, memory_order_relaxed);
        }
    }
    wait_change(&b->gen, gen, &b->sleepers, t->spin);
    return atomic_load_explicit(&t->stop, memory_order_relaxed);
}

/* A worker's life. */
static __attribute__((noinline)) void serve(ni_team *t, int w) {
    unsigned last = 0;
    for (;;) {
        wait_change(&t->posted, last, &t->posted_sleepers, t->spin < SPIN_IDLE ? t->spin : SPIN_IDLE);
        last++;
        if (!t->job) return;
        t->job(&t->worker[w], t->arg);
        atomic_store_explicit(&t->seen[w], sched_getcpu(), memory_order_relaxed);
        if (atomic_fetch_sub(&t->running, 1) == 1) {
            atomic_store(&t->finished, last);
            futex_wake(&t->finished);
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

static void work(ni_team *t, int w) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(t->cpu[w], &set);
    if (sched_setaffinity(0, sizeof set, &set)) __atomic_store_n(&t->pin_error, errno, __ATOMIC_RELAXED);
    const int renewed = renew_stack();
    #pragma omp barrier
    #pragma omp master
    {
        atomic_store(&t->ready, t->started == t->n ? 1 : 2);
        futex_wake(&t->ready);
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
    if (t->node) munmap(t->node, sizeof *t->node * (size_t)t->n_nodes);
    free(t->worker), free(t->cpu), free(t->seen), free(t);
}

static void *idle(void *arg) {
    atomic_uint *over = arg;
    while (!atomic_load(over)) futex_wait(over, 0, NULL);
    return NULL;
}

/* Can n threads be had at once?  0 or an errno.  OpenMP would end the whole process where it gets none. */
static int try_threads(int n) {
    pthread_t *thread = malloc(sizeof *thread * (size_t)n);
    atomic_uint over = 0;
    int got = 0, e = thread ? 0 : ENOMEM;
    while (!e && got < n) if (!(e = pthread_create(&thread[got], NULL, idle, &over))) got++;
    atomic_store(&over, 1);
    futex_wake(&over);
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
    while (atomic_load(&t->ready) == 0) futex_wait(&t->ready, 0, NULL);
    if (atomic_load(&t->ready) == 1 && !t->pin_error) return 0;
    if (atomic_load(&t->ready) == 1) {
        ni_fail(st, NI_ERR_SYSTEM, "a worker could not be pinned to its CPU: %s", strerror(t->pin_error));
        t->job = NULL;
        publish(&t->posted, 1, &t->posted_sleepers);
    } else {
        ni_fail(st, NI_ERR_SYSTEM, "OpenMP gave %d threads where %d were asked for; look at OMP_THREAD_LIMIT and "
                "OMP_MAX_ACTIVE_LEVELS", t->started, t->n);
    }
    pthread_join(t->runner, NULL);
    return -1;
}

ni_team *ni_team_open(const int *cpus, const int *nodes, int n, int n_nodes, ni_status *st) {
    if (n < 1 || n > 4096 || n_nodes < 1 || n_nodes > n) {
        ni_fail(st, NI_ERR_VALUE, "a team needs at least one worker for every node; found %d workers on %d nodes", n, n_nodes);
        return NULL;
    }
    for (int w = 0; w < n; w++)
        if (cpus[w] < 0 || cpus[w] >= CPU_SETSIZE || nodes[w] != (w ? nodes[w - 1] : 0) + (w && nodes[w] != nodes[w - 1])
            || nodes[w] >= n_nodes) {
            ni_fail(st, NI_ERR_VALUE, "worker %d: CPU %d, node %d; CPUs must be below %d and node numbers ascend without gaps from 0",
                    w, cpus[w], nodes[w], CPU_SETSIZE);
            return NULL;
        }
    ni_team *t = aligned_alloc(LINE, (sizeof *t + LINE - 1) / LINE * LINE);
    if (!t) { ni_fail(st, NI_ERR_MEMORY, "no memory for a team of %d workers", n); return NULL; }
    memset(t, 0, sizeof *t);
    t->n = n, t->n_nodes = n_nodes, t->pid = getpid();
    t->node = mmap(NULL, sizeof *t->node * (size_t)n_nodes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (t->node == MAP_FAILED) t->node = NULL;
    else madvise(t->node, sizeof *t->node * (size_t)n_nodes, MADV_NOHUGEPAGE);
    t->worker = calloc((size_t)n, sizeof *t->worker);
    t->cpu = malloc(sizeof *t->cpu * (size_t)n);
    t->seen = calloc((size_t)n, sizeof *t->seen);
    if (!t->node || !t->worker || !t->cpu || !t->seen) {
        ni_fail(st, NI_ERR_MEMORY, "no memory for a team of %d workers", n);
        team_free(t);
        return NULL;
    }
    memcpy(t->cpu, cpus, sizeof *cpus * (size_t)n);
    /* Never more spinning threads than CPUs. */
    t->spin = distinct_cpus(cpus, n) == n ? SPIN_BARRIER : 0;
    for (int w = 0; w < n; w++)
        t->worker[w] = (ni_worker){.worker = w, .n_workers = n, .node = nodes[w], .n_nodes = n_nodes,
                                   .rank = w && nodes[w] == nodes[w - 1] ? t->worker[w - 1].rank + 1 : 0, .team = t, .cancel = &t->cancel};
    for (int w = n - 1; w >= 0; w--) {
        t->worker[w].size = w + 1 < n && nodes[w] == nodes[w + 1] ? t->worker[w + 1].size : t->worker[w].rank + 1;
        atomic_store(&t->seen[w], -1);
    }
    if (start_runner(t, st)) { team_free(t); return NULL; }
    return t;
}

void ni_team_close(ni_team *t) {
    if (!t) return;
    if (t->pid == getpid()) {
        while (!ni_team_wait(t, 1000)) ni_team_cancel(t);
        t->job = NULL;
        publish(&t->posted, atomic_load(&t->posted) + 1, &t->posted_sleepers);
        pthread_join(t->runner, NULL);
    }
    team_free(t);
}

int ni_team_start(ni_team *t, ni_job job, void *arg, ni_status *st) {
    unsigned posted = atomic_load(&t->posted);
    if (atomic_load(&t->finished) != posted)
        return ni_fail(st, NI_ERR_VALUE, "the team is still at work; wait for it before handing it another job");
    t->job = job, t->arg = arg;
    atomic_store(&t->cancel, 0);
    atomic_store(&t->stop, 0);
    atomic_store(&t->running, t->n);
    publish(&t->posted, posted + 1, &t->posted_sleepers);
    return 0;
}

int ni_team_wait(ni_team *t, int ms) {
    unsigned posted = atomic_load(&t->posted), finished = atomic_load(&t->finished);
    if (finished == posted) return 1;
    struct timespec timeout = {ms / 1000, ms % 1000 * 1000000L};
    futex_wait(&t->finished, finished, &timeout);
    return atomic_load(&t->finished) == posted;
}

void ni_team_cancel(ni_team *t) { atomic_store(&t->cancel, 1); }
int ni_team_cancelled(const ni_team *t) { return atomic_load(&((ni_team *)t)->cancel); }
int ni_team_size(const ni_team *t) { return t->n; }
const ni_worker *ni_team_worker(const ni_team *t, int w) { return &t->worker[w]; }

void ni_team_cpus(const ni_team *t, int *cpus) {
    for (int w = 0; w < t->n; w++) cpus[w] = atomic_load_explicit(&t->seen[w], memory_order_relaxed);
}

int ni_omp_n_places(void) { return omp_get_proc_bind() == omp_proc_bind_false ? 0 : omp_get_num_places(); }

int ni_omp_place(int place, int *cpus, int n) {
    int found = omp_get_place_num_procs(place);
    if (cpus && found <= n) omp_get_place_proc_ids(place, cpus);
    return found;
}
