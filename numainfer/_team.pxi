# Binds csrc/team.c, and the jobs that a team runs besides plans: packing, copying, measuring.

cdef list _lines(const ni_meeting *m, int n):
    """The lines that workers write at points of meeting: (what, node or -1, workers that may write it at one barrier or job)."""
    found = []
    for i in range(n):
        found.append(("arrive", m[i].node, m[i].size))
        found.append(("release", m[i].node, m[i].size))  # by the last one; by the others where they fall asleep, and wake
        if m[i].workers:
            found.append(("job", m[i].node, m[i].workers))  # the same
    return found


def barrier_lines(nodes, domains=None):
    """The lines that a team's workers write at a barrier, and for a job, without a team.

    Parameters
    ----------
    nodes, domains : sequence of int
        Per worker, as `Team` takes them.

    Returns
    -------
    list of (str, int, int)
        What it is for ("arrive", "release" or "job"), the node whose workers write it (-1: of several), and how many may.
    """
    cdef int n = len(nodes)
    if not 1 <= n <= NI_MOST_WORKERS or domains is not None and len(domains) != n:
        raise ValueError(f"wanted 1 to {NI_MOST_WORKERS} workers, and a domain for each; found {n} and "
                         f"{'none' if domains is None else len(domains)}")
    cdef list keep = []
    cdef ni_meeting *m = <ni_meeting *>_memory(2 * n, sizeof(ni_meeting), keep)
    cdef int *e = _ints([0] * n if domains is None else domains, keep)
    return _lines(m, ni_meetings(_ints(nodes, keep), e, n, m, _ints(nodes, keep)))


cdef class Team:
    """Pinned worker threads; see csrc/ni.h.

    Parameters
    ----------
    cpus, nodes : sequence of int
        Per worker: its CPU, and its node's index, ascending from 0.
    domains : sequence of int, optional
        Per worker a number that neighbours share who share an L3 cache; by default all of a node do.

    Attributes
    ----------
    scratch : SampleScratch or None
        The workers' memory for sampling (`choose`); whoever gives it to them counts it.
    """
    cdef ni_team *p
    cdef public object scratch
    cdef object pid
    cdef readonly int n_nodes

    def __init__(self, cpus, nodes, domains=None):
        cdef ni_status st
        if len(cpus) != len(nodes) or not len(cpus):
            raise ValueError(f"a team needs a CPU and a node for each worker; found {len(cpus)} and {len(nodes)}")
        domains = [0] * len(cpus) if domains is None else domains
        if len(domains) != len(cpus):
            raise ValueError(f"a team needs a domain for each of {len(cpus)} workers; found {len(domains)}")
        cdef int n = len(cpus), n_nodes = max(nodes) + 1
        cdef list keep = []
        cdef int *c = _ints(cpus, keep)
        cdef int *d = _ints(nodes, keep)
        cdef int *e = _ints(domains, keep)
        with nogil:
            self.p = ni_team_open(c, d, e, n, n_nodes, &st)
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
        seen = np.empty(n, np.intc)
        cdef int[::1] view = seen
        ni_team_cpus(self.p, &view[0])
        return seen.tolist()

    def barrier_lines(self):
        """The function of that name, of this team as it meets."""
        cdef int n = ni_team_meetings(self.usable(), NULL, 0)
        cdef list keep = []
        cdef ni_meeting *m = <ni_meeting *>_memory(n, sizeof(ni_meeting), keep)
        ni_team_meetings(self.p, m, n)
        return _lines(m, n)

    def cancel(self):
        """Ask the running job to end early; from any thread."""
        if self.p != NULL:
            ni_team_cancel(self.p)

    cdef int finish(self, stop=None, ni_fill *filling=NULL, tick=None) except -1:
        """Wait for the job; signals are looked at, and tick called, every 10 ms, and what raises cancels the job first.

        Once stop() is true the job is cancelled: ``cancel`` just before the job began would have been forgotten.
        """
        cdef ni_team *p = self.p
        cdef int64_t row
        cdef int done = 0, piece
        while not done:
            with nogil:
                done = ni_team_wait(p, 10)
            if not done:
                try:
                    PyErr_CheckSignals()
                    if stop is not None and stop():
                        ni_team_cancel(p)
                    if tick is not None:
                        piece = ni_fill_done(filling, &row)
                        tick(piece, row)
                except BaseException:
                    with nogil:
                        ni_team_cancel(p)
                        while not ni_team_wait(p, 1000):
                            pass
                    raise
        if ni_team_cancelled(p):
            raise Cancelled("the step was cancelled")
        return 0

    def fill(self, pieces, uint8_t[::1] nonzero, tick=None, int64_t[::1] taken=None):
        """Put tensors into each node's copies, by that node's threads, which take runs of the list in order.

        Parameters
        ----------
        pieces : list of (weight, source, row_bytes)
            weight: (code, n, k, addresses per node, bounds or None, experts), as `Plan` takes it.
            source: (file descriptor, offset of the first row), or the address of the rows in memory; of code -1 the address
            of row_bytes plain bytes.
        nonzero : zeros (len(pieces),) uint8
            Becomes 1 where a matrix holds anything but zeros.
        tick : callable(piece, row), optional
            Called by this thread every 10 ms, while the workers go on: what comes before this row of this piece is in place.
        taken : (workers,) int64, optional
            Becomes the number of runs, of about 2 MiB of the file, that each worker took.

        Returns
        -------
        int
            -1; or the piece whose bytes the file could not give, where the job ended.
        """
        cdef ni_status st
        cdef ni_fill *filling = NULL
        cdef int n = len(pieces), i
        if len(nonzero) != n:
            raise ValueError(f"{n} pieces, but {len(nonzero)} flags")
        if taken is not None and len(taken) != len(self):
            raise ValueError(f"{len(self)} workers, but {len(taken)} counts of runs")
        if not n:
            return -1
        cdef list keep = []
        cdef ni_piece *p = <ni_piece *>_memory(n, sizeof(ni_piece), keep)
        for i, (weight, source, row_bytes) in enumerate(pieces):
            _fill_weight(&p[i].w, weight, keep)
            p[i].row_bytes = row_bytes
            p[i].fd = -1
            if isinstance(source, tuple):
                p[i].fd, p[i].offset = source
            else:
                p[i].src = <const uint8_t *><uintptr_t>source
        try:
            filling = ni_fill_start(self.usable(), p, n, &nonzero[0], &st)
            if filling == NULL:
                _fail(&st)
            self.finish(None, filling, tick)
            if taken is not None:
                for i in range(len(self)):
                    taken[i] = ni_fill_taken(filling, i)
            return ni_fill_unreadable(filling)
        finally:
            ni_fill_free(filling)

    def read_time(self, addresses, size_t n_bytes, int streams):
        """Nanoseconds to read n_bytes at each node's address, by that node's workers; streams = 0 writes instead."""
        cdef ni_status st
        cdef ni_team *t = self.usable()
        cdef list keep = []
        cdef void **node = _pointers(addresses, keep)
        cdef int64_t ns
        with nogil:
            ns = ni_read_time(t, node, n_bytes, streams, &st)
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

    def copy_kv(self, layers, int64_t chunk, uintptr_t src, uintptr_t dst):
        """Copy a block of KV memory that holds a chunk of some layers (KV_LAYER_DTYPE), each head by its own node."""
        cdef ni_status st
        layers = np.ascontiguousarray(layers, KV_LAYER_DTYPE)
        cdef const uint8_t[::1] view = layers.view(np.uint8).reshape(-1)
        if ni_kv_copy_start(self.usable(), <const ni_kv_layer *>&view[0], len(layers), chunk, <const uint8_t *>src,
                            <uint8_t *>dst, &st):
            _fail(&st)
        self.finish()
