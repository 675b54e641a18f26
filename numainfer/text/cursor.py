"""Reading what models write in the syntaxes of their families, a piece at a time: a place in a text, values, calls.

What a reader decides never depends on text beyond: it raises `More` where only more text can tell, `Broken` where none would help.
"""

import json
import re
from collections.abc import Mapping

SPACE = " \t\r\n"
MOST_NAME = 256  # characters of a name and what stands beside it
MOST_DEPTH = 64
MOST_QUOTE = 8  # characters of the longest quotation mark
PIECE = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{\[]|[}\]]|[\s:,.+\-0-9A-Za-z]++', re.DOTALL)
"""Of JSON: a string, a bracket, or anything else."""
NAME = re.compile(r"""[^\s<>{}\[\]()"'`,;=|]+""")


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

    def await_mark(self, mark):
        """Raise More before the mark that ends a call is there, so that what has many parts is not read again with each of them."""
        if self.text.find(mark, self.at) < 0:
            raise More

    def balanced(self, piece=PIECE, quotes=('"',)):
        """The text from the bracket that comes next to the one that closes it.

        Parameters
        ----------
        piece : re.Pattern
            A string, a bracket, or anything else.
        quotes : tuple of str
            What strings begin with.
        """
        if self.peek() not in "{[":
            raise Broken
        start = self.at
        self.at, depth = self.seen.get(start, (start, 0))
        while True:
            found = piece.match(self.text, self.at)
            if found is None:
                self.seen[start] = self.at, depth
                rest = self.text[self.at : self.at + MOST_QUOTE]
                raise More if any(quote.startswith(rest) or rest.startswith(quote) for quote in quotes) else Broken
            self.at = found.end()
            depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(found[0], 0)
            if depth > MOST_DEPTH:
                raise Broken
            if not depth:
                return self.text[start : self.at]

    def value(self, last=False):
        """The JSON object or list that comes next; ``last``: nothing but white space may follow it."""
        text = self.balanced()
        if last and self.text[self.at :].strip(SPACE):
            raise Broken
        return read_json(text)


def read_json(text):
    try:
        value = json.loads(text, strict=False, parse_constant=_no_constant)  # models write line feeds into strings
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Broken from None
    return value


def _no_constant(name):
    raise ValueError(name)


def make_call(name, arguments, own=None):
    """(name, arguments, the model's id or None), checked; arguments may be JSON in a str."""
    if isinstance(arguments, str):
        arguments = read_json(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or len(name) > MOST_NAME or not NAME.fullmatch(name):
        raise Broken
    if not isinstance(arguments, dict):
        raise Broken
    return name, arguments, own if isinstance(own, str) and own else None


def parameter_schemas(tools):
    """{name of a tool: {name of a parameter: its JSON schema}}, of what is there; never raises."""
    schemas = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            schemas[function["name"]] = properties(function.get("parameters"))
    return schemas


def properties(schema):
    """{name: schema} of an object's parts; what is no schema is {}."""
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return {key: own if isinstance(own, Mapping) else {} for key, own in found.items()} if isinstance(found, Mapping) else {}


def typed(text, schema):
    """A value that a form without JSON's quotes wrote: a string where its schema says so, else JSON where it is any; what the schema
    wants otherwise may be written as in Python."""
    kind = (schema or {}).get("type")
    if kind == "string":
        return text
    try:
        return read_json(text)
    except Broken:
        pass
    try:
        return PYTHON.whole(text) if kind in ("object", "array", "boolean") else text
    except (Broken, More):
        return text


# ---- literals as programs write them ---------------------------------------------------------------------------------

_WORD = re.compile(r"""[^\s,:=()\[\]{}<>'"]+""")
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_PYTHON_STRING = re.compile(r"""'((?:[^'\\]++|\\.)*+)'|"((?:[^"\\]++|\\.)*+)\"""", re.DOTALL)


class Literals:
    """A syntax of values: lists, dicts, numbers, constants, and strings between its own quotation marks.

    Parameters
    ----------
    quotes : tuple of str
        What strings begin with.
    string : re.Pattern
        A string, its text in a group.
    escapes : bool
        Whether it knows backslashes.
    """

    def __init__(self, quotes, string, escapes):
        self.quotes, self._string, self._escapes = quotes, string, escapes
        others = "".join(sorted({re.escape(quote[0]) for quote in quotes}))
        whole = re.sub(r"\((?!\?)", "(?:", string.pattern)
        self.piece = re.compile(rf"{whole}|[{{\[(]|[}}\])]|[^{others}{{}}\[\]()]++", re.DOTALL)

    def string(self, cursor):
        """The string that comes next, or None."""
        cursor.space()
        found = self._string.match(cursor.text, cursor.at)
        if found is None:
            return None
        cursor.at = found.end()
        text = next(group for group in found.groups() if group is not None)
        if not self._escapes:
            return text
        try:
            return _ESCAPE.sub(_unescaped, text).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:  # half a surrogate pair is no text
            raise Broken from None

    def word(self, cursor):
        """A name, number or constant."""
        cursor.space()
        found = _WORD.match(cursor.text, cursor.at)
        if found is None:
            raise Broken
        cursor.at = found.end()
        return found[0]

    def whole(self, text):
        """The value that a text with balanced brackets is."""
        cursor = Cursor(text, 0)
        value = self.read(cursor)
        cursor.space()
        if cursor.at < len(text):
            raise Broken
        return value

    def read(self, cursor, depth=0):
        """The value that comes next in such a text."""
        first = cursor.peek()
        if first in "[({":
            if depth == MOST_DEPTH:
                raise Broken
            cursor.at += 1
            if first == "{":
                return dict(self._items(cursor, "}", lambda cursor: self._pair(cursor, ":", depth + 1)))
            return list(self._items(cursor, "]" if first == "[" else ")", lambda cursor: self.read(cursor, depth + 1)))
        text = self.string(cursor)
        if text is not None:
            return text
        word = self.word(cursor)
        return _CONSTANTS[word] if word in _CONSTANTS else read_json(word)

    def arguments(self, cursor):
        """{name: value} of ``name=value, ...)``."""
        return dict(self._items(cursor, ")", lambda cursor: self._pair(cursor, "=")))

    def _pair(self, cursor, sign, depth=0):
        name = self.string(cursor)
        name = self.word(cursor) if name is None else name
        cursor.expect(sign)
        return name, self.read(cursor, depth)

    def _items(self, cursor, closing, read):
        while cursor.peek() != closing:
            yield read(cursor)
            if cursor.peek() != closing:
                cursor.expect(",")
        cursor.at += 1


def _unescaped(found):
    code, byte, other = found.groups()
    return chr(int(code or byte, 16)) if other is None else _ESCAPED.get(other, other if other in "\\'\"" else found[0])


PYTHON = Literals(("'", '"'), _PYTHON_STRING, True)
