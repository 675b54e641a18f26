"""Every op against its float64 twin, for every weight format, number of tokens, workers and pretend nodes."""

from itertools import product

import gguf
import numpy as np
import pytest
import reference as ref
from core_tools import Sheet, open_team, rig, same_bits
from random_blocks import TYPES, random_weights

from numainfer import _core
from numainfer.engine.plan import KV_TYPES, Attention

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
        tensors |= {f"a{k}": rng.standard_normal((40, k)), f"b{k}": rng.standard_normal((40, k)) * 3,
                    f"w{k}": rng.uniform(0.5, 2, k), f"post{k}": rng.uniform(0.5, 2, k)}  # fmt: skip
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


@pytest.mark.parametrize("kind", TYPES)
def test_matmul(sheet, team, kind):
    for n, k in SHAPES:
        if k % block(kind):
            continue
        wanted, terms = matmul_twin(sheet, f"x{k}", f"{kind} {n} {k}", kind)
        with rig(sheet, team, lambda p, s, n=n, k=k: p.logits(p.embed(s[f"x{k}"]), s[f"{kind} {n} {k}"])) as r:
            all_tokens = r.run(np.arange(40))
            assert_close(all_tokens, wanted, terms)
            same_for_all_teams((kind, n, k), all_tokens)
            for tokens in TOKENS:  # one token takes another path than many, and must give the same bits
                first = 40 - tokens
                same_bits(r.run(np.arange(first, 40)), all_tokens[first:], (n, k, tokens))


def matmul_twin(sheet, x, w, kind):
    """The product in float64 after the quantisation that the type asks for, and the sum of its absolute terms."""
    x, w = sheet.exact[x], sheet.exact[w]
    return (ref.matmul if kind in FLOATS else ref.matmul_q8)(x, w), np.abs(x) @ np.abs(w).T


@pytest.mark.parametrize("kinds", [("Q4_0", "Q6_K", "Q8_0"), ("F16", "Q5_1", "Q4_K"), ("Q5_K", "F32"), ("BF16", "Q4_1", "Q5_0")])
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


@pytest.mark.parametrize("k", [32, 96, 576])
def test_norm(sheet, team, k):
    x, y, post = (sheet.exact[f"{name}{k}"] for name in ("a", "b", "post"))
    plain, summed, normed = x, x + y, x + ref.rmsnorm(y, post, EPS)
    for residual, after, total in ((False, False, plain), (True, False, summed), (True, True, normed)):
        for emit_sum in (False, True)[: 1 + residual]:
            def build(p, s, residual=residual, after=after, emit_sum=emit_sum):
                a, b = p.embed(s[f"a{k}"]), p.embed(s[f"b{k}"]) if residual else None
                out, h = p.norm(a, s[f"w{k}"], EPS, b, s[f"post{k}"] if after else None)
                p.logits(out if emit_sum else h, None)

            wanted = total if emit_sum else ref.rmsnorm(total, sheet.exact[f"w{k}"], EPS)
            with rig(sheet, team, build, hidden=True) as r:
                for tokens in TOKENS:
                    found = r.run(np.arange(tokens))
                    np.testing.assert_allclose(found, wanted[:tokens], rtol=2e-6, atol=2e-6)
                    same_for_all_teams(("norm", k, residual, after, emit_sum, tokens), found)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("k", [32, 96, 576])
def test_gated(sheet, team, k, activation):
    wanted = (ref.silu_mul if activation == "silu" else ref.gelu_mul)(sheet.exact[f"b{k}"], sheet.exact[f"a{k}"])
    with rig(sheet, team, lambda p, s: p.logits(p.gated(p.embed(s[f"b{k}"]), p.embed(s[f"a{k}"]), activation), None), hidden=True) as r:
        for tokens in TOKENS:
            found = r.run(np.arange(tokens))
            np.testing.assert_allclose(found, wanted[:tokens], rtol=3e-6, atol=1e-6)
            same_for_all_teams((activation, k, tokens), found)


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


def attention_sheet(folder, heads, kv_heads, e, ev, n):
    rng = np.random.default_rng(heads * 100 + kv_heads)
    return Sheet(folder / f"attention{heads}-{kv_heads}-{e}.gguf",
                 {"q": rng.standard_normal((n, heads * e)), "k": rng.standard_normal((n, kv_heads * e)),
                  "v": rng.standard_normal((n, kv_heads * ev)), "q_norm": rng.uniform(0.5, 1.5, e),
                  "k_norm": rng.uniform(0.5, 1.5, e)})  # fmt: skip


def attention_twin(sheet, a, normed, base, kv_type):
    """The op in float64, but with keys and values kept in their type."""
    n = len(sheet.exact["q"])
    q, k, v = (sheet.exact[name].reshape(n, count, -1) for name, count in (("q", a.heads), ("k", a.kv_heads), ("v", a.kv_heads)))
    if normed:
        q, k = ref.rmsnorm(q, sheet.exact["q_norm"], a.eps), ref.rmsnorm(k, sheet.exact["k_norm"], a.eps)
    if a.rope_dim:
        style = "neox" if a.neox else "norm"
        q, k = (ref.rope(x, np.arange(n), style, base=base, n_rot=a.rope_dim) for x in (q, k))
    k, v = (ref.stored(x, kv_type) for x in (k, v))
    return ref.attention(q, k, v, a.scale, window=a.window, cap=a.softcap).reshape(n, -1)


@pytest.mark.parametrize(("a", "normed"), [
    (Attention(4, 2, 32, 32, 32, False, 32**-0.5), False),
    (Attention(6, 3, 48, 16, 32, True, 0.3, window=37, eps=EPS), True),
    (Attention(2, 1, 16, 16, 0, False, 0.25, window=300, softcap=2.0), False),
    (Attention(40, 1, 16, 32, 16, True, 0.25), False),  # a group of more heads than fit one tile
], ids=["gqa", "window-norms", "no-rope-softcap", "big-group"])  # fmt: skip
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_attend(tmp_path, team, a, normed, kv_type):
    """Several chunks of the KV memory, fed by decoding steps and by steps of many tokens, across their borders."""
    n, base = 600 if a.heads < 40 else 300, 500.0
    sheet = attention_sheet(tmp_path, a.heads, a.kv_heads, a.key_length, a.value_length, n)

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
        most, mean = {"f16": (2e-4, 2e-6), "bf16": (2e-3, 1e-5), "q8_0": (1e-2, 1e-4)}[kv_type]
        np.testing.assert_allclose(found, wanted, atol=most)
        assert np.abs(found - wanted).mean() < mean
        same_for_all_teams(("attend", a, kv_type), found)
    sheet.close()
