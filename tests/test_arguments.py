"""Checks of arguments that several rooms use: lists of numbers, and words that nearly hit."""

import numpy as np
import pytest

from numainfer.arguments import did_you_mean, integer, nearest, node_numbers, number_list


@pytest.mark.parametrize(("text", "numbers"), [
    ("0", [0]), ("0,1", [0, 1]), ("0-3,8", [0, 1, 2, 3, 8]), ("8,0-1", [8, 0, 1]), ("5-5", [5]), (" 0 - 2 , 7\n", [0, 1, 2, 7]),
    ("1048576", [1 << 20]), ("007", [7]),
])  # fmt: skip
def test_lists_of_numbers(text, numbers):
    assert number_list("--nodes", text) == numbers


@pytest.mark.parametrize(("text", "part"), [
    ("", "''"), ("a", "'a'"), ("0,", "''"), (",0", "''"), ("0,,1", "''"), ("3-1", "'3-1'"), ("-1", "'-1'"), ("1-", "'1-'"),
    ("0-1-2", "'0-1-2'"), ("0 1", "'0 1'"), ("1.5", "'1.5'"), ("0,x", "'x'"), ("1048577", "'1048577'"), ("0-1048577", "'0-1048577'"),
    ("0-99999999999999999999", "'0-9"), ("²", "'²'"), ("٣", "'٣'"), ("0x1", "'0x1'"),
])  # fmt: skip
def test_lists_that_are_none(text, part):
    with pytest.raises(ValueError, match="wanted numbers or ranges with commas between them, such as 0,1 or 0-3,8") as error:
        number_list("--nodes", text)
    assert str(error.value).startswith(f"--nodes {text!r}: found {part}")


def test_nodes_are_named_once():
    assert node_numbers("nodes", (2, 0)) == [2, 0]
    with pytest.raises(ValueError, match=r"--nodes = \[0, 1, 1\]: wanted at least one node, and none twice"):
        node_numbers("--nodes", number_list("--nodes", "0-1,1"))


def test_nearest_words():
    known = ("Temperature", "top_k", "top_p", "max_tokens")
    assert nearest("temprature", known) == ["Temperature"] and nearest("TOP_K", known, 2) == ["top_k", "top_p"]
    assert nearest("top_x", ("TOP_X", "TOP_Y")) == ["TOP_X"]
    assert nearest("zzz", known) == [] and nearest("x", ()) == []
    assert did_you_mean("max_token", known) == "did you mean max_tokens?"
    assert did_you_mean("max", known) == "did you mean max_tokens?"  # too short to be like it, but its beginning
    assert did_you_mean("ma", known) == "known are Temperature, top_k, top_p, max_tokens"


@pytest.mark.parametrize("value", [True, np.True_, np.bool_(False)])
def test_a_bool_is_no_number(value):
    with pytest.raises(TypeError, match="found a bool, wanted an int"):
        integer("n", value, 0)
    assert integer("n", np.int64(3), 0) == 3
