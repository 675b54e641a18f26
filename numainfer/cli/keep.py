"""The command ``numainfer keep``: weights that stay in shared memory."""

import json
import os
import re

from .load import add_load, load

_COLUMNS = ("name", "model", "bytes of each copy", "placement", "when", "processes")


def add_keep(parser):
    """Arguments of ``keep``."""
    parser.usage = "numainfer keep [options] MODEL [--name NAME]\n       numainfer keep --list [--json]\n       numainfer keep --drop NAME"
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--name", metavar="NAME", help="under which it is kept, for load(..., keep=NAME) (default: the file's name)")
    parser.add_argument("--list", action="store_true", help="show what this user keeps, and which processes have it in their memory")
    parser.add_argument("--drop", metavar="NAME", help="remove it; processes that use it go on, and the last of them frees the memory")
    parser.add_argument("--json", action="store_true", help="with --list: print one JSON list")
    add_load(parser)


def keep(args):
    """Keep a model, list what is kept, or drop it."""
    from ..summary import short_bytes

    if (args.model is not None) + args.list + (args.drop is not None) != 1:
        args.parser.error("wanted one of MODEL, --list and --drop NAME")
    if args.json and not args.list:
        args.parser.error("--json goes with --list")
    if args.name is not None and args.model is None or args.keep is not None:
        args.parser.error("--name goes with MODEL, and is what --keep is for other commands")
    if args.list:
        return _list(args)
    if args.drop is not None:
        from ..machine.shared import drop

        kept = drop(args.drop)
        print(f"{kept.name}: {short_bytes(kept.n_bytes)} dropped")
        return 0
    from ..gguf.sources import resolve

    name = args.name if args.name is not None else _name_of(resolve(args.model))
    with load(args, args.model, keep=name) as model:
        print(model.placement)
    if not args.quiet:
        print(f"load(..., keep={name!r}) or --keep {name} attaches to it; numainfer keep --drop {name} removes it")
    return 0


def _list(args):
    from ..machine.shared import kept_models

    kept = kept_models()
    if args.json:
        print(json.dumps([each.to_dict() for each in kept], ensure_ascii=False))
        return 0
    rows = [_COLUMNS, *(each.row() for each in kept)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows if kept else [("nothing is kept",)]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def _name_of(path):
    """What a file is called, as a name."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]", "-", stem).lstrip("-._")[:64] or "model"


def kept_of(path):
    """What is kept of a model file: list of Kept; none where there is no shared memory."""
    from ..errors import KeepError
    from ..machine.shared import kept_models

    try:
        return [kept for kept in kept_models() if os.path.realpath(path) in kept.paths]
    except (KeepError, OSError):
        return []
