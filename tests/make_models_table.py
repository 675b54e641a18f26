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

import heads  # noqa: E402
import more  # noqa: E402
from make_gguf import templates  # noqa: E402

from numainfer.engine.architectures import SUPPORTED  # noqa: E402
from numainfer.engine.layout import KV_TYPES  # noqa: E402
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

AFTER = """
## Where llama.cpp and the published models differ

`tests/sweep_architectures.py` tries some 50 changes of settings on each of these models, against llama.cpp of llama-cpp-python 0.3.36. What
differs, and what was taken:

* `phimoe`: the published model has LayerNorms and SparseMixer; llama.cpp has RMS norms and divides two softmaxes by their sum. Ours is the
  published one, checked by its definition in float64 (`tests/test_definitions.py`).
* `grovemoe`: in the published model an adjugate reads what its experts read, and has their weights. In llama.cpp it reads what the experts
  said, and is weighed as the expert whose number it has. Ours is the published one, checked by its definition in float64, which with these
  two changes gives llama.cpp's logits (`tests/test_definitions.py`).
* `deepseek2` with softmax gating, groups and no bias for choosing (V2): a group counts as its best expert, in llama.cpp as the sum of its
  two best. V3 takes the sum, and so do we.
* Latent attention with YaRN but without `rope.scaling.yarn_log_multiplier`, or with linear scaling: the published code leaves scores as
  they are; llama.cpp multiplies them by (0.1 log(factor) + 1)^2.
* `grok`: as in llama.cpp, the router's scores are not capped, and the weights of the chosen are divided by their sum. Other engines cap
  (scores below 10 move by at most 3.6 %) and do not divide; in Grok 1 the norm behind the experts cancels what dividing does.
* `expert_gating_func`, `expert_weights_norm` and `expert_weights_scale` are heeded wherever a file has them; llama.cpp ignores them in
  `llama`, `qwen2moe`, `qwen3moe`, `minimax-m2`, `gpt-oss`, `llama4` and others whose files do not have them.
* `rope.freq_base_swa` is the base of all layers with a window; llama.cpp reads it and keeps the one base in `cohere2`, `cohere2moe`,
  `exaone4`, `exaone-moe` and `olmo2`.
* A scaling of kind "none" with a factor: layers with a window are not scaled either; in llama.cpp they are.
* `attn_output.bias` of `ernie4_5`, `ernie4_5-moe` and `falcon-h1`, biases of q, k and v of `mimo2` are added; llama.cpp leaves them
  out. `glm4moe` and `hy_v3` may be without shared experts, where llama.cpp adds what it should not.
* `afmoe` rotates in the layers that have a window, as published; llama.cpp in three of four, whatever the windows are.
* `gemma3n` heeds `altup.num_inputs`, `activation_sparsity_scale`, `attention.shared_kv_layers` and `final_logit_softcapping`; llama.cpp has
  the released models' values in its code: 4, the first ten layers, all but the first twenty, 30. Streams with a mean square below 1e-5
  count as that long, as published.
* Windows of `phi3` and `starcoder2` are heeded where the file has the key; llama.cpp leaves them out.
* `gpt-oss` was trained without rounding where YaRN's ramp begins and ends. Files do not tell, so it is rounded as in llama.cpp.

Files with `attn_kv_b` in one piece are read as `attn_k_b` and `attn_v_b`: W_k of each head is transposed while loading, exactly for F32,
F16 and BF16, as halves for other types (1.0 GB of 671 B parameters); so the cache is as small as with new files. Layers that only predict
further tokens (`nextn_predict_layers`) are skipped, and the log says so.
"""


def table():
    """The file's text."""
    found, changed, noise = templates(), more.templates(), json.loads((ARCHS / "noise.json").read_text())
    lines = [BEFORE.format(weights=", ".join(FORMATS), kv=", ".join(KV_TYPES))]
    for arch in sorted(SUPPORTED):
        names = [name for name, t in found.items() if t["arch"] == arch]
        names += [name for name, (base, *_) in heads.MODELS.items() if found[base]["arch"] == arch]
        names += [name for name, (_, t) in changed.items() if t["arch"] == arch]
        apart = [noise[name]["transformers"] for name in names if "transformers" in noise.get(name, ())]
        lines.append(f"| `{arch}` | {says(arch)} | {', '.join(names)} | {f'{max(apart):.1e}' if apart else 'not compared'} |\n")
    return "".join(lines) + AFTER


def says(arch):
    """The first paragraph of the architecture's file, without its last dot."""
    path = ROOT / "numainfer" / "engine" / "architectures" / f"{arch.replace('-', '_')}.py"
    doc = ast.get_docstring(ast.parse(path.read_text()))
    return " ".join(doc.split("\n\n")[0].split()).removesuffix(".").replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(table())
