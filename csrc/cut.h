/* Who multiplies what: a matmul's work, cut over the workers of a team.
 *
 * Pure functions of shapes, tokens and numbers of workers: ops/matmul.c works by them, bench/balance.py counts with them.
 *
 * Between nodes: each matrix by itself, in proportion to the nodes' workers (ni_node_cut), so that a node's copy holds the same rows
 * whichever matrices share an op.  Within a node the row groups of an op's matrices are one long run, cut in one of two ways:
 *
 * Line, for few tokens, where bytes count.  The node's workers stand in crews of about equal size, each with a stretch of the run.  A
 * crew's stretch begins with its workers' own parts, of equal bytes; behind them lie pieces, taken by whoever is free.  Short parts
 * may end in the midst of a row group, at a multiple of NI_SLAB along K: the next worker continues the sums that this one leaves, so
 * that the bits are those of an undivided sum.
 *
 * Grid, for many tokens, where multiply-adds count.  The workers stand in strips: a strip has a stretch of row groups, its workers a
 * part of the tokens each.  At the run's end lie pieces, of so many row groups times so many tokens, where there are enough of them. */
#ifndef NI_CUT_H
#define NI_CUT_H
#include "ni.h"

/* What a node multiplies in one op. */
typedef struct {
    int n;                              /* matrices */
    int64_t k, n_tokens, size;          /* size: the node's workers */
    int64_t least;                      /* row groups that a piece has, at least */
    int64_t groups, bytes, slabs;       /* of all matrices; slabs of a row group */
    struct { int64_t first, groups, group_bytes, slab_bytes; } part[NI_MATRICES];   /* first: in the matrix */
} ni_run;

/* Row groups [g0, g1) of a run, values [k0, k1) of their rows, tokens [t0, t1). */
typedef struct { int64_t g0, g1, k0, k1, t0, t1; } ni_block;

/* Workers [rank0, rank0 + size) of a node, the row groups [first, end) of its run; from `shared` on they lie in n_pieces pieces. */
typedef struct { int64_t number, rank0, size, first, shared, end, n_pieces; int exact; } ni_crew;

/* A worker's own part in a line: it begins with the rest of a group that the worker before it began, and ends with the beginning of
 * one that the next worker ends.  A block without groups: none. */
typedef struct { ni_block head, whole, tail; } ni_share;

/* Strips of a node's workers over its groups [0, own), then `rows` rows of tiles, `columns` in each. */
typedef struct { int64_t strips, own, rows, columns; } ni_grid;

/* A score's units, for rows in `parts` parts: so many row groups at most, in all of them `blocks`, and rows in so many columns; as few as lie
 * evenly on a node's workers. */
typedef struct { int64_t groups, blocks, columns; } ni_scoring;
ni_scoring ni_scoring_of(const ni_weight *w, int64_t parts, int64_t n_rows, int64_t size);

/* Is a dot for each token cheaper than panels? */
static inline int ni_are_few(int64_t n_tokens, int type) { return n_tokens <= 1 || n_tokens <= ni_k->few[type]; }

/* The node whose workers are [first, first + size) of n_workers. */
ni_run ni_run_of(const ni_weight *const *w, int n, int64_t n_tokens, int64_t first, int64_t size, int64_t n_workers, const ni_sizes *s);
int64_t ni_crews(int64_t size, const ni_sizes *s);
static inline int ni_is_line(const ni_run *r, const ni_sizes *s) { return r->n_tokens <= s->line_tokens; }

ni_crew ni_crew_of(const ni_run *r, int64_t rank, const ni_sizes *s);
ni_share ni_share_of(const ni_run *r, const ni_crew *c, int64_t rank);
ni_block ni_crew_piece(const ni_run *r, const ni_crew *c, int64_t i);

ni_grid ni_grid_of(const ni_run *r, const ni_sizes *s);
ni_block ni_grid_share(const ni_run *r, const ni_grid *g, int64_t rank);
ni_block ni_grid_piece(const ni_run *r, const ni_grid *g, int64_t i, const ni_sizes *s);

/* The row groups [*g0, *g1) of matrix j, counted from its own first, that lie in the block; 0 if there are none. */
static inline int ni_of_matrix(const ni_run *r, const ni_block *b, int j, int64_t *g0, int64_t *g1) {
    int64_t before = 0;
    for (int i = 0; i < j; i++) before += r->part[i].groups;
    const int64_t from = b->g0 - before, to = b->g1 - before, most = r->part[j].groups;
    *g0 = r->part[j].first + (from > 0 ? from : 0);
    *g1 = r->part[j].first + (to < most ? to : most);
    return *g0 < *g1;
}

/* Experts, where every row meets one of several matrices: a node's row groups of all that some row meets, one expert after the other, and
 * of each its matrices one after the other, are one run, cut by cost: a row group's bytes, as often as rows meet it and what reading it
 * costs besides.  As in a line, workers stand in crews, each with a stretch of the run, own parts first and then pieces that whoever is
 * free takes; for few tokens parts may end in the midst of a row group. */
typedef struct {
    int n, exact;                       /* matrices; parts may end within a group */
    int64_t k, slabs, size, crews, experts; /* size: the node's workers */
    int64_t cost, most;                 /* of all; of a row group, at most */
    int64_t piece, each;                /* a piece's cost; pieces for each worker */
    const int32_t *first;               /* rows first[e] to first[e + 1], in the order of experts, meet expert e */
    struct { int64_t first, groups, group_bytes, slab_bytes; } part[NI_MATRICES];   /* of each expert's matrix */
} ni_choice;

/* A place in that run: slab `slab` of a matrix's row group, counted from the node's first. */
typedef struct { int64_t expert, matrix, group, slab; } ni_spot;

/* What lies between two spots. */
typedef struct { ni_spot from, to; } ni_span;

/* own[j]: the row groups of matrix j, of each expert, that are the node's. */
ni_choice ni_choice_of(const ni_weight *const *w, int n, int64_t experts, const int32_t *first, int64_t n_tokens,
                       const int64_t (*own)[2], int64_t size, const ni_sizes *s);
/* The own part of the worker of that rank; one that begins or ends within a group ends, or begins, its neighbour's. */
ni_span ni_own_of(const ni_choice *c, int64_t rank);
/* The crew of the worker of that rank, and how many pieces it has. */
int64_t ni_pieces_of(const ni_choice *c, int64_t rank, int64_t *n_pieces);
ni_span ni_piece_of(const ni_choice *c, int64_t crew, int64_t i);
/* The whole row groups [*g0, *g1) of matrix j of an expert within the span; 0 if there are none. */
int ni_between(const ni_choice *c, const ni_span *s, int64_t expert, int j, int64_t *g0, int64_t *g1);
#endif
