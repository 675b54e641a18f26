"""The command: output, exit status, one clear line per error."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from numainfer.cli import main as cli
from numainfer.cli.main import main
from numainfer.gguf.sources import resolve

COMMAND = [sys.executable, "-m", "numainfer"]


def run(*args, **more):
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=120, check=False, **more)


def test_run_streams_an_answer():
    done = run("run", "--raw", "The capital of France is", "-n", 8)
    assert done.returncode == 0 and "Paris" in done.stdout and done.stdout.endswith("\n")
    line = done.stderr.strip().splitlines()
    assert len(line) == 1 and "tokens/s" in line[0] and "threads" in line[0]


def test_run_with_a_model_and_options_anywhere(tiny_path, capsys):
    more = ["--raw", "abc", "-q", "--ignore-eos", "--json", "--logprobs", "1"]
    assert main(["run", str(tiny_path), "-n", "3", *more]) == 0
    out, err = capsys.readouterr()
    done = json.loads(out)
    assert len(done["token_ids"]) == len(done["logprobs"]) == 3 and done["finish_reason"] == "length" and err == ""
    assert done["usage"]["prompt_tokens"] == 3


def test_run_uses_the_chat_template_unless_raw(tiny_path, capsys):
    tokens = {}
    for name, more in (("chat", []), ("system", ["--system", "Be brief."]), ("raw", ["--raw"])):
        assert main(["run", str(tiny_path), "abc", "-n", "1", "-q", "--json", *more]) == 0
        tokens[name] = json.loads(capsys.readouterr().out)["usage"]["prompt_tokens"]
    assert tokens["raw"] < tokens["chat"] < tokens["system"]


def test_run_reads_stdin(tiny_path):
    done = run("run", tiny_path, "-", "--raw", "--json", "-q", "-n", 1, input="hello there")
    assert done.returncode == 0 and json.loads(done.stdout)["usage"]["prompt_tokens"] > 3


class Asked(Exception):
    """What ``run`` would have loaded."""


@pytest.fixture
def meant(tmp_path, monkeypatch):
    """``meant(word, stdin)``: the model that ``run word`` loads, and the status and last line of an end without loading."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    loaded = []

    def load(args, source):
        loaded.append(source)
        raise Asked

    monkeypatch.setattr(cli, "load", load)

    def meant(word, stdin="text"):
        monkeypatch.setattr(sys, "stdin", stdin if stdin is None else io.StringIO(stdin))
        loaded.clear()
        status = main(["run", word])
        return loaded[0] if loaded else status

    return meant


@pytest.mark.parametrize("word", [
    "smollm2", "SmolLM2-135M", "gemma3", "x.gguf", "there", "folder", "org/repo", "org/repo:Q4_K_M", "./x", "/no/such dir/x.gguf",
    "~/x", "ollama:some", "pulled", "pulled:latest",
])  # fmt: skip
def test_one_word_that_is_a_model(word, meant, tmp_path):
    (tmp_path / "there").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.gguf").write_bytes(b"")
    manifest = tmp_path / "ollama/manifests/registry.ollama.ai/library/pulled/latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'0' * 64}"}]}))
    (tmp_path / "ollama/blobs").mkdir()
    (tmp_path / f"ollama/blobs/sha256-{'0' * 64}").write_bytes(b"")
    assert meant(word) == word
    assert meant(word, None) == 2  # no stdin, no prompt


@pytest.mark.parametrize("word", ["Hello", "Explain TCP/IP.", "What is in model.gguf", "docs", "Hello:there", "smollm2 is what?", "-"])
def test_one_word_that_is_a_prompt(word, meant, tmp_path):
    (tmp_path / "docs").mkdir()
    assert meant(word) == "smollm2"


def test_a_model_alone_reads_stdin(tiny_path):
    def prompt_tokens(text, *words):
        done = run("run", *words, "--raw", "--json", "-q", "-n", 1, input=text)
        assert done.returncode == 0
        return json.loads(done.stdout)["usage"]["prompt_tokens"]

    assert prompt_tokens("hello there", tiny_path) == prompt_tokens("hello there", tiny_path, "-") > prompt_tokens("hi", tiny_path) > 0


def test_a_model_alone_in_a_terminal_lacks_a_prompt(tiny_path):
    parent, child = pty.openpty()
    try:
        done = run("run", tiny_path, stdin=child)
    finally:
        os.close(parent)
        os.close(child)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith("the prompt is missing: numainfer run MODEL PROMPT")


@pytest.mark.parametrize("args, status, says", [
    (["rum"], 2, "did you mean run?"),
    (["run"], 2, "PROMPT"),
    (["run", "a", "b", "c"], 2, "quotes"),
    (["run", "TINY", "x", "--temperature", "nan"], 2, "temperature = nan"),
    (["run", "TINY", "x", "--max-tokens", "0"], 2, "max_tokens = 0"),
    (["run", "TINY", "x", "--max-tokens", "many"], 2, "invalid int value"),
    (["run", "TINY", "x", "--raw", "--system", "s"], 2, "--system"),
    (["run", "TINY", "x", "--logprobs", "2"], 2, "--logprobs goes with --json"),
    (["run", "TINY", "x", "--nodes", "zero"], 2, "--nodes"),
    (["run", "TINY", "x", "--cpus", "zero"], 2, "--cpus 'zero'"),
    (["run", "TINY", "x", "--cpus", "0,99999"], 2, "cpus = [0, 99999]: there is no CPU 99999"),
    (["run", "TINY", "x", "--cpus", "0", "--threads", "2"], 2, "cpus = [0]: they are for 1 thread, but threads = 2"),
    (["run", "TINY", "x", "--frobnicate"], 2, "frobnicate"),
    (["run", "TINY", "x", "--temprature=1"], 2, "did you mean --temperature?"),
    (["run", "TINY", " ", "-q"], 1, "the prompt is empty"),
    (["run", "https://example.org/a/b.gguf", "x"], 1, "is a URL"),
    (["run", "TINY", "x", "--nodes", "77"], 2, "nodes"),
    (["run", "TINY", "x", "--threads", "100000"], 2, "threads"),
    (["run", "TINY", "x", "-t", "0"], 2, "threads = 0"),
    (["run", "TINY", "x", "-c", "0"], 2, "n_ctx = 0"),
    (["run", "TINY", "x", "--placement", "everywhere"], 2, "placement = 'everywhere'"),
    (["bench", "TINY", "--placement", "everywhere"], 2, "placement = 'everywhere'"),
    (["info", "TINY", "-t", "100000"], 2, "threads = 100000"),
    (["topology", "--measure", "-t", "100000"], 2, "threads = 100000"),
    (["chat", "TINY", "--logprobs", "2"], 2, "--logprobs"),
    (["run", "no-such-model.gguf", "x"], 1, "no-such-model.gguf"),
    (["run", "TINY", "x" * 3000, "-q"], 1, "n_ctx"),
    (["run", "TINY", "", "--raw", "-q"], 1, "empty"),
    (["info", "/no/such.gguf"], 1, "/no/such.gguf"),
    (["bench", "TINY", "-p", "9999", "-q"], 1, "n_prompt = 9999"),
    (["topology", "x"], 2, "x"),
])  # fmt: skip
def test_errors_are_one_line(args, status, says, tiny_path, capsys):
    assert main([str(tiny_path) if a == "TINY" else a for a in args]) == status
    out, err = capsys.readouterr()
    assert says in err.splitlines()[-1] and out == "" and "Traceback" not in err
    if status == 1:
        assert len(err.splitlines()) == 1 and err.startswith("numainfer: error: ")


def test_no_template_no_chat(capsys):
    assert main(["chat", "gemma3", "-q"]) == 1
    assert "chat template" in capsys.readouterr().err


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("numainfer 0.")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("run", "chat", "models", "bench", "topology", "info", "tokenize"):
        assert name in text
        assert main([name, "--help"]) == 0
        assert f"numainfer {name}" in capsys.readouterr().out


def test_alone_it_lists_its_commands(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (help_, _, _) in cli._COMMANDS.items():
        assert f"  {name:9} {help_}" in lines


def test_models(tmp_path, monkeypatch, capsys):
    """Every name that it lists loads; what is broken or not here is said, and ends nothing."""
    folder = tmp_path / "ollama/manifests/registry.ollama.ai/library"
    layers = {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'0' * 64}"}]}
    for name in ("fine", "broken", "gone"):
        (folder / name).mkdir(parents=True)
        (folder / name / "latest").write_text(json.dumps(layers).replace("0" * 64, {"fine": "0", "broken": "1", "gone": "2"}[name] * 64))
    blobs = tmp_path / "ollama/blobs"
    blobs.mkdir()
    (blobs / f"sha256-{'0' * 64}").write_bytes(resolve("smollm2").read_bytes()[: 40 << 20] + bytes(60 << 20))
    (blobs / f"sha256-{'1' * 64}").write_bytes(b"no model")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where gemma3's parts have not been put together
    assert main(["models", "--json"]) == 0
    found = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert found["smollm2"] == {"name": "smollm2", "kind": "package", "path": str(resolve("smollm2")), "architecture": "llama",
                                "type": "Q4_1", "n_bytes": 96576768, "parameters": 134515008, "context_length": 8192}  # fmt: skip
    assert found["ollama:fine:latest"]["type"] == "Q4_1" and resolve("ollama:fine:latest") == Path(found["ollama:fine:latest"]["path"])
    assert "not a GGUF file" in found["ollama:broken:latest"]["error"] and "missing" in found["ollama:gone:latest"]["error"]
    assert "first use" in found["gemma3"]["missing"] and not (tmp_path / "cache").exists()
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["smollm2", "Q4_1", "llama", "package", "96.6", "MB"] and lines[0].split()[-1] == "size"
    assert any(line.startswith("ollama:broken:latest: ") for line in lines)


@pytest.mark.parametrize("words", [["tokenize", "smollm2", "名 é"], ["tokenize", "smollm2", "名 é", "--json"], ["models"],
                                   ["run", "smollm2", "Say 你好 €", "-n", "12", "-q"],
                                   ["run", "smollm2", "€", "--raw", "--json", "-n", "12", "-q", "--logprobs", "3"]])  # fmt: skip
def test_letters_that_the_terminal_lacks(words):
    done = run(*words, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout and "Error" not in done.stderr
    if "--json" in words:
        json.loads(done.stdout)


def test_json_in_a_terminal_of_few_letters(tiny_path, tmp_path):
    path = tmp_path / "é名🙂.gguf"
    os.link(tiny_path, path)
    done = run("info", path, "--json", "--no-measure", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout)["path"] == str(path) and "é名🙂".encode("ascii", "backslashreplace").decode() not in done.stdout
    done = run("info", path, "--json", "--no-measure", env=os.environ | {"PYTHONIOENCODING": "utf-8"}, encoding="utf-8")
    assert "é名🙂" in done.stdout


def test_json_of_names_that_are_no_text(tiny_path, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.gguf"
    os.link(tiny_path, path)
    done = subprocess.run([*COMMAND, "info", path, "--json", "--no-measure"], capture_output=True, timeout=120, check=True)
    assert os.fsencode(json.loads(done.stdout)["path"]) == path
    assert subprocess.run([*COMMAND, "info", path, "--no-measure"], capture_output=True, timeout=120, check=True).stdout


def test_a_question_from_a_pipe(tiny_path):
    """As ``echo "..." | numainfer run MODEL -`` in a script: the answer alone on stdout."""
    done = subprocess.run(f'echo "Hello there" | {sys.executable} -m numainfer run {tiny_path} - -n 5 --ignore-eos | cat', shell=True,
                          capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
    assert done.stdout.strip() and "tokens/s" in done.stderr and "tokens/s" not in done.stdout


def test_a_pipe_of_no_text(tiny_path):
    done = subprocess.run([*COMMAND, "run", tiny_path, "-"], input=b"ab\xff", capture_output=True, timeout=120, check=False)
    assert done.returncode == 1 and done.stderr.startswith(b"numainfer: error: standard input is no text in utf-8, from index 2 on")


def test_topology(capsys):
    assert main(["topology"]) == 0
    assert "node" in capsys.readouterr().out


def test_info_loads_no_weights(capsys, monkeypatch):
    monkeypatch.setattr("numainfer.engine.engine.Engine.__init__", None)
    assert main(["info", "smollm2"]) == 0
    out = capsys.readouterr().out
    for text in ("llama", "134.5M", "Q4_1", "8192", "49152", "96.6 MB"):
        assert text in out
    assert main(["info", "smollm2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head_count_kv"] == 3


def test_tokenize(capsys):
    assert main(["tokenize", "smollm2", "Hello world"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(None, 1)[1] for line in lines] == ["'Hello'", "' world'"]
    assert main(["tokenize", "gemma3", "Hi", "--json"]) == 0
    with_bos = json.loads(capsys.readouterr().out)
    assert main(["tokenize", "gemma3", "Hi", "--json", "--no-special"]) == 0
    assert json.loads(capsys.readouterr().out) == with_bos[1:]


def test_a_closed_pipe_is_quiet(tiny_path):
    process = subprocess.Popen([*COMMAND, "run", str(tiny_path), "abc", "--raw", "-n", "200", "--ignore-eos", "-q"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 141 and err == b""


def test_ctrl_c_ends_a_run():
    process = subprocess.Popen([*COMMAND, "run", "Tell me a long story.", "-n", "5000", "--ignore-eos"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err
    assert out.endswith(b"\n")
