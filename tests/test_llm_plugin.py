"""``llm -m numainfer/...``: the real command of the package ``llm``, which finds the plugin by the entry point of pyproject.toml."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from numainfer.gguf.sources import resolve

ROOT = Path(__file__).parents[1]


@pytest.fixture
def llm(tmp_path, tiny_path):
    """``llm(words, input)``: the finished process, with no other plugin; tiny_path is Ollama's model "tiny"."""
    found = tmp_path / "site" / "numainfer_under_test-0.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: numainfer-under-test\nVersion: 0\n")
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["llm"]
    (found / "entry_points.txt").write_text("[llm]\n" + "".join(f"{name} = {module}\n" for name, module in entries.items()))
    manifest = tmp_path / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'0' * 64}"}]}))
    (tmp_path / "blobs").mkdir()
    (tmp_path / f"blobs/sha256-{'0' * 64}").symlink_to(tiny_path)
    paths = [str(ROOT), str(found.parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "LLM_LOAD_PLUGINS": "numainfer-under-test",
                        "LLM_USER_PATH": str(tmp_path / "user"), "OLLAMA_MODELS": str(tmp_path)}  # fmt: skip

    def llm(*words, input=""):
        command = [sys.executable, "-m", "llm", *words]
        return subprocess.run(command, input=input, env=env, capture_output=True, text=True, timeout=120, check=False)

    return llm


GREEDY = ["-o", "temperature", "0", "-o", "repetition_penalty", "1"]
TINY = "numainfer/ollama:tiny:latest"


def test_its_models_are_those_that_are_here(llm):
    listed = llm("models").stdout
    assert "numainfer/smollm2" in listed and f"numainfer: {TINY}" in listed


def test_an_answer_is_the_models_own(llm, smollm2):
    done = llm("-m", "numainfer/smollm2", "-s", "Be brief.", *GREEDY, "-o", "max_tokens", "12", "-o", "n_ctx", "2048", "What is a whale?")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a whale?"}]
    assert done.returncode == 0 and done.stdout.strip() == smollm2.chat(messages, max_tokens=12).text.strip() != ""
    assert llm("logs", "-n", "1", "-u").stdout.count("12") and '"length"' in llm("logs", "-n", "1", "--json").stdout


def test_a_conversation_goes_on(llm, smollm2):
    first = llm("-m", "numainfer/smollm2", *GREEDY, "-o", "max_tokens", "8", "My name is Ada.")
    second = llm("-c", *GREEDY, "-o", "max_tokens", "16", "What is my name?")
    messages = [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": first.stdout[:-1]},
                {"role": "user", "content": "What is my name?"}]  # fmt: skip
    assert second.returncode == 0 and second.stdout[:-1] == smollm2.chat(messages, max_tokens=16).text


def test_a_process_loads_a_model_once(tiny_path, monkeypatch):
    from numainfer import llm_plugin

    loaded, load = [], llm_plugin.load

    def counting(*args, **more):
        loaded.append(load(*args, **more))
        return loaded[-1]

    monkeypatch.setattr(llm_plugin, "load", counting)
    model = llm_plugin.NumaInfer(str(tiny_path))
    talk = model.conversation()
    answers = []
    for text in ("hi", "ho"):
        answers.append(talk.prompt(text, max_tokens=3, seed=1))
        assert answers[-1].text()  # it is computed here
    assert len(loaded) == 1
    assert answers[1].input_tokens > answers[0].input_tokens + 3 and answers[1].output_tokens == 3
    assert talk.prompt("hey", max_tokens=3, n_ctx=100).text() and len(loaded) == 2 and loaded[0].closed and loaded[1].n_ctx == 100
    loaded[1].close()


@pytest.mark.parametrize("words, says", [
    (["-o", "temperature", "-1"], "temperature = -1.0"),
    (["-o", "n_ctx", "0"], "n_ctx = 0"),
    (["-o", "temprature", "1"], "temprature"),
    (["x" * 3000], "n_ctx"),
])  # fmt: skip
def test_errors_are_one_line(llm, words, says):
    done = llm("-m", TINY, *words, *([] if len(words) == 1 else ["hi"]))
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def test_a_model_without_a_template_continues_text(llm, gemma3):
    resolve("gemma3")
    done = llm("-m", "numainfer/gemma3", *GREEDY, "-o", "max_tokens", "4", "-o", "n_ctx", "2048", "The capital of France is")
    assert done.stdout.strip() == gemma3.generate("The capital of France is", max_tokens=4).text.strip() != ""
    done = llm("-m", "numainfer/gemma3", "-s", "Be brief.", "hi")
    assert done.returncode == 1 and "chat template" in done.stderr
