"""docs/troubleshooting.md quotes messages in the package's own words: each is provoked here, and comes from the same line of the source."""

import _thread
import ast
import errno
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings

import gguf
import numpy as np
import pytest
from pages import ROOT, blocks
from test_architectures import rewrite
from tiny_models import tiny

import numainfer as ni
from numainfer.engine import keep
from numainfer.machine import pages as machine_pages
from numainfer.machine import placement, policies, shared, topology as topologies

PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = [" ".join(block.code.split()) for block in blocks(PAGE) if block.kind == "text message"]
PROVOKERS = {}  # piece of a message: function that gets Tools and returns or raises the exception, or the warning
LEAST = 12  # letters of a message that must be the source's own


class Tools:
    """What provokers use."""

    def __init__(self, folder, patch, tiny_path, model):
        self.folder, self.patch, self.path, self.model = folder, patch, tiny_path, model

    def changed(self, keys=(), tensors=()):
        """The tiny model with other keys or tensors."""
        return rewrite(self.path, self.folder / "changed.gguf", keys, tensors)


def provokes(piece):
    def note(function):
        PROVOKERS[piece] = function
        return function

    return note


# ---- loading ------------------------------------------------------------------------------------------------------------


@provokes("no model 'smolm2'")
def _(tools):
    ni.load("smolm2")


@provokes("holds 2 models")
def _(tools):
    for name in ("a", "b"):
        tiny(tools.folder, name=name)
    ni.load(tools.folder)


@provokes("missing parts of a model")
def _(tools):
    first = tiny(tools.folder, parts=3)
    first.with_name(first.name.replace("00001-of", "00002-of")).unlink()
    ni.load(first)


@provokes("is it cut off?")
def _(tools):
    cut = tools.folder / "cut.gguf"
    cut.write_bytes(tools.path.read_bytes()[:-1000])
    ni.load(cut)


@provokes("git lfs pull")
def _(tools):
    pointer = tools.folder / "pointer.gguf"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    ni.load(pointer)


@provokes("general.architecture = 'bert'")
def _(tools):
    ni.load(tools.changed({"general.architecture": "bert"}))


@provokes("type of tensor")
def _(tools):
    path = tools.folder / "q8k.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    reader = gguf.GGUFReader(tiny(tools.folder, "llama", "F32", width=256, feed_forward=256, name="f32"))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        if tensor.name == "blk.0.ffn_up.weight":
            rows = int(tensor.shape[1])
            writer.add_tensor(tensor.name, np.zeros((rows, 292), np.uint8) + 1, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ni.load(path)


@provokes("instruction set")
def _(tools):
    code = "import numainfer._core"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMAINFER_ISA": "avx10"}, capture_output=True, text=True)
    kind, _, text = done.stderr.strip().splitlines()[-1].partition(": ")
    assert kind == "ValueError"
    raise ValueError(text)


# ---- memory -------------------------------------------------------------------------------------------------------------


@provokes("placement 'replicate' does not fit")
def _(tools):
    nodes = [topologies.Node(i, (i,), 256 << 30, 200 << 30) for i in range(2)]
    policies.choose_policy("replicate", nodes, {"replicate": [406 << 30] * 2}, 1 << 30)


@provokes("there is room for at most n_ctx")
def _(tools):
    ni.load(tools.path, n_ctx=2_000_000_000)


@provokes("positions that the model was trained with")
def _(tools):
    ni.load(tools.path, n_ctx=512).close()


@provokes("drop what is kept there")
def _(tools):
    tools.patch.setattr(shared, "room", lambda: 1 << 20)
    shared.check_room("v3", 413 << 30)


@provokes("that name holds another model")
def _(tools):
    shm = tools.folder / "shm"
    shm.mkdir()
    tools.patch.setattr(shared, "SHM", str(shm))
    tools.patch.setattr(shared, "mount", lambda: ("tmpfs", ""))
    assert keep.shared is shared
    ni.load(tools.path, keep="v3").close()
    ni.load(tiny(tools.folder, name="other"), keep="v3")


# ---- placement ------------------------------------------------------------------------------------------------------------


@provokes("the kernel refuses")
def _(tools):
    tools.patch.setattr(placement, "look_up", lambda *_: (np.array([100, 0]), errno.EPERM))
    tools.model.placement.verify()


@provokes("lie on other nodes and could not be moved")
def _(tools):
    tools.patch.setattr(placement, "look_up", lambda *_: (np.array([90, 10]), 0))
    tools.model.placement.verify()


@provokes("kernel.numa_balancing is on")
def _(tools):
    real = machine_pages.read
    tools.patch.setattr(machine_pages, "read", lambda path: "1" if path.endswith("numa_balancing") else real(path))
    tools.patch.setenv("NUMAINFER_FAKE_NODES", "2")
    ni.load(tools.path).close()


@provokes("at least one per node, at most one per core")
def _(tools):
    ni.load(tools.path, threads=9999)


@provokes("mode = 'throughput'")
def _(tools):
    tools.patch.setenv("NUMAINFER_FAKE_NODES", "2")
    with ni.load(tools.path, placement="shard") as model:
        model.generate(["a", "b"], mode="throughput")


# ---- prompts, chat --------------------------------------------------------------------------------------------------------


@provokes("but the context holds n_ctx")
def _(tools):
    tools.model.generate(list(range(200)) * 2)


@provokes("has no chat template")
def _(tools):
    with ni.load(tiny(tools.folder, chat_template=False, name="plain")) as model:
        model.chat("Hello")


@provokes("chat template: roles must alternate")
def _(tools):
    tools.model.chat("Hello", template="{{ raise_exception('roles must alternate') }}")


@provokes("the chat template does not use 'tools'")
def _(tools):
    tools.model.chat("Hello", tools=[{"type": "function", "function": {"name": "f"}}], max_tokens=1)


@provokes("needs the package llguidance")
def _(tools):
    tools.patch.setitem(sys.modules, "llguidance", None)
    tools.model.generate("Hello", choice=["yes", "no"])


@provokes("unknown parameter")
def _(tools):
    tools.model.generate("Hello", temprature=0.5)


# ---- processes ------------------------------------------------------------------------------------------------------------


@provokes("is a fork of it")
def _(tools):
    here, there = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fork in a process with threads
        child = os.fork()
    if not child:
        try:
            tools.model.generate("Hello", max_tokens=1)
        except BaseException as e:
            os.write(there, pickle.dumps(e))
        os._exit(0)
    os.close(there)
    data = os.read(here, 1 << 16)
    os.waitpid(child, 0)
    raise pickle.loads(data)


@provokes("was closed")
def _(tools):
    model = ni.load(tools.path)
    model.close()
    model.generate("Hello")


@provokes("can be neither pickled nor copied")
def _(tools):
    pickle.dumps(tools.model.session())


@provokes("prompts were cancelled")
def _(tools):
    timer = threading.Timer(0.1, _thread.interrupt_main)
    tools.model.generate(["a", "b", "c"] * 300, max_tokens=200, ignore_eos=True, progress=lambda *_: timer.ident or timer.start())


# ---- the tests ------------------------------------------------------------------------------------------------------------


def templates():
    """{pattern: letters that are the source's own} of all strings in the package, what is put in between being anything."""
    found = {}
    for path in sorted((ROOT / "numainfer").rglob("*.py*")):
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    add(found, [part.value if isinstance(part, ast.Constant) else None for part in node.values])
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    add(found, [node.value])
        elif path.suffix in (".pyx", ".pxi"):
            for strings in re.findall(r'f?"(?:[^"\\\n]|\\.)*"(?:\s+f?"(?:[^"\\\n]|\\.)*")*', path.read_text(encoding="utf-8")):
                text = "".join(re.findall(r'f?"((?:[^"\\\n]|\\.)*)"', strings))
                add(found, [part if i % 2 == 0 else None for i, part in enumerate(re.split(r"(\{[^{}]*\})", text))])
    return found


def add(found, parts):
    own = sum(len(part) for part in parts if part)
    if own >= LEAST and " " in "".join(filter(None, parts)):  # words, not a path
        found["".join(".*?" if part is None else re.escape(" ".join(part.split(" "))) for part in parts)] = own


@pytest.fixture(scope="module")
def sources():
    return templates()


def origin(message, sources):
    """The pattern of the source that says most of a message."""
    fitting = [pattern for pattern in sources if re.search(pattern, message, re.DOTALL)]
    return max(fitting, key=sources.get, default=None)


def test_every_message_is_provoked_once():
    claimed = [[piece for piece in PROVOKERS if piece in message] for message in MESSAGES]
    assert [(message, pieces) for message, pieces in zip(MESSAGES, claimed) if len(pieces) != 1] == []
    assert sorted(piece for pieces in claimed for piece in pieces) == sorted(PROVOKERS)


@pytest.mark.parametrize("piece", PROVOKERS)
def test_the_message_is_the_packages_own(piece, tmp_path, tiny_path, tiny_model, monkeypatch, sources):
    quoted = next(message for message in MESSAGES if piece in message)
    kind, _, text = quoted.partition(": ")
    pattern = origin(text, sources)
    assert pattern is not None, f"no line of the package says {text!r}"
    if not kind.endswith("Warning"):
        with warnings.catch_warnings(), pytest.raises(BaseException) as caught:
            warnings.simplefilter("ignore")
            PROVOKERS[piece](Tools(tmp_path, monkeypatch, tiny_path, tiny_model))
        said = caught.value
    else:
        with pytest.warns(getattr(ni, kind)) as found:
            PROVOKERS[piece](Tools(tmp_path, monkeypatch, tiny_path, tiny_model))
        said = found[0].message
    assert type(said).__name__ == kind, repr(said)
    actual = " ".join(str(said).split())
    assert re.search(pattern, actual, re.DOTALL) and origin(actual, sources) == pattern, f"it says {actual!r}, the page {text!r}"


def test_a_wrong_message_is_seen(sources):
    assert origin("the model was eaten by a grue; load it again", sources) is None
    assert origin("mode = 'throughput': every node works by itself then, but it does not", sources) is None
