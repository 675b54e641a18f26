"""SamplingParams: what is accepted, what it becomes, and what the refusals say."""

import inspect
import math
import pickle

import numpy as np
import pytest

from numainfer.serving.params import SamplingParams, resolve_params

DEFAULTS = {
    "max_tokens": 256,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "stop": (),
    "stop_token_ids": (),
    "ignore_eos": False,
    "min_tokens": 0,
    "logprobs": None,
    "logit_bias": None,
    "logits_processor": None,
    "json_schema": None,
    "regex": None,
    "choice": None,
    "grammar": None,
    "n": 1,
    "speculate": None,
}


def test_defaults_are_those_documented():
    params = SamplingParams()
    assert {name: getattr(params, name) for name in DEFAULTS} == DEFAULTS
    assert {
        name: p.default for name, p in inspect.signature(SamplingParams).parameters.items() if name != "self"
    } == DEFAULTS


@pytest.mark.parametrize(
    "name, given, becomes",
    [
        ("top_k", -1, 0),
        ("top_k", np.int64(5), 5),
        ("seed", -1, None),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("temperature", 1, 1.0),
        ("temperature", np.float32(0.5), 0.5),
        ("min_p", 1, 1.0),
        ("top_p", 1e-300, 1e-300),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", None, ()),
        ("stop_token_ids", [np.int32(3), 4], (3, 4)),
        ("stop_token_ids", np.array([1, 2]), (1, 2)),
        ("stop_token_ids", None, ()),
        ("logit_bias", {5: 1}, {5: 1.0}),
        ("logit_bias", {np.int64(5): -100}, {5: -100.0}),
        ("logprobs", 0, 0),
        ("max_tokens", None, None),
        ("ignore_eos", np.bool_(True), True),
        ("presence_penalty", -2, -2.0),
    ],
)
def test_accepted_values(name, given, becomes):
    found = getattr(SamplingParams(**{name: given}), name)
    assert found == becomes and type(found) is type(becomes)


@pytest.mark.parametrize(
    "name, value, error, message",
    [
        ("max_tokens", 0, ValueError, "max_tokens = 0: must be from 1"),
        ("max_tokens", 2.0, TypeError, "max_tokens = 2.0: found float, wanted an int"),
        ("max_tokens", True, TypeError, "max_tokens = True: found a bool, wanted an int"),
        ("temperature", math.nan, ValueError, "temperature = nan: must be finite"),
        ("temperature", math.inf, ValueError, "temperature = inf: must be finite"),
        ("temperature", 10**400, ValueError, "must be finite"),
        ("temperature", -0.1, ValueError, "temperature = -0.1: must be at least 0"),
        ("temperature", "1", TypeError, "temperature = '1': found str, wanted a number"),
        ("temperature", None, TypeError, "temperature = None: found NoneType"),
        ("temperature", False, TypeError, "temperature = False: found bool"),
        ("temperature", 1j, TypeError, "found complex"),
        ("top_k", -2, ValueError, "top_k = -2: must be from -1"),
        ("top_k", 2**31, ValueError, "top_k = 2147483648"),
        ("top_p", 0, ValueError, "top_p = 0.0: must be above 0"),
        ("top_p", 1.01, ValueError, "top_p = 1.01: must be from 0 to 1"),
        ("min_p", -0.1, ValueError, "min_p = -0.1: must be from 0 to 1"),
        ("repetition_penalty", 0, ValueError, "repetition_penalty = 0.0: must be above 0"),
        ("presence_penalty", 2.5, ValueError, "presence_penalty = 2.5: must be from -2 to 2"),
        ("frequency_penalty", math.nan, ValueError, "frequency_penalty = nan: must be finite"),
        ("seed", 2**64, ValueError, "seed = 18446744073709551616"),
        ("seed", 1.5, TypeError, "seed = 1.5: found float"),
        ("stop", "", ValueError, "stop = '': an empty string"),
        ("stop", ["a", ""], ValueError, "an empty string would stop everywhere"),
        ("stop", ["a", 3], TypeError, "found int 3, wanted str"),
        ("stop", 3, TypeError, "stop = 3: found int, wanted a str or a sequence of str"),
        ("stop", b"x", TypeError, "found bytes"),
        ("stop_token_ids", 3, TypeError, "stop_token_ids = 3: found int, wanted a sequence of int"),
        ("stop_token_ids", [1, -1], ValueError, r"stop_token_ids\[1\] = -1: must be from 0"),
        ("stop_token_ids", "12", TypeError, "found str"),
        ("ignore_eos", 1, TypeError, "ignore_eos = 1: found int, wanted True or False"),
        ("min_tokens", -1, ValueError, "min_tokens = -1"),
        ("min_tokens", 257, ValueError, "min_tokens = 257: must be at most max_tokens = 256"),
        ("logprobs", 21, ValueError, "logprobs = 21: must be from 0 to 20"),
        ("logprobs", True, TypeError, "found a bool"),
        ("logit_bias", [1], TypeError, "found list, wanted a mapping"),
        ("logit_bias", {"5": 1.0}, TypeError, "logit_bias key = '5': found str, wanted an int"),
        ("logit_bias", {5: 101}, ValueError, r"logit_bias\[5\] = 101: must be from -100 to 100"),
        ("logit_bias", {5: math.nan}, ValueError, r"logit_bias\[5\] = nan: must be finite"),
        ("logits_processor", 3, TypeError, "logits_processor = 3: found int, wanted a callable"),
    ],
)
def test_refused_values(name, value, error, message):
    with pytest.raises(error, match=message):
        SamplingParams(**{name: value})
    with pytest.raises(error, match=message):
        SamplingParams().replace(**{name: value})
    with pytest.raises(error, match=message):
        resolve_params(None, **{name: value})


@pytest.mark.parametrize(
    "name, near",
    [
        ("max_token", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("repeat_penalty", "repetition_penalty"),
        ("stop_strings", "stop"),
        ("logits_processors", "logits_processor"),
    ],
)
def test_unknown_name_names_the_near_miss(name, near):
    message = f"unknown sampling parameter '{name}': (did you mean|it is called) {near}"
    for call in (
        SamplingParams,
        SamplingParams().replace,
        resolve_params,
        lambda **kw: resolve_params(SamplingParams(), **kw),
    ):
        with pytest.raises(TypeError, match=message):
            call(**{name: 1})


def test_unknown_name_without_a_near_miss_lists_what_is_known():
    with pytest.raises(TypeError, match="unknown sampling parameter 'qqq': known are max_tokens, temperature"):
        SamplingParams(qqq=1)


def test_resolve_params():
    params = SamplingParams(temperature=0.5, top_k=4, stop=["x"])
    assert resolve_params() == SamplingParams() and resolve_params(params) is params
    changed = resolve_params(params, top_k=9)
    assert (changed.temperature, changed.top_k, changed.stop) == (0.5, 9, ("x",)) and params.top_k == 4
    with pytest.raises(TypeError, match="params: found dict, wanted SamplingParams or None"):
        resolve_params({"top_k": 3})


def test_frozen_and_picklable():
    bias = {3: 1.0}
    params = SamplingParams(logit_bias=bias, seed=4)
    bias[3] = 2.0
    assert params.logit_bias == {3: 1.0}
    with pytest.raises(AttributeError):
        params.top_k = 3
    assert pickle.loads(pickle.dumps(params)) == params


def test_each_of_n_answers():
    params = SamplingParams(n=3, seed=2**64 - 2, temperature=1, stop="x")
    each = params.each()
    assert [p.seed for p in each] == [2**64 - 2, 2**64 - 1, 0] and {p.replace(seed=5) for p in each} == {params.replace(n=1, seed=5)}
    assert SamplingParams(seed=7).each() == [SamplingParams(seed=7)]
    assert [p.seed for p in SamplingParams(n=2).each()] == [None, None]
    for n, error in ((0, ValueError), (1025, ValueError), (2.0, TypeError), (True, TypeError), (None, TypeError)):
        with pytest.raises(error, match="^n = "):
            SamplingParams(n=n)
    with pytest.raises(TypeError, match="unknown sampling parameter 'num_return_sequences': it is called n here"):
        SamplingParams(num_return_sequences=2)
