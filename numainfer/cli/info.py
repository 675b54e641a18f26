"""The commands that look without loading: ``numainfer info`` and ``numainfer topology``."""

import re

from .answering import print_json

def add_topology(parser):
    """Arguments of ``topology``."""
    help_ = "read bandwidth of each node, link, barriers and multiply-adds, too; the last line is what info --topology takes"
    parser.add_argument("--measure", action="store_true", help=help_)
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="measure with N workers (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def topology(args):
    """Show the machine."""
    from ..measure.machine import measure, survey
    from ..machine.topology import topology
    from ..summary import counted

    if args.threads is not None and not args.measure:
        args.parser.error("--threads goes with --measure")
    try:
        machine = measure(args.threads) if args.measure else survey()
    except ValueError as e:
        args.parser.error(str(e))
    if args.json:
        print_json(machine.to_dict())
        return 0
    print(topology())
    if args.measure:
        for node, site in zip(topology().nodes, machine.sites):
            print(f"  node {node.label}: {counted(site.cores, 'worker')}, {site.read / 1e9:.1f} GB/s read, "
                  f"{site.macs / 1e9:.0f} G/s multiply-adds")  # fmt: skip
        print(machine)
    return 0


def add_info(parser):
    """Arguments of ``info``."""
    from .load import add_kv_type, add_nodes
    from ..measure.machine import GRAMMAR

    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("-c", "--ctx", "--n-ctx", type=int, metavar="N", help="plan for N tokens (default: the model's context)")
    add_kv_type(parser)
    help_ = "sequences that decode at once (default: 16 per node; 1 per node with a --topology without macs=)"
    parser.add_argument("-s", "--sequences", type=int, metavar="N", help=help_)
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="worker threads (default: one per core)")
    add_nodes(parser)
    parser.add_argument("--topology", metavar="SHAPE", help=f"plan for another machine: {GRAMMAR}")
    parser.add_argument("--no-measure", action="store_true", help="do not measure this machine: memory only, no speeds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def info(args):
    """Show a model file and what it needs and gives on a machine."""
    from ..arguments import one_of
    from ..errors import UnsupportedModel
    from ..engine.weights import FORMATS
    from ..engine.layout import KV_TYPES
    from ..gguf.sources import open_model
    from ..summary import ModelConfig, counted, short_bytes, short_count

    try:
        one_of("--kv-type", args.kv_type, KV_TYPES)
    except ValueError as e:
        args.parser.error(str(e))
    from .keep import kept_of

    machine = _machine(args)
    with open_model(args.model) as gguf:
        config, n_tensors, n_files = ModelConfig.from_gguf(gguf), len(gguf.tensors), len(gguf.paths)
        layers, strange = _layer_bytes(gguf), [name for name in config.types if name not in FORMATS]
        try:
            plan, why = _plan(args, gguf, machine), None
        except UnsupportedModel as e:  # the file can be told about all the same
            plan, why = None, str(e)
    here = kept_of(gguf.path) if gguf.on_disk else []
    if args.json:
        more = {"plan": None, "unsupported": why, "unsupported_types": strange} if plan is None else {"plan": _plan_dict(*plan)}
        parts = {"parts": [{"layers": where, "n_bytes": sizes} for where, sizes in layers]}
        parts["kept"] = [kept.to_dict() for kept in here]
        print_json({"path": gguf.path} | config.to_dict() | parts | more)
        return 0
    types = ", ".join(f"{name} {short_bytes(n)}" for name, n in config.types.items())
    rows = [
        ("file", f"{gguf.path}{f' and {n_files - 1} more' if n_files > 1 else ''}{'' if gguf.on_disk else ', on the hub, not downloaded'}"),
        ("name", config.name),
        ("architecture", config.architecture),
        ("parameters", short_count(config.parameters)),
        ("tensors", f"{n_tensors}, {short_bytes(config.n_bytes)}: {types}"),
        ("of them", "; ".join(f"{where or 'outside of layers'}: {_each(sizes)}" for where, sizes in layers)),
        ("context", config.context_length and counted(config.context_length, "token")),
        ("layers", config.block_count),
        ("width", config.embedding_length),
        ("feed-forward", config.feed_forward_length),
        ("heads", config.head_count),
        ("kv-heads", config.head_count_kv),
        ("vocabulary", config.vocab_size),
        ("unsupported", why),
        ("kept", "; ".join(kept.describe() for kept in here) or None),
        ("", f"types that it cannot multiply by: {', '.join(strange)}" if strange and plan is None else None),
    ]
    for name, value in rows:
        if value is not None:
            print(f"{name:13} {value}")
    if plan is not None:
        from ..measure.capacity import report

        print(f"\n{report(*plan)}")
    return 0


def _layer_bytes(gguf):
    """[(which, bytes of each)]: runs of layers with tensors of the same names and shapes, such as "layers 3-60", and "" for the rest."""
    found = {}
    for name, tensor in gguf.tensors.items():
        layer = re.match(r"blk\.(\d{1,9})\.(.*)", name, re.DOTALL)
        size, form = found.setdefault(int(layer[1]) if layer else -1, ([0], set()))
        size[0] += tensor.n_bytes
        form.add((layer[2] if layer else "", tensor.shape))
    runs = []
    for number in sorted(found):
        (size,), form = found[number]
        if runs and number == runs[-1][1] + 1 and number > 0 and form == runs[-1][2]:
            runs[-1][1] = number
            runs[-1][3].append(size)
        else:
            runs.append([number, number, form, [size]])
    return [("" if first < 0 else f"layer {first}" if first == last else f"layers {first}-{last}", sizes) for first, last, _, sizes in runs]


def _each(sizes):
    """"6.2 GB", or "6.2 GB to 7.1 GB each"."""
    from ..summary import short_bytes

    low, high = short_bytes(min(sizes)), short_bytes(max(sizes))
    return low + (f" to {high}" if high != low else "") + (" each" if len(sizes) > 1 else "")


def _machine(args):
    """The machine to plan for, not measured yet; wrong arguments are errors of usage."""
    from .load import nodes_of
    from ..measure.machine import parse_machine, survey

    for name in ("ctx", "sequences", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            args.parser.error(f"--{name} {value}: wanted 1 or more")
    if args.topology is not None:
        if args.threads is not None or args.nodes is not None or args.no_measure:
            args.parser.error("--topology describes the whole machine: --threads, --nodes and --no-measure do not go with it")
        try:
            return parse_machine(args.topology)
        except ValueError as e:
            args.parser.error(str(e))
    try:
        return survey(args.threads, nodes_of(args))
    except ValueError as e:
        args.parser.error(str(e))


def _plan(args, gguf, machine):
    """(Demand, Machine, list of Forecast)."""
    from ..measure.capacity import demand, forecast
    from .load import nodes_of
    from ..measure.machine import measure

    need = demand(gguf, len(machine.sites), args.ctx, kv_type=args.kv_type)
    if args.topology is None and not args.no_measure:
        machine = measure(args.threads, nodes_of(args), need.weight_type)
    return need, machine, [forecast(need, machine, policy, args.sequences) for policy in need.policies()]


def _plan_dict(need, machine, forecasts):
    return {"demand": need.to_dict(), "machine": machine.to_dict(), "placements": [f.to_dict() for f in forecasts]}
