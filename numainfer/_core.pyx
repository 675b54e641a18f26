# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""Binding of numainfer's C core: no arithmetic, no policy.  Internal; its shape follows csrc/ni.h."""

import os

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc

import numpy as np

from .errors import ForkedProcess, NumaInferError, OutOfNodeMemory, PlacementError


cdef extern from "../csrc/ni.h":
    ctypedef struct ni_status:
        int code
        char text[480]
    int NI_ROWS, NI_SLAB, NI_CHUNK, NI_N_TYPES
    ctypedef struct ni_format:
        const char *name
        int ggml_type, block, block_bytes, record_bytes, kind, offset, max_q
        int sub_ "sub"
        void (*decode)(const uint8_t *, int64_t, float *) noexcept nogil
        void (*unpack_row)(const uint8_t *, int, int64_t, float *) noexcept nogil
    const ni_format ni_formats[16]
    size_t ni_packed_bytes(int t, int64_t n, int64_t k) nogil
    size_t ni_group_bytes(int t, int64_t k) nogil

    ctypedef struct ni_kernels:
        const char *name
    const ni_kernels *ni_k
    int ni_isa_select(const char *)
    const char *ni_isa_available()

    int ni_numa_available()
    int ni_numa_max_node()
    int ni_numa_node_of_cpu(int)
    void ni_numa_node_memory(int, int64_t *, int64_t *)

    ctypedef struct ni_arena:
        void *base
        size_t bytes
        int bound
    int ni_arena_open(ni_arena *, size_t, const int *, int, int, ni_status *) nogil
    void ni_arena_close(ni_arena *) nogil
    void ni_arena_discard(ni_arena *, size_t, size_t) nogil
    int ni_arena_count(const ni_arena *, int64_t *, int, int64_t *) nogil
    int ni_arena_move(const ni_arena *, int) nogil

    ctypedef struct ni_team:
        pass
    ni_team *ni_team_open(const int *, const int *, int, int, ni_status *) nogil
    void ni_team_close(ni_team *) nogil
    int ni_team_size(const ni_team *) nogil
    void ni_team_cancel(ni_team *) nogil
    int ni_team_wait(ni_team *, int) nogil
    int ni_team_cancelled(const ni_team *) nogil
    void ni_team_cpus(const ni_team *, int *) nogil
    int ni_omp_n_places()
    int ni_omp_place(int, int *, int)

    ctypedef struct ni_weight:
        int type
        int64_t n, k
        void **copy
        int64_t *bounds
    void ni_matmul_cut(const ni_weight *const *, int, int, int, int64_t *, int64_t *)
    int ni_pack_start(ni_team *, const ni_weight *, const uint8_t *, size_t, int64_t, int64_t, ni_status *) nogil
    int ni_copy_start(ni_team *, const uint8_t *, size_t, void **, ni_status *) nogil
    int64_t ni_read_time(ni_team *, void **, size_t, int, ni_status *) nogil
    int64_t ni_barrier_time(ni_team *, int64_t, int, ni_status *) nogil

    ctypedef struct ni_tensor:
        pass
    ctypedef struct ni_op:
        pass
    ctypedef struct ni_segment:
        pass
    ctypedef struct ni_plan:
        pass
    ctypedef struct ni_plan_spec:
        int n_ops
        const ni_op *ops
        int n_tensors
        const ni_tensor *tensors
        int n_weights
        const ni_weight *weights
        int64_t arena_bytes[2]
        int max_tokens
    ctypedef struct ni_step:
        int n_tokens, n_segments, n_out
        const int32_t *ids
        const ni_segment *segments
        const int32_t *out_rows
        float *out
    ni_plan *ni_plan_open(ni_team *, const ni_plan_spec *, const int *, const int *, ni_status *) nogil
    void ni_plan_close(ni_plan *) nogil
    int64_t ni_plan_bytes(const ni_plan *)
    int ni_plan_start(ni_team *, ni_plan *, const ni_step *, ni_status *) nogil
    void ni_plan_run_shuffled(ni_team *, ni_plan *, const ni_step *, uint64_t) nogil
    void ni_plan_times(ni_plan *, int64_t *, int64_t *)
    int ni_plan_set_timing(ni_plan *, int, ni_status *)
    int ni_plan_workers(const ni_plan *)
    int ni_plan_stamps(const ni_plan *, int64_t *, ni_status *)
    const char *ni_op_name(int)
    const char *ni_op_signature(int)
    ctypedef struct ni_kv_layer:
        int64_t layer_offset
        int32_t n_heads, e, ev
        int64_t n_chunks
    size_t ni_kv_chunk_bytes(int64_t, int64_t)
    int ni_kv_copy_start(ni_team *, const ni_kv_layer *, int, const uint8_t *, uint8_t *, int64_t, ni_status *) nogil


ROWS, SLAB, CHUNK = NI_ROWS, NI_SLAB, NI_CHUNK
BARRIERS = ("none", "node", "team")

OP_DTYPE = np.dtype([("code", "i4"), ("barrier", "i4"), ("selected", "i4"), ("t", "i4", 6), ("w", "i4", 4),
                     ("i", "i4", 10), ("f", "f4", 4)])
TENSOR_DTYPE = np.dtype([("storage", "i4"), ("width", "i4"), ("f", "i8"), ("q", "i8"), ("d", "i8"), ("m", "i8"),
                         ("s", "i8")])
SEGMENT_DTYPE = np.dtype([("base", "u8"), ("row0", "i8"), ("n", "i8"), ("pos0", "i8")])
KV_LAYER_DTYPE = np.dtype([("layer_offset", "i8"), ("n_heads", "i4"), ("e", "i4"), ("ev", "i4"), ("pad", "i4"),
                           ("n_chunks", "i8")])
if (OP_DTYPE.itemsize != sizeof(ni_op) or TENSOR_DTYPE.itemsize != sizeof(ni_tensor)
        or SEGMENT_DTYPE.itemsize != sizeof(ni_segment) or KV_LAYER_DTYPE.itemsize != sizeof(ni_kv_layer)):
    raise ImportError("numainfer._core was built from other headers than its Python side; reinstall numainfer")


class Cancelled(NumaInferError):
    """The step was cancelled from another thread."""


cdef object _fail(ni_status *st):
    """The one place where a C status becomes an exception."""
    kinds = {1: NumaInferError, 2: OutOfNodeMemory, 3: ValueError, 4: PlacementError}
    raise kinds.get(st.code, NumaInferError)(st.text.decode())


def isa_available():
    """Names of the kernel tables that this CPU runs, best first."""
    return ni_isa_available().decode().split(",")


def isa_select(name=None):
    """Choose a kernel table by name, or the best one; returns the name in use."""
    wanted = name.encode() if name is not None else None
    if ni_isa_select(NULL if wanted is None else <const char *>wanted):
        raise ValueError(f"instruction set {name!r} is not available; this CPU runs: {', '.join(isa_available())}")
    return ni_k.name.decode()


def isa():
    """Name of the kernel table in use."""
    return ni_k.name.decode()


def formats():
    """Weight formats by GGUF name: dict of code, block, block_bytes, record_bytes, quantised."""
    return {ni_formats[i].name.decode(): dict(code=i, block=ni_formats[i].block, block_bytes=ni_formats[i].block_bytes,
                                              kind=ni_formats[i].kind, record_bytes=ni_formats[i].record_bytes,
                                              quantised=ni_formats[i].kind != 0)
            for i in range(NI_N_TYPES)}


def packed_bytes(int code, int64_t n, int64_t k):
    """Bytes of a packed matrix of n rows of k values."""
    return ni_packed_bytes(code, n, k)


def decode(int code, const uint8_t[::1] blocks):
    """Decode blocks of the file's layout to float32 with the format's scalar decoder."""
    cdef int64_t n = blocks.shape[0] // ni_formats[code].block_bytes
    out = np.empty(n * ni_formats[code].block, np.float32)
    cdef float[::1] view = out
    if n:
        ni_formats[code].decode(&blocks[0], n, &view[0])
    return out


def ops():
    """(name, signature) of every op, in order of their codes."""
    found, i = [], 0
    while ni_op_name(i) != NULL:
        found.append((ni_op_name(i).decode(), ni_op_signature(i).decode()))
        i += 1
    return found


def numa_available():
    return bool(ni_numa_available())


def numa_max_node():
    return ni_numa_max_node()


def numa_node_of_cpu(int cpu):
    return ni_numa_node_of_cpu(cpu)


def numa_node_memory(int node):
    """(total, free) bytes of a node."""
    cdef int64_t total, left
    ni_numa_node_memory(node, &total, &left)
    return total, left


def omp_places():
    """The CPUs of each place that OpenMP binds threads to, as sets; none unless OMP_PROC_BIND and the like ask for that."""
    cdef int n
    cdef int[::1] view
    found = []
    for i in range(ni_omp_n_places()):
        n = ni_omp_place(i, NULL, 0)
        cpus = np.empty(max(n, 1), np.intc)
        view = cpus
        ni_omp_place(i, &view[0], n)
        found.append(set(cpus[:n].tolist()))
    return found


cdef int *_ints(values) except NULL:
    cdef int *out = <int *>malloc(sizeof(int) * max(len(values), 1))
    if out == NULL:
        raise MemoryError
    for i, v in enumerate(values):
        out[i] = v
    return out


cdef class Arena:
    """Zeroed memory bound to a node, interleaved over several, or left to first touch; freed by close().

    Attributes: address, bytes, bound (whether the kernel accepted the binding).
    """
    cdef ni_arena a

    def __init__(self, size_t n_bytes, nodes=(), bint huge=False):
        cdef ni_status st
        cdef int *wanted = _ints(nodes)
        cdef int e = ni_arena_open(&self.a, n_bytes, wanted, len(nodes), huge, &st)
        free(wanted)
        if e:
            _fail(&st)

    def __dealloc__(self):
        ni_arena_close(&self.a)

    def close(self):
        ni_arena_close(&self.a)

    @property
    def address(self):
        return <uintptr_t>self.a.base

    @property
    def bytes(self):
        return self.a.bytes

    @property
    def bound(self):
        return bool(self.a.bound)

    def discard(self, size_t offset, size_t n_bytes):
        """Give whole pages of a range back to the system."""
        ni_arena_discard(&self.a, offset, min(n_bytes, self.a.bytes - offset))

    def count(self, int n_nodes):
        """Resident pages per node, and the page size; an int (errno) where the kernel refuses to tell."""
        counts = np.zeros(n_nodes, np.int64)
        cdef int64_t[::1] view = counts
        cdef int64_t page
        cdef int e
        with nogil:
            e = ni_arena_count(&self.a, &view[0], n_nodes, &page)
        return e if e else (counts, page)

    def move(self, int node):
        """Move stray pages to the node; returns 0 or an errno."""
        cdef int e
        with nogil:
            e = ni_arena_move(&self.a, node)
        return e

    def read(self, size_t offset, size_t n_bytes):
        """A copy of some bytes, for tests."""
        if offset + n_bytes > self.a.bytes:
            raise ValueError(f"bytes {offset} to {offset + n_bytes} of an arena of {self.a.bytes}")
        return (<char *>self.a.base)[offset:offset + n_bytes]


cdef class Team:
    """Pinned worker threads; see csrc/ni.h.  cpus, nodes: one per worker, node indices ascending from 0."""
    cdef ni_team *p
    cdef object pid
    cdef readonly int n_nodes

    def __init__(self, cpus, nodes):
        cdef ni_status st
        if len(cpus) != len(nodes) or not len(cpus):
            raise ValueError(f"a team needs a CPU and a node for each worker; found {len(cpus)} and {len(nodes)}")
        cdef int n = len(cpus), n_nodes = max(nodes) + 1
        cdef int *c = _ints(cpus)
        cdef int *d = _ints(nodes)
        with nogil:
            self.p = ni_team_open(c, d, n, n_nodes, &st)
        free(c)
        free(d)
        if self.p == NULL:
            _fail(&st)
        self.pid, self.n_nodes = os.getpid(), n_nodes

    def __dealloc__(self):
        ni_team_close(self.p)

    def close(self):
        cdef ni_team *p = self.p
        self.p = NULL
        with nogil:
            ni_team_close(p)

    cdef ni_team *usable(self) except NULL:
        if self.p == NULL:
            raise ValueError("the team is closed")
        if self.pid != os.getpid():
            raise ForkedProcess(f"this model was loaded by process {self.pid}; its threads do not exist in the forked process "
                                f"{os.getpid()}. Load the model after the fork, or start the process with the 'spawn' method")
        return self.p

    def __len__(self):
        return ni_team_size(self.usable())

    def cpus(self):
        """CPU on which each worker was last seen, -1 before its first job."""
        cdef int n = ni_team_size(self.usable())
        cdef int *seen = <int *>malloc(sizeof(int) * n)
        ni_team_cpus(self.p, seen)
        found = [seen[i] for i in range(n)]
        free(seen)
        return found

    def cancel(self):
        """Ask the running job to end early; from any thread."""
        if self.p != NULL:
            ni_team_cancel(self.p)

    cdef int finish(self) except -1:
        """Wait for the job; signals are looked at every 10 ms, and one that raises cancels the job first."""
        cdef ni_team *p = self.p
        cdef int done = 0
        while not done:
            with nogil:
                done = ni_team_wait(p, 10)
            if not done:
                try:
                    PyErr_CheckSignals()
                except BaseException:
                    with nogil:
                        ni_team_cancel(p)
                        while not ni_team_wait(p, 1000):
                            pass
                    raise
        if ni_team_cancelled(p):
            raise Cancelled("the step was cancelled")
        return 0

    def pack(self, weight, uintptr_t src, size_t row_bytes, int64_t row0, int64_t row1):
        """Pack rows row0 to row1 of a file's matrix at `src` into each node's copy, by that node's threads.

        weight: (code, n, k, addresses per node, bounds or None), as `Plan` takes them.
        """
        cdef ni_status st
        cdef ni_weight w
        _fill_weight(&w, weight)
        try:
            if ni_pack_start(self.usable(), &w, <const uint8_t *>src, row_bytes, row0, row1, &st):
                _fail(&st)
            self.finish()
        finally:
            _free_weight(&w)

    def copy(self, const uint8_t[::1] src, addresses):
        """Copy bytes into each node's copy, by one of that node's threads."""
        cdef ni_status st
        cdef void **copy = _pointers(addresses)
        try:
            if ni_copy_start(self.usable(), &src[0], src.shape[0], copy, &st):
                _fail(&st)
            self.finish()
        finally:
            free(copy)

    def read_time(self, addresses, size_t n_bytes, int streams):
        """Nanoseconds to read n_bytes at each node's address, by that node's workers; streams = 0 writes instead."""
        cdef ni_status st
        cdef ni_team *t = self.usable()
        cdef void **node = _pointers(addresses)
        cdef int64_t ns
        with nogil:
            ns = ni_read_time(t, node, n_bytes, streams, &st)
        free(node)
        if ns < 0:
            _fail(&st)
        return ns

    def barrier_time(self, int64_t n, bint team=True):
        """Nanoseconds for n barriers in a row: the team's, or each node's own."""
        cdef ni_status st
        cdef ni_team *t = self.usable()
        cdef int64_t ns
        with nogil:
            ns = ni_barrier_time(t, n, team, &st)
        if ns < 0:
            _fail(&st)
        if ni_team_cancelled(t):
            raise Cancelled("the measurement was cancelled")
        return ns

    def copy_kv(self, layers, uintptr_t src, uintptr_t dst, int64_t n_pos):
        """Copy the first n_pos positions of a KV memory to another of the same layout."""
        cdef ni_status st
        layers = np.ascontiguousarray(layers, KV_LAYER_DTYPE)
        cdef const uint8_t[::1] view = layers.view(np.uint8).reshape(-1)
        if ni_kv_copy_start(self.usable(), <const ni_kv_layer *>&view[0], len(layers), <const uint8_t *>src,
                            <uint8_t *>dst, n_pos, &st):
            _fail(&st)
        self.finish()


cdef int _fill_weight(ni_weight *w, weight) except -1:
    cdef int64_t *own
    code, n, k, addresses, bounds = weight
    w.type, w.n, w.k, w.copy, w.bounds = code, n, k, _pointers(addresses), NULL
    if bounds is not None:
        if len(bounds) != len(addresses) + 1:
            raise ValueError(f"{len(addresses)} shards need {len(addresses) + 1} bounds, found {len(bounds)}")
        own = <int64_t *>malloc(sizeof(int64_t) * len(bounds))
        if own == NULL:
            raise MemoryError
        for i, b in enumerate(bounds):
            own[i] = b
        w.bounds = own
    return 0


cdef void _free_weight(ni_weight *w):
    free(<void *>w.copy)
    free(<void *>w.bounds)


def matmul_cut(shapes, int n_workers):
    """Row groups of matrices (code, n, k) of one stage by worker: int64 array (n_workers, matrices, 2)."""
    cdef ni_weight w[3]
    cdef const ni_weight *p[3]
    cdef int64_t g0[3]
    cdef int64_t g1[3]
    cdef int n = len(shapes)
    if not 1 <= n <= 3:
        raise ValueError(f"a stage has one to three matrices, found {n}")
    for j, (code, rows, k) in enumerate(shapes):
        w[j].type, w[j].n, w[j].k = code, rows, k
        p[j] = &w[j]
    found = np.empty((n_workers, n, 2), np.int64)
    for worker in range(n_workers):
        ni_matmul_cut(p, n, n_workers, worker, g0, g1)
        for j in range(n):
            found[worker, j] = g0[j], g1[j]
    return found


cdef void **_pointers(addresses) except NULL:
    cdef void **out = <void **>malloc(sizeof(void *) * max(len(addresses), 1))
    if out == NULL:
        raise MemoryError
    for i, a in enumerate(addresses):
        out[i] = <void *><uintptr_t>a
    return out


def kv_chunk_bytes(int64_t e, int64_t ev):
    """Bytes of one chunk of one kv-head: keys and values of CHUNK positions."""
    return ni_kv_chunk_bytes(e, ev)


cdef class Plan:
    """A plan that a team runs.

    ops, tensors: arrays of OP_DTYPE, TENSOR_DTYPE; weights: (code, n, k, addresses per node, bounds) each, code -1 for
    plain bytes, bounds None but for shards; arena_bytes: (shared, per node); node_map, os_nodes: per node of the team, its index in the weights' addresses
    and its number for the system.
    """
    cdef ni_plan *p
    cdef ni_weight *weights
    cdef int n_weights, n_ops
    cdef Team team
    cdef object keep

    def __init__(self, Team team, ops, tensors, weights, arena_bytes, int max_tokens, node_map, os_nodes):
        cdef ni_status st
        cdef ni_plan_spec spec
        cdef ni_team *t = team.usable()
        self.team, self.n_weights, self.n_ops = team, len(weights), len(ops)
        self.weights = <ni_weight *>calloc(max(len(weights), 1), sizeof(ni_weight))
        for i, weight in enumerate(weights):
            _fill_weight(&self.weights[i], weight)
        ops = np.ascontiguousarray(ops, OP_DTYPE)
        tensors = np.ascontiguousarray(tensors, TENSOR_DTYPE)
        cdef const uint8_t[::1] o = ops.view(np.uint8).reshape(-1)
        cdef const uint8_t[::1] x = tensors.view(np.uint8).reshape(-1)
        spec.n_ops, spec.ops = len(ops), <const ni_op *>&o[0]
        spec.n_tensors, spec.tensors = len(tensors), <const ni_tensor *>&x[0]
        spec.n_weights, spec.weights = len(weights), self.weights
        spec.arena_bytes[0], spec.arena_bytes[1] = arena_bytes[0], arena_bytes[1]
        spec.max_tokens = max_tokens
        cdef int *m = _ints(node_map)
        cdef int *d = _ints(os_nodes)
        with nogil:
            self.p = ni_plan_open(t, &spec, m, d, &st)
        free(m)
        free(d)
        if self.p == NULL:
            _fail(&st)

    def __dealloc__(self):
        ni_plan_close(self.p)
        if self.weights != NULL:
            for i in range(self.n_weights):
                _free_weight(&self.weights[i])
            free(self.weights)

    def close(self):
        ni_plan_close(self.p)
        self.p = NULL

    @property
    def bytes(self):
        """Bytes of activations and scratch that the plan may touch."""
        return ni_plan_bytes(self.p) if self.p != NULL else 0

    def run(self, const int32_t[::1] ids, segments, const int32_t[::1] out_rows, float[:, ::1] out, uint64_t shuffle_seed=0):
        """Run a step: ids (T,), segments of SEGMENT_DTYPE covering them in order, out_rows (R,), out (R, width).

        With a shuffle_seed the calling thread plays all workers, one after another, in random order between barriers.
        """
        cdef ni_status st
        cdef ni_step s
        cdef ni_team *t = self.team.usable()
        if self.p == NULL:
            raise ValueError("the plan is closed")
        segments = np.ascontiguousarray(segments, SEGMENT_DTYPE)
        cdef const uint8_t[::1] g = segments.view(np.uint8).reshape(-1)
        if ids.shape[0] == 0 or out.shape[0] != out_rows.shape[0]:
            raise ValueError(f"a step needs tokens and a row of output per wanted row; found {ids.shape[0]} tokens, "
                             f"{out.shape[0]} rows for {out_rows.shape[0]}")
        s.n_tokens, s.n_segments, s.n_out = ids.shape[0], len(segments), out_rows.shape[0]
        s.ids, s.segments = &ids[0], <const ni_segment *>&g[0]
        s.out_rows = &out_rows[0] if out_rows.shape[0] else NULL
        s.out = &out[0, 0] if out_rows.shape[0] else NULL
        if shuffle_seed:
            with nogil:
                ni_plan_run_shuffled(t, self.p, &s, shuffle_seed)
            return
        if ni_plan_start(t, self.p, &s, &st):
            _fail(&st)
        self.team.finish()

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


include "_sample.pxi"

isa_select(os.environ.get("NUMAINFER_ISA") or None)
