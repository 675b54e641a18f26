"""Where pages lie: what the kernel is asked, that strays alone are moved, that neighbours are told apart, that Ctrl-C is heard."""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from numainfer import _core
from numainfer.machine import pages

CSRC = Path(__file__).resolve().parent.parent / "csrc"
PAGE, HUGE = 4096, pages.HUGE

# Answers as a kernel would on a machine of as many nodes as wanted: node_of[page of the arena], -2 (ENOENT) where nothing is resident.
KERNEL = r"""
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include "ni.h"

int64_t asked, moved, calls, most;
int *node_of, stuck;
char *base;
int numa_available(void) { return 0; }
int numa_max_node(void) { return 7; }
int numa_node_of_cpu(int cpu) { return cpu; }
long long numa_node_size64(int node, long long *left) { return *left = node; }
long mbind(void *a, unsigned long n, int mode, const unsigned long *mask, unsigned long bits, unsigned flags) { return -1; }
long set_mempolicy(int mode, const unsigned long *mask, unsigned long bits) { return -1; }
int ni_fail(ni_status *st, int code, const char *format, ...) { return -1; }

long move_pages(int pid, unsigned long n, void **page, const int *nodes, int *status, int flags) {
    calls++;
    if ((int64_t)n > most) most = (int64_t)n;
    for (unsigned long i = 0; i < n; i++) {
        int *node = &node_of[((char *)page[i] - base) / 4096];
        if (nodes) {
            moved++;
            if (!stuck) *node = nodes[i];
        } else asked++;
        status[i] = nodes && stuck ? -EBUSY : *node;
    }
    return 0;
}
"""


class Arena(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("bound", ctypes.c_int)]


class Machine:
    """csrc/numa.c over a pretended kernel; an arena of so many bytes at an address that nobody touches."""

    def __init__(self, library, n_bytes, node_of):
        self.lib, self.arena = library, Arena(1 << 40, n_bytes, 0)
        self.node_of = np.ascontiguousarray(node_of, np.int32)
        ctypes.c_void_p.in_dll(library, "base").value = 1 << 40
        ctypes.c_void_p.in_dll(library, "node_of").value = self.node_of.ctypes.data
        self.set(asked=0, moved=0, calls=0, most=0)
        ctypes.c_int.in_dll(library, "stuck").value = 0

    def set(self, **values):
        for name, value in values.items():
            ctypes.c_int64.in_dll(self.lib, name).value = value

    def get(self, name):
        return ctypes.c_int64.in_dll(self.lib, name).value

    def count(self, home=-1, huge=False, n_nodes=4):
        """Bytes by node, and the ends of the slices."""
        found, at, ends = np.zeros(n_nodes, np.int64), ctypes.c_size_t(0), [0]
        while at.value < self.arena.bytes:
            assert self.lib.ni_arena_count(ctypes.byref(self.arena), ctypes.byref(at), huge, home, found.ctypes.data_as(ctypes.c_void_p),
                                           n_nodes) == 0  # fmt: skip
            ends.append(at.value)
        return found.tolist(), np.diff(ends)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numa")
    (folder / "kernel.c").write_text(KERNEL)
    made = folder / "numa.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", f"-I{CSRC}", folder / "kernel.c", CSRC / "numa.c", "-o", made], check=True)
    return ctypes.CDLL(str(made))


def test_every_page_is_counted_once(library):
    n = 3 * 8192 + 77
    node_of = np.random.default_rng(1).integers(0, 4, n)
    node_of[5:900] = -2
    machine = Machine(library, n * PAGE, node_of)
    found, slices = machine.count()
    assert found == [PAGE * int((node_of == i).sum()) for i in range(4)]
    assert machine.get("asked") == n and machine.get("moved") == 0
    assert slices.max() <= 32 << 20 and machine.get("most") <= 4096  # short enough to look at signals between them


def test_a_huge_page_is_asked_about_once(library):
    n = 100 * 512 + 77  # pages: 100 huge ones and a rest
    node_of = np.repeat([0, 1], [60 * 512, 40 * 512 + 77])
    machine = Machine(library, n * PAGE, node_of)
    found, slices = machine.count(huge=True)
    assert found == [60 * HUGE, 40 * HUGE + 77 * PAGE, 0, 0] and machine.get("asked") == 100 + 77
    assert slices.max() <= 32 << 20


@pytest.mark.parametrize("stuck", [0, 1])
def test_strays_alone_are_moved(library, stuck):
    n = 10_000
    node_of = np.full(n, 2)
    strays = np.random.default_rng(2).choice(n, 31, replace=False)
    node_of[strays] = 0
    node_of[17] = -2
    machine = Machine(library, n * PAGE, node_of)
    ctypes.c_int.in_dll(library, "stuck").value = stuck
    resident, lost = n - 1 - (17 in strays) * 0, 31 - (17 in strays)
    found, _ = machine.count(home=2)
    assert machine.get("moved") == lost and machine.get("asked") == n + lost
    assert found == [PAGE * lost * stuck, 0, PAGE * (resident - lost * stuck), 0]
    again, _ = machine.count(home=2)
    assert again == found


def test_nodes_beyond_the_table_are_left_out(library):
    assert Machine(library, 10 * PAGE, [0, 9, 1, 0, 0, 0, 0, 0, 0, 0]).count(n_nodes=2)[0] == [8 * PAGE, PAGE]


# ---- this machine's kernel ---------------------------------------------------------------------------------------------


def touched(n_bytes, **options):
    arena = _core.Arena(n_bytes, **options)
    ctypes.memset(arena.address, 1, arena.bytes)
    return arena


@pytest.mark.parametrize("huge", [False, True])
def test_unbound_neighbours_are_counted_once(huge):
    """The kernel makes one mapping of two that look the same and touch."""
    arenas = [touched((i % 3 + 1) * HUGE // 2, huge=huge) for i in range(12)]
    for some in (arenas[:1], arenas[3:4], arenas[::2], arenas):
        assert [total for total, _ in pages.resident(some)] == [arena.bytes for arena in some]
        by_node = pages.bytes_by_node(some)
        if by_node:
            assert sum(by_node.values()) == sum(arena.bytes for arena in some)
    for arena in arenas:
        arena.close()


def test_closing_gives_all_address_space_back():
    def mapped():
        return len(Path("/proc/self/maps").read_text().splitlines())

    for _ in range(2):  # the first time around other things of the process may change
        before = mapped()
        for arena in [touched(HUGE + PAGE, huge=True) for _ in range(50)]:
            arena.close()
    assert mapped() <= before + 2


def test_whether_all_is_huge(monkeypatch):
    text = """\
7f0000000000-7f0000600000 rw-p 00000000 00:00 0
Rss:                6144 kB
AnonHugePages:      {huge} kB
7f0000600000-7f0000601000 ---p 00000000 00:00 0
Rss:                   0 kB
AnonHugePages:         0 kB
"""
    arena = SimpleNamespace(address=0x7F0000000000, bytes=0x600000)
    for huge, wanted in ((6144, True), (4096, False), (0, False)):
        monkeypatch.setattr(pages, "read", lambda path, huge=huge: text.format(huge=huge))
        assert pages.all_huge([arena]) == [wanted] and pages.resident([arena]) == [[6144 * 1024, huge * 1024]]
    arena.bytes += 5 * PAGE  # a rest of less than a huge page is asked about page by page
    monkeypatch.setattr(pages, "read", lambda path: text.format(huge=6144))
    assert pages.all_huge([arena]) == [True]
    monkeypatch.setattr(pages, "read", lambda path: "")
    assert pages.all_huge([arena]) == [False]


@pytest.mark.skipif(not _core.numa_available(), reason="the kernel knows no nodes")
def test_huge_pages_give_the_same_count():
    arena = touched(20 * HUGE + 3 * PAGE, huge=True)
    n_nodes = _core.numa_max_node() + 1
    found = arena.count(n_nodes)
    if isinstance(found, int):
        pytest.skip(os.strerror(found))
    assert found.sum() == arena.bytes
    if pages.all_huge([arena])[0]:
        assert arena.count(n_nodes, huge=True).tolist() == found.tolist()
    arena.close()


@pytest.mark.skipif(not _core.numa_available(), reason="the kernel knows no nodes")
def test_an_interrupt_ends_the_count():
    arena, sent = _core.Arena(64 << 30), []  # pages that are not there are asked about too
    if isinstance(_core.Arena(PAGE).count(1), int):
        pytest.skip("the kernel does not tell")

    class Heard(Exception):
        pass

    def hear(*_):
        sent.append(time.monotonic())
        raise Heard

    before = signal.signal(signal.SIGALRM, hear)
    try:
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Heard):
            while time.monotonic() < start + 10:
                arena.count(_core.numa_max_node() + 1)
        assert sent[0] - start < 0.5  # 20 ms, and what others take of this machine
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        arena.close()
