"""Ops of several residual streams against their definitions in float64, for every team and number of tokens."""

from itertools import product

import numpy as np
import pytest
import reference as ref
from core_tools import Sheet, open_team, rig, same_bits
from random_blocks import random_weights

from numainfer.engine.plan import Plan
from numainfer.errors import CorruptModel, PlanError

N, EPS = 20, 1e-5
TOKENS = (1, 2, 5, N)
TEAMS = tuple(product((1, 2), (1, 3)))  # (nodes, workers on each)
SHAPES = ((4, 96), (2, 576), (3, 33))  # streams, their width
FOUND = {}


@pytest.fixture(scope="module", params=TEAMS, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def team(request):
    with open_team(*request.param) as team:
        yield team


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(4)
    tensors = {}
    for n, d in SHAPES:
        tensors |= {f"{name}{d}": rng.standard_normal((N, d)) for name in "yz"}
        tensors |= {f"x{d}": rng.standard_normal((N, n * d)) * 2, f"norm{d}": rng.uniform(0.5, 2, d),
                    f"router{d}": rng.standard_normal(n * d) * d**-0.5,
                    f"predict{d}": rng.standard_normal(n**3) * 0.3, f"correct{d}": rng.standard_normal(n * n) * 0.3,
                    f"scale{d}": rng.uniform(0.5, 2, d), f"score{d}": rng.standard_normal(d) * 2 * d**-0.5,
                    f"bank{d}": rng.standard_normal((N, 3 * d)) * 2}  # fmt: skip
    tensors["rows"] = rng.standard_normal((N, 4, 96)) * np.array([1.0, 0.1, 3, 0.4])[:, None]
    tensors["rows"] = tensors["rows"].reshape(N, -1)
    tensors["square"] = random_weights(rng, 96, 96, "Q8_0", 0.1), "Q8_0"
    tensors["m"] = random_weights(rng, 33, 96, "Q8_0", 0.1), "Q8_0"
    tensors["three"] = np.stack([random_weights(rng, 96, 96, "Q8_0", 0.1) for _ in range(3)]), "Q8_0"
    sheet = Sheet(tmp_path_factory.mktemp("streams") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


def check(sheet, team, what, build, wanted, **close):
    with rig(sheet, team, build, hidden=True) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, wanted, **(close or {"rtol": 3e-6, "atol": 1e-5}))
        same_bits(found, FOUND.setdefault(what, found), what)
        for tokens in TOKENS:
            same_bits(r.run(np.arange(N - tokens, N)), found[N - tokens :], (what, tokens))


# ---- AltUp ----------------------------------------------------------------------------------------------------------------


def altup(e, n, d, y=None, z=None, scale=1.0):
    """(out, row) of the definition; e: the sheet's tensors."""
    x = e[f"x{d}"].reshape(N, n, d).copy()
    if z is not None:
        x[:, 1:] += z[:, None]
    v = x[:, 0] if y is None else y
    m = np.tanh(ref.rmsnorm(v, e[f"norm{d}"], EPS) @ e[f"router{d}"].reshape(n, d).T)
    if y is None:
        c = (m @ e[f"predict{d}"].reshape(n * n, n).T).reshape(N, n, n)
        out = x + c @ x
    else:
        c = 1 + m @ e[f"correct{d}"].reshape(n, n).T
        out = x + c[..., None] * (y - x[:, 0])[:, None]
    return out.reshape(N, n * d), out[:, 0] * scale


@pytest.mark.parametrize("result", ["out", "row"])
@pytest.mark.parametrize("missed", [False, True])
@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_altup(sheet, team, n, d, corrects, missed, result):
    y, z = (sheet.exact[f"{name}{d}"] if wanted else None for name, wanted in (("y", corrects), ("z", missed)))
    wanted = altup(sheet.exact, n, d, y, z, sheet.exact[f"scale{d}"] if corrects else 1.0)

    def build(p, s):
        more = {"y": p.embed(s[f"y{d}"]), "scale": s[f"scale{d}"]} if corrects else {}
        more |= {"z": p.embed(s[f"z{d}"])} if missed else {}
        coefficients = s[f"{'correct' if corrects else 'predict'}{d}"]
        out, row = p.altup(p.embed(s[f"x{d}"]), n, eps=EPS, norm=s[f"norm{d}"], router=s[f"router{d}"], coefficients=coefficients, **more)
        p.logits(out if result == "out" else row, None)

    check(sheet, team, ("altup", n, corrects, missed, result), build, wanted[result == "row"])


def test_what_streams_missed(sheet, team):
    """Without a router they only get what is added to all but the first, exactly."""
    wanted = sheet.exact["x96"].astype(np.float32)
    wanted[:, 96:] += np.tile(sheet.exact["z96"].astype(np.float32), 3)
    with rig(sheet, team, lambda p, s: p.logits(p.altup(p.embed(s["x96"]), 4, z=p.embed(s["z96"]))[0], None), hidden=True) as r:
        same_bits(r.run(np.arange(N)), wanted)


def test_a_matrix_reads_the_first_stream(sheet, team):
    def build(p, s):
        _, row = p.altup(p.embed(s["x96"]), 4, eps=EPS, norm=s["norm96"], router=s["router96"], coefficients=s["predict96"])
        p.logits(row, s["m"])

    wanted = ref.matmul_q8(altup(sheet.exact, 4, 96)[1], sheet.exact["m"])
    with rig(sheet, team, build) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, wanted, atol=0.02)
        same_bits(found, FOUND.setdefault("matrix", found))


# ---- lengths, banks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.0, 1.5])
def test_level(sheet, team, least):
    """Rows as long as another one; short ones count as longer than they are."""
    x, y = sheet.exact["y96"], sheet.exact["rows"].reshape(N, 4, 96)
    wanted = y * np.sqrt((x**2).mean(-1)[:, None, None] / np.maximum((y**2).mean(-1, keepdims=True), least))

    def build(p, s):
        rows = p.join(4, (p.embed(s["rows"]), 0, 96), apart=True)
        p.logits(p.join(1, (p.level(p.embed(s["y96"]), rows, least), 0, 4 * 96)), None)

    check(sheet, team, ("level", least), build, wanted.reshape(N, -1))


def test_level_of_what_matrices_made(sheet, team):
    """Of quantised ones, which also read what it gives."""
    def build(p, s):
        y = p.matmul_grouped(p.embed(s["y96"]), None, s["three"])
        p.logits(p.mix(p.matmul_grouped(p.level(p.embed(s["z96"]), y), None, s["three"]), None), None)

    three = sheet.exact["three"]
    y = np.stack([ref.matmul_q8(sheet.exact["y96"], w) for w in three], axis=1)
    y = y * np.sqrt((sheet.exact["z96"] ** 2).mean(-1)[:, None, None] / (y**2).mean(-1, keepdims=True))
    check(sheet, team, "level of products", build, sum(ref.matmul_q8(y[:, i], w) for i, w in enumerate(three)), atol=0.1)


@pytest.mark.parametrize("banked", [1, 3])
@pytest.mark.parametrize("d", [96, 33])
def test_recall(sheet, team, d, banked):
    """Streams of a bank and one more, weighed by a softmax of what their norms say."""
    bank, x, w = sheet.exact[f"bank{d}"][:, : banked * d].reshape(N, banked, d), sheet.exact[f"y{d}"], sheet.exact[f"score{d}"]
    all_of_them = np.concatenate([bank, x[:, None]], axis=1)
    scores = (ref.rmsnorm(all_of_them, np.ones(d), EPS) * w).sum(-1)
    wanted = (ref.softmax(scores)[..., None] * all_of_them).sum(1)
    assert ref.softmax(scores).max(1).min() < 0.9 and np.ptp(scores) > 2

    def build(p, s):
        bank = p.join(1, (p.embed(s[f"bank{d}"]), 0, banked * d))
        p.logits(p.recall(bank, p.embed(s[f"y{d}"]), s[f"score{d}"], EPS), None)

    check(sheet, team, ("recall", d, banked), build, wanted)


def test_recall_of_what_a_matrix_made(sheet, team):
    def build(p, s):
        p.logits(p.recall(p.embed(s["bank96"]), p.matmul(p.embed(s["y96"]), s["square"]), s["score96"], EPS), None)

    x, bank = ref.matmul_q8(sheet.exact["y96"], sheet.exact["square"]), sheet.exact["bank96"].reshape(N, 3, 96)
    all_of_them = np.concatenate([bank, x[:, None]], axis=1)
    scores = (ref.rmsnorm(all_of_them, np.ones(96), EPS) * sheet.exact["score96"]).sum(-1)
    check(sheet, team, "recall of a product", build, (ref.softmax(scores)[..., None] * all_of_them).sum(1), atol=0.02)


# ---- what is refused --------------------------------------------------------------------------------------------------------


def test_what_a_plan_refuses(sheet):
    p, s = Plan(1, N, 64), sheet
    x, y, z = (p.embed(s[name]) for name in ("x96", "y96", "z33"))
    how = {"norm": s["norm96"], "router": s["router96"], "coefficients": s["predict96"]}
    for wanted, error, call in (
        ("5 streams in rows of 384 values", PlanError, lambda: p.altup(x, 5, **how)),
        ("1 streams", PlanError, lambda: p.altup(x, 1, **how)),
        ("32 streams in rows of 384 values; wanted 2 to 16", PlanError, lambda: p.altup(x, 32, **how)),
        ("without a router", PlanError, lambda: p.altup(x, 4, y=y)),
        ("without a router", PlanError, lambda: p.altup(x, 4, scale=s["scale96"])),
        (r"operand z .* has width 33, wanted 96", PlanError, lambda: p.altup(x, 4, z=z, **how)),
        (r"operand y .* has width 33, wanted 96", PlanError, lambda: p.altup(x, 4, y=z, **how)),
        (r"coefficients .predict96. has width 64, wanted 16", CorruptModel, lambda: p.altup(x, 4, y=y, **how)),
        (r"router .router33. has width 99, wanted 384", CorruptModel, lambda: p.altup(x, 4, **how | {"router": s["router33"]})),
        (r"scale .scale33. has width 33, wanted 96", CorruptModel, lambda: p.altup(x, 4, **how, scale=s["scale33"])),
        (r"norm .m. is a matrix", CorruptModel, lambda: p.altup(x, 4, **how | {"norm": s["m"]})),
        (r"operand y .* has width 384, wanted 96", PlanError, lambda: p.level(y, x)),
        ("a bank of 384 values for streams of 33", PlanError, lambda: p.recall(x, z, s["score33"], EPS)),
        (r"w .score33. has width 33, wanted 96", CorruptModel, lambda: p.recall(x, y, s["score33"], EPS)),
        ("width 1, of which there is no deviation", PlanError, lambda: p.activate(p._tensor("one", 1, 1, "f"), "above", (1.0,))),
    ):
        with pytest.raises(error, match=wanted):
            call()
