"""Answers of chat models, taken apart: what the user reads, the model's thinking, and calls of tools.

A template tells by the marks it writes which way of speaking its model has learned. A reader gets the answer in pieces,
with the marks even where they are control tokens, and gives increments that add up to the same however it was cut.
What does not parse stays text, mark and all: nothing that a model says is lost.
"""

import hashlib
import re
from typing import NamedTuple

from ..results import ToolCall
from .cursor import Broken, Cursor, More, make_call, parameter_schemas
from .tool_calls import FORMATS

SPACE = " \t\r\n"


class Speech(NamedTuple):
    """How a family speaks, calls aside.

    Attributes
    ----------
    signs : tuple of str
        A template that holds them all is of this family.
    thinking : (str, str)
        What opens and closes thinking.
    wraps : tuple of str
        Marks around what is for the user.
    inner : tuple of str
        Control tokens that all these are made of.
    """

    signs: tuple[str, ...]
    thinking: tuple[str, str]
    wraps: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()


def _plain(*thinking):
    return Speech(thinking[1:], thinking)


SPEECH = (
    Speech(("<|open|>", "<|end_of_msg|>"), ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
           ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"), ("<|open|>", "<|close|>", "<|sep|>")),
    Speech(("<|begin|>assistant", "<|think|>", "<|end|>"), ("<|think|>", "<|end|>"),  # Solar
           ("<|begin|>assistant", "<|content|>", "<|end|>"), ("<|begin|>", "<|end|>")),
    Speech(("'<think{}>'", "'</think{}>'"), ("<think:opensource>", "</think:opensource>")),  # Hy3
    Speech(("<|channel>thought", "<channel|>"), ("<|channel>thought", "<channel|>"), (), ("<|channel>",)),  # Gemma 4
    Speech(("[BEGIN FINAL RESPONSE]",), ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"), ("[END FINAL RESPONSE]",)),  # Apriel
    _plain("<|inner_prefix|>", "<|inner_suffix|>"),
    _plain("<mm:think>", "</mm:think>"),
    _plain("<think>", "</think>"),
    _plain("[THINK]", "[/THINK]"),
    _plain("<seed:think>", "</seed:think>"),
    _plain("<|START_THINKING|>", "<|END_THINKING|>"),
)  # fmt: skip
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")


class Found(NamedTuple):
    """What became sure with a piece of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def plus(self, other):
        return Found(self.text + other.text, self.reasoning + other.reasoning, self.calls + other.calls)


NOTHING = Found()


def reader_for(template, prompt, tools, seed):
    """A reader of one answer.

    Parameters
    ----------
    template : str
        The chat template's source.
    prompt : str
        What it wrote: its end may have begun the answer, or opened the thinking.
    tools : list of dict or None
        Without any, no calls are looked for.
    seed : bytes
        Calls that the model gave no id get one made of this and their number, nine characters as Mistral's templates want
        them: the same prompt, the same ids.

    Returns
    -------
    Reader or None
        None: this template knows no thinking, and no calls that one could ask for.
    """
    if "<|channel|>" in template and "<|message|>" in template:
        return HarmonyReader(prompt, tools, seed)
    speech, form = (next((way for way in ways if all(mark in template for mark in way.signs)), None) for ways in (SPEECH, FORMATS))
    form = form if tools else None
    return TaggedReader(speech, form, prompt, tools, seed) if speech or form else None


class _Lines:
    """Text on its way out. White space around what was cut out of it is left out: it belongs to the marks."""

    def __init__(self):
        self.any = False  # whether something was said
        self.cut = False  # whether what comes next stands right after something that was cut out
        self._gap, self._out = "", []

    def put(self, text):
        if self.cut:
            text = text.lstrip(SPACE)
            self.cut = not text
        said = text.rstrip(SPACE)
        if said:
            self._out += (self._gap, said)
            self.any, self._gap = True, text[len(said) :]
        else:
            self._gap += text

    def cut_out(self):
        self.cut = True
        if not self.any:
            self._gap = ""

    def paragraph(self):
        if self.any:
            self._gap = "\n\n"

    def end(self):
        if not self.cut:
            self._out.append(self._gap)
        self._gap = ""

    def take(self):
        out, self._out = "".join(self._out), []
        return out


class Reader:
    """What all readers share.

    Attributes
    ----------
    marks : tuple of str
        Texts of control tokens that it wants to see.
    n_calls : int
    """

    marks = ()

    def __init__(self, tools, seed):
        self.n_calls = 0
        self._schemas, self._seed = parameter_schemas(tools), seed
        self._rest, self._text, self._thoughts, self._calls = "", _Lines(), _Lines(), []
        self._thoughts.cut = True

    def feed(self, piece):
        """Take the next piece of the answer, str; what became sure, Found."""
        self._rest += piece
        self._read(False)
        return self._found()

    def flush(self):
        """Nothing more will come; what was held back, Found."""
        self._read(True)
        self._text.end()
        return self._found()

    def _found(self):
        calls, self._calls = tuple(self._calls), []
        return Found(self._text.take(), self._thoughts.take(), calls)

    def _take_calls(self, calls):
        for name, arguments, own in calls:
            made = hashlib.blake2s(self._seed + self.n_calls.to_bytes(4, "little")).hexdigest()[:9]
            self._calls.append(ToolCall(own or made, name, arguments))
            self.n_calls += 1
        self._text.cut_out()


class TaggedReader(Reader):
    """An answer with thinking and calls between marks.

    Parameters
    ----------
    speech : Speech or None
    form : Format or None
        Of the calls.
    prompt, tools, seed
        As for `reader_for`.
    """

    def __init__(self, speech, form, prompt, tools, seed):
        super().__init__(tools, seed)
        self._open, self._close = speech.thinking if speech else (None, None)
        self._seen = {}  # of the call that the rest begins with
        self._form, self._wraps = form, speech.wraps if speech else ()
        self._openings = (*(form.openings if form else ()), *self._wraps)
        self.marks = (*((*speech.thinking, *speech.wraps, *speech.inner) if speech else ()), *(form.marks if form else ()))
        opened = speech is not None and prompt.rstrip(SPACE).endswith(self._open)
        self._state = self._opened if opened else self._start

    def _read(self, end):
        while self._state(end):
            pass

    # Each state takes from the rest what is sure; it returns whether the next state has work.

    def _start(self, end):
        """Before anything was said: thinking may begin, or a call that has no mark."""
        rest = self._rest.lstrip(SPACE)
        if self._open and rest.startswith(self._open):
            self._rest = rest[len(self._open) :]
            self._state = self._think
            return True
        if self._open and rest.startswith(self._close):  # no thinking, said so
            return self._think(end)
        if not end and (not rest or self._open and (self._open.startswith(rest) or self._close.startswith(rest))):
            return False
        self._state = self._bare if self._form and self._form.bare else self._say
        return True

    def _opened(self, end):
        """The prompt has opened the thinking; some models open it again."""
        rest = self._rest.lstrip(SPACE)
        if not end and self._open.startswith(rest) and rest != self._open:
            return False
        self._rest, self._state = rest.removeprefix(self._open), self._think
        return True

    def _think(self, end):
        at = self._rest.find(self._close)
        sure = at if at >= 0 else len(self._rest) if end else _sure(self._rest, (self._close,))
        self._thoughts.put(self._rest[:sure])
        self._rest = self._rest[sure:]
        if at < 0:
            return False
        self._rest = self._rest[len(self._close) :]
        self._text.cut_out()
        self._open, self._state = None, self._start  # it thinks once
        return True

    def _bare(self, end):
        """A call without a mark may begin here."""
        rest = self._rest.lstrip(SPACE)
        if not rest and not end:
            return False
        if not rest.startswith("{"):
            self._state = self._say
            return True
        return self._call("", self._rest[: -len(rest)], end)

    def _say(self, end):
        found = [(at, mark) for mark in self._openings if (at := self._rest.find(mark)) >= 0]
        at, mark = min(found, default=(-1, ""))
        sure = at if found else len(self._rest) if end else _sure(self._rest, self._openings)
        if sure:
            self._text.put(self._rest[:sure])
            self._rest = self._rest[sure:]
        if mark in self._wraps:
            self._rest = self._rest[len(mark) :]
            self._text.cut_out()
            return True
        return bool(found) and self._call(mark, "", end)

    def _call(self, mark, space, end):
        """Read the call that the rest begins with, after white space; else its mark is text."""
        cursor = Cursor(self._rest, len(space) + len(mark), self._seen)
        try:
            calls = self._form.read(cursor, mark, self._schemas)
        except More:
            if not end:
                return False
            calls = None
        except Broken:
            calls = None
        self._seen = {}
        if calls is None:
            first = len(space) + (len(mark) or 1)
            self._text.put(self._rest[:first])
            self._rest, self._state = self._rest[first:], self._say
        else:
            self._rest, self._state = self._rest[cursor.at :], self._after
            self._take_calls(calls)
        return True

    def _after(self, end):
        """Right after a call: marks that close it, and in some forms another call at once."""
        rest = self._rest.lstrip(SPACE)
        for mark in self._form.closings:
            if rest.startswith(mark):
                self._rest = rest[len(mark) :]
                return True
        if not end and (not rest or any(mark.startswith(rest) for mark in self._form.closings)):
            return False
        self._state = self._bare if self._form.more else self._say
        return True


class HarmonyReader(Reader):
    """An answer of gpt-oss: messages, each with a header that names its channel and whom it is for.

    Analysis is thinking; what is for ``functions.name`` calls it; all else is for the user.
    """

    marks = _HARMONY
    _ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")

    def __init__(self, prompt, tools, seed):
        super().__init__(tools, seed)
        self._tools = bool(tools)
        self._header = ""
        self._channel = self._recipient = None
        self._state = self._head
        begun = prompt.rpartition("<|start|>assistant")[2] if "<|start|>assistant" in prompt else ""
        if begun and not any(mark in begun for mark in ("<|end|>", "<|call|>", "<|return|>")):
            self.feed(begun)

    def _read(self, end):
        while self._state(end):
            pass

    def _head(self, end):
        rest = self._rest.lstrip(SPACE)
        starts = ("<|start|>", "<|channel|>", "<|message|>", "to=")
        if not rest or not end and any(start.startswith(rest) for start in starts):
            return self._give_up() if end else False
        if not rest.startswith(starts):
            return self._begin("", "final", None)  # it speaks without a header
        at = rest.find("<|message|>")
        if at < 0:
            return self._give_up() if end else False
        header, self._rest = rest[: at + len("<|message|>")], rest[at + len("<|message|>") :]
        channel = re.search(r"<\|channel\|>\s*([\w-]+)", header)
        recipient = re.search(r"\bto=([^\s<]+)", header)
        return self._begin(header, channel[1] if channel else "final", recipient[1] if recipient else None)

    def _begin(self, header, channel, recipient):
        self._header, self._channel, self._recipient = header, channel, recipient
        self._state = self._body
        if recipient is None:
            (self._thoughts if channel == "analysis" else self._text).paragraph()
        return True

    def _body(self, end):
        found = [(at, mark) for mark in self._ENDS if (at := self._rest.find(mark)) >= 0]
        at, mark = min(found, default=(-1, ""))
        if self._recipient is not None and not found and not end:
            return False  # a call is read as a whole
        sure = at if found else len(self._rest) if end else _sure(self._rest, self._ENDS)
        said, self._rest = self._rest[:sure], self._rest[sure:]
        if self._recipient is not None:
            self._address(said)
        elif self._channel == "analysis":
            self._thoughts.put(said)
        else:
            self._text.put(said)
        if found:
            if mark not in ("<|start|>", "<|channel|>"):  # those begin the next header
                self._rest = self._rest[len(mark) :]
            self._state = self._head
        return bool(found)

    def _address(self, said):
        """A message for a tool."""
        try:
            if not self._tools:
                raise Broken
            call = make_call(self._recipient.removeprefix("functions."), Cursor(said, 0).value(last=True))
        except (Broken, More):
            self._text.paragraph()
            self._text.put(self._header + said)
        else:
            self._take_calls([call])

    def _give_up(self):
        """A header that was cut off."""
        self._text.put(self._rest)
        self._rest = ""
        return False


def _sure(text, marks):
    """How much of a text no mark can begin in that more text would complete."""
    sure = len(text)
    for mark in marks:
        at = max(0, len(text) - len(mark) + 1)
        while (at := text.find(mark[0], at, sure)) >= 0:
            if mark.startswith(text[at:]):
                sure = at
                break
            at += 1
    return sure
