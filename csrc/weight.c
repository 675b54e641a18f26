/* Filling the copies of all nodes, each by that node's own threads, so that first touch puts the pages where they belong even where
 * the kernel refuses mbind.
 *
 * The file is read with pread into memory of the worker's own, never through a mapping: a file that somebody cuts while it is
 * mapped ends the process with SIGBUS, whatever was asked about its length before. */
#define _GNU_SOURCE
#include "team.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes of the file.
 * RUN: what a worker takes at once.  Two workers write to one huge page only where their runs meet, so runs are not much smaller than
 * such a page; and at the end of the job the others wait for the worker that took the last run, so they are not larger either.
 * READ: what is read before it is packed.  It is still in the worker's L2 when packing reads it. */
enum { RUN = 2 << 20, READ = 256 << 10, LINE = 128 };

typedef struct { _Alignas(LINE) atomic_llong run, taken; } place;

struct ni_fill {
    const ni_piece *piece;
    int n_pieces, n_workers;
    int64_t *first;         /* number of each piece's first run; n_pieces + 1 */
    uint8_t *nonzero;       /* per piece */
    uint8_t *buffer;        /* per worker: what it has read */
    size_t buffer_bytes;
    atomic_int unreadable;  /* number of a piece; -1: none */
    int *crew;              /* per node: the first node with the same copies, whose workers and its own share the work */
    place *next;            /* per crew: the run that its next free worker takes */
    place *at;              /* per worker: the run it is at, and how many it took; it has finished those before this one */
};

static int64_t run_groups(const ni_piece *p) {
    int64_t groups = RUN / (int64_t)(NI_ROWS * p->row_bytes);
    return groups > 1 ? groups : 1;
}

static int64_t read_groups(const ni_piece *p) {
    int64_t groups = READ / (int64_t)(NI_ROWS * p->row_bytes);
    return groups > 1 ? groups : 1;
}

static int64_t n_groups(const ni_piece *p) { return (p->w.n + NI_ROWS - 1) / NI_ROWS; }

static int any(const uint8_t *x, size_t n) { return x[0] || memcmp(x, x + 1, n - 1); }

/* 0, or -1 if the file ends before that or the disk fails. */
static int read_all(int fd, uint8_t *to, size_t bytes, int64_t offset) {
    while (bytes) {
        ssize_t n = pread(fd, to, bytes, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        to += n, bytes -= (size_t)n, offset += n;
    }
    return 0;
}

/* Row groups [g0, g1) of the piece; 0 if the job must end. */
static int pack_run(ni_fill *f, const ni_worker *me, int number, int64_t g0, int64_t g1) {
    const ni_piece *p = &f->piece[number];
    const size_t from_bytes = NI_ROWS * p->row_bytes, to_bytes = ni_group_bytes(p->w.type, p->w.k);
    const int64_t step = read_groups(p);
    uint8_t *buffer = f->buffer + (size_t)me->worker * f->buffer_bytes;
    int nonzero = __atomic_load_n(&f->nonzero[number], __ATOMIC_RELAXED);
    for (int64_t g = g0; g < g1; g += step) {
        const int64_t end = g + step < g1 ? g + step : g1, last_row = end * NI_ROWS < p->w.n ? end * NI_ROWS : p->w.n;
        const size_t bytes = (size_t)(last_row - g * NI_ROWS) * p->row_bytes;
        if (atomic_load_explicit(me->cancel, memory_order_relaxed)) return 0;
        if (read_all(p->fd, buffer, bytes, p->offset + (int64_t)((size_t)g * from_bytes))) {
            atomic_store(&f->unreadable, number);
            return 0;
        }
        if (!nonzero && (nonzero = any(buffer, bytes))) __atomic_store_n(&f->nonzero[number], 1, __ATOMIC_RELAXED);
        for (int64_t i = g; i < end; i++) {
            int64_t rows = p->w.n - i * NI_ROWS < NI_ROWS ? p->w.n - i * NI_ROWS : NI_ROWS;
            ni_formats[p->w.type].pack(buffer + (size_t)(i - g) * from_bytes, p->row_bytes, (int)rows, p->w.k,
                                       (uint8_t *)p->w.copy[me->node] + (size_t)i * to_bytes);
        }
    }
    return 1;
}

/* Are the two nodes' copies one memory? */
static int same_copies(const ni_fill *f, int a, int b) {
    for (int i = 0; i < f->n_pieces; i++) {
        const ni_weight *w = &f->piece[i].w;
        if (w->bounds || w->copy[a] != w->copy[b]) return 0;
    }
    return 1;
}

static void fill(const ni_worker *me, void *arg) {
    ni_fill *f = arg;
    const int crew = f->crew[me->node];
    int64_t n_runs = f->first[f->n_pieces], r;
    for (int i = 0; (r = atomic_fetch_add(&f->next[crew].run, 1)) < n_runs; ) {
        atomic_store(&f->at[me->worker].run, r);
        atomic_fetch_add(&f->at[me->worker].taken, 1);
        while (r >= f->first[i + 1]) i++;
        const ni_piece *p = &f->piece[i];
        if (atomic_load(&f->unreadable) >= 0 || atomic_load_explicit(me->cancel, memory_order_relaxed)) return;
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
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t buffer_bytes = 0;
    for (int i = 0; i < n; i++) {
        if (pieces[i].w.type < 0) continue;
        int64_t rows = read_groups(&pieces[i]) * NI_ROWS;
        size_t bytes = (size_t)(rows < pieces[i].w.n ? rows : pieces[i].w.n) * pieces[i].row_bytes;
        buffer_bytes = bytes > buffer_bytes ? bytes : buffer_bytes;
    }
    buffer_bytes = (buffer_bytes / page + 1) * page;    /* so that each worker's lies on its own node */
    ni_fill *f = calloc(1, sizeof *f);
    if (f) {
        *f = (ni_fill){.piece = pieces, .n_pieces = n, .n_workers = n_workers, .nonzero = nonzero, .unreadable = -1,
                       .buffer_bytes = buffer_bytes, .first = calloc((size_t)n + 1, sizeof *f->first),
                       .crew = calloc((size_t)n_nodes, sizeof *f->crew),
                       .next = aligned_alloc(LINE, sizeof(place) * (size_t)n_nodes),
                       .at = aligned_alloc(LINE, sizeof(place) * (size_t)n_workers)};
        if (buffer_bytes <= SIZE_MAX / 2 / (size_t)n_workers) f->buffer = aligned_alloc(page, buffer_bytes * (size_t)n_workers);
    }
    if (!f || !f->buffer || !f->first || !f->crew || !f->next || !f->at) {
        ni_fail(st, NI_ERR_MEMORY, "no memory for a job that packs %d tensors: it needs %zu bytes for each of %d workers", n, buffer_bytes,
                n_workers);
        ni_fill_free(f);
        return NULL;
    }
    for (int i = 0; i < n_nodes; i++) {
        while (f->crew[i] < i && !same_copies(f, f->crew[i], i)) f->crew[i]++;
        atomic_init(&f->next[i].run, 0);
    }
    for (int i = 0; i < n_workers; i++) atomic_init(&f->at[i].run, 0), atomic_init(&f->at[i].taken, 0);
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
    /* A crew takes its runs in order, and a worker has finished those that it took before the one it is at.  So all are finished that
     * come before the one that the slowest worker is at. */
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

int64_t ni_fill_taken(const ni_fill *f, int worker) { return atomic_load(&f->at[worker].taken); }

int ni_fill_unreadable(const ni_fill *f) { return atomic_load(&((ni_fill *)f)->unreadable); }

void ni_fill_free(ni_fill *f) {
    if (f) free(f->buffer), free(f->first), free(f->crew), free(f->next), free(f->at);
    free(f);
}
