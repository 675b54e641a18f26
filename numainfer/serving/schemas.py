"""Keywords of JSON schemas that look misspelt: who reads a schema ignores what it does not know, so a slip would be without effect."""

from collections.abc import Mapping

_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")  # schemas by names of the author's own
_SCHEMAS = ("additionalItems", "additionalProperties", "allOf", "anyOf", "contains", "contentSchema", "else", "if", "items", "not", "oneOf",
            "prefixItems", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties")  # a schema, or a list of them
_OTHERS = ("$anchor", "$comment", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef", "$ref", "$schema",
           "$vocabulary", "const", "contentEncoding", "contentMediaType", "default", "dependencies", "dependentRequired", "deprecated",
           "description", "discriminator", "enum", "example", "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "id",
           "maxContains", "maxItems", "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties",
           "minimum", "multipleOf", "nullable", "pattern", "readOnly", "required", "title", "type", "uniqueItems", "writeOnly",
           "x-guidance")  # fmt: skip
_ALIKE = 0.82  # "propertys" is like "properties" (0.84), a publisher's own "form" is not like "format" (0.8)


def _plain(keyword):
    return keyword.lower().replace("_", "").replace("-", "").lstrip("$")


_KNOWN = {_plain(keyword): keyword for keyword in (*_NAMED, *_SCHEMAS, *_OTHERS)}


def check_keywords(name, schema):
    """Raise ValueError if a keyword looks misspelt; others that are not known are somebody's notes.

    Parameters
    ----------
    name : str
        What errors call the schema.
    schema : mapping
        As JSON has it.
    """
    if isinstance(schema.get("schema"), Mapping) and not schema.keys() & {*_NAMED, *_SCHEMAS, "type", "$ref", "enum", "const"}:
        raise ValueError(f"{name}: found a schema within 'schema', wanted that one itself")
    todo = [("", schema)]
    while todo:
        path, found = todo.pop()
        for key, value in found.items():
            if key in _NAMED and isinstance(value, Mapping):
                todo += [(f"{path}{key}.{own}.", each) for own, each in value.items() if isinstance(each, Mapping)]
            elif key in _SCHEMAS:
                each = value if isinstance(value, (list, tuple)) else [value]
                todo += [(f"{path}{key}.", one) for one in each if isinstance(one, Mapping)]
            elif key not in _OTHERS and isinstance(key, str):
                import difflib  # mostly there is no such keyword

                near = difflib.get_close_matches(_plain(key), _KNOWN, 1, _ALIKE)
                if near:
                    raise ValueError(f"{name}: unknown keyword {path + key!r}: did you mean {_KNOWN[near[0]]}?")
