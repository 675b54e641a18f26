"""Blocks of KV memory and the tables that find them: nobody's block is lost, given away twice, or written by two."""

import ctypes
import gc
import threading
from collections import Counter

import numpy as np
import pytest
from core_tools import python

from numainfer import _core

CHUNK, BLOCK = _core.CHUNK, 3 * 4096
N_BATCH = 100


def chunks(n):
    return -(-n // CHUNK)


def read(address):
    """The number at the beginning of a block and the one at its end, which must be the same."""
    first, last = (ctypes.c_int64.from_address(address + at).value for at in (0, BLOCK - 8))
    assert first == last
    return first


def write(address, number):
    for at in (0, BLOCK - 8):
        ctypes.c_int64.from_address(address + at).value = number


class Twin:
    """A sequence as it should be: by pool, {chunk: number that its block holds}; and the same in the core."""

    def __init__(self, pools, windows):
        self.pools, self.windows, self.n = pools, windows, 0
        self.has = [{} for _ in windows]
        self.tables = _core.Tables(pools, windows, N_BATCH)

    def reaches(self, n):
        """Of this length or less, with all that a token at position n sees."""
        return n <= self.n and all(
            j in has for has, window in zip(self.has, self.windows)
            for j in range((max(n - window + 1, 0) if window else 0) // CHUNK, chunks(n)))  # fmt: skip

    def step(self, pos0, end, number, count):
        """Tokens pos0 to end - 1; `count`: how many sequences hold a block, by its number, in each pool."""
        copies = self.tables.prepare(pos0, end) or []
        for i, (has, window) in enumerate(zip(self.has, self.windows)):
            partial = pos0 // CHUNK if pos0 % CHUNK else None
            assert (i in copies) == (partial is not None and count[i][has[partial]] > 1)
            if i in copies:
                block = _core.Block(self.pools[i])
                old = self.tables.address_of(i, partial)
                assert block.address != old and read(block.address) == 0
                write(block.address, read(old))
                self.tables.swap(i, partial, block)
                assert block.address == old and self.tables.address_of(i, partial) != old
                block.close()
            first = max(0, end - N_BATCH - window + 1) // CHUNK if window else 0
            for j in [j for j in has if j < first or j >= chunks(end)]:
                del has[j]
            for j in range(pos0 // CHUNK, chunks(end)):
                write(self.tables.address_of(i, j), number + j)
                has[j] = number + j
            most = chunks(window + N_BATCH - 2) + 1 if window else chunks(end)
            assert len(has) <= most
        self.n = end

    def check(self, count):
        for i, has in enumerate(self.has):
            found = {j: read(address) for j, address, _ in self.tables.blocks(i)}
            assert found == has
            assert [(n, has[j]) for j, _, n in self.tables.blocks(i)] == [(count[i][number], number) for number in has.values()]

    def fork(self, n):
        other = Twin(self.pools, self.windows)
        other.tables.share(self.tables, n)
        other.n, other.has = n, [{j: number for j, number in has.items() if j < chunks(n)} for has in self.has]
        return other

    def cut(self, n):
        self.tables.cut(n)
        self.n, self.has = n, [{j: number for j, number in has.items() if j < chunks(n)} for has in self.has]


@pytest.mark.parametrize("seed", range(4))
def test_a_random_walk_of_sequences(seed):
    """Against a model of dicts: what each sequence holds, who shares it, how much of the pools is out."""
    rng = np.random.default_rng(seed)
    windows = (0, 8, 256, 300)
    pools = [_core.Pool(BLOCK) for _ in windows]
    alive, number = [Twin(pools, windows)], 0

    def counts():
        return [Counter(n for twin in alive for n in twin.has[i].values()) for i in range(len(windows))]

    for _ in range(700):
        twin, what = alive[rng.integers(len(alive))], rng.random()
        pos0 = twin.n if rng.random() < 0.8 else int(rng.integers(0, twin.n + 1))
        if what < 0.75:
            if not twin.reaches(pos0):
                assert not twin.tables.reaches(pos0)
                pos0 = 0
            assert twin.tables.reaches(pos0)
            number += 1000
            twin.step(pos0, pos0 + int(rng.integers(1, N_BATCH + 1)), number, counts())
        elif what < 0.87 and len(alive) < 8 and twin.reaches(pos0):
            alive.append(twin.fork(pos0))
        elif what < 0.92 and twin.reaches(pos0):
            twin.cut(pos0)
        elif what > 0.96:
            alive.remove(twin)
            if rng.random() < 0.5:
                twin.tables.close()
            else:
                del twin
                gc.collect()
            alive = alive or [Twin(pools, windows)]
        found = counts()
        for each in alive:
            each.check(found)
        assert [pool.n_out for pool in pools] == [len(held) for held in found]
    shared = max(max(held.values(), default=0) for held in found)
    for each in alive:
        each.tables.close()
    assert number > 10**5 and shared >= 1
    assert [pool.n_out for pool in pools] == [0] * len(pools)


def test_blocks_come_back_empty_and_in_use_again():
    pool = _core.Pool(BLOCK)
    tables = _core.Tables([pool], [0], N_BATCH)
    tables.prepare(0, 3 * CHUNK)
    first = {address for _, address, _ in tables.blocks(0)}
    for address in first:
        write(address, 7)
    tables.close()
    assert pool.n_out == 0 and len(pool.slabs()) == 1
    again = _core.Tables([pool], [0], N_BATCH)
    again.prepare(0, 3 * CHUNK)
    assert {address for _, address, _ in again.blocks(0)} == first and all(read(address) == 0 for address in first)
    tables.close()  # again: nothing
    assert pool.n_out == 3


def test_more_blocks_than_a_slab_has():
    pool = _core.Pool(100 << 20)  # two to a slab of 256 MiB
    tables = _core.Tables([pool], [0], N_BATCH)
    tables.prepare(0, 5 * CHUNK)
    slabs, found = pool.slabs(), sorted(address for _, address, _ in tables.blocks(0))
    assert len(slabs) == 3
    assert all(any(a <= x and x + pool.block_bytes <= a + n for a, n in slabs) for x in found)
    assert all(b - a >= pool.block_bytes for a, b in zip(found, found[1:]))
    large = _core.Pool(300 << 20)
    block = _core.Block(large)
    assert large.slabs() == [(block.address, 300 << 20)]


def test_what_is_held_stays_until_its_release():
    pool = _core.Pool(BLOCK)
    tables = _core.Tables([pool], [0], N_BATCH)
    tables.prepare(0, CHUNK)
    one, two = tables.hold(), tables.hold()
    tables.close()
    assert tables.closed and tables.hold() is None and pool.n_out == 1
    one.release()
    one.release()
    assert pool.n_out == 1 and tables.held
    del two  # as Ctrl-C may leave it, right behind the call
    assert pool.n_out == 0 and not tables.held


def test_the_pool_goes_with_its_last_block():
    pool = _core.Pool(BLOCK)
    tables, block = _core.Tables([pool], [0], N_BATCH), _core.Block(pool)
    tables.prepare(0, CHUNK)
    pool.close()
    assert pool.n_out == 2 and pool.slabs()
    write(block.address, 5)
    block.close()
    assert block.address == 0 and pool.slabs()
    for refused in (lambda: tables.prepare(CHUNK, 2 * CHUNK), lambda: _core.Block(pool)):
        with pytest.raises(ValueError, match="closed"):
            refused()
    tables.close()
    assert pool.n_out == 0 and pool.slabs() == []


def test_wrong_use():
    one, two = _core.Pool(BLOCK), _core.Pool(BLOCK)
    tables, other = _core.Tables([one], [0], N_BATCH), _core.Tables([two], [0], N_BATCH)
    tables.prepare(0, CHUNK)
    for refused in (lambda: other.share(tables, 1), lambda: tables.swap(0, 0, _core.Block(two)),
                    lambda: tables.swap(0, 1, _core.Block(one)), lambda: _core.Tables([one], [0], N_BATCH).share(tables, CHUNK + 1),
                    lambda: tables.swap(1, 0, _core.Block(one)), lambda: tables.blocks(1), lambda: tables.address_of(0, 1)):  # fmt: skip
        with pytest.raises(ValueError):
            refused()
    gc.collect()
    assert (one.n_out, two.n_out) == (1, 0)


def test_threads_that_take_and_give_at_the_same_time():
    """Lanes do: each writes its number into its blocks and finds it there again."""
    pool, errors = _core.Pool(BLOCK), []
    base = _core.Tables([pool], [0], N_BATCH)
    base.prepare(0, 4 * CHUNK)

    def work(me):
        try:
            for i in range(300):
                tables = _core.Tables([pool], [0], N_BATCH)
                tables.share(base, 3 * CHUNK)
                tables.prepare(3 * CHUNK, (4 + i % 3) * CHUNK)
                own = [address for _, address, n in tables.blocks(0) if n == 1]
                assert len(own) == 1 + i % 3 and all(read(address) == 0 for address in own)
                for address in own:
                    write(address, me)
                assert all(read(address) == me for address in own)
                tables.close()
        except BaseException as e:  # noqa: BLE001 - told below
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i + 1,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and pool.n_out == 4 and {n for _, _, n in base.blocks(0)} == {1}


def test_no_address_space():
    """What the system refuses is OutOfNodeMemory, and what was there before still is."""
    python("""if True:
        import resource
        from numainfer import _core
        from numainfer.errors import OutOfNodeMemory
        pool = _core.Pool(200 << 20)
        tables = _core.Tables([pool], [0], 100)
        tables.prepare(0, 256)
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20), resource.RLIM_INFINITY))
        try:
            tables.prepare(256, 256 * 9)
        except OutOfNodeMemory as e:
            assert str(e).startswith("the KV cache cannot grow: cannot reserve 209715200 bytes of address space: "), e
        else:
            raise AssertionError("no error")
        assert 1 <= pool.n_out < 9 and tables.blocks(0)[0][0] == 0
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert tables.prepare(256, 256 * 9) is None and pool.n_out == 9
    """)
