"""Writes docs/models.md: what is supported and how each architecture was checked, out of the code and the goldens' notes.

python tests/make_models_table.py
"""

import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHS = ROOT / "tests" / "archs"
sys.path[:0] = [str(ROOT), str(ARCHS)]

from make_gguf import templates  # noqa: E402

from numainfer.engine.architectures import SUPPORTED  # noqa: E402
from numainfer.engine.cache import KV_TYPES  # noqa: E402
from numainfer.engine.weights import FORMATS  # noqa: E402

TARGET = ROOT / "docs" / "models.md"
BEFORE = """# Models

Written by `python tests/make_models_table.py` out of the code; a test fails while it is not current.

An architecture is what a file's `general.architecture` names. Each was checked with tiny random models (`tests/archs`) whose logits
llama.cpp computed: with keys and values in float32 ours are within 1e-5 of the largest logit (with GELU, which llama.cpp takes from a table
of halves, within 5e-4), with keys and values as halves within 3e-3, with the same bits in every placement. The last column says
how far llama.cpp and Hugging Face transformers are apart on the same weights, both with keys and values in float32, where the two were
compared.

A file that asks for more than its architecture does here, by a key or a tensor, is refused by the name of that key or tensor.

Weights: {weights}. Keys and values: {kv}.

| architecture | models, with what sets them apart | tiny models | llama.cpp and transformers |
|---|---|---|---|
"""


def table():
    """The file's text."""
    found, noise = templates(), json.loads((ARCHS / "noise.json").read_text())
    lines = [BEFORE.format(weights=", ".join(FORMATS), kv=", ".join(KV_TYPES))]
    for arch in sorted(SUPPORTED):
        names = [name for name, t in found.items() if t["arch"] == arch]
        apart = [noise[name]["transformers"] for name in names if "transformers" in noise[name]]
        lines.append(f"| `{arch}` | {says(arch)} | {', '.join(names)} | {f'{max(apart):.1e}' if apart else 'not compared'} |\n")
    return "".join(lines)


def says(arch):
    """The first paragraph of the architecture's file, without its last dot."""
    path = ROOT / "numainfer" / "engine" / "architectures" / f"{arch.replace('-', '_')}.py"
    doc = ast.get_docstring(ast.parse(path.read_text()))
    return " ".join(doc.split("\n\n")[0].split()).removesuffix(".").replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(table())
