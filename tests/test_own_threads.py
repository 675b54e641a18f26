"""What workers, and what we compute on the caller's thread, do not take over from the process: its floating-point mode and its policy for
memory."""

import ctypes
import platform
import subprocess

import pytest
from core_tools import CPUS, python
from tiny_models import tiny

from numainfer import _core

SHIM = """
#if defined(__x86_64__)
#include <xmmintrin.h>
unsigned get(void) { return _mm_getcsr() & ~0x3f; }    /* without the exceptions seen so far */
void set(unsigned mode) { _mm_setcsr(mode); }
#else
unsigned get(void) { unsigned long m; __asm__ volatile("mrs %0, fpcr" : "=r"(m)); return m; }
void set(unsigned mode) { unsigned long m = mode; __asm__ volatile("msr fpcr, %0" :: "r"(m)); }
#endif
"""
X86 = platform.machine() == "x86_64"
DEFAULT = 0x1F80 if X86 else 0
MODES = (
    {"FTZ and DAZ": 0x9FC0, "down": 0x3F80, "up": 0x5F80, "toward 0": 0x7F80, "all at once": 0xDFC0}
    if X86
    else {"FZ": 1 << 24, "up": 1 << 22, "down": 2 << 22, "toward 0": 3 << 22}
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    source = tmp_path_factory.mktemp("floats") / "mode.c"
    source.write_text(SHIM)
    library = source.with_suffix(".so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", str(source), "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return [tiny(tmp_path_factory.mktemp(name), name, kind) for name, kind in (("llama", "Q4_0"), ("gemma3", "F16"), ("llama", "Q6_K"))]


EVERYTHING = """if True:
    import ctypes, hashlib, sys
    import numpy as np
    library, mode, *paths = sys.argv[1:]
    floats, mode = ctypes.CDLL(library), int(mode)
    floats.set(mode)
    import numainfer as ni
    from numainfer import _core
    assert floats.get() == mode, "importing changed the mode"
    ids = [3 + 7 * i % 150 for i in range(40)]

    def told(*arrays):
        print(*(hashlib.sha256(np.ascontiguousarray(a)).hexdigest()[:16] for a in arrays))

    for path in paths:
        with ni.load(path, n_ctx=128, n_batch=16, progress=False) as model:
            assert floats.get() == mode, "loading changed the mode"
            told(model.logits(ids, all=True), model.score(ids).logprobs, model.embed([ids]))
            assert floats.get() == mode
            random = dict(max_tokens=12, temperature=0.9, top_p=0.9, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.3, seed=5,
                          logit_bias={7: 0.1}, logprobs=3, ignore_eos=True)
            one = model.generate(ids, **random)
            print(one.token_ids, [(t.logprob, [o.logprob for o in t.top]) for t in one.logprobs])
            for mode_of_lanes in ("latency", "throughput"):
                print([a.token_ids for a in model.generate([ids, ids[5:], ids[9:]], mode=mode_of_lanes, **random)])
            assert floats.get() == mode, "answering changed the mode"
    for name, f in sorted(_core.formats().items()):
        blocks = np.random.default_rng(3).integers(0, 60, 64 * f["block_bytes"]).astype(np.uint8)
        told(_core.decode(f["code"], blocks))
    scratch, logits = _core.SampleScratch(500), (np.arange(500) * 37 % 501 / 64).astype(np.float32)  # exact in any mode
    none = np.zeros(0, np.int32)
    sampler = _core.Sampler(500, none, none, np.zeros(0, np.float32), none, temperature=0.7, top_k=0, top_p=0.95, min_p=0.0,
                            repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, min_tokens=0, seed=1)
    found, probs = np.zeros(500, np.int32), np.zeros(500)
    n = sampler.distribution(logits, scratch, found, probs)
    told(found[:n], probs[:n])
    from numainfer.serving.params import SamplingParams
    from numainfer.serving.sampling import Sampler
    for bias, bits in ((0.1, 0x3DCCCCCD), (0.7, 0x3F333333)):  # to nearest, one rounds up and the other down; then both logits are equal
        for here, there in ((3, 7), (7, 3)):
            logits = np.zeros(500, np.uint32)
            logits[there] = bits
            print(Sampler(SamplingParams(logit_bias={here: bias}), 500).sample(logits.view(np.float32))[0])
    assert floats.get() == mode
"""


def told(shim, mode, paths):
    return python(EVERYTHING, shim, mode, *paths, NUMAINFER_FAKE_NODES="2").splitlines()


@pytest.fixture(scope="module")
def wanted(shim, paths):
    return told(shim, DEFAULT, paths)


@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_the_floating_point_mode(shim, paths, wanted, mode):
    found = told(shim, MODES[mode], paths)
    assert len(found) == len(wanted) > 20
    for i, (a, b) in enumerate(zip(found, wanted)):
        assert a == b, f"line {i}"


@pytest.mark.parametrize("mode", [DEFAULT, *MODES.values()])
def test_the_guard(shim, mode):
    """The function computes in the default mode, also where guards are nested, and the caller's is back even after an exception."""
    floats = ctypes.CDLL(str(shim))
    inner = _core.in_default_floats(floats.get)

    def fail():
        assert inner() == DEFAULT == floats.get()
        raise KeyError("x")

    before = floats.get()
    floats.set(mode)
    try:
        with pytest.raises(KeyError):
            _core.in_default_floats(fail)()
        found = inner(), floats.get()
    finally:
        floats.set(before)
    assert found == (DEFAULT, mode)


SHUFFLED = """if True:
    import ctypes, sys
    import numpy as np
    floats, mode = ctypes.CDLL(sys.argv[1]), int(sys.argv[2])
    from core_tools import open_engine
    with open_engine(sys.argv[3], n_batch=16) as engine:
        kv = engine.new_kv()
        normal = engine.step([(kv, [5, 6, 7, 8], 0)], range(4))
        floats.set(mode)
        shuffled = engine.step([(engine.new_kv(), [5, 6, 7, 8], 0)], range(4), shuffle_seed=3)
        assert floats.get() == mode
        print((normal.view(np.uint32) == shuffled.view(np.uint32)).all())
"""


@pytest.mark.parametrize("mode", MODES)
def test_workers_played_by_the_caller_compute_in_the_default_mode(shim, paths, mode):
    assert python(SHUFFLED, shim, MODES[mode], paths[0], NUMAINFER_FAKE_NODES="2").strip() == "True"


def test_denormals_count_in_the_workers_of_a_process_that_flushes_them(shim, tmp_path):
    code = """if True:
        import ctypes, sys
        from pathlib import Path
        import numpy as np
        from core_tools import Sheet, open_team, rig
        ctypes.CDLL(sys.argv[1]).set(int(sys.argv[2]))
        sheet = Sheet(Path(sys.argv[3]), {"x": np.full((4, 32), 1e-30, np.float32), "w": np.full((16, 32), 1e-10, np.float32)})
        with open_team(1, 2) as team, rig(sheet, team, lambda p, s: p.logits(p.embed(s["x"]), s["w"])) as r:
            print(r.run(np.arange(4)).view(np.uint32).min() > 0)
    """
    assert python(code, shim, next(iter(MODES.values())), tmp_path / "denormal.gguf").strip() == "True"


# ---- memory ------------------------------------------------------------------------------------------------------------

POLICY = """if True:
    import ctypes, os
    numa = ctypes.CDLL("libnuma.so.1", use_errno=True)
    first = ctypes.c_ulong(1)
    if numa.set_mempolicy(3, ctypes.byref(first), 64):  # MPOL_INTERLEAVE
        print("refused")
        raise SystemExit
    from numainfer import _core
    team = _core.Team([{0}, {1}], [0, 0])

    def policy(task):
        return open(f"/proc/self/task/{{task}}/numa_maps").readline().split()[1]

    workers = [task for task in os.listdir("/proc/self/task") if len(os.sched_getaffinity(int(task))) == 1]
    print(policy(os.getpid()), sorted(policy(task) for task in workers))
"""


def test_workers_place_memory_locally(tmp_path):
    """Under ``numactl --interleave`` too; the caller's own threads keep what they were given."""
    if len(CPUS) < 2 or not _core.numa_available():
        pytest.skip("needs two CPUs and the system calls of NUMA")
    out = python(POLICY.format(CPUS[0], CPUS[-1])).strip()
    if out == "refused":
        pytest.skip("the kernel refuses set_mempolicy")
    assert out == "interleave:0 ['local', 'local']"
