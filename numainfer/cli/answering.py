"""What the commands share that answer: flags of sampling, printing an answer as it comes, its speed, JSON."""

import json
import sys

from ..summary import counted

DEFAULT_MODEL = "smollm2"

# Flag, type of the value, help.  The name of the flag is that of a field of SamplingParams.
SAMPLING = (
    ("--temperature", float, "0: always the most probable token"),
    ("--top-k", int, "keep the N most probable tokens"),
    ("--top-p", float, "keep the most probable tokens that make up this mass"),
    ("--min-p", float, "keep tokens at least this probable, relative to the best"),
    ("--repetition-penalty", float, "above 1: discourage tokens seen before"),
    ("--presence-penalty", float, "from -2 to 2, once per token seen in the answer"),
    ("--frequency-penalty", float, "from -2 to 2, per occurrence in the answer"),
    ("--seed", int, "repeat a random answer"),
    ("--min-tokens", int, "do not stop earlier"),
    ("--logprobs", int, "with --json: log-probabilities of each token and of N alternatives"),
)


def add_sampling(parser, max_tokens, title="sampling (by default greedy)", leave_out=()):
    """The group "sampling", which `params` reads."""
    group = parser.add_argument_group(title)
    most = "as many as the context holds" if max_tokens is None else max_tokens
    help_ = f"most tokens of the answer (default: {most})"
    group.add_argument("-n", "--max-tokens", type=int, default=max_tokens, metavar="N", help=help_)
    for flag, kind, help_ in (row for row in SAMPLING if row[0] not in leave_out):
        group.add_argument(flag, type=kind, metavar="X" if kind is float else "N", help=help_)
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given again")
    group.add_argument("--ignore-eos", action="store_true", help="go on after the model's end token")
    group.add_argument("--speculate", choices=("prompt", "mtp"), help="the same answer sooner: where it repeats what stands in its prompt "
                       "or in itself; or by the layer that predicts a further token (it implies --mtp)")  # fmt: skip


def params(args, **defaults):
    """SamplingParams of the flags, laid over ``defaults``; what is wrong with them is an error of usage."""
    from ..serving.params import SamplingParams

    names = [flag[2:].replace("-", "_") for flag, _, _ in SAMPLING]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    try:
        return SamplingParams(**defaults | {"max_tokens": args.max_tokens, "stop": args.stop or (), "ignore_eos": args.ignore_eos,
                                         "speculate": args.speculate} | given)  # fmt: skip
    except (TypeError, ValueError) as e:
        args.parser.error(str(e))


def system(args):
    """The messages that --system begins a conversation with."""
    return [{"role": "system", "content": args.system}] if args.system else []


def show(stream, quiet=False):
    """Print a stream as it comes, a line feed at its end (after Ctrl-C, too); the model's thinking on stderr."""
    text, thinking = "\n", ""
    try:
        for chunk in stream:
            if chunk.reasoning and not quiet:
                thinking = chunk.reasoning
                print(thinking, end="", file=sys.stderr, flush=True)
            if thinking and chunk.text:
                print("\n", file=sys.stderr, flush=True)
                thinking = ""
            if chunk.text and not quiet:
                text = chunk.text
                print(text, end="", flush=True)
    finally:
        if thinking:  # and no answer came
            print(file=sys.stderr, flush=True)
        if not text.endswith("\n") and not isinstance(sys.exc_info()[1], BrokenPipeError):
            print(flush=True)


def speed(done):
    """"prompt 36 tokens, 1606.5 tokens/s; answer 60 tokens, 275.4 tokens/s"."""

    def rate(value):
        return "-" if value is None else f"{value:.1f}"

    t, n = done.timings, len(done.token_ids)
    return (f"prompt {counted(t.prompt_tokens, 'token')}, {rate(t.prompt_tokens_per_second)} tokens/s; "
            f"answer {counted(n, 'token')}, {rate(t.generation_tokens_per_second)} tokens/s"
            + (f", {t.accepted} of {t.proposed} proposed ones accepted" if t.proposed else ""))  # fmt: skip


def where(model):
    """"local on 1 node, 2 threads, avx512"."""
    engine = model.runtime.engine
    return f"{model.placement.policy} on {model.placement.where}, {counted(engine.threads, 'thread')}, {engine.isa}"


def read_stdin():
    """All of standard input, as text."""
    if sys.stdin is None:
        raise OSError("standard input is closed")
    try:
        text = sys.stdin.read()
        text.encode()  # some locales let bytes through that are no letters
        return text
    except UnicodeError as e:
        raise ValueError(f"standard input is no text in {sys.stdin.encoding}, from index {e.start} on "
                         "(PYTHONIOENCODING names another encoding)") from e  # fmt: skip


def print_json(value):
    """A line of JSON on stdout; letters that its encoding may lack are escaped in JSON's way."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    text = json.dumps(value, ensure_ascii=not unicode)
    if any("\ud800" <= c <= "\udfff" for c in text):  # bytes of a file's name that are no UTF-8
        text = json.dumps(value)
    print(text)
