"""Chat templates: what they render, and that hostile ones end in an error."""

import copy
import re
import time
import warnings
from datetime import datetime

import pytest
from vectors import tokenizer

from numainfer.text.chat_template import ChatTemplate
from numainfer.errors import ChatTemplateMissing, ChatTemplateWarning, CorruptModel
from numainfer.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1+1"}]  # fmt: skip


def render(source, messages=CHAT, **kw):
    return ChatTemplate(source).render(messages, **kw)


@pytest.fixture
def smollm2():
    return tokenizer("smollm2")


def test_smollm2(smollm2):
    text = smollm2.apply_chat_template(CHAT)
    assert text == ("<|im_start|>system\n"
                    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                    "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
                    "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n")  # fmt: skip
    closed = smollm2.apply_chat_template(CHAT, add_generation_prompt=False)
    assert text == closed + "<|im_start|>assistant\n"
    ids = smollm2.apply_chat_template(CHAT, tokenize=True)
    assert ids == smollm2.encode(text, add_special_tokens=False)
    assert smollm2.decode(ids, skip_special_tokens=False) == text


def test_bos_stands_once():
    spm = tokenizer("llama-spm")
    with_bos = spm.apply_chat_template(CHAT, template="{{ bos_token }}{{ messages[0].content }}", tokenize=True)
    without = spm.apply_chat_template(CHAT, template="{{ messages[0].content }}", tokenize=True)
    assert with_bos == without
    assert with_bos.count(spm.bos_token_id) == 1 and with_bos[0] == spm.bos_token_id


def test_named_templates():
    command_r = tokenizer("command-r")
    assert set(command_r.chat_templates) == {"default", "tool_use", "rag"}
    assert command_r.chat_template == command_r.chat_templates["default"]
    plain = command_r.apply_chat_template(CHAT)
    assert plain.startswith("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi <b>")
    rag = command_r.apply_chat_template(CHAT, template="rag", documents=[{"title": "T", "text": "some text"}])
    assert "some text" in rag
    tool = {"name": "add", "description": "adds", "parameter_definitions": {}}
    assert "adds" in command_r.apply_chat_template(CHAT, tools=[tool])
    with pytest.raises(ChatTemplateMissing, match="'chat'; it has default, rag, tool_use"):
        command_r.apply_chat_template(CHAT, template="chat")


def test_no_template():
    gemma = tokenizer("gemma3")
    assert gemma.chat_template is None
    with pytest.raises(ChatTemplateMissing, match="has no chat template"):
        gemma.apply_chat_template(CHAT)


def test_multi_part_content_and_tools_reach_the_template():
    gemma = tokenizer("gemma-4")
    parts = [{"role": "user", "content": [{"type": "text", "text": "part one"}, {"type": "text", "text": "part two"}]}]
    tool = {"type": "function", "function": {"name": "adder", "description": "adds", "parameters": {
        "type": "object", "properties": {"a": {"type": "number", "description": "a summand"}}}}}  # fmt: skip
    text = gemma.apply_chat_template(parts, tools=[tool])
    assert all(words in text for words in ("part one", "part two", "adder", "a summand"))
    assert text.startswith("<bos>")


def test_what_templates_expect():
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert render("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ loop.index }}{% endfor %}") == "12"
    assert render("{% for m in messages %}{% if m.role != 'user' %}{% continue %}{% endif %}"
                  "{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }};"
                  "{% endfor %}") == "1TrueFalse3;3FalseTrue3;"  # fmt: skip
    assert render("{% for k, v in messages[0].items() if k == 'role' %}{{ v }}{% else %}-{% endfor %}") == "user"
    assert render("{% for m in [] %}x{% else %}none{% endfor %}{{ tools is none }}") == "noneTrue"
    assert render("{% generation %}{{ messages[1].content }}{% endgeneration %}") == "Yes?"
    assert render("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
                  "{{ ns.n }}") == "3"  # fmt: skip
    assert render("{{ 'a' ~ 1 ~ none }}{{ 5 % 3 }}{{ 2 * 3 }}{{ 'ab' * 2 }}{{ 2 ** 3 }}") == "a1None26abab8"
    assert render("{{ [1] + [2] }}{{ 'a' + 'b' }}{{ 1.5 * 2 }}{{ -7 % 3 }}") == "[1, 2]ab3.02"
    assert render("{{ enable_thinking }}{{ missing }}", enable_thinking=False) == "False"


def test_messages_stay_as_they_were():
    before = copy.deepcopy(CHAT)
    render("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    assert CHAT == before


@pytest.mark.parametrize("source, words", [
    ("{{ raise_exception('only user and assistant') }}", "only user and assistant"),
    ("{% if %}", "does not parse, line 1"),
    ("a\n{% for %}", "line 2"),
    ("{{ messages[0].content.nothing.at_all }}", "nothing"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nests too deeply"),
])  # fmt: skip
def test_template_errors_are_value_errors(source, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        render(source)


GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = ns.x OP ns.x %}{% endfor %}"


CHAIN = ("".join(f"{{% set n{i} = namespace(x=0) %}}" for i in range(60))
         + "".join(f"{{% set n{i}.x = [n{i + 1}, n{i + 1}] %}}" for i in range(59)))  # fmt: skip


@pytest.mark.parametrize("source, words", [
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages[0].__init__.__globals__ }}", "unsafe"),
    ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
    ("{{ (messages | attr('__class__')).mro() }}", ""),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ messages[0].update(role='x') }}", "unsafe"),
    ("{% include '/etc/passwd' %}", ""),
    ("{% for i in range(10 ** 9) %}{% endfor %}", "at most"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
    ("{% set a = range(999) | list %}" + "{% for i in a %}" * 5 + "{% endfor %}" * 5, "steps"),
    ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError"),
    ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "steps"),
    ("{{ 'a' * 10 ** 10 }}", "at most"),
    ("{{ [1] * 10 ** 10 }}", "at most"),
    ("{{ 9 ** 9 ** 9 }}", "at most"),
    ("{{ 'a'.ljust(10 ** 11) }}", "at most"),
    ("{{ '%1000000000d' % 1 }}", "% operator"),
    (GROW.replace("OP", "~").replace("START", "'aa'"), "at most"),
    (GROW.replace("OP", "+").replace("START", "'aa'"), "at most"),
    (GROW.replace("OP", "+").replace("START", "[1]"), "at most"),
    ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "at most"),
    *((f"{begun}{grow}{{{{ l }}}}", "part of no other value") for begun, grow in (
        ("{% set l = [] %}", "{% set f = l.append %}{% set m = [l, l] %}{{ f(m) }}"),
        ("{% set l = [] %}", "{{ l.append(l) }}"),
        ("{% set l = [] %}", "{{ l.append([l]) }}"),
    )),
    *((f"{{% set l = [] %}}{nest}{{{{ l.append(1) }}}}", "unsafe") for nest in (
        "{% set m = [l] %}", "{% set m = (l, 1) %}", "{% set m = {'a': l} %}", "{% set m = dict(a=l) %}", "{% set m = cycler(l) %}",
        "{% set m = [] %}{% set _ = m.append(l) %}", "{% set m = [1] | batch(2, l) | list %}",
        "{% macro f() %}{% endmacro %}{{ f(l) }}".replace("{% endmacro", "{{ varargs }}{% endmacro"),
        "{% macro f() %}{{ kwargs }}{% endmacro %}{{ f(l=l) }}", "{% set l = l + l %}", "{% set l = [1] %}", "{% set l = l[:] %}",
    )),
    (CHAIN + "{{ n0.x }}", "a namespace within"),
    ("{% set n = namespace() %}{% set n.x = n %}", "a namespace within"),
    ("{% set n = namespace() %}{% set m = namespace(n=n) %}", "a namespace within"),
    ("{% set n = namespace() %}{% set m = [n] %}", "a namespace within"),
    ("{% set n = namespace() %}{% set m = {'n': n} %}", "a namespace within"),
    ("{% set n = namespace() %}{% set m = dict(n=n) %}", "a namespace within"),
    ("{% set n = namespace() %}{% macro f() %}{{ varargs }}{% endmacro %}{{ f(n) }}", "a namespace within"),
    ("{% set n = namespace(l=[]) %}{% for i in range(99) %}{% set _ = n.l.append('a' * 999999) %}{% endfor %}", "at most"),
    ("{% set l = [] %}{% for i in range(99) %}{% set l = [] %}{% set _ = l.append('a' * 999999) %}{% endfor %}", "at most"),
    ("{% set l = [] %}{% set _ = l.append(1) %}{% for i in l %}{% set _ = l.append(1) %}{% endfor %}", "steps"),
    ("{% set l = [] %}{% for i in range(90000) %}{% set _ = l.append(1) %}{% endfor %}"
     "{% for i in range(99999) %}{% set _ = l.append(l.pop(0)) %}{% endfor %}", "steps"),
])  # fmt: skip
def test_hostile_templates_end_in_an_error(source, words):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"chat template.*{re.escape(words)}"):
        render(source)
    assert time.process_time() - start < 20


def test_lists_that_began_empty_may_grow():
    """As Kimi K2's templates want; in every rendering anew, and lists of the caller never."""
    roles = "user,assistant,user"
    for source, wanted in (
        ("{% set n = namespace(ids=[]) %}{% for m in messages %}{% set _ = n.ids.append(m.role) %}{% endfor %}"
         "{{ n.ids | join(',') }}", roles),
        ("{% set l = [] %}{% for m in messages %}{{ l.append(m.role) or '' }}{% endfor %}{{ l.pop(0) }},{{ l | join(',') }}", roles),
        ("{% set l = [] %}{% macro f(a) %}{% set _ = a.append('x') %}{% endmacro %}{{ f(l) }}{{ f(l) }}{{ ','.join(l) }}{{ f(l) }}", "x,x"),
        ("{% set n = namespace() %}{% set n.l = [] %}{% set _ = n.l.append([1]) %}{{ n.l }}", "[[1]]"),
        ("{% set l = [] %}{% set _ = l.append(1) %}{% set m = [l] %}{{ m }}", "[[1]]"),
    ):
        template = ChatTemplate(source)
        assert template.render(CHAT) == template.render(CHAT) == wanted
    mine = [{"role": "user", "content": []}]
    for source in ("{{ messages[0].content.append(1) }}", "{% set l = messages[0].content %}{{ l.append(1) }}"):
        with pytest.raises(ValueError, match="unsafe"):
            render(source, mine)
    assert mine == [{"role": "user", "content": []}]


def test_the_budget_is_per_rendering():
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}{{ messages | length }}")
    for _ in range(8):  # 720,000 steps in all
        assert template.render(CHAT) == "3"


@pytest.mark.parametrize("messages, error, words", [
    ({"role": "user"}, TypeError, "messages: found dict"),
    (None, TypeError, "messages: found NoneType"),
    (["Hi"], TypeError, r"messages\[0\]: found str"),
    ([*CHAT, {"content": "x"}], ValueError, r"messages\[3\]: has no 'role'"),
])  # fmt: skip
def test_bad_messages(smollm2, messages, error, words):
    with pytest.raises(error, match=words):
        smollm2.apply_chat_template(messages)


@pytest.mark.parametrize("role, near", [
    ("usr", "user"), ("User", "user"), ("asistant", "assistant"), ("sytem", "system"), ("tools", "tool"),
])  # fmt: skip
def test_a_misspelt_role(smollm2, role, near):
    with pytest.raises(ValueError, match=rf"messages\[1\]\['role'\] = '{role}': did you mean '{near}'\?"):
        smollm2.apply_chat_template([CHAT[0], {"role": role, "content": "x"}])


def test_roles_of_the_template_and_others():
    named = "{% for m in messages %}{{ m.role if m.role in ['users', \"model\"] }}{% endfor %}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render(named, [{"role": "users"}, {"role": "model"}, {"role": "tool"}]) == "usersmodel"
    with pytest.warns(ChatTemplateWarning, match=r"messages\[0\]\['role'\] = 'critic': the chat template does not name this role"):
        assert render(named, [{"role": "critic"}]) == ""


def test_template_of_another_type(smollm2):
    with pytest.raises(CorruptModel, match="chat_template = 3; wanted a string"):
        Tokenizer({**smollm2._vocab.metadata, "tokenizer.chat_template": 3})
    with pytest.raises(TypeError, match="chat template is int"):
        ChatTemplate(3)
