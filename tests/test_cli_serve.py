"""``numainfer serve``: the command, its signals, and ``llm``, which speaks with it as with OpenAI."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import numainfer as ni
from numainfer.cli.main import main

ROOT = Path(__file__).parents[1]


class Running:
    """``numainfer serve`` in a process of its own, on a free port."""

    def __init__(self, *args, env=None):
        command = [sys.executable, "-m", "numainfer", "serve", "--port", "0", *map(str, args)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path} | (env or {}))
        self.said = ""
        while "/v1" not in self.said.splitlines()[-1:][0] if self.said else True:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = re.search(r"http://\S+/v1", self.said)[0]

    def get(self, path, body=None, **headers):
        """(status, JSON)."""
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, raw, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as e:
            with e:
                return e.code, json.loads(e.read())

    def wait_listening(self):
        """Wait until it takes connections."""
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                return self.get("/health")
            assert time.monotonic() < end
            time.sleep(0.02)

    def end(self, number=signal.SIGTERM):
        """(exit status, what it said from then on) after a signal."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said


@contextlib.contextmanager
def running(*args, **more):
    found = Running(*args, **more)
    try:
        found.wait_listening()
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


def test_it_serves_and_ends_by_sigterm_and_ctrl_c(tiny_path, tiny_model):
    for number in (signal.SIGTERM, signal.SIGINT):
        with running(tiny_path, "-c", 200) as server:
            assert server.url.startswith("http://127.0.0.1:") and "2 threads" in server.said or "thread" in server.said
            status, models = server.get("/v1/models")
            assert status == 200 and [m["id"] for m in models["data"]] == [tiny_path.stem]
            reply = server.get("/v1/completions", {"prompt": "the", "temperature": 0, "max_tokens": 8})[1]
            assert reply["choices"][0]["text"] == tiny_model.generate("the", max_tokens=8).text
            assert "n_ctx = 200" in server.get("/v1/completions", {"prompt": [5] * 201})[1]["error"]["message"]
            assert server.end(number) == (0, "")


def test_its_options_arrive(tiny_path):
    options = ["--name", "one", "--name", "two", "--max-body", 500, "--max-prompt", 9, "--cors", "http://page.example", "-q"]
    with pytest.raises(AssertionError):  # quiet: nothing tells where it is
        Running(tiny_path, *options, "--bad-option")
    with running(tiny_path, *options[:-1], env={"NUMAINFER_API_KEY": "from the environment"}) as server:
        key = {"Authorization": "Bearer from the environment"}
        assert server.get("/v1/models")[0] == 401
        assert [m["id"] for m in server.get("/v1/models", **key)[1]["data"]] == ["one", "two"]
        assert server.get("/v1/completions", {"prompt": "a" * 600}, **key)[0] == 413
        assert "at most 9" in server.get("/v1/completions", {"prompt": [5] * 10}, **key)[1]["error"]["message"]
        assert server.end()[0] == 0


def test_sigterm_lets_an_answer_finish_or_cuts_it(tiny_path):
    with running(tiny_path, "--grace", 20) as server:
        host, port = server.url.split("/")[2].split(":")
        body = json.dumps({"prompt": "a", "max_tokens": None, "ignore_eos": True, "stream": True}).encode()
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip
            got = sock.recv(65536)
            server.process.send_signal(signal.SIGTERM)
            while part := sock.recv(65536):
                got += part
        assert b"[DONE]" in got
        assert server.process.wait(20) == 0


def test_an_address_that_is_taken_is_told_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "no/such/model", "--port", str(port)]) == 1
        assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    assert main(["serve", "--host", "no.such.host.example", "--port", "0"]) == 1
    assert "cannot listen on no.such.host.example" in capsys.readouterr().err


@pytest.mark.parametrize("args, says", [
    (["--port", "70000"], "--port 70000: must be from 0 to 65535"), (["--api-key", " "], "--api-key: is empty"),
    (["--max-body", "0"], "body = 0"), (["--grace", "-1"], "grace = -1"), (["--prot", "1"], "did you mean --port"),
])  # fmt: skip
def test_wrong_usage(capsys, args, says):
    assert main(["serve", "smollm2", *args]) == 2
    assert says in capsys.readouterr().err


def test_who_listens_to_everybody_without_a_key_is_warned(tiny_path):
    with running(tiny_path, "--host", "0.0.0.0") as server:
        assert "whoever reaches http://0.0.0.0" in server.said
    with running(tiny_path, "--host", "::1") as server:
        assert "whoever" not in server.said and "http://[::1]:" in server.url


def test_without_the_extra_it_says_what_to_install(tmp_path):
    for package in ("starlette", "uvicorn", "prometheus_client"):
        blocker = f"import sys; sys.modules[{package!r}] = None; from numainfer.cli.main import main; sys.exit(main(['serve', 'x']))"
        done = subprocess.run([sys.executable, "-c", blocker], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
        assert done.returncode == 1 and f"numainfer serve needs {package}: pip install 'numainfer[serve]'" in done.stderr


def test_importing_numainfer_imports_no_server():
    code = "import sys, numainfer, numainfer.model, numainfer.cli.main; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout.split()
    assert not {m.partition(".")[0] for m in modules} & {"starlette", "uvicorn", "prometheus_client", "anyio", "httpx"}
    assert not [m for m in modules if m.startswith("numainfer.server")]


def test_llm_speaks_with_it(smollm2, tmp_path):
    """By its file of models that speak OpenAI's language."""
    with running("smollm2", "-c", 2048) as server:
        (tmp_path / "extra-openai-models.yaml").write_text(
            f"- model_id: numa\n  model_name: smollm2\n  api_base: {server.url}\n  supports_schema: true\n")  # fmt: skip
        env = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "OPENAI_API_KEY": "x", "PYTHONPATH": str(ROOT)}

        def llm(*words):
            done = subprocess.run([sys.executable, "-m", "llm", *words], env=env, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        greedy = ["-o", "temperature", "0", "-o", "max_tokens", "12"]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a whale?"}]
        expected = smollm2.chat(messages, ni.SamplingParams(max_tokens=12)).text
        assert llm("-m", "numa", "-s", "Be brief.", *greedy, "What is a whale?").strip() == expected.strip() != ""
        assert llm("-c", "--no-stream", *greedy, "And a shark?").strip()
        form = ["--schema", "color str", "-o", "temperature", "0", "-o", "max_tokens", "60"]
        assert "color" in json.loads(llm("-m", "numa", *form, "The sky is blue. Its color?"))
