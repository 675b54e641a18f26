#define _GNU_SOURCE
#include "barrier.h"
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* At most so many meet at one point. */
enum { MOST = 16 };
/* Looks between two looks at the clock: a microsecond or two, so that a short wait does without. */
enum { LOOKS = 64 };

/* ---- who meets where ------------------------------------------------------------------------------------------ */

/* Things that still have to meet, in order: numbers of points, or workers as ~w. */
typedef struct { int *thing, n; } group;

/* One point more, at which `things` arrive. */
static int add(ni_meeting *m, int *n_points, int *of_worker, const int *things, int n, int node) {
    int own = (*n_points)++;
    m[own] = (ni_meeting){.node = node, .up = -1, .size = n};
    for (int i = 0; i < n; i++) {
        if (things[i] >= 0) m[things[i]].up = own;
        else of_worker[~things[i]] = own, m[own].workers++;
    }
    return own;
}

/* One level up: as few points as there can be over the group's things, each for as many as any other, give or take one. */
static void raise_level(group *g, ni_meeting *m, int *n_points, int *of_worker, int node) {
    int parts = (g->n + MOST - 1) / MOST, n = g->n;
    for (int i = 0; i < parts; i++) {
        int a = (int)((int64_t)n * i / parts), b = (int)((int64_t)n * (i + 1) / parts);
        g->thing[i] = b - a == 1 ? g->thing[a] : add(m, n_points, of_worker, g->thing + a, b - a, node);
    }
    g->n = parts;
}

int ni_meetings(const int *nodes, const int *domains, int n, ni_meeting *m, int *of_worker) {
    int n_points = 0, of_node[NI_MOST_WORKERS], in_node[NI_MOST_WORKERS];
    group team = {of_node, 0};
    for (int a = 0, b; a < n; a = b) {
        group node = {in_node, 0};
        for (b = a; b < n && nodes[b] == nodes[a];) {
            group domain = {in_node + node.n, 0};
            int first = b;
            for (; b < n && nodes[b] == nodes[a] && domains[b] == domains[first]; b++) domain.thing[domain.n++] = ~b;
            int all_of_node = first == a && (b == n || nodes[b] != nodes[a]);
            if (!all_of_node || domain.n > MOST) raise_level(&domain, m, &n_points, of_worker, nodes[a]);
            node.n += domain.n;
        }
        while (node.n > MOST) raise_level(&node, m, &n_points, of_worker, nodes[a]);
        of_node[team.n++] = add(m, &n_points, of_worker, node.thing, node.n, nodes[a]);
    }
    while (team.n > 1) raise_level(&team, m, &n_points, of_worker, -1);
    return n_points;
}

/* ---- waiting -------------------------------------------------------------------------------------------------- */

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");   /* yield does nothing on cores without SMT */
#endif
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void ni_futex_wait(atomic_uint *at, unsigned value, int64_t ns) {
    struct timespec timeout = {ns / 1000000000, ns % 1000000000};
    syscall(SYS_futex, (void *)at, FUTEX_WAIT_PRIVATE, value, ns < 0 ? NULL : &timeout, NULL, 0);
}

void ni_futex_wake(atomic_uint *at) {
    syscall(SYS_futex, (void *)at, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0);
}

/* `sleepers` is raised before the last look, and the waker looks at it after its store; both are sequentially consistent, so no
 * wake-up is lost. */
void ni_wait_change(atomic_uint *at, unsigned value, atomic_int *sleepers, int64_t spin) {
    for (int64_t end = 0; spin;) {
        for (int i = 0; i < LOOKS; i++) {
            if (atomic_load_explicit(at, memory_order_acquire) != value) return;
            pause_cpu();
        }
        int64_t t = now();
        if (!end) end = t + spin;
        else if (t >= end) break;
    }
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(at) == value) ni_futex_wait(at, value, -1);
    atomic_fetch_sub(sleepers, 1);
}

void ni_wake(atomic_uint *at, atomic_int *sleepers) {
    if (atomic_load(sleepers) > 0) ni_futex_wake(at);
}

/* ---- meeting -------------------------------------------------------------------------------------------------- */

/* Is this the last one?  Then the point is as it was before the first came: nobody can come again before it lets them go. */
static int last_at(ni_point *p) {
    if (atomic_fetch_add(&p->arrived, 1) + 1 < p->size) return 0;
    atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
    return 1;
}

int ni_meet(ni_point *p, const ni_point *top, const atomic_int *cancel, int64_t spin) {
    unsigned gen = atomic_load_explicit(&p->gen, memory_order_acquire);
    if (!last_at(p)) {
        ni_wait_change(&p->gen, gen, &p->sleepers, spin);
        return p->stop;
    }
    /* One worker decides for all: seen differently, the flag would leave some of them waiting. */
    const int stop = p != top && p->up ? ni_meet(p->up, top, cancel, spin) : cancel ? atomic_load(cancel) : 0;
    p->stop = stop;
    atomic_store(&p->gen, gen + 1);
    ni_wake(&p->gen, &p->sleepers);
    return stop;
}

int ni_arrive(ni_point *p) {
    while (last_at(p)) {
        if (!p->up) return 1;
        p = p->up;
    }
    return 0;
}
