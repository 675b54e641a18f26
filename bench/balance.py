"""How evenly a step's work lies on the workers of a machine that one does not have: counted, not timed.

    python bench/balance.py 8b --topology 2x96c --tokens 1
    python bench/balance.py gemma27b --topology 2x96c --tokens 512
    python bench/balance.py 671b --topology 2x96c --tokens 512 --routing skewed

builds the plan of a shape, without weights, and cuts every op as the core would (csrc/cut.h, csrc/ops/ops.h).  Pieces that workers
share are dealt as equally fast ones would take them: each to whoever is free first.  A row stands for all ops of the same form:

* share: of the step's bytes of weights (up to ``line_tokens`` tokens) or multiply-adds (more), which matmuls alone count;
* bytes, macs: of the most loaded worker over the mean of all.  attend: queries times positions, behind ``--past`` positions.  Other
  ops: values written.  Where rows meet experts (matmul_grouped) a row group's reading and unpacking count as some tokens' products,
  as the core counts them: experts that few rows meet are not done in proportion to their multiply-adds;
* reads: bytes of weights read over their size: more than 1 where the workers of a strip, or many tokens, read them again;
* lines: cache lines that more than one worker writes, and the most that write one: results, sums of a row group that two workers
  share, counters of pieces; the scales of quantised activations.

rope_table, embed, kv_append and combine are not counted.  Tokens choose experts at random (``--routing``): each as likely as any other,
or *skewed*, the i-th most likely with a chance of 1/i.  Ends with status 1 if a matmul of 1 % of the step or more is further from
even than ``--most``.
"""

import argparse
import heapq
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from numainfer import _core
from numainfer.engine.architectures import build
from numainfer.engine.ops import MINIMUM
from numainfer.engine.plan import Plan
from numainfer.engine.weights import FORMATS, Catalog

BOUNDS = {True: 1.10, False: 1.15}  # of decoding, of prefill
LINE = 64


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: D, layers, H, G, E, F, V; of a mixture: experts, those of a token, rows of one's gate, first layers without; of
    latent attention: ranks of queries and of keys and values, rotated values, and others of a head."""

    architecture: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    used: int = 0
    expert_width: int = 0
    leading: int = 0
    latent: tuple = ()


SHAPES = {
    "100m": Shape("llama", 768, 12, 12, 4, 64, 2048, 49152, tied=True),
    "1b": Shape("llama", 2048, 16, 32, 8, 64, 8192, 128256, tied=True),
    "3b": Shape("llama", 3072, 28, 24, 8, 128, 8192, 128256, tied=True),
    "8b": Shape("llama", 4096, 32, 32, 8, 128, 14336, 128256),
    "70b": Shape("llama", 8192, 80, 64, 8, 128, 28672, 128256),
    "gemma27b": Shape("gemma3", 5376, 62, 32, 16, 128, 21504, 262144, tied=True),
    "qwen3-30b": Shape("qwen3moe", 2048, 48, 32, 4, 128, 6144, 151936, experts=128, used=8, expert_width=768),
    "qwen3-235b": Shape("qwen3moe", 4096, 94, 64, 4, 128, 12288, 151936, experts=128, used=8, expert_width=1536),
    "671b": Shape("deepseek2", 7168, 61, 128, 1, 128, 18432, 129280, experts=256, used=8, expert_width=2048, leading=3,
                  latent=(1536, 512, 64, 128)),
}  # fmt: skip
ROUTINGS = ("even", "skewed")


class Header:
    """A model file of which there are only metadata and sizes of tensors: all that a plan is built from.

    Parameters
    ----------
    shape : Shape
    kind : str
        Type of all matrices; of Q8_0 where rows do not divide into its blocks.
    """

    def __init__(self, shape, kind):
        self.path, self.architecture = f"a shape of {shape.architecture}", shape.architecture
        self.paths = [self.path]
        keys = {"context_length": 131072, "embedding_length": shape.width, "block_count": shape.layers,
                "feed_forward_length": shape.feed_forward, "attention.head_count": shape.heads,
                "attention.head_count_kv": shape.kv_heads, "attention.key_length": shape.head_width,
                "attention.value_length": shape.head_width, "attention.layer_norm_rms_epsilon": 1e-6,
                "attention.sliding_window": 1024 if shape.architecture == "gemma3" else 0}  # fmt: skip
        if shape.experts:
            keys |= {"expert_count": shape.experts, "expert_used_count": shape.used, "expert_feed_forward_length": shape.expert_width,
                     "leading_dense_block_count": shape.leading}  # fmt: skip
        if shape.latent:
            _, rank, rotated, plain = shape.latent
            keys |= {"attention.kv_lora_rank": rank, "attention.key_length": rank + rotated, "attention.value_length": rank,
                     "attention.key_length_mla": plain + rotated, "attention.value_length_mla": shape.head_width,
                     "rope.dimension_count": rotated, "expert_shared_count": 1, "expert_group_count": 8, "expert_group_used_count": 4,
                     "expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5}  # fmt: skip
        self.metadata = {f"{shape.architecture}.{key}": value for key, value in keys.items()}
        self.tensors = {f"{name}.weight": self._tensor(size, "F32" if name.endswith("gate_inp") else kind)
                        for name, *size in _tensors(shape)}  # fmt: skip

    @staticmethod
    def _tensor(size, kind):
        if len(size) == 1:
            return SimpleNamespace(shard=0, offset=0, shape=tuple(size), type="F32", data=np.ones(size, np.float32).view(np.uint8))
        return SimpleNamespace(shard=0, offset=0, shape=tuple(size), type=kind if size[-1] % FORMATS[kind]["block"] == 0 else "Q8_0")

    def get(self, key, type=None, default=None):
        """Metadata value of ``key``."""
        return self.metadata.get(key, default)


def _tensors(s):
    """(name, rows, columns) of every matrix, with experts before them where there are some, (name, values) of every vector."""
    q, kv = s.heads * s.head_width, s.kv_heads * s.head_width
    yield "token_embd", s.vocabulary, s.width
    yield "output_norm", s.width
    if not s.tied:
        yield "output", s.vocabulary, s.width
    for i in range(s.layers):
        sizes = [("attn_norm", s.width), ("ffn_norm", s.width)]
        if s.latent:
            queries, rank, rotated, plain = s.latent
            sizes += [("attn_q_a", queries, s.width), ("attn_q_a_norm", queries), ("attn_q_b", s.heads * (plain + rotated), queries),
                      ("attn_kv_a_mqa", rank + rotated, s.width), ("attn_kv_a_norm", rank), ("attn_k_b", s.heads, rank, plain),
                      ("attn_v_b", s.heads, s.head_width, rank), ("attn_output", s.width, q)]  # fmt: skip
        else:
            sizes += [("attn_q", q, s.width), ("attn_k", kv, s.width), ("attn_v", kv, s.width), ("attn_output", s.width, q)]
        if s.experts and i >= s.leading:
            networks = [("_exps", s.expert_width, (s.experts,))] + [("_shexp", s.expert_width, ())] * bool(s.latent)
            sizes.append(("ffn_gate_inp", s.experts, s.width))
        else:
            networks = [("", s.feed_forward, ())]
        for end, rows, n in networks:
            sizes += [(f"ffn_gate{end}", *n, rows, s.width), (f"ffn_up{end}", *n, rows, s.width), (f"ffn_down{end}", *n, s.width, rows)]
        if s.architecture == "qwen3moe":
            sizes += [("attn_q_norm", s.head_width), ("attn_k_norm", s.head_width)]
        if s.architecture == "gemma3":
            sizes += [("attn_q_norm", s.head_width), ("attn_k_norm", s.head_width), ("post_attention_norm", s.width),
                      ("post_ffw_norm", s.width)]  # fmt: skip
        for name, *size in sizes:
            yield f"blk.{i}.{name}", *size


def plan_of(shape, kind="Q4_K", n_nodes=2, tokens=512, past=0):
    """The compiled Plan of a shape, with room for a sequence of past + tokens positions."""
    return build(Plan(n_nodes, tokens, past + tokens), Catalog(Header(shape, kind)))


def workers_of(topology):
    """[workers of each node] of "2x96c", "64c" or "2x64c+32c"."""
    found = []
    for part in topology.split("+"):
        match = re.fullmatch(r"(?:(\d+)x)?(\d+)c", part.strip())
        if not match or not int(match[1] or 1) or not int(match[2]):
            raise ValueError(f"topology {topology!r}: found {part!r}, wanted NODESxCORESc, such as 2x96c, or some of these joined by +")
        found += [int(match[2])] * int(match[1] or 1)
    return found


@dataclass
class Load:
    """What the workers of a team do in one op.

    Attributes
    ----------
    bytes, macs : ndarray (workers,)
        Of weights, packed; multiply-adds, padding rows included.
    lines : collections.Counter
        Number of cache lines by how many workers write them, if more than one.
    """

    bytes: np.ndarray
    macs: np.ndarray
    lines: Counter


def matmul_load(shapes, tokens, workers, sizes=None):
    """Load of a matmul of matrices (code, n, k), shared pieces dealt to the worker that is free first.

    What counts as time is bytes where the work is a line, multiply-adds where it is a grid.
    """
    sizes = {**_core.SIZES, **(sizes or {})}
    units = _core.matmul_units(shapes, tokens, workers, sizes)
    by_bytes = tokens <= sizes["line_tokens"]
    code, n, k = (np.array(column, np.int64)[units["matrix"]] for column in zip(*shapes))
    group = np.array([[_core.packed_bytes(c, 1, values) for values in (_core.SLAB, rows_k)] for c, _, rows_k in shapes], np.int64)
    groups, values, own_tokens = (units[b] - units[a] for a, b in (("g0", "g1"), ("k0", "k1"), ("t0", "t1")))
    # The last slab of a row may be a short one.
    part = np.where(units["k1"] == k, group[units["matrix"], 1] - units["k0"] // _core.SLAB * group[units["matrix"], 0],
                    values // _core.SLAB * group[units["matrix"], 0])  # fmt: skip
    unit_bytes, unit_macs = groups * part, groups * _core.ROWS * values * own_tokens
    load, owner = _deal(units, unit_bytes, unit_macs, unit_bytes if by_bytes else unit_macs, workers, by_bytes)
    mine = units["rank"] >= 0
    seams = (units["k1"] < k) & mine
    with_min = np.isin(code, [c["code"] for c in FORMATS.values() if c["kind"] == MINIMUM])
    load.lines[2] += int((seams * (1 + tokens * (1 + with_min))).sum())  # a mark, and sums
    ends = units["k1"] == k
    load.lines += _shared_lines((u, w, rows) for u, w, rows in zip(units[ends], owner[ends], n[ends]) if rows % (LINE // 4))
    return load


def _deal(units, n_bytes, macs, time, workers, by_crew):
    """(Load, owner of each unit): own units, then pieces, taken by whoever of their crew (else of their node) is free first by `time`."""
    first, mine = np.concatenate([[0], np.cumsum(workers)]), units["rank"] >= 0
    owner = np.where(mine, first[units["node"]] + units["rank"], -1)
    load, busy = Load(*(np.zeros(first[-1], np.int64) for _ in range(2)), Counter()), np.zeros(first[-1], np.int64)
    for total, own in ((load.bytes, n_bytes), (load.macs, macs), (busy, time)):
        np.add.at(total, owner[mine], own[mine])
    shared, crews = defaultdict(list), defaultdict(list)
    for i in np.flatnonzero(~mine):
        shared[units["node"][i], units["crew"][i], units["piece"][i]].append(i)
    for node, crew, piece in sorted(shared):
        crews[node, crew].append(shared[node, crew, piece])
    for (node, crew), pieces in crews.items():
        ranks = np.unique(units["rank"][(units["node"] == node) & (units["crew"] == crew) & mine]) if by_crew else range(workers[node])
        members = [int(first[node] + rank) for rank in ranks]
        free = [(int(busy[w]), w) for w in members]
        heapq.heapify(free)
        for piece in pieces:
            at, w = heapq.heappop(free)
            load.bytes[w] += n_bytes[piece].sum()
            load.macs[w] += macs[piece].sum()
            owner[piece] = w
            heapq.heappush(free, (at + int(time[piece].sum()), w))
        load.lines[len(members)] += len(members) > 1  # the counter
    return load, owner


def _shared_lines(units):
    """Lines of results that more than one worker writes: where rows of tokens do not end with a line."""
    writers = defaultdict(set)
    for unit, w, rows in units:
        a, b = unit["g0"] * _core.ROWS, min(unit["g1"] * _core.ROWS, rows)
        for t in range(unit["t0"], unit["t1"]):
            for end in (t * rows + a, t * rows + b - 1):
                writers[unit["matrix"], end * 4 // LINE].add(w)
    return Counter(len(w) for w in writers.values() if len(w) > 1)


def grouped_load(shapes, rows, tokens, workers, sizes=None):
    """(Load, bytes of the matrices that are met) of a matmul_grouped: rows[e] rows meet the matrices (code, n, k) of expert e.

    As multiply-adds count those, and what reading and unpacking a row group costs.
    """
    units = _core.grouped_units(shapes, rows, tokens, workers, sizes)
    bytes_of = {(j, k1): _core.packed_bytes(shapes[j][0], 1, int(k1)) for j, k1 in {*zip(units["matrix"], units["k0"])} | {
        *zip(units["matrix"], units["k1"])} if k1}  # fmt: skip
    at = [bytes_of[j, k1] - bytes_of.get((j, k0), 0) for j, k0, k1 in zip(units["matrix"], units["k0"], units["k1"])]
    groups, met = units["g1"] - units["g0"], units["t1"] - units["t0"]
    macs = groups * _core.ROWS * (units["k1"] - units["k0"]) * (met + _core.UNPACK)
    load, _ = _deal(units, groups * np.array(at, np.int64), macs, macs, workers, True)
    return load, sum(_core.packed_bytes(code, n, k) for code, n, k in shapes) * np.count_nonzero(rows)


def score_load(op, rows, workers):
    """Load of a score: on each node all of the matrix."""
    (w,), parts = op.matrices, op.tensors[1].per_token // op.tensors[0].per_token
    done = np.concatenate([_core.score_work((w.code, w.n, w.k), parts, rows, size) for size in workers])
    return Load(done[:, 0], done[:, 1], Counter())


def chosen(experts, used, tokens, routing, seed=0):
    """Rows that meet each expert, as tokens choose: (experts,)."""
    rng = np.random.default_rng(seed)
    chance = np.log(1 / np.arange(1.0, experts + 1)) if routing == "skewed" else np.zeros(experts)
    keys = rng.permutation(chance) + rng.gumbel(size=(tokens, experts))  # the largest are draws without repetition
    return np.bincount(np.argpartition(-keys, used - 1, axis=1)[:, :used].ravel(), minlength=experts)


def slices_load(rows, width, workers, quantised):
    """Load of an op that cuts a tensor's rows into slices, on each node for itself; values count as bytes."""
    values, lines = [], Counter()
    for size in workers:
        own, writers = np.zeros(size, np.int64), defaultdict(set)
        for rank, row, a, b in _core.slices(rows, width, size):
            own[rank] += b - a
            if quantised:  # a float for 32 values
                for line in ((row * width + a) // 32 * 4 // LINE, ((row * width + b - 1) // 32 * 4) // LINE):
                    writers[line].add(rank)
        values.append(own)
        lines += Counter(len(w) for w in writers.values() if len(w) > 1)
    return Load(np.concatenate(values), np.zeros(sum(workers), np.int64), lines)


def attend_load(op, tokens, past, workers):
    """Load of an attend op: queries times positions count as multiply-adds."""
    segment = np.zeros(1, _core.SEGMENT_DTYPE)
    segment["n"], segment["pos0"] = tokens, past
    nodes = [node for node, size in enumerate(workers) for _ in range(size)]
    return Load(np.zeros(sum(workers), np.int64), _core.attend_costs(op.ints, segment, nodes), Counter())


def uneven(load):
    """The most of any worker over the mean."""
    return load.max() / load.mean() if load.any() else 1.0


def play(plan, workers, tokens, past=0, sizes=None, routing="even"):
    """[(name, times, share, Load or None, reads)] of a step of one sequence, equal ops once, with logits of one token.

    share: of the step's bytes or multiply-adds; reads: bytes read over bytes of weights.
    """
    by_bytes = tokens <= (sizes or _core.SIZES)["line_tokens"]
    forms, first = Counter(), {}
    for op in plan.ops:
        form = _form(op)
        forms[form] += 1
        first.setdefault(form, op)
    found = []
    for form, times in forms.items():
        op, rows = first[form], 1 if form[-1] else tokens
        if op.matrices:
            shapes = [(w.code, w.n, w.k) for w in op.matrices]
            load, met = _multiplied(op, shapes, rows, workers, sizes, routing)
            name = f"{op.name} {' '.join(w.short_name for w in op.matrices)}"
            found.append((name, times, times * int((load.bytes if by_bytes else load.macs).sum()), load, load.bytes.sum() / met))
        else:
            name = op.name + (f" window {form[1]}" if op.name == "attend" and form[1] else "")
            written = [t for t in op.tensors if t is not None][-1]
            load = None
            if op.name == "attend":
                load = attend_load(op, tokens, past, workers)
            elif op.name in SLICED:
                load = slices_load(rows * written.per_token, written.width, workers, "q" in written.forms)
                name += f" [{written.width}]"
            elif op.name in ("join", "route"):
                load = dealt_load(rows * (op.ints[0] if op.name == "join" else 1), workers)
            found.append((name, times, 0, load, None))
    total = sum(share for _, _, share, _, _ in found)
    return [(name, times, share / total, load, reads) for name, times, share, load, reads in found]


SLICED = ("norm", "gated", "activate", "gather", "emit", "weigh", "mix")


def _form(op):
    """What ops have in common that are played once: name, sizes, `selected`."""
    written = [t for t in op.tensors if t is not None][-1]
    sizes = written.width, written.per_token
    if op.matrices:
        ids = op.name == "matmul_grouped" and op.tensors[1] is not None
        sizes = ids, tuple((w.short_name, w.code, w.n, w.k, w.experts) for w in op.matrices)
    elif op.name in ("kv_append", "attend", "combine"):
        sizes = op.ints[_core.attention_ints().index("window")]
    return op.name, sizes, op.selected


def _multiplied(op, shapes, rows, workers, sizes, routing):
    """Load of an op that multiplies matrices, and bytes of what it has to read."""
    if op.name == "matmul":
        return matmul_load(shapes, rows, workers, sizes), sum(w.packed_bytes for w in op.matrices)
    if op.name == "score":
        return score_load(op, rows, workers), len(workers) * op.matrices[0].packed_bytes
    experts = op.matrices[0].experts
    met = np.full(experts, rows) if op.tensors[1] is None else chosen(experts, op.per_token, rows, routing)
    return grouped_load(shapes, met, rows, workers, sizes)


def dealt_load(units, workers):
    """Load of an op that deals out whole units to the workers of each node for itself."""
    own = [np.diff(np.arange(size + 1) * units // size) for size in workers]
    return Load(np.concatenate(own), np.zeros(sum(workers), np.int64), Counter())


def too_uneven(rows, decoding, most=None):
    """Names of matmuls of 1 % of the step or more that are further from even than they may be."""
    most = most or BOUNDS[decoding]
    return [name for name, _, share, load, _ in rows if share >= 0.01 and uneven(load.bytes if decoding else load.macs) > most]


def table(rows):
    """The rows as text."""
    lines = [f"{'op':44}{'times':>6}{'share':>8}{'bytes':>8}{'macs':>8}{'reads':>7}{'lines':>8}{'writers':>9}"]
    for name, times, share, load, reads in rows:
        line = f"{name:44}{times:6}{share:8.1%}" if share else f"{name:44}{times:6}{'':8}"
        if load is not None:
            line += "".join(f"{uneven(x):8.3f}" if x.any() else f"{'':8}" for x in (load.bytes, load.macs))
            line += f"{reads:7.2f}" if reads else f"{'':7}"
            line += f"{sum(load.lines.values()):8}{max(load.lines, default=1):9}"
        lines.append(line)
    return "\n".join(lines)


def main(argv=None):
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--type", default="Q4_K", choices=FORMATS, help="of all matrices (Q4_K)")
    parser.add_argument("--topology", default="2x96c", help="such as 2x96c, or 2x64c+32c for unequal nodes (2x96c)")
    parser.add_argument("--tokens", type=int, default=1, help="of the step (1)")
    parser.add_argument("--past", type=int, default=4096, help="positions before them (4096)")
    parser.add_argument("--routing", default=ROUTINGS[0], choices=ROUTINGS, help="how tokens choose experts (even)")
    parser.add_argument("--most", type=float, help=f"of a worker over the mean ({BOUNDS[True]} decoding, {BOUNDS[False]} prefill)")
    args = parser.parse_args(argv)
    try:
        workers = workers_of(args.topology)
        if args.tokens < 1 or args.past < 0:
            raise ValueError(f"--tokens {args.tokens} --past {args.past}: wanted 1 or more, 0 or more")
    except ValueError as error:
        parser.error(str(error))
    plan = plan_of(SHAPES[args.shape], args.type, len(workers), args.tokens, args.past)
    rows = play(plan, workers, args.tokens, args.past, routing=args.routing)
    node, team = plan.barriers()
    print(f"{args.shape} {args.type} on {args.topology}, a step of {args.tokens} tokens behind {args.past}, kernels {_core.isa()}: "
          f"{team} team barriers, {node} node barriers")
    print(table(rows))
    bad = too_uneven(rows, args.tokens <= _core.SIZES["line_tokens"], args.most)
    if bad:
        print(f"too uneven: {'; '.join(bad)}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
