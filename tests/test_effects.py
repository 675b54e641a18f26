"""No request without effect: what is asked for is done, warned of or refused."""

import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from api_tools import forced
from gguf_tools import part
from vectors import tokenizer

import numainfer as ni
from numainfer import errors
from numainfer.gguf.file import GGUFFile
from numainfer.prompts import split_prompts, to_ids
from numainfer.text.chat_template import ChatTemplate
from numainfer.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "Hi"}]
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tiny_path):
    with ni.load(tiny_path, n_ctx=64) as model:
        yield model


# ---- stop strings and turn-enders -------------------------------------------------------------------------------------


def test_a_special_token_is_a_stop_string(smollm2):
    ids = smollm2.tokenizer.encode("Yes<|im_start|>No")
    for params in ({"stop": "<|im_start|>"}, {"stop": ["zzz", "<|im_start|>"]}):
        done = smollm2.generate("Hi", **forced(smollm2, "Yes<|im_start|>No", ignore_eos=True), **params)
        assert done.text == "Yes" and done.finish_reason == "stop" and list(done.token_ids) == ids[:2]
    assert smollm2.generate("Hi", **forced(smollm2, "Yes<|im_start|>No", ignore_eos=True)).text == "YesNo"


def test_a_stop_string_that_can_never_match_is_refused(smollm2):
    with pytest.raises(ValueError, match=r"stop = '<\|im_start\|>user': holds a special token"):
        smollm2.generate("Hi", stop="<|im_start|>user")


def changed(tok, **metadata):
    return Tokenizer({**tok._vocab.metadata, **{f"tokenizer.{name}": value for name, value in metadata.items()}})


def test_turn_enders_typed_user_defined_end_where_the_template_writes_them():
    tok = tokenizer("smollm2")
    end, types = tok.encode("<|im_end|>")[0], list(tok._vocab.types)
    types[end] = 4
    metadata = {name: value for name, value in tok._vocab.metadata.items() if not name.endswith(("eos_token_id", "eot_token_id"))}
    metadata["tokenizer.ggml.token_type"] = types
    assert end in Tokenizer(metadata).stop_token_ids
    assert end not in Tokenizer({**metadata, "tokenizer.chat_template": PLAIN}).stop_token_ids


# ---- chat templates -----------------------------------------------------------------------------------------------------


def test_tools_and_variables_that_a_template_does_not_use_are_told():
    tok = changed(tokenizer("smollm2"), chat_template=PLAIN + "{% if enable_thinking %}think{% endif %}")
    with pytest.warns(errors.ChatTemplateWarning, match="does not use 'tools', which has no effect; it uses enable_thinking"):
        tok.apply_chat_template(CHAT, tools=[{"type": "function"}])
    with pytest.warns(errors.ChatTemplateWarning, match="does not use 'thinking'"):
        tok.apply_chat_template(CHAT, thinking=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tok.apply_chat_template(CHAT, enable_thinking=True).endswith("Hithink")
        tok.apply_chat_template(CHAT, tools=[])


@pytest.mark.parametrize("name", ["return_tensors", "return_dict", "padding", "truncation", "max_length"])
def test_keywords_of_transformers_are_refused(name):
    with pytest.raises(TypeError, match=f"unknown parameter '{name}' of apply_chat_template"):
        tokenizer("smollm2").apply_chat_template(CHAT, **{name: "pt"})


def test_a_template_that_makes_nothing_is_refused():
    blank = changed(tokenizer("smollm2"), chat_template=" \n")
    with pytest.raises(errors.ChatTemplateMissing, match="has no chat template but a blank one"):
        blank.apply_chat_template(CHAT)
    with pytest.raises(ValueError, match="makes no text of these messages"):
        changed(tokenizer("smollm2"), chat_template="{% if false %}x{% endif %}").apply_chat_template(CHAT)


@pytest.mark.parametrize("source", ["{{a}}" * 100_000, "x" * (2 << 20), "{{" + "+".join("a" * 50_000) + "}}"])
def test_compiling_is_bounded(source):
    began = time.process_time()
    with pytest.raises(ValueError, match="the chat template has"):
        ChatTemplate(source)
    assert time.process_time() - began < 5  # it took 14 s and 0.9 GB; a bound far above what it takes


def test_a_signal_handlers_exception_comes_out_as_itself():
    def late(*_):
        raise TimeoutError("the test's own")

    before = signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeoutError, match="the test's own"):
            while True:
                ChatTemplate("{% for i in range(90000) %}{% endfor %}x").render(CHAT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- prompts ------------------------------------------------------------------------------------------------------------


def test_a_text_that_brings_its_bos_gets_no_second():
    tok = tokenizer("gemma3")
    for text in ("Hi", "<bos>Hi"):
        ids = to_ids("prompt", text, tok, tok.n_vocab, 100)
        assert ids[0] == tok.bos_token_id != ids[1]
    assert list(to_ids("prompt", "<bos>Hi", tok, tok.n_vocab, 100)) == tok.encode("Hi")


def test_a_table_is_no_prompt():
    class DataFrame:
        columns = ["text"]

        def __iter__(self):
            return iter(self.columns)

    with pytest.raises(TypeError, match=r"prompt: found a DataFrame, .*one of its columns"):
        split_prompts("prompt", DataFrame())


def test_a_context_beyond_the_trained_one_is_told(tiny_path):
    with GGUFFile(tiny_path) as gguf:
        trained = ni.ModelConfig.from_gguf(gguf).context_length
    with pytest.warns(ni.ContextWarning, match=f"n_ctx = {trained + 1}: beyond the {trained} positions"):
        ni.load(tiny_path, n_ctx=trained + 1).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ni.load(tiny_path, n_ctx=trained).close()


# ---- across processes ---------------------------------------------------------------------------------------------------


def public_values(model):
    """One of every public class that is a value."""
    done = model.generate([[1], [2]], max_tokens=2, logprobs=2)
    failed = model.generate([[1], []])[1]
    chunk = next(model.stream([1], max_tokens=1, logprobs=1))
    called = dataclasses.replace(done[0], reasoning="Hm", tool_calls=(ni.ToolCall("1", "f", {"x": [1]}),))
    top = ni.topology()
    found = [*done, failed, chunk, called, called.tool_calls[0], done[0].usage, done[0].timings, done[0].logprobs[0],
             model.score([1, 2, 3]), model.config, ni.SamplingParams(stop="x", logit_bias={1: 2.0}), model.placement,
             model.placement.nodes[0], top, top.nodes[0], model.stats(), ni.bench(model, 4, 2, 1)]  # fmt: skip
    found += [errors.CorruptModel("a.gguf", "is broken", 7), errors.UnsupportedModel("key", 1, [2], "why"),
              errors.Interrupted("2 of 3", done)]  # fmt: skip
    simple = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, (Exception, Warning))]
    found += [errors.SavedSessionError("a.session", "is broken", 7)]
    own = (errors.CorruptModel, errors.UnsupportedModel, errors.SavedSessionError)
    return found + [cls("says") for cls in simple if cls not in own]


def plain(value):
    """Something to compare values by that have no == of their own."""
    if isinstance(value, BaseException):
        return type(value), str(value), {k: plain(v) for k, v in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, ni.Score):
        return value.token_ids.tolist(), value.logprobs.tolist()
    if isinstance(value, ni.Completion):
        return value.to_dict(), plain(value.error)
    return repr(value), str(value)


def test_values_go_through_pickle_and_copy(model):
    for value in public_values(model):
        for again in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
            assert type(again) is type(value) and plain(again) == plain(value), type(value)


def test_a_tokenizer_goes_through_pickle_and_copy(model):
    text, messages = "ab<|im_end|> the in", [{"role": "user", "content": "Hi"}]
    for again in (pickle.loads(pickle.dumps(model.tokenizer)), copy.copy(model.tokenizer), copy.deepcopy(model.tokenizer)):
        assert again.encode(text) == model.tokenizer.encode(text) and again.stop_token_ids == model.tokenizer.stop_token_ids
        assert again.apply_chat_template(messages) == model.tokenizer.apply_chat_template(messages)


def test_what_owns_memory_is_not_copied(model):
    with model.session() as session:
        for thing in (model, session, model.stream([1])):
            for act in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="can be neither pickled nor copied"):
                    act(thing)


# ---- strange surroundings -----------------------------------------------------------------------------------------------


def in_a_process(code, *, cwd, uid=None, **environment):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(ni.__file__).parents[1]), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=60, user=uid)


def test_a_file_named_gguf_beside_the_script_does_no_harm(tiny_path, tmp_path):
    (tmp_path / "gguf.py").write_text("raise RuntimeError('not the package')\n")
    got = in_a_process(f"import numainfer as ni; print(ni.load({str(tiny_path)!r}).n_ctx)", cwd=tmp_path)
    assert got.returncode == 0 and int(got.stdout) > 0, got.stderr


def test_no_home_and_an_unknown_user(tiny_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    with ni.load(tiny_path) as model:
        assert model.n_ctx
    with pytest.raises(ni.ModelNotFound):
        ni.load("some-model:tag")


def test_names_of_parts(tmp_path):
    (tmp_path / "whole-00001-of-00003.gguf").write_bytes(small_bytes())
    with GGUFFile(tmp_path / "whole-00001-of-00003.gguf") as f:
        assert len(f.paths) == 1
    for i in range(2):
        (tmp_path / f"M-{i + 1:05}-OF-00002.GGUF").write_bytes(bytes(part(i, 2, 2)))
    for i in range(2):
        with GGUFFile(tmp_path / f"M-{i + 1:05}-OF-00002.GGUF") as f:
            assert [Path(p).name for p in f.paths] == ["M-00001-OF-00002.GGUF", "M-00002-OF-00002.GGUF"]


def small_bytes():
    from gguf_tools import small

    return bytes(small())


# ---- words from elsewhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, error, says", [
    (lambda m: ni.load(model="x"), TypeError, "'model': it is called source here"),
    (lambda m: ni.load("x", dtype="bf16"), TypeError, "'dtype': none: weights keep the file's types"),
    (lambda m: ni.load("x", max_model_len=5), TypeError, "it is called n_ctx here"),
    (lambda m: ni.LLM, AttributeError, r"numainfer\.load\(source\)"),
    (lambda m: ni.Llama, AttributeError, r"numainfer\.load\(source\)"),
    (lambda m: ni.from_pretrained, AttributeError, r"numainfer\.load\(source\)"),
    (lambda m: ni.nonsense, AttributeError, "no attribute 'nonsense'$"),
    (lambda m: m.create_chat_completion([]), AttributeError, r"model\.chat\(messages\)"),
    (lambda m: m.nonsense, AttributeError, "'Model' object has no attribute 'nonsense'$"),
    (lambda m: m("Hi"), TypeError, r"model\.generate\(prompt\)"),
    (lambda m: m.tokenizer("Hi"), TypeError, r"tokenizer\.encode\(text\)"),
    (lambda m: m.generate([1], max_tokens=1).choices, AttributeError, r"its text is \.text"),
    (lambda m: m.generate([1], max_tokens=1).outputs, AttributeError, r"its text is \.text"),
    (lambda m: m.generate("Hi", stop_strings=["x"]), TypeError, "it is called stop here"),
    (lambda m: m.generate("Hi", sampling_params=None), TypeError, "it is called params here"),
    (lambda m: m.generate([1], prompts=["Hi"]), TypeError, "it is called prompt here"),
    (lambda m: m.chat("Hi", system="Be brief"), TypeError, '"role": "system"'),
    (lambda m: m.generate("Hi", max_new_tokens=4), TypeError, "it is called max_tokens here"),
    (lambda m: m.generate([1], messages=[]), TypeError, r"model\.chat\(messages\)"),
    (lambda m: m.chat("Hi", sampling_params=None), TypeError, "it is called params here"),
    (lambda m: m.chat("Hi", chat_template="x"), TypeError, "'chat_template': chat takes it as template="),
    (lambda m: m.chat("Hi", tool_choice="auto"), TypeError, "'tool_choice': none: regex or json_schema"),
    (lambda m: m.chat("Hi", enable_thinking=False), TypeError, r'chat_template_kwargs=\{"enable_thinking": \.\.\.\}'),
    (lambda m: m.chat(prompt="Hi", messages=[]), TypeError, "'prompt': chat takes messages"),
    (lambda m: m.generate("Hi", model="x"), TypeError, "'model': none: the model is the one whose method this is"),
    (lambda m: m.chat([{"role": "user", "content": m.generate([1], max_tokens=1)}]), TypeError, r"found Completion, .*; to_message\(\)"),
    (lambda m: m.chat([{"role": "user", "content": "Hi"}, m.generate([1], max_tokens=1)]), TypeError, r"Completion, .*to_message\(\)"),
    (lambda m: m.generate([1], max_tokens=1).splitlines(), AttributeError, r"is no str; str\(completion\) is its text"),
    (lambda m: m.generate([1], max_tokens=1).stop_reason, AttributeError, r"why it ended is \.finish_reason"),
    (lambda m: m.score(["a", "b"]), TypeError, "text: found a list of texts, wanted one"),
    (lambda m: m.tokenizer.decode(5), TypeError, r"ids: found int, wanted a sequence of token ids, such as \[5\]"),
    (lambda m: m.tokenizer.decode("5"), TypeError, "ids: found str"),
])  # fmt: skip
def test_hints(model, call, error, says):
    with pytest.raises(error, match=says):
        call(model)
