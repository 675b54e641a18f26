"""What asks for an answer's form: which values are taken, and what is said of the others."""

import json

import numpy as np
import pytest

from numainfer import SamplingParams, _core
from numainfer.serving.forms import response_form

SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}}

CLOSED = SCHEMA | {"additionalProperties": False}


class Shape:
    """As pydantic's classes are, for those who only ask for the schema."""

    @classmethod
    def model_json_schema(cls):
        return SCHEMA


def test_fields_are_kept_in_one_form():
    for given, wanted in ((SCHEMA, SCHEMA), (json.dumps(SCHEMA), SCHEMA), (Shape, CLOSED)):
        params = SamplingParams(json_schema=given)
        assert json.loads(params.json_schema) == wanted and list(json.loads(params.json_schema)) == list(wanted)
        assert params.replace(max_tokens=3).json_schema == params.json_schema
    assert SamplingParams(choice=["b", "a", "b"]).choice == ("b", "a")
    assert SamplingParams(regex="a+").regex == "a+" and SamplingParams(grammar='start: "a"').grammar == 'start: "a"'


def test_objects_of_a_class_have_the_named_properties():
    class Nested:
        model_json_schema = staticmethod(lambda: {
            "$defs": {"a": SCHEMA, "b": SCHEMA | {"additionalProperties": True}},
            "type": "object", "properties": {"properties": {"anyOf": [SCHEMA, {"type": "null"}]}, "type": {"type": "string"}},
        })  # fmt: skip

    assert json.loads(SamplingParams(json_schema=Nested).json_schema) == {
        "$defs": {"a": CLOSED, "b": SCHEMA | {"additionalProperties": True}},
        "type": "object", "properties": {"properties": {"anyOf": [CLOSED, {"type": "null"}]}, "type": {"type": "string"}},
        "additionalProperties": False,
    }  # fmt: skip


def test_a_schema_changed_later_changes_nothing():
    schema = {"type": "object", "properties": {}}
    params = SamplingParams(json_schema=schema)
    schema["type"] = "array"
    assert json.loads(params.json_schema)["type"] == "object"


DEEP = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "given, error, words",
    [
        ({"json_schema": 5}, TypeError, "json_schema: found int, wanted a dict, a str of JSON or a pydantic class"),
        ({"json_schema": Shape()}, TypeError, "json_schema: found an object of the class Shape, wanted the class itself"),
        ({"json_schema": int}, TypeError, "json_schema: found the class int"),
        ({"json_schema": "{"}, ValueError, "json_schema: is no JSON: .* line 1 column 2"),
        ({"json_schema": "[1]"}, ValueError, "json_schema: found JSON of a list, wanted a schema"),
        ({"json_schema": {"a": {1, 2}}}, TypeError, "json_schema: holds what JSON does not have: .*set"),
        ({"json_schema": {"a": float("nan")}}, ValueError, "json_schema: "),
        ({"json_schema": {"a": "\ud800"}}, ValueError, r"json_schema: holds the lone surrogate U\+D800"),
        ({"json_schema": {"a": DEEP}}, ValueError, "json_schema: is nested too deeply"),
        ({"json_schema": "[" * 100_000}, ValueError, "json_schema: is nested too deeply"),
        ({"json_schema": {"typ": "object"}}, ValueError, "json_schema: unknown keyword 'typ': did you mean type?"),
        ({"json_schema": '{"items": [{"max_length": 1}]}'}, ValueError, r"'items\.max_length': did you mean maxLength\?"),
        ({"json_schema": {"properties": {"a": {"not": {"Enum": []}}}}}, ValueError, r"'properties\.a\.not\.Enum': did you mean enum\?"),
        ({"json_schema": {"$defs": {"b": {"anyOf": [{}, {"propertys": 1}]}}}}, ValueError, r"'\$defs\.b\.anyOf\.propertys'"),
        ({"json_schema": {"ref": "#/a"}}, ValueError, r"did you mean \$ref\?"),
        ({"json_schema": {"name": "x", "schema": SCHEMA}}, ValueError, "found a schema within 'schema', wanted that one itself"),
        ({"regex": 5}, TypeError, "regex: found int, wanted a str"),
        ({"regex": ""}, ValueError, "regex = '': wanted at least one character"),
        ({"grammar": b"start"}, TypeError, "grammar: found bytes, wanted a str"),
        ({"grammar": "ab\udc00"}, ValueError, r"grammar: holds the lone surrogate U\+DC00 at index 2"),
        ({"choice": "yes"}, TypeError, "choice = 'yes': found str, wanted a list of str"),
        ({"choice": 5}, TypeError, "choice = 5: found int"),
        ({"choice": []}, ValueError, "choice: found no strings to choose from"),
        ({"choice": ["a", 1]}, TypeError, r"choice\[1\] = 1: found int, wanted str"),
        ({"choice": ["a", ""]}, ValueError, r"choice\[1\] = '': wanted at least one character"),
        ({"choice": ["\ud800"]}, ValueError, r"choice\[0\]: holds the lone surrogate"),
        ({"regex": "a", "choice": ["a"]}, ValueError, "regex and choice: an answer has one form"),
        ({"guided_json": {}}, TypeError, "it is called json_schema here"),
        ({"response_format": {}}, TypeError, "chat takes it"),
    ],
)
def test_what_is_wrong_is_named(given, error, words):
    with pytest.raises(error, match=words):
        SamplingParams(**given)


def test_what_is_the_authors_own_is_no_slip():
    """Names of properties, values, and notes that are like no keyword."""
    own = {"propertys": {"const": {"typ": 1}}, "requird": {"default": {"itmes": 1}, "enum": [{"typ": 1}], "examples": [{"typ": 1}]}}
    schema = {"type": "object", "properties": own, "name": "x", "strict": True, "unit": "m", "form": 1, "x-order": 2, "label": "y"}
    assert json.loads(SamplingParams(json_schema=schema).json_schema) == schema


def schema_of(response_format):
    text = response_form(response_format, {"seed": 1})
    assert text.pop("seed") == 1
    return json.loads(text["json_schema"]) if text else None


def test_response_formats():
    assert response_form(None, {"regex": "a"}) == {"regex": "a"}
    assert schema_of({"type": "text"}) is None
    assert schema_of(SCHEMA) == SCHEMA and schema_of(Shape) == CLOSED
    assert schema_of({"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}) == SCHEMA
    assert schema_of({"type": "json_object"}) == {"type": "object"}
    assert schema_of({"enum": [1, 2]}) == {"enum": [1, 2]}


@pytest.mark.parametrize(
    "given, error, words",
    [
        (5, TypeError, "response_format: found int"),
        ({"type": "json_schema"}, ValueError, 'found the type "json_schema" without a schema'),
        ({"type": "json_schema", "json_schema": SCHEMA}, ValueError, 'found the type "json_schema" without a schema'),
        ({"type": "json_objekt"}, ValueError, "did you mean json_object"),
        ({"type": 5}, None, ""),  # no type of OpenAI's; what is wrong with the schema is seen where it is compiled
    ],
)
def test_bad_response_formats(given, error, words):
    if error is None:
        assert schema_of(given) == given
        return
    with pytest.raises(error, match=words):
        response_form(given, {})


def test_one_form_only():
    with pytest.raises(ValueError, match="response_format and choice: an answer has one form"):
        response_form(Shape, {"choice": ["a"]})


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 285, 4096])
def test_mask_logits(n):
    rng = np.random.default_rng(n)
    logits = rng.normal(size=n).astype(np.float32)
    logits[rng.random(n) < 0.2] = np.nan
    logits[rng.random(n) < 0.2] = np.inf
    logits[rng.random(n) < 0.2] = -0.0
    for words in (np.zeros, np.ones, None):
        allowed = (words(n) if words else rng.random(n) < 0.5).astype(bool)
        bits = np.zeros((n + 31) // 32 * 32, np.uint8)
        bits[:n] = allowed
        bits[n:] = 1  # beyond the vocabulary: nothing is written there
        out = np.full(n + 1, 7, np.float32)
        _core.mask_logits(logits, np.packbits(bits, bitorder="little").view(np.uint32), out[:n])
        expected = np.where(allowed | np.isnan(logits), logits, np.float32(-np.inf))
        assert out[:n].tobytes() == expected.tobytes() and out[n] == 7


def test_mask_logits_refuses_what_does_not_fit():
    logits, mask, out = np.zeros(33, np.float32), np.zeros(2, np.uint32), np.zeros(33, np.float32)
    _core.mask_logits(logits, mask, out)
    for bad in ((logits, mask[:1], out), (logits, mask, out[:32]), (logits[:0], mask[:0], out[:0])):
        with pytest.raises(ValueError, match="do not fit"):
            _core.mask_logits(*bad)
