"""Ops and kernels of recurrent layers against their definitions in float64, for every team, chunking and instruction set."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import reference as ref
from _cvec import available, load, same
from core_tools import Sheet, open_team, rig, same_bits

from numainfer import _core
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog
from numainfer.errors import CorruptModel, PlanError

N, EPS = 150, 1e-5
TEAMS = tuple(product((1, 2, 3), (1, 2, 3)))  # (nodes, workers on each)
CHUNKS = ([N], [1], [1, 2, 3, 17, 60, 1, 1, 65], [16, 16, 100, 18])
FOUND = {}


@pytest.fixture(scope="module", params=TEAMS, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def team(request):
    with open_team(*request.param) as team:
        yield team


def same_for_all(what, found):
    same_bits(found, FOUND.setdefault(what, found), what)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.logaddexp(0, x)


# ---- short convolutions -------------------------------------------------------------------------------------------------


def convolved(x, w, bias=0.0, act=silu):
    """The definition; w: (taps, C)."""
    taps = len(w)
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    return act(sum(w[j] * padded[j : j + len(x)] for j in range(taps)) + bias)


@pytest.mark.parametrize(("channels", "taps", "bias", "silu_"), [(336, 4, False, True), (16, 2, True, True), (70, 16, True, False),
                                                                 (1000, 3, False, False)])  # fmt: skip
def test_short_conv(tmp_path, team, channels, taps, bias, silu_):
    rng = np.random.default_rng(channels)
    sheet = Sheet(tmp_path / "conv.gguf", {"x": rng.standard_normal((N, channels)), "w": rng.standard_normal((channels, taps)),
                                           "b": rng.standard_normal(channels)})  # fmt: skip
    wanted = convolved(sheet.exact["x"], sheet.exact["w"].T, sheet.exact["b"] if bias else 0.0, silu if silu_ else lambda x: x)

    def build(p, s):
        p.logits(p.short_conv(p.embed(s["x"]), s.catalog.columns("w"), taps, s["b"] if bias else None, silu=silu_), None)

    with rig(sheet, team, build, hidden=True, n_ctx=N, n_batch=N) as r:
        for chunks in CHUNKS:
            found = in_chunks(r, chunks)
            np.testing.assert_allclose(found, wanted, atol=2e-5 if taps > 4 else 5e-6)
            same_for_all(("conv", channels), found)
    sheet.close()


def in_chunks(r, chunks, company=()):
    """Results of one sequence in steps of such sizes, the last of which repeats; company: ids that come along in every step."""
    kv, others, at, out, sizes = r.new_kv(), [], 0, [], list(chunks)
    while at < N:
        size = min(sizes.pop(0) if len(sizes) > 1 else sizes[0], N - at)
        others = [(r.new_kv(), len(ids), 0) for ids in company]
        ids = np.concatenate([np.arange(at, at + size), *company]) if company else np.arange(at, at + size)
        out.append(r.run(ids, [(kv, size, at), *others])[:size])
        at += size
    return np.concatenate(out)


# ---- gates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sigmoid", "softplus", "decay", "bounded"])
@pytest.mark.parametrize("pieces", [1, 4])
def test_gates(tmp_path, team, kind, pieces):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((N, 24)) * 8
    x[0, :8] = [0, 50, -50, 100, -100, 20, -20, 1e-3]
    heads = 24 if pieces == 1 else 12
    sheet = Sheet(tmp_path / "gates.gguf", {"x": x, "bias": rng.standard_normal(heads), "factor": -rng.uniform(0.01, 2, heads)})
    y = sheet.exact["x"] if pieces == 1 else sheet.exact["x"].reshape(N, 4, 6)[:, :, 2:5].reshape(N, 12)
    y = y + sheet.exact["bias"]
    wanted = {"sigmoid": sigmoid(y), "softplus": softplus(y), "decay": np.exp(sheet.exact["factor"] * softplus(y)),
              "bounded": np.exp(-5 * sigmoid(sheet.exact["factor"] * y))}[kind]

    def build(p, s):
        part = {} if pieces == 1 else {"pieces": 4, "first": 2, "count": 3}
        p.logits(p.gates(p.embed(s["x"]), kind, s["bias"], s["factor"] if kind in ("decay", "bounded") else None, **part, bound=-5.0), None)

    with rig(sheet, team, build, hidden=True, n_ctx=N, n_batch=N) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=1e-30)
        same_for_all(("gates", kind, pieces), found)
    sheet.close()


# ---- the recurrence -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    heads: int
    groups: int
    key: int
    value: int
    tiled: bool = False
    delta: bool = True
    wide: bool = False
    normed: bool = True
    factor: bool = False  # beta without the delta rule
    skip: bool = False
    fixed: bool = False  # the same decay at all positions


SHAPES = {
    "gdn": Heads(4, 2, 32, 32), "tiled": Heads(6, 3, 20, 36, tiled=True), "odd": Heads(5, 1, 7, 100),
    "kda": Heads(3, 3, 32, 16, wide=True), "plain": Heads(4, 4, 24, 48, delta=False, normed=False),
    "mamba": Heads(8, 2, 16, 64, delta=False, normed=False, factor=True, skip=True), "skips": Heads(4, 2, 20, 36, skip=True),
    "wide": Heads(2, 1, 33, 40, delta=False, wide=True, normed=False),
    "lightning": Heads(4, 4, 24, 24, delta=False, normed=False, fixed=True),
}  # fmt: skip


def recurred(a, q, k, v, decay, beta, scale, skip):
    """The definition, position by position, in float64: (N, heads * value)."""
    of = np.arange(a.heads) % a.groups if a.tiled else np.arange(a.heads) // (a.heads // a.groups)
    q, k = (x.reshape(N, a.groups, a.key)[:, of] for x in (q, k))
    if a.normed:
        q, k = (x / np.sqrt((x**2).sum(-1, keepdims=True) + EPS) for x in (q, k))
    v, state, out = v.reshape(N, a.heads, a.value), np.zeros((a.heads, a.key, a.value)), []
    decay = np.broadcast_to(decay.reshape(1 if a.fixed else N, a.heads, -1, 1), (N, a.heads, a.key if a.wide else 1, 1))
    for t in range(N):
        state = decay[t] * state
        e = v[t] - np.einsum("hkv,hk->hv", state, k[t]) if a.delta else v[t]
        e = beta[t][:, None] * e if a.delta or a.factor else e
        state = state + k[t][:, :, None] * e[:, None]
        out.append((np.einsum("hkv,hk->hv", state, q[t] * scale) + a.skip * skip[:, None] * v[t]).ravel())
    return np.array(out)


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("recur"), {}
    for name, a in SHAPES.items():
        rng = np.random.default_rng(len(found))
        width = 2 * a.groups * a.key + a.heads * a.value
        sheet = Sheet(folder / f"{name}.gguf", {
            "qkv": rng.standard_normal((N, width + 3)) * 0.7, "beta": rng.uniform(0, 1, (N, a.heads)),
            "skip": rng.standard_normal(a.heads),
            "decay": rng.uniform(0.2, 1, a.heads if a.fixed else (N, a.heads * (a.key if a.wide else 1)))})  # fmt: skip
        ends = np.cumsum([3, a.groups * a.key, a.groups * a.key])
        _, q, k, v = np.split(sheet.exact["qkv"], ends, axis=1)
        found[name] = sheet, recurred(a, q, k, v, sheet.exact["decay"], sheet.exact["beta"], 0.3, sheet.exact["skip"])
    yield found
    for sheet, _ in found.values():
        sheet.close()


def build_recurrence(a):
    def build(p, s):
        x, decay = p.embed(s["qkv"]), s["decay"] if a.fixed else p.embed(s["decay"])
        n = a.groups * a.key
        p.logits(p.recur((x, 3), (x, 3 + n), (x, 3 + 2 * n), decay, p.embed(s["beta"]) if a.delta or a.factor else None, heads=a.heads,
                         groups=a.groups, key_length=a.key, value_length=a.value, scale=0.3, eps=EPS if a.normed else None,
                         tiled=a.tiled, delta=a.delta, skip=s["skip"] if a.skip else None), None)  # fmt: skip
    return build


@pytest.mark.parametrize("name", SHAPES)
def test_recur(sheets, team, name):
    """Token by token, in chunks, with others in the step: the same bits, near the definition."""
    sheet, wanted = sheets[name]
    with rig(sheet, team, build_recurrence(SHAPES[name]), hidden=True, n_ctx=N, n_batch=N) as r:
        for chunks in CHUNKS:
            found = in_chunks(r, chunks)
            np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
            same_for_all(("recur", name), found)
        found = in_chunks(r, [1, 60, 1, 40], [np.arange(3), np.arange(1), np.arange(30)])
        same_for_all(("recur", name), found)


def test_a_state_is_padded_with_what_changes_nothing(sheets):
    """What stands in the columns and rows beyond a head's own comes into no result, and is 0 in the state."""
    a = SHAPES["odd"]
    sheet, _ = sheets["odd"]
    with open_team(2, 1) as team, rig(sheet, team, build_recurrence(a), hidden=True, n_ctx=N, n_batch=N) as r:
        kv = r.new_kv()
        r.run(np.arange(N), [(kv, N, 0)])
        layout, (part,) = r.plan.kv.states, r.plan.kv.states.parts
        blocks, rows = -(-a.value // 16), -(-a.key // 4) * 4
        assert part.unit_bytes == 4 * blocks * 16 * rows and layout.stride % 4096 == 0
        block = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * (layout.block_bytes // 4)).from_address(kv.states.addresses()[-1]))
        for node, heads in ((0, 2), (1, 3)):
            state = block[node * layout.stride // 4 :][: heads * part.unit_bytes // 4].reshape(heads, blocks, rows, 16)
            columns = state.transpose(0, 2, 1, 3).reshape(heads, rows, blocks * 16)
            assert (columns[:, : a.key, : a.value] != 0).all()
            assert not columns[:, a.key :].any() and not columns[:, :, a.value :].any()


# ---- selective scans ------------------------------------------------------------------------------------------------------

CHANNELS = {"mamba": (96, 16), "odd": (75, 7), "few": (5, 4), "wide": (40, 130)}  # channels, numbers of each one's state


def scanned(x, dt, b, c, a, skip):
    """The definition, position by position, in float64: (N, D)."""
    state, d, out = np.zeros_like(a), softplus(dt), []
    for t in range(N):
        state = np.exp(d[t][:, None] * a) * state + (d[t] * x[t])[:, None] * b[t]
        out.append(state @ c[t] + skip * x[t])
    return np.array(out)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("scan"), {}
    for name, (d, n) in CHANNELS.items():
        rng = np.random.default_rng(d)
        sheet = Sheet(folder / f"{name}.gguf", {
            "x": rng.standard_normal((N, d)), "dt": rng.standard_normal((N, d)) * 2 - 1, "b": rng.standard_normal((N, n)),
            "c": rng.standard_normal((N, n)) * n**-0.5, "a": -np.exp(rng.standard_normal((d, n))),
            "skip": rng.standard_normal(d)})  # fmt: skip
        found[name] = sheet, scanned(*(sheet.exact[key] for key in ("x", "dt", "b", "c", "a", "skip")))
    yield found
    for sheet, _ in found.values():
        sheet.close()


def build_scan(p, s):
    x, dt, b, c = (p.embed(s[key]) for key in ("x", "dt", "b", "c"))
    p.logits(p.scan(x, dt, b, c, s.catalog.in_blocks("a", x.width, b.width), s["skip"]), None)


@pytest.mark.parametrize("name", CHANNELS)
def test_scan(scans, team, name):
    """Token by token, in chunks, with others in the step: the same bits, near the definition."""
    sheet, wanted = scans[name]
    with rig(sheet, team, build_scan, hidden=True, n_ctx=N, n_batch=N) as r:
        for chunks in CHUNKS:
            found = in_chunks(r, chunks)
            np.testing.assert_allclose(found, wanted, atol=5e-6 * np.abs(wanted).max())
            same_for_all(("scan", name), found)
        found = in_chunks(r, [1, 60, 1, 40], [np.arange(3), np.arange(1), np.arange(30)])
        same_for_all(("scan", name), found)


def test_a_team_of_one_node_scans_what_lies_on_three(scans):
    """Channels whose states are two nodes' do not lie side by side."""
    sheet, wanted = scans["mamba"]
    with open_team(1, 2) as team, rig(sheet, team, build_scan, hidden=True, n_ctx=N, n_batch=N, kv_nodes=3) as r:
        same_for_all(("scan", "mamba"), in_chunks(r, [1, 2, 3, 17, 60, 1, 1, 65]))
        kv = r.new_kv()
        r.run(np.arange(N), [(kv, N, 0)])
        layout = r.plan.kv.states
        block = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * (layout.block_bytes // 4)).from_address(kv.states.addresses()[-1]))
        nodes = block.reshape(3, -1)
        assert (nodes[:, : 2 * 16 * 16] != 0).all() and not nodes[:, 2 * 16 * 16 :].any()


def test_a_scan_needs_room_for_its_state(scans):
    sheet, _ = scans["few"]
    with open_team() as team, rig(sheet, team, build_scan, hidden=True, n_ctx=N, n_batch=N) as r:
        table, out = np.zeros(1, _core.SEGMENT_DTYPE), np.zeros((1, r.plan.out_width), np.float32)
        table["n"], table["tables"] = 20, r.new_kv().address
        with pytest.raises(ValueError, match="segment 0 of a step over recurrent state"):
            r.core.run(np.arange(20, dtype=np.int32), table, np.zeros(1, np.int32), out)


def test_a_matrix_of_paces_in_blocks(scans):
    """Transposed, 16 rows side by side, zeros for what is missing."""
    sheet, _ = scans["odd"]
    blocks = sheet.catalog.in_blocks("a", 75, 7).values.reshape(5, 8, 16)
    plain = blocks.transpose(0, 2, 1).reshape(80, 8)
    np.testing.assert_array_equal(plain[:75, :7], sheet.exact["a"].astype(np.float32))
    assert not plain[75:].any() and not plain[:, 7:].any()
    with pytest.raises(CorruptModel, match=r"tensor 'a' has the shape \(75, 7\), wanted \(7, 75\)"):
        Catalog(sheet.file).in_blocks("a", 7, 75)


# ---- norms of heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [None, "silu", "sigmoid"])
@pytest.mark.parametrize(("heads", "e", "first", "own"), [(6, 36, False, False), (4, 64, True, False), (3, 7, False, True),
                                                          (1, 96, True, True)])  # fmt: skip
def test_head_norm(tmp_path, team, act, heads, e, first, own):
    rng = np.random.default_rng(heads)
    sheet = Sheet(tmp_path / "norm.gguf", {"x": rng.standard_normal((N, heads * e)), "z": rng.standard_normal((N, heads * e)) * 2,
                                           "w": rng.uniform(0.5, 2, heads * e if own else e)})  # fmt: skip
    x, z = (sheet.exact[name].reshape(N, heads, e) for name in "xz")
    gate = {None: 1.0, "silu": silu(z), "sigmoid": sigmoid(z)}[act]
    normed = x * gate if first else x
    normed = normed / np.sqrt((normed**2).mean(-1, keepdims=True) + EPS) * sheet.exact["w"].reshape(-1, e)
    wanted = (normed if first else normed * gate).reshape(N, -1)

    def build(p, s):
        gate = {} if act is None else {"gate": p.embed(s["z"]), "act": act}
        p.logits(p.head_norm(p.embed(s["x"]), s["w"], heads, EPS, gate_first=first, **gate), None)

    with rig(sheet, team, build, hidden=True, n_ctx=N, n_batch=N) as r:
        found = r.run(np.arange(N))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        same_for_all(("norm", act, heads), found)
    sheet.close()


def test_a_matrix_reads_normed_heads(tmp_path, team):
    """Heads whose values do not fill blocks of 32 are quantised together, as one row."""
    rng = np.random.default_rng(1)
    from random_blocks import random_weights

    sheet = Sheet(tmp_path / "m.gguf", {"x": rng.standard_normal((40, 96)), "w": rng.uniform(0.5, 2, 8),
                                        "m": (random_weights(rng, 33, 96, "Q8_0", 0.1), "Q8_0")})  # fmt: skip
    x = sheet.exact["x"].reshape(40, 12, 8)
    x = (x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * sheet.exact["w"]).reshape(40, 96)
    with rig(sheet, team, lambda p, s: p.logits(p.head_norm(p.embed(s["x"]), s["w"], 12, EPS), s["m"])) as r:
        found = r.run(np.arange(40))
        np.testing.assert_allclose(found, ref.matmul_q8(x, sheet.exact["m"]), atol=0.02)
        same_for_all("matrix", found)
    sheet.close()


# ---- what is refused --------------------------------------------------------------------------------------------------------


def test_what_a_plan_refuses(sheets):
    sheet, _ = sheets["gdn"]

    def plan():
        p = Plan(1, 8, 64)
        return p, p.embed(sheet["qkv"])

    p, x = plan()
    with pytest.raises(PlanError, match="short_conv: 17 taps; wanted 2 to 16"):
        p.short_conv(x, sheet.catalog.columns("decay"), 17)
    with pytest.raises(CorruptModel, match=r"short_conv: operand w \(decay\) has width 600, wanted"):
        p.short_conv(x, sheet.catalog.columns("decay"), 4)
    with pytest.raises(PlanError, match="gates: kind 'tanh'"):
        p.gates(x, "tanh")
    with pytest.raises(PlanError, match="and a factor for 'decay' and 'bounded' alone"):
        p.gates(x, "decay")
    with pytest.raises(PlanError, match=r"gates: operand x \(x\) has 259 values, wanted 2 pieces"):
        p.gates(x, "sigmoid", pieces=2, first=0, count=3)
    shape = {"heads": 4, "groups": 2, "key_length": 32, "value_length": 32}
    decay = p.embed(sheet["decay"])
    with pytest.raises(PlanError, match="4 heads over 3 of q and k"):
        p.recur((x, 0), (x, 0), (x, 0), decay, **shape | {"groups": 3})
    with pytest.raises(PlanError, match=r"operand v \(x\) has 259 values, wanted 128 from 140 on"):
        p.recur((x, 0), (x, 0), (x, 140), decay, **shape)
    with pytest.raises(PlanError, match=r"operand decay \(x\) has width 259, wanted 128"):
        p.recur((x, 0), (x, 0), (x, 0), x, **shape)
    with pytest.raises(PlanError, match=r"operand beta \(x\) has width 259, wanted 4"):
        p.recur((x, 0), (x, 0), (x, 0), decay, x, **shape)
    with pytest.raises(CorruptModel, match=r"operand decay \(skip\) has width 4, wanted 2"):
        p.recur((x, 0), (x, 0), (x, 0), sheet["skip"], **shape | {"heads": 2})


def test_what_a_scan_refuses(scans):
    sheet, _ = scans["odd"]
    p, other = Plan(1, 8, 64), {key: sheet[key] for key in ("x", "dt", "b", "c")}
    good = {key: p.embed(w) for key, w in other.items()} | {"a": sheet.catalog.in_blocks("a", 75, 7), "skip": sheet["skip"]}
    p.scan(**good)
    for bad, error, says in (({"dt": good["b"]}, PlanError, "operand dt .* has width 7, wanted 75"),
                             ({"c": good["x"]}, PlanError, "operand c .* has width 75, wanted 7"),
                             ({"b": good["x"], "c": good["x"]}, CorruptModel, r"operand a \(a\) has width 640, wanted 6080"),
                             ({"skip": good["a"]}, CorruptModel, r"operand skip \(a\) has width 640, wanted 75")):  # fmt: skip
        with pytest.raises(error, match="scan: " + says):
            p.scan(**good | bad)


@pytest.mark.parametrize("wrong", ["no stops", "no state", "not to the end", "backwards", "nowhere"])
def test_a_step_needs_room_for_its_states(sheets, wrong):
    sheet, _ = sheets["gdn"]
    with open_team() as team, rig(sheet, team, build_recurrence(SHAPES["gdn"]), hidden=True, n_ctx=N, n_batch=N) as r:
        kv, table = r.new_kv(), np.zeros(1, _core.SEGMENT_DTYPE)
        stops = np.zeros(2, _core.STOP_DTYPE)
        block = _core.Block(r.caches.state_pool)
        stops["pos"], stops["to"] = (30, 40), block.address
        table["state"], table["stops"], table["n_stops"], table["n"], table["pos0"] = block.address, stops.ctypes.data, 2, 20, 20
        table["tables"] = kv.address
        if wrong == "no stops":
            table["n_stops"] = 0
        elif wrong == "no state":
            table["state"] = 0
        elif wrong == "not to the end":
            table["n_stops"] = 1
        elif wrong == "backwards":
            stops["pos"][0] = 40
        else:
            stops["to"][0] = 0
        out = np.zeros((1, r.plan.out_width), np.float32)
        with pytest.raises(ValueError, match="segment 0 of a step over recurrent state"):
            r.core.run(np.arange(20, dtype=np.int32), table, np.zeros(1, np.int32), out)


# ---- kernels ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", available())
def test_softplus(isa):
    x = np.concatenate([np.linspace(-100, 100, 200_001), np.geomspace(1e-30, 1, 1000), -np.geomspace(1e-30, 1, 1000)]).astype(np.float32)
    found, exact = load(isa).softplus(x), softplus(x.astype(np.float64))
    normal = x >= np.float32(-87.3)  # below, exp(x) is 0
    assert (np.abs(found - exact)[normal] / np.spacing(exact[normal].astype(np.float32))).max() < 3
    assert (found[~normal] == 0).all()
    same(found, load("scalar").softplus(x))
    assert np.isnan(load(isa).softplus(np.float32([np.nan]))[0])


@pytest.mark.parametrize("isa", available()[1:])
def test_kernels_have_the_same_bits(isa):
    rng = np.random.default_rng(6)
    for blocks, rows, n, delta, wide in product((1, 3, 4, 9), (4, 20, 128), (1, 7), (False, True), (False, True)):
        state = rng.standard_normal((blocks, rows, 16)).astype(np.float32)
        q, k, kd = rng.standard_normal((3, n, rows)).astype(np.float32)
        decay = rng.uniform(0.1, 1, (n, rows if wide else 1)).astype(np.float32)
        v, beta = rng.standard_normal((n, 16 * blocks + 5)).astype(np.float32), rng.uniform(0, 1, n).astype(np.float32)
        for factor in (beta, *[None] * (not delta)):
            found = [load(name).recur(state, q, k, kd, decay, factor, v, wide, delta) for name in (isa, "scalar")]
            for mine, scalar in zip(*found):
                same(mine, scalar)
    for channels, rows, n in product((1, 16, 40, 75), (4, 16, 20), (1, 7)):
        blocks = -(-channels // 16)
        state, a = rng.standard_normal((2, blocks, rows, 16)).astype(np.float32)
        b, c = rng.standard_normal((2, n, rows)).astype(np.float32)
        x, dt = rng.standard_normal((2, n, channels + 3)).astype(np.float32) * 3
        skip = rng.standard_normal(channels).astype(np.float32)
        for mine, scalar in zip(*(load(name).scan(state, -np.abs(a), skip, b, c, x, dt) for name in (isa, "scalar"))):
            same(mine, scalar)
    for width, taps in product((1, 16, 40, 333), (2, 4)):
        x, w = rng.standard_normal((2, taps, width)).astype(np.float32)
        for bias, act in product((None, x[0]), (0, 1)):
            same(load(isa).short_conv(x, w, bias, act), load("scalar").short_conv(x, w, bias, act))
