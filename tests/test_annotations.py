"""What py.typed promises: the public functions and methods are annotated, and say what runs."""

import dataclasses
import inspect
import os
import pickle
import pydoc
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import numainfer as ni
from numainfer import aio
from numainfer.measure import benchmark
from numainfer import errors, results, session, signatures, stream
from numainfer.machine import placement
from numainfer.text import tokenizer

CLASSES = (
    ni.Model, aio.AsyncVerbs, aio.AsyncTokenStream,
    ni.SamplingParams, ni.Tokenizer, session.Session, stream.TokenStream, tokenizer.TokenDecoder, results.Completion,
    results.Chunk, results.Logprob, results.Logprobs, results.Usage, results.Timings, results.Score, results.Completions,
    placement.Topology, placement.Node,
    placement.Placement, placement.NodePlacement, benchmark.Bench, benchmark.Speed, errors.CorruptModel, errors.UnsupportedModel,
)  # fmt: skip


def public_functions():
    yield from (ni.load, ni.topology, ni.bench)
    for cls in CLASSES:
        for name, member in vars(cls).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            named = not name.startswith("_") or name in ("__iter__", "__next__", "__enter__", "__exit__", "__aiter__", "__anext__",
                                                   "__aenter__", "__aexit__")  # fmt: skip
            if named and inspect.isfunction(function):
                yield function


@pytest.mark.parametrize("function", list(public_functions()), ids=lambda f: f.__qualname__)
def test_everything_public_is_annotated(function):
    found = inspect.signature(function)
    bare = [name for name, p in found.parameters.items() if p.annotation is p.empty and name not in ("self", "cls")]
    assert not bare and found.return_annotation is not found.empty


def test_sampling_options_are_the_fields_of_sampling_params():
    fields = {f.name for f in dataclasses.fields(ni.SamplingParams)}
    options, params = typing.get_type_hints(signatures.SamplingOptions), typing.get_type_hints(ni.SamplingParams)
    assert options == {name: params[name] for name in fields}


def test_what_verbs_give_can_be_imported_by_name():
    given = (session.Session, stream.TokenStream, aio.AsyncTokenStream,
             results.Completion, results.Completions, results.Chunk, results.Logprob,
             results.Logprobs, results.Score, results.Timings,
             results.Usage, placement.Topology, placement.Placement, benchmark.Bench, ni.ModelConfig, ni.TokenDecoder)  # fmt: skip
    for cls in given:
        assert getattr(ni, cls.__name__) is cls and cls.__name__ in ni.__all__ and cls.__name__ in dir(ni)
    assert not [name for name in dir(ni) if name.startswith("_") and name != "__version__"]


def test_help_shows_the_public_names_alone():
    text = pydoc.plain(pydoc.render_doc(ni))
    shown = set(re.findall(r"^    (?:class )?(\w+)\(", text, re.MULTILINE))
    assert {"load", "topology", "bench", "Completion", "Session"} <= shown <= set(ni.__all__)


def test_errors_cross_processes():
    """By pickle: a Pool whose worker raises one that cannot be read back waits for ever."""
    given = {"CorruptModel": ("a.gguf", "is short", 7), "UnsupportedModel": ("general.architecture", "x", ("llama",), "Sorry"),
             "SavedSessionError": ("a.session", "is short", 7)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, (ni.NumaInferError, Warning))]
    assert len(kinds) > 12
    for kind in kinds:
        error = kind(*given.get(kind.__name__, ("what was found",)))
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)


def test_a_users_script_passes_the_strictest_check(tmp_path):
    def checked(script):
        return subprocess.run([sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", tmp_path, script],
                              capture_output=True, text=True, cwd=tmp_path,
                              env=os.environ | {"MYPYPATH": str(Path(ni.__file__).parents[1])})  # fmt: skip

    found = checked(Path(__file__).with_name("user_script.py"))
    assert found.returncode == 0, found.stdout
    wrong = tmp_path / "wrong.py"
    wrong.write_text('import numainfer as ni\nmodel = ni.load("x")\nmodel.generate("a", max_tokens="5")\n'
                     'print(model.generate("a").txt, model.plam)\n')  # fmt: skip
    found = checked(wrong)
    assert found.stdout.count("error:") == 3 and '"txt"' in found.stdout and '"plam"' in found.stdout, found.stdout
