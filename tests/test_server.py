"""``numainfer serve`` as the real client of OpenAI meets it: answers are the model's own, in OpenAI's form."""

import base64
import dataclasses
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import openai
import pytest
from pydantic import BaseModel
from server_tools import chat_request, events, eventually, serving
from tiny_models import tiny

import numainfer as ni
from numainfer.server import answering
from numainfer.server.asked import Asked

HI = [{"role": "user", "content": "the rain"}]
GREEDY = {"model": "tiny", "messages": HI, "temperature": 0}
SAMPLED = {"model": "tiny", "messages": HI, "temperature": 0.9, "seed": 5, "max_tokens": 20}


@pytest.fixture(scope="module")
def served(tiny_path):
    with ni.load(tiny_path) as model, serving(model) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def chatty(smollm2):
    """A client of a model that can speak."""
    with serving(smollm2, names=("smollm2",)) as found, openai.OpenAI(base_url=found.url, api_key="x", max_retries=0) as client:
        yield client


# ---- chat --------------------------------------------------------------------------------------------------------------


def test_a_chat_is_the_models_own(served, client):
    done = client.chat.completions.create(**SAMPLED)
    own = served.model.chat(HI, ni.SamplingParams(temperature=0.9, seed=5, max_tokens=20))
    choice = done.choices[0]
    assert choice.message.content == own.text and choice.message.role == "assistant" and choice.finish_reason == own.finish_reason
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (own.usage.prompt_tokens, own.usage.completion_tokens)
    assert done.usage.total_tokens == own.usage.total_tokens and done.usage.prompt_tokens_details.cached_tokens >= 0
    assert done.model == "tiny" and done.object == "chat.completion" and done.id.startswith("chatcmpl-")
    assert done.system_fingerprint == f"numainfer-{ni.__version__}" and choice.logprobs is None


def test_a_stream_adds_up(served, client):
    own = served.model.chat(HI, ni.SamplingParams(temperature=0.9, seed=5, max_tokens=20))
    pieces = list(client.chat.completions.create(**SAMPLED, stream=True))
    deltas = [p.choices[0] for p in pieces]
    assert "".join(d.delta.content or "" for d in deltas) == own.text
    assert deltas[0].delta.role == "assistant" and [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + ["length"]
    assert len({p.id for p in pieces}) == 1 and all(p.usage is None for p in pieces)
    counted = list(client.chat.completions.create(**SAMPLED, stream=True, stream_options={"include_usage": True}))
    assert counted[-1].choices == [] and counted[-1].usage.completion_tokens == 20 and all(p.usage is None for p in counted[:-1])


def test_n_answers_have_seeds_of_their_own(served, client):
    texts = [served.model.chat(HI, ni.SamplingParams(temperature=0.9, seed=5 + i, max_tokens=20)).text for i in range(3)]
    whole = client.chat.completions.create(**SAMPLED, n=3)
    assert [c.message.content for c in whole.choices] == texts and [c.index for c in whole.choices] == [0, 1, 2]
    one = client.chat.completions.create(**SAMPLED).usage
    assert whole.usage.completion_tokens == 60 and whole.usage.prompt_tokens == one.prompt_tokens
    found = ["", "", ""]
    for piece in client.chat.completions.create(**SAMPLED, n=3, stream=True):
        found[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert found == texts


def test_logprobs_of_a_chat(served, client):
    own = served.model.chat(HI, max_tokens=6, logprobs=3)
    whole = client.chat.completions.create(**GREEDY, max_tokens=6, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [(p.token, p.logprob) for p in whole] == [(p.text, p.logprob) for p in own.logprobs]
    assert [bytes(p.bytes) for p in whole] == [served.model.tokenizer.token_bytes(p.token_id) for p in own.logprobs]
    assert [[t.logprob for t in p.top_logprobs] for p in whole] == [[t.logprob for t in p.top] for p in own.logprobs]
    streamed = client.chat.completions.create(**GREEDY, max_tokens=6, logprobs=True, stream=True)
    content = [p for piece in streamed if piece.choices[0].logprobs for p in piece.choices[0].logprobs.content]
    assert [p.logprob for p in content] == [p.logprob for p in own.logprobs] and content[0].top_logprobs == []


@pytest.mark.parametrize("asked, same", [
    ({"stop": "a"}, {"stop": "a"}),
    ({"stop": ["t", "o"], "max_tokens": 50}, {"stop": ["t", "o"], "max_tokens": 50}),
    ({"max_completion_tokens": 3}, {"max_tokens": 3}),
    ({"logit_bias": {"40": 100}, "max_tokens": 4}, {"logit_bias": {40: 100}, "max_tokens": 4}),
    ({"presence_penalty": 1.5, "frequency_penalty": 1, "max_tokens": 30},
     {"presence_penalty": 1.5, "frequency_penalty": 1, "max_tokens": 30}),
    ({"temperature": 0.8, "top_p": 0.7, "seed": 1, "max_tokens": 9}, {"temperature": 0.8, "top_p": 0.7, "seed": 1, "max_tokens": 9}),
    ({"temperature": 0.8, "seed": -2, "max_tokens": 9}, {"temperature": 0.8, "seed": 2**64 - 2, "max_tokens": 9}),
    ({"extra_body": {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "temperature": 1, "seed": 4, "max_tokens": 9}},
     {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "temperature": 1, "seed": 4, "max_tokens": 9}),
    ({"extra_body": {"regex": "[ab]{4}"}}, {"regex": "[ab]{4}"}),
    ({"extra_body": {"ignore_eos": True, "min_tokens": 5}, "max_tokens": 7}, {"ignore_eos": True, "min_tokens": 5, "max_tokens": 7}),
])  # fmt: skip
def test_what_a_request_says_of_sampling_is_done(served, client, asked, same):
    done = client.chat.completions.create(**GREEDY | asked)
    own = served.model.chat(HI, ni.SamplingParams(**{"max_tokens": None} | same))
    assert done.choices[0].message.content == own.text and done.choices[0].finish_reason == own.finish_reason


def test_defaults_are_openais_or_the_files(served, tmp_path):
    sizes = {len(served.ask("/v1/chat/completions", {"messages": HI, "seed": i, "max_tokens": 8})[2]["choices"][0]["message"]["content"])
             for i in range(6)}  # fmt: skip
    own = [served.model.chat(HI, ni.SamplingParams(temperature=1, seed=i, max_tokens=8)).text for i in range(6)]
    assert sizes == {len(text) for text in own} and len(set(own)) > 1  # temperature 1
    with ni.load(tiny(tmp_path, sampling={"temp": 0.3, "top_k": 2})) as model, serving(model) as other:
        reply = other.ask("/v1/chat/completions", {"messages": HI, "seed": 3, "max_tokens": 8, "temperature": 1.5})[2]
        expected = model.chat(HI, ni.SamplingParams(temperature=1.5, top_k=2, seed=3, max_tokens=8)).text
        assert reply["choices"][0]["message"]["content"] == expected
        assert other.ask("/v1/chat/completions", {"messages": HI, "seed": 3, "max_tokens": 8})[2]["choices"][0]["message"]["content"] == (
            model.chat(HI, seed=3, max_tokens=8).text)  # fmt: skip


def test_a_conversation_as_clients_send_it_back(served, client):
    """Parts of text, fields that are null, a developer."""
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": texts}]
    first = client.chat.completions.create(model="tiny", messages=parts, temperature=0, max_tokens=4)
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb"}]
    own = served.model.chat(plain, max_tokens=4)
    assert first.choices[0].message.content == own.text
    again = [*plain, first.choices[0].message.model_dump(), {"role": "user", "content": "go on"}]
    second = client.chat.completions.create(model="tiny", messages=again, temperature=0, max_tokens=4)
    assert second.choices[0].message.content == served.model.chat([*plain, own.to_message(), again[-1]], max_tokens=4).text


class Sky(BaseModel):
    model_config = {"extra": "forbid"}
    color: Literal["blue", "grey"]
    clouds: bool


def test_response_format(chatty, smollm2):
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": Sky.model_json_schema(), "strict": True}}
    ask = [{"role": "user", "content": "Describe the sky in JSON."}]
    done = chatty.chat.completions.create(model="smollm2", messages=ask, response_format=form, temperature=0, max_tokens=60)
    assert done.choices[0].message.content == smollm2.chat(ask, response_format=form, max_tokens=60, temperature=0).text
    Sky.model_validate_json(done.choices[0].message.content)
    parsed = chatty.chat.completions.parse(model="smollm2", messages=ask, response_format=Sky, temperature=0, max_tokens=60)
    assert isinstance(parsed.choices[0].message.parsed, Sky)
    more = {"temperature": 0, "max_tokens": 80}
    plain = chatty.chat.completions.create(model="smollm2", messages=ask, response_format={"type": "json_object"}, **more)
    assert plain.choices[0].message.content.lstrip().startswith("{")


# ---- tools and thinking --------------------------------------------------------------------------------------------------

WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer"}}, "required": ["city"],
    "additionalProperties": False, "$defs": {"City": {"enum": ["Paris", "Rome"]}}}}}  # fmt: skip
CLOCK = {"type": "function", "function": {"name": "clock"}}
HERMES = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{# <think> </think> <tool_call> </tool_call> #}"
)


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """(Served, client) of a model whose template knows tools and thinking."""
    with ni.load(tiny(tmp_path_factory.mktemp("caller"), context=1024)) as model:
        model.tokenizer.chat_templates["default"] = HERMES
        with serving(model) as found, openai.OpenAI(base_url=found.url, api_key="x", max_retries=0) as client:
            yield found, client


def says(text):
    """Sampling that makes the model say just that."""
    return {"choice": [text]}


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_thinking_of_an_answer(caller, stream):
    _, client = caller
    text = '<think>Hm.</think>Well.<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    got = client.chat.completions.create(**GREEDY, tools=[WEATHER], extra_body=says(text), stream=stream)
    if stream:
        deltas = [piece.choices[0] for piece in got]
        thoughts = "".join(getattr(d.delta, "reasoning_content", None) or "" for d in deltas)
        content = "".join(d.delta.content or "" for d in deltas)
        calls = [c for d in deltas for c in d.delta.tool_calls or ()]
        assert [c.index for c in calls] == [0]
        reason = deltas[-1].finish_reason
    else:
        message, reason = got.choices[0].message, got.choices[0].finish_reason
        thoughts, content, calls = message.reasoning_content, message.content, message.tool_calls
    assert (thoughts, content, reason) == ("Hm.", "Well.", "tool_calls")
    called = calls[0].function
    assert called.name == "weather" and json.loads(called.arguments) == {"city": "Rome"} and calls[0].type == "function"


def test_each_of_n_answers_is_read_by_itself(caller):
    text = '<think>Hm.</think>Well.<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    for choice in caller[1].chat.completions.create(**GREEDY, tools=[CLOCK], extra_body=says(text), n=3).choices:
        message = choice.message
        assert (message.reasoning_content, message.content, len(message.tool_calls)) == ("Hm.", "Well.", 1)


def test_an_answer_without_text_has_none(caller):
    text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    message = caller[1].chat.completions.create(**GREEDY, tools=[CLOCK], extra_body=says(text)).choices[0].message
    assert message.content is None and message.tool_calls[0].function.arguments == "{}"


def test_one_call_at_a_time(caller):
    text = "".join(f'<tool_call>{{"name": "clock", "arguments": {{"n": {i}}}}}</tool_call>' for i in range(3))
    for stream in (False, True):
        for parallel, n in ((True, 3), (False, 1)):
            more = {"parallel_tool_calls": parallel, "extra_body": says(text), "stream": stream}
            got = caller[1].chat.completions.create(**GREEDY, tools=[CLOCK], **more)
            if stream:
                choices = [p.choices[0] for p in got]
                calls, reason = [c for d in choices for c in d.delta.tool_calls or ()], choices[-1].finish_reason
                assert [c.index for c in calls] == list(range(n))
            else:
                calls, reason = got.choices[0].message.tool_calls, got.choices[0].finish_reason
            assert [json.loads(c.function.arguments)["n"] for c in calls] == list(range(n)) and reason == "tool_calls"


def test_what_comes_behind_the_one_call_is_not_computed(caller):
    text = 'Now.<tool_call>{"name": "clock", "arguments": {}}</tool_call>' + "x" * 300
    more = {"parallel_tool_calls": False, "extra_body": says(text)}
    whole = caller[1].chat.completions.create(**GREEDY, tools=[CLOCK], **more)
    assert 20 < whole.usage.completion_tokens < 200 and whole.choices[0].message.content.rstrip("x") == "Now."
    assert len(whole.choices[0].message.content) < 12 and whole.choices[0].finish_reason == "tool_calls"
    *pieces, last = caller[1].chat.completions.create(**GREEDY, tools=[CLOCK], **more, stream=True, stream_options={"include_usage": True})
    assert 20 < last.usage.completion_tokens < 200 and len("".join(p.choices[0].delta.content or "" for p in pieces)) < 12
    assert [p.choices[0].finish_reason for p in pieces if p.choices[0].finish_reason] == ["tool_calls"]


def test_of_many_calls_one_is_told():
    call = ni.ToolCall("a", "clock", {})
    done = ni.Completion("", (), "stop", None, ni.Usage(1, 1), ni.Timings(0, 0.0, 0, 0.0, None), tool_calls=(call, call))
    wanted = Asked(prompts=[], params=ni.SamplingParams(), n=1, stream=False, usage=False)
    assert answering.told(wanted, done).tool_calls == (call, call)
    assert answering.told(dataclasses.replace(wanted, one_call=True), done).tool_calls == (call,)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice, names", [
    ("required", {"weather", "clock"}), ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ({"type": "function", "function": {"name": "clock"}}, {"clock"}),
])  # fmt: skip
def test_a_demanded_call_is_one_and_follows_its_schema(caller, choice, names, stream):
    for seed in range(3):
        asked = GREEDY | {"temperature": 1, "seed": seed, "max_tokens": 150, "tools": [WEATHER, CLOCK], "tool_choice": choice}
        got = caller[1].chat.completions.create(**asked, stream=stream)
        if stream:
            choices = [p.choices[0] for p in got]
            calls, reason = [c for d in choices for c in d.delta.tool_calls or ()], choices[-1].finish_reason
            assert not any(d.delta.content for d in choices)
        else:
            calls, reason = got.choices[0].message.tool_calls, got.choices[0].finish_reason
        assert len(calls) == 1 and reason == "tool_calls" and calls[0].function.name in names
        arguments = json.loads(calls[0].function.arguments)
        assert arguments == {} if calls[0].function.name == "clock" else arguments["city"] in ("Paris", "Rome")


def test_a_demanded_call_that_is_cut_short_is_text(caller):
    got = caller[1].chat.completions.create(**GREEDY, tools=[WEATHER], tool_choice="required", max_tokens=3).choices[0]
    assert got.finish_reason == "length" and got.message.tool_calls is None and got.message.content


def test_tool_choice_none_hides_the_tools(caller):
    served, client = caller
    without = client.chat.completions.create(**GREEDY, max_tokens=5)
    for more in ({"tools": [WEATHER], "tool_choice": "none"}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        got = client.chat.completions.create(**GREEDY, max_tokens=5, **more)
        assert got.usage.prompt_tokens == without.usage.prompt_tokens
        assert got.choices[0].message.content == without.choices[0].message.content
    assert client.chat.completions.create(**GREEDY, max_tokens=5, tools=[WEATHER]).usage.prompt_tokens > without.usage.prompt_tokens + 20


# ---- completions, embeddings, the rest ------------------------------------------------------------------------------------


def test_completions(served, client):
    done = client.completions.create(model="tiny", prompt="the rain", temperature=0)
    own = served.model.generate("the rain", max_tokens=16)
    assert done.choices[0].text == own.text and done.usage.completion_tokens == 16 and done.object == "text_completion"
    many = client.completions.create(model="tiny", prompt=["the", [5, 6, 7]], n=2, temperature=1, seed=7, max_tokens=5)
    prompts = ["the", "the", [5, 6, 7], [5, 6, 7]]
    assert [c.text for c in many.choices] == [served.model.generate(p, temperature=1, seed=7 + i % 2, max_tokens=5).text
                                             for i, p in enumerate(prompts)]  # fmt: skip
    n = len(served.model.tokenizer.encode("the"))
    assert many.usage.completion_tokens == 20 and many.usage.prompt_tokens == n + 3
    found = [""] * 4
    for piece in client.completions.create(model="tiny", prompt=["the", [5, 6, 7]], n=2, temperature=1, seed=7, max_tokens=5, stream=True):
        found[piece.choices[0].index] += piece.choices[0].text
    assert found == [c.text for c in many.choices]


def test_logprobs_of_a_completion(served, client):
    done = client.completions.create(model="tiny", prompt="the", temperature=0, max_tokens=12, logprobs=2).choices[0]
    own = served.model.generate("the", max_tokens=12, logprobs=2)
    assert done.logprobs.token_logprobs == [p.logprob for p in own.logprobs]
    assert [sorted(top.values(), reverse=True) for top in done.logprobs.top_logprobs] == [[t.logprob for t in p.top] for p in own.logprobs]
    for token, at, p in zip(done.logprobs.tokens, done.logprobs.text_offset, own.logprobs):
        assert token.startswith(("bytes:\\x", "<|")) or done.text[at : at + len(token)] == token == p.text
    assert any(token.startswith("bytes:") for token in done.logprobs.tokens)  # parts of characters have names of their own
    streamed = list(client.completions.create(model="tiny", prompt="the", temperature=0, max_tokens=12, logprobs=2, stream=True))
    assert sum((p.choices[0].logprobs.text_offset for p in streamed), []) == done.logprobs.text_offset


def test_embeddings(served, client):
    own = served.model.embed(["the rain", "in"])
    own = own / np.linalg.norm(own, axis=1, keepdims=True)
    reply = client.embeddings.create(model="tiny", input=["the rain", "in"])  # the client asks for base64
    assert np.allclose([d.embedding for d in reply.data], own, atol=1e-6) and [d.index for d in reply.data] == [0, 1]
    assert reply.usage.prompt_tokens == len(served.model.tokenizer.encode("the rain")) + len(served.model.tokenizer.encode("in"))
    one = served.ask("/v1/embeddings", {"input": "in", "pooling": "last"})[2]["data"][0]["embedding"]
    last = served.model.embed("in", pooling="last")
    assert np.allclose(one, last / np.linalg.norm(last), atol=1e-6) and len(one) == 256
    packed = served.ask("/v1/embeddings", {"input": [5, 6], "encoding_format": "base64", "dimensions": 256})[2]["data"][0]["embedding"]
    assert len(struct.unpack("<256f", base64.b64decode(packed))) == 256


def test_models_health_and_metrics(served, client):
    assert [m.id for m in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").owned_by == "numainfer"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.models.retrieve("other")
    assert served.ask("/health")[::2] == (200, {"status": "ok"})
    paths = 'numainfer_requests_total{path="/v1/chat/completions",status="%d"}'
    names = (paths % 200, paths % 400, "numainfer_generated_tokens_total", "numainfer_prompt_tokens_total",
             "numainfer_time_to_first_token_seconds_count", "numainfer_time_per_token_seconds_count")  # fmt: skip
    before = {name: served.metric(name) for name in names}
    done = client.chat.completions.create(**SAMPLED)
    served.refused("/v1/chat/completions", {"messages": 3})
    grown = {name: served.metric(name) - value for name, value in before.items()}
    steps = grown.pop("numainfer_time_per_token_seconds_count")
    assert list(grown.values()) == [1, 1, 20, done.usage.prompt_tokens, 1] and 1 <= steps <= 19
    assert served.metric("numainfer_running") == served.metric("numainfer_waiting") == 0


def test_32_streams_at_once_are_each_as_alone(served):
    def ask(i):
        body = chat_request(f"prompt {i}", temperature=1, seed=i, max_tokens=10 + i % 7, stream=True)
        status, _, text = served.ask("/v1/chat/completions", body)
        found = events(text)
        assert status == 200 and found[-1] == "[DONE]"
        return "".join(e["choices"][0]["delta"].get("content") or "" for e in found[:-1])

    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(ask, range(32)))
    for i in range(0, 32, 5):
        messages = chat_request(f"prompt {i}")["messages"]
        assert texts[i] == served.model.chat(messages, ni.SamplingParams(temperature=1, seed=i, max_tokens=10 + i % 7)).text
    assert eventually(lambda: served.metric("numainfer_running") == 0) and served.idle()


def test_the_async_client(served):
    import asyncio

    async def work():
        async with openai.AsyncOpenAI(base_url=served.url, api_key="x", max_retries=0) as client:
            async def text(i):
                stream = await client.chat.completions.create(**SAMPLED | {"seed": i}, stream=True)
                return "".join([p.choices[0].delta.content or "" async for p in stream])

            return await asyncio.gather(*map(text, range(8)))

    texts = asyncio.run(work())
    assert texts == [served.model.chat(HI, ni.SamplingParams(temperature=0.9, seed=i, max_tokens=20)).text for i in range(8)]
