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
enum { MASK_BITS = 4096, PAGES_AT_ONCE = 4096 };

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
    /* Reserve with room to start on a huge page's border, then give the ends back. */
    size_t reserve = a->bytes + (round > page ? round : 0);
    uint8_t *raw = mmap(NULL, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) {
        int e = errno;
        a->bytes = 0;
        return ni_fail(st, NI_ERR_MEMORY, "cannot reserve %zu bytes of address space: %s", reserve, strerror(e));
    }
    uint8_t *base = (uint8_t *)(((uintptr_t)raw + round - 1) / round * round);
    if (base > raw) munmap(raw, (size_t)(base - raw));
    if (base + a->bytes < raw + reserve) munmap(base + a->bytes, (size_t)(raw + reserve - base - a->bytes));
    a->base = base;
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
    if (a->base) munmap(a->base, a->bytes);
    *a = (ni_arena){0};
}

/* Asks (nodes == NULL) or moves, a batch of pages at a time. */
static int each_batch(const ni_arena *a, int64_t *counts, int n_nodes, const int *target) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n_pages = a->bytes / page;
    void *pages[PAGES_AT_ONCE];
    int status[PAGES_AT_ONCE], nodes[PAGES_AT_ONCE];
    for (size_t i = 0; i < n_pages; i += PAGES_AT_ONCE) {
        size_t n = n_pages - i < PAGES_AT_ONCE ? n_pages - i : PAGES_AT_ONCE;
        for (size_t j = 0; j < n; j++) pages[j] = (uint8_t *)a->base + (i + j) * page;
        if (target) for (size_t j = 0; j < n; j++) nodes[j] = *target;
        if (move_pages(0, n, pages, target ? nodes : NULL, status, MPOL_MF_MOVE) < 0) return errno;
        if (counts) for (size_t j = 0; j < n; j++) if (status[j] >= 0 && status[j] < n_nodes) counts[status[j]]++;
    }
    return 0;
}

int ni_arena_count(const ni_arena *a, int64_t *counts, int n_nodes, int64_t *page) {
    *page = sysconf(_SC_PAGESIZE);
    memset(counts, 0, sizeof *counts * (size_t)n_nodes);
    if (!ni_numa_available()) return ENOSYS;
    return each_batch(a, counts, n_nodes, NULL);
}

int ni_arena_move(const ni_arena *a, int os_node) {
    if (!ni_numa_available()) return ENOSYS;
    return each_batch(a, NULL, 0, &os_node);
}
