"""Who may know whom: imports between the package's modules, and includes between the core's files."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numainfer"

# The rooms, lowest first: a file imports from its own row and from those below.  Files of the package's top folder are named one by one.
ROWS = (
    ("errors", "summary", "signatures", "arguments", "progress", "looks", "results"),  # words that every room uses
    ("_core",),
    ("gguf",),
    ("text",),
    ("machine",),
    ("engine",),
    ("prompts", "serving"),
    ("stream",),
    ("verbs",),
    ("aio",),
    ("session",),
    ("model",),
    ("measure",),
    ("__init__",),
    ("server",),
    ("cli",),
    ("__main__", "llm_plugin"),
)
LEVEL = {room: i for i, row in enumerate(ROWS) for room in row}
# Within a room, what a file must not import: who would know too much.
WITHIN = {
    "engine/architectures": {"engine.engine", "engine.store", "engine.cache", "_core"},
    "engine/ops.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.store"},
    "engine/compiling.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.store", "engine.cache", "engine.weights"},
    "engine/plan.py": {"engine.engine", "engine.architectures", "engine.store"},
    "engine/attending.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.store"},
    "engine/mixing.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.store"},
    "engine/cache.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.store", "machine"},
    "engine/layout.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.store", "engine.cache", "machine"},
    "engine/states.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.store", "engine.cache", "machine"},
    "engine/weights.py": {"engine.engine", "engine.plan", "engine.architectures", "engine.copies"},
    "engine/copies.py": {"engine.engine", "engine.plan", "engine.architectures"},
    "engine/store.py": {"engine.engine", "engine.plan", "_core"},
    "serving/params.py": {"serving.loop", "serving.lanes", "serving.requests", "serving.generation", "serving.sampling", "engine", "_core"},
    "serving/sampling.py": {"serving.loop", "serving.lanes", "serving.requests", "serving.generation", "engine"},
    "serving/generation.py": {"serving.loop", "serving.lanes", "serving.requests", "engine", "machine", "_core"},
    "serving/requests.py": {"serving.loop", "serving.lanes", "serving.runtime", "serving.answer", "engine", "machine"},
    "serving/answer.py": {"serving.loop", "serving.lanes", "serving.runtime", "engine", "machine"},
    "serving/lanes.py": {"serving.loop", "serving.runtime", "engine"},
    "serving/loop.py": {"serving.runtime", "engine"},
    "text": {"_core"},
    "gguf": {"_core"},
}


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """Dotted names, below the package, of what a file imports from it; imports for type checkers alone do not count."""
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    folder = ("numainfer", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = (*folder[: len(folder) + 1 - node.level], *filter(None, [node.module])) if node.level else (node.module,)
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("numainfer.") for name in names if name.startswith("numainfer.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_file_has_its_row():
    assert {room_of(path) for path in FILES} | {"_core"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_never_point_up(path):
    own = LEVEL[room_of(path)]
    for name in imported(path):
        room = name.split(".")[0]
        if room in LEVEL:  # else a name of the package itself, such as __version__
            assert LEVEL[room] <= own, f"{path} imports {name}"


FOREIGN = {"_option_string_actions", "_Namespace__attrs"}  # argparse and jinja2 tell these in no other way


def test_nobody_uses_the_underscored_names_of_others():
    """``x._name`` only for ``self`` and ``cls``, or where the file itself defines the name: another object of the own class."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
        own |= {t.attr for n in ast.walk(tree) if isinstance(n, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.With))
                for t in ast.walk(n) if isinstance(t, ast.Attribute) and isinstance(t.ctx, ast.Store)}  # fmt: skip
        own |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                simple = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert simple or node.attr in own | FOREIGN, f"{path}:{node.lineno} uses {ast.unparse(node)}"


@pytest.mark.parametrize("where", WITHIN)
def test_who_must_not_know_whom(where):
    files = [path for path in FILES if path.relative_to(PACKAGE).as_posix().startswith(where)]
    assert files
    for path in files:
        for name in imported(path):
            assert not any(name == other or name.startswith(f"{other}.") for other in WITHIN[where]), f"{path} imports {name}"


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
    from numainfer.engine.architectures import SUPPORTED

    for path in sources("**/*.[ch]", "**/*.def"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        assert not any(re.search(rf'"{name}"', code) for name in SUPPORTED), path


def comments(path):
    return re.findall(r"/\*.*?\*/", path.read_text(), re.DOTALL)


def test_comments_name_what_there_is():
    """Files, and macros and functions of our own, that a comment of the core names exist."""
    core = sources("**/*.[ch]", "**/*.def")
    files = {p.name for p in ROOT.rglob("*.*") if ".venv" not in p.parts}
    code = "".join(re.sub(r"/\*.*?\*/", "", p.read_text(), flags=re.DOTALL) for p in core)
    # What macros make of lists of names.
    made = re.compile(r"(?:NI_BLOCK|NI_KV|ni_(?:block|record|decode|pack|unpack_row|own|kernels|op|scratch))_\w*")
    names = set(re.findall(r"\b(?:NI|V16|ni|v16)_\w+", code))
    for path in core:
        for text in comments(path):
            for name in re.findall(r"\b[\w/]+\.(?:h|c|py|def|pyx|pxi)\b", text):
                assert name.rpartition("/")[2] in files, f"{path.name} speaks of {name}"
            for name in re.findall(r"\b(?:NI|V16|ni|v16)_\w+", text):
                assert name in names or made.fullmatch(name), f"{path.name} speaks of {name}"
