/* Nodes and the memory on them: the only user of libnuma. */
#define _GNU_SOURCE
#include "team.h"
#include <errno.h>
#include <fcntl.h>
#include <numa.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_BYTES ((size_t)2 << 20)
#define SLICE ((size_t)32 << 20)    /* bytes of an arena that are looked at in one call: moving all of them takes some 10 ms */
#ifndef MADV_POPULATE_WRITE    /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE          /* Linux 6.1 */
#define MADV_COLLAPSE 25
#endif
enum { MASK_BITS = 4096, QUESTIONS = 4096 };

int ni_numa_available(void) { return numa_available() >= 0; }

int ni_numa_max_node(void) { return ni_numa_available() ? numa_max_node() : 0; }

int ni_numa_node_of_cpu(int cpu) { return ni_numa_available() ? numa_node_of_cpu(cpu) : 0; }

/* Not MPOL_DEFAULT, which would be as local, but lets kernel.numa_balancing move the pages.  Before Linux 3.8 there is no MPOL_LOCAL.
 * Refused (containers), all stays as it is. */
void ni_memory_local(void) {
    if (set_mempolicy(MPOL_LOCAL, NULL, 0) && errno == EINVAL) set_mempolicy(MPOL_DEFAULT, NULL, 0);
}

/* Address space for *a, which has its size: read and written, of no page yet. */
static int reserve(ni_arena *a, size_t round, ni_status *st) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = a->bytes;
    /* Reserve with room to start on a huge page's border, and for a page that nobody may touch, then give the ends back.  That page
     * keeps the kernel from making one mapping of two arenas, whose pages could not be told apart in /proc/self/smaps then. */
    size_t room = bytes + page + (round > page ? round : 0);
    uint8_t *raw = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) {
        int e = errno;
        *a = (ni_arena){0};
        return ni_fail(st, NI_ERR_MEMORY, "cannot reserve %zu bytes of address space: %s", bytes, strerror(e));
    }
    uint8_t *base = (uint8_t *)(((uintptr_t)raw + round - 1) / round * round);
    if (base > raw) munmap(raw, (size_t)(base - raw));
    uint8_t *end = base + bytes + page;
    if (end < raw + room) munmap(end, (size_t)(raw + room - end));
    a->base = base;
    if (mprotect(base + bytes, page, PROT_NONE)) {
        int e = errno;
        ni_arena_close(a);
        return ni_fail(st, NI_ERR_MEMORY, "cannot set bounds to %zu bytes of address space: %s", bytes, strerror(e));
    }
    return 0;
}

static int bind_to(ni_arena *a, const int *os_nodes, int n, ni_status *st) {
    unsigned long mask[MASK_BITS / (8 * sizeof(unsigned long))] = {0};
    if (n <= 0 || !ni_numa_available()) return 0;
    for (int i = 0; i < n; i++) {
        if (os_nodes[i] < 0 || os_nodes[i] >= MASK_BITS) {
            ni_arena_close(a);
            return ni_fail(st, NI_ERR_VALUE, "node %d was asked for; nodes are numbered 0 to %d", os_nodes[i], MASK_BITS - 1);
        }
        mask[os_nodes[i] / (8 * sizeof *mask)] |= 1UL << (os_nodes[i] % (8 * sizeof *mask));
    }
    a->bound = mbind(a->base, a->bytes, n == 1 ? MPOL_BIND : MPOL_INTERLEAVE, mask, MASK_BITS, 0) == 0;
    return 0;
}

static int set_size(ni_arena *a, size_t bytes, ni_status *st) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    *a = (ni_arena){0};
    if (bytes > SIZE_MAX / 2)
        return ni_fail(st, NI_ERR_MEMORY, "an arena of %zu bytes was asked for, more than an address space holds", bytes);
    a->bytes = ((bytes ? bytes : 1) + page - 1) / page * page;
    return 0;
}

int ni_arena_open(ni_arena *a, size_t bytes, const int *os_nodes, int n, int huge, ni_status *st) {
    if (set_size(a, bytes, st) || reserve(a, huge ? HUGE_BYTES : (size_t)sysconf(_SC_PAGESIZE), st)) return -1;
    madvise(a->base, a->bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    madvise(a->base, a->bytes, MADV_DONTDUMP);
    return bind_to(a, os_nodes, n, st);
}

int ni_arena_map(ni_arena *a, int fd, size_t bytes, const int *os_nodes, int n, int write, ni_status *st) {
    if (set_size(a, bytes, st) || reserve(a, HUGE_BYTES, st)) return -1;
    if (mmap(a->base, a->bytes, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int e = errno;
        ni_arena_close(a);
        return ni_fail(st, NI_ERR_MEMORY, "cannot map %zu bytes of shared memory: %s", bytes, strerror(e));
    }
    madvise(a->base, a->bytes, MADV_HUGEPAGE);
    madvise(a->base, a->bytes, MADV_DONTDUMP);
    return bind_to(a, os_nodes, n, st);
}

int ni_arena_populate(const ni_arena *a, int fd, size_t at, size_t bytes, int spread) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *first = (uint8_t *)a->base + at;
    /* One small page of each huge one, which then grows around it, whatever the file system's own option says.  One call for all: each
     * has every CPU empty its lists of pages.  Refused, they stay small.  The first pages of all huge ones would be of one node under
     * MPOL_INTERLEAVE, which goes by their numbers: so page s of huge page b is taken, where 512 b + s = b modulo the nodes. */
    const size_t most = (size_t)spread;
    for (size_t i = 0; i + HUGE_BYTES <= bytes; i += HUGE_BYTES) {
        const size_t b = (at + i) / HUGE_BYTES, over = (HUGE_BYTES / page - 1) * b % most;
        madvise(first + i + (over ? most - over : 0) * page, page, MADV_POPULATE_WRITE);
    }
    if (bytes >= HUGE_BYTES) madvise(first, bytes / HUGE_BYTES * HUGE_BYTES, MADV_COLLAPSE);
    if (!madvise(first, bytes, MADV_POPULATE_WRITE)) return 0;
    return errno == EINVAL ? posix_fallocate(fd, (off_t)at, (off_t)bytes) : errno == EFAULT ? ENOSPC : errno;
}

int ni_arena_seal(const ni_arena *a) { return mprotect(a->base, a->bytes, PROT_READ) ? errno : 0; }

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

int ni_arena_sample(const ni_arena *a, int samples, int64_t *bytes, int n_nodes) {
    if (!ni_numa_available()) return ENOSYS;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = a->bytes / page;
    const size_t n = pages < (size_t)samples ? pages : (size_t)samples;
    for (size_t i = 0; i < n; ) {
        void *question[QUESTIONS];
        int node[QUESTIONS];
        size_t m = 0;
        for (; m < QUESTIONS && i < n; m++, i++) {
            const size_t at = n > 1 ? (size_t)((double)i * (double)(pages - 1) / (double)(n - 1)) : 0;
            question[m] = (uint8_t *)a->base + at * page;
            (void)*(volatile uint8_t *)question[m];     /* the kernel tells of pages only that this process has seen */
        }
        if (move_pages(0, m, question, NULL, node, 0) < 0) return errno;
        for (size_t j = 0; j < m; j++) if (node[j] >= 0 && node[j] < n_nodes) bytes[node[j]] += (int64_t)page;
    }
    return 0;
}
