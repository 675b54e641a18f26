/* Nodes and the memory on them: the only user of libnuma. */
#define _GNU_SOURCE
#include "team.h"
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_BYTES ((size_t)2 << 20)
#define SLICE ((size_t)32 << 20)    /* bytes of an arena that are looked at in one call: moving all of them takes some 10 ms */
enum { MASK_BITS = 4096, QUESTIONS = 4096 };

int ni_numa_available(void) { return numa_available() >= 0; }

int ni_numa_max_node(void) { return ni_numa_available() ? numa_max_node() : 0; }

int ni_numa_node_of_cpu(int cpu) { return ni_numa_available() ? numa_node_of_cpu(cpu) : 0; }

/* Not MPOL_DEFAULT, which would be as local, but lets kernel.numa_balancing move the pages.  Before Linux 3.8 there is no MPOL_LOCAL.
 * Refused (containers), all stays as it is. */
void ni_memory_local(void) {
    if (set_mempolicy(MPOL_LOCAL, NULL, 0) && errno == EINVAL) set_mempolicy(MPOL_DEFAULT, NULL, 0);
}

int ni_arena_open(ni_arena *a, size_t bytes, const int *os_nodes, int n, int huge, ni_status *st) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), round = huge ? HUGE_BYTES : page;
    *a = (ni_arena){0};
    if (bytes > SIZE_MAX / 2)
        return ni_fail(st, NI_ERR_MEMORY, "an arena of %zu bytes was asked for, more than an address space holds", bytes);
    a->bytes = ((bytes ? bytes : 1) + page - 1) / page * page;
    /* Reserve with room to start on a huge page's border, and for a page that nobody may touch, then give the ends back.  That page
     * keeps the kernel from making one mapping of two arenas, whose pages could not be told apart in /proc/self/smaps then. */
    size_t reserve = a->bytes + page + (round > page ? round : 0);
    uint8_t *raw = mmap(NULL, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) {
        int e = errno;
        *a = (ni_arena){0};
        return ni_fail(st, NI_ERR_MEMORY, "cannot reserve %zu bytes of address space: %s", bytes, strerror(e));
    }
    uint8_t *base = (uint8_t *)(((uintptr_t)raw + round - 1) / round * round);
    if (base > raw) munmap(raw, (size_t)(base - raw));
    uint8_t *end = base + a->bytes + page;
    if (end < raw + reserve) munmap(end, (size_t)(raw + reserve - end));
    a->base = base;
    if (mprotect(base + a->bytes, page, PROT_NONE)) {
        int e = errno;
        ni_arena_close(a);
        return ni_fail(st, NI_ERR_MEMORY, "cannot set bounds to %zu bytes of address space: %s", bytes, strerror(e));
    }
    madvise(base, a->bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    madvise(base, a->bytes, MADV_DONTDUMP);
    if (n > 0 && ni_numa_available()) {
        unsigned long mask[MASK_BITS / (8 * sizeof(unsigned long))] = {0};
        for (int i = 0; i < n; i++) {
            if (os_nodes[i] < 0 || os_nodes[i] >= MASK_BITS) {
                ni_arena_close(a);
                return ni_fail(st, NI_ERR_VALUE, "node %d was asked for; nodes are numbered 0 to %d", os_nodes[i], MASK_BITS - 1);
            }
            mask[os_nodes[i] / (8 * sizeof *mask)] |= 1UL << (os_nodes[i] % (8 * sizeof *mask));
        }
        a->bound = mbind(base, a->bytes, n == 1 ? MPOL_BIND : MPOL_INTERLEAVE, mask, MASK_BITS, 0) == 0;
    }
    return 0;
}

void ni_arena_close(ni_arena *a) {
    if (a->base) munmap(a->base, a->bytes + (size_t)sysconf(_SC_PAGESIZE));
    *a = (ni_arena){0};
}

/* Moves the pages that do not lie on `home` there, and asks again where they lie. */
static void bring_home(void *const *page, int *node, size_t n, int home) {
    void *stray[QUESTIONS];
    int which[QUESTIONS], to[QUESTIONS], now[QUESTIONS];
    size_t m = 0;
    for (size_t i = 0; i < n; i++)
        if (node[i] >= 0 && node[i] != home) stray[m] = page[i], to[m] = home, which[m++] = (int)i;
    if (!m) return;
    move_pages(0, m, stray, to, now, MPOL_MF_MOVE);     /* what it could not move, the next call tells */
    if (move_pages(0, m, stray, NULL, now, 0) < 0) return;
    for (size_t j = 0; j < m; j++) node[which[j]] = now[j];
}

int ni_arena_count(const ni_arena *a, size_t *at, int huge, int home, int64_t *bytes, int n_nodes) {
    if (!ni_numa_available()) return ENOSYS;
    const size_t left = a->bytes - *at, page = (size_t)sysconf(_SC_PAGESIZE), step = huge && left >= HUGE_BYTES ? HUGE_BYTES : page;
    const size_t most = step < SLICE / QUESTIONS ? QUESTIONS : SLICE / step, n = left / step < most ? left / step : most;
    void *question[QUESTIONS];
    int node[QUESTIONS];
    for (size_t i = 0; i < n; i++) question[i] = (uint8_t *)a->base + *at + i * step;
    if (move_pages(0, n, question, NULL, node, 0) < 0) return errno;
    if (home >= 0) bring_home(question, node, n, home);
    for (size_t i = 0; i < n; i++) if (node[i] >= 0 && node[i] < n_nodes) bytes[node[i]] += (int64_t)step;
    *at += n * step;
    return 0;
}
