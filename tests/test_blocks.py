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


def place(address, position):
    return ctypes.c_int64.from_address(address + position % CHUNK * 8)


class World:
    """What the pools should know: who has a block, and up to where somebody wrote or was to write in it."""

    def __init__(self, windows):
        self.windows, self.pools, self.tops = windows, [_core.Pool(BLOCK) for _ in windows], {}
        self.alive, self.held = [Twin(self)], []

    def count(self, i):
        """References by address."""
        found = Counter(address for twin in self.alive for _, address, _ in twin.tables.blocks(i))
        found.update(block.address for held in self.held for _, block in held.blocks[i])
        return found

    def check(self):
        for each in self.alive + self.held:
            each.check()
        for i, pool in enumerate(self.pools):
            found = self.count(i)
            assert pool.n_out == len(found)
            for twin in self.alive:
                assert all(n == found[address] for _, address, n in twin.tables.blocks(i))
            assert all(block.references == found[block.address] for held in self.held for _, block in held.blocks[i])


class Twin:
    """A sequence as it should be: a number at each position, and which chunks each table has; and the same in the core."""

    def __init__(self, world):
        self.world, self.values, self.has = world, [], [set() for _ in world.windows]
        self.tables = _core.Tables(world.pools, world.windows, N_BATCH)

    @property
    def n(self):
        return len(self.values)

    def reaches(self, n):
        """Of this length or less, with all that a token at position n sees."""
        return n <= self.n and all(j in has for has, window in zip(self.has, self.world.windows) for j in seen(window, n))

    def step(self, pos0, end, number):
        """Tokens pos0 to end - 1; how many blocks were copied, and how many were gone on in though others had them."""
        world, copied, shared = self.world, 0, 0
        before = [world.count(i) for i in range(len(self.has))]
        partial = pos0 // CHUNK if pos0 % CHUNK else None
        old = [self.tables.address_of(i, partial) if partial is not None else None for i in range(len(self.has))]
        copies = self.tables.prepare(pos0, end) or []
        self.values[pos0:] = range(number + pos0, number + end)
        for i, (has, window) in enumerate(zip(self.has, world.windows)):
            assert (i in copies) == (partial is not None and before[i][old[i]] > 1 and pos0 % CHUNK < world.tops[old[i]])
            shared += partial is not None and before[i][old[i]] > 1
            if i in copies:
                copied, shared = copied + 1, shared - 1
                block = _core.Block(world.pools[i])
                assert block.address != old[i] == self.tables.address_of(i, partial) and read(block.address) == 0
                ctypes.memmove(block.address, old[i], BLOCK)
                self.tables.swap(i, partial, block)
                assert block.address == old[i] and self.tables.address_of(i, partial) != old[i]
                block.close()
            first = max(0, end - N_BATCH - window + 1) // CHUNK if window else 0
            has -= {j for j in has if j < first or j >= chunks(end)}
            has |= set(range(pos0 // CHUNK, chunks(end)))
            for j in range(pos0 // CHUNK, chunks(end)):
                world.tops[self.tables.address_of(i, j)] = min(end - j * CHUNK, CHUNK)
            for position in range(pos0, end):
                place(self.tables.address_of(i, position // CHUNK), position).value = self.values[position]
            assert len(has) <= (chunks(window + N_BATCH - 2) + 1 if window else chunks(end))
        return copied, shared

    def check(self):
        for i, has in enumerate(self.has):
            found = {j: address for j, address, _ in self.tables.blocks(i)}
            assert set(found) == has
            for j, address in found.items():
                own = self.values[j * CHUNK : (j + 1) * CHUNK]
                assert [place(address, x).value for x in range(len(own))] == own

    def fork(self, n):
        other = Twin(self.world)
        other.tables.share(self.tables, n)
        other.values, other.has = self.values[:n], [{j for j in has if j < chunks(n)} for has in self.has]
        return other

    def cut(self, n):
        self.tables.cut(n)
        self.values, self.has = self.values[:n], [{j for j in has if j < chunks(n)} for has in self.has]


class Held:
    """References to a sequence's blocks, which outlive it."""

    def __init__(self, twin):
        self.values = list(twin.values)
        self.blocks = [[(j, twin.tables.block(i, j)) for j in sorted(has)] for i, has in enumerate(twin.has)]
        assert twin.tables.block(0, chunks(twin.n)) is None

    def check(self):
        for blocks in self.blocks:
            for j, block in blocks:
                own = self.values[j * CHUNK : (j + 1) * CHUNK]
                assert [place(block.address, x).value for x in range(len(own))] == own

    def revive(self, world, n):
        """A sequence of its first n positions, where its blocks hold what the token at n sees."""
        twin = Twin(world)
        if not all(j in dict(blocks) for blocks, window in zip(self.blocks, world.windows) for j in seen(window, n)):
            return None
        for i, window in enumerate(world.windows):
            for j in seen(window, n):
                twin.tables.put(i, j, dict(self.blocks[i])[j], min(n - j * CHUNK, CHUNK))
                twin.has[i].add(j)
        twin.values = self.values[:n]
        assert twin.tables.reaches(n)
        return twin


def seen(window, n):
    """Chunks that the token at position n sees."""
    return range((max(n - window + 1, 0) if window else 0) // CHUNK, chunks(n))


@pytest.mark.parametrize("seed", range(4))
def test_a_random_walk_of_sequences(seed):
    """Against a model of lists: what each sequence holds, who shares it, who copies what, how much of the pools is out."""
    rng, number, copied, shared, revived = np.random.default_rng(seed), 0, 0, 0, 0
    world = World((0, 8, 256, 300))
    for _ in range(500):
        twin, what = world.alive[rng.integers(len(world.alive))], rng.random()
        pos0 = twin.n if rng.random() < 0.8 else int(rng.integers(0, twin.n + 1))
        if what < 0.65:
            if not twin.reaches(pos0):
                assert not twin.tables.reaches(pos0)
                pos0 = 0
            assert twin.tables.reaches(pos0)
            number += 10_000
            found = twin.step(pos0, pos0 + int(rng.integers(1, N_BATCH + 1)), number)
            copied, shared = copied + found[0], shared + found[1]
        elif what < 0.73 and len(world.alive) < 8 and twin.reaches(pos0):
            world.alive.append(twin.fork(pos0))
        elif what < 0.79 and twin.reaches(pos0):
            twin.cut(pos0)
        elif what < 0.85 and len(world.held) < 5:
            world.held.append(Held(twin))
        elif what < 0.93 and world.held and len(world.alive) < 8:
            held = world.held[rng.integers(len(world.held))]
            n = len(held.values) if rng.random() < 0.5 else int(rng.integers(0, len(held.values) + 1))
            new = held.revive(world, n)
            world.alive += [new] if new else []
            revived += new is not None
        elif what < 0.96 and world.held:
            held = world.held.pop(rng.integers(len(world.held)))
            del held  # its blocks with it
        elif what > 0.97:
            world.alive.remove(twin)
            twin.tables.close()
            twin = None
        gc.collect(0)
        world.alive = world.alive or [Twin(world)]
        world.check()
    for each in world.alive:
        each.tables.close()
    world.held.clear()
    assert min(copied, shared, revived) > 5
    assert [pool.n_out for pool in world.pools] == [0] * len(world.pools)


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
