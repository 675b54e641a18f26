# Binds csrc/numa.c: nodes and memory bound to them.

def numa_available():
    return bool(ni_numa_available())


def numa_max_node():
    return ni_numa_max_node()


def numa_node_of_cpu(int cpu):
    return ni_numa_node_of_cpu(cpu)


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


cdef class Arena:
    """Zeroed memory bound to a node, interleaved over several, or left to first touch; freed by close().

    fd: of a file in shared memory that is mapped instead, on huge pages where there are any; write: or to read only.

    Attributes: address, bytes, bound (whether the kernel accepted the binding).
    """
    cdef ni_arena a

    def __init__(self, size_t n_bytes, nodes=(), bint huge=False, int fd=-1, bint write=True):
        cdef ni_status st
        cdef list keep = []
        if fd >= 0:
            if ni_arena_map(&self.a, fd, n_bytes, _ints(nodes, keep), len(nodes), write, &st):
                _fail(&st)
        elif ni_arena_open(&self.a, n_bytes, _ints(nodes, keep), len(nodes), huge, &st):
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

    def count(self, int n_nodes, int home=-1, bint huge=False):
        """Resident bytes by node, (n_nodes,) int64; an int (errno) where the kernel refuses to tell.

        Looks at signals every few milliseconds.  home: node to which pages that lie elsewhere are moved first.  huge: every whole
        2 MiB is a huge page (`pages.resident` knows), so that one question answers for it.
        """
        counts = np.zeros(n_nodes, np.int64)
        cdef int64_t[::1] view = counts
        cdef size_t at = 0
        cdef int e
        while at < self.a.bytes:
            with nogil:
                e = ni_arena_count(&self.a, &at, huge, home, &view[0], n_nodes)
            if e:
                return e
            PyErr_CheckSignals()
        return counts

    def populate(self, int fd, size_t at, size_t n_bytes, int spread=1):
        """Take the pages of some bytes of the mapped file; 0 or an errno.  For several threads at once.

        spread: over how many nodes it is interleaved, at most 512, else 1.
        """
        cdef int e
        if at + n_bytes > self.a.bytes:
            raise ValueError(f"bytes {at} to {at + n_bytes} of an arena of {self.a.bytes}")
        if not 1 <= spread <= 512:
            raise ValueError(f"spread = {spread}, wanted 1 to 512 nodes")
        with nogil:
            e = ni_arena_populate(&self.a, fd, at, n_bytes, spread)
        return e

    def seal(self):
        """Nobody writes here any more; 0 or an errno."""
        return ni_arena_seal(&self.a)

    def sample(self, int n_nodes, int samples):
        """As `count`, of so many pages, evenly spread, which are touched: of a file's, a process has but those that it touched."""
        counts = np.zeros(n_nodes, np.int64)
        cdef int64_t[::1] view = counts
        cdef int e = ni_arena_sample(&self.a, samples, &view[0], n_nodes)
        return e if e else counts

    def read(self, size_t offset, size_t n_bytes):
        """A copy of some bytes, for tests."""
        if offset + n_bytes > self.a.bytes:
            raise ValueError(f"bytes {offset} to {offset + n_bytes} of an arena of {self.a.bytes}")
        return (<char *>self.a.base)[offset:offset + n_bytes]
