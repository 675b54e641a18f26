"""Models that tests share: each is loaded once per run."""

import pytest
from tiny_models import tiny

import numainfer as ni


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct, Q4_1: byte-level BPE, no BOS, has a chat template."""
    with ni.load("smollm2", n_ctx=2048) as model:
        yield model


@pytest.fixture(scope="session")
def gemma3():
    """Gemma 3 270M, Q4_K_M: 262k vocabulary, adds BOS, no chat template."""
    with ni.load("gemma3", n_ctx=2048) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A llama of random weights with a vocabulary of 285 and a context of 256."""
    return tiny(tmp_path_factory.mktemp("tiny"), "llama", "Q8_0")


@pytest.fixture
def tiny_model(tiny_path):
    """That llama, loaded for this test alone: it may be closed and broken."""
    with ni.load(tiny_path) as model:
        yield model
