"""What a request may not say, who may ask, how much: refused with the right status, in OpenAI's form, by the package's sentences."""

import http.client
import json
import threading
import time

import pytest
from server_tools import chat_request, events, eventually, serving

import numainfer as ni
from numainfer.serving.params import SamplingParams
from numainfer.server import fields
from numainfer.server.http import to_json
from numainfer.server.limits import Limits

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
FOREVER = {"max_tokens": 40_000, "ignore_eos": True, "temperature": 1, "seed": 1}


@pytest.fixture(scope="module")
def model(tiny_path):
    with ni.load(tiny_path) as found:
        yield found


@pytest.fixture(scope="module")
def served(model):
    with serving(model) as found:
        yield found


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("more, says", [
    ({"temperature": -1}, "temperature = -1: must be at least 0"),
    ({"temperature": "hot"}, "temperature = 'hot': found str"),
    ({"temperature": True}, "temperature = True: found bool"),
    ({"top_p": 1.5}, "top_p = 1.5"),
    ({"max_tokens": 0}, "max_tokens = 0"),
    ({"max_tokens": 1.5}, "max_tokens = 1.5: found float"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens and max_completion_tokens: found 3 and 4"),
    ({"presence_penalty": 3}, "presence_penalty = 3"),
    ({"n": 0}, "n = 0"),
    ({"n": 1000}, "n = 1000: must be from 1 to 128"),
    ({"n": True}, "n = True: found a bool"),
    ({"seed": 0.5}, "seed = 0.5"),
    ({"seed": 2**70}, "seed = "),
    ({"stop": ""}, "stop = ''"),
    ({"stop": [1]}, "stop = [1]"),
    ({"stop": ["a"] * 65}, "stop: found 65 strings, wanted at most 64"),
    ({"stop": {"a": 1}}, "stop = "),
    ({"logit_bias": {"x": 1}}, "logit_bias: found the key 'x'"),
    ({"logit_bias": {"1": 200}}, "logit_bias[1] = 200"),
    ({"logit_bias": {"99999": 1}}, "99999"),
    ({"logit_bias": [1]}, "logit_bias: found list"),
    ({"stop_token_ids": [10**6]}, "1000000"),
    ({"logprobs": 3}, "logprobs = 3: found int, wanted true or false"),
    ({"top_logprobs": 3}, "top_logprobs: goes with logprobs = true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs = 21: must be from 0 to 20"),
    ({"stream": 1}, "stream = 1: found int, wanted true or false"),
    ({"stream_options": {}}, "stream_options: goes with stream = true"),
    ({"stream": True, "stream_options": {"include_usge": True}}, "include_usage"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage = 1"),
    ({"stream": True, "stream_options": []}, "stream_options: found list"),
    ({"messages": []}, "messages: found an empty list"),
    ({"messages": "hi"}, "messages: found str, wanted a list of messages"),
    ({"messages": None}, "messages: is missing"),
    ({"messages": [3]}, "messages[0]: found int"),
    ({"messages": [{"role": "usr", "content": "a"}]}, "did you mean user?"),
    ({"messages": [{"role": "user"}]}, "messages[0]: has no 'content'"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0]['content']: found int"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "see no images"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "lone surrogate"),
    ({"messages": [{"role": "user", "content": "a" * 400}]}, "the context holds n_ctx = 256"),
    ({"tools": {}}, "tools: found dict"),
    ({"tools": [3]}, "tools[0]: found int"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type = 'custom'"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools[0].function.parameters: found int"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "strict = true: is not supported"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice = 'maybe'"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "names 'g', which is none of the tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: is not supported in this form"),
    ({"tool_choice": "required"}, "there are no tools to choose from"),
    ({"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}, "one form"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools and response_format"),
    ({"tools": [TOOL]}, "template does not use 'tools'"),
    ({"response_format": {"type": "json_schema"}}, "response_format: found the type \"json_schema\" without a schema"),
    ({"response_format": {"type": "jsn_object"}}, "response_format"),
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "one form"),
    ({"regex": "("}, "regex"),
    ({"grammar": "start: ?"}, "grammar"),
    ({"reasoning_effort": "high"}, "does not use 'reasoning_effort'"),
    ({"reasoning_effort": "immense"}, "reasoning_effort = 'immense'"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "does not use 'enable_thinking'"),
    ({"chat_template_kwargs": 3}, "chat_template_kwargs: found int"),
    ({"functions": []}, "functions: is not supported: tools has taken its place"),
    ({"function_call": "auto"}, "function_call"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"verbosity": "low"}, "verbosity = 'low'"),
    ({"best_of": 2}, "unknown field 'best_of'"),
    ({"temprature": 1}, "did you mean temperature?"),
    ({"max_new_tokens": 3}, "it is called max_tokens here"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls = 'no'"),
])  # fmt: skip
def test_a_chat_that_cannot_be_honoured_is_refused_by_name(served, more, says):
    status, message, _ = served.refused(CHAT, chat_request(max_tokens=2) | more)
    assert status == 400 and says in message and served.idle(0)


@pytest.mark.parametrize("path, body, says", [
    (TEXT, {}, "prompt: is missing"),
    (TEXT, {"prompt": 3}, "prompt: found int"),
    (TEXT, {"prompt": {"a": 1}}, "prompt: found dict"),
    (TEXT, {"prompt": []}, "prompt: found an empty list"),
    (TEXT, {"prompt": ""}, "prompt: is empty"),
    (TEXT, {"prompt": ["a", ""]}, "prompt[1]: is empty"),
    (TEXT, {"prompt": ["a", 3]}, "prompt[1]"),
    (TEXT, {"prompt": [1, 2.5]}, "prompt[1] = 2.5"),
    (TEXT, {"prompt": [10**9]}, "prompt[0] = 1000000000"),
    (TEXT, {"prompt": [5] * 300}, "prompt: 300 tokens"),
    (TEXT, {"prompt": ["a"] * 2049}, "prompt: found 2049 of them, wanted at most 2048"),
    (TEXT, {"prompt": "a", "logprobs": True}, "logprobs = True: found a bool"),
    (TEXT, {"prompt": "a", "logprobs": 30}, "logprobs = 30"),
    (TEXT, {"prompt": "a", "echo": True}, "echo = True: is not supported"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix = 'b': is not supported"),
    (TEXT, {"prompt": "a", "best_of": 3}, "best_of = 3: is not supported"),
    (TEXT, {"prompt": "a", "messages": []}, "unknown field 'messages'"),
    (TEXT, {"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
    (EMBED, {}, "input: is missing"),
    (EMBED, {"input": 5}, "input: found int"),
    (EMBED, {"input": ["a", ""]}, "input[1]: is empty"),
    (EMBED, {"input": [5] * 300}, "input: 300 tokens"),
    (EMBED, {"input": "a", "encoding_format": "hex"}, "encoding_format = 'hex'"),
    (EMBED, {"input": "a", "pooling": "max"}, "pooling = 'max'"),
    (EMBED, {"input": "a", "dimensions": 64}, "dimensions = 64: is not supported"),
    (EMBED, {"input": "a", "temperature": 0}, "unknown field 'temperature'"),
])  # fmt: skip
def test_the_same_of_the_other_paths(served, path, body, says):
    status, message, _ = served.refused(path, body)
    assert status == 400 and says in message


def test_the_field_to_blame_is_named(served):
    def param(path, body):
        return served.ask(path, body)[2]["error"]["param"]

    assert param(CHAT, chat_request(temperature=-1)) == "temperature"
    assert param(CHAT, chat_request(messages=[3])) == "messages[0]"
    assert param(CHAT, chat_request(tools=[{"type": "x"}])) == "tools[0].type"
    assert param(TEXT, {"prompt": ["a", ""]}) == "prompt[1]"
    assert param(TEXT, {"prompt": [5] * 300}) == "prompt"


def test_bookkeeping_and_nulls_change_nothing(served):
    plain = served.ask(CHAT, chat_request(max_tokens=5))[2]["choices"]
    noise = dict.fromkeys(fields.HARMLESS, "x") | dict.fromkeys(["stop", "tools", "logprobs", "response_format", "unheard_of"])
    more = {"n": 1, "modalities": ["text"], "verbosity": "medium", "parallel_tool_calls": True}
    assert served.ask(CHAT, chat_request(max_tokens=5) | noise | more)[2]["choices"] == plain
    assert served.ask(TEXT, {"prompt": "a", "echo": False, "suffix": "", "best_of": 1})[0] == 200


def test_every_field_of_sampling_params_has_its_place():
    own = set(SamplingParams.__dataclass_fields__)
    assert own - {"n"} <= {*fields.SAMPLING, "max_tokens", "seed", "logit_bias", "logprobs", "logits_processor"}
    assert not {*fields.CHAT, *fields.COMPLETION, *fields.EMBEDDING} & {*fields.HARMLESS}


def test_context_overflow_has_openais_code(served):
    assert served.refused(TEXT, {"prompt": [5] * 300})[2] == "context_length_exceeded"


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"3", b"null", b'"a"', b'{"messages": NaN}', b'{"temperature": Infinity}', b"\xff\xfe{}",
    b'{"messages": "\xed\xa0\x80"}',
    b"[" * 100000, b'{"a":' * 50000, b'{"seed": ' + b"9" * 10000 + b"}", "﻿{}".encode(), b"\x00", b"{'messages': 1}",
    '{"ünk": "\ud83d"}'.encode("utf-8", "surrogatepass"), b'{"messages": [{"role": "user", "content": "a"}]} {}',
])  # fmt: skip
def test_bodies_that_are_no_json_objects(served, body):
    status, message, code = served.refused(CHAT, body)
    assert status == 400 and code == "invalid_json" and message.startswith("the body is ")


def test_what_clients_send_comes_back_as_json_in_any_case(served):
    """Half a surrogate pair in a field's name, or in a model's, is no reason for a reply that is no JSON."""
    raw = json.dumps({"messages": [], "\ud800": 1}).encode()
    assert served.refused(CHAT, raw)[0] == 400
    status, message, code = served.refused(CHAT, json.dumps(chat_request(model="\udfff\x00é")).encode())
    assert (status, code) == (404, "model_not_found") and "tiny" in message
    for long in ({"verbosity": "x" * 100000}, {"x" * 100000: 1}, {"temperature": "x" * 100000}, {"model": "x" * 100000}):
        status, message, _ = served.refused(CHAT, chat_request(**long))
        assert status in (400, 404) and len(message) < 1010


def test_paths_methods_and_kinds_of_bodies(served):
    assert served.refused("/v1/nothing", None)[0] == 404
    status, headers, reply = served.ask(CHAT)
    assert status == 405 and headers["allow"] == "POST" and reply["error"]["message"].startswith("GET /v1/chat/completions")
    assert served.refused("/health", b"{}", method="POST")[0] == 405
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
        assert served.refused(CHAT, chat_request(), headers={"Content-Type": kind})[0] == 415
    assert served.ask(CHAT, chat_request(max_tokens=1), headers={"Content-Type": "Application/JSON; charset=utf-8"})[0] == 200


def test_another_model_is_not_found(served):
    for path, body in ((CHAT, chat_request()), (TEXT, {"prompt": "a"}), (EMBED, {"input": "a"})):
        assert served.refused(path, body | {"model": "gpt-9"})[::2] == (404, "model_not_found")
        assert served.refused(path, body | {"model": ["tiny"]})[::2] == (404, "model_not_found")
        assert served.ask(path, body | {"model": "tiny"} | ({} if path == EMBED else {"max_tokens": 1}))[0] == 200


def test_a_model_may_have_several_names(model):
    with serving(model, names=("one", "two")) as served:
        assert [m["id"] for m in served.ask("/v1/models")[2]["data"]] == ["one", "two"]
        assert served.ask(CHAT, chat_request(model="two", max_tokens=1))[2]["model"] == "one"


# ---- who may ask ---------------------------------------------------------------------------------------------------------


def test_the_api_key(model):
    with serving(model, api_key="sésame") as served:
        key = {"Authorization": "Bearer " + "sésame".encode().decode("latin-1")}
        wrong = [None, "", "Bearer", "Bearer ", "Bearer sesame", "Bearer sésam", "Bearer ssésame", "Basic sésame", "sésame",
                 "Bearer sésame x", "Bearer \xff"]  # fmt: skip
        for value in wrong:
            headers = {} if value is None else {"Authorization": value.encode().decode("latin-1")}
            for path, body in ((CHAT, chat_request()), ("/v1/models", None), ("/metrics", None)):
                status, _, code = served.refused(path, body, headers=headers)
                assert (status, code) == (401, "invalid_api_key"), value
        assert served.ask(CHAT, chat_request(max_tokens=1), headers=key)[0] == 200
        assert served.ask("/v1/models", headers={"authorization": key["Authorization"].replace("Bearer", "bearer")})[0] == 200
        status, headers, _ = served.ask("/v1/models")
        assert headers["www-authenticate"] == "Bearer" and served.ask("/health")[0] == 200
        big = served.ask(CHAT, b"x" * 1000, headers={"Authorization": "Bearer no"})
        assert big[0] == 401  # before the body is looked at


def test_the_key_is_compared_in_constant_time(model, monkeypatch):
    from numainfer.server import service

    seen, compare = [], service.hmac.compare_digest
    monkeypatch.setattr(service.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    with serving(model, api_key="secret") as served:
        for guess in ("s", "secret", "secret" * 50):
            served.ask("/v1/models", headers={"Authorization": f"Bearer {guess}"})
    assert len(seen) == 3 and {len(part) for pair in seen for part in pair} == {32}  # lengths do not tell either


def test_cors_is_off_unless_asked_for(model, served):
    ask = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    assert served.ask(CHAT, method="OPTIONS", headers=ask)[0] == 405
    assert "access-control-allow-origin" not in served.ask("/health", headers={"Origin": "http://page.example"})[1]
    with serving(model, origins=["http://page.example"]) as open_:
        assert open_.ask(CHAT, method="OPTIONS", headers=ask)[0] == 200
        assert open_.ask("/health", headers=ask)[1]["access-control-allow-origin"] == "http://page.example"
        assert "access-control-allow-origin" not in open_.ask("/health", headers={"Origin": "http://evil.example"})[1]
        assert open_.ask(CHAT, method="OPTIONS", headers=ask | {"Origin": "http://evil.example"})[0] == 400


# ---- how much ------------------------------------------------------------------------------------------------------------


def test_limits_of_body_and_prompt(model):
    with serving(model, body=1000, prompt=20) as served:
        assert served.refused(CHAT, b" " * 1001)[::2] == (413, "body_too_large")
        assert served.refused(CHAT, b" " * 20_000_000)[::2] == (413, "body_too_large")  # more than buffers hold
        assert served.refused(CHAT, b" " * 1000)[2] == "invalid_json"
        status, message, code = served.refused(TEXT, {"prompt": [5] * 21})
        assert (status, code) == (400, "context_length_exceeded") and "at most 20" in message
        assert served.ask(TEXT, {"prompt": [5] * 20, "max_tokens": 1})[0] == 200
        assert served.refused(EMBED, {"input": ["a", [5] * 21]})[1].startswith("input[1]: 21 tokens")
        assert served.refused(CHAT, chat_request("a" * 30))[2] == "context_length_exceeded"


def gated(gate, step):
    """A lane's step that waits for a gate."""

    def wait(*args, **more):
        gate.wait(20)
        return step(*args, **more)

    return wait


def test_who_comes_to_a_full_queue_is_sent_away(model, monkeypatch):
    gate = threading.Event()
    with serving(model, waiting=2) as served:
        monkeypatch.setattr(model.runtime.engine.lane, "step", gated(gate, model.runtime.engine.lane.step))
        replies = []
        threads = [threading.Thread(target=lambda: replies.append(served.ask(TEXT, {"prompt": "a", "max_tokens": 2}))) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: len(served.server.service.answers) == 2)
        for path, body in ((CHAT, chat_request()), (EMBED, {"input": "a"})):
            assert served.refused(path, body)[0] == 429
        status, headers, reply = served.ask(TEXT, {"prompt": "a"})
        assert status == 429 and int(headers["retry-after"]) >= 1 and reply["error"]["code"] == "server_busy"
        assert reply["error"]["type"] == "rate_limit_error" and "2 answers wait" in reply["error"]["message"]
        assert served.metric("numainfer_waiting") == 2
        gate.set()
        for thread in threads:
            thread.join(20)
        assert [r[0] for r in replies] == [200, 200] and served.ask(TEXT, {"prompt": "a", "max_tokens": 1})[0] == 200
        status, message, code = served.refused(TEXT, {"prompt": "a", "n": 3, "max_tokens": 1})  # it would never find a place
        assert (status, code) == (400, "too_many_answers") and "3 answers" in message


def test_an_answer_that_takes_too_long_is_cut(model):
    slow = ni.load(model.path, n_batch=1)
    step = slow.runtime.engine.lane.step
    slow.runtime.engine.lane.step = lambda *args, **more: time.sleep(0.02) or step(*args, **more)
    with slow, serving(slow, seconds=1) as served:
        status, _, reply = served.ask(TEXT, {"prompt": "a"} | FOREVER)
        choice = reply["choices"][0]
        assert status == 200 and choice["finish_reason"] == "length" and 2 < reply["usage"]["completion_tokens"] < 100 and choice["text"]
        found = events(served.ask(CHAT, chat_request(stream=True) | FOREVER)[2])
        assert found[-1] == "[DONE]" and found[-2]["choices"][0]["finish_reason"] == "length"
        start = time.monotonic()
        status, headers, reply = served.ask(TEXT, {"prompt": [5] * 200})
        assert status == 503 and reply["error"]["code"] == "time_limit" and headers["retry-after"] and time.monotonic() - start < 4
        start = time.monotonic()
        assert served.refused(EMBED, {"input": [[5] * 200] * 3})[::2] == (503, "time_limit") and time.monotonic() - start < 4
        assert served.idle() and eventually(lambda: not [c for c in list(slow.runtime.engine.caches.alive) if not c.closed])


def test_a_stream_that_is_quiet_says_that_it_lives(model, monkeypatch):
    from numainfer.server import answering

    monkeypatch.setattr(answering, "QUIET", 0.1)
    slow = ni.load(model.path, n_batch=1)
    step = slow.runtime.engine.lane.step
    slow.runtime.engine.lane.step = lambda *args, **more: time.sleep(0.02) or step(*args, **more)
    with slow, serving(slow) as served:
        text = served.ask(CHAT, chat_request(stream=True, max_tokens=2))[2]
        assert text.count(": still working\n\n") >= 1 and events(text)[-1] == "[DONE]"
        assert served.ask(TEXT, {"prompt": [5] * 30, "stream": True, "max_tokens": 2})[0] == 200  # nothing to say before a status


@pytest.mark.parametrize("given", [{"body": 0}, {"prompt": 0}, {"waiting": -1}, {"seconds": 0}, {"stall": 0}, {"grace": -1}, {"body": 1.5}])
def test_limits_are_checked(given):
    with pytest.raises((TypeError, ValueError), match=next(iter(given))):
        Limits(**given)


# ---- what goes wrong in the midst ------------------------------------------------------------------------------------------


def test_an_error_of_ours_is_told_without_its_insides(model, monkeypatch, caplog):
    with serving(model) as served:
        with monkeypatch.context() as patch:
            patch.setattr(model.runtime.engine, "new_kv", lambda *_: 1 / 0)
            status, message, code = served.refused(CHAT, chat_request())
            assert (status, code) == (500, "internal_error") and "division" not in message and "ZeroDivisionError" in message
            found = events(served.ask(CHAT, chat_request(stream=True))[2])
            assert found[-1]["error"]["code"] == "internal_error"
        assert "division by zero" in caplog.text
        caplog.clear()
        assert served.ask(CHAT, chat_request(max_tokens=1))[0] == 200 and served.idle()


def test_no_memory_is_no_error_of_ours(model, monkeypatch, caplog):
    def full(*_):
        raise ni.OutOfNodeMemory("node 0 is full")

    with serving(model) as served:
        with monkeypatch.context() as patch:
            patch.setattr(model.runtime.engine, "new_kv", full)
            status, headers, reply = served.ask(CHAT, chat_request())
        assert status == 503 and reply["error"]["code"] == "out_of_memory" and headers["retry-after"]
        assert served.ask(CHAT, chat_request(max_tokens=1))[0] == 200 and not caplog.records


def test_who_comes_at_the_end_is_sent_away(model):
    with serving(model) as served:
        served.server.service.ending = True
        for path, body in ((CHAT, chat_request()), (TEXT, {"prompt": "a"}), (EMBED, {"input": "a"})):
            status, headers, reply = served.ask(path, body)
            assert status == 503 and reply["error"]["code"] == "shutting_down" and headers["retry-after"]
        assert served.ask("/health")[::2] == (503, {"status": "ending"})


def test_replies_are_json_whatever_is_told():
    found = {"a": "\ud800 é", "b": ["\udfff"]}
    assert json.loads(to_json(found).decode()) == found and "é".encode() in to_json(found)


def test_a_model_that_was_closed(tiny_path):
    with ni.load(tiny_path) as model, serving(model) as served:
        model.close()
        assert served.refused(CHAT, chat_request())[0] == 503 and served.ask("/health")[0] == 503


def test_connections_are_kept(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    for body in (chat_request(max_tokens=1), chat_request(temperature=-1), chat_request(max_tokens=1)):
        connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        assert not reply.will_close
    connection.close()
