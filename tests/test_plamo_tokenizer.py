"""PLaMo 2's tokenizer: llama.cpp's ids, and those of its definition."""

import json
import random
import re

import plamo_vectors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numainfer.errors import CorruptModel
from numainfer.text.tokenizer import Tokenizer

METADATA = plamo_vectors.metadata()
TOKENIZER = Tokenizer(METADATA)


def test_ids_are_those_of_llama_cpp():
    wanted = json.loads(plamo_vectors.GOLDEN.read_text())
    assert len(wanted) == len(plamo_vectors.texts()) > 300
    for text, ids in zip(plamo_vectors.texts(), wanted):
        assert TOKENIZER.encode(text) == ids, text


def defined(text):
    """From the end of the text on: the piece with which what begins here is best, the longer one of two that are as good; whole numbers."""
    pieces = {t: (round(s * 1e4), i) for i, (t, s, kind) in enumerate(zip(*(METADATA[f"tokenizer.ggml.{name}"]
              for name in ("tokens", "scores", "token_type")))) if kind == plamo_vectors.NORMAL and s > -1000}  # fmt: skip
    best = [(0, [])]
    for at in range(len(text) - 1, -1, -1):
        found = None
        for n in range(min(8, len(text) - at), 0, -1):
            if text[at : at + n] in pieces:
                score, i = pieces[text[at : at + n]]
                score += best[n - 1][0]
                found = max(found or (score, n, [i]), (score, n, [i]), key=lambda one: one[0])
        score = best[0][0] - 10_000_000
        if found is None or score > found[0]:
            found = score, 1, [5 + b for b in text[at].encode()]
        best.insert(0, (found[0], found[2] + best[found[1] - 1][1]))
    return best[0][1]


@settings(max_examples=300, deadline=None)
@given(st.text("aabbcd 日本語、🙂xyzqé", max_size=60))
def test_ids_are_those_of_the_definition(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert ids == defined(text) and TOKENIZER.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip(text):
    """Any text; what looks like a control token is one only if that is asked for."""
    assert TOKENIZER.decode(TOKENIZER.encode(text, parse_special=False)) == text


def test_control_tokens():
    assert TOKENIZER.encode("a<|plamo:op|>")[-1] == 4
    ids = TOKENIZER.encode("<|plamo:op|>", parse_special=False)
    assert 4 not in ids and TOKENIZER.decode(ids) == "<|plamo:op|>"
    assert TOKENIZER.stop_token_ids == {2, 4} and not TOKENIZER.add_bos
    assert Tokenizer(METADATA | {"tokenizer.ggml.add_bos_token": True}).encode("")[0] == 1
    assert TOKENIZER.decode(TOKENIZER.encode("\ufeffa")) == "\ufeffa"


def test_a_character_that_stands_for_nothing():
    """One of these takes part in the arithmetic; it is text like any other."""
    for text in ("\ufdd0", "a\ufdd0b", "\ufdd1", "\ufdd0\ufdd0é"):
        assert TOKENIZER.encode(text) == defined(text)
    other = METADATA | {"tokenizer.ggml.tokens": [*METADATA["tokenizer.ggml.tokens"][:-1], "\ufdd0"],
                        "tokenizer.ggml.scores": [*METADATA["tokenizer.ggml.scores"][:-1], -1.0]}  # fmt: skip
    assert Tokenizer(other).encode("a\ufdd0") == [*TOKENIZER.encode("a"), len(METADATA["tokenizer.ggml.tokens"]) - 1]


def test_a_long_text():
    """In time that grows with its length: some seconds at most where each position meets many pieces."""
    text = "".join(random.Random(1).choices("abcd 日本語", k=200_000))
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text and ids[:20] == defined(text[:200])[:20]


@pytest.mark.parametrize("changes, says", [
    ({"scores": None}, "tokenizer.ggml.scores holds 0 values"),
    ({"scores": [0.0] * 4}, "tokenizer.ggml.scores holds 4 values"),
    ({"scores": [float("nan")] * len(METADATA["tokenizer.ggml.tokens"])}, "tokenizer.ggml.scores holds NaN"),
    ({"token_type": [1] * len(METADATA["tokenizer.ggml.tokens"])}, "has 0 byte tokens; wanted <0x00> to <0xFF>"),
    ({"tokens": ["a", *METADATA["tokenizer.ggml.tokens"][1:]]}, "are both 'a'"),
])  # fmt: skip
def test_what_is_refused(changes, says):
    metadata = METADATA | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(CorruptModel, match=re.escape(says)):
        Tokenizer(metadata)
