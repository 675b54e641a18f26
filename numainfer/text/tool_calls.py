"""How the families write calls of tools: one `Format` each, found by what a chat template writes.

A format's ``read`` gets a `Cursor` behind the mark that opened a call, and gives the calls that it finds or raises: `More`
where only more text can tell, `Broken` where none would help. What it decides never depends on text beyond.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .cursor import MOST_DEPTH, MOST_NAME, NAME, PIECE, PYTHON, Broken, Cursor, Literals, More, make_call, properties, read_json, typed


# ---- JSON between marks ----------------------------------------------------------------------------------------------


def _read_json(cursor, mark, schemas):
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


def _read_llama(cursor, mark, schemas):
    if not mark or cursor.peek() in "{[":
        return _read_json(cursor, mark, schemas)
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
        piece = PIECE.match(cursor.text, cursor.at) if cursor.peek() == '"' else None
        if piece is None:
            raise More if cursor.text[cursor.at] == '"' else Broken
        cursor.at = piece.end()
        arguments[key] = read_json(piece[0])


def _read_mistral(cursor, mark, schemas):
    if cursor.peek() in "{[":
        return _read_json(cursor, mark, schemas)
    start = cursor.at
    cursor.until("{", MOST_NAME)
    head = re.fullmatch(r"([^\[\]]+)(?:\[CALL_ID\]([^\[\]]*))?(?:\[ARGS\])?\s*", cursor.text[start : cursor.at - 1])
    cursor.at -= 1
    if not head:
        raise Broken
    return [make_call(head[1].strip(), cursor.value(), (head[2] or "").strip())]


# ---- names and arguments apart -----------------------------------------------------------------------------------------


def _read_deepseek(cursor, mark, schemas):
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


def _read_kimi(cursor, mark, schemas):
    if mark == _KIMI[0]:
        cursor.expect(_KIMI[1])
    own = cursor.until("<|tool_call_argument_begin|>", MOST_NAME).strip()
    name = re.sub(r":\d+\Z", "", own.removeprefix("functions."))
    return [make_call(name, cursor.value(), own)]


def _tagged(suffix="", separator=""):
    """The reader of calls like ``name<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>``, their marks with a suffix."""
    begin, end = f"<tool_call{suffix}>", f"</tool_call{suffix}>"
    opening = f"<arg_key{suffix}>"

    def read(cursor, mark, schemas):
        if mark != begin:
            cursor.expect(begin)
        if cursor.peek() in "{[":
            return _read_json(cursor, mark, schemas)
        found = NAME.match(cursor.text, cursor.at)
        if found is None:
            raise Broken
        name, cursor.at = found[0], found.end()
        if separator:
            cursor.expect(separator)
        arguments = {}
        while cursor.expect(opening, end) == opening:
            key = cursor.until(f"</arg_key{suffix}>").strip()
            cursor.expect(f"<arg_value{suffix}>")
            arguments[key] = typed(cursor.until(f"</arg_value{suffix}>"), schemas.get(name, {}).get(key))
        return [make_call(name, arguments)]

    return read


def _read_function(cursor, mark, schemas):
    if mark != "<function=":
        if cursor.peek() in "{[":
            return _read_json(cursor, mark, schemas)
        cursor.expect("<function=")
    name = cursor.until(">", MOST_NAME).strip()
    if cursor.peek() == "{":
        arguments = cursor.value()
        cursor.expect("</function>")
        return [make_call(name, arguments)]
    arguments = {}
    while cursor.expect("<parameter=", "</function>") == "<parameter=":
        key = cursor.until(">", MOST_NAME).strip()
        arguments[key] = typed(_parameter(cursor), schemas.get(name, {}).get(key))
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


def _invoke(prefix="", call="invoke", parameter="parameter"):
    """The reader of calls like ``<invoke name="f"><parameter name="x">1</parameter></invoke>``, their marks with a prefix."""
    begin, end = f"<{prefix}{call} name=", f"</{prefix}{call}>"
    opening, closing = f"<{prefix}{parameter} name=", f"</{prefix}{parameter}>"

    def read(cursor, mark, schemas):
        if mark != begin:
            cursor.expect(begin)
        name = cursor.until(">", MOST_NAME).strip().strip('"')
        arguments = {}
        while cursor.expect(opening, end) == opening:
            key, _, more = cursor.until(">", MOST_NAME).strip().removeprefix('"').partition('"')
            value = _parameter(cursor, closing, (opening, end))
            if value.startswith("<![CDATA[") and value.endswith("]]>"):
                arguments[key] = value[len("<![CDATA[") : -len("]]>")]
            else:
                arguments[key] = value if 'string="true"' in more else typed(value, schemas.get(name, {}).get(key))
        return [make_call(name, arguments)]

    return read


def _read_minimax(cursor, mark, schemas):
    """MiniMax M3: the name of a parameter is that of its element; lists and objects are elements within."""
    if mark == _M3 + "<tool_call>":
        cursor.expect(_M3 + "<invoke name=")
    name = cursor.until(">", MOST_NAME).strip().strip('"')
    cursor.await_mark(_M3 + "</invoke>")
    return [make_call(name, dict(_elements(cursor, "</invoke>", schemas.get(name, {}), 0)))]


def _elements(cursor, end, schemas, depth):
    """(key, value) of the elements up to the mark that ends what they are in; ``schemas``: {key: schema}."""
    if depth > MOST_DEPTH:
        raise Broken
    while cursor.expect(_M3 + end, _M3 + "<") == _M3 + "<":
        key = cursor.until(">", MOST_NAME)
        if not NAME.fullmatch(key) or key.startswith("/"):
            raise Broken
        schema = schemas.get(key, {})
        text = cursor.until(_M3)
        cursor.at -= len(_M3)
        if not text.strip() and not cursor.text.startswith(f"{_M3}</{key}>", cursor.at):
            items = schema.get("items")
            inner = {"item": items} if isinstance(items, Mapping) else properties(schema)
            found = list(_elements(cursor, f"</{key}>", inner, depth + 1))
            as_list = all(key == "item" for key, _ in found) and schema.get("type") != "object"
            yield key, [value for _, value in found] if as_list else dict(found)
        else:
            cursor.expect(f"{_M3}</{key}>")
            yield key, typed(text, schema)


def _read_kimi3(cursor, mark, schemas):
    if mark == _KIMI3[0]:
        cursor.expect(_KIMI3[1])
    name = _attributes(cursor).get("tool")
    cursor.await_mark("<|close|>call<|sep|>")
    arguments = {}
    while True:
        what = cursor.expect("<|open|>argument ", "<|open|>json ", "<|close|>call<|sep|>")
        if what == "<|close|>call<|sep|>":
            return [make_call(name, arguments)]
        attributes = _attributes(cursor)
        if what == "<|open|>json ":
            arguments |= make_call(name, cursor.value())[1]
            cursor.expect("<|close|>json<|sep|>")
        else:
            key = attributes.get("key")
            if not key:
                raise Broken
            text = cursor.until("<|close|>argument<|sep|>")
            arguments[key] = typed(text, schemas.get(name, {}).get(key) or {"type": attributes.get("type")})


def _attributes(cursor):
    """{name: value} of the attributes up to the mark that ends them."""
    found = re.findall(r'([\w-]+)="([^"]*)"', cursor.until("<|sep|>", MOST_NAME))
    return {name: value.replace("&quot;", '"').replace("&amp;", "&") for name, value in found}


def _read_solar(cursor, mark, schemas):
    if mark == _SOLAR[0]:
        cursor.expect(_SOLAR[1])
    own = cursor.until("<|tool_call:name|>", MOST_NAME).strip()
    name = cursor.until("<|tool_call:args|>", MOST_NAME).strip()
    return [make_call(name, cursor.value(), own)]


def _read_apertus(cursor, mark, schemas):
    calls = cursor.value()
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) and len(call) == 1 for call in calls):
        raise Broken
    return [make_call(*pair) for call in calls for pair in call.items()]


def _read_action(cursor, mark, schemas):
    """Command-R+: a list in a block of Markdown, in which an entry may say that no tool is wanted."""
    cursor.expect("```json")
    calls = _read_json(cursor, mark, schemas)
    cursor.expect("```")
    return [call for call in calls if call[0] not in ("directly_answer", "directly-answer")]


# ---- calls as programs write them --------------------------------------------------------------------------------------


def _read_python(cursor, mark, schemas):
    """A list of calls as in Python: ``[f(x=1), g()]``."""
    text = Cursor(cursor.balanced(PYTHON.piece, PYTHON.quotes), 0)
    text.expect("[")
    if text.peek() == "{":
        return [_call_of(call) for call in read_json(text.text)]
    calls = []
    while not calls or text.expect(",", "]") == ",":
        name = PYTHON.word(text)
        text.expect("(")
        calls.append(make_call(name, PYTHON.arguments(text)))
    return calls


def _read_gemma(cursor, mark, schemas):
    """Gemma 4: ``call:f{x:1,s:<|"|>text<|"|>}``."""
    cursor.expect("call:")
    start = cursor.at
    cursor.until("{", MOST_NAME)
    name, cursor.at = cursor.text[start : cursor.at - 1].strip(), cursor.at - 1
    return [make_call(name, _GEMMA.whole(cursor.balanced(_GEMMA.piece, _GEMMA.quotes)))]


# ---- the formats -------------------------------------------------------------------------------------------------------

_KIMI = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
_KIMI3 = ("<|open|>tools<|sep|>", "<|open|>call ")
_SOLAR = ("<|tool_calls|>", "<|tool_call:begin|>")
_M3 = "]<]minimax[>["
_HY = ":opensource"  # all marks of Hy3 end so
_GEMMA = Literals(('<|"|>',), re.compile(r'<\|"\|>((?:[^<]++|<(?!\|"\|>))*+)<\|"\|>'), False)
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
        ``read(cursor, opening, schemas of parameters) -> calls``.
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
    Format(("<|open|>", "<|end_of_msg|>"), _KIMI3, ("<|close|>tools<|sep|>", "<|close|>message<|sep|>"), _read_kimi3,
           ("<|open|>", "<|close|>", "<|sep|>")),
    Format((_M3, "<tool_call>"), (_M3 + "<tool_call>", _M3 + "<invoke name="), (_M3 + "</tool_call>",), _read_minimax, (_M3,)),
    Format(("<|tool_call>call:",), ("<|tool_call>",), ("<tool_call|>",), _read_gemma, ('<|"|>',)),
    Format(("<tool_sep{}>", "<arg_key{}>"), (f"<tool_calls{_HY}>", f"<tool_call{_HY}>"), (f"</tool_call{_HY}>", f"</tool_calls{_HY}>"),
           _tagged(_HY, f"<tool_sep{_HY}>"),
           tuple(f"<{name}{_HY}>" for name in ("tool_sep", "arg_key", "/arg_key", "arg_value", "/arg_value"))),
    Format(("<|tool_call:begin|>",), _SOLAR, ("<|tool_call:end|>", "<|calls|>"), _read_solar,
           ("<|tool_call:name|>", "<|tool_call:args|>")),
    Format(("<|tools_prefix|>",), ("<|tools_prefix|>",), ("<|tools_suffix|>",), _read_apertus),
    Format(("[TOOL_CALLS]",), ("[TOOL_CALLS]",), (), _read_mistral, ("[ARGS]", "[CALL_ID]")),
    Format(("<arg_key>",), ("<tool_call>",), ("</tool_call>",), _tagged(),
           ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")),
    Format(("<minimax:tool_call>",), ("<minimax:tool_call>", "<invoke name="), ("</minimax:tool_call>",), _invoke()),
    Format((_DSML, "invoke name="), (f"<{_DSML}function_calls>", f"<{_DSML}tool_calls>", f"<{_DSML}invoke name="),
           (f"</{_DSML}function_calls>", f"</{_DSML}tool_calls>"), _invoke(_DSML), (_DSML,)),
    Format(("<function name=", "<param name="), ("<function name=",), (), _invoke("", "function", "param")),
    Format(("<seed:tool_call>",), ("<seed:tool_call>", "<function="), ("</seed:tool_call>",), _read_function),
    Format(("<function=",), ("<tool_call>", "<function="), ("</tool_call>",), _read_function),
    Format(("<tool_calls>",), ("<tool_calls>",), ("</tool_calls>",), _read_json, more=True),
    Format(("<tool_call>",), ("<tool_call>",), ("</tool_call>",), _read_json),
    Format(("<TOOLCALL>",), ("<TOOLCALL>",), ("</TOOLCALL>",), _read_json),
    Format(("<|START_ACTION|>",), ("<|START_ACTION|>",), ("<|END_ACTION|>",), _read_json),
    Format(("<|tool_call|>",), ("<|tool_call|>",), ("<|/tool_call|>",), _read_json),
    *(Format((sign,), ("<|tool_call_start|>",), ("<|tool_call_end|>",), _read_python)
      for sign in ("<|tool_call_start|>", "<|tool_list_start|>", "List of tools: [")),
    Format(("<|function_call|>",), ("<|function_call|>",), ("<|message_sep|>",), _read_json),
    Format(("<|role_sep|>", "<|message_sep|>"), ("<|message_sep|>\n\nfunction call<|role_sep|>", "function call<|role_sep|>"),
           ("<|message_sep|>",), _read_json, ("<|message_sep|>", "<|role_sep|>")),
    Format(("followed by a json-formatted list of actions",), ("Action:",), (), _read_action),
    Format(("<|start_header_id|>ipython",), ("<|python_tag|>",), (";",), _read_llama, bare=True, more=True),
    Format(("<|python_tag|>",), ("<|python_tag|>",), (";",), _read_llama, bare=True, more=True),
)  # fmt: skip
