"""Every allocation of the core fails in its turn: an exception says so, nothing crashes, and the next try works."""

import subprocess

from core_tools import python
from tiny_models import tiny

# Stands before the C library's own: the nth call that comes from the core gets NULL.
SHIM = r"""
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static uintptr_t from, to;
static atomic_long left;    /* calls until the one that fails */

void fail_at(uintptr_t a, uintptr_t b, long n) { from = a, to = b, atomic_store(&left, n); }
long fail_left(void) { return atomic_load(&left); }

static int fails(void *caller) {
    if ((uintptr_t)caller < from || (uintptr_t)caller >= to) return 0;
    if (atomic_fetch_sub(&left, 1) != 1) return 0;
    errno = ENOMEM;
    return 1;
}

#define CALLER __builtin_return_address(0)
void *malloc(size_t n) { return fails(CALLER) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return fails(CALLER) ? NULL : __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return fails(CALLER) ? NULL : __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { return fails(CALLER) ? NULL : __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) { return fails(CALLER) || !(*p = __libc_memalign(a, n)) ? ENOMEM : 0; }
"""

RUN = """if True:
    import ctypes, sys
    import numpy as np
    import numainfer as ni
    from numainfer import _core

    shim = ctypes.CDLL(None)
    shim.fail_at.argtypes = ctypes.c_size_t, ctypes.c_size_t, ctypes.c_long
    shim.fail_left.restype = ctypes.c_long
    lines = [line.split() for line in open("/proc/self/maps") if line.rstrip().endswith(_core.__file__)]
    first, last = int(lines[0][0].split("-")[0], 16), int(lines[-1][0].split("-")[1], 16)

    def use():
        with ni.load(sys.argv[1], threads=2, placement=sys.argv[2], n_ctx=64, progress=False) as model:
            return USE(model)

    def answer(model):
        return model.generate([5, 6], max_tokens=2, seed=1, logprobs=2).token_ids

    def everything(model):
        penalties = dict(repetition_penalty=1.1, logit_bias={7: 1.0}, stop_token_ids=[3], min_tokens=1)
        with model.session() as session, session.fork() as other:
            found = [session.generate([5, 6], max_tokens=2, seed=1, **penalties).token_ids, other.logits([5]).argmax()]
            with session.fork() as third:
                third.generate([5], max_tokens=1)
        lane = model.runtime.engine.lane
        core = lane.core_plan()
        core.set_timing(True)
        core.stamps()
        core.set_timing(False)
        arena = _core.Arena(4096)
        lane.team.read_time([arena.address] * 2, 4096, 0)
        lane.team.read_time([arena.address] * 2, 4096, 1)
        lane.team.barrier_time(4)
        arena.close()
        model.embed([5, 6])
        return found

    wanted, failures, quiet = use(), 0, 0
    for n in range(1, 2000):
        shim.fail_at(first, last, n)
        try:
            found = use()
        except MemoryError as e:  # OutOfNodeMemory is one
            failures += 1
        else:
            if shim.fail_left() > 0:
                break
            quiet += 1  # something that can do without
            assert found == wanted, n
        finally:
            shim.fail_at(0, 0, 0)
        print(n, file=sys.stderr, flush=True)
    assert use() == wanted
    print(failures, quiet)
"""


def run(folder, path, placement, use):
    shim = folder / "shim.so"
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", folder / "shim.c", "-o", shim], check=True)
    out = python(RUN.replace("USE", use), path, placement, timeout=240, LD_PRELOAD=str(shim), NUMAINFER_FAKE_NODES="2")
    return [int(word) for word in out.split()]


def test_loading_and_answering(tmp_path):
    failures, quiet = run(tmp_path, tiny(tmp_path, "llama", "Q8_0", layers=1), "shard", "answer")
    assert failures > 60 and quiet == 0


def test_all_else_that_takes_memory(tmp_path):
    failures, quiet = run(tmp_path, tiny(tmp_path, "llama", "Q8_0", layers=1), "replicate", "everything")
    assert failures > 90 and quiet == 0
