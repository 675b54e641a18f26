"""Mixtures of experts: routing, products with the matrices that rows meet, and what becomes of them, against NumPy and with equal bits."""

import sys
import types
from itertools import product

import gguf
import numpy as np
import pytest
import reference as ref
from core_tools import Sheet, logits, open_engine, open_team, pretend, rig, same_bits
from random_blocks import random_weights

from numainfer import _core
from numainfer.engine import architectures
from numainfer.engine.architectures.blocks import Residual
from numainfer.engine.ops import NODE, PER_NODE, TEAM
from numainfer.engine.plan import Plan
from numainfer.engine.weights import FORMATS
from numainfer.errors import CorruptModel, PlanError
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

E, D, F, USED, EPS = 12, 256, 273, 3, 1e-6  # F: the last row group has one row; F32 alone takes it
TEAMS = ((1, 1), (1, 3), (2, 2), (3, 1))
TOKENS = (1, 2, 5, 16, 40)
TYPES = ("F32", "Q8_0", "Q4_K", "Q6_K", "MXFP4", "IQ4_XS", "NVFP4", "IQ3_XXS", "IQ2_S")


@pytest.fixture(scope="module", params=TEAMS, ids=str)
def team(request):
    with open_team(*request.param) as team:
        yield team


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(9)
    tensors = {"x": rng.standard_normal((40, D)), "norm": rng.uniform(0.5, 1.5, D), "router.weight": rng.standard_normal((E, D)) * 0.2,
               "choice.bias": rng.standard_normal(E), "gate.weight": rng.standard_normal((1, D)) * 0.1,
               "one": rng.standard_normal((D, D)) * 0.1}  # fmt: skip
    for kind in TYPES:
        k = F if kind == "F32" else 256
        for name, n, width in (("gate", k, D), ("up", k, D), ("down", D, k)):
            std = 1.5 * width**-0.5
            tensors[f"{kind} {name}.weight"] = np.stack([random_weights(rng, n, width, kind, std) for _ in range(E)]), kind
            tensors[f"{kind} {name}.bias"] = rng.standard_normal((E, n))
    tensors["three.weight"], tensors["weigh.weight"] = rng.standard_normal((3, 50, D)), rng.standard_normal((3, D))
    tensors |= {f"slice{e}": tensors["three.weight"][e] for e in range(3)}
    for score in ("scores", "ties", "wild"):
        tensors[score] = rng.standard_normal((40, E)) * 2
    tensors["ties"] = np.round(tensors["ties"])
    tensors["wild"][::3, ::2], tensors["wild"][1::3], tensors["wild"][2::3, 5] = np.nan, np.inf, -np.inf
    for n in (20, 64):
        tensors[f"y{n}"] = rng.standard_normal((40, n))
    sheet = Sheet(tmp_path_factory.mktemp("experts") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


seen = {}


def same_for_all_teams(what, found):
    same_bits(found, seen.setdefault(what, found.copy()), what)


# ---- scores ------------------------------------------------------------------------------------------------------------

LONG = {"F32": 1000, "Q8_0": 544, "Q4_K": 768}  # widths that are summed in several parts, the last one a short one


@pytest.fixture(scope="module")
def routers(tmp_path_factory):
    rng, tensors = np.random.default_rng(12), {}
    for kind, k in LONG.items():
        tensors[f"x{k}"] = rng.standard_normal((150, k))
        for n in (1, 70):
            tensors[f"{kind} {n}.weight"] = random_weights(rng, n, k, kind, k**-0.5), kind
            tensors[f"{kind} {n}.bias"] = rng.standard_normal(n)
    sheet = Sheet(tmp_path_factory.mktemp("routers") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


@pytest.mark.parametrize("n", [1, 70])
@pytest.mark.parametrize("kind", LONG)
def test_long_rows_are_summed_in_parts(routers, team, kind, n):
    """Near the exact sums; with the same bits alone or among others, for dots and panels, and whoever sums which part."""
    def build(p, s):
        p.logits(p.score(p.embed(s[f"x{LONG[kind]}"]), s[f"{kind} {n}.weight"]), None)

    exact = routers.exact[f"x{LONG[kind]}"] @ routers.exact[f"{kind} {n}.weight"].reshape(n, -1).T + routers.exact[f"{kind} {n}.bias"]
    with rig(routers, team, build, hidden=True, n_batch=150) as r:
        assert [op.name for op in r.plan.ops] == ["embed", "score", "mix", "emit"]
        found = r.run(np.arange(150))
        np.testing.assert_allclose(found, exact, atol=2e-6 if kind == "F32" else 0.03)
        same_for_all_teams(("score", kind, n), found)
        for tokens in (1, 2, 3, 17, 130):
            for seed in range(3):
                same_bits(r.run(np.arange(tokens), seed=seed), found[:tokens], tokens)


def test_workers_score_what_is_counted(routers, team):
    for kind, k in LONG.items():
        w = routers[f"{kind} 70.weight"]
        for tokens in (1, 5, 150):
            with rig(routers, team, lambda p, s, k=k, w=w: p.logits(p.score(p.embed(s[f"x{k}"]), w), None), hidden=True, n_batch=150) as r:
                r.run(np.arange(tokens))
                size = len(team) // team.n_nodes
                wanted = np.array(_core.score_work((w.code, w.n, w.k), -(-k // _core.SLAB), tokens, size) * team.n_nodes)
                np.testing.assert_array_equal(r.core.work(), wanted)
                assert (wanted[:, 1].reshape(team.n_nodes, -1).sum(axis=1) == tokens * 80 * k).all()


@pytest.mark.parametrize("size", [1, 2, 16, 64, 96])
def test_scores_lie_evenly_on_a_node(size):
    """As long as there are as many parts of rows as workers."""
    for n, k, tokens in product((64, 256, 512), (2048, 7168), (1, 512)):
        done = np.array(_core.score_work((FORMATS["F32"]["code"], n, k), k // 256, tokens, size))
        assert done[:, 1].sum() == n * k * tokens
        units = n // 16 * (k // 256) * tokens
        assert done[:, 1].max() <= 1.1 * done[:, 1].mean() or units < 10 * size, (n, k, tokens)


# ---- routing -----------------------------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sparse_mixer(scores, used):
    """SparseMixer without its noise, as the published model code has it: a choice at a time, each by softmax of what is nearly as good."""
    ids, weights, left = [], [], np.array(scores, np.float64)
    for _ in range(used):
        chosen = left.argmax(axis=-1)
        top = np.take_along_axis(left, chosen[:, None], axis=-1)
        far = (top - scores) / np.maximum(np.abs(scores), top) > 2 * 0.01
        weights.append(np.take_along_axis(softmax(np.where(far, -np.inf, left)), chosen[:, None], axis=-1)[:, 0])
        ids.append(chosen)
        np.put_along_axis(left, chosen[:, None], -np.inf, axis=-1)
    return np.stack(ids, axis=-1), np.stack(weights, axis=-1)


def routed(scores, used, gating="softmax", bias=None, normed=False, scale=1.0, groups=1, groups_used=1, group_best=2):
    """The op in float64: ids and weights (T, used)."""
    if gating == "sparse":
        return sparse_mixer(scores, used)
    gates = {"softmax": softmax, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "chosen": lambda x: x,
             "sqrtsoftplus": lambda x: np.sqrt(np.logaddexp(0, x)), "late": lambda x: x}[gating](scores)
    choice = gates + (0 if bias is None else bias)
    grouped = choice.reshape(len(choice), groups, -1)
    score = np.sort(grouped, axis=-1)[..., -group_best:].sum(axis=-1)
    allowed = np.argsort(-score, axis=-1, kind="stable")[:, :groups_used]
    mask = np.full(grouped.shape, -np.inf)
    np.put_along_axis(mask, allowed[..., None], 0.0, axis=1)
    ids = np.argsort(-(grouped + mask).reshape(choice.shape), axis=-1, kind="stable")[:, :used]
    weights = np.take_along_axis(gates, ids, axis=-1)
    if gating == "chosen":
        weights = softmax(weights)
    if gating == "late":
        weights = 1 / (1 + np.exp(-weights))
    if normed:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return ids, weights * scale


def run_route(sheet, team, scores, tokens, **options):
    """(ids, weights) of the op for the first tokens of a tensor of scores."""
    def build(p, s):
        ids, weights = p.route(p.embed(s[scores]), **options)
        ids.is_read = True
        p.logits(weights, None)

    def hand_ids_out(ops, tensors):
        """The plan's last op copies four bytes a value, whatever they are."""
        ids = ops[-2]["t"][1]
        ops["t"][-1, 0], tensors["f"][ids] = ids, tensors["i"][ids]

    with rig(sheet, team, build, hidden=True) as r:
        weights = r.run(np.arange(tokens))
    with rig(sheet, team, build, hidden=True, edit_all=hand_ids_out) as r:
        ids = r.run(np.arange(tokens)).view(np.int32)
    return ids, weights


@pytest.mark.parametrize("options", [
    {"used": 1}, {"used": 3}, {"used": E}, {"used": 3, "normed": True, "scale": 2.5}, {"used": 4, "gating": "sigmoid", "normed": True},
    {"used": 4, "gating": "sigmoid", "groups": 4, "groups_used": 2}, {"used": 2, "gating": "chosen"},
    {"used": 3, "gating": "sqrtsoftplus", "normed": True}, {"used": 2, "gating": "late"},
    {"used": 2, "gating": "sparse"}, {"used": 3, "groups": 4, "groups_used": 2, "group_best": 1},
    {"used": 5, "groups": 2, "groups_used": 1}, {"used": 2, "groups": E, "groups_used": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scores", ["scores", "ties"])
def test_route(sheet, team, scores, with_bias, options):
    if with_bias and options.get("gating") == "sparse":
        pytest.skip("SparseMixer has no bias")
    bias, vector = sheet.exact["choice.bias"], sheet["choice.bias"]
    found_ids, found = run_route(sheet, team, scores, 40, **options, bias=vector if with_bias else None)
    ids, weights = routed(sheet.exact[scores], **options, bias=bias if with_bias else None)
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_allclose(found, weights, rtol=3e-6)
    for tokens in TOKENS[:3]:
        some_ids, some = run_route(sheet, team, scores, tokens, **options, bias=vector if with_bias else None)
        np.testing.assert_array_equal(some_ids, ids[:tokens])
        same_bits(some, found[:tokens])
    same_for_all_teams(("route", scores, with_bias, str(options)), found)


@pytest.mark.parametrize("options", [
    {"gating": "softmax"}, {"gating": "sigmoid", "groups": 4, "groups_used": 1}, {"gating": "chosen"},
], ids=str)  # fmt: skip
def test_ids_are_in_range_whatever_the_scores_are(sheet, team, options):
    ids, _ = run_route(sheet, team, "wild", 40, used=3, **options)
    assert ids.min() >= 0 and ids.max() < E
    assert all(len(set(row)) == 3 for row in ids.tolist())


# ---- products ----------------------------------------------------------------------------------------------------------


def mixture(p, s, kind, shared=False, logits=None):
    """Norm, router, experts, their sum, and the residual stream."""
    x = Residual(p, p.embed(s["x"]), EPS)
    h = x.norm(s["norm"])
    ids, weights = p.route(p.score(h, s["router.weight"]), USED, normed=True)
    gate, up = p.matmul_grouped(h, ids, s[f"{kind} gate.weight"], s[f"{kind} up.weight"])
    y = p.matmul_grouped(p.gated(gate, up, "silu"), ids, s[f"{kind} down.weight"])
    also = {"also": p.matmul(h, s["one"]), "gate": p.score(h, s["gate.weight"])} if shared else {}
    x.add(p.mix(y, weights, **also))
    p.logits(x.norm(s["norm"], selected=True), logits)


def mixture_twin(s, kind, shared):
    x = s.exact["x"]
    h = ref.rmsnorm(x, s.exact["norm"], EPS)
    ids, weights = routed(h @ s.exact["router.weight"].T, USED, normed=True)
    w = {name: (s.exact[f"{kind} {name}.weight"], s.exact[f"{kind} {name}.bias"].reshape(E, -1)) for name in ("gate", "up", "down")}
    product = ref.matmul if kind == "F32" else ref.matmul_q8
    total = x.copy()
    for t in range(len(x)):
        for slot, e in enumerate(ids[t]):
            gate, up = (product(h[t : t + 1], w[name][0][e]) + w[name][1][e] for name in ("gate", "up"))
            total[t] += weights[t, slot] * (product(ref.silu_mul(gate, up), w["down"][0][e]) + w["down"][1][e])[0]
    if shared:
        total += (h @ s.exact["one"].T) / (1 + np.exp(-(h @ s.exact["gate.weight"].T)))
    return ref.rmsnorm(total, s.exact["norm"], EPS)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_mixture_of_experts(sheet, team, kind, shared):
    wanted = mixture_twin(sheet, kind, shared)
    for policy in ("replicate", "shard"):
        with rig(sheet, team, lambda p, s: mixture(p, s, kind, shared), hidden=True, policy=policy) as r:
            found = r.run(np.arange(40))
            np.testing.assert_allclose(found, wanted, atol=2e-5 if kind == "F32" else 5e-3, err_msg=policy)
            same_for_all_teams((kind, shared), found)
            for tokens in TOKENS:
                same_bits(r.run(np.arange(40 - tokens, 40)), found[40 - tokens :], (policy, tokens))
            for seed in (1, 2, 3):
                same_bits(r.run(np.arange(40), seed=seed), found, (policy, "shuffled", seed))
                same_bits(r.run(np.arange(2), seed=seed), found[:2], (policy, "shuffled", seed))


@pytest.mark.parametrize("kind", ["F32", "Q4_K"])
@pytest.mark.parametrize("sharing", [2, 6])
def test_neighbours_share_an_expert(sheet, team, kind, sharing):
    """A token may meet it several times: each row has the bits that it has alone, and the bytes are read once."""
    def build(p, s):
        ids, _, shared = p.route(p.embed(s["scores"]), 5, sharing=sharing)
        y = p.matmul_grouped(p.embed(s["x"]), shared, s[f"{kind} up.weight"])
        ids.is_read = True
        p.logits(p.mix(y, None), None)

    ids = routed(sheet.exact["scores"], 5)[0] // sharing
    w, bias = sheet.exact[f"{kind} up.weight"], sheet.exact[f"{kind} up.bias"].reshape(E, -1)
    product = ref.matmul if kind == "F32" else ref.matmul_q8
    each = np.stack([product(sheet.exact["x"], w[e]) + bias[e] for e in range(E // sharing)])
    wanted = sum(each[ids[:, i], np.arange(40)] for i in range(5))
    up = sheet[f"{kind} up.weight"]
    assert max(np.bincount(row).max() for row in ids) == min(sharing, 5)
    with rig(sheet, team, build, hidden=True) as r:
        found = r.run(np.arange(40))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=(1e-5 if kind == "F32" else 5e-3) * np.abs(wanted).max())
        same_for_all_teams(("sharing", kind, sharing), found)
        for tokens in (1, 2, 5, 32):
            for seed in (0, 1):
                r.core.work()
                same_bits(r.run(np.arange(tokens), seed=seed), found[:tokens], (tokens, seed))
                assert r.core.work()[:, 0].sum() == up.packed_bytes // E * len(np.unique(ids[:tokens]))


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_more_rows_than_tokens_meet_a_shared_expert(tmp_path, kind):
    """And more than workers who share a row group of it have room for."""
    rng = np.random.default_rng(2)
    sheet = Sheet(tmp_path / "shared.gguf", {
        "scores": rng.standard_normal((32, 16)), "x": rng.standard_normal((32, 1024)),
        "w": (np.stack([random_weights(rng, 72, 1024, kind, 0.1) for _ in range(2)]), kind)})  # fmt: skip

    def build(p, s):
        ids, _, shared = p.route(p.embed(s["scores"]), 16, sharing=8)
        p.logits(p.mix(p.matmul_grouped(p.embed(s["x"]), shared, s["w"]), None), None)

    product = ref.matmul if kind == "F32" else ref.matmul_q8
    wanted = 8 * sum(product(sheet.exact["x"], w) for w in sheet.exact["w"])
    for workers in (1, 2, 3):
        with open_team(1, workers) as team, rig(sheet, team, build, hidden=True, n_batch=32) as r:
            for tokens in (32, 8, 1):
                found = r.run(np.arange(tokens))
                np.testing.assert_allclose(found, wanted[:tokens], rtol=0, atol=(1e-5 if kind == "F32" else 5e-3) * np.abs(wanted).max())
                same_bits(found, r.run(np.arange(tokens), seed=3))
    sheet.close()


@pytest.mark.parametrize("kind", TYPES)
def test_the_bytes_of_an_expert_are_read_once_in_a_step(sheet, team, kind):
    """However many sequences the rows are of; and no bytes of an expert that none of them chose."""
    def build(p, s):
        ids, weights = p.route(p.embed(s["scores"]), USED)
        gate, up = p.matmul_grouped(p.embed(s["x"]), ids, s[f"{kind} gate.weight"], s[f"{kind} up.weight"])
        p.logits(p.mix(p.matmul_grouped(p.gated(gate, up, "silu"), ids, s[f"{kind} down.weight"]), weights), None)

    ids, _ = routed(sheet.exact["scores"], USED)
    matrices = [sheet[f"{kind} {name}.weight"] for name in ("gate", "up", "down")]
    n_bytes, n_macs = sum(w.packed_bytes for w in matrices) // E, sum(-(-w.n // 16) * 16 * w.k for w in matrices)
    with rig(sheet, team, build, hidden=True) as r:
        for tokens in TOKENS:
            chosen = len(np.unique(ids[:tokens]))
            assert USED <= chosen < E or tokens > 2
            for seed in (0, 1):
                r.core.work()
                r.run(np.arange(tokens), [(r.new_kv(), 1, 0) for _ in range(tokens)], seed=seed)
                assert r.core.work().sum(axis=0).tolist() == [n_bytes * chosen, n_macs * tokens * USED]


@pytest.mark.parametrize("kind", ["F32", "Q4_K"])
def test_every_slot_has_its_own_matrix_without_ids(sheet, team, kind):
    """As heads of latent attention have: h has a row per slot, or one for all."""
    for own in (False, True):
        def build(p, s, own=own):
            h = p.embed(s["x"])
            up = p.matmul_grouped(h, None, s[f"{kind} up.weight"])
            y = p.matmul_grouped(p.gated(up, up, "gelu"), None, s[f"{kind} down.weight"]) if own else up
            weights = p.score(h, s["router.weight"])
            p.logits(p.mix(y, weights), None)

        x, w = sheet.exact["x"], sheet.exact
        product = ref.matmul if kind == "F32" else ref.matmul_q8
        weights = x @ w["router.weight"].T
        wanted = 0
        for e in range(E):
            y = product(x, w[f"{kind} up.weight"][e]) + w[f"{kind} up.bias"].reshape(E, -1)[e]
            if own:
                y = product(ref.gelu_mul(y, y), w[f"{kind} down.weight"][e]) + w[f"{kind} down.bias"].reshape(E, -1)[e]
            wanted = wanted + weights[:, e : e + 1] * y
        with rig(sheet, team, build, hidden=True) as r:
            found = r.run(np.arange(40))
            most = (1e-5 if kind == "F32" else 1e-2) * np.abs(wanted).max()
            np.testing.assert_allclose(found, wanted, rtol=0, atol=most)
            same_for_all_teams(("fixed", kind, own), found)
            same_bits(r.run(np.arange(3)), found[:3])


def test_a_mix_is_summed_in_the_order_of_the_slots(sheet, team):
    """Each product, rounded, added to the sum so far; and a row's product with one of three matrices is that of a plain matmul."""
    def run(build):
        with rig(sheet, team, build, hidden=True) as r:
            return r.run(np.arange(40))

    rows = [run(lambda p, s, e=e: p.logits(p.matmul(p.embed(s["x"]), s[f"slice{e}"]), None)) for e in range(3)]
    weights = run(lambda p, s: p.logits(p.score(p.embed(s["x"]), s["weigh.weight"]), None))

    def build(p, s):
        h = p.embed(s["x"])
        p.logits(p.mix(p.matmul_grouped(h, None, s["three.weight"]), p.score(h, s["weigh.weight"]), also=p.matmul(h, s["slice0"])), None)

    total = weights[:, :1] * rows[0]
    for e in (1, 2):
        total = total + weights[:, e : e + 1] * rows[e]
    same_bits(run(build), total + rows[0])


def test_a_mix_is_scaled_at_its_end(sheet, team):
    def build(p, s, scale):
        h = p.embed(s["x"])
        p.logits(p.mix(p.matmul_grouped(h, None, s["three.weight"]), p.score(h, s["weigh.weight"]), also=p.matmul(h, s["slice0"]),
                       scale=scale), None)

    with rig(sheet, team, lambda p, s: build(p, s, 1.0), hidden=True) as r:
        plain = r.run(np.arange(40))
    with rig(sheet, team, lambda p, s: build(p, s, 0.3), hidden=True) as r:
        same_bits(r.run(np.arange(40)), plain * np.float32(0.3))
        same_bits(r.run(np.arange(2)), plain[:2] * np.float32(0.3))


def test_rows_are_weighed_before_the_experts(sheet, team):
    """Each slot's row is a token's own times the slot's weight."""
    def build(p, s):
        h = p.embed(s["x"])
        weights = p.score(h, s["weigh.weight"])
        p.logits(p.mix(p.matmul_grouped(p.weigh(h, weights), None, s["three.weight"]), weights), None)

    weights = sheet.exact["x"] @ sheet.exact["weigh.weight"].T
    y = np.einsum("ts,td,snd->tsn", weights, sheet.exact["x"], sheet.exact["three.weight"])
    wanted = np.einsum("tsn,ts->tn", y, weights)
    with rig(sheet, team, build, hidden=True) as r:
        found = r.run(np.arange(40))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
        same_for_all_teams("weighed", found)
        same_bits(r.run(np.arange(3)), found[:3])


@pytest.mark.parametrize("gate", ["sigmoid", "softplus"])
def test_rows_of_slots_behind_gates(sheet, team, gate):
    """As heads are."""
    def build(p, s):
        h = p.embed(s["x"])
        p.logits(p.mix(p.weigh(p.matmul_grouped(h, None, s["three.weight"]), p.score(h, s["weigh.weight"]), gate=gate), None), None)

    weights = sheet.exact["x"] @ sheet.exact["weigh.weight"].T
    weights = 1 / (1 + np.exp(-weights)) if gate == "sigmoid" else np.logaddexp(0, weights)
    wanted = np.einsum("ts,td,snd->tn", weights, sheet.exact["x"], sheet.exact["three.weight"])
    with rig(sheet, team, build, hidden=True) as r:
        found = r.run(np.arange(40))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        same_for_all_teams(("gated rows", gate), found)
        same_bits(r.run(np.arange(3)), found[:3])


def test_all_tokens_may_meet_one_expert_and_many_of_them(sheet, team):
    """200 times the same token: more rows than a block for some experts, none for the others."""
    for kind in ("F32", "Q4_K"):
        with rig(sheet, team, lambda p, s, kind=kind: mixture(p, s, kind), hidden=True, n_batch=200) as r:
            alone = np.concatenate([r.run([0]), r.run([1])])
            for ids in (np.zeros(200, int), np.arange(200) % 2):
                same_bits(r.run(ids), alone[ids], kind)


# ---- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_nodes", [1, 2])
def test_barriers_of_a_mixture(sheet, n_nodes):
    """A team barrier after gate and up and one after down: routing is each node's own affair."""
    plan = Plan(n_nodes, 8, 64, hidden=True)
    mixture(plan, sheet, "Q8_0")
    plan.compile()
    before = {op.name: op.barrier for op in plan.ops}
    assert plan.barriers() == (7, 2)
    assert (before["score"], before["route"], before["gated"], before["mix"]) == (NODE, NODE, TEAM, TEAM)
    grouped = [op for op in plan.ops if op.name == "matmul_grouped"]
    up, down = grouped
    one = sheet["Q8_0 up.weight"]
    assert [w.name for w in plan.whole] == ["router.weight"] and up.cost(1).macs == USED * 2 * one.n * one.k
    assert up.cost(1).n_bytes == 2 * one.packed_bytes * USED // E and up.cost(100).n_bytes == 2 * one.packed_bytes
    assert down.cost(2).n_bytes == sheet["Q8_0 down.weight"].packed_bytes * 2 * USED // E


def several(p, rows, width=D, form="f"):
    tensor = p._tensor("several", width, PER_NODE, form, per_token=rows)
    tensor.first = 0
    return tensor


@pytest.mark.parametrize(("bad", "error", "says"), [
    (lambda p, s, h, ids: p.matmul_grouped(h, ids, s["one"], s["Q8_0 up.weight"]), CorruptModel,
     "has 12 matrices of 256 x 256 values, wanted 1"),
    (lambda p, s, h, ids: p.matmul_grouped(h, h, s["Q8_0 up.weight"]), PlanError, r"operand ids \\(h\\) holds floats, wanted ids"),
    (lambda p, s, h, ids: p.matmul_grouped(several(p, 2), ids, s["Q8_0 up.weight"]), PlanError, "has 2 rows per token, wanted 1 or 3"),
    (lambda p, s, h, ids: p.matmul_grouped(h, ids), PlanError, "one to three matrices, found 0"),
    (lambda p, s, h, ids: p.matmul_grouped(h, ids, s["F32 down.weight"]), CorruptModel, "has width 273, wanted 256"),
    (lambda p, s, h, ids: p.route(h, 3, gating="argmax"), PlanError, "gating 'argmax'; wanted one of softmax, sigmoid, chosen, sqrts"),
    (lambda p, s, h, ids: p.route(h, 3, gating="sparse", bias=s["choice.bias"]), PlanError, "'sparse' takes no bias"),
    (lambda p, s, h, ids: p.route(h, 3, groups=5), PlanError, "3 of 256 experts, in 1 of 5 groups"),
    (lambda p, s, h, ids: p.route(h, 3, sharing=3), PlanError, "256 experts, of which 3 share another; wanted a divisor"),
    (lambda p, s, h, ids: p.route(h, 200, groups=4, groups_used=3), PlanError, "200 of 256 experts, in 3 of 4 groups"),
    (lambda p, s, h, ids: p.route(p.matmul(h, s["one"]), 3), PlanError, "scores on every node"),
    (lambda p, s, h, ids: p.mix(several(p, 4), several(p, 1, 3)), PlanError, "operand weights .* has width 3, wanted 4"),
    (lambda p, s, h, ids: p.mix(several(p, 3), ids), PlanError, "operand weights .* holds ids, wanted floats"),
    (lambda p, s, h, ids: p.mix(several(p, 3), several(p, 1, 3), also=several(p, 1, 8)), PlanError,
     "operand also .* has width 8, wanted 256"),
    (lambda p, s, h, ids: p.mix(several(p, 3), several(p, 1, 3), also=h, gate=h), PlanError, "operand gate .* has width 256, wanted 1"),
])  # fmt: skip
def test_errors(sheet, bad, error, says):
    plan = Plan(2, 8, 64)
    _, h = plan.norm(plan.embed(sheet["x"]), sheet["norm"], EPS)
    ids, _ = plan.route(plan.score(h, sheet["router.weight"]), USED)
    with pytest.raises(error, match=says.replace("\\\\", "\\")):
        bad(plan, sheet, h, ids)


# ---- an engine ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(sheet, tmp_path, monkeypatch):
    """A file of an architecture that is a mixture without attention, of F32; the engine knows it."""
    path, names = tmp_path / "mixture.gguf", ("x", "norm", "router.weight", "one", "gate.weight")
    writer = gguf.GGUFWriter(path, "mixture")
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    for name in (*names, *(n for n in sheet.exact if n.startswith("F32 "))):
        writer.add_tensor(name, sheet.exact[name].astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def build(p, weights):
        mixture(p, weights, "F32", shared=True, logits=weights["x"])

    module = types.SimpleNamespace(build=build)
    monkeypatch.setitem(sys.modules, "numainfer.engine.architectures.mixture", module)
    monkeypatch.setattr(architectures, "SUPPORTED", ("mixture",))
    return path


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
def test_an_engine_places_experts(sheet, model, monkeypatch, placement):
    """In shard every node holds a part of every expert, and the router whole."""
    wanted = mixture_twin(sheet, "F32", shared=True) @ sheet.exact["x"].T
    for shape in ((1, 1), (2, 1), (2, 2), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(model, placement=placement) as engine:
            found = logits(engine, np.arange(40))
            np.testing.assert_allclose(found, wanted, atol=1e-3)
            same_for_all_teams("engine", found)
            same_bits(logits(engine, np.arange(40), chunks=[1, 2, 30, 1]), found)
            if placement == "shard" and shape[0] > 1:
                _, n, _, _, bounds, experts = engine.replicas.entry(engine._catalog["F32 down.weight"])
                assert (experts, n, bounds[0], bounds[-1]) == (E, D, 0, D // 16)
                assert engine.replicas.entry(engine._catalog["router.weight"])[4] is None
                assert max(arena.bytes for arena in engine.replicas.arenas) < 0.8 * sum(w.packed_bytes for w in engine.plan.weights)


def test_capacity_knows_what_a_mixture_reads(sheet, model):
    with GGUFFile(model) as file:
        found = demand(file, 2)
    used = sum(sheet[f"F32 {name}.weight"].packed_bytes for name in ("gate", "up", "down")) * USED // E
    plain = sum(sheet[name].packed_bytes for name in ("x", "router.weight", "one", "gate.weight"))
    assert found.read == used + plain and found.macs == USED * 3 * F * D + (40 + E + D + 1) * D
    assert found.exchange == 4 * (USED * (2 * F + D) + D)
