"""What a model needs of each node under every placement, and how fast a machine's memory, link and barriers let it decode.

The model, also in docs/numa.md.  A step decodes one token of each of S sequences with p positions behind them, on nodes i with a
share s_i of the workers:

    step = max_i reading_i , arithmetic_i                       whichever is slower, on the slowest node
         + S X (N-1)/N / L                                      activations that other nodes computed
         + team barriers * beta + node barriers * beta_node

    reading     = (s_i W(S) + S K(p) / N) / b_i                 replicate, shard and mixtures: all weights of a worker are local
                  max(W(S)/N / b_i, s_i W(S) / b_i, s_i W(S) (N-1)/N / L) + ...     interleave: N-1 of N pages come over the link
    arithmetic  = s_i S A / a_i

W(S): weight bytes that S tokens read, of experts those of any of them: E (1 - (1 - u/E)^S) of E, of which each chooses u; K(p): bytes of
keys and values; X: bytes of shared activations that a node reads per token; A: multiply-adds per token; b, a: bytes read and
multiply-adds per second of a node; L: link.  A team on one node has N = 1 and none of the second line.  Nothing here knows how far
kernels stay behind the read limit: it is a bound, not a promise.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace

from .. import _core
from ..engine.architectures import build, context_length
from ..machine.limits import RESERVE, spare
from ..machine.policies import EXPERTS, HYBRID, REST, of_group
from ..engine.attending import MOST_RUNS
from ..engine.plan import Plan
from ..summary import counted, short_bytes
from ..engine.weights import Catalog, Matrix

POLICIES = ("replicate", "shard", "interleave", "local")
_CONTEXTS = (4096, 32768, 131072)  # whose KV memory is told, beside that of the context asked for


@dataclass(frozen=True)
class Demand:
    """What a model asks of a machine.

    Attributes
    ----------
    weights, whole, experts : int
        Bytes of one packed copy; of them, those that every node has under any policy (norms, biases, routers), and those of experts.
    read, macs : int
        Weight bytes read and multiply-adds done for a decoded token.
    n_ctx : int
        Positions per sequence that memory is planned for.
    kv_bytes : int
        Of a whole sequence's cache; layers with windows keep these alone.
    kv_layers : tuple of (int, int, int)
        Per attention layer: bytes of a position; positions that a query sees (0: all); bytes of the partial results that each
        run of chunks leaves for all nodes to read.
    activations : int
        Bytes per node; each worker's scratch (about 0.1 MB) is not counted.
    exchange : int
        Bytes of matmuls' results that a node reads per token, its own share among them; at most once, since its workers share
        a cache.
    node_barriers, team_barriers : int
        Per step of a team over all nodes.
    alone_barriers : int
        Per step of a team on one node.
    weight_type : str
        Of most of the bytes read.
    kv_type : str
        Of the cache.
    kv_bytes_per_token, kv_window_bytes : int
        Of the cache: bytes that each position adds, and most bytes of layers with windows, which forget.
    kv_state_bytes, state_read : int
        Of recurrent layers: most bytes of a sequence, and those that a token reads.
    kv_contexts : tuple of (int, int)
        Positions, and bytes of a sequence of so many.
    choices : tuple of (int, int, int)
        Of experts that a token reads, where all have as many: experts, those that a token chooses, and bytes of one in all layers.
    """

    weights: int
    whole: int
    read: int
    macs: int
    n_ctx: int
    kv_bytes: int
    kv_layers: tuple
    activations: int
    exchange: int
    node_barriers: int
    team_barriers: int
    alone_barriers: int
    weight_type: str = ""
    kv_type: str = "f16"
    kv_bytes_per_token: int = 0
    kv_window_bytes: int = 0
    kv_state_bytes: int = 0
    state_read: int = 0
    kv_contexts: tuple = ()
    experts: int = 0
    choices: tuple = ()

    def policies(self):
        """Policies that differ for this model."""
        return (POLICIES[0], HYBRID, *POLICIES[1:]) if self.experts else POLICIES

    def weights_read(self, sequences):
        """Bytes of weights that one token of each of so many sequences read: experts as often as any of them is chosen, on the average of
        routers that choose evenly and of tokens that have nothing to do with each other."""
        chosen = sum(used * size for _, used, size in self.choices)
        return self.read - chosen + sum(n * (1 - (1 - used / n) ** sequences) * size for n, used, size in self.choices)

    def kv_read(self, past):
        """Bytes of keys, values and state that a token reads with `past` positions behind it."""
        return sum(size * min(past, window or past) for size, window, _ in self.kv_layers) + self.state_read

    def to_dict(self):
        """A dict that ``json`` can write."""
        return asdict(self)

    def exchanged(self, past):
        """Bytes of shared activations that a node reads per token."""
        return self.exchange + sum(part * _runs(past, window) for _, window, part in self.kv_layers)


def _runs(past, window):
    first, end, _ = _core.attention_runs(max(past + 1 - window, 0) if window else 0, past, MOST_RUNS)
    return end - first


def _kv_layers(op):
    """Entries of `Demand.kv_layers`: of an indexer's op, which reads keys of all positions, or of a layer's attention, which may have rows
    for many positions beside its own."""
    rows = [] if op.rows is None else [(op.rows.cache.position_bytes // op.rows.ratio, op.rows.chosen * op.rows.ratio, 0)]
    if op.name == "index":
        return [(size, 0, 0) for size, *_ in rows] or [(op.cache.position_bytes, 0, 0)]
    parts = op.attention["heads"] * (op.attention["ev"] + 16) * 4
    return [(op.cache.position_bytes, op.cache.window or op.cache.chosen, parts), *rows]


def demand(gguf, n_nodes, n_ctx=None, n_batch=512, kv_type="f16"):
    """Demand of an open GGUF file on n_nodes nodes; reads the header and the small vectors.

    Parameters
    ----------
    gguf : GGUFFile
    n_nodes : int
    n_ctx : int, optional
        Default: the context that the model was trained with.
    n_batch : int
        Most tokens per step.
    kv_type : str
        One of `plan.KV_TYPES`.

    Raises
    ------
    UnsupportedModel, CorruptModel, PlanError
        As for `load`.
    """
    n_ctx = n_ctx or context_length(gguf)
    catalog, n_batch = Catalog(gguf), min(n_batch, n_ctx)
    plan = build(Plan(n_nodes, n_batch, n_ctx, kv_type=kv_type), catalog)
    alone = build(Plan(1, n_batch, n_ctx, kv_type=kv_type), catalog) if n_nodes > 1 else plan
    costs = [op.cost(1) for op in plan.ops]
    types, choices = Counter(), Counter()
    for op in plan.ops:
        for w, n_bytes, _ in op.products(1):
            types[w.type] += n_bytes
            if w in plan.experts:
                choices[w.experts, min(op.per_token, w.experts)] += w.packed_bytes // w.experts
    node, team = plan.barriers()
    return Demand(
        weights=sum(w.packed_bytes for w in plan.weights),
        whole=sum(w.packed_bytes for w in plan.weights if not isinstance(w, Matrix) or w in plan.whole),
        read=sum(cost.n_bytes for cost in costs),
        macs=sum(cost.macs for cost in costs),
        n_ctx=n_ctx,
        kv_bytes=plan.kv_bytes,
        kv_layers=tuple(entry for op in plan.ops if op.name in ("index", "attend") for entry in _kv_layers(op)),
        activations=sum(plan.arena_bytes),
        exchange=sum(cost.exchanged for cost in costs),
        node_barriers=node,
        team_barriers=team,
        alone_barriers=sum(alone.barriers()),
        weight_type=max(types, key=types.get),
        kv_type=kv_type,
        kv_bytes_per_token=plan.kv.bytes_per_token,
        kv_window_bytes=plan.kv.window_bytes(n_ctx),
        kv_state_bytes=plan.kv.states.bytes(n_ctx),
        state_read=plan.kv.states.read_bytes,
        kv_contexts=tuple((n, plan.kv.bytes(n)) for n in sorted({*(n for n in _CONTEXTS if n < n_ctx), n_ctx})),
        experts=sum(w.packed_bytes for w in plan.experts),
        choices=tuple((*who, size) for who, size in choices.items()),
    )


@dataclass(frozen=True)
class NodeNeed:
    """What one node has to hold.

    Attributes
    ----------
    number : int
        The system's number of the node.
    weights, kv, activations : int
        Bytes; kv: the node's part of one sequence's cache.
    room : int or None
        Free bytes less the reserve; pretend nodes share a real one's evenly.  None: not known, and then nothing says that it does not fit.
    """

    number: int
    weights: int
    kv: int
    activations: int
    room: int | None

    @property
    def need(self):
        return self.weights + self.kv + self.activations

    @property
    def fits(self):
        return self.room is None or self.need <= self.room


@dataclass(frozen=True)
class Forecast:
    """A placement on a machine.

    Attributes
    ----------
    policy : str
    nodes : tuple of NodeNeed
    sequences : int
        Those that decode at once in the last two figures.
    first, last : float or None
        Tokens per second of one sequence on all nodes (latency mode): at its start, and with the context full.  None where the
        machine was not measured.
    together : float or None
        Tokens per second in all, of `sequences` sequences at their start, in one team over all nodes.
    apart : float or None
        The same with a team per node, each decoding its own (throughput mode); None without a copy on every node.
    room : int or None
        Bytes that the control group leaves all nodes together, less the reserve; None: no limit.
    """

    policy: str
    nodes: tuple
    sequences: int
    first: float | None = None
    last: float | None = None
    together: float | None = None
    apart: float | None = None
    room: int | None = None

    @property
    def fits_group(self):
        """Whether the control group leaves enough for all nodes together."""
        return self.room is None or sum(node.need for node in self.nodes) <= self.room

    @property
    def fits(self):
        return self.fits_group and all(node.fits for node in self.nodes)

    def to_dict(self):
        """A dict that ``json`` can write."""
        nodes = [asdict(node) | {"need": node.need, "fits": node.fits} for node in self.nodes]
        return asdict(self) | {"nodes": nodes, "fits": self.fits}


def forecast(demand, machine, policy, sequences=None):
    """What the policy needs and gives.

    Parameters
    ----------
    demand : Demand
        Made for as many nodes as the machine has.
    machine : Machine
    policy : str
        As `policies.canonical` writes it; local: on the first node alone.
    sequences : int, optional
        Sequences that decode at once, shared evenly by the nodes; default: 16 per node, or one where the machine's arithmetic
        is not known.

    Returns
    -------
    Forecast
    """
    count = len(machine.sites)
    if sequences is None:
        sequences = count * (16 if all(site.macs for site in machine.sites) else 1)
    nodes = _needs(demand, machine, policy)
    room = None if machine.limits.memory is None else machine.limits.memory.spare
    if not machine.measured:
        return Forecast(policy, nodes, sequences, room=room)
    on = [0] if policy == "local" else range(count)
    apart = None
    if policy == "replicate":
        own = [sequences // count + (i < sequences % count) for i in on]
        apart = sum(n / step_seconds(demand, machine, policy, [i], n) for i, n in zip(on, own) if n)
    return Forecast(
        policy, nodes, sequences,
        first=1 / step_seconds(demand, machine, policy, on),
        last=1 / step_seconds(demand, machine, policy, on, past=demand.n_ctx - 1),
        together=sequences / step_seconds(demand, machine, policy, on, sequences),
        apart=apart,
        room=room,
    )  # fmt: skip


def step_seconds(demand, machine, policy, on, sequences=1, past=0):
    """Seconds of a step of one team, by the module's formula.

    Parameters
    ----------
    demand, machine, policy :
        As for `forecast`.
    on : sequence of int
        Indices of the team's nodes in ``machine.sites``.
    sequences : int
        Each decodes a token.
    past : int
        Positions behind each.
    """
    sites, n = [machine.sites[i] for i in on], len(on)
    workers = sum(site.cores for site in sites)
    remote, slowest, weights = (n - 1) / n, 0.0, demand.weights_read(sequences)
    for site in sites:
        share = site.cores / workers
        reading = share * weights / site.read
        if policy == "interleave" and n > 1:
            reading = max(reading, weights / n / site.read, share * weights * remote / machine.link)
        reading += sequences * demand.kv_read(past) / n / site.read
        arithmetic = share * sequences * demand.macs / site.macs if site.macs else 0.0
        slowest = max(slowest, reading, arithmetic)
    if n == 1:
        return slowest + demand.alone_barriers * machine.node_barrier
    link = sequences * demand.exchanged(past) * remote / machine.link
    return slowest + link + demand.team_barriers * machine.barrier + demand.node_barriers * machine.node_barrier


def _needs(demand, machine, policy):
    sites, found = machine.sites, []
    workers, groups = sum(site.cores for site in sites), {EXPERTS: demand.experts, REST: demand.weights - demand.whole - demand.experts}
    for i, site in enumerate(sites):
        kv, activations = -(-demand.kv_bytes // len(sites)), demand.activations
        # Under shard rows are cut in proportion to workers, to a few rows per matrix.
        weights = demand.whole + sum(-(-n * site.cores // workers) if of_group(policy, group) == "shard" else n
                                     for group, n in groups.items())
        if policy == "interleave":
            weights = -(-demand.weights // len(sites))
        elif policy == "local":
            if i:
                break
            kv = demand.kv_bytes
        sharers = 1 if policy == "local" else sum(other.number == site.number for other in sites)
        room = spare(site.total, site.free)
        room = None if room is None else room // sharers
        found.append(NodeNeed(site.number, weights, kv, activations, room))
    return tuple(found)


# ---- text ------------------------------------------------------------------------------------------------------------


def table(rows, left=1):
    """Lines of cells, aligned; the first `left` columns to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def report(demand, machine, forecasts):
    """The forecasts as text: what every node needs, and what decoding can reach."""
    count = len(machine.sites)
    one = count == 1  # every placement is the same single copy
    forecasts = forecasts[:1] if one else forecasts
    names = ["any"] if one else [f.policy for f in forecasts]
    context = counted(demand.n_ctx, "token")
    lines = [f"memory on {counted(count, 'node')}, {RESERVE:.0%} of each kept free, a context of {context}"]
    rows = [("placement", "node", "weights", "KV", "activations", "need", "room", "fits")]
    for name, f in zip(names, forecasts):
        for label, node in _grouped(f.nodes):
            sizes = (node.weights, node.kv, node.activations, node.need, node.room)
            fits = "no" if not (node.fits and f.fits_group) else "?" if node.room is None else "yes"
            rows.append((name, label, *("?" if n is None else short_bytes(n) for n in sizes), fits))
    lines += table(rows)
    limits = machine.limits.describe()
    if limits:
        lines.append(limits + ("" if one or machine.limits.memory is None else ", for all nodes together"))
    windows = f" and at most {short_bytes(demand.kv_window_bytes)} for windows" if demand.kv_window_bytes else ""
    windows += f" and at most {short_bytes(demand.kv_state_bytes)} of recurrent state" if demand.kv_state_bytes else ""
    lines.append(f"KV in {demand.kv_type}: one sequence, {short_bytes(demand.kv_bytes_per_token)} per token{windows}"
                 + ("" if one else ", spread over the nodes; in throughput mode each lies whole on one"))
    if len(demand.kv_contexts) > 1:
        lines.append("  " + ", ".join(f"{counted(n, 'token')}: {short_bytes(size)}" for n, size in demand.kv_contexts))
    if demand.experts:
        lines.append(f"experts are {short_bytes(demand.experts)} of {short_bytes(demand.weights)}; "
                     + "; ".join(f"a token reads {used} of {n}" for n, used, _ in demand.choices))
    if not machine.measured:
        return "\n".join(lines)
    n = forecasts[0].sequences
    lines += ["", f"decode, tokens/s at most, on {machine.source} {machine}"]
    rows = [("placement", "1 sequence", "context full", f"{n} together")]
    rows += [(name, *map(_speed, (f.first, f.last, f.together))) for name, f in zip(names, forecasts)]
    if not one:
        rows = [(*row, last) for row, last in zip(rows, ["a team per node", *(_speed(f.apart) for f in forecasts)])]
    lines += table(rows)
    lines.append(f"a token reads {short_bytes(demand.read)} of weights and passes {demand.team_barriers} barriers of the team, "
                 f"{demand.node_barriers} within nodes")
    if not all(site.macs for site in machine.sites):
        lines.append(f"without macs= arithmetic is not counted, {'so' if n > count else 'and'} more than one sequence per node "
                     f"{'looks too fast' if n > count else 'is not shown'}; add it to the topology, such as macs=2.6T "
                     "(numainfer topology --measure prints a machine's)")  # fmt: skip
    return "\n".join(lines)


def _grouped(nodes):
    """(label, node) for runs of nodes that need the same and have the same room."""
    runs, numbers = [], [node.number for node in nodes]
    if len(set(numbers)) < len(numbers):  # pretend nodes share a number
        numbers = list(range(len(nodes)))
    for i, node in enumerate(nodes):
        if runs and replace(nodes[runs[-1][-1]], number=0) == replace(node, number=0):
            runs[-1].append(i)
        else:
            runs.append([i])
    for run in runs:
        first, last = numbers[run[0]], numbers[run[-1]]
        label = str(first) if len(run) == 1 else "each" if len(run) == len(nodes) else f"{first}-{last}"
        yield label, nodes[run[0]]


def _speed(value):
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
