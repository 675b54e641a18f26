"""How the families write calls of tools: one `Format` each, found by what a chat template writes.

A format's ``read`` gets a `Cursor` behind the mark that opened a call, and gives the calls that it finds or raises: `More`
where only more text can tell, `Broken` where none would help. What it decides never depends on text beyond.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

SPACE = " \t\r\n"
MOST_NAME = 256  # characters of a name and what stands beside it
MOST_DEPTH = 64
_PIECE = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{\[]|[}\]]|[\s:,.+\-0-9A-Za-z]++', re.DOTALL)
_NAME = re.compile(r"""[^\s<>{}\[\]()"'`,;=|]+""")


class More(Exception):
    """The text ends before it can be decided."""


class Broken(Exception):
    """This is no call."""


class Cursor:
    """A place in a text.

    Attributes
    ----------
    text : str
    at : int
    seen : dict
        How far JSON was read when the text was shorter: given again with a longer text, it is not read from its start.
    """

    def __init__(self, text, at, seen=None):
        self.text, self.at, self.seen = text, at, {} if seen is None else seen

    def space(self):
        """Skip white space."""
        while self.at < len(self.text) and self.text[self.at] in SPACE:
            self.at += 1

    def peek(self):
        """The next character that is no white space."""
        self.space()
        if self.at == len(self.text):
            raise More
        return self.text[self.at]

    def expect(self, *marks):
        """Skip white space and one of these marks, which is returned."""
        self.space()
        for mark in marks:
            if self.text.startswith(mark, self.at):
                self.at += len(mark)
                return mark
        rest = self.text[self.at : self.at + max(map(len, marks))]
        raise More if any(mark.startswith(rest) for mark in marks) else Broken

    def until(self, mark, most=None):
        """The text up to a mark, which is skipped; not more than ``most`` characters with the mark."""
        at = self.text.find(mark, self.at, None if most is None else self.at + most)
        if at < 0:
            raise More if most is None or len(self.text) - self.at < most else Broken
        start, self.at = self.at, at + len(mark)
        return self.text[start:at]

    def value(self, last=False):
        """The JSON object or list that comes next; ``last``: nothing but white space may follow it."""
        if self.peek() not in "{[":
            raise Broken
        start = self.at
        self.at, depth = self.seen.get(start, (start, 0))
        while True:
            piece = _PIECE.match(self.text, self.at)
            if piece is None:
                self.seen[start] = self.at, depth
                raise More if self.at == len(self.text) or self.text[self.at] == '"' else Broken
            self.at = piece.end()
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(piece[0], 0)
            if depth > MOST_DEPTH:
                raise Broken
            if not depth:
                break
        if last and self.text[self.at :].strip(SPACE):
            raise Broken
        return _json(self.text[start : self.at])


def _json(text):
    try:
        value = json.loads(text, strict=False, parse_constant=_no_constant)  # models write line feeds into strings
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except ValueError:
        raise Broken from None
    return value


def _no_constant(name):
    raise ValueError(name)


def make_call(name, arguments, own=None):
    """(name, arguments, the model's id or None), checked; arguments may be JSON in a str."""
    if isinstance(arguments, str):
        arguments = _json(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or len(name) > MOST_NAME or not _NAME.fullmatch(name):
        raise Broken
    if not isinstance(arguments, dict):
        raise Broken
    return name, arguments, own if isinstance(own, str) and own else None


def parameter_types(tools):
    """{name of a tool: {name of a parameter: its type in JSON schema, or None}}, of what is there; never raises."""
    types = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            continue
        schema = function.get("parameters")
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if isinstance(properties, Mapping):
            types[function["name"]] = {key: own.get("type") if isinstance(own, Mapping) else None for key, own in properties.items()}
    return types


def _typed(text, kind):
    """A value that a form without JSON's quotes wrote: a string where the tool's schema says so, else JSON where it is any."""
    if kind == "string":
        return text
    try:
        return _json(text)
    except Broken:
        return text


# ---- JSON between marks ----------------------------------------------------------------------------------------------


def _read_json(cursor, mark, types):
    value = cursor.value()
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise Broken
    return [_call_of(call, strict=not mark) for call in calls]


def _call_of(call, strict=False):
    """A call of the object that describes it; ``strict``: without a mark it must be one in every way."""
    if not isinstance(call, dict):
        raise Broken
    if isinstance(call.get("function"), dict):
        call = {"id": call.get("id"), **call["function"]}
    name = next((call[key] for key in ("name", "tool_name", "function") if key in call), None)
    keys = [key for key in ("arguments", "parameters") if key in call]
    if strict and not call.keys() <= {"id", "name", "function", "type", *keys}:
        raise Broken
    arguments = call[keys[0]] if keys else None
    return make_call(name, {} if arguments is None and not strict else arguments, call.get("id") or call.get("tool_call_id"))


def _read_llama(cursor, mark, types):
    if not mark or cursor.peek() in "{[":
        return _read_json(cursor, mark, types)
    # The built-in tools are called as in Python: name.call(query="...").
    cursor.space()
    head = cursor.until("(", MOST_NAME)
    if not head.endswith(".call"):
        raise Broken
    arguments = {}
    while True:
        if cursor.peek() == ")":
            cursor.at += 1
            return [make_call(head.removesuffix(".call"), arguments)]
        if arguments:
            cursor.expect(",")
        key = cursor.until("=", MOST_NAME).strip()
        piece = _PIECE.match(cursor.text, cursor.at) if cursor.peek() == '"' else None
        if piece is None:
            raise More if cursor.text[cursor.at] == '"' else Broken
        cursor.at = piece.end()
        arguments[key] = _json(piece[0])


def _read_mistral(cursor, mark, types):
    if cursor.peek() in "{[":
        return _read_json(cursor, mark, types)
    start = cursor.at
    cursor.until("{", MOST_NAME)
    head = re.fullmatch(r"([^\[\]]+)(?:\[CALL_ID\]([^\[\]]*))?(?:\[ARGS\])?\s*", cursor.text[start : cursor.at - 1])
    cursor.at -= 1
    if not head:
        raise Broken
    return [make_call(head[1].strip(), cursor.value(), (head[2] or "").strip())]


# ---- names and arguments apart -----------------------------------------------------------------------------------------


def _read_deepseek(cursor, mark, types):
    if mark == _DEEPSEEK[0]:
        cursor.expect(_DEEPSEEK[1])
    name = cursor.until("<｜tool▁sep｜>", MOST_NAME)
    if cursor.peek() == "{":
        return [make_call(name.strip(), cursor.value())]
    # V3 and R1 write the kind of tool first, and the arguments as a block of Markdown.
    name = cursor.until("\n", MOST_NAME)
    cursor.expect("```json")
    arguments = cursor.value()
    cursor.expect("```")
    return [make_call(name.strip(), arguments)]


def _read_kimi(cursor, mark, types):
    if mark == _KIMI[0]:
        cursor.expect(_KIMI[1])
    own = cursor.until("<|tool_call_argument_begin|>", MOST_NAME).strip()
    name = re.sub(r":\d+\Z", "", own.removeprefix("functions."))
    return [make_call(name, cursor.value(), own)]


def _read_glm(cursor, mark, types):
    if cursor.peek() in "{[":
        return _read_json(cursor, mark, types)
    found = _NAME.match(cursor.text, cursor.at)
    if found is None:
        raise Broken
    name, cursor.at = found[0], found.end()
    arguments = {}
    while cursor.expect("<arg_key>", "</tool_call>") == "<arg_key>":
        key = cursor.until("</arg_key>").strip()
        cursor.expect("<arg_value>")
        arguments[key] = _typed(cursor.until("</arg_value>"), types.get(name, {}).get(key))
    return [make_call(name, arguments)]


def _read_function(cursor, mark, types):
    if mark != "<function=":
        if cursor.peek() in "{[":
            return _read_json(cursor, mark, types)
        cursor.expect("<function=")
    name = cursor.until(">", MOST_NAME).strip()
    if cursor.peek() == "{":
        arguments = cursor.value()
        cursor.expect("</function>")
        return [make_call(name, arguments)]
    arguments = {}
    while cursor.expect("<parameter=", "</function>") == "<parameter=":
        key = cursor.until(">", MOST_NAME).strip()
        arguments[key] = _typed(_parameter(cursor), types.get(name, {}).get(key))
    return [make_call(name, arguments)]


def _parameter(cursor, mark="</parameter>", follow=("<parameter=", "</function>")):
    """The text of a parameter: up to the mark that closes it, which a value may quote, but not before another mark."""
    start = cursor.at
    while True:
        cursor.until(mark)
        stop = cursor.at
        try:
            cursor.expect(*follow)
        except Broken:
            continue
        text, cursor.at = cursor.text[start : stop - len(mark)], stop
        return text.removeprefix("\n").removesuffix("\n")


def _invoke(prefix):
    """The reader of calls like ``<invoke name="f"><parameter name="x">1</parameter></invoke>``, their marks with a prefix."""
    begin, end = f"<{prefix}invoke name=", f"</{prefix}invoke>"
    parameter, closing = f"<{prefix}parameter name=", f"</{prefix}parameter>"

    def read(cursor, mark, types):
        if mark != begin:
            cursor.expect(begin)
        name = cursor.until(">", MOST_NAME).strip().strip('"')
        arguments = {}
        while cursor.expect(parameter, end) == parameter:
            key, _, more = cursor.until(">", MOST_NAME).strip().removeprefix('"').partition('"')
            value = _parameter(cursor, closing, (parameter, end))
            arguments[key] = value if 'string="true"' in more else _typed(value, types.get(name, {}).get(key))
        return [make_call(name, arguments)]

    return read


# ---- the formats -------------------------------------------------------------------------------------------------------

_KIMI = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
_DSML = "｜DSML｜"  # of DeepSeek V3.2 and V4
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")


class Format(NamedTuple):
    """How a family writes its calls.

    Attributes
    ----------
    signs : tuple of str
        A template that holds them all is of this family.
    openings : tuple of str
        Marks that a call begins with.
    closings : tuple of str
        What may stand after a call and means nothing by itself.
    read : callable
        ``read(cursor, opening, parameter types) -> calls``.
    inner : tuple of str
        Further marks that may be control tokens.
    bare : bool
        An answer may be a call without any mark.
    more : bool
        Another call may follow a call without a mark.
    """

    signs: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    read: Callable
    inner: tuple[str, ...] = ()
    bare: bool = False
    more: bool = False

    @property
    def marks(self):
        return (*self.openings, *self.closings, *self.inner)


FORMATS = (
    Format(_KIMI[:1], _KIMI, ("<|tool_call_end|>", "<|tool_calls_section_end|>"), _read_kimi, ("<|tool_call_argument_begin|>",)),
    Format(_DEEPSEEK[:1], _DEEPSEEK, ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"), _read_deepseek, ("<｜tool▁sep｜>",)),
    Format(("[TOOL_CALLS]",), ("[TOOL_CALLS]",), (), _read_mistral, ("[ARGS]", "[CALL_ID]")),
    Format(("<arg_key>",), ("<tool_call>",), ("</tool_call>",), _read_glm,
           ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")),
    Format(("<minimax:tool_call>",), ("<minimax:tool_call>", "<invoke name="), ("</minimax:tool_call>",), _invoke("")),
    Format((_DSML, "invoke name="), (f"<{_DSML}function_calls>", f"<{_DSML}tool_calls>", f"<{_DSML}invoke name="),
           (f"</{_DSML}function_calls>", f"</{_DSML}tool_calls>"), _invoke(_DSML), (_DSML,)),
    Format(("<seed:tool_call>",), ("<seed:tool_call>", "<function="), ("</seed:tool_call>",), _read_function),
    Format(("<function=",), ("<tool_call>", "<function="), ("</tool_call>",), _read_function),
    Format(("<tool_calls>",), ("<tool_calls>",), ("</tool_calls>",), _read_json, more=True),
    Format(("<tool_call>",), ("<tool_call>",), ("</tool_call>",), _read_json),
    Format(("<TOOLCALL>",), ("<TOOLCALL>",), ("</TOOLCALL>",), _read_json),
    Format(("<|START_ACTION|>",), ("<|START_ACTION|>",), ("<|END_ACTION|>",), _read_json),
    Format(("<|tool_call|>",), ("<|tool_call|>",), ("<|/tool_call|>",), _read_json),
    Format(("<|start_header_id|>ipython",), ("<|python_tag|>",), (";",), _read_llama, bare=True, more=True),
    Format(("<|python_tag|>",), ("<|python_tag|>",), (";",), _read_llama, bare=True, more=True),
)  # fmt: skip
