"""Matrices of many types in one plan, as in "dynamic" quantisations: types differ within a layer's experts, and from layer to layer."""

import subprocess
import sys

import numpy as np
import pytest
import reference as ref
from core_tools import Sheet, open_team, rig, same_bits
from random_blocks import random_weights

from numainfer.engine.architectures.blocks import Residual

E, D, F, USED, EPS = 8, 256, 512, 3, 1e-6
LAYERS = (("Q2_K", "Q3_K", "Q4_K"), ("Q3_K", "Q2_K", "Q6_K"), ("TQ1_0", "Q2_0", "Q3_K"))  # of gate, up, down
TEAMS = ((1, 1), (1, 3), (2, 2))
TOKENS = (1, 2, 7, 40)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(23)
    tensors = {"x": rng.standard_normal((40, D)), "norm": rng.uniform(0.5, 1.5, D)}
    for layer, kinds in enumerate(LAYERS):
        tensors[f"{layer} router.weight"] = rng.standard_normal((E, D)) * 0.2
        for name, kind, n, k in zip(("gate", "up", "down"), kinds, (F, F, D), (D, D, F)):
            std = 1.5 * k**-0.5
            tensors[f"{layer} {name}.weight"] = np.stack([random_weights(rng, n, k, kind, std) for _ in range(E)]), kind
    sheet = Sheet(tmp_path_factory.mktemp("mixed") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


def mixtures(p, s):
    """A mixture of experts per layer."""
    x = Residual(p, p.embed(s["x"]), EPS)
    for layer in range(len(LAYERS)):
        h = x.norm(s["norm"])
        ids, weights = p.route(p.score(h, s[f"{layer} router.weight"]), USED, normed=True)
        gate, up = p.matmul_grouped(h, ids, s[f"{layer} gate.weight"], s[f"{layer} up.weight"])
        x.add(p.mix(p.matmul_grouped(p.gated(gate, up, "silu"), ids, s[f"{layer} down.weight"]), weights))
    p.logits(x.norm(s["norm"], selected=True), None)


def twin(s):
    """The same in float64, experts with the activations' 8 bits."""
    x = s.exact["x"].copy()
    for layer in range(len(LAYERS)):
        h = ref.rmsnorm(x, s.exact["norm"], EPS)
        scores = h @ s.exact[f"{layer} router.weight"].T
        ids = np.argsort(-scores, axis=-1, kind="stable")[:, :USED]
        chosen = np.exp(np.take_along_axis(scores, ids, axis=-1) - scores.max(axis=-1, keepdims=True))
        weights = chosen / chosen.sum(axis=-1, keepdims=True)
        gate, up, down = (s.exact[f"{layer} {name}.weight"] for name in ("gate", "up", "down"))
        for t in range(len(x)):
            row = h[t : t + 1]
            for e, weight in zip(ids[t], weights[t]):
                y = ref.silu_mul(ref.matmul_q8(row, gate[e]), ref.matmul_q8(row, up[e]))
                x[t] += weight * ref.matmul_q8(y, down[e])[0]
    return ref.rmsnorm(x, s.exact["norm"], EPS)


def test_experts_of_other_types_in_every_layer(sheet):
    """As the formulas say; and the same bits on every team, in every placement, order and number of tokens."""
    wanted, first = twin(sheet), None
    for shape in TEAMS:
        with open_team(*shape) as team:
            for policy in ("replicate", "shard"):
                with rig(sheet, team, mixtures, hidden=True, policy=policy) as r:
                    found = r.run(np.arange(40))
                    first = found.copy() if first is None else first
                    same_bits(found, first, (shape, policy))
                    for tokens in TOKENS:
                        same_bits(r.run(np.arange(40 - tokens, 40)), first[40 - tokens :], (shape, policy, tokens))
                    same_bits(r.run(np.arange(40), seed=1), first, (shape, policy, "shuffled"))
    np.testing.assert_allclose(first, wanted, atol=2e-2)


def test_types_that_the_gguf_package_does_not_know(tmp_path):
    """Q2_0 is found by its number: in a process whose gguf has not been taught by these tests."""
    rng = np.random.default_rng(24)
    data = {kind: random_weights(rng, 5, 256, kind) for kind in ("Q1_0", "Q2_0")}
    sheet = Sheet(tmp_path / "sheet.gguf", {kind: (rows, kind) for kind, rows in data.items()})
    sheet.close()
    code = ("import sys, gguf; from numainfer.gguf.file import GGUFFile\n"
            "assert 'Q2_0' not in gguf.GGMLQuantizationType.__members__ or int(gguf.GGMLQuantizationType['Q2_0']) == 42\n"
            "f = GGUFFile(sys.argv[1]); print(*((t.type, *t.shape, t.n_bytes) for t in f.tensors.values()), sep='\\n')")  # fmt: skip
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path / "sheet.gguf")], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:2] == ["('Q1_0', 5, 256, 180)", "('Q2_0', 5, 256, 360)"]
