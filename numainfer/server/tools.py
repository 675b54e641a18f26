"""tools and tool_choice of a request. What the model is to call in any case is a form of its answer."""

import hashlib
import json

from ..results import ToolCall


class Choice:
    """What becomes of the tools of a request.

    Attributes
    ----------
    tools : list of dict or None
        For the chat template.
    schema : str or None
        Of an answer that is nothing but a call.
    """

    def __init__(self, tools, schema=None):
        self.tools, self.schema = tools, schema

    def call(self, text, ids):
        """The ToolCall that an answer in the form of `schema` is, or None where it was cut short."""
        try:
            found = json.loads(text)
        except ValueError:
            return None
        mark = hashlib.sha256(ids.tobytes() + text.encode("utf-8", "backslashreplace")).hexdigest()[:9]
        return ToolCall(mark, found["name"], found["arguments"])


def read(fields):
    """The Choice of a request.

    Parameters
    ----------
    fields : dict

    Raises
    ------
    TypeError, ValueError
    """
    tools, choice = fields.get("tools"), fields.get("tool_choice", "auto")
    if tools is not None and not isinstance(tools, list):
        raise TypeError(f"tools: found {type(tools).__name__}, wanted a list")
    functions = [_function(f"tools[{i}]", tool) for i, tool in enumerate(tools or ())]
    name = _chosen(choice)
    if choice == "none" or not tools and choice == "auto":
        return Choice(None)
    if not tools:
        raise ValueError(f"tool_choice = {choice if isinstance(choice, str) else name!r}: there are no tools to choose from")
    if choice == "auto":
        for i, function in enumerate(functions):
            if function.get("strict"):
                raise ValueError(f"tools[{i}].function.strict = true: is not supported where the model may choose whether to call: leave "
                                 "it out, or ask for a call by tool_choice, whose arguments then follow the schema")  # fmt: skip
        return Choice(tools)
    if name is not None:
        functions = [function for function in functions if function["name"] == name]
        if not functions:
            raise ValueError(f"tool_choice: names {name!r}, which is none of the tools")
    shared = {}
    forms = [_call_schema(function, str(i), shared) for i, function in enumerate(functions)]
    return Choice(tools, json.dumps({"anyOf": forms} | ({"$defs": shared} if shared else {})))


def _function(name, tool):
    if not isinstance(tool, dict):
        raise TypeError(f"{name}: found {type(tool).__name__}, wanted an object")
    if tool.get("type", "function") != "function":
        raise ValueError(f"{name}.type = {tool['type']!r}: is not supported; wanted 'function'")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"{name}.function: wanted an object with a name")
    if not isinstance(function.get("parameters") or {}, dict):
        raise TypeError(f"{name}.function.parameters: found {type(function['parameters']).__name__}, wanted a JSON schema")
    return function


def _chosen(choice):
    """The name of the tool that tool_choice demands, or None."""
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise ValueError(f"tool_choice = {choice!r}: wanted 'none', 'auto', 'required' or an object that names a tool")
        return None
    if not isinstance(choice, dict):
        raise TypeError(f"tool_choice: found {type(choice).__name__}, wanted a str or an object that names a tool")
    function = choice.get("function")
    if choice.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError('tool_choice: is not supported in this form; wanted {"type": "function", "function": {"name": ...}}')
    return function["name"]


def _call_schema(function, mark, shared):
    """The schema of a call; definitions of the tool's own schema go to ``shared``, where references find them."""
    arguments = dict(function.get("parameters") or {"properties": {}, "additionalProperties": False})
    own = {key: arguments.pop(key) for key in ("$defs", "definitions") if isinstance(arguments.get(key), dict)}
    for key, definitions in own.items():
        shared.update({f"{mark}.{name}": _moved(schema, own, mark) for name, schema in definitions.items()})
    arguments = _moved({"type": "object"} | arguments, own, mark)
    properties = {"name": {"const": function["name"]}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _moved(schema, own, mark):
    """A schema whose references to its own definitions lead to where those lie now."""
    if isinstance(schema, list):
        return [_moved(item, own, mark) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, own, mark) for key, value in schema.items()}
    target = schema.get("$ref")
    for key in own:
        if isinstance(target, str) and target.startswith(f"#/{key}/"):
            moved["$ref"] = f"#/$defs/{mark}.{target.removeprefix(f'#/{key}/')}"
    return moved
