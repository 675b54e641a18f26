"""The command ``numainfer``."""

import argparse
import io
import logging
import os
import sys
import warnings

from .. import __version__
from ..arguments import did_you_mean, nearest
from . import answering, bench, chat, info, keep, models, serve
from .load import add_load, load, names_model


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a letter that the terminal lacks ends no answer; JSON has its own way
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
        + "\n\nnumainfer COMMAND --help tells more. Exit status: 0; 1 after an error; 2 for wrong usage; 130 after Ctrl-C; 141 if whoever "
        "read the output has gone.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"numainfer {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND")
    name = parser.parse_args(argv[:1]).command
    if name is None:
        parser.print_help()
        return 0
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


# ---- commands ------------------------------------------------------------------------------------


def _add_run(parser):
    parser.usage = "numainfer run [options] [MODEL] PROMPT\n       ... | numainfer run [options] MODEL"
    help_ = (f"the model (default {answering.DEFAULT_MODEL}) and the prompt; - reads the prompt from stdin, and so does a model alone: "
             "a known name, a file, a word with / or .gguf")  # fmt: skip
    parser.add_argument("words", nargs="+", metavar="[MODEL] PROMPT", help=help_)
    parser.add_argument("--raw", action="store_true", help="continue the prompt as plain text, without chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--json", action="store_true", help="print one JSON object when all is done")
    answering.add_sampling(parser, 256)
    add_load(parser)


def _run(args):
    if len(args.words) > 2:
        args.parser.error(f"found {len(args.words)} words, wanted [MODEL] PROMPT; put the prompt in quotes")
    if args.raw and args.system:
        args.parser.error("--system needs the chat template, which --raw leaves out")
    if args.logprobs is not None and not args.json:
        args.parser.error("--logprobs goes with --json, which shows them")
    params = answering.params(args)
    source, prompt = _source_and_prompt(args)
    if prompt == "-":
        prompt = answering.read_stdin()
    if not prompt.strip() and not args.raw:  # a template would make a question of nothing
        raise ValueError("the prompt is empty")
    with load(args, source) as model:
        # A model with a template was trained to answer; one without can only continue.
        if args.raw or not args.system and model.tokenizer.chat_template is None:
            stream = model.stream(prompt, params)
        else:
            stream = model.chat(answering.system(args) + [{"role": "user", "content": prompt}], params, stream=True)
        with stream:
            answering.show(stream, quiet=args.json)
        done = stream.result()
        if args.json:
            answering.print_json(done.to_dict())
        if not args.quiet:
            print(f"[{model.path.name}: {answering.speed(done)}; {answering.where(model)}]", file=sys.stderr)
    return 0


def _source_and_prompt(args):
    """The model and the prompt, where - stands for stdin, that the words of ``run`` mean."""
    if len(args.words) == 2:
        return args.words
    if not names_model(args.words[0]):
        return answering.DEFAULT_MODEL, args.words[0]
    if sys.stdin is None or sys.stdin.isatty():
        args.parser.error("the prompt is missing: numainfer run MODEL PROMPT")
    return args.words[0], "-"


def _add_tokenize(parser):
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("text", metavar="TEXT", help="- reads stdin")
    parser.add_argument("--no-special", action="store_true", help="leave out BOS and the like")
    parser.add_argument("--json", action="store_true", help="print the ids as one JSON list")


def _tokenize(args):
    from ..gguf.sources import open_model
    from ..text.tokenizer import Tokenizer

    with open_model(args.model) as gguf:
        tokenizer = Tokenizer(gguf.metadata, gguf.path)
    text = answering.read_stdin() if args.text == "-" else args.text
    ids = tokenizer.encode(text, add_special_tokens=not args.no_special)
    if args.json:
        answering.print_json(ids)
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
    "chat": ("talk with a model", chat.add_chat, chat.chat),
    "serve": ("serve a model over HTTP, with OpenAI's interface", serve.add_serve, serve.serve),
    "models": ("list the models that are here, by the names that load them", models.add_models, models.models),
    "bench": ("measure prefill and decode beside the memory's read limit", bench.add_bench, bench.bench),
    "topology": ("show NUMA nodes, cores and memory", info.add_topology, info.topology),
    "info": ("show a model file, and what it needs and gives on a machine, without loading it", info.add_info, info.info),
    "keep": ("keep a model's weights in shared memory, for processes to come; list or drop what is kept", keep.add_keep, keep.keep),
    "tokenize": ("show the tokens of a text", _add_tokenize, _tokenize),
}
