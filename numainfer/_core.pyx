# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""Binding of numainfer's C core: no arithmetic, no policy.  Internal; its shape follows csrc/ni.h."""

import functools
import os
from _thread import allocate_lock, get_ident

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from .errors import ForkedProcess, NumaInferError, OutOfNodeMemory, PlacementError


cdef extern from "../csrc/ni.h":
    ctypedef struct ni_status:
        int code
        char text[480]
    int NI_ROWS, NI_SLAB, NI_CHUNK, NI_N_TYPES
    ctypedef struct ni_format:
        const char *name
        int ggml_type, block, block_bytes, record_bytes, kind, offset, max_q, head_bytes
        int sub_ "sub"
        void (*decode)(const uint8_t *, int64_t, float *) noexcept nogil
        void (*unpack_row)(const uint8_t *, int, int64_t, float *) noexcept nogil
    const ni_format *ni_formats
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

    ctypedef struct ni_arena:
        void *base
        size_t bytes
        int bound
    int ni_arena_open(ni_arena *, size_t, const int *, int, int, ni_status *) nogil
    int ni_arena_map(ni_arena *, int, size_t, const int *, int, int, ni_status *) nogil
    int ni_arena_populate(const ni_arena *, int, size_t, size_t, int) nogil
    int ni_arena_seal(const ni_arena *) nogil
    int ni_arena_sample(const ni_arena *, int, int64_t *, int) nogil
    void ni_arena_close(ni_arena *) nogil
    int ni_arena_count(const ni_arena *, size_t *, int, int, int64_t *, int) nogil

    ctypedef struct ni_team:
        pass
    ni_team *ni_team_open(const int *, const int *, const int *, int, int, ni_status *) nogil
    void ni_team_close(ni_team *) nogil
    int ni_team_size(const ni_team *) nogil
    void ni_team_cancel(ni_team *) nogil
    int ni_team_wait(ni_team *, int) nogil
    int ni_team_cancelled(const ni_team *) nogil
    void ni_team_cpus(const ni_team *, int *) nogil
    ctypedef struct ni_meeting:
        int node, up, size, workers
    int NI_MOST_WORKERS
    int ni_meetings(const int *, const int *, int, ni_meeting *, int *) nogil
    int ni_team_meetings(const ni_team *, ni_meeting *, int) nogil
    uint64_t ni_floats_default() nogil
    void ni_floats_restore(uint64_t) nogil
    int ni_omp_n_places()
    int ni_omp_place(int, int *, int)

    ctypedef struct ni_weight:
        int type
        int64_t n, k
        void **copy
        int64_t *bounds
        int64_t experts
    int NI_MATRICES, NI_UNPACK
    ctypedef struct ni_sizes:
        int32_t crew, piece_bytes, exact_groups, line_tokens, tile_groups, tile_tokens
    const ni_sizes ni_default_sizes
    ctypedef struct ni_matmul_unit:
        pass
    void ni_node_cut(int64_t, int64_t, int64_t, int64_t, int64_t *, int64_t *)
    int64_t ni_matmul_units(const ni_weight *const *, int, int64_t, const int *, int, const ni_sizes *, ni_matmul_unit *, int64_t) nogil
    int64_t ni_grouped_units(const ni_weight *const *, int, int64_t, const int32_t *, int64_t, const int *, int, const ni_sizes *,
                             ni_matmul_unit *, int64_t) nogil
    void ni_score_work(const ni_weight *, int64_t, int64_t, int64_t, int64_t, int64_t *)
    int ni_slice(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t *, int64_t *, int64_t *)
    ctypedef struct ni_piece:
        ni_weight w
        size_t row_bytes
        int fd
        int64_t offset
        const uint8_t *src
    ctypedef struct ni_fill:
        pass
    ni_fill *ni_fill_start(ni_team *, const ni_piece *, int, uint8_t *, ni_status *) nogil
    int ni_fill_done(const ni_fill *, int64_t *) nogil
    int64_t ni_fill_taken(const ni_fill *, int) nogil
    int ni_fill_unreadable(const ni_fill *) nogil
    void ni_fill_free(ni_fill *) nogil
    int64_t ni_read_time(ni_team *, void **, size_t, int, ni_status *) nogil
    int64_t ni_barrier_time(ni_team *, int64_t, int, ni_status *) nogil

    ctypedef struct ni_pool:
        pass
    ni_pool *ni_pool_open(size_t, int, ni_status *)
    void ni_pool_unmap(ni_pool *)
    void ni_pool_close(ni_pool *)
    size_t ni_pool_block_bytes(const ni_pool *)
    int64_t ni_pool_out(const ni_pool *)
    int64_t ni_pool_n_slabs(const ni_pool *)
    ni_arena ni_pool_slab(const ni_pool *, int64_t)
    int64_t ni_pool_take(ni_pool *, ni_status *)
    uint8_t *ni_pool_at(const ni_pool *, int64_t)
    int ni_pool_count(const ni_pool *, int64_t)
    void ni_pool_hold(ni_pool *, int64_t)
    void ni_pool_drop(ni_pool *, int64_t)
    int64_t ni_pool_pick(ni_pool *)
    void ni_pool_empty(uint8_t *, size_t) nogil
    void ni_pool_free(ni_pool *, int64_t)
    ctypedef struct ni_table:
        ni_pool *pool
        int64_t window, reach, first, end
        int64_t *block
        uint8_t **at
    bint ni_table_reaches(const ni_table *, int64_t)
    int ni_table_prepare(ni_table *, int64_t, int64_t, ni_status *)
    int64_t ni_table_swap(ni_table *, int64_t, int64_t)
    int ni_table_put(ni_table *, int64_t, int64_t, int64_t, ni_status *)
    void ni_table_cut(ni_table *, int64_t)
    int ni_table_share(ni_table *, const ni_table *, int64_t, ni_status *)
    void ni_table_close(ni_table *)

    ctypedef struct ni_tensor:
        pass
    int NI_OP_TENSORS, NI_OP_WEIGHTS, NI_OP_INTS, NI_OP_FLOATS
    ctypedef struct ni_op:
        pass
    ctypedef struct ni_segment:
        const ni_table *tables
        int64_t row0, n, pos0
    ctypedef struct ni_stop:
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
        ni_sizes sizes
    ctypedef struct ni_step:
        int n_tokens, n_segments, n_out
        const int32_t *ids
        const ni_segment *segments
        const int32_t *out_rows
        float *out
        float *hidden
    ni_plan *ni_plan_open(ni_team *, const ni_plan_spec *, const int *, const int *, ni_status *) nogil
    void ni_plan_close(ni_plan *) nogil
    int64_t ni_plan_bytes(const ni_plan *)
    int ni_plan_start(ni_team *, ni_plan *, const ni_step *, ni_status *) nogil
    void ni_plan_run_shuffled(ni_team *, ni_plan *, const ni_step *, uint64_t) nogil
    void ni_plan_times(ni_plan *, int64_t *, int64_t *)
    int ni_plan_set_timing(ni_plan *, int, ni_status *)
    int ni_plan_workers(const ni_plan *)
    void ni_plan_fill(ni_plan *, float) nogil
    void ni_plan_work(ni_plan *, int64_t *)
    int ni_plan_stamps(const ni_plan *, int64_t *, ni_status *)
    const char *ni_op_name(int)
    const char *ni_op_signature(int)
    const char *ni_attention_int(int)
    ctypedef struct ni_runs:
        int64_t first, end
        int shift
    ni_runs ni_runs_of(int64_t, int64_t, int64_t)
    int ni_attend_costs(const int32_t *, int, const ni_segment *, const int *, int, int64_t *, ni_status *)
    ctypedef struct ni_kv_layer:
        pass
    ctypedef enum ni_kv_type:
        pass
    size_t ni_kv_chunk_bytes(ni_kv_type, int64_t, int64_t)
    const char *ni_kv_name(int)
    int ni_kv_copy_start(ni_team *, const ni_kv_layer *, int, int64_t, const uint8_t *, uint8_t *, ni_status *) nogil
    void ni_kv_clear(ni_kv_type, int64_t, int64_t, const float *, uint8_t *, int) nogil


ROWS, SLAB, CHUNK, UNPACK = NI_ROWS, NI_SLAB, NI_CHUNK, NI_UNPACK
BARRIERS = ("none", "node", "team")

OP_DTYPE = np.dtype([("code", "i4"), ("barrier", "i4"), ("selected", "i4"), ("t", "i4", NI_OP_TENSORS),
                     ("w", "i4", NI_OP_WEIGHTS), ("i", "i4", NI_OP_INTS), ("f", "f4", NI_OP_FLOATS)])
TENSOR_DTYPE = np.dtype([("storage", "i4"), ("width", "i4"), ("per_token", "i4"), ("f", "i8"), ("q", "i8"), ("d", "i8"),
                         ("m", "i8"), ("s", "i8"), ("i", "i8")], align=True)
SEGMENT_DTYPE = np.dtype([("tables", "u8"), ("row0", "i8"), ("n", "i8"), ("pos0", "i8"), ("state", "u8"), ("stops", "u8"), ("n_stops", "i8"),
                          ("hidden", "u8")])
STOP_DTYPE = np.dtype([("pos", "i8"), ("to", "u8")])
KV_LAYER_DTYPE = np.dtype([("offset", "i8"), ("stride", "i8"), ("n_heads", "i4"), ("e", "i4"), ("ev", "i4"), ("type", "i4"),
                           ("turn", "i8")])
UNIT_DTYPE = np.dtype([("node", "i4"), ("crew", "i4"), ("rank", "i4"), ("piece", "i4"), ("matrix", "i4"), ("unused", "i4"),
                       ("g0", "i8"), ("g1", "i8"), ("k0", "i8"), ("k1", "i8"), ("t0", "i8"), ("t1", "i8")])
if (OP_DTYPE.itemsize != sizeof(ni_op) or TENSOR_DTYPE.itemsize != sizeof(ni_tensor)
        or SEGMENT_DTYPE.itemsize != sizeof(ni_segment) or STOP_DTYPE.itemsize != sizeof(ni_stop) or KV_LAYER_DTYPE.itemsize != sizeof(ni_kv_layer)
        or UNIT_DTYPE.itemsize != sizeof(ni_matmul_unit)):
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


def in_default_floats(function):
    """A function that computes in the default floating-point mode, whatever its caller's thread is in, and leaves that as it was.

    Rounding modes and the flushing of denormals belong to the process; what we compute must not depend on them.
    """
    @functools.wraps(function)
    def call(*args, **keywords):
        cdef uint64_t mode = ni_floats_default()
        try:
            return function(*args, **keywords)
        finally:
            ni_floats_restore(mode)
    return call


def formats():
    """Weight formats by GGUF name: dict of code, block, block_bytes, kind, record_bytes, head_bytes, quantised."""
    return {ni_formats[i].name.decode(): dict(code=i, block=ni_formats[i].block, block_bytes=ni_formats[i].block_bytes,
                                              kind=ni_formats[i].kind, record_bytes=ni_formats[i].record_bytes,
                                              head_bytes=ni_formats[i].head_bytes,
                                              quantised=ni_formats[i].kind != 0)
            for i in range(NI_N_TYPES)}


def packed_bytes(int code, int64_t n, int64_t k):
    """Bytes of a packed matrix of n rows of k values."""
    return ni_packed_bytes(code, n, k)


def decode(int code, const uint8_t[::1] blocks, int64_t rows=1):
    """Decode so many rows of the file's layout, one after the other, to float32 with the format's scalar decoder."""
    cdef int64_t row_bytes = blocks.shape[0] // rows, r
    cdef int64_t n = (row_bytes - ni_formats[code].head_bytes) // ni_formats[code].block_bytes
    out = np.empty(rows * n * ni_formats[code].block, np.float32)
    cdef float[::1] view = out
    cdef uint64_t mode = ni_floats_default()
    for r in range(rows if n > 0 else 0):
        ni_formats[code].decode(&blocks[r * row_bytes], n, &view[r * n * ni_formats[code].block])
    ni_floats_restore(mode)
    return out


def ops():
    """(name, signature) of every op, in order of their codes."""
    found, i = [], 0
    while ni_op_name(i) != NULL:
        found.append((ni_op_name(i).decode(), ni_op_signature(i).decode()))
        i += 1
    return found


cdef class _Memory:
    """Zeroed memory of C's, freed with the object: no exception that comes in between leaves it behind."""
    cdef void *p

    def __cinit__(self, size_t n, size_t size):
        self.p = calloc(n if n else 1, size)
        if self.p == NULL:
            raise MemoryError(f"no memory for {n} things of {size} bytes")

    def __dealloc__(self):
        free(self.p)


# Arrays for C, each of which lives as long as the list `keep`.

cdef void *_memory(size_t n, size_t size, list keep) except NULL:
    cdef _Memory memory = _Memory(n, size)
    keep.append(memory)
    return memory.p


cdef int *_ints(values, list keep) except NULL:
    cdef int *out = <int *>_memory(len(values), sizeof(int), keep)
    for i, v in enumerate(values):
        out[i] = v
    return out


cdef int64_t *_longs(values, list keep) except NULL:
    cdef int64_t *out = <int64_t *>_memory(len(values), sizeof(int64_t), keep)
    for i, v in enumerate(values):
        out[i] = v
    return out


cdef void **_pointers(addresses, list keep) except NULL:
    cdef void **out = <void **>_memory(len(addresses), sizeof(void *), keep)
    for i, a in enumerate(addresses):
        out[i] = <void *><uintptr_t>a
    return out


cdef int _fill_weight(ni_weight *w, weight, list keep) except -1:
    code, n, k, addresses, bounds, experts = weight
    if bounds is not None and len(bounds) != len(addresses) + 1:
        raise ValueError(f"{len(addresses)} shards need {len(addresses) + 1} bounds, found {len(bounds)}")
    w.type, w.n, w.k, w.experts, w.copy = code, n, k, experts, _pointers(addresses, keep)
    w.bounds = NULL if bounds is None else _longs(bounds, keep)
    return 0


include "_numa.pxi"
include "_team.pxi"
include "_blocks.pxi"
include "_plan.pxi"
include "_sample.pxi"
include "_turns.pxi"

isa_select(os.environ.get("NUMAINFER_ISA") or None)
