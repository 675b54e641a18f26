"""Regressions of attacks: what once crashed, hung, leaked or was guessed."""

import copy
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from gguf_tools import GGUF, pair
from tiny_models import tiny

import numainfer as ni
from numainfer.engine import store
from numainfer.text.chat_template import ChatTemplate
from numainfer.gguf.header import Header, Strings, tables

ITEM = {"i4": "INT32", "u4": "UINT32", "f4": "FLOAT32", "b1": "BOOL"}
PROMPT = list(range(3, 200)) * 5


class Parts:
    """A model file taken apart: metadata pairs and tensors, to be changed and written again."""

    def __init__(self, path):
        raw = path.read_bytes()
        header = Header(str(path), len(raw), lambda at, n, what: raw[at : at + n])
        codes = {name: code for code, (name, *_) in tables().tensors.items()}
        self.pairs, self.tensors = {}, {}
        for key, value in header.metadata.items():
            kind = header.types[key]
            if isinstance(value, Strings):
                kind, value = ("ARRAY", "STRING"), list(value)
            elif isinstance(value, np.ndarray):
                kind, value = ("ARRAY", ITEM[value.dtype.str[1:]]), value.tolist()
            self.pairs[key] = kind, value
        for t in header.tensors:
            self.tensors[t.name] = t.shape[::-1], codes[t.type], raw[t.offset : t.offset + t.n_bytes]

    def write(self, path):
        g = GGUF(pairs=[pair(key, *value) for key, value in self.pairs.items()])
        for name, tensor in self.tensors.items():
            g.tensor(name, *tensor)
        return g.write(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Parts(tiny(tmp_path_factory.mktemp("llama"), "llama", "Q8_0"))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return Parts(tiny(tmp_path_factory.mktemp("gemma3"), "gemma3", "Q8_0"))


@pytest.fixture(scope="module")
def long_path(tmp_path_factory):
    """A model whose answers take long enough to be disturbed."""
    return tiny(tmp_path_factory.mktemp("long"), "llama", "Q8_0", context=8192, layers=6)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key, kind, value", [
    ("tokens", "UINT32", 5), ("tokens", ("ARRAY", "UINT32"), [1]), ("merges", "UINT32", 1),
    ("token_type", "UINT32", 4), ("token_type", ("ARRAY", "STRING"), ["1"] * 500),
    ("scores", "UINT32", 4), ("scores", ("ARRAY", "STRING"), ["a"] * 500),
    ("bos_token_id", ("ARRAY", "UINT32"), [1]), ("eos_token_id", ("ARRAY", "UINT32"), [1, 2]),
    ("bos_token_id", "BOOL", 1), ("add_bos_token", ("ARRAY", "BOOL"), [1, 1]), ("add_space_prefix", "STRING", "no"),
    ("remove_extra_whitespaces", ("ARRAY", "BOOL"), [1, 0]), ("chat_template", "UINT32", 3),
    ("chat_template", ("ARRAY", "STRING"), ["a"]),
])  # fmt: skip
def test_tokenizer_keys_of_wrong_kinds(gemma3, tmp_path, key, kind, value):
    parts, full = copy.deepcopy(gemma3), f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}"
    parts.pairs[full] = kind, value
    with pytest.raises(ni.CorruptModel, match=full):
        ni.load(parts.write(tmp_path / "x.gguf"))


def test_scores_that_are_nan(gemma3, tmp_path):
    parts = copy.deepcopy(gemma3)
    parts.pairs["tokenizer.ggml.scores"][1][7] = float("nan")
    with pytest.raises(ni.CorruptModel, match="NaN"):
        ni.load(parts.write(tmp_path / "x.gguf"))


@pytest.mark.parametrize("kind, value", [("STRING", b"\xff\x1b[31mred\n"), ("UINT32", 4)])
def test_a_name_that_no_terminal_can_show(llama, tmp_path, kind, value):
    parts = copy.deepcopy(llama)
    parts.pairs["general.name"] = kind, value
    with ni.load(parts.write(tmp_path / "x.gguf")) as model:
        shown = repr(model) + model._repr_html_()
    shown.encode()
    assert "\x1b" not in shown


@pytest.mark.parametrize("byte", [0x7E, 0x7C, 0x7B])  # scales of NaN, infinity, and some of 65,000
def test_weights_that_overflow_end_in_an_error_or_an_answer(llama, tmp_path, byte):
    for name, (dims, code, raw) in llama.tensors.items():
        if code == 0:
            continue
        parts, blocks = copy.deepcopy(llama), np.frombuffer(raw, np.uint8).reshape(-1, 34).copy()
        blocks[:, 1] = byte
        parts.tensors[name] = dims, code, blocks.tobytes()
        with ni.load(parts.write(tmp_path / "x.gguf")) as model:
            for seed in (None, 1):
                try:
                    model.generate("ab c", max_tokens=3, temperature=0.0 if seed is None else 1.0, seed=seed, logprobs=2)
                except ni.NumaInferError as e:
                    assert "NaN" in str(e)
        if name.startswith("blk.1"):
            break


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_norm_that_is_nan_is_told(llama, tmp_path, kv_type):
    dims, code, raw = llama.tensors["blk.0.attn_norm.weight"]
    parts, values = copy.deepcopy(llama), np.frombuffer(raw, np.float32).copy()
    values[3] = np.nan
    parts.tensors["blk.0.attn_norm.weight"] = dims, code, values.tobytes()
    with ni.load(parts.write(tmp_path / "x.gguf"), kv_type=kv_type) as model, pytest.raises(ni.NumaInferError, match="NaN"):
        model.generate("ab c", max_tokens=3)


def test_every_cut_of_the_tensor_data_is_told(llama, tmp_path):
    whole = llama.write(tmp_path / "whole.gguf").read_bytes()
    rng = random.Random(0)
    for n in [len(whole) - 33, *rng.sample(range(len(whole) - 33), 60)]:
        (tmp_path / "cut.gguf").write_bytes(whole[:n])
        with pytest.raises(ni.CorruptModel):
            ni.load(tmp_path / "cut.gguf")


def test_a_file_that_is_cut_while_it_is_loaded(tmp_path):
    path = tiny(tmp_path, "llama", "Q8_0")
    with pytest.raises(ni.CorruptModel, match="was cut to 10000 bytes while it was read"):
        ni.load(path, progress=lambda *_: os.truncate(path, 10000))


DOUBLE = "{% set ns = namespace(s=START) %}{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}"


@pytest.mark.parametrize("source", [
    "{{ [[1] * 9999999] * 9999999 }}", "{{ 'x'|center(10**7) }}", "{{ 'x\n'|indent(10**7) }}",
    "{{ messages|tojson(indent=999999999) }}", "{{ '%0999999999d'|format(3) }}", "{{ '{:>9999999999}'.format('a') }}",
    "{{ '{:>{}}'.format('a', 9999999) }}", "{{ ('a' * 16000000).join(['b'] * 1000)|length }}",
    "{{ ['b'] * 1000 | join('a' * 16000000) }}", "{{ ('a' * 16000000)|replace('a', 'b' * 100)|length }}",
    "{{ ('a' * 16000000).replace('a', 'b' * 100)|length }}", "{{ ('\t' * 16000000).expandtabs(9999) }}",
    DOUBLE.replace("START", "'a'").replace("STEP", "[ns.s, ns.s]|join"),
    DOUBLE.replace("START", "[1]").replace("STEP", "[ns.s, ns.s]"),
    DOUBLE.replace("START", "[1]").replace("STEP", "{'a': ns.s, 'b': ns.s}"),
    DOUBLE.replace("START", "[1]").replace("STEP", "dict(a=ns.s, b=ns.s)"),
    "{{ range(99999)|map('center', 999)|map('replace', ' ', 'x' * 10000)|list|length }}",
    "{{ lipsum(9999) }}", "{{ ('a ' * 8000000)|wordwrap(1)|length }}",
])  # fmt: skip
def test_templates_that_want_all_memory_or_time(source):
    start = time.process_time()
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate(source).render([{"role": "user", "content": "hi"}])
    assert time.process_time() - start < 10


# ---- closing, in the wrong moment -----------------------------------------------------------------------------------


def test_a_session_closed_by_another_thread(long_path):
    with ni.load(long_path) as model:
        for i in range(8):
            session = model.session()
            closer = threading.Timer(0.005 + 0.005 * i, session.close)
            closer.start()
            with pytest.raises(ni.ModelClosed, match="session was closed"):
                session.generate(PROMPT, max_tokens=None, ignore_eos=True)
            closer.join()
            assert session.closed
        assert model.generate([1, 2], max_tokens=1).token_ids


def test_a_session_closed_by_a_signal_handler(long_path):
    with ni.load(long_path) as model:
        old = signal.signal(signal.SIGALRM, lambda *_: session.close())
        try:
            for i in range(8):
                session = model.session()
                signal.setitimer(signal.ITIMER_REAL, 0.005 + 0.005 * i)
                with pytest.raises(ni.ModelClosed, match="session was closed"):
                    session.generate(PROMPT, max_tokens=None, ignore_eos=True)
        finally:
            signal.signal(signal.SIGALRM, old)


def test_a_session_closed_between_two_tokens(tiny_model):
    session = tiny_model.session()
    stream = session.stream([1, 2], max_tokens=50, ignore_eos=True)
    next(stream)
    session.close()
    with pytest.raises(ni.ModelClosed, match="session was closed"):
        list(stream)
    with pytest.raises(ni.ModelClosed, match="session was closed"):
        session.fork()


def test_interrupted_loads_leave_nothing(long_path):
    with ni.load(long_path):
        pass
    gc.collect()
    entries, threads = set(store._entries), len(os.listdir("/proc/self/task"))
    start = time.perf_counter()
    ni.load(long_path).close()
    span, rng, interrupted = time.perf_counter() - start, random.Random(0), 0
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(2000):
            if interrupted == 40:
                break
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + rng.random() * span)
                ni.load(long_path).close()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    gc.collect()
    assert interrupted == 40 and set(store._entries) == entries
    assert len(os.listdir("/proc/self/task")) <= threads


def test_a_share_is_given_up_with_its_owner_and_only_once():
    class Made:
        closed = 0

        def close(self):
            self.closed += 1

    made, others = Made(), [Made()]
    lost = weakref.ref(others[0])
    a, b = store.Share("key", lambda: made), store.Share("key", lambda: None)
    assert b.replicas is made
    a.close()
    a.close()
    assert not made.closed and "key" in store._entries
    b.close()
    assert made.closed == 1 and "key" not in store._entries
    a = store.Share("key", others.pop)
    b = store.Share("key", lambda: None)
    del a
    assert lost() is b.replicas and "key" in store._entries
    del b
    assert lost() is None and "key" not in store._entries


# ---- the environment ------------------------------------------------------------------------------------------------

LOAD = "import sys, numainfer as ni; print(ni.load(sys.argv[1]).runtime.engine.threads)"


def in_process(path, **env):
    return subprocess.run([sys.executable, "-c", LOAD, path], env=os.environ | env, capture_output=True, text=True, timeout=60)


def test_openmp_that_binds_threads_takes_no_cpus_away(tiny_path):
    free = in_process(tiny_path)
    for env in ({"OMP_PROC_BIND": "true"}, {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}):
        bound = in_process(tiny_path, **env)
        assert bound.stdout == free.stdout != "", bound.stderr
    cpu = min(os.sched_getaffinity(0))
    assert in_process(tiny_path, GOMP_CPU_AFFINITY=str(cpu)).stdout == "1\n"


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) { return EAGAIN; }
"""


def test_no_threads_to_be_had_is_an_error_and_not_the_end(tiny_path, tmp_path):
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    done = in_process(tiny_path, LD_PRELOAD=str(library), OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 1 and "NumaInferError: cannot start" in done.stderr
