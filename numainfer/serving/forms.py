"""What a caller may ask of an answer's form, made into the text that `masks` compiles."""

import json
from collections.abc import Mapping

from ..arguments import did_you_mean
from ..signatures import ResponseFormat, SamplingOptions
from .schemas import check_keywords

FORMS = ("json_schema", "regex", "choice", "grammar")
"""The fields of SamplingParams that ask for a form, of which at most one is given."""


def json_schema_text(name, value):
    """A JSON schema as JSON text.

    Parameters
    ----------
    name : str
        What errors call it.
    value : dict, str or pydantic class, or None
        A str is JSON already; a class is asked for its ``model_json_schema()``, and an object of it has no properties but those
        that the class names, unless it says otherwise: else a model that likes to go on makes up others.

    Returns
    -------
    str or None

    Raises
    ------
    TypeError
        Another type, or something in it that JSON does not have.
    ValueError
        A str that is no JSON, JSON that is no schema, or a keyword in it that looks misspelt.
    """
    if value is None:
        return None
    if isinstance(value, type) and callable(getattr(value, "model_json_schema", None)):
        value = _closed(value.model_json_schema())
    elif hasattr(value, "model_json_schema"):
        raise TypeError(f"{name}: found an object of the class {type(value).__name__}, wanted the class itself")
    try:
        if isinstance(value, str):
            value = json.loads(value)
        elif not isinstance(value, Mapping):
            raise TypeError(f"{name}: found {_name(value)}, wanted a dict, a str of JSON or a pydantic class")
        text = json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except json.JSONDecodeError as e:
        raise ValueError(f"{name}: is no JSON: {e}") from None
    except UnicodeEncodeError as e:
        raise ValueError(f"{name}: holds the lone surrogate U+{ord(e.object[e.start]):04X}; wanted valid Unicode") from None
    except RecursionError:
        raise ValueError(f"{name}: is nested too deeply") from None
    except TypeError as e:
        raise e if str(e).startswith(name) else TypeError(f"{name}: holds what JSON does not have: {e}") from None
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: found JSON of a {type(value).__name__}, wanted a schema, which is an object")
    check_keywords(name, value)
    return text


def source_text(name, value):
    """A regular expression or a grammar: a str that is not empty, or None.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name}: found {_name(value)}, wanted a str")
    if not value:
        raise ValueError(f"{name} = '': wanted at least one character")
    return _unicode(name, value)


def choices(name, value):
    """A tuple of different strings, at least one and none empty, or None.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} = {value!r}: found {_name(value)}, wanted a list of str")
    found = tuple(value)
    if not found:
        raise ValueError(f"{name}: found no strings to choose from, wanted at least one")
    for i, item in enumerate(found):
        if not isinstance(item, str):
            raise TypeError(f"{name}[{i}] = {item!r}: found {_name(item)}, wanted str")
        if not item:
            raise ValueError(f"{name}[{i}] = '': wanted at least one character")
        _unicode(f"{name}[{i}]", item)
    return tuple(dict.fromkeys(found))


def form_of(params):
    """The form that parameters ask for.

    Parameters
    ----------
    params : SamplingParams, or anything with the fields `FORMS`

    Returns
    -------
    (str, str or tuple of str), or None
        Its field and what stands there.

    Raises
    ------
    ValueError
        More than one is given.
    """
    given = [(name, value) for name in FORMS if (value := getattr(params, name)) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(name for name, _ in given)}: an answer has one form; wanted one of them")
    return given[0] if given else None


def response_form(response_format: ResponseFormat | None, sampling: SamplingOptions) -> SamplingOptions:
    """Lay what ``response_format`` asks for over the keywords of a call.

    Parameters
    ----------
    response_format : pydantic class, dict or None
        A class; a JSON schema; or as OpenAI's clients write it: ``{"type": "json_schema", "json_schema": {"schema": ...}}``,
        ``{"type": "json_object"}`` (any JSON object), ``{"type": "text"}`` (nothing).
    sampling : dict
        Fields of SamplingParams.

    Returns
    -------
    dict
        Of the same kind.

    Raises
    ------
    TypeError, ValueError
    """
    schema = _response_schema(response_format)
    if schema is None:
        return sampling
    for name in FORMS:
        if sampling.get(name) is not None:
            raise ValueError(f"response_format and {name}: an answer has one form; wanted one of them")
    return {**sampling, "json_schema": schema}


def _response_schema(given):
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return json_schema_text("response_format", given)
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return '{"type": "object"}'
    if kind == "json_schema":
        inner = given.get("json_schema")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
            raise ValueError('response_format: found the type "json_schema" without a schema, wanted '
                             '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}')  # fmt: skip
        return json_schema_text("response_format", inner["schema"])
    known = ("object", "array", "string", "number", "integer", "boolean", "null", "text", "json_object", "json_schema")
    if isinstance(kind, str) and kind not in known:
        raise ValueError(f"response_format: found the type {kind!r}; {did_you_mean(kind, known)}")
    return json_schema_text("response_format", given)


def _closed(schema):
    """A schema whose objects have no properties but the named, unless it says otherwise."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.get("type") == "object" and isinstance(closed.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _unicode(name, text):
    at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
    if at is not None:
        raise ValueError(f"{name}: holds the lone surrogate U+{ord(text[at]):04X} at index {at}; wanted valid Unicode")
    return text


def _name(value):
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
