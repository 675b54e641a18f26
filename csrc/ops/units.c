/* Who attends to what.
 *
 * A unit costs the positions it reads times (its queries + READING), and for the first token of a head START positions more.  What units
 * 0 .. u - 1 of a segment cost together has a closed form, so a worker finds its first unit by halving. */
#include "units.h"
#include <stdlib.h>

/* Reading a position takes as long as the products of so many queries with it: 512 bytes (128 values of f16 for key and value) at the
 * 8 GB/s of a core where all read at once, against 256 multiply-adds at 60 G/s. */
enum { READING = 16 };

/* A sequence's memory is cold where a head begins, and its queries are prepared there: beside 16,000 positions of one sequence, those of 63
 * sequences of 100 took 1.9 to 2.3 times as long each (bench/attention.py, by the difference between places). */
enum { START = 112 };

static const char *const names[] = {
#define NI_ATTENTION_INT(name) #name,
#include "attention.def"
#undef NI_ATTENTION_INT
};

const char *ni_attention_int(int i) { return i >= 0 && i < NI_N_ATTENTION_INTS ? names[i] : NULL; }

/* Positions seen by queries at 0 .. x - 1, together. */
static int64_t seen_below(const ni_attention *n, int64_t x) {
    const int64_t w = n->window && x > n->window ? n->window : x;
    if (n->pieces && w < x) return x / w * (w * (w + 1) / 2) + x % w * (x % w + 1) / 2;
    return w * (w + 1) / 2 + (x - w) * w;
}

/* Positions below x of kv-head g that the line's node holds. */
static int64_t held(const ni_attention *n, const ni_line *l, int64_t g, int64_t x) {
    if (l->n_nodes == 1) return x;
    const int64_t turn = n->turn * NI_CHUNK, round = turn * l->n_nodes, mine = (l->node + l->n_nodes - g % l->n_nodes) % l->n_nodes;
    return x / round * turn + ni_max(0, ni_min(turn, x % round - mine * turn));
}

static int64_t held_and_seen(const ni_attention *n, const ni_line *l, int64_t g, int64_t x) { return held(n, l, g, x) - held(n, l, g, l->from); }

static int64_t tile_size(const ni_attention *n, const ni_line *l, int64_t first) { return ni_min(NI_TILE, l->n * n->group - first); }

/* Cost of the first i queries of a kv-head, of all that they see. */
static int64_t cost_of_queries(const ni_attention *n, const ni_line *l, int64_t i) {
    const int64_t pos = l->s->pos0 + i / n->group, queries = tile_size(n, l, 0);
    const int64_t whole = seen_below(n, pos) - seen_below(n, l->s->pos0), last = seen_below(n, pos + 1) - seen_below(n, pos);
    return (n->group * whole + i % n->group * last + ni_min(i, n->group) * START) * (queries + READING) / queries;
}

/* Cost of the line's units before u; u may be their number. */
static int64_t cost_before(const ni_attention *n, const ni_line *l, int64_t u) {
    const int64_t runs = l->runs.end - l->runs.first, g = u / (l->tiles * runs), run = u / l->tiles % runs, tile = u % l->tiles;
    if (!l->split) return g * cost_of_queries(n, l, l->n * n->group) + cost_of_queries(n, l, tile * NI_TILE);
    /* Of n_nodes kv-heads in a row every node holds as much as there is of one. */
    const int64_t end = l->s->pos0 + 1, from = ni_max(l->from, (l->runs.first + run) * NI_CHUNK << l->runs.shift);
    const int64_t to = ni_min(end, (l->runs.first + run + 1) * NI_CHUNK << l->runs.shift);
    int64_t heads = g / l->n_nodes * (end - l->from) + g * START;
    for (int64_t h = g / l->n_nodes * l->n_nodes; h < g; h++) heads += held_and_seen(n, l, h, end);
    const int64_t before = held_and_seen(n, l, g, from) + (run ? START : 0);
    const int64_t here = held_and_seen(n, l, g, to) - held_and_seen(n, l, g, from) + (run ? 0 : START);
    return (heads + before) * (n->group + l->tiles * READING) + tile * (NI_TILE + READING) * here;
}

static int64_t units_in(const ni_line *l) { return l->heads * l->tiles * (l->runs.end - l->runs.first); }

/* The units of a segment that the worker's node (pass 0) or the team (pass 1) cuts.  Where kv-heads divide evenly each is one node's; else
 * runs are, and units that read several runs are anyone's. */
static ni_line line_of(const ni_walk *w, int place) {
    const ni_attention *n = w->n;
    const int64_t segment = w->places[place].segment;
    const ni_segment *s = &w->step->segments[segment];
    const int n_nodes = w->me->n_nodes, even = n->kv_heads % n_nodes == 0;
    const int64_t queries = ni_unlisted(n, s);
    ni_line l = {.s = s, .n = queries, .split = w->slots[segment] >= 0, .heads = n->kv_heads, .tiles = (queries * n->group + NI_TILE - 1) / NI_TILE,
                 .runs = {0, 1, 0}, .node = w->me->node, .n_nodes = 1};
    if (even) l.heads /= n_nodes, l.g0 = l.heads * w->me->node;
    else if (l.split) l.n_nodes = n_nodes;
    if (w->pass != (!even && !l.split) || !queries) l.heads = 0;
    if (l.split) l.from = ni_first_seen(n, s->pos0), l.runs = ni_query_runs(n, s->pos0);
    return l;
}

/* First u of 0 .. units - 1 whose middle lies at `cost` or behind it. */
static int64_t search(const ni_attention *n, const ni_line *l, int64_t cost) {
    int64_t low = 0, high = units_in(l);
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (cost_before(n, l, middle) + cost_before(n, l, middle + 1) < 2 * cost) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void enter(ni_walk *w, int place) {
    w->place = place;
    if (place == w->step->n_segments) return;
    const int64_t before = w->before[place];
    w->line = line_of(w, place);
    w->unit = before >= w->a ? 0 : search(w->n, &w->line, w->a - before);
    w->end = w->before[place + 1] <= w->b ? units_in(&w->line) : search(w->n, &w->line, w->b - before);
}

static void start_pass(ni_walk *w, int pass) {
    w->pass = pass;
    int64_t sum = 0;
    const int segments = w->step->n_segments;
    for (int i = 0; i < segments; i++) {
        w->before[i] = sum;
        const ni_line l = line_of(w, i);
        if (l.heads) sum += cost_before(w->n, &l, units_in(&l));
    }
    w->before[segments] = sum;
    ni_cut(sum, pass ? w->me->n_workers : w->me->size, pass ? w->me->worker : w->me->rank, &w->a, &w->b);
    int low = 0, high = segments;   /* the first place that ends behind a */
    while (low < high) {
        const int middle = (low + high) / 2;
        if (w->before[middle + 1] <= w->a) low = middle + 1;
        else high = middle;
    }
    enter(w, low);
}

void ni_walk_start(ni_walk *w, const ni_attention *n, const ni_step *step, const ni_place *places, const int32_t *slots,
                   const ni_worker *me, int64_t *before) {
    *w = (ni_walk){.n = n, .step = step, .places = places, .slots = slots, .me = me, .before = before};
    start_pass(w, 0);
}

int ni_walk_next(ni_walk *w, ni_unit *u) {
    const ni_attention *n = w->n;
    for (;;) {
        const ni_line *l = &w->line;
        if (w->place == w->step->n_segments || w->before[w->place] >= w->b) {
            if (w->pass || n->kv_heads % w->me->n_nodes == 0) return 0;
            start_pass(w, 1);
            continue;
        }
        if (w->unit >= w->end) {
            enter(w, w->place + 1);
            continue;
        }
        const int64_t unit = w->unit++, runs = l->runs.end - l->runs.first, first = unit % l->tiles * NI_TILE, run = unit / l->tiles % runs;
        const int64_t pos = l->s->pos0 + first / n->group;
        *u = (ni_unit){.segment = w->places[w->place].segment, .g = l->g0 + unit / (l->tiles * runs), .first = first, .count = tile_size(n, l, first),
                       .part = l->split ? run : -1};
        u->j0 = ni_first_seen(n, pos) / NI_CHUNK, u->j1 = (l->s->pos0 + (first + u->count - 1) / n->group) / NI_CHUNK + 1;
        if (!l->split) return 1;
        u->j0 = ni_max(u->j0, (l->runs.first + run) << l->runs.shift);
        u->j1 = ni_min(u->j1, (l->runs.first + run + 1) << l->runs.shift);
        if (ni_kv_node(u->g, u->j0, n->kv_heads, n->turn, w->me->n_nodes) == w->me->node) return 1;
    }
}

static int longer(const void *a, const void *b) {
    const ni_place *x = a, *y = b;
    if (x->last != y->last) return x->last < y->last ? 1 : -1;
    if (x->n != y->n) return x->n < y->n ? 1 : -1;
    return x->segment < y->segment ? -1 : 1;
}

void ni_deal_slots(const ni_op *attend, const ni_step *step, ni_place *places, int32_t *slots) {
    for (int i = 0; i < step->n_segments; i++) {
        const ni_segment *s = &step->segments[i];
        places[i] = (ni_place){s->pos0 + s->n - 1, s->n, i};
    }
    qsort(places, (size_t)step->n_segments, sizeof *places, longer);
    const ni_attention n = ni_attention_of(attend);
    int64_t slot = 0;
    for (int i = 0; i < step->n_segments; i++) {
        const int64_t parts = ni_parts_at(&n, places[i].last);
        const int split = places[i].n == 1 && slot + parts <= n.part_runs;
        slots[places[i].segment] = split ? (int32_t)slot : -1;
        if (split) slot += parts;
    }
}

int ni_attend_costs(const int32_t *ints, int n_segments, const ni_segment *segments, const int *nodes, int n_workers, int64_t *costs,
                    ni_status *st) {
    ni_op op = {0};
    memcpy(op.i, ints, NI_N_ATTENTION_INTS * sizeof *ints);
    const ni_attention n = ni_attention_of(&op);
    const ni_step step = {.n_segments = n_segments, .segments = segments};
    const size_t count = (size_t)n_segments;
    uint8_t *memory = malloc(count * sizeof(ni_place) + (count + 1) * sizeof(int64_t) + count * sizeof(int32_t));
    if (!memory) return ni_fail(st, NI_ERR_MEMORY, "no memory to deal out %d sequences", n_segments);
    ni_place *places = (ni_place *)memory;
    int64_t *before = (int64_t *)(places + count);
    int32_t *slots = (int32_t *)(before + count + 1);
    ni_deal_slots(&op, &step, places, slots);
    for (int w = 0, first = 0; w < n_workers; w++) {
        if (nodes[w] != nodes[first]) first = w;
        ni_worker me = {.worker = w, .n_workers = n_workers, .node = nodes[w], .n_nodes = nodes[n_workers - 1] + 1, .rank = w - first};
        while (first + me.size < n_workers && nodes[first + me.size] == nodes[w]) me.size++;
        ni_walk walk;
        ni_unit u;
        ni_walk_start(&walk, &n, &step, places, slots, &me, before);
        for (costs[w] = 0; ni_walk_next(&walk, &u);) {
            const int64_t pos0 = segments[u.segment].pos0;
            const int64_t from = ni_max(u.j0 * NI_CHUNK, ni_first_seen(&n, pos0 + u.first / n.group));
            costs[w] += (ni_min(u.j1 * NI_CHUNK, pos0 + (u.first + u.count - 1) / n.group + 1) - from) * u.count;
            if (u.part <= 0) costs[w] += ni_max(0, ni_min(u.count, n.group - u.first)) * START;
        }
    }
    free(memory);
    return 0;
}
