"""Bad input and bad use of the public layer: each its own exception, with a sentence that helps."""

import math
import os
import threading
import time
import traceback

import numpy as np
import pytest

import numainfer as ni

N = 285  # vocabulary of the tiny model


@pytest.fixture(scope="module")
def model(tiny_path):
    with ni.load(tiny_path, n_ctx=32) as model:
        yield model


@pytest.mark.parametrize("prompt, error, says", [
    ("", ValueError, "prompt: is empty, and this model's tokenizer adds no BOS"),
    ([], ValueError, "empty list"),
    ((), ValueError, "empty tuple"),
    (np.array([], int), ValueError, "empty ndarray"),
    ([1, -1], ValueError, r"prompt\[1\] = -1: wanted a token id from 0 to 284"),
    ([N], ValueError, r"prompt\[0\] = 285"),
    ([2**70], ValueError, r"prompt\[0\] = 1180591620717411303424"),
    (np.array([3, 2**40]), ValueError, r"prompt\[1\] = 1099511627776"),
    ([True, False], TypeError, "found a bool"),
    ([1.0], TypeError, "float"),
    (np.array([1.0]), TypeError, "float64"),
    (np.array([True]), TypeError, "bool"),
    (np.array(3), TypeError, "without dimensions"),
    ([None], TypeError, "NoneType"),
    (b"bytes", TypeError, "bytes"),
    (None, TypeError, "NoneType"),
    (7, TypeError, "int"),
    ({"a": 1}, TypeError, "dict"),
    ("\ud800", ValueError, "surrogate"),
    (list(range(33)), ni.ContextOverflow, "33 tokens, but the context holds n_ctx = 32"),
])  # fmt: skip
def test_prompts(model, prompt, error, says):
    with pytest.raises(error, match=says):
        model.generate(prompt, max_tokens=1)
    if error is not TypeError or not isinstance(prompt, (list, tuple, np.ndarray)):
        with pytest.raises((error, TypeError)):
            model.stream(prompt, max_tokens=1)


@pytest.mark.parametrize("prompts, error, says", [
    ([[]], ValueError, "prompt[0]: is empty"),
    (["a", ""], ValueError, "prompt[1]: is empty"),
    ([[1], [N]], ValueError, "prompt[1][0] = 285"),
    ([[1], list(range(40))], ni.ContextOverflow, "prompt[1]: 40 tokens"),
    (["a", "\ud800"], ValueError, "surrogate"),
    (["a", 1], TypeError, "prompt[1]: found int, wanted a str or a sequence of token ids"),
    (["a", None], TypeError, "prompt[1]: found NoneType"),
    ([[1], "a", [[1]]], TypeError, "prompt[2][0] = [1]: found list"),
    ([[1], [2], [1.5]], TypeError, "prompt[2][0] = 1.5: found float"),
    ([[1], [True]], TypeError, "prompt[1][0] = True"),
    (["a", np.zeros((2, 2), int)], TypeError, "shape (2, 2)"),
])  # fmt: skip
def test_one_bad_value_in_a_list_is_told_in_its_place(model, prompts, error, says):
    *good, bad = model.generate(prompts, max_tokens=1)
    assert isinstance(bad.error, error) and says in str(bad.error) and bad.finish_reason == "error"
    assert all(done.error is None and done.token_ids for done in good)


@pytest.mark.parametrize("sampling, error, says", [
    ({"temperature": math.nan}, ValueError, "temperature = nan"),
    ({"temperature": -1}, ValueError, "temperature"),
    ({"temperature": math.inf}, ValueError, "temperature"),
    ({"top_p": 0}, ValueError, "top_p"),
    ({"max_tokens": 0}, ValueError, "max_tokens = 0"),
    ({"max_tokens": True}, TypeError, "bool"),
    ({"max_token": 5}, TypeError, "did you mean max_tokens"),
    ({"temprature": 1.0}, TypeError, "did you mean temperature"),
    ({"stop": ""}, ValueError, "stop"),
    ({"stop": 5}, TypeError, "stop"),
    ({"seed": -7}, ValueError, "seed"),
    ({"logprobs": 1000}, ValueError, "logprobs"),
    ({"stop_token_ids": [N]}, ValueError, "285"),
    ({"logit_bias": {N: 1.0}}, ValueError, "285"),
    ({"params": {"max_tokens": 5}}, TypeError, "params: found dict"),
    ({"logits_processor": lambda ids, logits: None}, TypeError, "logits_processor"),
    ({"logits_processor": lambda ids, logits: logits[:5].copy()}, ValueError, "shape"),
    ({"logits_processor": lambda ids, logits: logits * np.float32(np.nan)}, ni.NumaInferError, "NaN"),
])  # fmt: skip
def test_sampling(model, sampling, error, says):
    for verb in (model.generate, lambda *a, **k: list(model.stream(*a, **k)), model.chat):
        with pytest.raises(error, match=says):
            verb("abc", **sampling)


@pytest.mark.parametrize("call, says", [
    (lambda m: m.chat("hi", streem=True), "unknown parameter 'streem': did you mean stream?"),
    (lambda m: m.chat("hi", tool=[]), "did you mean tools?"),
    (lambda m: m.chat("hi", max_token=5), "did you mean max_tokens?"),
    (lambda m: m.generate("hi", stream=True), r"'stream': model\.stream\(prompt\)"),
    (lambda m: m.generate(["hi"], stream=True), r"'stream': model\.stream\(prompt\)"),
    (lambda m: m.generate("hi", progres=True), "did you mean progress?"),
    (lambda m: m.session().generate("hi", stream=True), r"'stream': session\.stream\(prompt\)"),
    (lambda m: m.session().chat("hi", streem=True), "did you mean stream?"),
    (lambda m: ni.load(m.path, n_thread=5), "unknown parameter of load 'n_thread': did you mean threads?"),
    (lambda m: ni.load(m.path, qqq=5), "known are source, n_ctx"),
])  # fmt: skip
def test_unknown_keywords_name_the_near_miss(model, call, says):
    with pytest.raises(TypeError, match=says):
        call(model)


@pytest.mark.parametrize("messages, error, says", [
    ([{"role": "user", "content": "ab\udc80"}], ValueError, r"messages\[0\]\['content'\] .* U\+DC80 at index 2"),
    ([{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], ValueError, r"\['content'\]\[0\]\['text'\] .* index 0"),
    ([], ValueError, "empty"),
    (None, TypeError, "NoneType"),
    ({"role": "user", "content": "x"}, TypeError, "dict"),
    (["hello"], TypeError, r"messages\[0\]: found str"),
    ([{"content": "x"}], ValueError, r"messages\[0\]: has no 'role'"),
    ([{"role": "user"}], ValueError, r"messages\[0\]: has no 'content'"),
    ([{"role": 1, "content": "x"}], TypeError, "role"),
    ([{"role": "user", "content": 5}], TypeError, "content"),
    ([{"role": "user", "content": "long " * 50}], ni.ContextOverflow, "n_ctx = 32"),
])  # fmt: skip
def test_messages(model, messages, error, says):
    with pytest.raises(error, match=says):
        model.chat(messages)


@pytest.mark.parametrize("more, error, says", [
    ({"tools": "search"}, TypeError, "tools"),
    ({"tools": ["search"]}, TypeError, r"tools\[0\]"),
    ({"stream": 1}, TypeError, "stream"),
])  # fmt: skip
def test_chat_arguments(model, more, error, says):
    with pytest.raises(error, match=says):
        model.chat("Hi", **more)


def test_one_stream_takes_one_prompt(model):
    with pytest.raises(TypeError, match="list of prompts"):
        model.stream(["a", "b"])


def test_the_other_verbs(model):
    with pytest.raises(ValueError, match="ids: is empty|empty list"):
        model.logits([])
    with pytest.raises(ValueError, match=r"ids\[0\] = 999"):
        model.logits([999], all=True)
    with pytest.raises(ni.ContextOverflow):
        model.logits(list(range(40)))
    with pytest.raises(ValueError, match="at least 2"):
        model.score([5])
    with pytest.raises(TypeError):
        model.score(5)
    with pytest.raises(ValueError, match="pooling = 'max': wanted one of mean, last"):
        model.embed("x", pooling="max")
    with pytest.raises(ValueError, match=r"texts\[1\]"):
        model.embed(["x", ""])
    for bad in ({"n_prompt": 0}, {"n_gen": -1}, {"repeats": 0}, {"n_prompt": 1.5}, {"n_prompt": 1000}):
        with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
            ni.bench(model, **bad)
    with pytest.raises(TypeError, match="model"):
        ni.bench("smollm2")


@pytest.mark.parametrize("more, error, says", [
    ({"n_ctx": 0}, ValueError, "n_ctx = 0"),
    ({"n_ctx": 2.5}, TypeError, "n_ctx"),
    ({"n_ctx": True}, TypeError, "n_ctx"),
    ({"n_ctx": 2**40}, ValueError, "n_ctx"),
    ({"n_batch": 0}, ValueError, "n_batch"),
    ({"n_batch": None}, TypeError, "n_batch"),
    ({"threads": 0}, ValueError, "threads"),
    ({"threads": 10**6}, ValueError, "threads"),
    ({"threads": "2"}, TypeError, "threads"),
    ({"nodes": []}, ValueError, "nodes"),
    ({"nodes": [0, 0]}, ValueError, "nodes"),
    ({"nodes": [9999]}, ValueError, "nodes"),
    ({"nodes": 0}, TypeError, "nodes"),
    ({"nodes": "0"}, TypeError, "nodes"),
    ({"placement": "everywhere"}, ValueError, "placement = 'everywhere'"),
    ({"placement": 1}, TypeError, "placement"),
    ({"kv_type": "q4"}, ValueError, "kv_type = 'q4'"),
    ({"progress": "yes"}, TypeError, "progress"),
    ({"verify": "maybe"}, ValueError, "verify"),
    ({"verify": 1}, TypeError, "verify"),
    ({"n_cxt": 5}, TypeError, "n_cxt"),
])  # fmt: skip
def test_load(tiny_path, more, error, says):
    with pytest.raises(error, match=says):
        ni.load(tiny_path, **more)


@pytest.mark.parametrize("source, error", [
    (None, TypeError), (5, TypeError), (b"smollm2", TypeError),
    ("", ni.ModelNotFound), ("/no/such/model.gguf", ni.ModelNotFound),
])  # fmt: skip
def test_source(source, error):
    with pytest.raises(error):
        ni.load(source)


def test_not_a_model(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"hello world, this is no model at all")
    with pytest.raises(ni.CorruptModel, match="x.gguf"):
        ni.load(path)


def test_after_close(tiny_model):
    session, stream = tiny_model.session(), tiny_model.stream("abc", max_tokens=50, ignore_eos=True)
    session.generate("abc", max_tokens=2)
    next(stream)
    pools = tiny_model.runtime.engine.caches.pools
    tiny_model.close()
    tiny_model.close()
    assert session.closed and [pool.n_out for pool in pools] == [0] * len(pools)  # its memory went too
    verbs = [
        lambda: tiny_model.generate("x"), lambda: tiny_model.stream("x"), lambda: tiny_model.chat("x"),
        lambda: tiny_model.logits([1]), lambda: tiny_model.score("xyz"), lambda: tiny_model.embed("x"),
        tiny_model.session,
        lambda: tiny_model.placement, lambda: tiny_model.plan, lambda: ni.bench(tiny_model, 1, 1, 1),
        lambda: session.generate("x"), session.fork, lambda: list(stream),
    ]  # fmt: skip
    for verb in verbs:
        with pytest.raises(ni.ModelClosed):
            verb()
    assert len(stream.result().token_ids) >= 1
    session.close()
    assert tiny_model.tokenizer.decode(tiny_model.tokenizer.encode("abc")) == "abc"  # needs no weights


def test_close_while_another_thread_works(tiny_path):
    model, caught = ni.load(tiny_path), []

    def work():
        try:
            while True:
                model.logits(list(range(200)))
        except ni.ModelClosed as e:
            caught.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    model.close()
    thread.join(10)
    assert not thread.is_alive() and len(caught) == 1


def test_after_fork(tiny_model):
    before = tiny_model.generate("abc", max_tokens=4).token_ids
    session, stream = tiny_model.session(), tiny_model.stream("abc", max_tokens=50, ignore_eos=True)
    next(stream)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for verb in (lambda: tiny_model.generate("x"), lambda: session.generate("x"), lambda: next(stream),
                         tiny_model.session, session.fork, lambda: tiny_model.placement):  # fmt: skip
                with pytest.raises(ni.ForkedProcess, match="fork"):
                    verb()
            stream.cancel()
            session.close()
            tiny_model.close()
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on with pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tiny_model.generate("abc", max_tokens=4).token_ids == before
    assert next(stream).token_ids


def test_a_forgotten_model_goes(tiny_path):
    import gc
    import weakref

    model = ni.load(tiny_path)
    stream = model.stream("abc", max_tokens=5)
    gone = weakref.ref(model)
    del model
    next(stream)  # a stream keeps its model
    del stream
    gc.collect()
    assert gone() is None
