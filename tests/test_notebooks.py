"""The notebooks in examples/ run from the first cell to the last, and what is stored of them has no outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def kernels_find_this_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("NUMAINFER_FAKE_NODES", raising=False)


def run(notebook, folder):
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def cells_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def shown(cell, kind):
    """Data of a MIME type in a cell's outputs."""
    return [out["data"][kind] for out in cell.outputs if kind in out.get("data", {})]


def said(cell, stream="stdout"):
    return "".join(out["text"] for out in cell.outputs if out.get("name") == stream)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "strip the outputs"
    run(notebook, tmp_path)
    kinds = {kind for cell in code for out in cell.outputs for kind in out.get("data", {})}
    assert "text/html" in kinds
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)
    if path.stem == "seeing_placement":
        assert "image/png" in kinds and "4 more loads" in said(code[-2])
    if path.stem == "first_steps":
        assert "text/markdown" in kinds


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "seeing_placement", "thousands_of_prompts"]


def test_a_stream_is_shown_in_place_and_kept_when_interrupted(tmp_path):
    notebook = run(cells_of(
        "import numainfer as ni\nmodel = ni.load('smollm2', n_ctx=2048)",
        "stream = model.stream('Once upon a time', max_tokens=20)\nstream.display()",
        "print(stream.result().text)",
        "import _thread, threading\n"
        "stream = model.stream('Once upon a time', max_tokens=2000, ignore_eos=True)\n"
        "threading.Timer(0.5, _thread.interrupt_main).start()\n"
        "try:\n    stream.display()\nexcept KeyboardInterrupt:\n    print('interrupted')",
        "done = stream.result()\nprint(done.finish_reason, len(done.token_ids))\nprint(done.text)",
    ), tmp_path)  # fmt: skip
    whole, text, broken, told = notebook.cells[1:]
    (markdown,) = shown(whole, "text/markdown")  # one display, changed in place
    assert said(text).rstrip("\n") in markdown and "20 tokens · " in markdown and markdown.endswith("tokens/s · length</small>")
    (markdown,) = shown(broken, "text/markdown")
    reason, n = said(told).split("\n", 1)[0].split()
    assert "interrupted" in said(broken) and reason == "cancelled" and 0 < int(n) < 2000
    assert said(told).split("\n", 1)[1].rstrip("\n") in markdown and f"{n} tokens · " in markdown


def test_a_list_s_progress_counts_tokens_and_stays(tmp_path):
    notebook = run(cells_of(
        "import numainfer as ni\nmodel = ni.load('smollm2', n_ctx=512, progress=False)",
        "done = model.generate(['Once upon a time'] * 20, max_tokens=40, ignore_eos=True)",
    ), tmp_path)  # fmt: skip
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {}).values()
    texts = (widget["state"].get("value", "") for widget in widgets if "HTML" in widget["model_name"])
    bar = said(notebook.cells[1], "stderr") + "".join(texts).replace("\u2007", " ")  # widgets have wide spaces
    assert "Generating: 100%" in bar and "20/20 prompts, 800 tokens, " in bar and "tokens/s" in bar
    assert not any(widget["state"].get(key) in ("none", "hidden") for widget in widgets for key in ("display", "visibility"))
