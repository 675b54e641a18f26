"""docs/structured.md does what it says: its code runs, in order, and its answers have the forms."""

import re
from pathlib import Path

import pytest

DOC = Path(__file__).resolve().parent.parent / "docs" / "structured.md"


@pytest.fixture(scope="module")
def names(smollm2):
    """What the code leaves behind; the loaded model shares its weights with the one of all tests."""
    found = {}
    answers = found["answers_of"] = []
    for code in re.findall(r"^```python\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(DOC), "exec"), found)
        answers.append(found.get("answer"))
    yield found
    found["model"].close()


def test_the_code_runs(names):
    date, total, place = (names["answers_of"][i].text for i in (2, 4, -1))
    assert re.fullmatch("[0-9]{4}-[01][0-9]-[0-3][0-9]", date)
    assert re.fullmatch(r"[0-9]{1,4}([*+][0-9]{1,4})*[*+]?", total)  # may be cut
    assert re.fullmatch("[A-Z][a-z]{2,9}, [0-9]{4}", place)
    assert names["person"].name and 0 <= names["person"].age <= 130
    assert [a.finish_reason for a in names["answers"]] == ["stop"] * 3
