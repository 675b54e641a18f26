"""Attention in runs of chunks: one order of sums for every query, whoever decodes beside it, and units that are dealt out by cost."""

import functools
from itertools import product

import numpy as np
import pytest
from _cvec import load
from core_tools import Rig, Sheet, open_team, same_bits

from numainfer import _core
from numainfer.engine import attending
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan

CHUNK, N = _core.CHUNK, 2900  # 12 chunks
SHAPES = {
    "gqa": Attention(4, 2, 16, 32, 0, False, 0.25),
    "window": Attention(6, 3, 16, 16, 0, False, 0.25, window=1200, softcap=3.0),
    "pieces": Attention(6, 3, 16, 16, 0, False, 0.25, window=1200, pieces=True),
    "big-group": Attention(40, 1, 16, 16, 0, False, 0.25),  # two tiles of heads
    "latent": Attention(70, 1, 48, 32, 0, False, 0.25),  # three tiles of heads, whose values are the first columns of the keys
    "latent-window": Attention(6, 3, 32, 16, 0, False, 0.25, window=1200, softcap=3.0),
}
LATENT = {SHAPES["latent"], SHAPES["latent-window"]}
TEAMS = ((1, 1), (2, 1), (1, 3), (2, 3), (3, 4))  # (nodes, workers on each)
# Positions where runs begin, end and grow, for the numbers of runs below.
EDGES = sorted({p for j in (0, 1, 2, 3, 4, 5, 6, 8, 10) for p in (j * CHUNK, j * CHUNK + 255)} | {77, 1199, 1200, 1455, N - 9})


@pytest.fixture(scope="module", params=SHAPES)
def sheet(request, tmp_path_factory):
    """q, k and v of N positions, and one row more: NaN, to spoil what a step leaves behind."""
    a = SHAPES[request.param]
    rng = np.random.default_rng(a.heads)
    tables = {"q": a.heads * a.key_length, "k": a.kv_heads * a.key_length, "v": a.kv_heads * a.value_length}
    rows = {name: rng.standard_normal((N + 1, width)).astype(np.float32) for name, width in tables.items()}
    for table in rows.values():
        table[N] = np.nan
    sheet = Sheet(tmp_path_factory.mktemp("runs") / "sheet.gguf", rows)
    sheet.attention = a
    yield sheet
    sheet.close()


class Attending(Rig):
    """A plan that attends, and sequences by name that all read the same rows."""

    def __init__(self, sheet, team):
        def build(p, s):
            q, k = (p.embed(s[name]) for name in "qk")
            p.logits(p.attend(q, k, None if s.attention in LATENT else p.embed(s["v"]), s.attention), None)

        super().__init__(sheet, team, build, hidden=True, n_ctx=N, n_batch=700)
        self.sequences = {}  # name: KV memory, positions in it

    def step(self, segments, seed=0, spoil=True):
        """Rows of the next n tokens of sequences (name, n), and their positions.  What they pass through holds NaN before (``spoil``)."""
        table, rows = [], []
        for name, n in segments:
            kv, at = self.sequences.setdefault(name, (self.new_kv(), 0))
            table.append((kv, n, at))
            rows.append(np.arange(at, at + n))
        rows = np.concatenate(rows)
        assert not spoil or np.isnan(self.run(np.full(len(rows), N), table)).all()
        found = self.run(rows, table, seed=seed)
        for (name, n), (kv, _, at) in zip(segments, table):
            self.sequences[name] = kv, at + n
        return found, rows

    def grow(self, **lengths):
        """Let sequences have so many positions; the new rows of each step."""
        found = []
        for name, length in lengths.items():
            while (left := length - self.sequences.get(name, (None, 0))[1]) > 0:
                found.append(self.step([(name, min(left, 700))], spoil=False)[0])
        return found


@pytest.fixture(scope="module")
def wanted(sheet):
    """Rows of all positions by number of runs, from one worker in steps of many tokens."""
    found = {}

    def of(most):
        if most not in found:
            with pytest.MonkeyPatch.context() as patch, open_team() as team:
                patch.setattr(attending, "MOST_RUNS", most)
                rig = Attending(sheet, team)
                found[most] = np.concatenate(rig.grow(all=N))
                rig.close()
        return found[most]

    return of


@functools.cache
def stored(sheet, vec, g, j):
    """Chunk j of kv-head g as the KV memory holds it: keys, values; or latent rows."""
    found = []
    for name, part in (("k", "value"),) if sheet.attention in LATENT else (("k", "key"), ("v", "value")):
        rows = sheet.exact[name][:N].astype(np.float32).reshape(N, sheet.attention.kv_heads, -1)[j * CHUNK : (j + 1) * CHUNK, g]
        found.append(vec.store("f16", part, np.pad(rows, ((0, CHUNK - len(rows)), (0, 0)))))
    return found


def first_seen(a, pos):
    """The first position that a query sees."""
    if not a.window:
        return 0
    return pos // a.window * a.window if a.pieces else max(0, pos + 1 - a.window)


def twin(sheet, vec, pos, most):
    """The row of a query by the contract: chunks in runs of 1, 2, 4, ... chunks, as short as `most` allow; runs in order."""
    a, row = sheet.attention, []
    first = first_seen(a, pos)
    chunks, length = range(first // CHUNK, pos // CHUNK + 1), 1
    while len({j // length for j in chunks}) > most:
        length *= 2
    q = sheet.exact["q"].astype(np.float32).reshape(N + 1, a.heads, -1)
    for g in range(a.kv_heads):
        heads = slice(g * a.heads // a.kv_heads, (g + 1) * a.heads // a.kv_heads)
        runs = {}
        for j in chunks:
            lo, hi = max(first - j * CHUNK, 0), min(pos + 1 - j * CHUNK, CHUNK)
            count = heads.stop - heads.start
            attend = vec.attend_latent if a in LATENT else vec.attend
            parts = attend("f16", q[pos, heads] * np.float32(a.scale), *stored(sheet, vec, g, j), a.value_length, [lo] * count,
                           [hi] * count, a.softcap)  # fmt: skip
            runs.setdefault(j // length, []).append(list(zip(*parts)))
        for h in range(heads.stop - heads.start):
            total = None
            for run in runs.values():
                part = run[0][h]
                for other in run[1:]:
                    part = vec.merge(part, other[h])
                total = part if total is None else vec.merge(total, part)
            row.append(np.asarray(total[2]) * (np.float32(1) / np.float32(total[1])))
    return np.concatenate(row)


@pytest.mark.parametrize("most", [1, 3, 4, 64])
def test_order_of_sums(sheet, wanted, most):
    for pos in EDGES:
        same_bits(wanted(most)[pos], twin(sheet, load("scalar"), pos, most), pos)


@pytest.mark.parametrize("most", [1, 3, 64])
def test_prompts_and_decoding_sequences(sheet, wanted, monkeypatch, most):
    """Tiles of a prompt and decoding sequences, in parts or whole, have the same bits, on every team and in any order."""
    monkeypatch.setattr(attending, "MOST_RUNS", most)
    wanted = wanted(most)
    turn = list(SHAPES.values()).index(sheet.attention) + (1, 3, 64).index(most)
    for shape, sequences in list(zip(TEAMS, (16, 0, 1, 2, 16)))[turn % 2 :: 2]:  # each team for half of the numbers of runs
        monkeypatch.setattr(attending, "PART_SEQUENCES", sequences)  # so many of the longest are split
        with open_team(*shape) as team:
            rig = Attending(sheet, team)
            for pos in EDGES:
                rig.grow(long=pos)
                found, rows = rig.step([("long", 1)])
                same_bits(found, wanted[rows], (shape, pos))
            rig.grow(middle=1499, short=249, edge=2047, prompt=1190)
            for seed in (0, 1, 2, 3):
                found, rows = rig.step([("long", 1), ("prompt", 40), (f"new {seed}", 1), ("middle", 1), ("short", 7), ("edge", 1)], seed)
                same_bits(found, wanted[rows], (shape, seed))
            rig.close()


def test_a_long_sequence_at_any_place_of_the_list(sheet, wanted, monkeypatch):
    """There is room for the parts of two long ones: bits do not show who has it."""
    monkeypatch.setattr(attending, "MOST_RUNS", 4)
    monkeypatch.setattr(attending, "PART_SEQUENCES", 2)
    short = {f"short {i}": int(n) for i, n in enumerate(np.random.default_rng(3).integers(0, 400, 11))}
    for shape in TEAMS[1:]:
        with open_team(*shape) as team:
            rig = Attending(sheet, team)
            rig.grow(**short, first=2800, second=2500, third=1300)
            for place, long in product((0, 5, 11), (["first"], ["second", "first", "third"])):
                names = [*list(short)[:place], *long, *list(short)[place:]]
                found, rows = rig.step([(name, 1) for name in names])
                same_bits(found, wanted(4)[rows], (shape, place))
            rig.close()


# ---- who does what, counted --------------------------------------------------------------------------------------------


def ints(a, n_ctx, n_nodes=1, n_batch=512):
    """The integers of an attend op."""
    made = Plan(n_nodes, n_batch, n_ctx)
    q, k, v = (made._tensor(name, width, 1, "f") for name, width in
               (("q", a.heads * a.key_length), ("k", a.kv_heads * a.key_length), ("v", a.kv_heads * a.value_length)))
    for tensor in (q, k, v):
        tensor.first = 0
    made.attend(q, k, v, a).is_read = True
    made.compile()
    return next(op for op in made.ops if op.name == "attend").ints


def costs(a, segments, shape, n_ctx=40_000):
    table = np.zeros(len(segments), _core.SEGMENT_DTYPE)
    table["n"], table["pos0"] = zip(*segments)
    nodes = [node for node in range(shape[0]) for _ in range(shape[1])]
    return _core.attend_costs(ints(a, n_ctx, shape[0]), table, nodes)


def all_of_it(a, segments):
    """Positions times heads of all queries, a tile (32) reading what its first to last see; 112 more where a head begins."""
    total, group = 0, a.heads // a.kv_heads
    for n, pos0 in segments:
        total += 112 * group
        for first in range(0, n * group, 32):
            last = min(first + 32, n * group) - 1
            seen = first_seen(a, pos0 + first // group)
            total += (last + 1 - first) * (pos0 + last // group - seen + 1)
    return total * a.kv_heads


@pytest.mark.parametrize("a", [*SHAPES.values(), Attention(32, 8, 64, 64, 0, False, 0.1), Attention(128, 1, 64, 64, 0, False, 0.1),
                               Attention(6, 3, 16, 16, 0, False, 1.0, window=17_000),
                               Attention(6, 3, 16, 16, 0, False, 1.0, window=8_192, pieces=True)])  # fmt: skip
def test_all_units_are_done_once(a):
    rng = np.random.default_rng(1)
    lists = [[(1, 0)], [(1, 33_000)], [(512, 0)], [(100, 16_300)], [(1, 7)] * 70,
             [(int(n), int(pos)) for n, pos in zip(rng.choice([1, 1, 1, 9, 200], 60), rng.integers(0, 39_000, 60))]]  # fmt: skip
    for shape, segments in product([*TEAMS, (2, 96), (4, 7)], lists):
        assert costs(a, segments, shape).sum() == all_of_it(a, segments), (shape, segments)


def test_cost_of_a_long_sequence_does_not_depend_on_its_place():
    """One of 32,000 positions among 63 short ones."""
    for a in (Attention(32, 8, 64, 64, 0, False, 0.1), Attention(64, 8, 128, 128, 0, False, 0.1), Attention(6, 3, 64, 64, 0, False, 0.1)):
        most = []
        for place in (0, 16, 17, 40, 63):
            segments = [(1, 100)] * 63
            segments.insert(place, (1, 32_000))
            for shape in ((1, 2), (1, 8), (2, 96)):
                found = costs(a, segments, shape)
                most.append((shape, found.max()))
        for shape in {shape for shape, _ in most}:
            of_shape = [cost for other, cost in most if other == shape]
            assert max(of_shape) == min(of_shape), (a, shape, of_shape)


@pytest.mark.parametrize("segments, shape, most", [
    ([(1, 32_000)], (1, 8), 1.01), ([(1, 16_383)], (2, 16), 1.03), ([(1, 131_000)], (2, 96), 1.15), ([(512, 8_000)], (1, 8), 1.01),
    ([(512, 8_000)], (2, 96), 1.16), ([(1, 2_000)] * 64, (2, 96), 1.04), ([(1, 20_000)] * 64, (2, 96), 1.13),
], ids=str)  # fmt: skip
def test_workers_get_about_the_same(segments, shape, most):
    """No worker gets more than a unit beyond the mean: a run's or, where too many sequences are long, a whole one's head group."""
    found = costs(Attention(32, 8, 64, 64, 0, False, 0.1), segments, shape, 131_072)
    assert found.max() <= most * found.mean(), found.max() / found.mean()


def test_the_longest_are_split_where_there_is_no_room_for_all():
    """300 sequences would leave 1,200 parts per head beside the 64 of the long one, and there is room for 1,024."""
    a = Attention(32, 8, 64, 64, 0, False, 0.1)
    found = costs(a, [(1, 1_000)] * 150 + [(1, 131_000)] + [(1, 1_000)] * 150, (2, 96), 131_072)
    assert found.max() <= 1.15 * found.mean(), found.max() / found.mean()  # 6.8 if the long one's heads stay whole


def test_parts_take_an_eighth_at_131072_positions():
    a = Attention(32, 8, 64, 128, 0, False, 0.1)
    made = Plan(1, 512, 131_072)
    named = dict(zip(_core.attention_ints(), ints(a, 131_072)))
    assert named["turn"] == 8 and named["most_runs"] == 64
    assert named["part_runs"] * 8 == 16 * made.n_chunks
    assert _core.attention_runs(0, 131_071, 64) == (0, 64, 3)  # and so does what combine reads


@pytest.mark.parametrize("pos, window, runs", [(16_383, 0, (0, 64, 0)), (16_384, 0, (0, 33, 1)), (32_767, 0, (0, 64, 1)),
                                               (32_768, 0, (0, 33, 2)), (131_071, 1024, (508, 512, 0)), (131_072, 1024, (508, 513, 0)),
                                               (131_071, 20_000, (216, 256, 1))])  # fmt: skip
def test_runs_grow_with_what_a_query_sees(pos, window, runs):
    assert _core.attention_runs(pos + 1 - window if window else 0, pos, 64) == runs
