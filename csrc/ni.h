/* numainfer's core, as Cython sees it: the only header that _core.pyx includes.
 *
 * Setup functions take a ni_status last and return 0 or NULL/-1 with the status filled.  Running a plan cannot fail.
 * Nothing here prints, exits, asserts on input, or changes the calling thread's affinity, signals or environment; its floating-point
 * mode only where a function says so.
 */
#ifndef NI_H
#define NI_H
#include <stddef.h>
#include <stdint.h>
#include "formats/formats.h"
#include "isa/kernels.h"

enum { NI_OK = 0, NI_ERR_SYSTEM = 1, NI_ERR_MEMORY = 2, NI_ERR_VALUE = 3, NI_ERR_PLACEMENT = 4 };

static inline int64_t ni_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ni_max(int64_t a, int64_t b) { return a > b ? a : b; }

typedef struct {
    int code;
    char text[480];     /* a complete English sentence: thing, found, wanted */
} ni_status;

/* ---- numa.c: nodes and the memory on them ------------------------------------------------------------------- */

/* 1 if libnuma works on this kernel, else 0 (one node is assumed then). */
int ni_numa_available(void);
int ni_numa_max_node(void);
/* Node of a CPU, 0 without NUMA, -1 for an unknown CPU. */
int ni_numa_node_of_cpu(int cpu);

typedef struct {
    void *base;
    size_t bytes;
    int bound;          /* 1: mbind was accepted; 0: the kernel refused it, first touch places the pages */
} ni_arena;

/* Reserves zeroed address space; no page is used before it is touched.  os_nodes[n]: bind the pages to that node (n = 1), interleave
 * them over the nodes (n > 1), or leave them to first touch (n = 0).  huge: ask for transparent huge pages. */
int ni_arena_open(ni_arena *a, size_t bytes, const int *os_nodes, int n, int huge, ni_status *st);
/* The same over a file in shared memory that has at least so many bytes, from its beginning; write: 0 to read only. */
int ni_arena_map(ni_arena *a, int fd, size_t bytes, const int *os_nodes, int n, int write, ni_status *st);
/* Takes the pages of bytes [at, at + bytes) of a mapped file, so that nobody meets SIGBUS there later; huge ones, where `at` is a multiple
 * of 2 MiB, as far as the kernel has them.  spread: over how many nodes the arena is interleaved, else 1.  Several threads may do so at
 * once.  Returns 0, or an errno: ENOSPC, the file system is full. */
int ni_arena_populate(const ni_arena *a, int fd, size_t at, size_t bytes, int spread);
/* Nobody writes through this mapping any more.  Returns 0 or an errno. */
int ni_arena_seal(const ni_arena *a);
void ni_arena_close(ni_arena *a);
/* Adds the resident bytes of a slice of the arena to bytes[0 .. n_nodes-1], by node.  *at: where the slice begins (0 at first), and then
 * where the next one does; at a->bytes all is counted.  A slice takes milliseconds, so that the caller can look at signals between them.
 * huge: every whole 2 MiB of the arena is a huge page, so that one question answers for it; else every page is asked about.
 * home >= 0: pages that lie elsewhere are moved to that node first, if the kernel lets them.
 * Returns 0, or the errno of a kernel that refuses to tell. */
int ni_arena_count(const ni_arena *a, size_t *at, int huge, int home, int64_t *bytes, int n_nodes);
/* Touches so many pages of an arena, evenly spread from the first to the last, and adds their bytes by node.  Returns as ni_arena_count. */
int ni_arena_sample(const ni_arena *a, int samples, int64_t *bytes, int n_nodes);

/* ---- team.c: worker threads ---------------------------------------------------------------------------------- */

typedef struct ni_team ni_team;

enum { NI_MOST_WORKERS = 4096, NI_MOST_CPUS = 1 << 20 };

/* Starts n workers: worker w is pinned to cpus[w] and belongs to node index nodes[w] (0 .. n_nodes-1, ascending, every node has a worker).
 * domains[w]: a number that neighbours of one node share who share an L3 cache; they meet before the others do.
 * Workers sleep until they get work. */
ni_team *ni_team_open(const int *cpus, const int *nodes, const int *domains, int n, int n_nodes, ni_status *st);
/* Ends the workers and frees the team.  In a forked child it only frees. */
void ni_team_close(ni_team *t);
int ni_team_size(const ni_team *t);
/* Asks a running job to end early; workers look at it between ops and inside long loops. */
void ni_team_cancel(ni_team *t);
/* Waits up to `ms` for the job that was started; 1: done, 0: still running. */
int ni_team_wait(ni_team *t, int ms);
/* After a finished job: 1 if it ended early because of ni_team_cancel. */
int ni_team_cancelled(const ni_team *t);
/* The CPU each worker was last seen on (n ints), for placement reports. */
void ni_team_cpus(const ni_team *t, int *cpus);

/* A point where workers meet (barrier.h).  Its lines are written by `size` of them at a barrier, and at the end of a job. */
typedef struct {
    int node;       /* whose workers meet here; -1: those of several */
    int up;         /* the point that the last to arrive goes on to; -1: all are together */
    int size;       /* so many arrive */
    int workers;    /* of them, workers that come from no other point; they are told of jobs here */
} ni_meeting;

/* Who meets where, of a team with these nodes and domains: fills m (room for 2 n points), of_worker (n: where each begins); returns the
 * number of points.  A point comes after those below it.  Needs no team. */
int ni_meetings(const int *nodes, const int *domains, int n, ni_meeting *m, int *of_worker);
/* The points of a running team, as many as m has room for; returns how many there are. */
int ni_team_meetings(const ni_team *t, ni_meeting *m, int room);

/* Sets the calling thread's floating-point mode to the default (nearest, denormals count, nothing traps); returns what it was, for
 * ni_floats_restore.  Around whatever computes on a thread that is not ours: the process may have set another mode. */
uint64_t ni_floats_default(void);
void ni_floats_restore(uint64_t mode);

/* OpenMP's places, none unless it binds threads (OMP_PROC_BIND); the number of CPUs of one, which go to cpus if it has room. */
int ni_omp_n_places(void);
int ni_omp_place(int place, int *cpus, int n);

/* ---- weight.c: filling node-local copies ---------------------------------------------------------------- */

typedef struct {
    int type;               /* ni_type; -1: plain bytes, as the op that reads them says */
    int64_t n, k;           /* rows, values per row; of each expert */
    void *const *copy;      /* per node index: the packed matrix for that node's workers; row group g lies g groups' bytes further */
    const void *here;       /* set by the plan, in each node's own table: that node's copy */
    const int64_t *bounds;  /* NULL: every copy is whole; else node i's copy holds row groups bounds[i] .. bounds[i + 1] alone */
    int64_t experts;        /* so many matrices of one shape, packed one after the other; bounds hold for each of them.  1: a plain matrix */
} ni_weight;

/* Row groups of a matrix, of one expert's. */
static inline int64_t ni_n_groups(const ni_weight *w) { return (w->n + NI_ROWS - 1) / NI_ROWS; }

/* Bytes from row group g of expert e to the same of e + 1, in the copy of node index i. */
static inline size_t ni_expert_bytes(const ni_weight *w, int i) {
    return (size_t)(w->bounds ? w->bounds[i + 1] - w->bounds[i] : ni_n_groups(w)) * ni_group_bytes(w->type, w->k);
}

/* A tensor and where it comes from. */
typedef struct {
    ni_weight w;
    size_t row_bytes;
    int fd;                 /* of a matrix: its experts * n rows of row_bytes stand in this file, from this byte on; -1: they are in memory */
    int64_t offset;
    const uint8_t *src;     /* in memory: the rows; of w.type -1, row_bytes plain bytes */
} ni_piece;

/* Starts filling each node's copies of n tensors, by that node's own threads, which take runs of `pieces` in order.  Nodes that have
 * all their copies in common (equal pointers) share the work.  nonzero[i] (0 at first) becomes 1 if matrix i holds anything but zeros.
 * Wait with ni_team_wait, then free; pieces and nonzero must live as long.  NULL: st says why. */
typedef struct ni_fill ni_fill;
ni_fill *ni_fill_start(ni_team *t, const ni_piece *pieces, int n, uint8_t *nonzero, ni_status *st);
/* At any time: so many pieces, and of the next one so many rows (all experts' one after the other), are in place on all nodes. */
int ni_fill_done(const ni_fill *f, int64_t *row);
/* Runs of about 2 MiB of the file that a worker has taken so far. */
int64_t ni_fill_taken(const ni_fill *f, int worker);
/* -1, or the piece whose bytes the file could not give (it was cut, or the disk failed): the job ended early. */
int ni_fill_unreadable(const ni_fill *f);
void ni_fill_free(ni_fill *f);
/* ---- cut.c: how a matmul's work is cut over workers ---------------------------------------------------------- */

enum {
    NI_MATRICES = 3,    /* of one matmul, at most */
    NI_UNPACK = 4       /* reading or unpacking a row group costs as much as its product with so many tokens, about (2 to 13 by type and table) */
};

/* How finely work is cut; cut.h says what these are.  Tests set small ones, so that tiny matrices are cut in every way. */
typedef struct {
    int32_t crew;           /* workers that take pieces from one counter, at most */
    int32_t piece_bytes;    /* of a piece, at least: some microseconds, many times what taking it costs */
    int32_t exact_groups;   /* a part of fewer row groups may begin and end within one */
    int32_t line_tokens;    /* a step of more is cut as a grid */
    int32_t tile_groups, tile_tokens;   /* of a grid's piece */
} ni_sizes;
extern const ni_sizes ni_default_sizes;

/* Values [k0, k1) of row groups [g0, g1) of a matrix times tokens [t0, t1): the own work of a node's worker, or (rank -1) part of a
 * piece that its crew's workers share. */
typedef struct {
    int32_t node, crew, rank, piece, matrix, unused;
    int64_t g0, g1, k0, k1, t0, t1;
} ni_matmul_unit;

/* Row groups [*g0, *g1) of a matrix of n rows that the node with workers [first, first + size) of n_workers multiplies and holds. */
void ni_node_cut(int64_t n, int64_t first, int64_t size, int64_t n_workers, int64_t *g0, int64_t *g1);
/* All that the workers of a team (workers[i] on node i) do for n_tokens tokens in a matmul of n matrices, which need no copies; each
 * worker's units in the order in which it does them, pieces in the order in which they are taken.  Writes the first `most` units;
 * returns how many there are. */
int64_t ni_matmul_units(const ni_weight *const *w, int n, int64_t n_tokens, const int *workers, int n_nodes, const ni_sizes *s,
                        ni_matmul_unit *units, int64_t most);
/* The same of an op that multiplies rows by experts' matrices of n: rows [first[e], first[e + 1]), which are a unit's "tokens", meet expert e
 * (cut.h). */
int64_t ni_grouped_units(const ni_weight *const *w, int n, int64_t experts, const int32_t *first, int64_t n_tokens, const int *workers,
                         int n_nodes, const ni_sizes *s, ni_matmul_unit *units, int64_t most);
/* Bytes of weights, and multiply-adds, of the worker of that rank in a node of `size` in a score (ops/score.c) of a matrix, of so many rows
 * that are summed in so many parts: to work[0] and work[1]. */
void ni_score_work(const ni_weight *w, int64_t parts, int64_t n_rows, int64_t size, int64_t rank, int64_t *work);
/* The i-th slice, values [*a, *b) of row *row, of the worker of that rank in ops that cut rows of a tensor over a node's workers
 * (ops/ops.h); 0: it has fewer. */
int ni_slice(int64_t rows, int64_t width, int64_t size, int64_t rank, int64_t i, int64_t *row, int64_t *a, int64_t *b);

/* ---- bandwidth.c ---------------------------------------------------------------------------------------------- */

/* Nanoseconds that the team takes to read `bytes` bytes on every node once, each worker its share of its node's memory in `streams`
 * parallel runs (1 to 8); 0 streams: to write them, as first touch.  -1 on error. */
int64_t ni_read_time(ni_team *t, void *const *node, size_t bytes, int streams, ni_status *st);
/* Nanoseconds that worker 0 needs for n barriers in a row with nothing between them: the team's, or (team = 0) each node's own.  The
 * node barrier of a worker that is alone on its node costs nothing.  -1 on error. */
int64_t ni_barrier_time(ni_team *t, int64_t n, int team, ni_status *st);

/* ---- blocks.c: memory for KV caches --------------------------------------------------------------------------- */

/* Blocks of one size, in slabs of reserved address space, with reference counts.  A pool and its tables are used by one thread at a time, but
 * for ni_pool_empty. */
typedef struct ni_pool ni_pool;

/* huge: ask for transparent huge pages. */
ni_pool *ni_pool_open(size_t block_bytes, int huge, ni_status *st);
/* Gives the slabs back, whoever may hold blocks in them; the pool is as new. */
void ni_pool_unmap(ni_pool *p);
void ni_pool_close(ni_pool *p);
size_t ni_pool_block_bytes(const ni_pool *p);
/* Blocks that somebody holds or that were not given back yet. */
int64_t ni_pool_out(const ni_pool *p);
int64_t ni_pool_n_slabs(const ni_pool *p);
ni_arena ni_pool_slab(const ni_pool *p, int64_t i);

/* A block that has one reference and no page yet: its number, or -1. */
int64_t ni_pool_take(ni_pool *p, ni_status *st);
uint8_t *ni_pool_at(const ni_pool *p, int64_t block);
int ni_pool_count(const ni_pool *p, int64_t block);
/* One reference more. */
void ni_pool_hold(ni_pool *p, int64_t block);
/* One reference less.  Of blocks that have none left, ni_pool_pick names one after the other (-1: no more); ni_pool_empty gives its pages
 * back to the system, which takes a while, and ni_pool_free makes it one that can be taken. */
void ni_pool_drop(ni_pool *p, int64_t block);
int64_t ni_pool_pick(ni_pool *p);
void ni_pool_empty(uint8_t *at, size_t block_bytes);
void ni_pool_free(ni_pool *p, int64_t block);

/* A sequence's blocks of one kind by chunk: block j holds positions j * NI_CHUNK ... of all layers of the kind. */
typedef struct {
    ni_pool *pool;
    int64_t window;         /* positions that a token sees, itself included; 0: all before it */
    int64_t reach;          /* positions before the end of a step that are kept: window + most tokens of a step - 1 */
    int64_t first, end;     /* chunks first .. end - 1 are there */
    int64_t written;        /* end of the last step, or of what was put or shared since */
    int64_t room;           /* of the arrays */
    int64_t *block;         /* numbers in the pool */
    uint8_t **at;           /* their addresses */
} ni_table;

/* Whether a step may begin at position n: whether all that its first token sees is there. */
int ni_table_reaches(const ni_table *t, int64_t n);
/* Makes room for a step of tokens pos0 .. end - 1, which pos0 reaches: blocks of later and of long past positions go, so that at most
 * ceil((reach - 1) / NI_CHUNK) + 1 of a window are there; new ones come.  Again with the same numbers, after a step that was cancelled, it
 * may say 1 where it did not.
 * 1: the block of pos0 has positions before it and others have it too, with pos0 or later ones, so that it must be replaced by a copy
 * before the step (ni_table_swap); else 0, or -1: blocks are missing, what stood before pos0 is as it was. */
int ni_table_prepare(ni_table *t, int64_t pos0, int64_t end, ni_status *st);
/* Puts another block in the place of chunk j; the old one, whose reference is the caller's now. */
int64_t ni_table_swap(ni_table *t, int64_t j, int64_t block);
/* Makes a block chunk j, which is the next one or, of an empty table, any: with one reference more, and n positions in it, from its first. */
int ni_table_put(ni_table *t, int64_t j, int64_t block, int64_t n, ni_status *st);
/* The blocks of positions n and later go. */
void ni_table_cut(ni_table *t, int64_t n);
/* Makes t, which is of the same pool, a table of the blocks that hold the first n positions of `from`, each with one reference more. */
int ni_table_share(ni_table *t, const ni_table *from, int64_t n, ni_status *st);
void ni_table_close(ni_table *t);

/* ---- plan.c: checked lists of ops ---------------------------------------------------------------------------- */

enum { NI_BARRIER_NONE = 0, NI_BARRIER_NODE = 1, NI_BARRIER_TEAM = 2 };
enum { NI_SHARED = 0, NI_PER_NODE = 1 };

typedef struct {
    int32_t storage;        /* NI_SHARED, NI_PER_NODE */
    int32_t width;          /* values per row */
    int32_t per_token;      /* rows for each row of the step, one after the other */
    /* Byte offsets in the storage's arena, -1 where the form is absent: floats, the parts of ni_act, int32 ids. */
    int64_t f, q, d, m, s, i;
} ni_tensor;

enum { NI_OP_TENSORS = 12, NI_OP_WEIGHTS = 7, NI_OP_INTS = 32, NI_OP_FLOATS = 4 };

typedef struct {
    int32_t code;           /* index in ops.def */
    int32_t barrier;        /* that must stand before this op */
    int32_t selected;       /* 1: works on the rows whose logits are wanted, 0: on all tokens */
    int32_t t[NI_OP_TENSORS];   /* tensors, -1: none */
    int32_t w[NI_OP_WEIGHTS];   /* weights, -1: none */
    int32_t i[NI_OP_INTS];      /* integers, by op */
    float f[NI_OP_FLOATS];      /* floats, by op */
} ni_op;

typedef struct ni_plan ni_plan;

typedef struct {
    int n_ops;
    const ni_op *ops;
    int n_tensors;
    const ni_tensor *tensors;
    int n_weights;
    const ni_weight *weights;       /* copy[] arrays must outlive the plan */
    int64_t arena_bytes[2];         /* of the shared arena and of each node's */
    int max_tokens;
    ni_sizes sizes;
} ni_plan_spec;

/* Copies the spec and allocates the activation arenas.  node_map[i]: the index in ni_weight.copy of the team's node i; os_nodes[i]: its
 * number for the system. */
ni_plan *ni_plan_open(ni_team *t, const ni_plan_spec *spec, const int *node_map, const int *os_nodes, ni_status *st);
void ni_plan_close(ni_plan *p);
int64_t ni_plan_bytes(const ni_plan *p);

/* What layers with recurrent state leave of a sequence, where its first `pos` positions have been: ops/state.h says what lies there. */
typedef struct {
    int64_t pos;
    uint8_t *to;
} ni_stop;

typedef struct {
    const ni_table *tables; /* the sequence's KV blocks, one table per kind */
    int64_t row0, n, pos0;  /* tokens row0 .. row0+n of the step stand at positions pos0 .. */
    const uint8_t *state;   /* recurrent state of the positions before pos0; NULL: none, as before position 0 */
    const ni_stop *stops;   /* where it is to be left, by ascending positions behind pos0; the last is pos0 + n.  Not read by plans without state */
    int64_t n_stops;
    const float *hidden;    /* of the token before pos0, for ops that read it; NULL: not known */
} ni_segment;

typedef struct {
    int n_tokens, n_segments, n_out;
    const int32_t *ids;             /* n_tokens */
    const ni_segment *segments;     /* cover the tokens in order */
    const int32_t *out_rows;        /* n_out: tokens whose logits (or hidden state) are wanted */
    float *out;                     /* n_out x width of the plan's result */
    float *hidden;                  /* n_tokens x width, where the plan hands out hidden states beside its result; NULL: not wanted */
    int64_t number;                 /* set by the plan: 1, 2, ... */
} ni_step;

/* Starts a step on all workers; the step's arrays must stay until ni_team_wait says done. */
int ni_plan_start(ni_team *t, ni_plan *p, const ni_step *s, ni_status *st);
/* Runs the same step on this thread alone: workers one after another, in random order between barriers.  Bits must not change. */
void ni_plan_run_shuffled(ni_team *t, ni_plan *p, const ni_step *s, uint64_t seed);
/* Nanoseconds that worker 0 spent in each op and in the barrier before it since the plan was opened or last asked; n_ops each. */
void ni_plan_times(ni_plan *p, int64_t *op_ns, int64_t *barrier_ns);
/* Between steps.  The first time it takes memory for the stamps, which stays until the plan is closed; 0, or -1 if there is none. */
int ni_plan_set_timing(ni_plan *p, int on, ni_status *st);
int ni_plan_workers(const ni_plan *p);
/* Between steps: fills all activations and all scratch memory with a float.  What a step does not write it cannot read unseen then. */
void ni_plan_fill(ni_plan *p, float value);
/* Bytes of packed weights that each worker's matmuls read, and multiply-adds they did, padding included, since the plan was opened or
 * last asked: n_workers x 2. */
void ni_plan_work(ni_plan *p, int64_t *work);
/* Of the last step with timing on, per worker: when it began, then of each op when it began (the barrier before it had opened) and ended:
 * n_workers x (1 + 2 n_ops) nanoseconds of CLOCK_MONOTONIC.  A cancelled step leaves those of an earlier one at its end. */
int ni_plan_stamps(const ni_plan *p, int64_t *stamps, ni_status *st);

/* Names and signatures of the ops, in order of their codes; NULL past the end. */
const char *ni_op_name(int code);
const char *ni_op_signature(int code);

/* ---- ops/units.c: attention's shape and work ------------------------------------------------------------------- */

/* Names of the integers of attention's ops, in order of ni_op.i; NULL past the end. */
const char *ni_attention_int(int i);

/* The runs of chunks that a query folds: run k is chunks k << shift .. (k + 1 << shift) - 1, as far as they are seen. */
typedef struct { int64_t first, end; int shift; } ni_runs;

/* Of a query that sees positions from .. pos: the shortest runs of which there are at most `most` (1 or more). */
static inline ni_runs ni_runs_of(int64_t from, int64_t pos, int64_t most) {
    const int64_t a = from / NI_CHUNK, b = pos / NI_CHUNK;
    int shift = 0;
    while ((b >> shift) - (a >> shift) >= most) shift++;
    return (ni_runs){a >> shift, (b >> shift) + 1, shift};
}

/* What each of n workers, of nodes[worker] (ascending), does for the attention of segments (n, pos0) in a layer of these integers: positions
 * times queries that meet them, and a constant for each query where a head's units begin. */
int ni_attend_costs(const int32_t *ints, int n_segments, const ni_segment *segments, const int *nodes, int n_workers, int64_t *costs,
                    ni_status *st);

/* ---- kv.c: what lies in a block of KV memory ------------------------------------------------------------------- */

/* Names of the types in order of ni_kv_type; NULL past the end. */
const char *ni_kv_name(int type);

/* Of one layer: chunk j of kv-head g begins offset + g * stride bytes after the beginning of block j: keys, then values, as
 * isa/kv_layout.h has it. */
typedef struct {
    int64_t offset, stride;
    int32_t n_heads, e, ev, type;   /* e, ev: a head's own widths */
    int64_t turn;           /* chunks in a row that one node holds (ni_kv_node) */
} ni_kv_layer;

/* The node index that holds, appends and reads chunk j of kv-head g: heads are dealt to nodes in blocks where they divide evenly, else
 * chunks go round, `turn` in a row. */
static inline int ni_kv_node(int64_t g, int64_t j, int64_t n_heads, int64_t turn, int n_nodes) {
    return n_heads % n_nodes == 0 ? (int)(g * n_nodes / n_heads) : (int)((g + j / turn) % n_nodes);
}

/* Starts copying a block of chunk j, which holds these layers, each head by the node that owns it, so that the copy is placed like the
 * original. */
int ni_kv_copy_start(ni_team *t, const ni_kv_layer *layers, int n_layers, int64_t j, const uint8_t *from, uint8_t *to, ni_status *st);
/* Makes positions from .. NI_CHUNK - 1 of a kv-head's chunk zeros.  zeros: of both widths, in multiples of 16. */
void ni_kv_clear(ni_kv_type type, int64_t e, int64_t ev, const float *zeros, uint8_t *chunk, int from);
#endif
