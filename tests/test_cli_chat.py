"""The command ``chat``: real processes, in a pipe and in a terminal."""

import json
import os
import pty
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import time

import pytest
from gguf_tools import pair

from numainfer.cli.chat import DEFAULTS
from numainfer.cli.prompting import HISTORY, history_path

COMMAND = [sys.executable, "-m", "numainfer", "chat"]


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The user's state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def pipe(text, *args):
    return subprocess.run([*COMMAND, *map(str, args)], input=text, capture_output=True, text=True, timeout=120, check=False)


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, *args, term="xterm"):
        self.parent, child = pty.openpty()
        env = os.environ | {"TERM": term, "INPUTRC": "/dev/null"}
        command = [*COMMAND, *map(str, args)]
        self.process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True, env=env)
        os.close(child)
        self.text = ""

    def until(self, pattern, seconds=60, again=lambda: None):
        """What comes up to where the pattern matches, which is taken off; `again` is called whenever nothing comes for two seconds."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text, re.DOTALL)):
            assert time.monotonic() < end and self.process.poll() is None, self.text
            if select.select([self.parent], [], [], 2)[0]:
                self.text += os.read(self.parent, 4096).decode(errors="replace")
            else:
                again()
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def prompt(self, **how):
        return self.until(r"(\r|\n|h)> $", **how)  # h: the end of \x1b[?2004h

    def type(self, text):
        os.write(self.parent, text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.type("\x04")
                assert self.process.wait(30) == 0 and "Traceback" not in self.text
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.parent)


# ---- in a pipe ---------------------------------------------------------------------------------


def test_answers_from_a_pipe():
    done = pipe("My name is Ada.\n\nWhat is my name?\n", "-n", 20, "-q", "--temperature", 0)
    assert done.returncode == 0 and len(done.stdout.strip()) > 10 and done.stderr == ""


def test_only_what_is_new_is_computed_and_its_speed_told():
    done = pipe("My name is Ada, and I like cats more than dogs.\nYes\n", "-n", 12, "--temperature", 0)
    told = r"\[prompt (\d+) tokens?, [\d.]+ tokens/s; answer \d+ tokens, [\d.]+ tokens/s; context \d+ of 8192\]"
    first, second = (int(n) for n in re.findall(told, done.stderr))
    assert first > 30 > second


def test_sampling_is_told_at_the_start(tiny_path):
    told = pipe("", tiny_path).stderr
    assert all(f"{name} {value}" in told for name, value in DEFAULTS.items()) and "chat's own" in told
    told = pipe("", tiny_path, "--temperature", 0.25, "--top-k", 7).stderr
    assert "temperature 0.25" in told and "top_k 7" in told and "top_p 0.95" in told


def test_the_files_own_sampling(tiny_path, tmp_path):
    own = [pair("general.sampling.temp", "FLOAT32", 0.3), pair("general.sampling.top_k", "INT32", 20),
           pair("general.sampling.min_p", "FLOAT32", 7.0)]  # fmt: skip
    fill = -len(b"".join(own) + pair("x", "STRING", "")) % 32  # whole steps of the alignment, so that the data stays where it is
    raw = tiny_path.read_bytes()
    (n_keys,) = struct.unpack_from("<Q", raw, 16)
    path = tmp_path / "own.gguf"
    path.write_bytes(raw[:16] + struct.pack("<Q", n_keys + 4) + b"".join(own) + pair("x", "STRING", "y" * fill) + raw[24:])
    told = pipe("/set", path)
    assert "[temperature 0.3, top_k 20 (the file's defaults" in told.stderr
    assert told.stdout.startswith("temperature 0.3, top_k 20, top_p 1.0, min_p 0.0,")  # 7.0 is none
    assert "[temperature 0.5, top_k 20 (" in pipe("", path, "--temperature", 0.5).stderr


def test_lines_that_are_one_turn(tiny_path, tmp_path):
    path = tmp_path / "said.json"
    text = 'one\\\ntwo\n"""\nthree\n\\\n/reset\n"""\n"""/reset"""\n/etc/fstab\n /undo\n\n  \n/save ' + f'{path}\n"""five\nsix'
    done = pipe(text, tiny_path, "-n", 1, "--ignore-eos", "-q", "-c", 200)
    assert done.returncode == 0 and done.stdout.count("\n") == 6, done  # in an answer any other character may part lines
    said = [m["content"] for m in json.loads(path.read_text()) if m["role"] == "user"]
    assert said == ["one\ntwo", "three\n\\\n/reset", "/reset", "/etc/fstab", " /undo"]


def test_commands(tiny_path, tmp_path):
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    lines = ["/undo", "hi", "ho", f"/save {a}", "/undo", "/system Be brief.", f"/save {a}", f"/save {b}", "/system", "/reset", f"/save {c}",
             '/system ""', "/system", "/help", "/frob", "/undo", "/save", f"/save {tmp_path}/no/such"]  # fmt: skip
    c.write_text("mine")
    done = pipe("\n".join(lines), tiny_path, "-n", 1, "--ignore-eos", "-q", "-c", 200, "--system", "Be long.")
    assert done.returncode == 0
    assert [m["role"] for m in json.loads(a.read_text())] == ["system", "user", "assistant"]
    assert json.loads(a.read_text()) == json.loads(b.read_text()) and json.loads(b.read_text())[0]["content"] == "Be brief."
    assert c.read_text() == "mine"  # another's file is never written over
    for text in ("Be brief.\n", "[no system message", "/undo  ", "/exit  ", "Ctrl-D ends"):
        assert text in done.stdout
    for text in ("[taken back: ho]", "there is no command /frob", "FILE.json is for programs", f"exists: '{c}'", "No such file"):
        assert text in done.stderr, text
    assert done.stderr.count("there is nothing to undo") == 2


@pytest.mark.parametrize("end", ["/exit", "/quit", "/bye"])
def test_the_end(end, tiny_path):
    done = pipe(f"{end}\n/frob\n", tiny_path, "-n", 1, "-c", 200, "-q")
    assert done.returncode == 0 and "/frob" not in done.stderr and done.stdout == ""


def test_set(tiny_path):
    lines = ["/set", "/set temperature 0", "/set top-k 3", "/set keep off", "/set", "/set temperature -1", "/set temperature hot",
             "/set temprature 1", "/set keep maybe", "/set temperature default", "/set max_tokens 1", "hi", "/set max_tokens none",
             "/set"]  # fmt: skip
    done = pipe("\n".join(lines), tiny_path, "--temperature", 0.5, "--ignore-eos", "-q", "-c", 200)
    first, second, _, third = done.stdout.splitlines()
    assert "temperature 0.5," in first and "keep on" in first
    assert "temperature 0.0," in second and "top_k 3," in second and "keep off" in second
    assert "temperature 0.5," in third and "top_k 3," in third and "max_tokens None" in third
    for text in ("temperature = -1.0", "found 'hot', wanted a number", "did you mean temperature?", "wanted on, off or ask"):
        assert text in done.stderr, text


def test_set_stop_and_ignore_eos():
    options = ("smollm2", "-q", "-n", 9, "--ignore-eos", "-c", 300)
    answer = pipe("/set temperature 0\nhi\n", *options).stdout.rstrip("\n")
    stop = answer[len(answer) // 2 :][:3]
    lines = ["/set temperature 0", "/set", f'/set stop "{stop}" "\\n\\u00e9"', "/set", "hi", "/set stop END OF IT", "/set",
             "/set stop none", "/set ignore_eos off", "/set", '/set stop "a', '/set stop "a" b', "/set stop [1]", "/set ignore-eos maybe",
             "/set ignore-eos", '/set stop ""', "/set stop", "/set ignore_eos default", "/set"]  # fmt: skip
    done = pipe("\n".join(lines), *options)
    shown = [line[line.index("stop") :] for line in done.stdout.splitlines() if ", keep on" in line]
    wanted = ("none, ignore_eos on", f'"{stop}" "\\né", ignore_eos on', '"END OF IT", ignore_eos on', "none, ignore_eos off",
              "none, ignore_eos on")  # fmt: skip
    assert shown == [f"stop {text}, keep on" for text in wanted]
    assert answer.partition(stop)[0] in done.stdout and answer not in done.stdout
    for text in ("found '\"a', wanted a text, or texts in quotes", "found 'b', wanted a text", "found 'maybe', wanted on or off",
                 "found '', wanted on or off"):  # fmt: skip
        assert text in done.stderr, text


def test_a_full_context_says_how_to_go_on(tiny_path, tmp_path):
    path = tmp_path / "said.md"
    done = pipe(f"hi\nho\n/save {path}\n/undo\n/undo\n{'x' * 80}\n/set max_tokens 2\nhi\n", tiny_path, "-c", 60, "--ignore-eos")
    told = [line for line in done.stderr.splitlines() if line.startswith("numainfer: ")]
    full, dropped, nothing, too_long = told
    assert "nothing to undo" in nothing
    assert "context of 60 tokens is full" in full
    assert "n_ctx = 60" in dropped and "n_ctx = 60" in too_long and "The question was dropped" in dropped
    for line in (full, dropped, too_long):
        assert "/undo" in line and "/reset" in line and "numainfer chat -c 256" in line
    assert path.read_text().count("## user") == 1 and "## assistant" in path.read_text()
    assert "answer 2 tokens" in done.stderr  # it lives again


def test_ctrl_c_in_a_pipe_ends_it(tiny_path):
    process = subprocess.Popen([*COMMAND, "--ignore-eos", "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"Tell me a story.\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err


# ---- in a terminal -----------------------------------------------------------------------------


@pytest.mark.parametrize("keep, kept", [(None, 2), ("on", 2), ("off", 0), ("ask\n", 2), ("ask n\n", 0)])
def test_ctrl_c_stops_an_answer(state, tmp_path, keep, kept):
    path = tmp_path / "said.json"
    with Terminal("-q", "--ignore-eos", "--temperature", 0) as chat:
        chat.prompt()
        if keep:
            chat.type(f"/set keep {keep.split()[0]}\n")
            chat.prompt()
        chat.type("Tell me a very long story.\n")
        chat.until(r"story\.\r\n.{60}")
        chat.interrupt()
        if keep and keep.startswith("ask"):
            chat.until(r"\[Y/n\] ")
            chat.type(keep.removeprefix("ask").strip() + "\n")
        assert "[stopped" in chat.prompt()
        chat.type(f"/save {path}\n")
        chat.prompt()
    assert len(json.loads(path.read_text())) == kept


def test_ctrl_c_forgets_the_line(state, tmp_path, tiny_path):
    path = tmp_path / "said.json"
    with Terminal(tiny_path, "-q", "-n", 1, "--ignore-eos") as chat:
        chat.prompt()
        chat.type('"""\nabc\n')
        chat.until(r"abc.*\.\.\. $")
        chat.interrupt()
        chat.prompt(again=chat.interrupt)  # Python sees a signal that comes just before it waits for a key with the next key only
        chat.type("hi\n")
        chat.prompt()
        chat.type(f"/save {path}\n")
        chat.prompt()
    assert [m["content"] for m in json.loads(path.read_text()) if m["role"] == "user"] == ["hi"]


def test_what_is_pasted_is_one_turn(state, tmp_path, tiny_path):
    path = tmp_path / "said.json"
    with Terminal(tiny_path, "-q", "-n", 1, "--ignore-eos") as chat:
        assert "\x1b[?2004h" in chat.prompt()  # the terminal is asked to mark what is pasted
        chat.type("\x1b[200~/one two\nthree\n\nfour\x1b[201~\r")
        chat.prompt()
        chat.type(f"/save {path}\n")
        chat.prompt()
    assert [m["content"] for m in json.loads(path.read_text()) if m["role"] == "user"] == ["/one two\nthree\n\nfour"]


def test_history_across_runs(state, tmp_path, tiny_path):
    path = tmp_path / "said.json"
    for text in ("first", "first", "second\\\nhalf"):
        with Terminal(tiny_path, "-q", "-n", 1, "--ignore-eos") as chat:
            chat.prompt()
            chat.type(f"{text}\n")
            chat.prompt()
    file = state / "numainfer" / "chat_history"
    assert [json.loads(line) for line in file.read_text().splitlines()] == ["first", "second\nhalf"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with Terminal(tiny_path, "-q", "-n", 1, "--ignore-eos") as chat:
        chat.prompt()
        for key in ("\x1b[A", "\x1b[A\x1b[A\x1b[A"):  # up: the latest; up again, to the first that there is
            chat.type(f"{key}\r")
            chat.prompt()
        chat.type(f"/save {path}\n")
        chat.prompt()
    assert [m["content"] for m in json.loads(path.read_text()) if m["role"] == "user"] == ["second\nhalf", "first"]


def test_a_long_history_is_cut(state, tiny_path):
    file = state / "numainfer" / "chat_history"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f'"turn {i}"\n' for i in range(2 * HISTORY)) + "no JSON\n")
    with Terminal(tiny_path, "-q") as chat:
        chat.prompt()
    lines = file.read_text().splitlines()
    assert len(lines) == HISTORY - 1 and lines[-1] == f'"turn {2 * HISTORY - 1}"'


def test_no_history_without_home_or_with_one_that_cannot_be_written(tmp_path, monkeypatch, tiny_path):
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_path() == tmp_path / ".local/state/numainfer/chat_history"
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert history_path() is None
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with Terminal(tiny_path, "-q", "-n", 1, "--ignore-eos") as chat:
        chat.prompt()
        chat.type("hi\n")
        assert "numainfer" not in chat.prompt()
