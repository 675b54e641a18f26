"""Settings and forms of files that the golden models lack (``archs/more.py``): llama.cpp's logits, and the same bits everywhere."""

import sys
from pathlib import Path

import numpy as np
import pytest

import numainfer as ni

ARCHS = Path(__file__).resolve().parent / "archs"
sys.path.insert(0, str(ARCHS))

import more  # noqa: E402
from make_gguf import make  # noqa: E402

TEMPLATES, EXPECTED = more.templates(), np.load(more.EXPECTED)
IDS = np.load(ARCHS / "expected.npz")["ids"].astype(np.int32)
GELU = {"gemma2", "grok"}  # which llama.cpp takes from a table of half floats (test_golden_models.py)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """``golden(name)``: the path of a model, written once."""
    folder = tmp_path_factory.mktemp("more")

    def path(name):
        found = folder / f"{name}.gguf"
        if not found.exists():
            make(TEMPLATES[name][0], str(found), TEMPLATES[name][1])
        return found

    return path


def test_all_of_them_are_expected():
    assert set(TEMPLATES) == set(EXPECTED.files)


@pytest.mark.parametrize("name", TEMPLATES)
def test_logits_are_those_of_llama_cpp(golden, name):
    ids, rows = more.prompt(name)
    with ni.load(golden(name), threads=1, kv_type="f32") as model:
        found = model.logits(ids, all=True)[rows]
    wanted = EXPECTED[name]
    most = 5e-4 if TEMPLATES[name][1]["arch"] in GELU else 5e-5 if name in more.LONG else 1e-5
    assert np.abs(found - wanted).max() < most * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["deepseek2-one-piece", "stablelm-norms-beside", "glm4moe-groups", "grok-heads"])
@pytest.mark.parametrize("nodes, placement", [(1, "auto"), (2, "replicate"), (2, "shard"), (3, "shard"), (2, "interleave")])
def test_bits_are_the_same_everywhere(golden, name, nodes, placement, monkeypatch):
    with ni.load(golden(name), threads=1, n_batch=128) as model:
        wanted = model.logits(IDS, all=True)
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
    with ni.load(golden(name), threads=max(nodes, 2), placement=placement, n_batch=33) as model:
        np.testing.assert_array_equal(model.logits(IDS, all=True), wanted)
