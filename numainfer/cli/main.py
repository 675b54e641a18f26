"""The command ``numainfer``."""

import argparse
import json
import logging
import os
import sys
import warnings

from .. import __version__
from ..arguments import did_you_mean, nearest
from . import bench, info, keep
from .load import add_load, load, names_model
from ..summary import counted

DEFAULT_MODEL = "smollm2"

# Flag, SamplingParams field, type of the value, help.
_SAMPLING = (
    ("--temperature", float, "0 (default): always the most probable token"),
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


def main(argv=None):
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; by default the process's own.

    Returns
    -------
    int
        Exit status: 0; 1 after an error, told in one line on stderr; 2 for wrong usage; 130 after Ctrl-C; 141 if
        whoever read the output has gone.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(format="numainfer: %(message)s", level=logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"numainfer: warning: {message}", file=sys.stderr)
    try:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        status = _command(argv)
        sys.stdout.flush()
        return status
    except SystemExit as e:  # argparse has said why
        return e.code if isinstance(e.code, int) else 0 if e.code is None else 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit
        return 141
    except Exception as e:  # one line for the user, whatever it was
        logging.getLogger("numainfer").debug("traceback", exc_info=True)
        text = str(e) or type(e).__name__
        print(f"numainfer: error: {text if text.endswith(('.', '?')) else text + '.'}", file=sys.stderr)
        return 1


def _command(argv):
    parser = argparse.ArgumentParser(
        prog="numainfer",
        description="GGUF language models on the CPUs of multi-socket servers.",
        epilog="commands:\n" + "\n".join(f"  {name:9} {help_}" for name, (help_, _, _) in _COMMANDS.items())
        + "\n\nnumainfer COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"numainfer {__version__}")
    parser.add_argument("command", metavar="COMMAND")
    name = parser.parse_args(argv[:1]).command
    if name not in _COMMANDS:
        parser.error(f"unknown command {name!r}: {did_you_mean(name, _COMMANDS)}")
    help_, add_arguments, run = _COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"numainfer {name}", description=f"{help_[0].upper()}{help_[1:]}.")
    add_arguments(parser)
    args, unknown = parser.parse_known_intermixed_args(argv[1:])  # options may stand between MODEL and PROMPT
    if unknown:
        near = nearest(unknown[0].partition("=")[0], parser._option_string_actions)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    args.parser = parser
    return run(args)


# ---- arguments -----------------------------------------------------------------------------------


def _add_sampling(parser, max_tokens, leave_out=()):
    group = parser.add_argument_group("sampling")
    most = "as many as the context holds" if max_tokens is None else max_tokens
    help_ = f"most tokens of the answer (default: {most})"
    group.add_argument("-n", "--max-tokens", type=int, default=max_tokens, metavar="N", help=help_)
    for flag, kind, help_ in (row for row in _SAMPLING if row[0] not in leave_out):
        group.add_argument(flag, type=kind, metavar="X" if kind is float else "N", help=help_)
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given again")
    group.add_argument("--ignore-eos", action="store_true", help="go on after the model's end token")


def _params(args):
    """SamplingParams of the flags; what is wrong with them is an error of usage."""
    from ..serving.sampling import SamplingParams

    names = [flag[2:].replace("-", "_") for flag, _, _ in _SAMPLING]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    try:
        return SamplingParams(max_tokens=args.max_tokens, stop=args.stop or (), ignore_eos=args.ignore_eos, **given)
    except (TypeError, ValueError) as e:
        args.parser.error(str(e))


# ---- commands ------------------------------------------------------------------------------------


def _add_run(parser):
    parser.usage = "numainfer run [options] [MODEL] PROMPT\n       ... | numainfer run [options] MODEL"
    help_ = (f"the model (default {DEFAULT_MODEL}) and the prompt; - reads the prompt from stdin, and so does a model alone: "
             "a known name, a file, a word with / or .gguf")  # fmt: skip
    parser.add_argument("words", nargs="+", metavar="[MODEL] PROMPT", help=help_)
    parser.add_argument("--raw", action="store_true", help="continue the prompt as plain text, without chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--json", action="store_true", help="print one JSON object when all is done")
    _add_sampling(parser, 256)
    add_load(parser)


def _run(args):
    if len(args.words) > 2:
        args.parser.error(f"found {len(args.words)} words, wanted [MODEL] PROMPT; put the prompt in quotes")
    if args.raw and args.system:
        args.parser.error("--system needs the chat template, which --raw leaves out")
    if args.logprobs is not None and not args.json:
        args.parser.error("--logprobs goes with --json, which shows them")
    params = _params(args)
    source, prompt = _source_and_prompt(args)
    if prompt == "-":
        prompt = _stdin()
    if not prompt.strip() and not args.raw:  # a template would make a question of nothing
        raise ValueError("the prompt is empty")
    with load(args, source) as model:
        # A model with a template was trained to answer; one without can only continue.
        if args.raw or not args.system and model.tokenizer.chat_template is None:
            stream = model.stream(prompt, params)
        else:
            stream = model.chat(_system(args) + [{"role": "user", "content": prompt}], params, stream=True)
        with stream:
            _show(stream, quiet=args.json)
        done = stream.result()
        if args.json:
            print(json.dumps(done.to_dict(), ensure_ascii=False))
        if not args.quiet:
            print(_speed_line(model, done), file=sys.stderr)
    return 0


def _source_and_prompt(args):
    """The model and the prompt, where - stands for stdin, that the words of ``run`` mean."""
    if len(args.words) == 2:
        return args.words
    if not names_model(args.words[0]):
        return DEFAULT_MODEL, args.words[0]
    if sys.stdin is None or sys.stdin.isatty():
        args.parser.error("the prompt is missing: numainfer run MODEL PROMPT")
    return args.words[0], "-"


def _stdin():
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.read()


def _system(args):
    return [{"role": "system", "content": args.system}] if args.system else []


def _show(stream, quiet=False):
    """Print a stream as it comes, a line feed at its end (after Ctrl-C, too)."""
    text = "\n"
    try:
        for chunk in stream:
            if chunk.text and not quiet:
                text = chunk.text
                print(text, end="", flush=True)
    finally:
        if not text.endswith("\n") and not isinstance(sys.exc_info()[1], BrokenPipeError):
            print(flush=True)


def _speed_line(model, done):
    def rate(value):
        return "-" if value is None else f"{value:.1f}"

    t, engine = done.timings, model.runtime.engine
    return (f"[{model.path.name}: prompt {counted(t.prompt_tokens, 'token')}, {rate(t.prompt_tokens_per_second)} tokens/s; "
            f"answer {counted(len(done.token_ids), 'token')}, {rate(t.generation_tokens_per_second)} tokens/s; "
            f"{model.placement.policy} on {model.placement.where}, {counted(engine.threads, 'thread')}, "
            f"{engine.isa}]")  # fmt: skip


def _add_chat(parser):
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=f"default {DEFAULT_MODEL}")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    _add_sampling(parser, None, ["--logprobs"])  # there is no --json to show them
    add_load(parser)


def _chat(args):
    from ..errors import ChatTemplateMissing, ContextOverflow

    params = _params(args)
    asks = sys.stdin.isatty()
    if asks:
        try:
            import readline  # noqa: F401 - gives input() history and editing
        except ImportError:
            pass
    with load(args, args.model) as model, model.session() as session:
        if model.tokenizer.chat_template is None:
            raise ChatTemplateMissing(f"{model.path} has no chat template; numainfer run --raw continues plain text")
        if asks:
            print(f"{model.path.name}. Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
        messages = _system(args)
        while True:
            try:
                line = input("> " if asks else "")
            except EOFError:
                if asks:
                    print()
                return 0
            except KeyboardInterrupt:
                if not asks:
                    raise
                print()
                continue
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            try:
                stream = session.chat(messages, params, stream=True)
            except ContextOverflow as e:
                print(f"numainfer: {e}. Start again, or ask something shorter.", file=sys.stderr)
                messages.pop()
                continue
            try:
                _show(stream)
            except KeyboardInterrupt:
                pass
            messages.append({"role": "assistant", "content": stream.result().text})


def _add_tokenize(parser):
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("text", metavar="TEXT", help="- reads stdin")
    parser.add_argument("--no-special", action="store_true", help="leave out BOS and the like")
    parser.add_argument("--json", action="store_true", help="print the ids as one JSON list")


def _tokenize(args):
    from ..gguf.sources import resolve
    from ..text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(resolve(args.model))
    text = _stdin() if args.text == "-" else args.text
    ids = tokenizer.encode(text, add_special_tokens=not args.no_special)
    if args.json:
        print(json.dumps(ids))
        return 0
    for i in ids:
        piece = tokenizer.token_bytes(i)
        try:
            piece = piece.decode()
        except UnicodeDecodeError:  # a part of a character is shown as bytes: b'\xe4\xbd'
            pass
        print(f"{i:8} {piece!r}")
    return 0


_COMMANDS = {
    "run": ("answer a prompt, streaming", _add_run, _run),
    "chat": ("talk with a model", _add_chat, _chat),
    "bench": ("measure prefill and decode beside the memory's read limit", bench.add_bench, bench.bench),
    "topology": ("show NUMA nodes, cores and memory", info.add_topology, info.topology),
    "info": ("show a model file, and what it needs and gives on a machine, without loading it", info.add_info, info.info),
    "keep": ("keep a model's weights in shared memory, for processes to come; list or drop what is kept", keep.add_keep, keep.keep),
    "tokenize": ("show the tokens of a text", _add_tokenize, _tokenize),
}
