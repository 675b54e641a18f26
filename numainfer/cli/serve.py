"""The command ``numainfer serve``: a model behind OpenAI's interface."""

import os
import sys
from pathlib import Path

from . import answering
from .load import add_load, load

_KEY = "NUMAINFER_API_KEY"


def add_serve(parser):
    """Arguments of ``serve``."""
    parser.add_argument("model", nargs="?", default=answering.DEFAULT_MODEL, metavar="MODEL", help=f"default {answering.DEFAULT_MODEL}")
    group = parser.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                       help="where to listen (default 127.0.0.1: this machine alone; 0.0.0.0 or ::: everybody)")  # fmt: skip
    group.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0: a free one, which is printed")
    group.add_argument("--name", action="append", metavar="NAME",
                       help="what clients call the model (default: as it is called here); may be given again")  # fmt: skip
    group.add_argument("--api-key", metavar="KEY",
                       help=f"clients must bring it; better in the environment, as {_KEY}, where other users do not see it")  # fmt: skip
    group.add_argument("--cors", action="append", metavar="ORIGIN", default=[],
                       help="web pages from there may use it, as http://localhost:3000; may be given again (default: none)")  # fmt: skip
    group.add_argument("--max-body", type=int, default=8 << 20, metavar="BYTES", help="of a request (default 8 MiB)")
    group.add_argument("--max-prompt", type=int, metavar="TOKENS", help="of a prompt (default: as many as the context holds)")
    group.add_argument("--max-waiting", type=int, default=64, metavar="N",
                       help="answers that may wait for their first token; more are sent away with status 429 (default 64)")  # fmt: skip
    group.add_argument("--time-limit", type=int, default=600, metavar="SECONDS", help="for an answer, waiting included (default 600)")
    group.add_argument("--stall-limit", type=int, default=30, metavar="SECONDS",
                       help="clients that read or send nothing for so long are cut off (default 30)")  # fmt: skip
    group.add_argument("--grace", type=int, default=10, metavar="SECONDS",
                       help="for answers in the making, after SIGTERM or Ctrl-C (default 10)")  # fmt: skip
    add_load(parser)


def serve(args):
    """Serve a model until SIGTERM or Ctrl-C."""
    try:
        from ..server.running import Server, listen, url_of
    except ImportError as e:
        package = (e.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise ImportError(f"numainfer serve needs {package}: pip install 'numainfer[serve]'") from None
    from ..server.limits import Limits

    if not 0 <= args.port < 65536:
        args.parser.error(f"--port {args.port}: must be from 0 to 65535")
    key = os.environ.get(_KEY) if args.api_key is None else args.api_key
    if key is not None and not key.strip():
        args.parser.error("--api-key: is empty" if args.api_key is not None else f"{_KEY}: is set and empty")
    try:
        limits = Limits(body=args.max_body, prompt=args.max_prompt, waiting=args.max_waiting, seconds=args.time_limit,
                        stall=args.stall_limit, grace=args.grace)  # fmt: skip
    except ValueError as e:
        args.parser.error(str(e))
    with listen(args.host, args.port) as listening, load(args, args.model) as model:
        names = args.name or [_name(args.model)]
        if key is None and listening.getsockname()[0] not in ("127.0.0.1", "::1"):
            print(f"numainfer: warning: whoever reaches {url_of(listening)} may use it: there is no --api-key", file=sys.stderr)
        if not args.quiet:
            where = f"{names[0]} at {url_of(listening)}/v1 ({answering.where(model)})"
            print(f"numainfer: {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        Server(model, listening, names, limits, key, args.cors).run()
    return 0


def _name(source):
    """What a model is called that was loaded by a name, or by a path."""
    return Path(source).stem if source.lower().endswith(".gguf") else source
