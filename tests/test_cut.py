"""How a matmul's work is cut over workers: everything once, evenly on machines that are not here, and as real workers do it."""

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from core_tools import Sheet, open_team, rig, same_bits
from random_blocks import random_weights

from numainfer import _core
from numainfer.engine.weights import FORMATS

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import balance  # noqa: E402

SMALL = {"crew": 3, "piece_bytes": 1, "exact_groups": 8, "line_tokens": 4, "tile_groups": 2, "tile_tokens": 8}
Q4_0, Q8_0, F16 = (FORMATS[name]["code"] for name in ("Q4_0", "Q8_0", "F16"))


def covered(shapes, tokens, units):
    """How often each (row group, slab, token) of each matrix is multiplied."""
    found = []
    for j, (_, n, k) in enumerate(shapes):
        times = np.zeros((-(-n // 16), -(-k // 256), tokens), int)
        for u in units[units["matrix"] == j]:
            assert u["k0"] % 256 == 0 and (u["k1"] % 256 == 0 or u["k1"] == k)
            times[u["g0"] : u["g1"], u["k0"] // 256 : -(-u["k1"] // 256), u["t0"] : u["t1"]] += 1
        found.append(times)
    return found


def random_case(rng):
    """Shapes, tokens, workers by node, sizes."""
    k = int(rng.choice([32, 256, 544, 1024, 4096]))
    shapes = [(int(code), int(rng.integers(1, 40) ** rng.integers(1, 4)), k) for code in rng.choice([Q4_0, Q8_0, F16], rng.integers(1, 4))]
    workers = rng.integers(1, int(rng.choice([2, 5, 40])) + 1, rng.integers(1, 5)).tolist()
    sizes = {"crew": rng.integers(1, 20), "piece_bytes": rng.choice([1, 5000, 40000]), "exact_groups": rng.choice([0, 8, 1000]),
             "line_tokens": rng.choice([0, 8, 32]), "tile_groups": rng.integers(1, 9), "tile_tokens": rng.integers(1, 40)}  # fmt: skip
    return shapes, int(rng.choice([1, 2, 7, 33, 100])), workers, sizes if rng.random() < 0.8 else None


def test_everything_is_multiplied_once():
    """And each node's rows are the matrix's own, whatever its companions; ends of groups go to the worker behind, of the same crew."""
    rng, kinds = np.random.default_rng(3), set()
    for _ in range(1500):
        shapes, tokens, workers, sizes = random_case(rng)
        units = _core.matmul_units(shapes, tokens, workers, sizes)
        assert all((times == 1).all() for times in covered(shapes, tokens, units)), (shapes, tokens, workers, sizes)
        for j, (_, n, k) in enumerate(shapes):
            mine = units[units["matrix"] == j]
            bounds = np.array(_core.node_cut(n, workers))
            assert (bounds[mine["node"]] <= mine["g0"]).all() and (mine["g1"] <= bounds[mine["node"] + 1]).all()
            begun = {(u["node"], u["crew"], u["rank"] + 1, u["g0"], u["k1"]) for u in mine[mine["k1"] < k]}
            ended = {(u["node"], u["crew"], u["rank"], u["g0"], u["k0"]) for u in mine[mine["k0"] > 0]}
            assert begun == ended, "of each group that is cut, two workers side by side have a part"
            kinds |= {"cut"} if begun else set()
        kinds |= {"piece"} if (units["rank"] < 0).any() and (units["t1"] - units["t0"] == tokens).all() else set()
        kinds |= {"columns"} if (units["t0"] > 0).any() else set()
        kinds |= {"tiles"} if ((units["rank"] < 0) & (units["t0"] > 0)).any() else set()
        kinds |= {"crews"} if (units["crew"] > 0).any() else set()
    assert kinds == {"cut", "piece", "columns", "tiles", "crews"}


def test_workers_with_equal_work_do_not_wait_for_each_other():
    """The beginning of a group is done first and its end last: there is time between, for no part is shorter than a group."""
    for workers, groups in product(([3], [16], [96, 96]), range(1, 300, 7)):
        units = _core.matmul_units([(Q8_0, groups * 16, 4096)], 1, workers)
        for node, rank in {(u["node"], u["rank"]) for u in units[units["k1"] < 4096]}:
            own = units[(units["node"] == node) & (units["rank"] == rank)]
            assert own["k1"][0] < 4096 and (own["k0"][1:-1] == 0).all()
            assert ((own["g1"] - own["g0"]) * (own["k1"] - own["k0"])).sum() >= 4096


@pytest.mark.parametrize("workers", [[2], [32], [96, 96], [96] * 4], ids=str)
def test_sharing_never_switches_itself_off(workers):
    """From four row groups each on, equally fast workers have a piece or more each to take, and the others leave theirs to them."""
    for each in (4, 7, 9.33, 40, 1000):
        n = int(each * sum(workers)) * 16
        units = _core.matmul_units([(Q8_0, n, 4096)], 1, workers)
        shared = (units["g1"] - units["g0"])[units["rank"] < 0].sum() / (n // 16)
        assert 0.1 <= shared <= 0.25 and (units["rank"] < 0).sum() >= sum(workers)


def test_arguments_are_checked():
    right = {"shapes": [(Q8_0, 16, 32)], "n_tokens": 1, "workers": [1]}
    for name, bad in (("shapes", []), ("shapes", [(Q8_0, 16, 32)] * 4), ("shapes", [(Q8_0, 16, 32), (Q8_0, 16, 64)]), ("n_tokens", 0),
                      ("workers", []), ("workers", [2, 0])):  # fmt: skip
        with pytest.raises(ValueError, match="an op multiplies one to 3 matrices of equal k"):
            _core.matmul_units(**{**right, name: bad})
    with pytest.raises(ValueError, match="sizes tiles do not exist; there are crew, piece_bytes"):
        _core.matmul_units([(Q8_0, 16, 32)], 1, [1], {"tiles": 3})


# ---- experts -----------------------------------------------------------------------------------------------------------


def random_choice(rng):
    """Shapes of an expert's matrices, rows that meet each, tokens, workers by node, sizes."""
    shapes, _, workers, sizes = random_case(rng)
    shapes = [(code, min(n, 3000), k) for code, n, k in shapes]
    experts, tokens = int(rng.integers(1, 20)), int(rng.choice([1, 2, 9, 32, 33, 90]))
    used = int(rng.integers(1, experts + 1))
    return shapes, balance.chosen(experts, used, tokens, str(rng.choice(balance.ROUTINGS))), tokens, workers, sizes


def test_every_expert_meets_its_rows_once():
    """In rows that are its node's; a group that is cut has two workers, side by side, the earlier one's part before the later one's."""
    rng, cut, whole, pieces = np.random.default_rng(4), 0, 0, 0
    for _ in range(1500):
        shapes, rows, tokens, workers, sizes = case = random_choice(rng)
        units = _core.grouped_units(shapes, rows, tokens, workers, sizes)
        shared = units[units["rank"] < 0]
        assert ((shared["piece"] >= 0) & (shared["k0"] == 0) & (shared["k1"] == shapes[0][2])).all()  # whole row groups
        assert (units["piece"][units["rank"] >= 0] == -1).all()
        pieces += len(shared)
        first = np.concatenate([[0], np.cumsum(rows)])
        assert np.isin(units["t0"], first).all()
        experts = np.searchsorted(first, units["t0"], side="right") - 1  # of equal ones the last: the others have no rows
        assert (units["t1"] == first[experts + 1]).all() and (rows[experts] > 0).all()
        for e in np.flatnonzero(rows):
            own = units[experts == e].copy()
            own["t0"], own["t1"] = 0, 1
            assert all((times == 1).all() for times in covered(shapes, 1, own)), case
        for j, (_, n, k) in enumerate(shapes):
            bounds, mine = np.array(_core.node_cut(n, workers)), units["matrix"] == j
            node = units["node"][mine]
            assert (bounds[node] <= units["g0"][mine]).all() and (units["g1"][mine] <= bounds[node + 1]).all()
            of = [(u, (e, u["node"], u["g0"])) for u, e in zip(units[mine], experts[mine])]
            begun = {(*key, u["rank"] + 1, u["k1"]) for u, key in of if u["k1"] < k}
            ended = {(*key, u["rank"], u["k0"]) for u, key in of if u["k0"]}
            assert begun == ended, case
            cut, whole = cut + len(begun), whole + int(mine.sum())
    assert cut > 1000 and whole > 10 * cut and whole > pieces > 1000


def test_a_quarter_of_what_experts_cost_is_shared():
    """In as many pieces for each worker of a crew, of equal cost, however rows choose; none where one would be too much."""
    shape, n_bytes = (Q8_0, 768, 2048), _core.packed_bytes(Q8_0, 1, 2048)
    for rows in ([1] * 8, [1, 3, 2] * 5, [7, 0, 40, 90]):
        for size in (2, 6, 16, 40):
            units = _core.grouped_units([shape, shape], rows, sum(rows), [size], {"piece_bytes": 1, "tile_groups": 1})
            cost = (units["g1"] - units["g0"]) * (units["k1"] - units["k0"]) // 2048 * (units["t1"] - units["t0"] + _core.UNPACK) * n_bytes
            whole, most = sum((r + _core.UNPACK) * 96 * n_bytes for r in rows if r), (max(rows) + _core.UNPACK) * n_bytes
            crews = -(-size // _core.SIZES["crew"])
            for crew in range(crews):
                mine = (units["crew"] == crew) & (units["rank"] < 0)
                ranks = np.unique(units["rank"][(units["crew"] == crew) & (units["rank"] >= 0)])
                if not mine.any():
                    continue
                each = np.bincount(units["piece"][mine], cost[mine])
                assert len(each) % len(ranks) == 0 and each.min() > 0 and abs(each.mean() - each).max() <= 2 * most
                assert whole / 8 - 2 * most <= each.sum() * size / len(ranks) <= whole / 4 + 2 * most * size / len(ranks)
            assert (units["rank"] < 0).any() == (whole / size / 4 >= most), (rows, size)
    assert (_core.grouped_units([shape], [1], 1, [2], {"piece_bytes": 1 << 20})["rank"] >= 0).all()
    assert (_core.grouped_units([shape] * 2, [1] * 8, 1, [1])["rank"] == 0).all()  # nobody to share with


def test_workers_begin_with_what_others_wait_for():
    """The beginning of a group that is cut comes first, its end last; and a worker's part is never shorter than a group, to a slab."""
    for size, rows in product((3, 16, 96), ([1] * 8, [1, 0, 7, 0, 2], [1] * 40)):
        for groups in range(1, 60, 3):
            units = _core.grouped_units([(Q8_0, groups * 16, 2048)], rows, 8, [size])
            seams = set(units["rank"][units["k1"] < 2048])
            for rank in seams:
                own = units[units["rank"] == rank]
                assert own["k1"][0] < 2048 and (own["k1"][1:] == 2048).all() and (own["k0"][:-1] == 0).all()
            assert not ((units["k0"] > 0) & (units["k1"] < 2048)).any(), "a group has three workers"
            units = units[units["rank"] >= 0]
            if seams:
                cost = np.bincount(units["rank"], (units["g1"] - units["g0"]) * (units["k1"] - units["k0"]) *
                                   (units["t1"] - units["t0"] + _core.UNPACK), size)  # fmt: skip
                assert cost.min() >= (2048 - 256) * (max(rows) + _core.UNPACK)


def test_arguments_of_experts_are_checked():
    right = {"shapes": [(Q8_0, 16, 32)], "rows": [1], "n_tokens": 1, "workers": [1]}
    for name, bad in (("shapes", []), ("shapes", [(Q8_0, 16, 32), (Q8_0, 16, 64)]), ("rows", []), ("n_tokens", 0), ("workers", [2, 0])):
        with pytest.raises(ValueError, match="an op multiplies one to 3 matrices of equal k of each expert"):
            _core.grouped_units(**{**right, name: bad})
    assert not len(_core.grouped_units([(Q8_0, 16, 32)], [0, 0], 1, [2]))


# ---- real workers ------------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
STEPS = ((1, SMALL), (4, SMALL), (40, SMALL), (1, SMALL | {"exact_groups": 0}), (40, SMALL | {"line_tokens": 40}), (40, None), (3, None),
         (40, SMALL | {"tile_tokens": 100}))  # fmt: skip
TEAMS = ((1, 3), (2, 3), (2, (1, 3)), (3, 4), (3, (2, 1, 3)))


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(5)
    kinds = dict(zip(NAMES, (("Q4_0", 600), ("Q5_1", 325), ("F16", 48))))
    kinds["d"] = "Q8_0", 1000
    tensors = {"x": rng.standard_normal((40, 544))}
    tensors |= {name: (random_weights(rng, n, 544, kind, 0.04), kind) for name, (kind, n) in kinds.items()}
    tensors["k"] = random_weights(rng, 400, 768, "Q4_K", 0.04), "Q4_K"
    tensors["l"] = random_weights(rng, 200, 768, "Q6_K", 0.04), "Q6_K"
    tensors["xk"] = rng.standard_normal((40, 768))
    for name in (*kinds, "k", "l"):
        tensors[f"bias {name}"] = rng.standard_normal(len(tensors[name][0]))
    sheet = Sheet(tmp_path_factory.mktemp("cut") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


def product_of(names, which=0, x="x"):
    """A plan of one matmul, with biases, whose result number `which` is the plan's own."""
    def build(p, s):
        y = p.matmul(p.embed(s[x]), *(replace(s[name], bias=s[f"bias {name}"]) for name in names))
        p.logits(y if len(names) == 1 else y[which], None)

    return build


def by_one_worker(sheet, build, tokens):
    with open_team() as team, rig(sheet, team, build, hidden=True) as r:
        return r.run(np.arange(tokens))


@pytest.mark.parametrize("shape", TEAMS, ids=str)
@pytest.mark.parametrize(("names", "x"), [(NAMES, "x"), (("d",), "x"), (("k", "l"), "xk")], ids=str)
def test_any_order_of_workers_gives_the_bits_of_one(sheet, shape, names, x):
    with open_team(*shape) as team:
        for which, (tokens, sizes) in product(range(len(names)), STEPS):
            build = product_of(names, which, x)
            wanted = by_one_worker(sheet, build, tokens)
            with rig(sheet, team, build, hidden=True, sizes=sizes) as r:
                for seed in range(4):  # 0: at once, in earnest; and more than one step of the same plan
                    same_bits(r.run(np.arange(tokens), seed=seed), wanted, (names[which], tokens, sizes, seed))


@pytest.mark.parametrize("shape", [(2, (1, 2)), (3, (2, 1, 3))], ids=str)
@pytest.mark.parametrize("of", range(4))
def test_a_matrix_in_several_matmuls_on_nodes_with_their_own_rows(sheet, shape, of):
    """With other companions each time, and no barrier between them: a worker may be at the second while the next one is at the first."""
    def build(p, s):
        x = p.embed(s["x"])
        first, other = p.matmul(x, s["a"]), p.matmul(x, s["d"])
        a, _, _ = p.matmul(x, s["a"], s["b"], s["c"])
        last, again = p.matmul(x, s["d"], s["a"])
        p.logits((p.gated(first, a, "silu"), p.gated(a, again, "silu"), other, last)[of], None)

    for tokens in (1, 3, 40):
        wanted = by_one_worker(sheet, build, tokens)
        sizes = SMALL | {"exact_groups": 100}  # groups are cut in all four
        with open_team(*shape) as team, rig(sheet, team, build, hidden=True, shard=shape[1], sizes=sizes) as r:
            for seed in range(6):
                same_bits(r.run(np.arange(tokens), seed=seed), wanted, (tokens, seed))


@pytest.mark.parametrize(("names", "x"), [(NAMES, "x"), (("k", "l"), "xk")], ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (3, (2, 1, 3))], ids=str)
def test_workers_do_what_is_counted(sheet, shape, names, x):
    """Each its own part, but for ends of groups and pieces, which another of its crew may do; the crew together all of them."""
    n_nodes, each = shape
    workers = [each] * n_nodes if isinstance(each, int) else list(each)
    shapes = [(sheet[name].code, sheet[name].n, sheet[name].k) for name in names]
    with open_team(*shape) as team:
        for tokens, sizes in STEPS:
            units = _core.matmul_units(shapes, tokens, workers, sizes)
            fixed, handed = np.zeros((len(team), 2), np.int64), np.zeros(len(team), np.int64)
            counted = balance.matmul_load(shapes, tokens, workers, sizes)
            for u in units[units["rank"] >= 0]:
                code, _, k = shapes[u["matrix"]]
                w = sum(workers[: u["node"]]) + u["rank"]
                macs = (u["g1"] - u["g0"]) * 16 * (u["k1"] - u["k0"]) * (u["t1"] - u["t0"])
                fixed[w, 1] += macs * (u["k0"] == 0)
                handed[w] += macs * (u["k0"] > 0)
            with rig(sheet, team, product_of(names, x=x), hidden=True, sizes=sizes) as r:
                for seed in range(4):
                    r.run(np.arange(tokens), seed=seed)
                    done = r.core.work()
                    assert done.sum(0).tolist() == [counted.bytes.sum(), counted.macs.sum()]
                    assert (done[:, 1] >= fixed[:, 1]).all()
                    if not handed.any() and not (units["rank"] < 0).any():
                        assert (done == np.stack([counted.bytes, counted.macs], 1)).all()
                    at = 0
                    for size in workers:  # what is shared stays on its node
                        own = slice(at, at + size)
                        assert done[own].sum(0).tolist() == [counted.bytes[own].sum(), counted.macs[own].sum()]
                        at += size


EXPERTS, USED, CUT = 6, 2, {"exact_groups": 1000, "line_tokens": 32}
PIECES = CUT | {"crew": 2, "piece_bytes": 1, "tile_groups": 1}


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Two matrices of each of six experts, of unequal types and heights, with biases, and scores to choose them by."""
    rng = np.random.default_rng(6)
    tensors = {"x": rng.standard_normal((40, 768)), "scores": rng.standard_normal((40, EXPERTS)) + np.arange(EXPERTS) / 2}
    for name, kind, n in (("a", "Q4_K", 200), ("b", "Q6_K", 90), ("f", "F32", 70)):
        tensors[f"{name}.weight"] = np.stack([random_weights(rng, n, 768, kind, 0.04) for _ in range(EXPERTS)]), kind
        tensors[f"{name}.bias"] = rng.standard_normal((EXPERTS, n))
    sheet = Sheet(tmp_path_factory.mktemp("cut") / "experts.gguf", tensors)
    yield sheet
    sheet.close()


def of_experts(names, which=0):
    """A plan of one matmul_grouped whose result number `which`, summed over slots, is the plan's own."""
    def build(p, s):
        ids, weights = p.route(p.embed(s["scores"]), USED)
        y = p.matmul_grouped(p.embed(s["x"]), ids, *(s[f"{name}.weight"] for name in names))
        p.logits(p.mix(y if len(names) == 1 else y[which], weights), None)

    return build


@pytest.mark.parametrize("shape", [*TEAMS, (1, 7)], ids=str)
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("f",)], ids=str)
def test_experts_in_any_order_of_workers_have_the_bits_of_one(experts, shape, names):
    with open_team(*shape) as team:
        for which, (tokens, sizes) in product(range(len(names)), ((1, CUT), (3, CUT), (30, CUT), (1, {"exact_groups": 0}), (40, None),
                                                                   (1, PIECES), (9, PIECES), (40, PIECES))):  # fmt: skip
            build = of_experts(names, which)
            wanted = by_one_worker(experts, build, tokens)
            with rig(experts, team, build, hidden=True, sizes=sizes) as r:
                for seed in range(5):
                    same_bits(r.run(np.arange(tokens), seed=seed), wanted, (names[which], tokens, sizes, seed))


def test_experts_in_several_ops_without_a_barrier_between_them(experts):
    """A worker may be at the second while the next one is at the first: each has seams of its own."""
    def build(p, s):
        x = p.embed(s["x"])
        ids, weights = p.route(p.embed(s["scores"]), USED)
        first, second = (p.matmul_grouped(x, ids, s[f"{name}.weight"]) for name in "aa")
        p.logits(p.mix(p.gated(first, second, "silu"), weights), None)

    for tokens in (1, 9):
        wanted = by_one_worker(experts, build, tokens)
        for shape in ((1, 5), (2, (2, 3))):
            with open_team(*shape) as team, rig(experts, team, build, hidden=True, sizes=CUT) as r:
                for seed in range(8):
                    same_bits(r.run(np.arange(tokens), seed=seed), wanted, (tokens, shape, seed))


@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (3, (2, 1, 3))], ids=str)
def test_workers_of_experts_do_what_is_counted(experts, shape):
    """All together, and each but for pieces and the ends of groups that another may do for it."""
    names, n_nodes, each = ("a", "b"), *shape
    workers = [each] * n_nodes if isinstance(each, int) else list(each)
    shapes, scores = [(experts[f"{name}.weight"].code, experts[f"{name}.weight"].n, 768) for name in names], experts.exact["scores"]
    with open_team(*shape) as team:
        for tokens, sizes in ((1, CUT), (8, CUT), (1, {"exact_groups": 0}), (40, None), (2, PIECES), (40, PIECES)):
            rows = np.bincount(np.argsort(-scores[:tokens], axis=1)[:, :USED].ravel(), minlength=EXPERTS)
            units = _core.grouped_units(shapes, rows, tokens, workers, sizes)
            counted, _ = balance.grouped_load(shapes, rows, tokens, workers, sizes)
            cut = (units["k0"] > 0).any()
            assert cut or sizes != CUT or tokens > 1
            with rig(experts, team, of_experts(names), hidden=True, sizes=sizes) as r:
                for seed in range(4):
                    r.run(np.arange(tokens), seed=seed)
                    done = r.core.work()
                    assert done[:, 0].sum() == counted.bytes.sum()
                    assert done[:, 1].sum() == sum(16 * (u["g1"] - u["g0"]) * (u["k1"] - u["k0"]) * (u["t1"] - u["t0"])
                                                   for u in units)  # fmt: skip
                    if not cut and (units["rank"] >= 0).all():
                        assert (done[:, 0] == counted.bytes).all()


def test_sizes_are_checked(sheet):
    with open_team() as team, pytest.raises(ValueError, match="crew 0, .*must be positive, line_tokens at most 128"):
        with rig(sheet, team, product_of("d"), hidden=True, sizes={"crew": 0}):
            pass


# ---- bench/balance.py --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["8b", "70b", "gemma27b"])
@pytest.mark.parametrize("topology", ["2x96c", "2x64c", "1x32c", "2x47c", "64c+32c"])
def test_big_machines_are_kept_even(shape, topology):
    workers = balance.workers_of(topology)
    for tokens in (1, 512):
        plan = balance.plan_of(balance.SHAPES[shape], "Q4_K", len(workers), tokens)
        rows = balance.play(plan, workers, tokens)
        assert sum(share for _, _, share, _, _ in rows) == pytest.approx(1)
        assert not balance.too_uneven(rows, tokens == 1), balance.table(rows)


# Matrices of fewer row groups than workers, or, of routers, parts of them: no cut makes these even, for a sum is not divided.
TOO_FEW_ROWS = {"671b": ["matmul attn_q_a attn_kv_a_mqa[0:512] attn_kv_a_mqa[512:576]"],
                "qwen3-30b": ["matmul attn_output", "score ffn_gate_inp"], "qwen3-235b": ["score ffn_gate_inp"]}  # fmt: skip


@pytest.mark.parametrize("routing", balance.ROUTINGS)
@pytest.mark.parametrize("shape", TOO_FEW_ROWS)
def test_experts_are_kept_even_on_big_machines(shape, routing):
    """Of a decoded token's bytes, and of a prompt's multiply-adds with what unpacking costs; where tokens choose evenly, of multiply-adds
    alone, too."""
    workers = [96, 96]
    for tokens in (1, 512):
        rows = balance.play(balance.plan_of(balance.SHAPES[shape], "Q4_K", 2, tokens), workers, tokens, routing=routing)
        assert sum(share for _, _, share, _, _ in rows) == pytest.approx(1)
        found = balance.too_uneven(rows, tokens == 1)
        assert set(found) <= set(TOO_FEW_ROWS[shape] if tokens == 1 else ()), balance.table(rows)
        grouped = [name for name, *_ in rows if name.startswith("matmul_grouped")]
        assert len(grouped) == (4 if shape == "671b" else 2)
    s = balance.SHAPES[shape]
    met = balance.chosen(s.experts, s.used, 512, "even")
    units = _core.grouped_units([(FORMATS["Q4_K"]["code"], s.width, s.expert_width - s.expert_width % 256)], met, 512, workers)
    units = units[units["rank"] >= 0]  # pieces even out what is left
    macs = (units["g1"] - units["g0"]) * (units["t1"] - units["t0"])
    assert balance.uneven(np.bincount(units["node"] * 96 + units["rank"], macs)) < 1.15


def test_tokens_choose_experts_evenly_or_not():
    even, skewed = (balance.chosen(64, 8, 4000, routing) for routing in balance.ROUTINGS)
    assert even.sum() == skewed.sum() == 32000 and even.max() < 1.2 * even.mean() and skewed.max() > 4 * skewed.mean()
    assert skewed.max() <= 4000 and (balance.chosen(5, 5, 7, "skewed") == 7).all()


def test_what_is_not_even_is_seen():
    """128 groups cannot be dealt to 192 workers but whole: there are twice as many of them as half the workers can take."""
    workers = [96, 96]
    rows = balance.play(balance.plan_of(balance.SHAPES["1b"], tokens=1), workers, 1)
    assert any("attn_output" in name for name in balance.too_uneven(rows, True))
    assert not balance.too_uneven(rows, True, most=1.51)


def test_the_script():
    def run(*arguments):
        return subprocess.run([sys.executable, BENCH / "balance.py", *arguments], capture_output=True, text=True, timeout=60, check=False)

    done = run("8b", "--topology", "2x8c")
    assert done.returncode == 0 and "matmul ffn_gate ffn_up" in done.stdout and "160 team barriers" in done.stdout, done.stderr
    done = run("1b", "--topology", "2x96c")
    assert done.returncode == 1 and "too uneven: " in done.stdout
    done = run("8b", "--topology", "2y8c")
    assert done.returncode == 2 and "found '2y8c', wanted NODESxCORESc" in done.stderr
