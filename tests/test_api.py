"""docs/api.md is what the docstrings say now, and they leave nothing public out."""

import ast
import re

import make_api

import numainfer as ni


def test_the_page_is_current():
    assert make_api.TARGET.read_text(encoding="utf-8") == make_api.page(), "run: python tests/make_api.py"


def test_all_that_is_public_is_on_the_page():
    headings = re.findall(r"^### (.+)$", make_api.TARGET.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(set(ni.__all__) - {"__version__", "errors"})
    assert make_api.undescribed() == []


def test_links_lead_to_their_headings():
    text = make_api.TARGET.read_text(encoding="utf-8")
    links, targets = dict(re.findall(r"\[(\w+)\]\(#([\w-]+)\)", text)), make_api.anchors(text)
    assert len(links) == len(ni.__all__) - 2
    assert all(targets[name] == at for name, at in links.items())
    assert targets["Topology"] != targets["topology"] and targets["Bench"] != targets["bench"]


def test_signatures_are_python():
    stubs = re.findall(r"^```python signature\n(.*?)^```", make_api.TARGET.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(stubs) > 40
    for stub in stubs:
        ast.parse(stub)
