"""Who may know whom: imports between the package's modules, and includes between the core's files."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numainfer"

# Module -> what it must not import (directly, at any depth of its own code).
FORBIDDEN = {
    "architectures": {"_core", "engine", "model", "placement", "tokenizer", "session"},
    "plan": {"engine", "model", "placement", "gguf_file", "tokenizer", "architectures"},
    "weights": {"engine", "model", "placement", "plan", "architectures", "tokenizer"},
    "gguf_file": {"_core", "engine", "model", "plan", "weights", "placement"},
    "tokenizer": {"_core", "engine", "model", "plan", "weights", "placement"},
    "sampling": {"engine", "model", "plan", "weights", "placement", "tokenizer"},
    "stopping": {"_core", "engine", "model", "plan", "weights", "placement", "tokenizer"},
    "generation": {"_core", "engine", "model", "plan", "weights", "placement"},
    "placement": {"engine", "model", "plan", "weights", "architectures", "tokenizer"},
    "store": {"_core", "engine", "model", "plan"},
    "errors": {"_core", "engine", "model", "plan", "weights", "placement", "tokenizer"},
    "engine": {"model", "session", "stream", "generation", "tokenizer", "cli"},
}


def imported(path):
    """Names of the package's modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("numainfer")):
            base = (node.module or "").removeprefix("numainfer").strip(".")
            found |= {base.split(".")[0]} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("numainfer.")}
    return found


@pytest.mark.parametrize("module", FORBIDDEN)
def test_python_imports(module):
    folder = PACKAGE / module
    files = sorted(folder.glob("*.py")) if folder.is_dir() else sorted(PACKAGE.glob(f"{module}*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[module], path


def sources(*patterns):
    return [p for pattern in patterns for p in (ROOT / "csrc").glob(pattern)]


@pytest.mark.parametrize(
    "header, allowed", [("numa.h", {"numa.c"}), ("numaif.h", {"numa.c"}), ("omp.h", {"team.c"}), ("pthread.h", {"team.c"})]
)
def test_system_headers_have_one_user(header, allowed):
    users = {p.name for p in sources("**/*.[ch]") if re.search(rf"#include\s*<{re.escape(header)}>", p.read_text())}
    assert users == allowed


def test_kernels_and_formats_know_no_plans_or_threads():
    for path in sources("isa/*.[ch]", "formats/*.[ch]"):
        included = re.findall(r'#include\s*"([^"]+)"', path.read_text())
        assert not any(name.split("/")[-1] in ("ni.h", "team.h", "ops.h") for name in included), path


def test_the_core_never_prints_exits_or_asserts():
    calls = re.compile(r"\b(printf|fprintf|puts|perror|exit|_exit|abort|assert)\s*\(")
    for path in sources("**/*.[ch]"):
        code = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"|__attribute__\(\(format[^\n]*', "", path.read_text(), flags=re.DOTALL)
        code = code.replace("_Static_assert", "")
        assert not calls.search(code), (path, calls.search(code))


def test_the_core_has_no_architecture_in_it():
    from numainfer.architectures import SUPPORTED

    for path in sources("**/*.[ch]", "**/*.def"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        assert not any(re.search(rf'"{name}"', code) for name in SUPPORTED), path
