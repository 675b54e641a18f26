"""Arguments of the commands that load a model, and loading by them."""

import os


def add_load(parser, threads=None):
    """The group "loading".  ``threads``: keywords of another -t/--threads than a single number."""
    group = parser.add_argument_group("loading")
    group.add_argument("-c", "--n-ctx", type=int, metavar="N", help="most tokens of a sequence (default: the model's)")
    add_kv_type(group)
    group.add_argument("--n-batch", type=int, default=512, metavar="N", help="most tokens per step (default 512)")
    one = {"type": int, "metavar": "N", "help": "worker threads (default: one per core)"}
    group.add_argument("-t", "--threads", **(threads or one))
    add_nodes(group)
    group.add_argument("--cpus", metavar="LIST", help="exactly these CPUs, such as 0-3,8 (default: cores that no other model holds)")
    help_ = "auto, replicate, shard, interleave or local; or for groups of weights, 'experts=shard,*=replicate'"
    group.add_argument("--placement", default="auto", metavar="POLICY", help=help_)
    group.add_argument("--keep", metavar="NAME", help="weights that stay in shared memory under this name, or lie there already")
    help_ = "KV memory for beginnings of sequences that others may share: such as 2GB, 0 for none (default: by free memory)"
    group.add_argument("--prefix-cache", default="auto", metavar="BYTES", help=help_)
    group.add_argument("--mtp", action="store_true", help="with the file's layer that predicts a further token, for --speculate mtp")
    group.add_argument("--no-verify", action="store_true", help="do not look up where the pages lie")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no line about speed")


def add_nodes(parser):
    """The argument --nodes, which `nodes_of` reads."""
    parser.add_argument("--nodes", metavar="LIST", help="NUMA nodes to use, such as 0,1 or 0-3,8 (default: all)")


def nodes_of(args):
    """The numbers that --nodes lists, or None; a list that is none is an error of usage."""
    from ..arguments import node_numbers

    return _numbers(args, "--nodes", args.nodes, node_numbers)


def _numbers(args, option, text, check):
    """The numbers that an option lists, or None, by a function of `arguments`."""
    from ..arguments import number_list

    try:
        return None if text is None else check(option, number_list(option, text))
    except ValueError as e:
        args.parser.error(str(e))


def add_kv_type(parser):
    """The argument --kv-type; its value is checked where it is used, for the list of types is the core's."""
    parser.add_argument("--kv-type", default="f16", metavar="TYPE", help="numbers of the KV cache: f16 (default), bf16, q8_0 or f32")


def names_model(word):
    """Whether a word that may be a model or a prompt is a model; ``sources.resolve`` finds it, or says why not.

    Parameters
    ----------
    word : str

    Raises
    ------
    ModelNotFound, CorruptModel, UnsupportedModel
        It names a model of Ollama that is broken, or several.
    """
    from ..gguf import sources

    path = os.path.expanduser(word)
    if os.path.isfile(path) or os.path.isdir(path) and any(n.lower().endswith(".gguf") for n in os.listdir(path)):
        return True
    if any(c.isspace() for c in word):  # a question may speak of TCP/IP, or of a file
        return word.startswith(("/", "./", "../", "~/")) and word.lower().endswith(".gguf")
    if "/" in word or word.lower().endswith(".gguf") or word.lower() in sources.short_names():
        return True
    return word.startswith("ollama:") or sources.ollama_path(word, []) is not None


def load(args, source, **more):
    """The Model that the arguments of `add_load` ask for; ``more`` is laid over them."""
    from ..errors import NumaInferError
    from ..arguments import cpu_numbers
    from ..model import load

    options = {
        "n_ctx": args.n_ctx,
        "n_batch": args.n_batch,
        "kv_type": args.kv_type,
        "threads": args.threads,
        "nodes": nodes_of(args),
        "cpus": _numbers(args, "--cpus", args.cpus, cpu_numbers),
        "placement": args.placement,
        "verify": not args.no_verify,
        "keep": args.keep,
        "prefix_cache": args.prefix_cache,
        "mtp": args.mtp or getattr(args, "speculate", None) == "mtp",
        "progress": False if args.quiet else None,
    }
    try:
        return load(source, **options | more)
    except (TypeError, ValueError) as e:
        if isinstance(e, NumaInferError):  # the file's or the machine's fault
            raise
        args.parser.error(str(e))
