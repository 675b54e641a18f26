"""Ops of hyper-connections, and what goes with them, against their definitions in float64, for every team."""

from itertools import product

import numpy as np
import pytest
from core_tools import Sheet, open_team, rig, same_bits

from numainfer import _core
from numainfer.engine.plan import Plan
from numainfer.errors import CorruptModel, PlanError

N, EPS, SMALL = 9, 1e-5, 1e-3
TEAMS = tuple(product((1, 2, 3), (1, 3)))  # (nodes, workers on each)
FOUND = {}


@pytest.fixture(scope="module", params=TEAMS, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def team(request):
    with open_team(*request.param) as team:
        yield team


def same_for_all(what, found):
    same_bits(found, FOUND.setdefault(what, found), what)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x, w=1.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * w


def balanced(c, rounds):
    """Sinkhorn's normalisation of C[from][to]: softmax over `to`, then sums over `from` and over `to` in turns."""
    e = np.exp(c - c.max(-1, keepdims=True))
    c = e / e.sum(-1, keepdims=True) + SMALL
    for i in range(rounds):
        if i:
            c = c / (c.sum(-1, keepdims=True) + SMALL)
        c = c / (c.sum(-2, keepdims=True) + SMALL)
    return c


def definition(s, n, m, rounds, factor, more):
    """(h, coef) of hyper_pre for each token."""
    x = s.exact["x"]
    mixes = normed(x) @ s.exact["fn"].T
    scale, base = np.repeat(s.exact["scale"], [n] * min(m // n, 2) + [m - 2 * n] * (m > 2 * n)), s.exact["base"]
    y = mixes * scale + base
    h = normed((x.reshape(N, n, -1) * (sigmoid(y[:, :n]) + SMALL)[:, :, None]).sum(1), s.exact["w"])
    spread = factor * sigmoid(y[:, n : 2 * n]) + more
    mixed = balanced(y[:, 2 * n :].reshape(N, n, n), rounds).reshape(N, -1) if m > 2 * n else np.zeros((N, 0))
    return h, np.concatenate([spread, mixed], axis=1)


# n, m, D, rounds, factor, more
SHAPES = {"mixed": (4, 24, 96, 5, 2.0, 0.0), "once": (4, 24, 40, 1, 2.0, 0.0), "three": (3, 15, 72, 20, 2.0, 0.0),
          "apart": (4, 8, 100, 0, 1.5, 1e-3), "two": (2, 4, 33, 0, 2.0, 0.0), "last": (4, 4, 64, 0, 0.0, 0.0)}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def case(request, tmp_path_factory):
    n, m, d, *_ = SHAPES[request.param]
    rng = np.random.default_rng(d)
    sheet = Sheet(tmp_path_factory.mktemp("hyper") / "sheet.gguf", {
        "x": rng.standard_normal((N, n * d)) * 3, "y": rng.standard_normal((N, d)), "w": rng.uniform(0.5, 2, d),
        "fn": rng.standard_normal((m, n * d)) / np.sqrt(n * d) * 2, "scale": rng.uniform(0.5, 2, min(m // n, 3)),
        "base": rng.standard_normal(m)})  # fmt: skip
    yield request.param, sheet
    sheet.close()


def pre(p, s, name, selected=False):
    n, _, _, rounds, factor, more = SHAPES[name]
    x = p.embed(s["x"])
    return x, *p.hyper_pre(x, n, s["w"], EPS, s["fn"], s["scale"], s["base"], small=SMALL, factor=factor, more=more, rounds=rounds,
                           selected=selected)  # fmt: skip


def test_what_a_layer_reads(case, team):
    name, sheet = case
    n, m, _, *how = SHAPES[name]
    h, _ = definition(sheet, n, m, *how)
    with rig(sheet, team, lambda p, s: p.logits(pre(p, s, name)[1], None), hidden=True) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, h, atol=1e-5)
        same_for_all(("pre", name), found)
        same_bits(np.concatenate([r.run([i]) for i in range(N)]), found)
    with rig(sheet, team, lambda p, s: p.logits(pre(p, s, name, selected=True)[1], None), hidden=True) as r:
        same_bits(r.run(np.arange(N), rows=[7, 2, 8]), found[[7, 2, 8]])


def test_what_is_made_of_what_it_says(case, team):
    name, sheet = case
    n, m, d, *how = SHAPES[name]
    if m == n:
        pytest.skip("weights alone")
    _, coef = definition(sheet, n, m, *how)
    x, y = sheet.exact["x"].reshape(N, n, d), sheet.exact["y"][:, None]
    c = coef[:, n:].reshape(N, n, n) if m > 2 * n else np.broadcast_to(np.eye(n), (N, n, n))
    wanted = (coef[:, :n, None] * y + np.einsum("tij,tid->tjd", c, x)).reshape(N, -1)

    def build(p, s):
        x, _, coef = pre(p, s, name)
        p.logits(p.hyper_post(p.embed(s["y"]), x, coef, n), None)

    with rig(sheet, team, build, hidden=True) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        same_for_all(("post", name), found)
        for seed in (1, 2, 3):
            same_bits(r.run(np.arange(4, 8), seed=seed), found[4:8])


def test_streams_begin_alike_and_may_end_as_their_mean(case, team):
    name, sheet = case
    n, _, d, *_ = SHAPES[name]
    with rig(sheet, team, lambda p, s: p.logits(p.streams(p.embed(s["y"]), n), None), hidden=True) as r:
        same_bits(r.run(np.arange(N)), np.tile(sheet.exact["y"].astype(np.float32), n))
    wanted = normed(sheet.exact["x"].reshape(N, n, d).mean(1), sheet.exact["w"])
    with rig(sheet, team, lambda p, s: p.logits(p.hyper_pre(p.embed(s["x"]), n, s["w"], EPS)[0], None), hidden=True) as r:
        np.testing.assert_allclose(r.run(np.arange(N)), wanted, atol=1e-5)


def test_mixing_is_nearly_doubly_stochastic():
    """Of the definition itself: what all streams give is 1, and so is what all get."""
    c = balanced(np.random.default_rng(0).standard_normal((5, 4, 4)), 40)
    assert abs(c.sum(-1) - 1).max() < 5e-3 and abs(c.sum(-2) - 1).max() < 5e-3


def test_wrong_streams_are_refused(tmp_path):
    rng = np.random.default_rng(1)
    s = Sheet(tmp_path / "sheet.gguf", {"x": rng.standard_normal((N, 96)), "w": np.ones(24), "fn": rng.standard_normal((23, 96)),
                                        "scale": np.ones(3), "base": np.zeros(24)})  # fmt: skip
    p = Plan(1, 8, 64)
    x = p.embed(s["x"])
    with pytest.raises(CorruptModel, match="fn .* has 23 rows, wanted 4, 8 or 24 for 4 streams"):
        p.hyper_pre(x, 4, s["w"], EPS, s["fn"], s["scale"], s["base"])
    with pytest.raises(PlanError, match="has 96 values; wanted 5 streams"):
        p.hyper_pre(x, 5, s["w"], EPS)
    with pytest.raises(CorruptModel, match="operand w .* has width 24, wanted 32"):
        p.hyper_pre(x, 3, s["w"], EPS)
    s.close()


# ---- what goes with them ------------------------------------------------------------------------------------------------


def test_gates_within_limits(tmp_path, team):
    """silu(min(gate, limit)) times what is cut to the limits on both sides; no number stays none."""
    rng = np.random.default_rng(2)
    gate, up = rng.standard_normal((2, N, 100)) * 3
    gate[0, :3], up[1, :3] = [2, 2.0001, 1e30], [-2, -1e30, 1e30]
    sheet = Sheet(tmp_path / "sheet.gguf", {"gate": gate, "up": up})
    gate, up = np.minimum(sheet.exact["gate"], 2), np.clip(sheet.exact["up"], -2, 2)

    def build(p, s):
        p.logits(p.gated(p.embed(s["gate"]), p.embed(s["up"]), "capped", limit=2.0), None)

    with rig(sheet, team, build, hidden=True) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, gate * sigmoid(gate) * up, atol=2e-6)
        same_for_all("capped", found)
    sheet.close()


def test_experts_by_token(tmp_path, team):
    """A table names each token's experts; scores weigh them, and choose nothing."""
    rng = np.random.default_rng(3)
    table = np.array([rng.permutation(8)[:3] for _ in range(N)], np.int32)
    sheet = Sheet(tmp_path / "sheet.gguf", {"scores": rng.standard_normal((N, 8)), "token_embd.weight": rng.standard_normal((N, 32)),
                                            "table": (table, "I32")})  # fmt: skip
    weights = np.sqrt(np.log1p(np.exp(sheet.exact["scores"])))[np.arange(N)[:, None], table]

    def build(p, s):
        ids, weights = p.route(p.embed(s["scores"]), 3, gating="sqrtsoftplus", table=s.catalog.ids("table", 3, 8), normed=True, scale=1.5)
        ids.is_read = True
        p.logits(weights, None)

    with rig(sheet, team, build, hidden=True) as r:
        found = r.run([4, 1, 1, 8])
        np.testing.assert_allclose(found, (1.5 * weights / weights.sum(1, keepdims=True))[[4, 1, 1, 8]], rtol=1e-5)
        same_for_all("table", found)
    for width, below, says in ((2, 8, r"has the shape \(9, 3\), wanted \(9, 2\)"), (3, 7, "numbers from 0 to 7, wanted 0 to 6")):
        sheet.catalog.used.pop("table")
        with pytest.raises(CorruptModel, match=says):
            sheet.catalog.ids("table", width, below)
        sheet.catalog.ids("table", 3, 8)
    sheet.close()


def test_heads_are_turned_back(tmp_path, team):
    """What is rotated and turned back is what it was, but for what lies before the first value that is turned."""
    rng = np.random.default_rng(4)
    frequencies = 100.0 ** (-np.arange(4) / 4)
    sheet = Sheet(tmp_path / "sheet.gguf", {"x": rng.standard_normal((N, 5 * 20))})
    x, angle = sheet.exact["x"].reshape(N, 5, 20), np.arange(N)[:, None] * frequencies
    z = (x[:, :, 12::2] + 1j * x[:, :, 13::2]) * np.exp(-1j * angle)[:, None]
    wanted = x.copy()
    wanted[:, :, 12::2], wanted[:, :, 13::2] = z.real, z.imag

    def build(p, s):
        p.logits(p.turn(p.embed(s["x"]), p.rope_table(s.catalog.constant("f", frequencies)), 5, 12), None)

    with rig(sheet, team, build, hidden=True) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, wanted.reshape(N, -1), atol=2e-6)
        same_for_all("turned", found)
    with pytest.raises(PlanError, match="8 values from 13 on, of 5 heads in 100"):
        p = Plan(1, 8, 64)
        p.turn(p.embed(sheet["x"]), p.rope_table(sheet.catalog.constant("f", frequencies)), 5, 13)
    sheet.close()


def test_every_instruction_set_has_these_bits(tmp_path, case):
    name, sheet = case
    first, n = _core.isa(), SHAPES[name][0]

    def build(p, s):
        x, h, coef = pre(p, s, name)
        p.logits(h if coef is None else p.hyper_post(h, x, coef, n), None)

    try:
        for isa in _core.isa_available():
            _core.isa_select(isa)
            with open_team(1, 2) as team, rig(sheet, team, build, hidden=True) as r:
                same_for_all(("isa", name), r.run(np.arange(N)))
    finally:
        _core.isa_select(first)
