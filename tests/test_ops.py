"""Every op against its float64 twin, for every weight format, number of tokens, workers and pretend nodes."""

from dataclasses import replace
from functools import cache, partial
from itertools import product

import gguf
import numpy as np
import pytest
import reference as ref
from core_tools import Sheet, open_team, rig, same_bits, thinned
from random_blocks import TYPES, random_weights

from numainfer import _core
from numainfer.engine.architectures.blocks import Residual
from numainfer.engine.layout import KV_TYPES
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan
from numainfer.errors import UnsupportedModel

TOKENS = (1, 2, 3, 5, 17, 40)
SHAPES = ((1, 32), (37, 32), (16, 576), (50, 576), (33, 256), (100, 768))  # (N, K)
TEAMS = tuple(product((1, 2, 3), (1, 2, 3)))  # (nodes, workers on each)
EPS = 1e-6
FLOATS = ("F32", "F16", "BF16")


def block(kind):
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]


@pytest.fixture(scope="module", params=TEAMS, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def team(request):
    with open_team(*request.param) as team:
        yield team


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """Embedding tables in float32, so that `embed` brings any activations in, and matrices of all types."""
    rng = np.random.default_rng(5)
    tensors = {f"x{k}": rng.standard_normal((40, k)) * rng.uniform(0.1, 3, (40, 1)) for k in sorted({k for _, k in SHAPES})}
    for kind, (n, k) in product(TYPES, SHAPES):
        if k % block(kind) == 0:
            tensors[f"{kind} {n} {k}"] = random_weights(rng, n, k, kind, k**-0.5), kind
    for kind in TYPES:
        tensors[f"{kind} table"] = random_weights(rng, 37, 256, kind, 1.0), kind
    for k in (32, 96, 576):
        tensors |= {f"a{k}": rng.standard_normal((40, k)), f"b{k}": rng.standard_normal((40, k)) * 3 + 1,
                    f"c{k}": rng.standard_normal((40, k)) - 2, f"w{k}": rng.uniform(0.5, 2, k), f"post{k}": rng.uniform(0.5, 2, k)}
        for name in "nm":  # norms with biases
            tensors |= {f"{name}{k}.weight": rng.uniform(0.5, 2, k), f"{name}{k}.bias": rng.standard_normal(k)}
    tensors |= {f"square{i}": rng.standard_normal((96, 96)) * 0.1 for i in range(4)}
    tensors |= {f"bias{n}": rng.standard_normal(n) for n in (33, 37, 50, 100)}
    tensors["frequencies"] = 10000.0 ** -(np.arange(100) / 100)
    sheet = Sheet(tmp_path_factory.mktemp("ops") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


seen = {}


def same_for_all_teams(what, found):
    """The first team's bits are what the others must give."""
    same_bits(found, seen.setdefault(what, found.copy()), what)


def assert_close(found, wanted, terms, factor=2e-6):
    """Every |found - wanted| <= factor * the sum of the absolute terms that were added up."""
    error = np.abs(found - wanted) / terms
    assert error.max() <= factor, f"off by {error.max():.2e} of the sum's terms, at {np.unravel_index(error.argmax(), error.shape)}"


@pytest.mark.parametrize(("team", "kind", "turn"), thinned(TEAMS, TYPES, range(3)), indirect=["team"], ids=str)
def test_matmul(sheet, team, kind, turn):
    """A third of the shapes, another for each team."""
    shapes = [(n, k) for n, k in SHAPES if k % block(kind) == 0]
    for n, k in shapes[turn % len(shapes) :: 3]:
        wanted, terms = matmul_twin(sheet, f"x{k}", f"{kind} {n} {k}", kind)
        with rig(sheet, team, lambda p, s, n=n, k=k: p.logits(p.embed(s[f"x{k}"]), s[f"{kind} {n} {k}"])) as r:
            all_tokens = r.run(np.arange(40))
            assert_close(all_tokens, wanted, terms)
            same_for_all_teams((kind, n, k), all_tokens)
            for tokens in TOKENS:  # one token takes another path than many, and must give the same bits
                first = 40 - tokens
                same_bits(r.run(np.arange(first, 40)), all_tokens[first:], (n, k, tokens))


@cache
def matmul_twin(sheet, x, w, kind):
    """The product in float64 after the quantisation that the type asks for, and the sum of its absolute terms."""
    x, w = sheet.exact[x], sheet.exact[w]
    return (ref.matmul if kind in FLOATS else ref.matmul_q8)(x, w), np.abs(x) @ np.abs(w).T


@pytest.mark.parametrize("kinds", [("Q4_0", "Q6_K", "Q8_0"), ("F16", "Q5_1", "Q4_K"), ("Q5_K", "F32"), ("BF16", "Q4_1", "Q5_0"),
                                   ("MXFP4", "Q8_0", "IQ4_XS"), ("IQ4_NL", "NVFP4"),
                                   ("IQ3_S", "IQ2_XS", "IQ1_M"), ("IQ4_K", "Q6_0", "IQ6_K"), ("IQ5_K", "IQ3_K", "IQ2_K"),
                                   ("IQ4_KS", "IQ2_KL", "IQ5_KS"), ("IQ4_KSS", "IQ3_KT", "IQ1_KT")])  # fmt: skip
def test_matmul_of_several_matrices(sheet, team, kinds):
    """Matrices of unlike types and sizes read the same input, each in its own form, and share one cut among the workers."""
    names = [f"{kind} {n}" for kind, n in zip(kinds, ("table", "33 256", "table"))]
    for j, name in enumerate(names):
        wanted, terms = matmul_twin(sheet, "x256", name, kinds[j])

        def build(p, s, j=j):
            p.logits(p.matmul(p.embed(s["x256"]), *(s[name] for name in names))[j], None)

        with rig(sheet, team, build, hidden=True) as r:
            for tokens in TOKENS:
                assert_close(r.run(np.arange(tokens)), wanted[:tokens], terms[:tokens])


@pytest.mark.parametrize("kind", TYPES)
def test_embed(sheet, team, kind):
    with rig(sheet, team, lambda p, s: p.logits(p.embed(s[f"{kind} table"], scale=3.5), None), hidden=True) as r:
        for tokens in TOKENS:
            ids = (np.arange(tokens) * 7 + tokens) % 37
            wanted = (ref.embed(sheet.exact[f"{kind} table"], ids).astype(np.float32) * np.float32(3.5))
            same_bits(r.run(ids), wanted)


def test_rows_that_are_wanted_come_in_their_order(sheet, team):
    def build(p, s):
        _, h = p.norm(p.embed(s["a96"]), s["w96"], EPS, selected=True)
        p.logits(h, None)

    wanted = ref.rmsnorm(sheet.exact["a96"], sheet.exact["w96"], EPS)
    with rig(sheet, team, build, hidden=True) as r:
        for rows in ([], [0], [16], [3, 0, 16, 3], list(range(17))):
            np.testing.assert_allclose(r.run(np.arange(17), rows=rows), wanted[rows], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tokens_first", [True, False], ids=["selected", "all"])
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("k", [32, 96, 576])
def test_norm(sheet, team, k, layer, tokens_first):
    """x + y + z, of which y and z may be normed first, and the norm of it; with and without biases."""
    norm = ref.layernorm if layer else ref.rmsnorm
    x, y, z, w, post = (sheet.exact[name] for name in (f"a{k}", f"b{k}", f"c{k}", f"w{k}", f"post{k}"))
    bias, post_bias = sheet.exact[f"n{k}.bias"], sheet.exact[f"m{k}.bias"]
    totals = {"x": x, "y": x + y, "post": x + norm(y, post, EPS), "yz": x + y + z,
              "posts": x + norm(y, sheet.exact[f"m{k}.weight"], EPS, post_bias) + norm(z, post, EPS)}  # fmt: skip
    for case, total in totals.items():
        for result in ("h", "bias", "plain") + ("sum",) * (case != "x" and not tokens_first):
            def build(p, s, case=case, result=result):
                a, b, c = (p.embed(s[f"{name}{k}"]) for name in "abc")
                more = {"x": {}, "y": {"y": b}, "post": {"y": b, "post": s[f"post{k}"]}, "yz": {"y": b, "z": c},
                        "posts": {"y": b, "post": s[f"m{k}.weight"], "z": c, "z_post": s[f"post{k}"]}}[case]  # fmt: skip
                if result == "sum":
                    return p.logits(p.add(a, **more, eps=EPS, layer=layer), None)
                vector = {"h": s[f"w{k}"], "bias": s[f"n{k}.weight"], "plain": None}[result]
                out, h = p.norm(a, vector, EPS, **more, selected=tokens_first, layer=layer)
                return p.logits(h, None)

            wanted = {"sum": total, "h": norm(total, w, EPS), "bias": norm(total, sheet.exact[f"n{k}.weight"], EPS, bias),
                      "plain": norm(total, np.ones(k), EPS)}[result]  # fmt: skip
            with rig(sheet, team, build, hidden=True) as r:
                for tokens in TOKENS:
                    found = r.run(np.arange(tokens))
                    np.testing.assert_allclose(found, wanted[:tokens], rtol=2e-6, atol=4e-6)
                    same_for_all_teams(("norm", k, layer, case, result, tokens), found)
                    if (case, result) == ("yz", "sum"):
                        x32, y32, z32 = (v[:tokens].astype(np.float32) for v in (x, y, z))
                        same_bits(found, x32 + y32 + z32)


@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("added", [1, 2, 3, 4, 5])
def test_a_stream_that_is_added_to_more_than_once(sheet, team, added, layer):
    """Blocks side by side (attention and feed-forward of one norm): all that was added is in the next norm, in the order of the calls."""
    x, norm = sheet.exact["a96"].astype(np.float32), ref.layernorm if layer else ref.rmsnorm
    h = norm(sheet.exact["a96"], sheet.exact["w96"], EPS)
    for i in range(added):
        y = h @ sheet.exact[f"square{i % 4}"].T
        x = x + (norm(y, sheet.exact["m96.weight"], EPS, sheet.exact["m96.bias"]) if i % 3 == 2 else y)
    wanted = norm(x, sheet.exact["n96.weight"], EPS, sheet.exact["n96.bias"])

    def build(p, s):
        stream = Residual(p, p.embed(s["a96"]), EPS, layer)
        h = stream.norm(s["w96"])
        for i in range(added):
            stream.add(p.matmul(h, s[f"square{i % 4}"]), s["m96.weight"] if i % 3 == 2 else None)
        p.logits(stream.norm(s["n96.weight"], selected=True), None)

    with rig(sheet, team, build, hidden=True) as r:
        norms = [op for op in r.plan.ops if op.name == "norm"]
        assert len(norms) == 2 + (added - 1) // 2
        assert [t.source.name for op in norms for t in op.tensors[1:3] if t] == [f"square{i % 4}" for i in range(added)]
        assert r.plan.barriers()[1] == 1 and r.plan.barriers()[0] <= 3 + (team.n_nodes > 1) + (added - 1) // 2
        for tokens in TOKENS:
            found = r.run(np.arange(tokens))
            np.testing.assert_allclose(found, wanted[:tokens], atol=2e-5)
            same_for_all_teams(("stream", added, layer, tokens), found)
            same_bits(r.run(np.arange(tokens), seed=3 + tokens), found)


@pytest.mark.parametrize("kinds", [("Q4_0", "Q6_K", "Q8_0"), ("F16", "Q5_1", "Q4_K"), ("Q5_K", "F32"), ("BF16",)])
def test_biases_of_matmuls(sheet, team, kinds):
    """Added once to every finished row, on each path, whoever finishes it: exactly the unbiased bits plus the bias, in one addition."""
    names = [f"{kind} {'33 256' if j == 1 else 'table'}" for j, kind in enumerate(kinds)]
    for j, name in enumerate(names):
        def build(p, s, j=j, with_bias=True):
            matrices = [replace(s[name], bias=s[f"bias{s[name].n}"] if with_bias and i != 1 else None) for i, name in enumerate(names)]
            outs = p.matmul(p.embed(s["x256"]), *matrices)
            p.logits((outs if isinstance(outs, list) else [outs])[j], None)

        with rig(sheet, team, build, hidden=True) as r, rig(sheet, team, partial(build, with_bias=False), hidden=True) as plain:
            bias = 0 if j == 1 else sheet.exact[f"bias{sheet[name].n}"].astype(np.float32)
            assert (r.plan.weights[-1].name == f"bias{sheet[name].n}") or j == 1
            for tokens in TOKENS:
                same_bits(r.run(np.arange(tokens)), plain.run(np.arange(tokens)) + bias, (name, tokens))


@pytest.mark.parametrize("sizes", [None, {"crew": 2, "piece_bytes": 1 << 20, "exact_groups": 100, "line_tokens": 8}], ids=["", "cut"])
@pytest.mark.parametrize("name", ["Q4_K 100 768", "F32 50 576"])
def test_scale_and_cap_of_a_matmul(sheet, team, name, sizes):
    """Once for every row, whoever finishes it, also of groups that two workers share: y = cap tanh(scale (W h + b) / cap)."""
    bias = sheet[f"bias{sheet[name].n}"]

    def build(p, s, **more):
        p.logits(p.embed(s[f"x{s[name].k}"]), replace(s[name], bias=bias), **more)

    def hidden(p, s):
        p.logits(p.matmul(p.embed(s[f"x{s[name].k}"]), replace(s[name], bias=bias), scale=0.3), None)

    cut = partial(rig, sheet, team, sizes=sizes)
    with (cut(build) as plain, cut(partial(build, scale=0.3)) as scaled, cut(partial(build, scale=0.3, softcap=2.0)) as capped,
          cut(hidden, hidden=True) as h):  # fmt: skip
        for tokens in TOKENS:
            wanted = plain.run(np.arange(tokens)) * np.float32(0.3)
            same_bits(scaled.run(np.arange(tokens)), wanted)
            same_bits(h.run(np.arange(tokens)), wanted)
            found = capped.run(np.arange(tokens))
            np.testing.assert_allclose(found, 2 * np.tanh(wanted.astype(np.float64) / 2), rtol=1e-6)
            same_for_all_teams(("capped", name, tokens), found)


def test_embed_with_positions(sheet, team):
    """A token's row and its position's, whichever segment it stands in."""
    def build(p, s):
        p.logits(p.embed(s["Q4_K table"], scale=0.5, positions=s["x256"]), None)

    with rig(sheet, team, build, hidden=True, n_ctx=40) as r:
        ids, at = np.array([3, 7, 36, 0, 3, 5]), np.array([0, 1, 2, 37, 38, 39])
        found = r.run(ids, [(r.new_kv(), 3, 0), (r.new_kv(), 3, 37)])
        wanted = ref.embed(sheet.exact["Q4_K table"], ids).astype(np.float32) * np.float32(0.5) + sheet.exact["x256"][at].astype(np.float32)
        same_bits(found, wanted)
    with pytest.raises(UnsupportedModel, match="n_ctx = 41 is not supported; supported: up to 40, as many rows as x256 has"):
        build(Plan(1, 8, 41, hidden=True), sheet)


def test_bias_of_the_logits(sheet, team):
    def build(p, s, bias):
        p.logits(p.embed(s["x256"]), replace(s["Q4_K table"], bias=bias))

    with rig(sheet, team, partial(build, bias=sheet["bias37"])) as r, rig(sheet, team, partial(build, bias=None)) as plain:
        for rows in ([5], [0, 7, 7, 3], list(range(17))):
            wanted = plain.run(np.arange(17), rows=rows) + sheet.exact["bias37"].astype(np.float32)
            same_bits(r.run(np.arange(17), rows=rows), wanted)


def clamped(gate, up, alpha=1.702, limit=0.5):
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate / (1 + np.exp(-alpha * gate)) * (up + 1)


GATES = {"silu": ref.silu_mul, "gelu": ref.gelu_mul, "sigmoid": lambda gate, up: up / (1 + np.exp(-gate)), "clamped": clamped,
         "limited": lambda gate, up: np.minimum(gate / (1 + np.exp(-gate)), 0.5) * np.clip(up, -0.5, 0.5),
         "relu": lambda gate, up: np.maximum(gate, 0) * up, "product": lambda gate, up: gate * up,
         "situ": lambda gate, up: ref.softcap(gate, 1.702) / (1 + np.exp(-gate)) * ref.softcap(up, 0.5)}


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("k", [32, 96, 576])
def test_gated(sheet, team, k, activation):
    wanted = GATES[activation](sheet.exact[f"b{k}"], sheet.exact[f"a{k}"])

    def build(p, s):
        p.logits(p.gated(p.embed(s[f"b{k}"]), p.embed(s[f"a{k}"]), activation, alpha=1.702, limit=0.5), None)

    with rig(sheet, team, build, hidden=True) as r:
        for tokens in TOKENS:
            found = r.run(np.arange(tokens))
            np.testing.assert_allclose(found, wanted[:tokens], rtol=3e-6, atol=1e-6)
            same_for_all_teams(("gated", activation, k, tokens), found)


def test_situ_without_a_limit(sheet, team):
    gate, up = sheet.exact["b96"], sheet.exact["a96"]

    def build(p, s):
        p.logits(p.gated(p.embed(s["b96"]), p.embed(s["a96"]), "situ", alpha=2.5), None)

    with rig(sheet, team, build, hidden=True) as r:
        np.testing.assert_allclose(r.run(np.arange(40)), ref.softcap(gate, 2.5) / (1 + np.exp(-gate)) * up, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize(("activation", "constants"), [("gelu", ()), ("relu^2", ()), ("xielu", (0.8, 1.1, 0.5, -1e-6)), ("above", (0.7,)),
                                                       ("above", (-0.4,))])  # fmt: skip
@pytest.mark.parametrize("k", [32, 96, 576])
def test_activate(sheet, team, k, activation, constants):
    x = sheet.exact[f"b{k}"]
    if activation == "xielu":
        ap, an, beta, eps = constants
        wanted = np.where(x > 0, ap * x**2 + beta * x, an * (np.expm1(np.minimum(x, eps)) - x) + beta * x)
    elif activation == "above":
        wanted = np.maximum(x - x.mean(1, keepdims=True) - constants[0] * x.std(1, ddof=1, keepdims=True), 0)
    else:
        wanted = ref.gelu_mul(x, 1.0) if activation == "gelu" else np.maximum(x, 0) ** 2
    with rig(sheet, team, lambda p, s: p.logits(p.activate(p.embed(s[f"b{k}"]), activation, constants), None), hidden=True) as r:
        for tokens in TOKENS:
            found = r.run(np.arange(tokens))
            np.testing.assert_allclose(found, wanted[:tokens], rtol=3e-6, atol=1e-6)
            same_for_all_teams(("plain", activation, constants, k, tokens), found)


def test_gated_takes_both_halves_of_one_row(sheet, team):
    wanted = ref.silu_mul(sheet.exact["a576"][:, :288], sheet.exact["a576"][:, 288:])
    with rig(sheet, team, lambda p, s: p.logits(p.gated(p.embed(s["a576"]), None, "silu"), None), hidden=True) as r:
        for tokens in TOKENS:
            found = r.run(np.arange(tokens))
            np.testing.assert_allclose(found, wanted[:tokens], rtol=3e-6, atol=1e-6)
            same_for_all_teams(("halves", tokens), found)


def test_normed(sheet, team):
    """One copy per node of a shared row, whole."""
    x, w = sheet.exact["a576"], sheet.exact["w576"]

    def build(p, s):
        p.logits(p.normed(p.embed(s["a576"]), s["w576"], 1e-5), None)

    with rig(sheet, team, build, hidden=True) as r:
        for tokens in TOKENS:
            found = r.run(np.arange(tokens))
            np.testing.assert_allclose(found, ref.rmsnorm(x[:tokens], w, 1e-5), rtol=3e-6, atol=1e-6)
            same_for_all_teams(("normed", tokens), found)


def test_rope_table(sheet, team):
    """Far positions too: an angle in float32 would be off by 0.01 there."""
    frequencies = 10000.0 ** -(np.arange(100) / 100)

    def build(p, s):
        p.embed(s["a32"])
        p.logits(p.rope_table(s.catalog.constant("frequencies in double", frequencies), factor=1.5), None)

    with rig(sheet, team, build, hidden=True, n_ctx=200_000) as r:
        for tokens, start in product(TOKENS, (0, 131_000)):
            segments = [(r.new_kv(), tokens, start)]
            if tokens > 3:
                segments = [(r.new_kv(), 3, 77), (r.new_kv(), tokens - 3, start)]
            at = np.concatenate([np.arange(pos, pos + n) for _, n, pos in segments])
            angle = at[:, None] * frequencies
            wanted = 1.5 * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
            np.testing.assert_allclose(r.run(np.arange(tokens), segments), wanted, atol=2e-7)


@pytest.mark.parametrize(("segments", "says"), [
    ([(0, 2), (2, 0), (2, 1)], "segment 1 of a step has 0 tokens from row 2; wanted 1 or more from row 2"),
    ([(0, 2), (1, 1)], "segment 1 of a step has 1 tokens from row 1; wanted 1 or more from row 2"),
    ([(0, 2)], "a step's segments have 2 tokens; the step has 3"),
    ([], "a step's segments have 0 tokens; the step has 3"),
])  # fmt: skip
def test_segments_cover_the_tokens(sheet, team, segments, says):
    with rig(sheet, team, lambda p, s: p.logits(p.embed(s["a96"]), None), hidden=True) as r:
        table = np.zeros(len(segments), _core.SEGMENT_DTYPE)
        for record, (row0, n) in zip(table, segments):
            record["row0"], record["n"] = row0, n
        with pytest.raises(ValueError, match=says):
            r.core.run(np.arange(3, dtype=np.int32), table, np.arange(3, dtype=np.int32), np.zeros((3, 96), np.float32))


@pytest.fixture(scope="module")
def attention_sheet(tmp_path_factory):
    """``attention_sheet(Attention, positions)``: random heads of its shape."""
    folder, sheets = tmp_path_factory.mktemp("attention"), {}

    def sheet(a, n):
        if a not in sheets:
            rng = np.random.default_rng(a.heads * 100 + a.kv_heads)
            sheets[a] = Sheet(folder / f"{len(sheets)}.gguf", {
                "q": rng.standard_normal((n, a.heads * a.key_length)), "k": rng.standard_normal((n, a.kv_heads * a.key_length)),
                "v": rng.standard_normal((n, a.kv_heads * a.value_length)), "q_norm": rng.uniform(0.5, 1.5, a.key_length),
                "k_norm": rng.uniform(0.5, 1.5, a.key_length)})  # fmt: skip
        return sheets[a]

    yield sheet
    for made in sheets.values():
        made.close()


@cache
def attention_twin(sheet, a, normed, base, kv_type):
    """The op in float64, but with keys and values kept in their type."""
    n = len(sheet.exact["q"])
    q, k, v = (sheet.exact[name].reshape(n, count, -1) for name, count in (("q", a.heads), ("k", a.kv_heads), ("v", a.kv_heads)))
    for norms in (not a.norm_last, a.norm_last):
        if norms and normed:
            q, k = ref.rmsnorm(q, sheet.exact["q_norm"], a.eps), ref.rmsnorm(k, sheet.exact["k_norm"], a.eps)
        if not norms and a.rope_dim:
            style = "neox" if a.neox else "norm"
            q, k = (ref.rope(x, np.arange(n), style, base=base, n_rot=a.rope_dim) for x in (q, k))
    if a.floor:
        q = q * (1 + a.temperature * np.log((np.arange(n) + a.ahead) // a.floor + 1))[:, None, None]
    k, v = (ref.stored(x, kv_type) for x in (k, v))
    if a.pieces:
        cuts = [slice(i, i + a.window) for i in range(0, n, a.window)]
        return np.concatenate([ref.attention(q[c], k[c], v[c], a.scale, cap=a.softcap).reshape(len(q[c]), -1) for c in cuts])
    return ref.attention(q, k, v, a.scale, window=a.window, cap=a.softcap).reshape(n, -1)


ATTENTION = {
    "gqa": (Attention(4, 2, 32, 32, 32, False, 32**-0.5), False),
    "window-norms": (Attention(6, 3, 48, 16, 32, True, 0.3, window=37, eps=EPS), True),
    "no-rope-softcap": (Attention(2, 1, 16, 16, 0, False, 0.25, window=300, softcap=2.0), False),
    "big-group": (Attention(40, 1, 16, 32, 16, True, 0.25), False),  # a group of more heads than fit one tile
    "norms-last-temperature": (Attention(4, 2, 32, 32, 32, True, 0.2, eps=EPS, norm_last=True, temperature=0.3, floor=100), True),
    "odd-widths": (Attention(6, 3, 40, 21, 14, True, 0.2, window=37, eps=EPS), True),
    "pieces": (Attention(6, 3, 32, 32, 32, True, 0.2, window=100, pieces=True), False),
    "pieces-temperature": (Attention(4, 2, 32, 32, 0, False, 0.2, window=300, pieces=True, temperature=0.3, floor=100, ahead=1), False),
    "more-odd-widths": (Attention(4, 1, 100, 120, 100, False, 0.1), False),
}


@pytest.mark.parametrize(("team", "shape", "kv_type"), thinned(TEAMS, list(ATTENTION), KV_TYPES), indirect=["team"], ids=str)
def test_attend(attention_sheet, team, shape, kv_type):
    """Several chunks of the KV memory, fed by decoding steps and by steps of many tokens, across their borders."""
    a, normed = ATTENTION[shape]
    n, base = 600 if a.heads < 40 else 300, 500.0
    sheet = attention_sheet(a, n)

    def build(p, s):
        q, k, v = p.embed(s["q"]), p.embed(s["k"]), p.embed(s["v"])
        norms = {"q_norm": s["q_norm"], "k_norm": s["k_norm"]} if normed else {}
        rope = None
        if a.rope_dim:
            rope = p.rope_table(s.catalog.constant("rope", base ** (-np.arange(0, a.rope_dim, 2) / a.rope_dim)))
        p.logits(p.attend(q, k, v, a, rope, **norms), None)

    wanted = attention_twin(sheet, a, normed, base, kv_type)
    with rig(sheet, team, build, hidden=True, n_ctx=n, n_batch=200, kv_type=kv_type) as r:
        kv, at, found = r.new_kv(), 0, []
        for size in (1, 2, 3, 5, 17, 40, 185, 1, 1, 1, 1, 43, 100, 110, 1, 1, 1, 5, 82):
            if at == n:
                break
            found.append(r.run(np.arange(at, at + size), [(kv, size, at)]))
            at += size
        assert at == n
        found = np.concatenate(found)
        # A key or value that rounds to the other side here: 2^-11 of it in half floats, averaged over the positions; 2^-8 in bfloat16;
        # 2^-7 of the block's largest in q8_0, which also multiplies in 16 bits.
        most, mean = {"f16": (2e-4, 2e-6), "bf16": (2e-3, 1e-5), "q8_0": (1e-2, 1e-4), "f32": (2e-5, 2e-7)}[kv_type]
        np.testing.assert_allclose(found, wanted, atol=most)
        assert np.abs(found - wanted).mean() < mean
        same_for_all_teams(("attend", a, kv_type), found)


@pytest.mark.parametrize("window", [0, 40])
def test_sinks(tmp_path, team, window):
    """One more score per head, without a value: for tiles of a prompt and for the parts of decoding sequences."""
    n, a = 600, Attention(6, 2, 32, 16, 0, False, 0.2, window=window)
    rng = np.random.default_rng(8)
    sheet = Sheet(tmp_path / "sinks.gguf", {
        "q": rng.standard_normal((n, 6 * 32)), "k": rng.standard_normal((n, 2 * 32)), "v": rng.standard_normal((n, 2 * 16)),
        "sinks": np.array([0.0, 3.0, -40.0, 60.0, 1.0, -1.0])})  # fmt: skip
    q, k, v = (sheet.exact[name].reshape(n, heads, -1) for name, heads in (("q", 6), ("k", 2), ("v", 2)))
    k, v = (np.repeat(ref.stored(x, "f16"), 3, axis=1) for x in (k, v))
    scores = np.einsum("qhe,khe->hqk", q, k) * a.scale
    at = np.arange(n)
    seen = (at[:, None] >= at) & ((at[:, None] - at < window) | (window == 0))
    scores = np.where(seen, scores, -np.inf)
    sinks = sheet.exact["sinks"][:, None, None]
    top = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
    p = np.exp(scores - top)
    wanted = np.einsum("hqk,khe->qhe", p / (p.sum(axis=-1, keepdims=True) + np.exp(sinks - top)), v).reshape(n, -1)

    def build(p, s):
        p.logits(p.attend(*(p.embed(s[name]) for name in "qkv"), a, sinks=s["sinks"]), None)

    with rig(sheet, team, build, hidden=True, n_ctx=n, n_batch=300) as r:
        kv, at, found = r.new_kv(), 0, []
        for size in (1, 2, 250, 3, 1, 1, 300, 1, 1, 40):
            found.append(r.run(np.arange(at, at + size), [(kv, size, at)]))
            at += size
        found = np.concatenate(found)
        np.testing.assert_allclose(found, wanted, atol=2e-4)
        assert np.abs(found[:, 3 * 16 : 4 * 16]).max() < 1e-20  # a sink far above all scores leaves nothing
        same_for_all_teams(("sinks", window), found)
    sheet.close()


@pytest.mark.parametrize(("heads", "k"), [(1, 576), (4, 576), (6, 96), (36, 576), (3, 96)])
@pytest.mark.parametrize("apart", [False, True])
def test_join(sheet, team, heads, k, apart):
    """Parts of heads of one or two tensors, as one row or as rows of their own, from which a matrix may follow."""
    a, b = (sheet.exact[f"{name}{k}"].reshape(40, heads, -1) for name in "ab")
    piece = k // heads
    first, more = piece // 4, piece - piece // 4

    def build(p, s, two):
        x, y = p.embed(s[f"a{k}"]), p.embed(s[f"b{k}"])
        joined = p.join(heads, (x, first, more), (y, 0, piece // 2) if two else None, apart=apart)
        p.logits(p.mix(joined, None) if apart else joined, None)

    for two in (False, True):
        wanted = np.concatenate([a[..., first:], b[..., : piece // 2]], axis=-1) if two else a[..., first:]
        wanted = wanted.sum(axis=1) if apart else wanted.reshape(40, -1)
        with rig(sheet, team, lambda p, s, two=two: build(p, s, two), hidden=True) as r:
            for tokens in TOKENS:
                found = r.run(np.arange(tokens))
                np.testing.assert_allclose(found, wanted[:tokens], rtol=1e-6, atol=2e-5)
                same_for_all_teams(("join", heads, k, apart, two, tokens), found)


def test_clamp(sheet, team):
    with rig(sheet, team, lambda p, s: p.logits(p.activate(p.embed(s["b96"]), "clamp", (0.75,)), None), hidden=True) as r:
        for tokens in TOKENS:
            np.testing.assert_array_equal(r.run(np.arange(tokens)), np.clip(sheet.exact["b96"][:tokens].astype(np.float32), -0.75, 0.75))
