/* How a matmul's work is cut over workers.  cut.h says how and why. */
#include "cut.h"
#include "team.h"

enum {
    SHARED = 4,         /* a quarter of the work is taken in pieces */
    PIECES = 32,        /* of a worker's part, at most */
    LEAST_TILES = 8,    /* for each worker: with fewer, one more or less would weigh too much */
    FLOAT_GROUPS = 4,   /* row groups that dots of float weights take at once */
    MOST_GROUPS = 32,   /* of a score's unit, and rows: a block of panels */
    MOST_ROWS = 128
};

/* A line's parts, in memory that waits for no arithmetic, hold for up to 32 tokens; a grid reads weights as often as it has columns. */
const ni_sizes ni_default_sizes = {.crew = 16, .piece_bytes = 64 << 10, .exact_groups = 16, .line_tokens = 32,
                                   .tile_groups = 32, .tile_tokens = 128};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void ni_node_cut(int64_t n, int64_t first, int64_t size, int64_t n_workers, int64_t *g0, int64_t *g1) {
    const int64_t groups = ceil_div(n, NI_ROWS);
    *g0 = groups * first / n_workers;
    *g1 = groups * (first + size) / n_workers;
}

ni_run ni_run_of(const ni_weight *const *w, int n, int64_t n_tokens, int64_t first, int64_t size, int64_t n_workers, const ni_sizes *s) {
    ni_run r = {.n = n, .k = w[0]->k, .n_tokens = n_tokens, .size = size, .least = 1, .slabs = ceil_div(w[0]->k, NI_SLAB)};
    for (int j = 0; j < n; j++) {
        const ni_type type = (ni_type)w[j]->type;
        int64_t g0, g1;
        ni_node_cut(w[j]->n, first, size, n_workers, &g0, &g1);
        r.part[j].first = g0, r.part[j].groups = g1 - g0;
        r.part[j].group_bytes = (int64_t)ni_group_bytes(type, r.k), r.part[j].slab_bytes = (int64_t)ni_group_bytes(type, NI_SLAB);
        r.groups += g1 - g0, r.bytes += (g1 - g0) * r.part[j].group_bytes;
        /* A whole block where panels are multiplied, for its tokens are gathered anew. */
        if (!ni_are_few(n_tokens, type)) r.least = ni_max(r.least, s->tile_groups);
        else if (ni_formats[type].kind == NI_PANEL_FLOAT) r.least = ni_max(r.least, FLOAT_GROUPS);
    }
    return r;
}

/* ---- line ----------------------------------------------------------------------------------------------------- */

/* The first slab, counted over the run, that begins at or behind that byte of it; whole: the first slab of a row group. */
static int64_t slab_at(const ni_run *r, int64_t byte, int whole) {
    int64_t slab = 0;
    for (int j = 0; j < r->n; j++) {
        const int64_t group = r->part[j].group_bytes, groups = r->part[j].groups;
        if (byte < groups * group) {
            const int64_t rest = ceil_div(byte % group, r->part[j].slab_bytes);
            return slab + byte / group * r->slabs + (whole && rest ? r->slabs : rest);
        }
        slab += groups * r->slabs, byte -= groups * group;
    }
    return slab;
}

/* Bytes of the run before a row group. */
static int64_t byte_of(const ni_run *r, int64_t group) {
    int64_t byte = 0;
    for (int j = 0; j < r->n && group > 0; group -= r->part[j].groups, j++)
        byte += (group < r->part[j].groups ? group : r->part[j].groups) * r->part[j].group_bytes;
    return byte;
}

int64_t ni_crews(int64_t size, const ni_sizes *s) { return ceil_div(size, s->crew); }

ni_crew ni_crew_of(const ni_run *r, int64_t rank, const ni_sizes *s) {
    const int64_t crews = ni_crews(r->size, s);
    ni_crew c = {.number = ((rank + 1) * crews - 1) / r->size};     /* as ni_cut deals ranks out */
    int64_t end;
    ni_cut(r->size, crews, c.number, &c.rank0, &end);
    c.size = end - c.rank0;
    c.first = slab_at(r, r->bytes * c.rank0 / r->size, 1) / r->slabs;
    c.end = c.shared = slab_at(r, r->bytes * end / r->size, 1) / r->slabs;
    if (c.first == c.end) return c;
    const int64_t groups = c.end - c.first, bytes = byte_of(r, c.end) - byte_of(r, c.first), each = groups / c.size;
    const int64_t piece = ni_max(ni_max(r->least, each / PIECES), ceil_div(s->piece_bytes * groups, bytes));
    if (c.size > 1) c.n_pieces = each / SHARED / piece * c.size;    /* as many for each: equally fast workers end together */
    c.shared -= c.n_pieces * piece;
    const int64_t own = (byte_of(r, c.shared) - byte_of(r, c.first)) / c.size;
    /* No shorter than a group: of three workers in one the second would have nothing to do but wait for the first. */
    c.exact = (c.shared - c.first) / c.size < s->exact_groups;
    for (int j = 0; j < r->n; j++) c.exact &= own >= r->part[j].group_bytes;
    return c;
}

ni_share ni_share_of(const ni_run *r, const ni_crew *c, int64_t rank) {
    const int64_t from = byte_of(r, c->first), bytes = byte_of(r, c->shared) - from, i = rank - c->rank0;
    const int64_t a = slab_at(r, from + bytes * i / c->size, !c->exact), b = slab_at(r, from + bytes * (i + 1) / c->size, !c->exact);
    const ni_block all = {0, 0, 0, r->k, 0, r->n_tokens};
    ni_share own = {all, all, all};
    own.whole.g0 = ceil_div(a, r->slabs), own.whole.g1 = b / r->slabs;
    if (a % r->slabs) own.head.g0 = a / r->slabs, own.head.g1 = own.head.g0 + 1, own.head.k0 = a % r->slabs * NI_SLAB;
    if (b % r->slabs) own.tail.g0 = b / r->slabs, own.tail.g1 = own.tail.g0 + 1, own.tail.k1 = b % r->slabs * NI_SLAB;
    return own;
}

ni_block ni_crew_piece(const ni_run *r, const ni_crew *c, int64_t i) {
    ni_block b = {.k1 = r->k, .t1 = r->n_tokens};
    ni_cut(c->end - c->shared, c->n_pieces, i, &b.g0, &b.g1);
    b.g0 += c->shared, b.g1 += c->shared;
    return b;
}

/* ---- grid ----------------------------------------------------------------------------------------------------- */

/* Time of the most loaded worker of a strip of w workers, roughly.  The unit is a third of a panel's product with a token, for this is
 * what gathering a token's slab costs, once for tile_groups groups. */
static int64_t strip_cost(const ni_run *r, int64_t own, int64_t w, const ni_sizes *s) {
    const int64_t groups = ceil_div(own * w, r->size), tokens = ceil_div(r->n_tokens, w);
    return 3 * groups * (tokens + NI_UNPACK) + tokens * ceil_div(groups, s->tile_groups);
}

ni_grid ni_grid_of(const ni_run *r, const ni_sizes *s) {
    ni_grid g = {.strips = r->size, .columns = ceil_div(r->n_tokens, s->tile_tokens)};
    const int64_t tiles = r->groups * g.columns / s->tile_groups / r->size;     /* for each worker, if all were cut so */
    if (r->size > 1 && tiles >= LEAST_TILES) g.rows = ceil_div(tiles / SHARED * r->size, g.columns);
    if (2 * g.rows * s->tile_groups > r->groups) g.rows = 0;
    g.own = r->groups - g.rows * s->tile_groups;
    int64_t best = INT64_MAX;
    for (int64_t n = r->size; n >= 1; n--) {    /* a strip has r->size / n workers, or one more */
        const int64_t few = strip_cost(r, g.own, r->size / n, s), many = strip_cost(r, g.own, ceil_div(r->size, n), s);
        if (ni_max(few, many) < best) best = ni_max(few, many), g.strips = n;
    }
    return g;
}

ni_block ni_grid_share(const ni_run *r, const ni_grid *g, int64_t rank) {
    const int64_t strip = ((rank + 1) * g->strips - 1) / r->size;   /* as ni_cut deals ranks out */
    int64_t first, end;
    ni_cut(r->size, g->strips, strip, &first, &end);
    ni_block b = {.g0 = g->own * first / r->size, .g1 = g->own * end / r->size, .k1 = r->k};
    ni_cut(r->n_tokens, end - first, rank - first, &b.t0, &b.t1);
    return b;
}

ni_block ni_grid_piece(const ni_run *r, const ni_grid *g, int64_t i, const ni_sizes *s) {
    ni_block b = {.g0 = g->own + i / g->columns * s->tile_groups, .k1 = r->k};
    b.g1 = b.g0 + s->tile_groups;
    ni_cut(r->n_tokens, g->columns, i % g->columns, &b.t0, &b.t1);
    return b;
}

/* ---- experts --------------------------------------------------------------------------------------------------- */

static int64_t rows_of(const ni_choice *c, int64_t e) { return c->first[e + 1] - c->first[e]; }

ni_choice ni_choice_of(const ni_weight *const *w, int n, int64_t experts, const int32_t *first, int64_t n_tokens,
                       const int64_t (*own)[2], int64_t size, const ni_sizes *s) {
    ni_choice c = {.n = n, .k = w[0]->k, .slabs = ceil_div(w[0]->k, NI_SLAB), .size = size, .crews = ni_crews(size, s), .experts = experts,
                   .first = first};
    int64_t all = 0, chosen = 0, bytes = 0, largest = 0, rows = 0, few = 1;
    for (int j = 0; j < n; j++) {
        const ni_type type = (ni_type)w[j]->type;
        c.part[j].first = own[j][0], c.part[j].groups = own[j][1] - own[j][0];
        c.part[j].group_bytes = (int64_t)ni_group_bytes(type, c.k), c.part[j].slab_bytes = (int64_t)ni_group_bytes(type, NI_SLAB);
        all += c.part[j].groups, bytes += c.part[j].groups * c.part[j].group_bytes;
        if (c.part[j].groups) largest = ni_max(largest, c.part[j].group_bytes);
    }
    for (int64_t e = 0; e < experts; e++) {
        if (!rows_of(&c, e)) continue;
        chosen++, rows = ni_max(rows, rows_of(&c, e));
        c.cost += bytes * (rows_of(&c, e) + NI_UNPACK);
    }
    c.most = largest * (rows + NI_UNPACK);
    for (int j = 0; j < n; j++) few &= ni_are_few(rows, w[j]->type);
    /* As in a line: a piece lasts a while; where panels are multiplied it has the groups that the gathered rows serve. */
    c.piece = ni_max(few ? s->piece_bytes * (rows + NI_UNPACK) : s->tile_groups * c.most, ni_max(c.most, c.cost / size / PIECES));
    if (size > c.crews) c.each = c.cost / size / SHARED / ni_max(c.piece, 1);
    /* As in a line: in no group are there three workers.  A seam has room for a row of each token: not where one meets an expert twice. */
    const int64_t shared = c.each ? all * chosen / SHARED : 0;
    c.exact = size > 1 && n_tokens <= s->line_tokens && rows <= n_tokens && (all * chosen - shared) / size < s->exact_groups
              && c.cost / size - c.each * c.piece >= c.most;
    return c;
}

/* The place behind so much of the run's cost; whole: the first row group that begins there or later. */
static ni_spot spot_at(const ni_choice *c, int64_t cost, int whole) {
    for (int64_t e = 0; e < c->experts; e++)
        for (int j = 0; j < c->n && rows_of(c, e); j++) {
            const int64_t times = rows_of(c, e) + NI_UNPACK, group = c->part[j].group_bytes * times, groups = c->part[j].groups;
            if (cost >= groups * group) { cost -= groups * group; continue; }
            ni_spot at = {e, j, cost / group, ceil_div(cost % group, c->part[j].slab_bytes * times)};
            if (at.slab && (whole || at.slab >= c->slabs)) at.group++, at.slab = 0;
            return at;
        }
    return (ni_spot){.expert = c->experts};
}

/* Cost of the first `rank` workers' stretches. */
static int64_t cost_before(const ni_choice *c, int64_t rank) { return c->cost / c->size * rank + c->cost % c->size * rank / c->size; }

/* A crew's ranks [*a, *b), and the cost at which its pieces begin. */
static int64_t crew_at(const ni_choice *c, int64_t crew, int64_t *a, int64_t *b) {
    ni_cut(c->size, c->crews, crew, a, b);
    return cost_before(c, *b) - c->each * c->piece * (*b - *a);
}

static int64_t crew_of(const ni_choice *c, int64_t rank) { return ((rank + 1) * c->crews - 1) / c->size; }  /* as ni_cut deals ranks out */

ni_span ni_own_of(const ni_choice *c, int64_t rank) {
    int64_t a, b;
    const int64_t shared = crew_at(c, crew_of(c, rank), &a, &b), first = cost_before(c, a), own = shared - first, i = rank - a, n = b - a;
    const int whole = !c->exact;    /* own parts do, pieces do not, end within a group */
    return (ni_span){spot_at(c, first + own / n * i + own % n * i / n, whole || (i == 0 && c->each)),
                     spot_at(c, first + own / n * (i + 1) + own % n * (i + 1) / n, whole || (i + 1 == n && c->each))};
}

int64_t ni_pieces_of(const ni_choice *c, int64_t rank, int64_t *n_pieces) {
    int64_t a, b;
    crew_at(c, crew_of(c, rank), &a, &b);
    *n_pieces = c->each * (b - a);
    return crew_of(c, rank);
}

ni_span ni_piece_of(const ni_choice *c, int64_t crew, int64_t i) {
    int64_t a, b;
    const int64_t from = crew_at(c, crew, &a, &b) + i * c->piece;
    return (ni_span){spot_at(c, from, 1), spot_at(c, from + c->piece, 1)};
}

int ni_between(const ni_choice *c, const ni_span *s, int64_t expert, int j, int64_t *g0, int64_t *g1) {
    const ni_spot *a = &s->from, *b = &s->to;
    const int64_t here = expert * c->n + j, from = a->expert * c->n + a->matrix, to = b->expert * c->n + b->matrix;
    if (!rows_of(c, expert) || here < from || here > to) return 0;
    *g0 = c->part[j].first + (here == from ? a->group + (a->slab > 0) : 0);
    *g1 = c->part[j].first + (here == to ? b->group : c->part[j].groups);
    return *g0 < *g1;
}

ni_scoring ni_scoring_of(const ni_weight *w, int64_t parts, int64_t n_rows, int64_t size) {
    const int64_t n_groups = ceil_div(w->n, NI_ROWS);
    const int few = ni_are_few(n_rows, w->type);
    /* Parts are dots of one group each: group after group, so that memory is read in its order. */
    ni_scoring s = {.groups = !few ? MOST_GROUPS : parts > 1 ? 1 : FLOAT_GROUPS, .columns = ceil_div(n_rows, MOST_ROWS)};
    for (;;) {
        s.blocks = ceil_div(n_groups, s.groups);
        const int64_t units = s.blocks * parts * s.columns, most = ceil_div(units, size);
        if (10 * most * size <= 11 * units || (s.groups == 1 && (few || s.columns == n_rows))) return s;
        /* Few rows wait for memory: another column would read it again.  Many share what is unpacked. */
        if (few || s.columns == n_rows) s.groups /= 2;
        else s.columns = s.columns * 2 < n_rows ? s.columns * 2 : n_rows;
    }
}

/* ---- all of a team, for those who count ------------------------------------------------------------------------- */

typedef struct { ni_matmul_unit *at, *end; int64_t n; ni_matmul_unit as; } list;

static void list_block(list *l, const ni_run *r, const ni_block *b) {
    ni_matmul_unit u = l->as;
    u.k0 = b->k0, u.k1 = b->k1, u.t0 = b->t0, u.t1 = b->t1;
    for (int j = 0; j < r->n; j++) {
        u.matrix = j;
        if (b->t0 >= b->t1 || !ni_of_matrix(r, b, j, &u.g0, &u.g1)) continue;
        if (l->at < l->end) *l->at++ = u;
        l->n++;
    }
}

static void list_line(list *l, const ni_run *r, const ni_sizes *s) {
    for (int64_t rank = 0; rank < r->size; rank++) {
        const ni_crew c = ni_crew_of(r, rank, s);
        const ni_share own = ni_share_of(r, &c, rank);
        l->as.crew = (int32_t)c.number, l->as.rank = (int32_t)rank;
        list_block(l, r, &own.tail), list_block(l, r, &own.whole), list_block(l, r, &own.head);
        if (rank != c.rank0) continue;
        l->as.rank = -1;
        for (int64_t i = 0; i < c.n_pieces; i++) {
            const ni_block b = ni_crew_piece(r, &c, i);
            l->as.piece = (int32_t)i;
            list_block(l, r, &b);
        }
        l->as.piece = -1;
    }
}

static void list_grid(list *l, const ni_run *r, const ni_sizes *s) {
    const ni_grid g = ni_grid_of(r, s);
    l->as.crew = 0;
    for (int64_t rank = 0; rank < r->size; rank++) {
        const ni_block b = ni_grid_share(r, &g, rank);
        l->as.rank = (int32_t)rank;
        list_block(l, r, &b);
    }
    l->as.rank = -1;
    for (int64_t i = 0; i < g.rows * g.columns; i++) {
        const ni_block b = ni_grid_piece(r, &g, i, s);
        l->as.piece = (int32_t)i;
        list_block(l, r, &b);
    }
    l->as.piece = -1;
}

int64_t ni_matmul_units(const ni_weight *const *w, int n, int64_t n_tokens, const int *workers, int n_nodes, const ni_sizes *s,
                        ni_matmul_unit *units, int64_t most) {
    list l = {.at = units, .end = units + most, .as = {.piece = -1}};
    int64_t all = 0, first = 0;
    for (int i = 0; i < n_nodes; i++) all += workers[i];
    for (int i = 0; i < n_nodes; first += workers[i++]) {
        const ni_run r = ni_run_of(w, n, n_tokens, first, workers[i], all, s);
        l.as.node = i;
        if (ni_is_line(&r, s)) list_line(&l, &r, s);
        else list_grid(&l, &r, s);
    }
    return l.n;
}

/* A spot's row group: what lies before the spot, or (behind) from it on. */
static void list_cut(list *l, const ni_choice *c, const ni_spot *at, int behind) {
    if (!at->slab) return;
    ni_matmul_unit u = l->as;
    u.matrix = (int32_t)at->matrix, u.t0 = c->first[at->expert], u.t1 = c->first[at->expert + 1];
    u.g0 = c->part[at->matrix].first + at->group, u.g1 = u.g0 + 1;
    u.k0 = behind ? at->slab * NI_SLAB : 0, u.k1 = behind ? c->k : at->slab * NI_SLAB;
    if (l->at < l->end) *l->at++ = u;
    l->n++;
}

static void list_span(list *l, const ni_choice *c, ni_span s) {
    list_cut(l, c, &s.to, 0);
    for (int64_t e = s.from.expert; e <= s.to.expert && e < c->experts; e++)
        for (int j = 0; j < c->n; j++) {
            ni_matmul_unit u = l->as;
            u.matrix = j, u.k1 = c->k, u.t0 = c->first[e], u.t1 = c->first[e + 1];
            if (!ni_between(c, &s, e, j, &u.g0, &u.g1)) continue;
            if (l->at < l->end) *l->at++ = u;
            l->n++;
        }
    list_cut(l, c, &s.from, 1);
}

int64_t ni_grouped_units(const ni_weight *const *w, int n, int64_t experts, const int32_t *first, int64_t n_tokens, const int *workers,
                         int n_nodes, const ni_sizes *s, ni_matmul_unit *units, int64_t most) {
    list l = {.at = units, .end = units + most, .as = {.piece = -1}};
    int64_t all = 0, before = 0, own[NI_MATRICES][2], n_pieces;
    for (int i = 0; i < n_nodes; i++) all += workers[i];
    for (int i = 0; i < n_nodes; before += workers[i++]) {
        for (int j = 0; j < n; j++) ni_node_cut(w[j]->n, before, workers[i], all, &own[j][0], &own[j][1]);
        const ni_choice c = ni_choice_of(w, n, experts, first, n_tokens, own, workers[i], s);
        l.as.node = i;
        for (int rank = 0, crew = -1; rank < workers[i]; rank++) {
            l.as.rank = rank, l.as.crew = (int32_t)ni_pieces_of(&c, rank, &n_pieces);
            list_span(&l, &c, ni_own_of(&c, rank));
            if (l.as.crew == crew) continue;
            crew = l.as.crew, l.as.rank = -1;
            for (l.as.piece = 0; l.as.piece < n_pieces; l.as.piece++) list_span(&l, &c, ni_piece_of(&c, crew, l.as.piece));
            l.as.piece = -1;
        }
    }
    return l.n;
}

void ni_score_work(const ni_weight *w, int64_t parts, int64_t n_rows, int64_t size, int64_t rank, int64_t *work) {
    const ni_scoring s = ni_scoring_of(w, parts, n_rows, size);
    const int64_t n_groups = ceil_div(w->n, NI_ROWS);
    int64_t a, b, t0, t1;
    work[0] = work[1] = 0;
    ni_cut(s.blocks * parts * s.columns, size, rank, &a, &b);
    for (int64_t unit = a; unit < b; unit++) {
        const int64_t g = unit / s.columns / parts * s.groups, groups = n_groups - g < s.groups ? n_groups - g : s.groups;
        const int64_t k0 = parts > 1 ? unit / s.columns % parts * NI_SLAB : 0, k1 = parts > 1 && k0 + NI_SLAB < w->k ? k0 + NI_SLAB : w->k;
        ni_cut(n_rows, s.columns, unit % s.columns, &t0, &t1);
        work[0] += groups * (int64_t)(ni_group_bytes((ni_type)w->type, k1) - ni_group_bytes((ni_type)w->type, k0));
        work[1] += groups * NI_ROWS * (k1 - k0) * (t1 - t0);
    }
}
