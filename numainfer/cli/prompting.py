"""Reads a user's turns: lines, several of them as one, with a history across runs."""

import json
import logging
import os
import sys
from pathlib import Path

HISTORY = 1000  # turns that are remembered
_QUOTES = '"""'


class Prompter:
    """Turns from standard input; where somebody types them, with a prompt, line editing and history.

    Attributes
    ----------
    asks : bool
        Whether somebody sits there.
    quoted : bool
        Whether the last turn stood between quotes: it is a text, whatever it looks like.
    """

    def __init__(self):
        self.asks, self.quoted = sys.stdin.isatty(), False
        self._readline, self._path = None, None
        if self.asks:
            try:
                import readline  # gives input() its editing
            except ImportError:
                return
            self._readline, self._path = readline, history_path()
            readline.set_auto_history(False)  # a turn of several lines is one entry
            readline.parse_and_bind("set enable-bracketed-paste on")  # Python's own prompt turns it off: what is pasted is one line then
            for text in _read(self._path):
                readline.add_history(text)

    def turn(self):
        """The next turn's text, which may have several lines; None at the end of the input.

        Ctrl-C where somebody sits forgets what was typed.
        """
        while True:
            try:
                text = self._lines()
            except EOFError:
                if self.asks:
                    print(flush=True)
                return None
            except KeyboardInterrupt:
                if not self.asks:
                    raise
                print(flush=True)
                continue
            if text.strip():
                self._remember(text)
            self.quoted = text.lstrip().startswith(_QUOTES)
            return _unquoted(text) if self.quoted else text

    def answer(self, question):
        """The answer to a question between turns; None where there is none."""
        try:
            return self._line(question)
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            return None

    def _lines(self):
        text = self._line("> ")
        quoted = text.lstrip().startswith(_QUOTES)

        def goes_on():
            return not _closed(text.strip()) if quoted else text.endswith("\\")

        while goes_on():
            try:
                line = self._line("... ")
            except EOFError:  # what there is counts; the next turn meets the end again
                break
            text = f"{text}\n{line}" if quoted else f"{text[:-1]}\n{line}"
        return text

    def _line(self, prompt):
        try:
            return input(prompt if self.asks else "")
        except UnicodeDecodeError as e:
            raise ValueError(f"standard input is no text in {e.encoding} (PYTHONIOENCODING names another encoding)") from e

    def _remember(self, text):
        if self._readline is None:
            return
        n = self._readline.get_current_history_length()
        if n and self._readline.get_history_item(n) == text:
            return
        self._readline.add_history(text)
        _append(self._path, text)


def _closed(text):
    return len(text) >= 2 * len(_QUOTES) and text.endswith(_QUOTES)


def _unquoted(text):
    inner = text.strip()
    return inner[3 : -3 if _closed(inner) else None].strip("\n")


# ---- history: a JSON string per line, since a turn may have several ----------------------------------------------------


def history_path():
    """Where turns are remembered: ``numainfer/chat_history`` in XDG_STATE_HOME; None where this user has no home."""
    folder = os.environ.get("XDG_STATE_HOME", "")  # the XDG specification says to ignore relative paths
    if os.path.isabs(folder):
        return Path(folder) / "numainfer" / "chat_history"
    try:
        return Path.home() / ".local" / "state" / "numainfer" / "chat_history"
    except RuntimeError:
        return None


def _read(path):
    """The last turns, oldest first; a file of many more is cut to them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path else []
    except (OSError, ValueError):
        return []
    found = []
    for line in lines[-HISTORY:]:
        try:
            text = json.loads(line)
        except ValueError:  # two that wrote at once, or a full disk
            continue
        if isinstance(text, str):
            found.append(text)
    if len(lines) > 2 * HISTORY:
        try:
            new = path.with_suffix(f".{os.getpid()}")
            new.touch(mode=0o600)
            new.write_text("".join(json.dumps(text) + "\n" for text in found), encoding="utf-8")
            os.replace(new, path)
        except OSError as e:
            _no_history(e)
    return found


def _append(path, text):
    """Add a turn; only this user may read it.  A disk that cannot be written costs the history and nothing else."""
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(json.dumps(text) + "\n")
    except OSError as e:
        _no_history(e)


def _no_history(error):
    logging.getLogger("numainfer").debug("the history of chat was not written: %s", error)
