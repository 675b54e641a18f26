"""Models of the hub that are not here: a local server stands for it, and counts what it is asked for."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    whole = tiny(folder, "llama", "Q8_0").read_bytes()
    parts = sorted((path.name, path.read_bytes()) for path in tiny(folder, "llama", "F32", parts=2).parent.glob("*-of-00002.gguf"))
    return {
        "whole/w-Q8_0.gguf": whole,
        **{f"parts/{name}": data for name, data in parts},
        "strange/s.gguf": whole.replace(b"llama", b"lamma", 1),
        "broken/b.gguf": whole[:1000],
        "blind/tok.gguf": whole.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modem", 1),
        "lacking/l.gguf": whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight", 1),
        "page/p.gguf": b"<!DOCTYPE html>" + bytes(2000),
    }


@pytest.fixture
def hub(files):
    """A hub; ``asked`` has (file, first byte, last byte) of each request for a file, None for a whole one; ``ranges``: it knows them;
    ``status``: what it answers instead; ``gate``: an Event that lets requests go on once three wait; ``alone``: one waited in vain."""
    state = SimpleNamespace(asked=[], ranges=True, status=None, gate=None, waiting=0, alone=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0].rstrip("/")
            api = re.fullmatch(r"/api/models/org/(\w+)(/revision/main)?", path)
            file = re.fullmatch(r"(?:/elsewhere)?/org/(\w+)/resolve/main/(.+)", path)
            if api:
                names = [name.partition("/")[2] for name in files if name.startswith(f"{api[1]}/")]
                told = {"id": f"org/{api[1]}", "sha": "3" * 40, "siblings": [{"rfilename": name} for name in names]}
                self.answer(200, json.dumps(told).encode())
            elif file is None:
                self.answer(404, b"")
            elif state.status and "Range" in self.headers:
                self.answer(state.status, b"")
            elif "Range" in self.headers and not path.startswith("/elsewhere"):  # as the hub does with large files
                self.answer(302, b"", Location=f"{state.endpoint}/elsewhere{self.path}")
            else:
                data = files[f"{file[1]}/{file[2]}"]
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if self.command == "GET":
                    state.asked.append((file[2], *((int(part[1]), int(part[2])) if part and state.ranges else (None, None))))
                if part and state.ranges:
                    self.meet()
                    a, b = int(part[1]), min(int(part[2]), len(data) - 1)
                    self.answer(206, data[a : b + 1], data, **{"Content-Range": f"bytes {a}-{b}/{len(data)}"})
                else:
                    self.answer(200, data, data)

        do_HEAD = do_GET

        def meet(self):
            """With a gate: let nobody go on before three have come."""
            if state.gate is not None:
                state.waiting += 1
                if state.waiting >= 3:
                    state.gate.set()
                state.alone |= not state.gate.wait(20)

        def answer(self, status, body, whole=b"", **headers):
            self.send_response(status)
            etag = f'"{hashlib.sha256(whole).hexdigest()}"'
            for name, value in {"ETag": etag, "X-Repo-Commit": "3" * 40, "Content-Length": len(body), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


@pytest.fixture
def command(hub, tmp_path):
    """``command(words)``: the finished process of ``numainfer words``, whose hub that is."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    env = clean | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "OLLAMA_MODELS": str(tmp_path)}

    def command(*words):
        return subprocess.run([sys.executable, "-m", "numainfer", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)

    return command


@pytest.mark.parametrize("name", ["org/whole:Q8_0", "org/whole/w-Q8_0.gguf", "org/parts"])
def test_info_downloads_nothing(command, hub, files, tmp_path, name):
    here = tmp_path / "here"
    here.mkdir()
    for full, data in files.items():
        (here / full.partition("/")[2]).write_bytes(data)
    folder = re.match(r"org/(\w+)", name)[1]
    first = min(full.partition("/")[2] for full in files if full.startswith(f"{folder}/"))
    wanted = json.loads(command("info", str(here / first), "--json", "--no-measure").stdout)
    found = json.loads(command("info", name, "--json", "--no-measure").stdout)
    assert found.pop("path").startswith("org/") and wanted.pop("path")
    for plan in (found["plan"], wanted["plan"]):
        for site in (*plan["machine"]["sites"], *(node for p in plan["placements"] for node in p["nodes"])):
            site.pop("free", None), site.pop("room", None)
        for p in (plan["machine"]["limits"], *plan["placements"]):
            p.pop("room", None), p.pop("memory", None)
    assert found == wanted
    assert not list((tmp_path / "hf").rglob("*.gguf"))
    assert all(first is not None for _, first, _ in hub.asked)
    assert ", on the hub, not downloaded" in command("info", name, "--no-measure").stdout


def test_only_the_header_and_vectors_are_read(hub, files, monkeypatch):
    """Of a file with more than the first megabyte, no byte of a matrix but those that lie in it."""
    from numainfer.engine.architectures import build
    from numainfer.engine.plan import Plan
    from numainfer.engine.weights import Catalog
    from numainfer.gguf.hub import HubModel
    from numainfer.gguf.sources import resolve

    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda repo, name: f"{hub.endpoint}/{repo}/resolve/main/{name}")
    files["big/big.gguf"] = resolve("smollm2").read_bytes()
    with HubModel("org/big", ["big.gguf"]).open() as gguf:
        header = len(hub.asked)
        end = min(t.offset for t in gguf.tensors.values())
        assert all(first < end for _, first, _ in hub.asked)
        hub.gate = threading.Event()
        build(Plan(1, 512, 8192), Catalog(gguf))
        assert not hub.alone  # they are asked for at once: one after the other takes a minute far from the hub
        vectors = {(t.offset, t.offset + t.n_bytes - 1) for t in gguf.tensors.values() if len(t.shape) == 1}
        assert {(first, last) for _, first, last in hub.asked[header:]} == vectors and len(vectors) == 61
        t = gguf.tensors["output_norm.weight"]
        assert t.data.tobytes() == files["big/big.gguf"][t.offset : t.offset + t.n_bytes]
        t = gguf.tensors["blk.3.ffn_up.weight"]
        assert t.data.tobytes() == files["big/big.gguf"][t.offset : t.offset + t.n_bytes]


@pytest.mark.parametrize("name, says", [
    ("org/strange", "general.architecture = 'lamma'"),
    ("org/broken", "is the file cut off?"),
    ("org/blind", "tokenizer.ggml.model"),
    ("org/lacking", "'blk.1.ffn_up.weight' is missing"),
    ("org/page", "an HTML page"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_not_downloaded(command, hub, tmp_path, name, says):
    done = command("run", name, "x", "--raw", "-n", "1")
    assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert hub.asked and all(first is not None for _, first, _ in hub.asked)


def test_what_is_too_large_is_not_downloaded(hub, files, monkeypatch):
    import numainfer as ni
    from numainfer.machine import topology as topologies

    here = topologies.topology()
    small = [SimpleNamespace(total=10_000, number=0)]
    monkeypatch.setattr(topologies, "topology", lambda: SimpleNamespace(nodes=small, limits=here.limits))
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda repo, name: f"{hub.endpoint}/{repo}/resolve/main/{name}")
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=[
        SimpleNamespace(rfilename="w-Q8_0.gguf")]))  # fmt: skip
    with pytest.raises(ni.OutOfNodeMemory, match="org/whole/w-Q8_0.gguf: the weights take .* 10.0 KB of memory; nothing was downloaded"):
        ni.load("org/whole")
    assert all(first is not None for _, first, _ in hub.asked)


def test_what_can_be_is(command, hub):
    done = command("run", "org/parts", "x", "--raw", "-n", "3", "--ignore-eos", "--json", "-q")
    assert done.returncode == 0 and len(json.loads(done.stdout)["token_ids"]) == 3
    assert sum(first is None for _, first, _ in hub.asked) == 2  # both parts, once
    before = len(hub.asked)
    assert command("info", "org/parts", "--no-measure").returncode == 0
    assert len(hub.asked) == before  # out of the cache
    assert "org/parts/" in command("models").stdout


def test_a_hub_without_ranges(command, hub):
    """The header cannot be had alone: told, and a load downloads as it is."""
    hub.ranges = False
    done = command("info", "org/whole", "--no-measure")
    assert done.returncode == 1 and "gives no parts of files (status 200)" in done.stderr
    assert command("run", "org/whole", "x", "--raw", "-n", "1", "-q").returncode == 0


def test_a_hub_that_fails(command, hub):
    hub.status = 403
    done = command("info", "org/whole", "--no-measure")
    assert done.returncode == 1 and "the header of org/whole/w-Q8_0.gguf cannot be read: " in done.stderr and "403" in done.stderr


def test_tokens_of_a_model_that_is_not_here(command, hub, tmp_path):
    assert command("tokenize", "org/whole", "hello", "--json").stdout.startswith("[")
    assert all(first is not None for _, first, _ in hub.asked) and not list((tmp_path / "hf").rglob("*.gguf"))
