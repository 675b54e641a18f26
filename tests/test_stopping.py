"""Stop strings against a search of the whole text, for every way to cut it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numainfer.text.stopping import StopStrings


def search(text, stops):
    """(start, stop) of the match complete first, the longest of those; None without one. Character by character."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return end - len(longest), longest
    return None


def could_grow(text, stops):
    """The length of the longest end of text that begins a stop string without completing it."""
    sizes = range(min(len(text), max(map(len, stops), default=0)), 0, -1)
    return next((n for n in sizes if any(s.startswith(text[-n:]) and len(s) > n for s in stops)), 0)


def check(pieces, stops):
    watcher, shown, fed = StopStrings(stops), "", ""
    text = "".join(pieces)
    expected = search(text, stops)
    for piece in pieces:
        shown += watcher.feed(piece)
        fed += piece
        if search(fed, stops):
            assert watcher.matched is not None, "seen late"
        else:
            assert watcher.matched is None
            assert shown == fed[: len(fed) - could_grow(fed, stops)], "held too much or too little"
    if expected is None:
        assert shown + watcher.flush() == text
        assert watcher.matched is None and watcher.position is None
    else:
        start, stop = expected
        assert (watcher.matched, watcher.position) == (stop, start)
        assert shown == text[:start] and watcher.flush() == ""
        assert watcher.feed("more") == "" and watcher.matched == stop


def cuttings(text):
    for marks in itertools.product([False, True], repeat=max(0, len(text) - 1)):
        pieces = [text[:1]]
        for mark, character in zip(marks, text[1:]):
            if mark:
                pieces.append(character)
            else:
                pieces[-1] += character
        yield pieces


@pytest.mark.parametrize(
    "text, stops",
    [
        ("aaab", ["aab"]),
        ("abcdefg", ["abcdef", "cd"]),
        ("x\n\ny", ["\n\n", "\n"]),
        ("xaby", ["b", "ab"]),
        ("abababac", ["ababac"]),
        ("ab<|im_en", ["<|im_end|>"]),
        ("a" * 9, ["aaaab", "ab"]),
        ("né日本🙂!", ["本🙂"]),
        ("anything", []),
        ("", ["a"]),
    ],
)
def test_every_cutting(text, stops):
    for pieces in cuttings(text):
        check(pieces, stops)


@given(
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=6), max_size=4),
)
def test_random_cuttings(pieces, stops):
    check(pieces, stops)


@given(st.text("abc", max_size=14), st.lists(st.text("abc", min_size=2, max_size=4), min_size=1, max_size=3), st.data())
def test_result_does_not_depend_on_cutting(text, stops, data):
    marks = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    check([text[a:b] for a, b in zip([0, *marks], [*marks, len(text)])], stops)


def test_first_complete_match_wins():
    watcher = StopStrings(["abcdef", "cd"])
    assert watcher.feed("xabcdefg") == "xab"
    assert (watcher.matched, watcher.position) == ("cd", 3)


def test_one_string_is_one_stop():
    watcher = StopStrings("END")
    assert watcher.feed("the E") == "the " and watcher.feed("ND") == "" and watcher.matched == "END"


def test_flush_returns_the_held_text_once():
    watcher = StopStrings(["</s>"])
    assert watcher.feed("a </") == "a "
    assert watcher.flush() == "</" and watcher.flush() == ""


def test_empty_stop_is_refused():
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(["a", ""])
