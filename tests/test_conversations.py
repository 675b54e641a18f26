"""Conversations in the forms that clients send them: parts, tool calls, variables of templates, lists."""

import asyncio
import math
import warnings

import numpy as np
import pandas
import pytest
from vectors import tokenizer

import numainfer as ni
from numainfer.text.chat_template import ChatTemplate
from numainfer.text.tokenizer import Tokenizer

STRINGS = "{% for m in messages %}[{{ m.role }}]{{ m.content + '' }}{% endfor %}"
PARTS = ("{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
         "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}")  # fmt: skip
PRINTS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CALLS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"


def written(source, messages, **kw):
    tok = tokenizer("smollm2")
    return Tokenizer({**tok._vocab.metadata, "tokenizer.chat_template": source}).apply_chat_template(messages, **kw)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def text(t):
    return {"type": "text", "text": t}


@pytest.mark.parametrize("source, wanted", [(STRINGS, "[user]a\nb"), (PRINTS, "[user]a\nb"), (PARTS, "[user]<a><b>")])
def test_text_parts(source, wanted):
    assert written(source, user(text("a"), text("b"))) == wanted
    assert written(source, user(text("a"), "b")) == wanted
    assert ChatTemplate(source).reads_parts is (source is PARTS)


@pytest.mark.parametrize("part, error, says", [
    ({"type": "image_url", "image_url": {"url": "x"}}, ValueError, r"\[0\]\['content'\]\[1\]\['type'\] = 'image_url': wanted 'text'"),
    ({"type": "input_audio"}, ValueError, "'input_audio'"),
    ({"type": "text"}, TypeError, r"\[1\]\['text'\]: found NoneType, wanted str"),
    (5, TypeError, r"\['content'\]\[1\]: found int"),
    (text("\ud800"), ValueError, "surrogate"),
])  # fmt: skip
def test_parts_that_are_no_text(part, error, says):
    with pytest.raises(error, match=says):
        written(PARTS, user(text("a"), part))


def test_no_content_beside_tool_calls_and_arguments_as_json():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": [1, "y"]}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert written(CALLS, messages) == '{"x": [1, "y"]}'
    assert call["function"]["arguments"] == '{"x": [1, "y"]}' and messages[0]["content"] is None  # the caller's own stay
    for odd in ("not json", "[1]"):  # no object: as it is
        other = {"function": {"name": "f", "arguments": odd}}
        assert written(CALLS, [{"role": "assistant", "content": None, "tool_calls": [other]}]) == f'"{odd}"'
    with pytest.raises(ValueError, match="has no 'content'"):
        written(CALLS, [{"role": "assistant", "content": None}])


def test_variables_and_templates_of_chat(smollm2):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_hand = smollm2.generate("[user]Hi!", max_tokens=3).token_ids
        source = PRINTS + "{{ mark }}"
        assert smollm2.chat("Hi", template=source, chat_template_kwargs={"mark": "!"}, max_tokens=3).token_ids == by_hand
        with smollm2.session() as session:
            assert session.chat("Hi", template=source, chat_template_kwargs={"mark": "!"}, max_tokens=3).token_ids == by_hand
    with pytest.raises(TypeError, match="chat_template_kwargs: found list"):
        smollm2.chat("Hi", chat_template_kwargs=[])
    with pytest.raises(TypeError, match="'return_tensors'"):
        smollm2.chat("Hi", chat_template_kwargs={"return_tensors": "pt"})
    with pytest.raises(ni.ChatTemplateMissing, match="named 'rag'"):
        smollm2.chat("Hi", template="rag")


def test_a_list_of_conversations(smollm2):
    conversations = ["Hi", [{"role": "user", "content": "What is 1+1?"}], [], [{"role": "user"}], "Bye"]
    done = smollm2.chat(conversations, max_tokens=4)
    assert [str(d.error) if d.error else "" for d in done] == [
        "", "", "messages[2]: found an empty list, wanted at least one message",
        "messages[3][0]: has no 'content', found the keys ['role']", ""]  # fmt: skip
    for i in (0, 1, 4):
        assert done[i].token_ids == smollm2.chat(conversations[i], max_tokens=4).token_ids
    with pytest.raises(TypeError, match="stream: found a list of conversations"):
        smollm2.chat(conversations, stream=True)
    each = smollm2.chat(["Hi", "Hi"], [ni.SamplingParams(max_tokens=1), ni.SamplingParams(max_tokens=2)])
    assert [len(d.token_ids) for d in each] == [1, 2]


def test_a_column_of_a_table_is_a_list_of_conversations(smollm2):
    texts = ["Hi", "Bye"]
    wanted = [done.token_ids for done in smollm2.chat(texts, max_tokens=3)]
    table = pandas.DataFrame({"text": texts, "talk": [[{"role": "user", "content": text}] for text in texts]}, index=[5, 6])
    for given in (table["text"], table["talk"], np.array(texts), iter(texts)):
        assert [done.token_ids for done in smollm2.chat(given, max_tokens=3)] == wanted
    whole = iter([{"role": "user", "content": "Hi"}])
    assert smollm2.chat(whole, max_tokens=3).token_ids == wanted[0]
    holes = smollm2.chat(pandas.Series([math.nan, "Bye"]), max_tokens=3)
    assert "messages[0]: found float" in str(holes[0].error) and holes[1].token_ids == wanted[1]
    with pytest.raises(TypeError, match=r"found a DataFrame, .* table\['text'\]"):
        smollm2.chat(table)
    with pytest.raises(TypeError, match="messages: found ndarray"):
        smollm2.chat(np.array("Hi"))

    async def column():
        return await smollm2.achat(table["text"], max_tokens=3)

    assert [done.token_ids for done in asyncio.run(column())] == wanted
