"""The command ``numainfer chat``: a conversation, line by line."""

import dataclasses
import json
import sys
from pathlib import Path

from . import answering
from .load import add_load, load
from .prompting import Prompter
from ..arguments import did_you_mean
from ..summary import counted

# Where the file has no wishes: greedy small models repeat themselves for ever.
DEFAULTS = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}

def _stops(text):
    """("a", "b") of ``"a" "b"`` as in JSON, or the one text that is not in quotes."""
    if not text.startswith('"'):
        return (text,) if text else ()
    found = []
    try:
        while text:
            stop, end = json.JSONDecoder().raw_decode(text)
            found.append(stop)
            text = text[end:].lstrip(", ")
    except ValueError:
        raise ValueError(f'/set stop: found {text!r}, wanted a text, or texts in quotes like "END" "\\n\\n", or the word none') from None
    return tuple(found)


def _switch(text):
    return {"on": True, "off": False}[text]


_SETTABLE = {flag[2:].replace("-", "_"): kind for flag, kind, _ in answering.SAMPLING if flag != "--logprobs"}
_SETTABLE |= {"max_tokens": int, "stop": _stops, "ignore_eos": _switch}
_NONE = {"seed": None, "max_tokens": None, "stop": ()}
_WANTED = {float: "a number", int: "a whole number", _switch: "on or off"}
_KEEP = ("on", "off", "ask")


def add_chat(parser):
    """Arguments of ``chat``."""
    parser.add_argument("model", nargs="?", default=answering.DEFAULT_MODEL, metavar="MODEL", help=f"default {answering.DEFAULT_MODEL}")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    title = "sampling (by default the file's general.sampling.*, else " + ", ".join(f"{k} {v}" for k, v in DEFAULTS.items()) + ")"
    answering.add_sampling(parser, None, title, ["--logprobs"])  # there is no --json to show them
    add_load(parser)


def chat(args):
    """Talk."""
    from ..errors import ChatTemplateMissing
    from ..serving.params import sampling_of_file

    answering.params(args)  # wrong flags are told of before the model is loaded
    if sys.stdin is None:
        raise OSError("standard input is closed")
    with load(args, args.model) as model, model.session() as session:
        if model.tokenizer.chat_template is None:
            raise ChatTemplateMissing(f"{model.path} has no chat template; numainfer run --raw continues plain text")
        wishes = sampling_of_file(model.metadata)
        conversation = Conversation(model, session, answering.params(args, **wishes or DEFAULTS), answering.system(args), args.quiet)
        conversation.greet("the file's" if wishes else "chat's own")
        conversation.run()
    return 0


class Conversation:
    """Messages, how answers are sampled, and what the lines of the user do to both.

    Parameters
    ----------
    model : Model
    session : Session
        Of that model; it keeps what was computed, so that a turn costs no more than what is new.
    params : SamplingParams
    messages : list of dict
        The beginning: a system message, or nothing.
    quiet : bool
        No line of sampling or speed.
    """

    def __init__(self, model, session, params, messages, quiet):
        self.model, self.session, self.quiet = model, session, quiet
        self.params = self.first_params = params
        self.messages, self.keep, self.saved = messages, "on", set()
        self.prompter, self.over = Prompter(), False

    def greet(self, whose):
        if self.prompter.asks:
            tell(f"{self.model.path.name}. /help lists commands, Ctrl-C stops an answer, Ctrl-D ends.")
        if not self.quiet:
            tell(f"[{_shown(self.params)} ({whose} defaults where no flag says more); context {self.model.n_ctx} tokens; "
                 f"{answering.where(self.model)}]")  # fmt: skip

    def run(self):
        """Until the input ends."""
        while not self.over and (text := self.prompter.turn()) is not None:
            typed = text.split(None, 1)[0] if text.strip() else ""
            word = _OTHER_NAMES.get(typed, typed)
            if not word:
                continue
            # A command begins its line; /etc/fstab is none, nor what stands between quotes.
            called = text.startswith("/") and not self.prompter.quoted
            if called and (word in COMMANDS or "\n" not in text and "/" not in word[1:]):
                self.command(word, text[len(typed) :].strip())
            else:
                self.ask(text)

    # ---- a turn ----------------------------------------------------------------------------------

    def ask(self, text):
        """One question and its answer."""
        from ..errors import ContextOverflow, NumaInferError

        before = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            with self.session.chat(self.messages, self.params, stream=True) as stream:
                stopped = self._show(stream)
            done = stream.result()
        except ContextOverflow as e:
            del self.messages[before:]
            tell(f"numainfer: {e}. The question was dropped. {self._ways_on()}")
            return
        except KeyboardInterrupt:  # before the answer had begun
            del self.messages[before:]
            if not self.prompter.asks:
                raise
            tell("[stopped; the question is forgotten]")
            return
        except (NumaInferError, ValueError) as e:  # a template that refuses the messages, text that is no Unicode
            del self.messages[before:]
            if not self.prompter.asks:
                raise
            tell(f"numainfer: {e}. The question was dropped.")
            return
        if stopped and not (done.text.strip() and self._keeps()):
            del self.messages[before:]
            tell("[stopped; question and answer are forgotten]")
            return
        self.messages.append(done.to_message())
        if stopped:
            tell("[stopped; what came so far is kept: /undo takes it back, /set keep off drops such answers]")
        full = len(self.session.ids) >= self.model.n_ctx
        if not self.quiet:
            tell(f"[{answering.speed(done)}; context {len(self.session.ids)} of {self.model.n_ctx}]")
        if full and done.finish_reason == "length":
            tell(f"numainfer: the context of {self.model.n_ctx} tokens is full, so the answer ends here. {self._ways_on()}")

    def _show(self, stream):
        """Whether Ctrl-C ended it; in a pipe it ends the command."""
        try:
            answering.show(stream)
        except KeyboardInterrupt:
            if not self.prompter.asks:
                raise
            return True
        return False

    def _keeps(self):
        if self.keep != "ask":
            return self.keep == "on"
        return not (self.prompter.answer("Keep what came so far? [Y/n] ") or "y").strip().lower().startswith("n")

    def _ways_on(self):
        trained = self.model.config.context_length or 0
        more = f"; numainfer chat -c {trained} holds more" if trained > self.model.n_ctx else ""
        return f"/undo takes back the last question and its answer, /reset starts again, /save FILE keeps it all{more}."

    # ---- commands --------------------------------------------------------------------------------

    def command(self, word, rest):
        known = COMMANDS.get(word)
        try:
            if known is None:
                near = did_you_mean(word, COMMANDS)
                raise ValueError(f"there is no command {word}; {near} (a text that begins with / may begin with a space)")
            known[2](self, rest)
        except (OSError, TypeError, ValueError) as e:
            tell(f"numainfer: {e}")

    def help(self, rest):
        for usage, help_, _ in COMMANDS.values():
            print(f"{usage:18} {help_}")
        print('A line that ends in \\ goes on in the next; lines between """ and """ are one turn, and so is a text that is pasted.\n'
              "Ctrl-C stops an answer, or forgets the line; Ctrl-D ends.", flush=True)  # fmt: skip

    def exit(self, rest):
        self.over = True

    def reset(self, rest):
        self.messages = self.messages[: self._begin()]
        tell("[a new conversation]")

    def undo(self, rest):
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise ValueError("there is nothing to undo")
        text = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        tell(f"[taken back: {text if len(text) < 60 else text[:57] + '...'}]")

    def system(self, rest):
        begin = self._begin()
        if not rest:
            print(self.messages[0]["content"] if begin else "[no system message; /system TEXT sets one]", flush=True)
            return
        self.messages[:begin] = [] if rest == '""' else [{"role": "system", "content": rest}]
        tell("[the system message is gone]" if rest == '""' else "[the system message is set]")

    def save(self, rest):
        if not rest:
            raise ValueError("/save FILE: the name is missing; FILE.json is for programs, any other name for people")
        path = Path(rest).expanduser()
        text = json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n" if path.suffix == ".json" else _document(self.messages)
        with open(path, "w" if path.absolute() in self.saved else "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        self.saved.add(path.absolute())
        tell(f"[{counted(len(self.messages), 'message')} saved in {path}]")

    def set(self, rest):
        name, _, value = rest.partition(" ")
        name, value = name.lower().replace("-", "_"), value.strip()
        if not name:
            print(f"{_shown(self.params, everything=True)}, keep {self.keep}", flush=True)
            return
        if name == "keep":
            if value not in _KEEP:
                raise ValueError(f"/set keep: found {value!r}, wanted on, off or ask: what becomes of an answer that Ctrl-C stops")
            self.keep = value
        elif name in _SETTABLE:
            self.params = self.params.replace(**{name: self._value(name, value)})
        else:
            raise ValueError(f"there is no setting {name!r}: {did_you_mean(name, [*_SETTABLE, 'keep'])}")
        tell(f"[{name} {value or 'none'}]")

    def _value(self, name, text):
        if text == "default":
            return getattr(self.first_params, name)
        if text == "none" and name in _NONE:
            return _NONE[name]
        kind = _SETTABLE[name]
        if kind is _stops:
            return kind(text)
        try:
            return kind(text)
        except (KeyError, ValueError):
            raise ValueError(f"/set {name}: found {text!r}, wanted {_WANTED[kind]}, or the word default") from None

    def _begin(self):
        """Where the messages behind the system's begin."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")


def _document(messages):
    """The conversation for people: Markdown, a heading per message."""
    return "\n".join(f"## {message['role']}\n\n{message['content']}\n" for message in messages)


def _shown(params, everything=False):
    """"temperature 0.7, top_p 0.95": the parameters that are not SamplingParams' own defaults, or all that can be set."""
    own = {field.name: field.default for field in dataclasses.fields(params)} | {"max_tokens": None}
    shown = {name: getattr(params, name) for name in _SETTABLE if everything or name == "temperature" or getattr(params, name) != own[name]}
    return ", ".join(f"{name} {_written(value)}" for name, value in shown.items())


def _written(value):
    """A setting as /set takes it."""
    if isinstance(value, tuple):
        return " ".join(json.dumps(text, ensure_ascii=False) for text in value) or "none"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def tell(text):
    """What is about the conversation, and no part of it: on stderr, behind all of the answer."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


COMMANDS = {
    "/help": ("/help", "this list", Conversation.help),
    "/reset": ("/reset", "start again; the system message stays", Conversation.reset),
    "/undo": ("/undo", "take back the last question and its answer", Conversation.undo),
    "/system": ("/system [TEXT]", 'set the system message; "" takes it away, nothing shows it', Conversation.system),
    "/set": ("/set [NAME VALUE]", "show or set how answers are sampled; keep on, off, ask: those that Ctrl-C stops", Conversation.set),
    "/save": ("/save FILE", "write the conversation: FILE.json for programs, else Markdown", Conversation.save),
    "/exit": ("/exit", "end, as Ctrl-D does; /quit and /bye, too", Conversation.exit),
}
_OTHER_NAMES = {"/quit": "/exit", "/bye": "/exit"}  # those of other programs
