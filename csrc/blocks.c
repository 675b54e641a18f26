/* Blocks of memory with reference counts, and the tables by which sequences find theirs.
 *
 * A block is free, in use (count > 0), or left: given up, with its pages still there.  Giving pages back takes long, so it is a step of
 * its own (ni_pool_empty), for which the caller may let other threads go on.  Nothing else here may run in two threads at a time. */
#define _GNU_SOURCE
#include "team.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SLAB_BYTES = 256 << 20 };     /* address space that is reserved at a time, unless a block is larger */

/* top: positions, from the block's first, that a step has written or was to write, whoever's it was.
 * next: of the list of free ones, or of those that were left. */
typedef struct { int32_t count, top; int64_t next; } block;

struct ni_pool {
    size_t block_bytes;
    int huge;
    int64_t per_slab, n_slabs, n_out, free, left;   /* n_out: blocks that are not free; lists: -1 at their end */
    ni_arena *slabs;
    block *blocks;          /* per_slab for each slab */
};

ni_pool *ni_pool_open(size_t block_bytes, int huge, ni_status *st) {
    ni_pool *p = calloc(1, sizeof *p);
    if (!p) { ni_fail(st, NI_ERR_MEMORY, "no memory for a pool of blocks"); return NULL; }
    p->block_bytes = (block_bytes + 4095) / 4096 * 4096;
    p->per_slab = p->block_bytes < SLAB_BYTES ? (int64_t)(SLAB_BYTES / p->block_bytes) : 1;
    p->huge = huge, p->free = p->left = -1;
    return p;
}

void ni_pool_unmap(ni_pool *p) {
    for (int64_t i = 0; i < p->n_slabs; i++) ni_arena_close(&p->slabs[i]);
    free(p->slabs), free(p->blocks);
    p->slabs = NULL, p->blocks = NULL;
    p->n_slabs = p->n_out = 0, p->free = p->left = -1;
}

void ni_pool_close(ni_pool *p) {
    if (!p) return;
    ni_pool_unmap(p);
    free(p);
}

int64_t ni_pool_out(const ni_pool *p) { return p->n_out; }
int64_t ni_pool_n_slabs(const ni_pool *p) { return p->n_slabs; }
ni_arena ni_pool_slab(const ni_pool *p, int64_t i) { return p->slabs[i]; }

static int add_slab(ni_pool *p, ni_status *st) {
    ni_arena *slabs = realloc(p->slabs, sizeof *slabs * (size_t)(p->n_slabs + 1));
    if (slabs) p->slabs = slabs;
    block *blocks = realloc(p->blocks, sizeof *blocks * (size_t)((p->n_slabs + 1) * p->per_slab));
    if (blocks) p->blocks = blocks;
    if (!slabs || !blocks) return ni_fail(st, NI_ERR_MEMORY, "no memory for the list of a KV cache's blocks");
    ni_status why;
    if (ni_arena_open(&p->slabs[p->n_slabs], p->block_bytes * (size_t)p->per_slab, NULL, 0, p->huge, &why))
        return ni_fail(st, NI_ERR_MEMORY, "the KV cache cannot grow: %s", why.text);
    int64_t first = p->n_slabs++ * p->per_slab;
    for (int64_t i = p->per_slab; i-- > 0;) p->blocks[first + i] = (block){0, 0, p->free}, p->free = first + i;
    return 0;
}

int64_t ni_pool_take(ni_pool *p, ni_status *st) {
    if (p->free < 0 && add_slab(p, st)) return -1;
    int64_t b = p->free;
    p->free = p->blocks[b].next;
    p->blocks[b].count = 1, p->blocks[b].top = 0;
    p->n_out++;
    return b;
}

uint8_t *ni_pool_at(const ni_pool *p, int64_t b) {
    return (uint8_t *)p->slabs[b / p->per_slab].base + p->block_bytes * (size_t)(b % p->per_slab);
}

int ni_pool_count(const ni_pool *p, int64_t b) { return p->blocks[b].count; }

void ni_pool_hold(ni_pool *p, int64_t b) { p->blocks[b].count++; }

void ni_pool_drop(ni_pool *p, int64_t b) {
    if (--p->blocks[b].count) return;
    p->blocks[b].next = p->left, p->left = b;
}

int64_t ni_pool_pick(ni_pool *p) {
    int64_t b = p->left;
    if (b >= 0) p->left = p->blocks[b].next;
    return b;
}

void ni_pool_empty(uint8_t *at, size_t block_bytes) { madvise(at, block_bytes, MADV_DONTNEED); }

size_t ni_pool_block_bytes(const ni_pool *p) { return p->block_bytes; }

void ni_pool_free(ni_pool *p, int64_t b) {
    p->blocks[b].next = p->free, p->free = b;
    p->n_out--;
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

static int64_t chunks(int64_t n_pos) { return (n_pos + NI_CHUNK - 1) / NI_CHUNK; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
/* Positions of chunk j that come before `end`, which is not before the chunk. */
static int32_t top(int64_t j, int64_t end) { return (int32_t)least(end - j * NI_CHUNK, NI_CHUNK); }

/* Room for chunks 0 .. end - 1. */
static int grow(ni_table *t, int64_t end, ni_status *st) {
    if (end <= t->room) return 0;
    int64_t room = end > 2 * t->room ? end : 2 * t->room;
    int64_t *block = realloc(t->block, sizeof *block * (size_t)room);
    if (block) t->block = block;
    uint8_t **at = realloc(t->at, sizeof *at * (size_t)room);
    if (at) t->at = at;
    if (!block || !at) return ni_fail(st, NI_ERR_MEMORY, "no memory for a table of %lld blocks", (long long)room);
    t->room = room;
    return 0;
}

/* Only chunks below `end` stay. */
static void cut(ni_table *t, int64_t end) {
    while (t->end > end && t->end > t->first) ni_pool_drop(t->pool, t->block[--t->end]);
    if (t->first > end) t->first = t->end = end;
}

/* Only chunks from `first` on stay. */
static void forget(ni_table *t, int64_t first) {
    while (t->first < first && t->first < t->end) ni_pool_drop(t->pool, t->block[t->first++]);
    if (t->first < first) t->first = t->end = first;
}

int ni_table_reaches(const ni_table *t, int64_t n) {
    int64_t first = t->window && n >= t->window ? (n - t->window + 1) / NI_CHUNK : 0;   /* that the token at position n sees */
    return n == 0 || (first >= t->first && chunks(n) <= t->end);
}

void ni_table_cut(ni_table *t, int64_t n) { cut(t, chunks(n)); }

int ni_table_prepare(ni_table *t, int64_t pos0, int64_t end, ni_status *st) {
    if (pos0 == 0 && t->first) cut(t, 0);
    int64_t kept = chunks(pos0), most = least(t->end, chunks(end));
    while (kept < most && ni_pool_count(t->pool, t->block[kept]) == 1) kept++;
    cut(t, kept);       /* what lies there is written anew: another sequence's block is of no use for that */
    if (t->window && end > t->reach) forget(t, (end - t->reach) / NI_CHUNK);
    if (grow(t, chunks(end), st)) return -1;
    while (t->end < chunks(end)) {
        int64_t b = ni_pool_take(t->pool, st);
        if (b < 0) return -1;
        t->block[t->end] = b, t->at[t->end] = ni_pool_at(t->pool, b);
        t->end++;
    }
    /* In a block that others have too a step may write behind all that they have of it: whoever comes first goes on in it. */
    const block *own = &t->pool->blocks[t->block[pos0 / NI_CHUNK]];
    int copy = pos0 % NI_CHUNK && own->count > 1 && pos0 % NI_CHUNK < own->top;
    for (int64_t j = pos0 / NI_CHUNK + copy; j < t->end; j++) t->pool->blocks[t->block[j]].top = top(j, end);
    t->written = end;
    return copy;
}

int64_t ni_table_swap(ni_table *t, int64_t j, int64_t b) {
    int64_t old = t->block[j];
    t->block[j] = b, t->at[j] = ni_pool_at(t->pool, b);
    t->pool->blocks[b].top = top(j, t->written);
    return old;
}

int ni_table_put(ni_table *t, int64_t j, int64_t b, int64_t n, ni_status *st) {
    if (t->first == t->end) t->first = t->end = j;
    if (grow(t, j + 1, st)) return -1;
    block *own = &t->pool->blocks[b];
    own->count++;
    if (own->top < n) own->top = (int32_t)n;
    t->block[j] = b, t->at[j] = ni_pool_at(t->pool, b);
    t->end = j + 1;
    return 0;
}

int ni_table_share(ni_table *t, const ni_table *from, int64_t n, ni_status *st) {
    int64_t end = chunks(n);
    if (grow(t, end, st)) return -1;
    cut(t, 0);
    t->first = t->end = least(from->first, end);
    for (; t->end < end; t->end++) {
        t->block[t->end] = from->block[t->end], t->at[t->end] = from->at[t->end];
        t->pool->blocks[t->block[t->end]].count++;
    }
    return 0;
}

void ni_table_close(ni_table *t) {
    cut(t, 0);
    free(t->block), free(t->at);
    t->block = NULL, t->at = NULL, t->room = 0;
}
