"""bench/mixture.py: a random mixture of experts is written and loads, and what several sequences cost is counted by the workers."""

import sys
from pathlib import Path

import pytest

import numainfer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import mixture  # noqa: E402
import random_gguf  # noqa: E402
from worker import Worker  # noqa: E402

GOLDEN = Path(__file__).resolve().parent / "golden" / "llama.gguf"  # its vocabulary
SHAPE = random_gguf.Shape(256, 2, 4, 2, 64, experts=8, used=2)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture") / "random.gguf"
    random_gguf.write(path, SHAPE, "q8_0", tokenizer_from=GOLDEN)
    return path


def test_a_random_mixture_is_the_same_every_time(path, tmp_path):
    random_gguf.write(tmp_path / "again.gguf", SHAPE, "q8_0", tokenizer_from=GOLDEN)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    with numainfer.load(path, n_ctx=32, threads=1) as model:
        w = next(op for op in model.plan.ops if op.name == "matmul_grouped").matrices[0]
        assert (w.experts, w.n, w.k, w.type) == (8, 64, 256, "Q8_0") and len(model.logits([5, 6])) == model.n_vocab


def test_sequences_together(path):
    with Worker("ours:Ours", str(path), threads=1, n_ctx=32) as ours:
        one = ours.together(1, 3)
        many = ours.together(12, 3)
    values = 3 * 64 * 256 * SHAPE.used * SHAPE.layers
    assert one["experts"][0] == values // 32 * 34 and one["experts"][1] == pytest.approx(values, rel=0.03)  # padding rows are counted, too
    assert 2 * one["experts"][0] < many["experts"][0] <= 4 * one["experts"][0]
    assert many["experts"][1] == pytest.approx(12 * values, rel=0.03)
    assert len(one["plain"]) == 3 * SHAPE.layers + 1 and 0 < one["seconds"] and 0 < many["seconds"]


def test_what_is_said_of_a_comparison(path):
    found = mixture.compare(path, path, {}, n_prompt=8, n_gen=8, sequences=4, repeats=2, threads=1)
    assert all(len(values) == 2 for kind in ("pp", "tg", "share") for values in found[kind].values())
    assert len(found["together"]) == len(found["bound"]) == 2 and min(found["bound"]) > 0
    text = mixture.report("tiny", found | {"pp": found["pp"] | {"x": [1.0, 1.0]}, "tg": found["tg"] | {"x": [2.0, 2.0]}}, 4)
    assert "tiny: prompt" in text and "x x (1.0)" in text and "of the read limit:" in text and "4 sequences:" in text
    with pytest.raises(SystemExit, match="ggml is not a known peer; wanted one of: cyllama"):
        mixture.compare(path, path, {"ggml": sys.executable})
