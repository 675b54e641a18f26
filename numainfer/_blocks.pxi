# Binds csrc/blocks.c.  Each method is one step for Python: Ctrl-C, which may raise between any two bytecodes, loses no block.

cdef class Pool:
    """Blocks of n bytes each with reference counts, in slabs of reserved address space; see csrc/ni.h."""
    cdef ni_pool *p
    cdef readonly bint closed

    def __init__(self, size_t n_bytes, bint huge=False):
        cdef ni_status st
        self.p = ni_pool_open(n_bytes, huge, &st)
        if self.p == NULL:
            _fail(&st)

    def __dealloc__(self):
        ni_pool_close(self.p)  # who holds a block holds the pool, too

    cdef tidy(self):
        """Give back the pages of blocks that nobody holds; other threads go on meanwhile.  After `close`, the slabs too."""
        cdef int64_t b
        cdef uint8_t *at
        cdef size_t n = ni_pool_block_bytes(self.p)
        while True:
            b = ni_pool_pick(self.p)
            if b < 0:
                break
            at = ni_pool_at(self.p, b)
            with nogil:
                ni_pool_empty(at, n)
            ni_pool_free(self.p, b)
        if self.closed and ni_pool_out(self.p) == 0:
            ni_pool_unmap(self.p)

    def close(self):
        """Give the slabs back: now, or with the last block that somebody holds."""
        self.closed = True
        self.tidy()

    @property
    def block_bytes(self):
        return ni_pool_block_bytes(self.p)

    @property
    def n_out(self):
        """Blocks that somebody holds."""
        return ni_pool_out(self.p)

    def slabs(self):
        """(address, bytes) of each slab."""
        cdef ni_arena a
        found = []
        for i in range(ni_pool_n_slabs(self.p)):
            a = ni_pool_slab(self.p, i)
            found.append((<uintptr_t>a.base, a.bytes))
        return found


# Where the stable ABI is used Cython calls no `__del__`: what must happen at the end of an object stands in `__dealloc__`, and
# `no_gc_clear` keeps what it needs for that, should the object be part of a cycle.
@cython.no_gc_clear
cdef class Block:
    """A reference to a block of a pool: to a new one, or to one that `Tables.block` gave."""
    cdef Pool pool
    cdef int64_t number

    def __init__(self, Pool pool):
        cdef ni_status st
        self.number = -1
        if pool.closed:
            raise ValueError("the pool of blocks is closed")
        self.pool = pool
        self.number = ni_pool_take(pool.p, &st)
        if self.number < 0:
            _fail(&st)

    def __dealloc__(self):
        self.drop()

    @property
    def address(self):
        return <uintptr_t>ni_pool_at(self.pool.p, self.number) if self.number >= 0 else 0

    @property
    def references(self):
        """How many there are, this one included; 0 of a closed one."""
        return ni_pool_count(self.pool.p, self.number) if self.number >= 0 else 0

    def close(self):
        self.drop()

    cdef drop(self):
        cdef int64_t number = self.number
        if number >= 0 and self.pool is not None:
            self.number = -1
            ni_pool_drop(self.pool.p, number)
            self.pool.tidy()


@cython.no_gc_clear
cdef class Tables:
    """A sequence's blocks: a table for each of some pools.

    Parameters
    ----------
    pools : sequence of Pool
    windows : sequence of int
        Per pool: positions that a token sees, 0 for all before it.
    n_batch : int
        Most tokens of a step.
    """
    cdef ni_table *t
    cdef int n
    cdef tuple pools
    cdef int n_holds
    cdef readonly bint closed

    def __init__(self, pools, windows, int64_t n_batch):
        cdef Pool pool
        self.pools = tuple(pools)
        self.t = <ni_table *>calloc(max(len(self.pools), 1), sizeof(ni_table))
        if self.t == NULL:
            raise MemoryError
        for i, (pool, window) in enumerate(zip(self.pools, windows, strict=True)):
            self.t[i].pool, self.t[i].window = pool.p, window
            self.t[i].reach = window + n_batch - 1
        self.n = len(self.pools)

    def __dealloc__(self):
        self.empty()
        free(self.t)

    cdef empty(self):
        cdef Pool pool
        for i in range(self.n):
            ni_table_close(&self.t[i])
        for pool in self.pools or ():
            pool.tidy()

    @property
    def address(self):
        """What a step's segment names."""
        return <uintptr_t>self.t

    def hold(self):
        """A `Hold` that keeps the blocks even if the tables are closed meanwhile; None if they are closed already."""
        if self.closed:
            return None
        return Hold(self)

    @property
    def held(self):
        return self.n_holds > 0

    def close(self):
        """Give all blocks back: now, or with the end of the last hold."""
        self.closed = True
        if not self.n_holds:
            self.empty()

    def reaches(self, int64_t n):
        """Whether a step may begin at position n."""
        for i in range(self.n):
            if not ni_table_reaches(&self.t[i], n):
                return False
        return True

    def cut(self, int64_t n):
        """Give back the blocks of positions n and later."""
        cdef Pool pool
        for i in range(self.n):
            ni_table_cut(&self.t[i], n)
        for pool in self.pools or ():
            pool.tidy()

    def prepare(self, int64_t pos0, int64_t end):
        """Make room for a step of tokens pos0 to end - 1, which pos0 reaches.

        Returns
        -------
        list of int, or None
            Tables whose block of pos0 must be replaced by a copy (`swap`) before the step.

        Raises
        ------
        OutOfNodeMemory
            What stood before pos0 is as it was.
        """
        cdef ni_status st
        cdef Pool pool
        cdef int e
        shared = None
        try:
            for i in range(self.n):
                pool = self.pools[i]
                if pool.closed:
                    raise ValueError("the pool of blocks is closed")
                e = ni_table_prepare(&self.t[i], pos0, end, &st)
                if e < 0:
                    _fail(&st)
                if e:
                    shared = [*(shared or ()), i]
        finally:
            for pool in self.pools:
                pool.tidy()
        return shared

    def swap(self, int i, int64_t chunk, Block block):
        """Put a block in the place of a chunk's in table i, and that one's reference into the Block."""
        cdef int64_t mine = block.number
        self.check(i, chunk)
        if block.pool is not self.pools[i] or mine < 0:
            raise ValueError(f"the block is not of table {i}'s pool, or was closed")
        block.number = ni_table_swap(&self.t[i], chunk, mine)

    def block(self, int i, int64_t chunk):
        """A Block that is one reference more to a chunk's in table i; None if there is no such chunk."""
        cdef Block block
        if not 0 <= i < self.n:
            raise ValueError(f"table {i} of {self.n}")
        if not self.t[i].first <= chunk < self.t[i].end:
            return None
        block = Block.__new__(Block)
        block.number = self.t[i].block[chunk]
        block.pool = self.pools[i]
        ni_pool_hold(self.t[i].pool, block.number)
        return block

    def put(self, int i, int64_t chunk, Block block, int64_t n):
        """Make a block chunk's, which is table i's next, or any of an empty table; it holds n positions, from its first on."""
        cdef ni_status st
        if not 0 <= i < self.n or block.pool is not self.pools[i] or block.number < 0:
            raise ValueError(f"the block is not of table {i}'s pool, or was closed")
        if self.closed or chunk < 0 or self.t[i].end > self.t[i].first and chunk != self.t[i].end:
            raise ValueError(f"table {i} is closed, or its next chunk is not {chunk}")
        if ni_table_put(&self.t[i], chunk, block.number, n, &st):
            _fail(&st)

    def read(self, int i, int64_t chunk, int64_t offset, uint8_t[::1] into):
        """Copy bytes of a chunk's block in table i, from an offset on."""
        self.check(i, chunk)
        if offset < 0 or offset + into.shape[0] > <int64_t>ni_pool_block_bytes(self.t[i].pool):
            raise ValueError(f"bytes {offset} to {offset + into.shape[0]} are not all in a block")
        if into.shape[0]:
            memcpy(&into[0], self.t[i].at[chunk] + offset, into.shape[0])

    def share(self, Tables other, int64_t n):
        """Become tables of the blocks that hold the first n positions of `other`; nothing is copied.

        Raises
        ------
        ValueError
            Pools differ, one of the two is closed, or the positions are not there: another thread may have cut them off.
        """
        cdef ni_status st
        if self.closed or other.closed or self.pools != other.pools:
            raise ValueError("tables can share blocks of the same pools, while both are open")
        if not other.reaches(n):
            raise ValueError(f"{n} positions cannot be shared: they are not all there any more")
        for i in range(self.n):
            if ni_table_share(&self.t[i], &other.t[i], n, &st):
                _fail(&st)

    cdef check(self, int i, int64_t chunk):
        if not (0 <= i < self.n and self.t[i].first <= chunk < self.t[i].end):
            raise ValueError(f"table {i} has no chunk {chunk}")

    def address_of(self, int i, int64_t chunk):
        """Of a chunk's block in table i."""
        self.check(i, chunk)
        return <uintptr_t>self.t[i].at[chunk]

    def blocks(self, int i):
        """(chunk, address, references) of every block in table i."""
        if not 0 <= i < self.n:
            raise ValueError(f"table {i} of {self.n}")
        return [(j, <uintptr_t>self.t[i].at[j], ni_pool_count(self.t[i].pool, self.t[i].block[j]))
                for j in range(self.t[i].first, self.t[i].end)]


@cython.no_gc_clear
cdef class Hold:
    """Made by `Tables.hold`; ended by `release`, or with the object."""
    cdef Tables tables

    def __init__(self, Tables tables):
        self.tables = tables
        tables.n_holds += 1

    def release(self):
        self.end()

    def __dealloc__(self):
        self.end()

    cdef end(self):
        cdef Tables tables = self.tables
        self.tables = None
        if tables is not None:
            tables.n_holds -= 1
            if tables.closed and not tables.n_holds:
                tables.empty()


def kv_clear(int type, int64_t e, int64_t ev, uint8_t[::1] chunk, int start):
    """Make positions `start` and later of a kv-head's chunk zeros."""
    cdef float[::1] zeros = np.zeros(max(e, ev, 1) + 15, np.float32)
    if not 0 <= start <= NI_CHUNK or chunk.shape[0] != <int64_t>ni_kv_chunk_bytes(<ni_kv_type>type, e, ev):
        raise ValueError(f"position {start} of a chunk of {chunk.shape[0]} bytes")
    ni_kv_clear(<ni_kv_type>type, e, ev, &zeros[0], &chunk[0], start)
