# Binds csrc/plan.c, and what a plan is built from.

SIZES = dict(ni_default_sizes)  # how finely a matmul's work is cut: csrc/cut.h


cdef ni_sizes _sizes(sizes) except *:
    """The sizes of work: SIZES, but for those that are given."""
    unknown = set(sizes or ()) - set(SIZES)
    if unknown:
        raise ValueError(f"sizes {', '.join(sorted(unknown))} do not exist; there are {', '.join(SIZES)}")
    cdef ni_sizes s = {**SIZES, **(sizes or {})}
    return s


def node_cut(int64_t n, workers):
    """Row groups of a matrix of n rows where each node's begin, and their end; workers: number of each node's."""
    cdef int64_t g0 = 0, g1 = 0
    cdef int64_t first = 0, size, all = sum(workers)
    bounds = [0]
    for size in workers:
        ni_node_cut(n, first, size, all, &g0, &g1)
        bounds.append(g1)
        first += size
    return bounds


def matmul_units(shapes, int64_t n_tokens, workers, sizes=None):
    """Who multiplies what, of matrices (code, n, k) that one op multiplies with n_tokens tokens: array of UNIT_DTYPE.

    workers: number of each node's; sizes: as for `Plan`.  Units of rank -1 are pieces, in the order in which they are taken.
    """
    cdef ni_weight w[16]
    cdef const ni_weight *p[16]
    cdef int n = len(shapes), n_nodes = len(workers)
    if not 1 <= n <= NI_MATRICES or len({k for _, _, k in shapes}) != 1 or n_tokens < 1 or not n_nodes or min(workers) < 1:
        raise ValueError(f"an op multiplies one to {NI_MATRICES} matrices of equal k with tokens, on nodes with workers; "
                         f"found {shapes}, {n_tokens} tokens, {workers} workers")
    for j, (code, rows, k) in enumerate(shapes):
        w[j].type, w[j].n, w[j].k = code, rows, k
        p[j] = &w[j]
    cdef ni_sizes s = _sizes(sizes)
    cdef list own = []
    cdef int *of_node = _ints(workers, own)
    cdef int64_t most = ni_matmul_units(p, n, n_tokens, of_node, n_nodes, &s, NULL, 0)
    found = np.zeros(most, UNIT_DTYPE)
    cdef uint8_t[::1] view = found.view(np.uint8).reshape(-1)
    ni_matmul_units(p, n, n_tokens, of_node, n_nodes, &s, <ni_matmul_unit *>&view[0], most)
    return found


def grouped_units(shapes, rows, int64_t n_tokens, workers, sizes=None):
    """The same of an op whose rows meet experts: rows[e] of the rows of n_tokens tokens meet the matrices (code, n, k) of expert e.

    Tokens t0 to t1 of a unit are rows in the order of their experts.
    """
    cdef ni_weight w[16]
    cdef const ni_weight *p[16]
    cdef int n = len(shapes), n_nodes = len(workers)
    if not 1 <= n <= NI_MATRICES or len({k for _, _, k in shapes}) != 1 or n_tokens < 1 or not n_nodes or min(workers) < 1 or not len(rows):
        raise ValueError(f"an op multiplies one to {NI_MATRICES} matrices of equal k of each expert with tokens, on nodes with workers; "
                         f"found {shapes}, {len(rows)} experts, {n_tokens} tokens, {workers} workers")
    for j, (code, n_rows, k) in enumerate(shapes):
        w[j].type, w[j].n, w[j].k = code, n_rows, k
        p[j] = &w[j]
    cdef ni_sizes s = _sizes(sizes)
    cdef list own = []
    cdef int *of_node = _ints(workers, own)
    first = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
    cdef int32_t[::1] bounds = first
    cdef int64_t most = ni_grouped_units(p, n, len(rows), &bounds[0], n_tokens, of_node, n_nodes, &s, NULL, 0)
    found = np.zeros(most, UNIT_DTYPE)
    cdef uint8_t[::1] view = found.view(np.uint8).reshape(-1)
    if most:
        ni_grouped_units(p, n, len(rows), &bounds[0], n_tokens, of_node, n_nodes, &s, <ni_matmul_unit *>&view[0], most)
    return found


def score_work(shape, int64_t parts, int64_t rows, int64_t size):
    """(bytes, multiply-adds) of each worker of a node in a score of a matrix (code, n, k) with so many rows, summed in so many parts."""
    cdef ni_weight w
    cdef int64_t work[2]
    w.type, w.n, w.k = shape
    found = []
    for rank in range(size):
        ni_score_work(&w, parts, rows, size, rank, work)
        found.append((work[0], work[1]))
    return found


def slices(int64_t rows, int64_t width, int64_t size):
    """(rank, row, first value, end) of all slices of a tensor's rows, as norm, gated, gather and emit deal them to a node's workers."""
    cdef int64_t row = 0, a = 0, b = 0, rank, i
    found = []
    for rank in range(size):
        i = 0
        while ni_slice(rows, width, size, rank, i, &row, &a, &b):
            found.append((rank, row, a, b))
            i += 1
    return found


def kv_types():
    """Names of the types of KV memory, in order of their numbers."""
    found = []
    while (name := ni_kv_name(len(found))) is not NULL:
        found.append((<bytes>name).decode())
    return tuple(found)


def kv_chunk_bytes(int type, int64_t e, int64_t ev):
    """Bytes of one chunk of one kv-head: keys and values of CHUNK positions, in the type of that number."""
    return ni_kv_chunk_bytes(<ni_kv_type>type, e, ev)


def attention_ints():
    """Names of the integers of attention's ops, in the order in which an op holds them."""
    found = []
    while (name := ni_attention_int(len(found))) is not NULL:
        found.append((<bytes>name).decode())
    return tuple(found)


def attention_runs(int64_t first_seen, int64_t pos, int64_t most):
    """(first, end, shift) of the runs of 2**shift chunks that a query at `pos` folds, at most `most` of them."""
    runs = ni_runs_of(first_seen, pos, most)
    return runs.first, runs.end, runs.shift


cdef ni_segment *_segments(table) except? NULL:
    """Where the records of a SEGMENT_DTYPE array lie, for as long as the caller holds it."""
    cdef Py_buffer view
    cdef void *at
    if table.dtype is not SEGMENT_DTYPE and table.dtype != SEGMENT_DTYPE:
        raise ValueError(f"segments: wanted an array of SEGMENT_DTYPE, found {table.dtype}")
    PyObject_GetBuffer(table, &view, PyBUF_SIMPLE)
    at = view.buf
    PyBuffer_Release(&view)
    return <ni_segment *>at


def attend_costs(ints, segments, nodes):
    """Positions times queries that each worker has in an attend op, and what it costs to begin: int64 array (workers,).

    ints: the op's, as `attention_ints` names them; segments: SEGMENT_DTYPE array, of which n and pos0 count; nodes: of each worker, ascending.
    """
    cdef ni_status st
    named = np.zeros(NI_OP_INTS, np.int32)
    named[: len(ints)] = ints
    cdef int32_t[::1] i = named
    costs = np.zeros(len(nodes), np.int64)
    cdef int64_t[::1] c = costs
    cdef list keep = []
    if ni_attend_costs(&i[0], len(segments), _segments(segments), _ints(nodes, keep), len(nodes), &c[0], &st):
        _fail(&st)
    return costs


def step_arrays(list segments, out_rows, int64_t n_ctx, int64_t n_batch, int64_t n_vocab):
    """What `Plan.run` takes of tokens of sequences, with what is wrong with them told.

    Parameters
    ----------
    segments : list of (Cache, ids, pos0)
        As of `Lane.step`.
    out_rows : sequence of int
    n_ctx, n_batch, n_vocab : int
        Most positions of a sequence and tokens of a step, and where token ids end.

    Returns
    -------
    ids : int32 array (T,)
    table : SEGMENT_DTYPE array (len(segments),)
        Without states.
    rows : int32 array (len(out_rows),)
    """
    cdef int64_t n, pos0, row = 0, at
    cdef int32_t token
    cdef const int32_t[::1] own
    if not segments:
        raise ValueError("a step needs at least one segment of tokens")
    for _, tokens, pos0 in segments:
        n = len(tokens)
        if pos0 < 0 or n < 1 or pos0 + n > n_ctx:
            raise ValueError(f"a segment of {n} tokens at position {pos0} does not lie within the context of {n_ctx}")
        row += n
    if row > n_batch:
        raise ValueError(f"a step takes at most {n_batch} tokens; found {row}")
    found = np.empty(row, np.int32)
    cdef int32_t[::1] id = found
    table = np.zeros(len(segments), SEGMENT_DTYPE)
    cdef ni_segment *g = _segments(table)
    at = 0
    for cache, tokens, pos0 in segments:
        n = len(tokens)
        g.row0, g.n, g.pos0, g.tables = at, n, pos0, <const ni_table *><uintptr_t>cache.address
        if type(tokens) is list:
            for token in tokens:
                id[at] = token
                at += 1
        else:
            own = np.ascontiguousarray(tokens, np.int32)
            id[at : at + n] = own
            at += n
        g += 1
    for at in range(row):
        if not 0 <= id[at] < n_vocab:
            raise ValueError(f"token id {id[at]}: wanted ids from 0 to {n_vocab - 1}")
    rows = np.asarray(out_rows, np.int32)
    own = rows
    for at in range(own.shape[0]):
        if not 0 <= own[at] < row:
            raise ValueError(f"wanted rows must lie in 0 to {row - 1}; found {own[at]}")
    if own.shape[0] > n_batch:
        raise ValueError(f"a step gives at most {n_batch} rows; found {own.shape[0]}")
    return found, table, rows


cdef class Plan:
    """A plan that a team runs.

    ops, tensors: arrays of OP_DTYPE, TENSOR_DTYPE; weights: (code, n, k, addresses per node, bounds, experts) each, code -1 for
    plain bytes, bounds None but for shards; arena_bytes: (shared, per node); node_map, os_nodes: per node of the team, its index in the weights' addresses
    and its number for the system; sizes: a dict of some of `SIZES`, for tests.
    """
    cdef ni_plan *p
    cdef int n_ops
    cdef Team team
    cdef list keep

    def __init__(self, Team team, ops, tensors, weights, arena_bytes, int max_tokens, node_map, os_nodes, sizes=None):
        cdef ni_status st
        cdef ni_plan_spec spec
        cdef ni_team *t = team.usable()
        self.team, self.n_ops, self.keep = team, len(ops), []
        cdef ni_weight *w = <ni_weight *>_memory(len(weights), sizeof(ni_weight), self.keep)
        for i, weight in enumerate(weights):
            _fill_weight(&w[i], weight, self.keep)
        ops = np.ascontiguousarray(ops, OP_DTYPE)
        tensors = np.ascontiguousarray(tensors, TENSOR_DTYPE)
        cdef const uint8_t[::1] o = ops.view(np.uint8).reshape(-1)
        cdef const uint8_t[::1] x = tensors.view(np.uint8).reshape(-1)
        spec.n_ops, spec.ops = len(ops), <const ni_op *>&o[0]
        spec.n_tensors, spec.tensors = len(tensors), <const ni_tensor *>&x[0]
        spec.n_weights, spec.weights = len(weights), w
        spec.arena_bytes[0], spec.arena_bytes[1] = arena_bytes[0], arena_bytes[1]
        spec.max_tokens, spec.sizes = max_tokens, _sizes(sizes)
        cdef list own = []
        cdef int *m = _ints(node_map, own)
        cdef int *d = _ints(os_nodes, own)
        with nogil:
            self.p = ni_plan_open(t, &spec, m, d, &st)
        if self.p == NULL:
            _fail(&st)

    def __dealloc__(self):
        ni_plan_close(self.p)

    def close(self):
        ni_plan_close(self.p)
        self.p = NULL

    @property
    def bytes(self):
        """Bytes of activations and scratch that the plan may touch."""
        return ni_plan_bytes(self.p) if self.p != NULL else 0

    def run(self, const int32_t[::1] ids, segments, const int32_t[::1] out_rows, float[:, ::1] out, uint64_t shuffle_seed=0, stop=None,
            float[:, ::1] hidden=None):
        """Run a step: ids (T,), segments of SEGMENT_DTYPE covering them in order, out_rows (R,), out (R, width).

        stop: callable, asked now and then; once it says True the step is cancelled.  hidden: (at least T, width of a hidden state), for a
        plan that hands these out.

        With a shuffle_seed the calling thread plays all workers, one after another, in random order between barriers.
        """
        cdef ni_status st
        cdef ni_step s
        cdef ni_team *t = self.team.usable()
        if self.p == NULL:
            raise ValueError("the plan is closed")
        cdef const ni_segment *g = _segments(segments)
        if ids.shape[0] == 0 or out.shape[0] != out_rows.shape[0] or (hidden is not None and hidden.shape[0] < ids.shape[0]):
            raise ValueError(f"a step needs tokens and a row of output per wanted row; found {ids.shape[0]} tokens, "
                             f"{out.shape[0]} rows for {out_rows.shape[0]}")
        s.n_tokens, s.n_segments, s.n_out = ids.shape[0], len(segments), out_rows.shape[0]
        s.ids, s.segments = &ids[0], g
        s.out_rows = &out_rows[0] if out_rows.shape[0] else NULL
        s.out = &out[0, 0] if out_rows.shape[0] else NULL
        s.hidden = &hidden[0, 0] if hidden is not None else NULL
        cdef uint64_t mode
        if shuffle_seed:
            with nogil:
                mode = ni_floats_default()
                ni_plan_run_shuffled(t, self.p, &s, shuffle_seed)
                ni_floats_restore(mode)
            return
        if ni_plan_start(t, self.p, &s, &st):
            _fail(&st)
        self.team.finish(stop)

    def fill(self, float value):
        """Fill all activations and scratch memory, between steps: what a step did not write shows then."""
        if self.p == NULL:
            raise ValueError("the plan is closed")
        with nogil:
            ni_plan_fill(self.p, value)

    def work(self):
        """Bytes of packed weights read, and multiply-adds done, by the matmuls of each worker since last asked: int64 (workers, 2)."""
        if self.p == NULL:
            raise ValueError("the plan is closed")
        found = np.empty((ni_plan_workers(self.p), 2), np.int64)
        cdef int64_t[:, ::1] view = found
        ni_plan_work(self.p, &view[0, 0])
        return found

    def set_timing(self, bint on):
        """Whether steps note when ops begin and end; between steps only."""
        cdef ni_status st
        if self.p == NULL:
            raise ValueError("the plan is closed")
        if ni_plan_set_timing(self.p, on, &st):
            _fail(&st)

    def stamps(self):
        """Times of the last step with timing on: int64 (workers, 1 + 2 ops), nanoseconds of ``time.monotonic_ns``'s clock.

        Of each worker: when it began the step, then of each op when it began (past the barrier before it) and ended.
        """
        cdef ni_status st
        if self.p == NULL:
            raise ValueError("the plan is closed")
        found = np.empty((ni_plan_workers(self.p), 1 + 2 * self.n_ops), np.int64)
        cdef int64_t[:, ::1] view = found
        if ni_plan_stamps(self.p, &view[0, 0], &st):
            _fail(&st)
        return found

    def times(self):
        """Nanoseconds worker 0 spent per op and in the barrier before it, since last asked."""
        if self.p == NULL:
            raise ValueError("the plan is closed")
        ops, barriers = np.zeros(self.n_ops, np.int64), np.zeros(self.n_ops, np.int64)
        cdef int64_t[::1] o = ops
        cdef int64_t[::1] b = barriers
        ni_plan_times(self.p, &o[0], &b[0])
        return ops, barriers
