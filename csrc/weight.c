/* Filling the copies of all nodes, each by that node's own threads, so that first touch puts the pages where they belong even where
 * the kernel refuses mbind. */
#define _GNU_SOURCE
#include "team.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22   /* Linux 5.14 */
#endif

/* Bytes of the file.  A run is what a worker takes at once: long enough for few threads to meet in one huge page, short enough for
 * none to wait long for the last.  Within it pages are mapped ahead in steps. */
enum { RUN = 2 << 20, STEP = 256 << 10, LINE = 128 };

typedef struct { _Alignas(LINE) atomic_llong run; } place;

struct ni_fill {
    const ni_piece *piece;
    int n_pieces, n_workers;
    int64_t *first;         /* number of each piece's first run; n_pieces + 1 */
    uint8_t *nonzero;       /* per piece */
    size_t page;
    atomic_int unreadable;  /* number of a piece; -1: none */
    place *next;            /* per node: the run that its next free worker takes */
    place *at;              /* per worker: the run it is at; it has finished those before it that it took */
};

/* Is there an earlier node with the same copy?  It does the work then. */
static int done_elsewhere(void *const *copy, int node) {
    for (int i = 0; i < node; i++) if (copy[i] == copy[node]) return 1;
    return 0;
}

static int64_t run_groups(const ni_piece *p) {
    int64_t groups = RUN / (int64_t)(NI_ROWS * p->row_bytes);
    return groups > 1 ? groups : 1;
}

static int64_t n_groups(const ni_piece *p) { return (p->w.n + NI_ROWS - 1) / NI_ROWS; }

static int any(const uint8_t *x, size_t n) { return x[0] || memcmp(x, x + 1, n - 1); }

/* Maps [from, to), for fetching ahead does nothing where a page is not mapped yet.  0 where reading would be a SIGBUS; true, as far as
 * one knows, where the kernel is too old to say. */
static int map_pages(const ni_fill *f, const uint8_t *from, const uint8_t *to) {
    uintptr_t first = (uintptr_t)from / f->page * f->page;
    return !madvise((void *)first, (uintptr_t)to - first, MADV_POPULATE_READ) || errno != EFAULT;
}

/* Row groups [g0, g1) of the piece; 0 if the job must end. */
static int pack_run(ni_fill *f, const ni_worker *me, int number, int64_t g0, int64_t g1) {
    const ni_piece *p = &f->piece[number];
    const size_t from_bytes = NI_ROWS * p->row_bytes, to_bytes = ni_group_bytes(p->w.type, p->w.k);
    const uint8_t *end = p->src + (size_t)p->w.n * p->row_bytes, *mapped = p->src + (size_t)g0 * from_bytes;
    int nonzero = __atomic_load_n(&f->nonzero[number], __ATOMIC_RELAXED);
    for (int64_t g = g0; g < g1; g++) {
        const uint8_t *src = p->src + (size_t)g * from_bytes;
        if (atomic_load_explicit(me->cancel, memory_order_relaxed)) return 0;
        /* Packing a group fetches the next. */
        if (mapped < end && (size_t)(mapped - src) < 2 * from_bytes) {
            size_t step = 2 * from_bytes > STEP ? 2 * from_bytes : STEP, left = (size_t)(end - mapped);
            if (!map_pages(f, mapped, mapped + (step < left ? step : left))) {
                atomic_store(&f->unreadable, number);
                return 0;
            }
            mapped += step < left ? step : left;
        }
        int64_t rows = p->w.n - g * NI_ROWS < NI_ROWS ? p->w.n - g * NI_ROWS : NI_ROWS;
        if (!nonzero && (nonzero = any(src, (size_t)rows * p->row_bytes))) __atomic_store_n(&f->nonzero[number], 1, __ATOMIC_RELAXED);
        ni_formats[p->w.type].pack(src, p->row_bytes, (int)rows, p->w.k, (uint8_t *)p->w.copy[me->node] + (size_t)g * to_bytes);
    }
    return 1;
}

static void fill(const ni_worker *me, void *arg) {
    ni_fill *f = arg;
    int64_t n_runs = f->first[f->n_pieces], r;
    for (int i = 0; (r = atomic_fetch_add(&f->next[me->node].run, 1)) < n_runs; ) {
        atomic_store(&f->at[me->worker].run, r);
        while (r >= f->first[i + 1]) i++;
        const ni_piece *p = &f->piece[i];
        if (atomic_load(&f->unreadable) >= 0 || atomic_load_explicit(me->cancel, memory_order_relaxed)) return;
        if (!p->w.bounds && done_elsewhere(p->w.copy, me->node)) continue;
        if (p->w.type < 0) {
            memcpy(p->w.copy[me->node], p->src, p->row_bytes);
            continue;
        }
        int64_t g0 = (r - f->first[i]) * run_groups(p), g1 = g0 + run_groups(p), n = n_groups(p);
        if (g1 > n) g1 = n;
        if (p->w.bounds) {
            g0 = g0 > p->w.bounds[me->node] ? g0 : p->w.bounds[me->node];
            g1 = g1 < p->w.bounds[me->node + 1] ? g1 : p->w.bounds[me->node + 1];
        }
        if (!pack_run(f, me, i, g0, g1)) return;
    }
    atomic_store(&f->at[me->worker].run, n_runs);
}

ni_fill *ni_fill_start(ni_team *t, const ni_piece *pieces, int n, uint8_t *nonzero, ni_status *st) {
    const int n_workers = ni_team_size(t), n_nodes = ni_team_worker(t, 0)->n_nodes;
    ni_fill *f = calloc(1, sizeof *f);
    if (f) {
        *f = (ni_fill){.piece = pieces, .n_pieces = n, .n_workers = n_workers, .nonzero = nonzero, .unreadable = -1,
                       .page = (size_t)sysconf(_SC_PAGESIZE), .first = calloc((size_t)n + 1, sizeof *f->first),
                       .next = aligned_alloc(LINE, sizeof(place) * (size_t)n_nodes),
                       .at = aligned_alloc(LINE, sizeof(place) * (size_t)n_workers)};
    }
    if (!f || !f->first || !f->next || !f->at) {
        ni_fail(st, NI_ERR_MEMORY, "no memory for a job that packs %d tensors", n);
        ni_fill_free(f);
        return NULL;
    }
    for (int i = 0; i < n_nodes; i++) atomic_init(&f->next[i].run, 0);
    for (int i = 0; i < n_workers; i++) atomic_init(&f->at[i].run, 0);
    for (int i = 0; i < n; i++) {
        const ni_piece *p = &pieces[i];
        f->first[i + 1] = f->first[i] + (p->w.type < 0 ? 1 : (n_groups(p) + run_groups(p) - 1) / run_groups(p));
    }
    if (ni_team_start(t, fill, f, st)) {
        ni_fill_free(f);
        return NULL;
    }
    return f;
}

int ni_fill_done(const ni_fill *f, int64_t *row) {
    /* A node's runs are taken in order: one before every worker's was taken on all nodes, and by someone who has gone on. */
    int64_t done = f->first[f->n_pieces];
    for (int w = 0; w < f->n_workers; w++) {
        int64_t at = atomic_load(&f->at[w].run);
        done = at < done ? at : done;
    }
    int low = 0, high = f->n_pieces;    /* the last piece with first <= done */
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (f->first[middle] <= done) low = middle;
        else high = middle - 1;
    }
    *row = low < f->n_pieces && f->piece[low].w.type >= 0 ? (done - f->first[low]) * run_groups(&f->piece[low]) * NI_ROWS : 0;
    return low;
}

int ni_fill_unreadable(const ni_fill *f) { return atomic_load(&((ni_fill *)f)->unreadable); }

void ni_fill_free(ni_fill *f) {
    if (f) free(f->first), free(f->next), free(f->at);
    free(f);
}

void ni_matmul_cut(const ni_weight *const *w, int n, int64_t parts, int64_t a, int64_t b, int64_t *g0, int64_t *g1) {
    int64_t total = 0;
    for (int j = 0; j < n; j++) total += (int64_t)ni_packed_bytes(w[j]->type, w[j]->n, w[j]->k);
    int64_t from = total * a / parts, to = total * b / parts;
    for (int j = 0; j < n; j++) {
        /* A group belongs to the part in which it begins. */
        int64_t bytes = (int64_t)ni_group_bytes(w[j]->type, w[j]->k), groups = (w[j]->n + NI_ROWS - 1) / NI_ROWS;
        int64_t first = from <= 0 ? 0 : (from + bytes - 1) / bytes, end = to <= 0 ? 0 : (to + bytes - 1) / bytes;
        g0[j] = first < groups ? first : groups;
        g1[j] = end < groups ? end : groups;
        from -= groups * bytes, to -= groups * bytes;
    }
}
