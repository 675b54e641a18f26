"""Models that tests share: each is loaded once per run. They keep no prefixes: what is computed twice is to be compared, not found."""

import signal
import threading

import pytest
from _cvec import KV_TYPES, available, load
from tiny_models import tiny

import numainfer as ni


def pytest_configure():
    """Tests send Ctrl-C to this process, and some wait for it; a shell's background jobs start with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=available())
def vec(request):
    """The vector kernels of each instruction set that this CPU runs, "scalar" first."""
    return load(request.param)


@pytest.fixture(params=KV_TYPES)
def kv_type(request):
    """Each type of KV memory."""
    return request.param


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct, Q4_1: byte-level BPE, no BOS, has a chat template."""
    with ni.load("smollm2", n_ctx=2048, prefix_cache=0) as model:
        yield model


@pytest.fixture(scope="session")
def gemma3():
    """Gemma 3 270M, Q4_K_M: 262k vocabulary, adds BOS, no chat template."""
    with ni.load("gemma3", n_ctx=2048, prefix_cache=0) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A llama of random weights with a vocabulary of 285 and a context of 256."""
    return tiny(tmp_path_factory.mktemp("tiny"), "llama", "Q8_0")


@pytest.fixture
def tiny_model(tiny_path):
    """That llama, loaded for this test alone: it may be closed and broken."""
    with ni.load(tiny_path, prefix_cache=0) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory):
    """A tiny llama and a tiny Gemma 3."""
    folder = tmp_path_factory.mktemp("pair")
    return {"llama": tiny(folder, "llama", "Q8_0"), "gemma3": tiny(folder, "gemma3", "Q4_0", heads=4, kv_heads=2)}


@pytest.fixture
def load_tiny(tiny_pair, monkeypatch):
    """``load_tiny(pretend nodes, name, ...)``; the test must leave no lane's thread and no KV memory."""
    models, caches = [], []

    def load(nodes=1, name="llama", **options):
        monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
        model = ni.load(tiny_pair[name], **{"prefix_cache": 0} | options)
        models.append(model)
        make = model.runtime.engine.new_kv

        def new_kv():
            caches.append(make())
            return caches[-1]

        model.runtime.engine.new_kv = new_kv
        return model

    yield load
    for thread in threading.enumerate():
        if thread.name.startswith("numainfer-lane"):
            thread.join(1)
            assert not thread.is_alive()
    assert [kv for kv in caches if kv.n_blocks or not kv.closed] == []
    for model in models:
        model.close()
