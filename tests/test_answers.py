"""Answers of chat models taken apart: thinking, calls of tools, text; the same however the answer is cut."""

import json
import pickle
import time

import pytest
from api_tools import force, forced
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny
from vectors import tokenizer

import numainfer as ni
from numainfer.cli import answering
from numainfer.serving.params import sampling_of_file
from numainfer.text.answers import reader_for
from numainfer.text.chat_template import ChatTemplate
from numainfer.text.tokenizer import Tokenizer

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
    "s": {"type": "string"}, "n": {"type": "integer"}}}}}]  # fmt: skip
THINK = "<think></think>"
HERMES, CODER, GLM = "<tool_call>", "<tool_call><function=<parameter=", "<tool_call><arg_key>"
LLAMA, MISTRAL, KIMI = "<|start_header_id|>ipython", "[TOOL_CALLS]", "<|tool_calls_section_begin|>"
DEEPSEEK, HARMONY = "<｜tool▁calls▁begin｜>", "<|start|><|channel|><|message|>"
DSML = "｜DSML｜invoke name="
K3, SOLAR = "<|open|><|end_of_msg|>", "<|begin|>assistant<|think|><|end|><|tool_call:begin|>"
HY = "'<think{}>''</think{}>'<tool_sep{}><arg_key{}>"
GEMMA, M3, LFM = "<|tool_call>call:<|channel>thought<channel|>", "]<]minimax[>[<tool_call><mm:think></mm:think>", "<|tool_call_start|>"
ASSISTANT = "<|start|>assistant"
F1, G = ("f", {"n": 1}), ("g", {})


def read(template, pieces, prompt="", tools=TOOLS):
    """(text, thinking, calls as (name, arguments), ids) of an answer in pieces."""
    reader, text, thinking, calls = reader_for(template, prompt, tools, b"seed"), "", "", ()
    for piece in [*pieces, None]:
        found = reader.flush() if piece is None else reader.feed(piece)
        text, thinking, calls = text + found.text, thinking + found.reasoning, calls + found.calls
    assert reader.n_calls == len(calls)
    return text, thinking, [(call.name, call.arguments) for call in calls], [call.id for call in calls]


def whole(template, answer, prompt="", tools=TOOLS):
    """As `read`, the same wherever the answer is cut."""
    got = read(template, [answer], prompt, tools)
    assert read(template, list(answer), prompt, tools) == got
    for i in range(len(answer)):
        assert read(template, [answer[:i], answer[i:]], prompt, tools) == got, answer[:i]
    return got


J1, J0 = '{"name": "f", "arguments": {"n": 1}}', '{"name": "g", "arguments": {}}'
L1, L0 = '{"name": "f", "parameters": {"n": 1}}', '{"type": "function", "name": "g", "parameters": {}}'
X1, X0 = "<function=f>\n<parameter=n>\n1\n</parameter>\n</function>", "<function=g>\n</function>"
TAG, END = "<tool_call>\n", "\n</tool_call>"
DS = DEEPSEEK, "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
R1 = "function", "\n```json\n", "\n```"
KM = KIMI, "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"
NS = "]<]minimax[>["
OWN = {  # families that think in marks of their own: template, opening, closing, mark around the text
    "kimi-k3": (K3, "<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>"),
    "solar": (SOLAR, "<|think|>", "<|end|>", "<|begin|>assistant<|content|>"),
    "hy3": (HY, "<think:opensource>", "</think:opensource>", ""),
    "gemma4": (GEMMA, "<|channel>thought\n", "<channel|>", ""),
    "minimax-m3": (M3, "<mm:think>", "</mm:think>", ""),
    "apertus": ("<|tools_prefix|><|inner_prefix|><|inner_suffix|>", "<|inner_prefix|>", "<|inner_suffix|>", ""),
}
CALLS = {
    "hermes": (HERMES, f"{TAG}{J1}{END}\n{TAG}{J0}{END}"),
    "hermes-strings": (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"n\\": 1}"}</tool_call><tool_call>{"name": "g"}'),
    "hermes-nested": (HERMES, f'<tool_call>[{{"function": {L1}}}, {{"name": "g", "arguments": null}}]</tool_call>'),
    "coder": (CODER, f"{TAG}{X1}{END}\n{TAG}{X0}{END}"),
    "coder-bare": (CODER, f"{X1}\n{X0}{END}"),
    "functionary": ("<function=", '<function=f>{"n": 1}</function><function=g>{}</function>'),
    "seed": ("<seed:tool_call>", f"<seed:tool_call>\n{X1}\n</seed:tool_call><seed:tool_call>{X0}"),
    "glm": (GLM, f"<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>{END}\n<tool_call>g{END}"),
    "llama": (LLAMA, f"\n{L1}; {L0}"),
    "llama-tag": (LLAMA, f"<|python_tag|>{L1};{L0}"),
    "llama-built-in": (LLAMA, '<|python_tag|>f.call(n="1");<|python_tag|>g.call()'),
    "mistral": (MISTRAL, f"[TOOL_CALLS][{J1}, {J0}]"),
    "mistral-new": (MISTRAL, '[TOOL_CALLS]f[ARGS]{"n": 1}[TOOL_CALLS]g[ARGS]{}'),
    "deepseek-r1": (DEEPSEEK, '{0}{1}{5}{2}f{6}{{"n": 1}}{7}{3}\n{1}{5}{2}g{6}{{}}{7}{3}{4}'.format(*DS, *R1)),
    "deepseek-v3.1": (DEEPSEEK, '{0}{1}f{2}{{"n": 1}}{3}{1}g{2}{{}}{3}{4}'.format(*DS)),
    "kimi": (KIMI, '{0}{1}functions.f:0{2}{{"n": 1}}{3}{1}functions.g:1{2}{{}}{3}{4}'.format(*KM)),
    "minimax": ("<minimax:tool_call>", '<minimax:tool_call>\n<invoke name="f">\n<parameter name="n">1</parameter>\n</invoke>\n'
                '<invoke name="g">\n</invoke>\n</minimax:tool_call>'),
    "deepseek-v3.2": (DSML, '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
                      '<｜DSML｜parameter name="n" string="false">1</｜DSML｜parameter>\n'
                      '</｜DSML｜invoke>\n<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'),
    "list": ("<tool_calls>", f"<tool_calls>\n{J1}\n{J0}\n</tool_calls>"),
    "nemotron": ("<TOOLCALL>", f"<TOOLCALL>[{J1}, {J0}]</TOOLCALL>"),
    "cohere": ("<|START_ACTION|>", '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {"n": 1}}, '
               '{"tool_name": "g"}]<|END_ACTION|>'),
    "granite": ("<|tool_call|>", f"<|tool_call|>[{J1}, {J0}]"),
    "kimi-k3": (K3, '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument key="n" type="number"<|sep|>1'
                '<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="g" index="2"<|sep|><|close|>call<|sep|>'
                "<|close|>tools<|sep|><|close|>message<|sep|>"),
    "solar": (SOLAR, '<|tool_calls|><|tool_call:begin|>a1<|tool_call:name|>f<|tool_call:args|>{"n": 1}<|tool_call:end|>'
              "<|tool_call:begin|>a2<|tool_call:name|>g<|tool_call:args|>{}<|tool_call:end|><|calls|>"),
    "hy3": (HY, f"<tool_calls>\n<tool_call>f<tool_sep>\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>{END}\n"
            f"<tool_call>g<tool_sep>{END}\n</tool_calls>".replace(">", ":opensource>")),
    "gemma4": (GEMMA, "<|tool_call>call:f{n:1}<tool_call|><|tool_call>call:g{}<tool_call|>"),
    "minimax-m3": (M3, f'{NS}<tool_call>\n{NS}<invoke name="f">{NS}<n>1{NS}</n>{NS}</invoke>\n{NS}<invoke name="g">{NS}</invoke>\n'
                   f"{NS}</tool_call>"),
    "apertus": (OWN["apertus"][0], '<|tools_prefix|>[{"f": {"n": 1}}, {"g": {}}]<|tools_suffix|>'),
    "lfm2": (LFM, "<|tool_call_start|>[f(n=1), g()]<|tool_call_end|>"),
    "lfm2-json": ("<|tool_list_start|>", f"<|tool_call_start|>[{J1}, {J0}]<|tool_call_end|>"),
    "lfm2.5": ("List of tools: [", "<|tool_call_start|>[f(n=1),\ng()]<|tool_call_end|>"),
    "gigachat3": ("<|role_sep|><|message_sep|>", f"<|message_sep|>\n\nfunction call<|role_sep|>\n{J1}<|message_sep|>"
                  f"<|message_sep|>\n\nfunction call<|role_sep|>\n{J0}"),
    "gigachat3.1": ("<|function_call|>", f"<|function_call|>{J1}<|message_sep|>\n\n<|function_call|>{J0}"),
    "command-r+": ("followed by a json-formatted list of actions", 'Action:```json\n[{"tool_name": "f", "parameters": {"n": 1}},\n'
                   '{"tool_name": "directly-answer", "parameters": {}}, {"tool_name": "g", "parameters": {}}]```'),
    "minicpm5": ('<function name="<param name="',
                 '<function name="f"><param name="n">1</param></function>\n<function name="g"></function>'),
    "harmony": (HARMONY, '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"n": 1}<|call|>'
                "<|start|>assistant to=functions.g<|channel|>commentary json<|message|>{}"),
}  # fmt: skip
NO_TEXT_BEFORE = {"llama", "harmony"}  # their calls stand at the beginning, or in messages of their own


@pytest.mark.parametrize("name", CALLS)
def test_each_family(name):
    template, answer = CALLS[name]
    wanted = [("f", {"n": "1"}) if name == "llama-built-in" else F1, G]
    text, thinking, calls, ids = whole(template, answer)
    assert (text, thinking, calls) == ("", "", wanted)
    assert len(set(ids)) == 2 and all(ids)
    if name not in NO_TEXT_BEFORE:
        assert whole(template, f"Let me see. \n\n{answer}\n")[:3] == ("Let me see.", "", wanted)


@pytest.mark.parametrize("name", OWN)
def test_thinking_in_marks_of_its_own(name):
    template, opening, closing, wrap = OWN[name]
    calls = whole(*CALLS[name])
    for call, wanted in ((CALLS[name][1], calls[2]), ("", [])):
        for opened, prompt in ((opening, "x\n"), ("", f"x\n{opening}"), (f" {opening}", f"x{opening}\n")):
            answer = f"{opened}Hm {opening[:-1]}\n so.{closing}\n{wrap}It is 1."
            assert whole(template, f"{answer}{call}", prompt)[:3] == ("It is 1.", f"Hm {opening[:-1]}\n so.", wanted)
            assert whole(template, answer, prompt, None)[:2] == ("It is 1.", f"Hm {opening[:-1]}\n so.")
        for prompt in ("x\n", f"{opening}{closing}"):
            assert whole(template, f"{wrap}It is 1.{call}", prompt)[:3] == ("It is 1.", "", wanted)
        assert whole(template, f"{closing}{wrap}\nIt is 1.{call}", "x")[:3] == ("It is 1.", "", wanted)  # it says that it did not
    assert whole(template, f"x {closing[:-1]}")[0] == f"x {closing[:-1]}"


@pytest.mark.parametrize("name", set(CALLS) - {"harmony", *OWN})
def test_thinking_before_calls(name):
    template, answer = CALLS[name]
    wanted = whole(template, answer)
    thought = '\nI <tool_call> {"name": "no", "arguments": {}}</tool_call>\nso\n'
    for opened, prompt in ((f"\n<think>{thought}", "<|im_start|>assistant\n"), (thought, "assistant\n<think>\n"),
                           (f"<think>{thought}", "assistant<think>")):  # fmt: skip
        got = whole(template + THINK, f"{opened}</think>\n\n{answer}", prompt)
        assert got == ("", thought.strip(), *wanted[2:])
    assert whole(template + THINK, answer, "assistant\n<think>\n\n</think>\n\n") == wanted


def test_messages_of_harmony():
    answer = ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
              "<|start|>assistant<|channel|>analysis<|message|>So.<|end|>"
              "<|start|>assistant<|channel|>final<|message|>It is 1.\n")  # fmt: skip
    assert whole(HARMONY, answer, ASSISTANT)[:3] == ("I look it up.\n\nIt is 1.\n", "Hm.\n\nSo.", [])
    assert whole(HARMONY, answer, ASSISTANT, None)[:2] == ("I look it up.\n\nIt is 1.\n", "Hm.\n\nSo.")
    assert whole(HARMONY, "Yes <|end|>", ASSISTANT + "<|channel|>final<|message|>")[:2] == ("Yes ", "")
    assert whole(HARMONY, "hm<|end|><|channel|>final<|message|>Yes", ASSISTANT + "<|channel|>analysis<|message|>")[:2] == ("Yes", "hm")
    before = f"{ASSISTANT}<|channel|>final<|message|>x<|end|>"
    assert whole(HARMONY, "Plain words", before + ASSISTANT)[:2] == ("Plain words", "")
    assert whole(HARMONY, "Plain words", before)[:2] == ("Plain words", "")
    for broken in ('{"n": 1', "[1]", '{"n": 1} x', ""):
        message = f"<|channel|>commentary to=functions.f<|message|>{broken}"
        assert whole(HARMONY, message, ASSISTANT)[:3] == (message, "", [])
        assert whole(HARMONY, f"{message}<|end|><|start|>assistant<|channel|>final<|message|>Oh", ASSISTANT)[0] == f"{message}\n\nOh"
        said = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
        assert whole(HARMONY, said + message, ASSISTANT)[0] == f"I look.\n\n<|start|>assistant{message}"
    asked = '<|channel|>commentary to=functions.f<|message|>{"n": 1}'
    assert whole(HARMONY, asked, ASSISTANT, None)[:3] == (asked, "", [])  # nobody gave tools
    assert whole(HARMONY, "<|channel|>analysis", ASSISTANT)[0] == "<|channel|>analysis"


@pytest.mark.parametrize("opening, closing", [
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
])  # fmt: skip
def test_thinking(opening, closing):
    template = opening + closing
    assert whole(template, f"{opening}\na < b\n\n{closing}\n\nYes.\n", tools=None)[:2] == ("Yes.\n", "a < b")
    assert whole(template, f"{opening}\n\n{closing}\n\nYes.", tools=None)[:2] == ("Yes.", "")
    assert whole(template, f"{opening}never closed \n", tools=None)[:2] == ("", "never closed")
    assert whole(template, f"{opening}x{closing[:-1]}", tools=None)[:2] == ("", f"x{closing[:-1]}")
    assert whole(template, f"x{closing} y{closing}", f"...{opening}\n", None)[:2] == (f"y{closing}", "x")
    for plain in ("", " \n", f"It is written {opening}x{closing}\n", f" x {closing}", opening[:-1], f"\n{opening[0]}"):
        assert whole(template, plain, tools=None)[:2] == (plain, "")
    assert whole(template, f"{opening}a{closing}{opening}b{closing}", tools=None)[:2] == (f"{opening}b{closing}", "a")


def test_no_reader_where_nothing_can_be_found():
    assert reader_for("{{ messages }}", "", TOOLS, b"") is None
    assert reader_for(HERMES, "", None, b"") is reader_for(HERMES, "", [], b"") is None
    assert whole(HERMES + THINK, '<tool_call>{"name": "f"}</tool_call>', tools=None)[:3] == ('<tool_call>{"name": "f"}</tool_call>', "", [])


BROKEN = [
    (HERMES, '<tool_call>{"name": "f", "arguments": {"n": 1}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "argu'),
    (HERMES, "a\n<tool_call>"),
    (HERMES, "<tool_call>{'name': 'f'}</tool_call>"),
    (HERMES, '<tool_call>{"name": 5}</tool_call>'),
    (HERMES, '<tool_call>{"name": ""}</tool_call>'),
    (HERMES, '<tool_call>{"name": "a b"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"n": NaN}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"s": "\\ud800"}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"n": 1' + "0" * 5000 + "}}</tool_call>"),
    (HERMES, "<tool_call>[]</tool_call>"),
    (HERMES, "<tool_call>" + "[" * 100),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"n": ' + "[" * 9999 + "]" * 9999 + "}}</tool_call>"),
    (HERMES, "The mark <tool_call> begins a call, </tool_call> ends it. "),
    (CODER, "<tool_call>\n<function=f>\n<parameter=n>1</parameter>\n"),
    (CODER, "<tool_call>\n<function=f>\n<parameter=n>1"),
    (CODER, "<function=f>\nno"),
    (CODER, "<tool_call>f</tool_call>"),
    (GLM, "<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>1"),
    (GLM, "<tool_call>f\n<arg_key>n</arg_key>\n</tool_call>"),
    (GLM, "<tool_call> <b> and so on"),
    (GLM, "<tool_call>of a tool"),
    (LLAMA, '{"name": "f"}'),
    (LLAMA, '{"name": "f", "parameters": {}, "more": 1}'),
    (LLAMA, '{"name": "f", "parameters": "'),
    (LLAMA, '{"a": [1, 2]}\nis JSON'),
    (LLAMA, 'It is {"name": "f", "parameters": {}}'),
    (LLAMA, "<|python_tag|>print(1)"),
    (LLAMA, "<|python_tag|>f.call(n=1)"),
    (LLAMA, '<|python_tag|>f.call(n="1" m="2")'),
    (LLAMA, '<|python_tag|>f.call(n="1'),
    (MISTRAL, "[TOOL_CALLS]"),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}'),
    (MISTRAL, "[TOOL_CALLS]f[ARGS][1]"),
    (MISTRAL, "[TOOL_CALLS]" + "word " * 100),
    (MISTRAL, "[TOOL_CALLS]f[OTHER]{}"),
    (DEEPSEEK, "<｜tool▁calls▁begin｜>f<｜tool▁sep｜>{}"),
    (DEEPSEEK, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"),
    (DEEPSEEK, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n"),
    (KIMI, "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"),
    (DSML, '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="n" string="false">1'),
    ("<minimax:tool_call>", '<invoke name="f">\nno'),
    ("<minimax:tool_call>", "<minimax:tool_call> none </minimax:tool_call>"),
    (KIMI, "<|tool_calls_section_begin|> none <|tool_calls_section_end|>"),
    (K3, '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument key="n" type="number"<|sep|>1'),
    (K3, '<|open|>tools<|sep|><|open|>call index="1"<|sep|><|close|>call<|sep|>'),
    (K3, '<|open|>call tool="f"<|sep|><|open|>argument type="number"<|sep|>1<|close|>argument<|sep|><|close|>call<|sep|>'),
    (K3, '<|open|>call tool="f"<|sep|><|open|>json type="object"<|sep|>[1]<|close|>json<|sep|><|close|>call<|sep|>'),
    (SOLAR, "<|tool_calls|>none"),
    (SOLAR, "<|tool_call:begin|>a<|tool_call:name|>f<|tool_call:args|>[1]"),
    (HY, "<tool_calls:opensource>\n<tool_call:opensource>f</tool_call:opensource>"),
    (GEMMA, "<|tool_call>call:f{n:}<tool_call|>"),
    (GEMMA, "<|tool_call>call:f{n:1]<tool_call|>"),
    (GEMMA, "<|tool_call>call:f{n:word}<tool_call|>"),
    (GEMMA, "<|tool_call>call:f{<b>}"),
    (GEMMA, "<|tool_call>f{n:1}"),
    (GEMMA, '<|tool_call>call:f{s:<|"|>x'),
    (GEMMA, "<|tool_call>call:f{a:" + "{a:" * 99),
    (M3, f'{NS}<tool_call>{NS}<invoke name="f">{NS}<n>1{NS}</m>{NS}</invoke>'),
    (M3, f'{NS}<tool_call>{NS}<invoke name="f">{NS}<n>1{NS}</n>'),
    (M3, f'{NS}<tool_call>{NS}<invoke name="f">{NS}<a b>1{NS}</a b>{NS}</invoke>'),
    (M3, f'{NS}<tool_call>{NS}<invoke name="f">' + f"{NS}<n>" * 99),
    (OWN["apertus"][0], "<|tools_prefix|>[]<|tools_suffix|>"),
    (OWN["apertus"][0], '<|tools_prefix|>[{"f": {}, "g": {}}]<|tools_suffix|>'),
    (OWN["apertus"][0], '<|tools_prefix|>[{"f": 1}]<|tools_suffix|>'),
    (LFM, "<|tool_call_start|>[]<|tool_call_end|>"),
    (LFM, "<|tool_call_start|>f(n=1)<|tool_call_end|>"),
    (LFM, "<|tool_call_start|>[f(1)]<|tool_call_end|>"),
    (LFM, "<|tool_call_start|>[f(n=g())]<|tool_call_end|>"),
    (LFM, "<|tool_call_start|>[f(n=1]<|tool_call_end|>)"),
    (LFM, "<|tool_call_start|>[f(n=1), ]<|tool_call_end|>"),
    (LFM, "<|tool_call_start|>[f(s='x"),
    (LFM, "<|tool_call_start|>[f(s='\\ud800')]<|tool_call_end|>"),
    (LFM, "<|tool_call_start|>[f(n=1" + "0" * 5000 + ")]"),
    (LFM, "<|tool_call_start|>[f(n=" + "[" * 99 + "]" * 99 + ")]"),
    ("<|role_sep|><|message_sep|>", "function call<|role_sep|>\nnone"),
    ("followed by a json-formatted list of actions", "Action: none"),
    ("followed by a json-formatted list of actions", "Action:```json\n[]\n```"),
    ('<function name="<param name="', '<function name="f">none</function>'),
]


@pytest.mark.parametrize("template, answer", BROKEN)
def test_what_does_not_parse_is_text(template, answer):
    if len(answer) < 1000:
        assert whole(template, answer)[:3] == (answer, "", [])
    assert read(template, [answer])[:3] == (answer, "", [])
    if template != LLAMA and not any(answer.endswith(open_end) for open_end in ("1", '"argu', "[" * 9, "{", "\n")):
        good = CALLS["hermes" if template is HERMES else next(name for name, case in CALLS.items() if case[0] is template)][1]
        text, _, calls, _ = whole(template, f"{answer}\n{good}") if len(answer) < 200 else read(template, [f"{answer}\n{good}"])
        assert (text, calls) == (answer.rstrip(), [F1, G])  # and hides no call that comes later


def test_values_without_quotes_are_typed_by_the_schema():
    values = {"s": "12", "n": "12", "x": "[1, 2]", "y": "a\n b"}
    wanted = {"s": "12", "n": 12, "x": [1, 2], "y": "a\n b"}
    glm = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in values.items())
    assert whole(GLM, f"<tool_call>f\n{glm}</tool_call>")[2] == [("f", wanted)]
    coder = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    assert whole(CODER, f"<tool_call>\n<function=f>\n{coder}</function>\n</tool_call>")[2] == [("f", wanted)]
    assert read(GLM, [f"<tool_call>other\n{glm}</tool_call>"])[2] == [("other", wanted | {"s": 12})]
    dsml = "".join(f'<｜DSML｜parameter name="{k}" string="{str(k in "ny").lower()}">{v}</｜DSML｜parameter>\n' for k, v in values.items())
    assert whole(DSML, f'<｜DSML｜invoke name="f">{dsml}</｜DSML｜invoke>')[2] == [("f", wanted | {"n": "12"})]
    code = "<parameter=s>\nif a:\n    </parameter> is text\n\n</parameter>\n"
    assert whole(CODER, f"<tool_call><function=f>{code}</function>")[2] == [("f", {"s": "if a:\n    </parameter> is text\n"})]
    kinds = {"s": {"type": "string"}, "b": {"type": "boolean"}, "o": {"type": "object"}, "l": {"type": "array"}, "n": {"type": "number"}}
    tools = [{"name": "f", "parameters": {"properties": kinds}}]
    python = {"s": "{'a': 1}", "b": "True", "o": "{'a': [None, (1, 2)]}", "l": "['x'] y", "n": "True", "x": "True"}
    code = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in python.items())
    found = whole(CODER, f"<tool_call>\n<function=f>\n{code}</function>\n</tool_call>", "", tools)[2]
    assert found == [("f", python | {"b": True, "o": {"a": [None, [1, 2]]}})]
    for broken in ("{'a'", "[" * 9999, "{'a': [}", ""):
        code = f"<parameter=o>\n{broken}\n</parameter>\n"
        assert read(CODER, [f"<function=f>\n{code}</function>"], "", tools)[2] == [("f", {"o": broken})]
    odd = [{"x": 1}, {"name": 3}, {"name": "f", "parameters": []}, {"name": "f", "parameters": {"properties": {"s": 5}}}]
    assert read(GLM, [f"<tool_call>f\n{glm}</tool_call>"], tools=odd)[2] == [("f", wanted | {"s": 12})]


def test_values_as_programs_write_them():
    text = """n=-1, x=2.5e3,\ns='it\\'s "so"\\n\\u00e9\\x41\\q\\\\', t="a, b) ]' {", """
    text += """l=[1, 'x', (True, None),], d={'a': {"b": false}, c: 0}"""
    wanted = {"n": -1, "x": 2500.0, "s": 'it\'s "so"\né' + "A\\q\\", "t": "a, b) ]' {", "l": [1, "x", [True, None]],
              "d": {"a": {"b": False}, "c": 0}}  # fmt: skip
    assert whole(LFM, f"<|tool_call_start|>[a.f({text}), g()]")[2] == [("a.f", wanted), G]
    assert whole(LFM, "<|tool_call_start|>[f(s='\\ud83d\\ude42 two\nlines')]")[2] == [("f", {"s": "\U0001f642 two\nlines"})]
    text = '{n:-1,s:<|"|>it\'s "so" \\n }]<|x <|"|>,<|"|>a b<|"|>:[true,null,<|"|><|"|>],d:{a:{b:1.5}}}'
    assert whole(GEMMA, f"<|tool_call>call:f{text}<tool_call|>")[2] == [
        ("f", {"n": -1, "s": "it's \"so\" \\n }]<|x ", "a b": [True, None, ""], "d": {"a": {"b": 1.5}}})]  # fmt: skip


def test_values_that_are_elements():
    def tag(key, *inside):
        return f"{NS}<{key}>{''.join(inside)}{NS}</{key}>"

    schema = {"s": {"type": "string"}, "o": {"properties": {"s": {"type": "string"}}}, "e": {"type": "object"},
              "l": {"items": {"properties": {"s": {"type": "string"}}}}}  # fmt: skip
    tools = [{"name": "f", "parameters": {"properties": schema}}]
    text = (tag("s", "12") + tag("n", "12") + tag("t", "<b>") + tag("o", tag("s", "1"), "\n", tag("n", "2")) + tag("e", tag("item", "1"))
            + tag("l", tag("item", tag("s", "1")), tag("item", "2")) + tag("v", " \n") + tag("w"))  # fmt: skip
    wanted = {"s": "12", "n": 12, "t": "<b>", "o": {"s": "1", "n": 2}, "e": {"item": 1}, "l": [{"s": "1"}, 2], "v": " \n", "w": ""}
    assert whole(M3, f'{NS}<tool_call>{NS}<invoke name="f">{text}{NS}</invoke>', "", tools)[2] == [("f", wanted)]


def test_values_of_kimi_k3():
    def call(*arguments):
        return f'<|open|>call tool="f" index="1"<|sep|>{"".join(arguments)}<|close|>call<|sep|>'

    def argument(key, kind, text):
        return f'<|open|>argument key="{key}" type="{kind}"<|sep|>{text}<|close|>argument<|sep|>'

    text = call(argument("s", "number", "12"), argument("x", "string", "12"), argument("y", "object", '{"a": 1}'),
                argument("a &amp;&quot;b&quot;", "string", " <b>\n"))  # fmt: skip
    assert whole(K3, text)[2] == [("f", {"s": "12", "x": "12", "y": {"a": 1}, 'a &"b"': " <b>\n"})]
    assert whole(K3, call('<|open|>json type="object"<|sep|>{"n": 1}<|close|>json<|sep|>'))[2] == [F1]


def test_other_values():
    name = '<function name="<param name="'
    text = '<function name="f"><param name="s"><![CDATA[a </param> < b]]></param><param name="n">2</param></function>'
    assert whole(name, text)[2] == [("f", {"s": "a </param> < b", "n": 2})]
    only = 'Action:```json\n[{"tool_name": "directly_answer", "parameters": {}}]```'
    assert whole("followed by a json-formatted list of actions", f"{only}\nIt is 1.")[:3] == ("It is 1.", "", [])
    assert whole(SOLAR, CALLS["solar"][1])[3] == ["a1", "a2"]


def test_strings_may_hold_anything():
    odd = {"s": 'a</tool_call>"\\\n{[}<tool_call>', "t": "é 日本 \U0001f642"}
    for text in (json.dumps(odd), json.dumps(odd, ensure_ascii=False)):
        assert whole(HERMES, f'<tool_call>{{"name": "f", "arguments": {text}}}</tool_call>')[2] == [("f", odd)]
    assert whole(HERMES, '<tool_call>{"name": "f", "arguments": {"s": "two\nlines"}}')[2] == [("f", {"s": "two\nlines"})]


def test_ids():
    assert whole(MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}]')[3] == ["abcdefghi"]
    assert whole(MISTRAL, "[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}")[3] == ["123456789"]
    assert whole(KIMI, CALLS["kimi"][1])[3] == ["functions.f:0", "functions.g:1"]
    assert whole("<|START_ACTION|>", CALLS["cohere"][1])[3][0] == "0"
    made = read(*CALLS["hermes"])[3]
    assert all(len(own) == 9 and own.isalnum() for own in made)
    other = reader_for(HERMES, "", TOOLS, b"another prompt").feed('<tool_call>{"name": "f"}').calls[0].id
    assert other not in made


def test_text_around_calls():
    call = '<tool_call>{"name": "f", "arguments": {"n": 1}}</tool_call>'
    assert whole(HERMES, f" \n{call}\n")[:3] == ("", "", [F1])
    assert whole(HERMES, f"a \n{call}\n b ")[:3] == ("a \nb ", "", [F1])
    assert whole(HERMES, f"{call}</tool_call>\n{call} b")[:3] == ("b", "", [F1, F1])
    assert whole(HERMES, "a </tool_call>")[0] == "a </tool_call>"
    assert whole(HERMES, f"{call}</tool_")[0] == "</tool_"
    for plain in (" \na  b\n\n", "<tool", "a\n<tool_cal", "\n", ""):
        assert whole(HERMES, plain)[:3] == (plain, "", [])


def test_text_and_thinking_come_at_once():
    reader = reader_for(HERMES + THINK, "", TOOLS, b"")
    assert [reader.feed(piece)[:2] for piece in ("<thi", "nk>", "\nI t", "hink </t", "hin", "</think>\n", "\nYes", " <", "b")] == [
        ("", ""), ("", ""), ("", "I t"), ("", "hink"), ("", ""), ("", " </thin"), ("Yes", ""), ("", ""), (" <b", "")]  # fmt: skip
    reader = reader_for(MISTRAL, "", TOOLS, b"")  # no name is that long
    assert not reader.feed("[TOOL_CALLS]" + "w" * 200).text and reader.feed("w" * 99).text == "[TOOL_CALLS]" + "w" * 299
    reader = reader_for(DEEPSEEK, "", TOOLS, b"")
    seen = [len(reader.feed(character).calls) for character in CALLS["deepseek-v3.1"][1]]
    assert sum(seen) == 2 and seen.index(1) < len(seen) // 2  # the first call before the second


FRAGMENTS = sorted({"f(", "n=1", ")", "'", "call:f", "n:1", f"{NS}<n>", 'tool="f"', *"{}[]\",:;\n ax1",
                    J1, '"name"', "f.call(", "```json\n", "```", "to=functions.f",
                    *(mark for template, _ in CALLS.values()
                      for mark in reader_for(template + THINK, "", TOOLS, b"").marks)})  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted({template for template, _ in CALLS.values()})), st.lists(st.sampled_from(FRAGMENTS), max_size=14),
       st.randoms(use_true_random=False), st.booleans())  # fmt: skip
def test_any_cutting_of_anything(template, fragments, random, thinks):
    answer = "".join(fragments)
    got = read(template + THINK * thinks, [answer])
    places = sorted(random.randrange(len(answer) + 1) for _ in range(5))
    assert read(template + THINK * thinks, [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)])]) == got
    if not thinks and not got[2] and template != HARMONY:
        assert got[0] == answer


NONSENSE = [(HERMES, "<tool_call>{"), (HERMES, '<tool_call>{"'), (HERMES, '<tool_call>{"":"'), (HERMES, "<tool_call>[ "),
            (HERMES, "<tool_cal"), (CODER, "<function=f><parameter=x>"), (GLM, "<tool_call>f<arg_key>"),
            (LFM, "<|tool_call_start|>[f("), (LFM, "<|tool_call_start|>[f(a='"),
            (GEMMA, "<|tool_call>call:f{"), (M3, f"{NS}<tool_call>{NS}<"),
            (K3, '<|open|>call tool="f"<|sep|><|open|>'), (SOLAR, "<|tool_call:begin|><|tool_call:name|>"),
            (LLAMA, "<|python_tag|>f.call("), (DEEPSEEK, DS[1]), (KIMI, KM[0] + KM[1]), (HARMONY, "<|start|>")]  # fmt: skip


@pytest.mark.parametrize("template, unit", NONSENSE)
def test_long_nonsense_takes_no_time(template, unit):
    began = time.process_time()
    read(template, [unit] * 3000)
    assert time.process_time() - began < 10  # a bound far above what it takes


def test_a_long_call_is_read_once():
    began = time.process_time()
    answer = ['<tool_call>{"name": "f", "arguments": {"s": [', *['1, "a", {"b": []},'] * 5000, "2]}}</tool_call>"]
    assert len(read(HERMES, answer)[2][0][1]["s"]) == 15001
    parts = ([f"{NS}<l>", *[f"{NS}<item>1{NS}</item>"] * 3000, f"{NS}</l>"],
             ['<|open|>argument key="x" type="number"<|sep|>1<|close|>argument<|sep|>'] * 3000)  # fmt: skip
    assert read(M3, [f'{NS}<invoke name="f">', *parts[0], f"{NS}</invoke>"])[2] == [("f", {"l": [1] * 3000})]
    assert read(K3, ['<|open|>call tool="f"<|sep|>', *parts[1], "<|close|>call<|sep|>"])[2] == [("f", {"x": 1})]
    answer = ["<|tool_call_start|>[f(s=[", *["1, 'a', {'b': ()},"] * 5000, "2])]<|tool_call_end|>"]
    assert len(read(LFM, answer)[2][0][1]["s"]) == 15001
    assert time.process_time() - began < 5  # it took 35 s when each token read it from its start


# ---- through a model ---------------------------------------------------------------------------------------------------

CALLING = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
QWEN = ("{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
        "{% if m.reasoning_content %}<think>{{ '\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n{\"name\": \"' + c.function.name + '\", \"arguments\": ' }}"
        "{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}<|im_end|>{{ '\n' }}{% endfor %}"
        "{{ tools | tojson if tools }}{{ '<|im_start|>assistant\n' if add_generation_prompt }}")  # fmt: skip
ANSWER = f"<think>\nHm, hm.\n</think>\n\nI look.\n{CALLING}<|im_end|>"


def test_a_chat(smollm2):
    asked = {"template": QWEN, "tools": TOOLS}
    done = smollm2.chat("Hi", **asked, **forced(smollm2, ANSWER, logprobs=1))
    assert (done.text, done.reasoning, done.finish_reason) == ("I look.", "Hm, hm.", "tool_calls")
    (call,) = done.tool_calls
    assert (call.name, call.arguments) == F1 and len(call.id) == 9
    assert list(done.token_ids) == smollm2.tokenizer.encode(ANSWER)
    assert len(done.logprobs) == len(done.token_ids) == done.usage.completion_tokens
    assert "calls f" in repr(done)
    with smollm2.chat("Hi", **asked, stream=True, **forced(smollm2, ANSWER, logprobs=1)) as stream:
        chunks = list(stream)
    assert stream.result().to_dict() | {"timings": 0} == done.to_dict() | {"timings": 0}
    assert "".join(c.text for c in chunks) == done.text and "".join(c.reasoning for c in chunks) == done.reasoning
    assert sum((c.tool_calls for c in chunks), ()) == done.tool_calls and chunks[-1].finish_reason == "tool_calls"
    assert sum((c.token_ids for c in chunks), ()) == done.token_ids
    assert all(c.text or c.reasoning or c.tool_calls for c in chunks[:-1]) and len([c for c in chunks if c.reasoning]) > 1
    with smollm2.session() as session:
        assert session.chat("Hi", **asked, **forced(smollm2, ANSWER)).to_message() == done.to_message()
        with session.chat("Hi", **asked, stream=True, **forced(smollm2, ANSWER)) as stream:
            assert sum((c.tool_calls for c in stream), ()) == done.tool_calls
    for again in (pickle.loads(pickle.dumps(done)), pickle.loads(pickle.dumps(chunks))[-1]):
        assert again in (done, chunks[-1])
    hash(done)


def test_generate_and_chats_without_tools_take_nothing_out(smollm2):
    plain = smollm2.generate("Hi", **forced(smollm2, ANSWER))
    assert plain.text == ANSWER.removesuffix("<|im_end|>") and plain.reasoning is None and plain.tool_calls == ()
    assert plain.finish_reason == "stop" and "tool_calls" not in plain.to_dict() and plain.to_message().keys() == {"role", "content"}
    listed = smollm2.generate(["Hi"], **forced(smollm2, ANSWER))[0]
    assert (listed.text, listed.finish_reason) == (plain.text, "stop")
    thought = smollm2.chat("Hi", template=QWEN, **forced(smollm2, ANSWER))
    assert (thought.text, thought.reasoning, thought.tool_calls) == (f"I look.\n{CALLING}", "Hm, hm.", ())
    assert thought.finish_reason == "stop"


def test_a_list_of_chats(smollm2):
    answers = [ANSWER, "Just words<|im_end|>", f"{CALLING}<|im_end|>"]
    params = [ni.SamplingParams(**forced(smollm2, answer)) for answer in answers]
    done = smollm2.chat(["Hi", "Hi", "Bye"], params, template=QWEN, tools=TOOLS)
    for message, own, got in zip(["Hi", "Hi", "Bye"], params, done):
        alone = smollm2.chat(message, own, template=QWEN, tools=TOOLS)
        how = {"timings": 0, "usage": 0}  # prompts that begin alike are computed once
        assert got.to_dict() | how == alone.to_dict() | how
        assert got.usage.prompt_tokens == alone.usage.prompt_tokens and got.usage.completion_tokens == alone.usage.completion_tokens
    assert [d.finish_reason for d in done] == ["tool_calls", "stop", "tool_calls"]
    assert done[0].tool_calls[0].id != done[2].tool_calls[0].id


def test_cut_off_and_stopped(smollm2):
    ids = smollm2.tokenizer.encode(ANSWER)
    asked = {"template": QWEN, "tools": TOOLS, "logits_processor": force(ids)}
    for n in range(5, len(ids), 4):
        done = smollm2.chat("Hi", **asked, max_tokens=n)
        assert done.finish_reason == "length"
        said = smollm2.tokenizer.decode(ids[:n])
        if not done.tool_calls and "</think>" in said:
            assert done.text.strip() == said.partition("</think>")[2].strip()  # all of a call that was cut off
    assert "<tool_call>" in smollm2.chat("Hi", **asked, max_tokens=len(ids) - 12).text
    stopped = smollm2.chat("Hi", **asked, max_tokens=99, stop="look")
    assert (stopped.text, stopped.finish_reason) == ("I ", "stop")

    def gives_up(token_ids, logits):
        if len(token_ids) == len(ids) - 14:
            stream.cancel()
        return force(ids)(token_ids, logits)

    stream = smollm2.chat("Hi", **asked | {"logits_processor": gives_up}, max_tokens=len(ids), stream=True)
    chunks = list(stream)
    done = stream.result()
    assert done.finish_reason == chunks[-1].finish_reason == "cancelled" and done.text.startswith('I look.\n<tool_call>\n{"name"')
    assert "".join(c.text for c in chunks) == done.text and done.reasoning == "Hm, hm."


def test_to_message_goes_back_into_a_conversation(smollm2):
    done = smollm2.chat("Hi", template=QWEN, tools=TOOLS, **forced(smollm2, ANSWER))
    message = done.to_message()
    assert message["tool_calls"][0] == {"id": done.tool_calls[0].id, "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}
    assert json.loads(json.dumps(message)) == message
    talk = [{"role": "user", "content": "Hi"}, message, {"role": "tool", "content": "2"}]
    text = smollm2.tokenizer.apply_chat_template(talk, template=QWEN)
    assert f"<|im_start|>assistant\n{ANSWER}\n" in text
    assert smollm2.chat(talk, template=QWEN, tools=TOOLS, max_tokens=1)


def test_thinking_has_another_name_in_gpt_oss():
    source = "{% for message in messages %}[{{ message.thinking }}|{{ message.content }}]{% endfor %}"
    tok = tokenizer("smollm2")
    message = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    assert tok.apply_chat_template([message], template=source) == "[Hm|Yes]"
    assert tok.apply_chat_template([message | {"thinking": "own"}], template=source) == "[own|Yes]"
    called = message | {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert tok.apply_chat_template([called], template=source) == "[|Yes]"
    assert tok.apply_chat_template([called | {"content": ""}], template=source) == "[Hm|]"
    assert ChatTemplate(source).render([message]) == "[|Yes]"


# ---- marks that are control tokens ---------------------------------------------------------------------------------------


@pytest.fixture
def marked(smollm2, monkeypatch):
    """SmolLM2 with control tokens that spell other families' marks."""
    tok = smollm2.tokenizer
    tokens = list(tok._vocab.tokens)
    tokens[5:15] = ["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>",
                    "<|return|>"]  # fmt: skip
    changed = Tokenizer({**tok._vocab.metadata, "tokenizer.ggml.tokens": tokens})
    monkeypatch.setattr(smollm2.runtime, "tokenizer", changed)
    monkeypatch.setattr(smollm2, "tokenizer", changed)
    return smollm2


def test_marks_that_are_control_tokens(marked):
    template = "{{ messages[-1].content }}{{ tools | tojson if tools }}{# [TOOL_CALLS] [THINK] [/THINK] #}"
    answer = '[THINK]hm[/THINK]Ok[TOOL_CALLS]f[ARGS]{"n": 1}<|im_end|>'
    done = marked.chat("Hi", template=template, tools=TOOLS, **forced(marked, answer))
    assert (done.text, done.reasoning, [(c.name, c.arguments) for c in done.tool_calls]) == ("Ok", "hm", [F1])
    done = marked.chat("Hi", template=template, **forced(marked, answer))
    assert (done.text, done.reasoning) == ('Okf{"n": 1}', "hm")  # those of calls are no text, as ever
    broken = "Ok [TOOL_CALLS]f[ARGS]{<|file_sep|><|im_start|>"
    assert marked.chat("Hi", template=template, tools=TOOLS, **forced(marked, broken)).text == "Ok [TOOL_CALLS]f[ARGS]{<|file_sep|>"
    assert marked.generate("Hi", **forced(marked, answer)).text == 'hmOkf{"n": 1}'
    # A stop string may lie before a mark, but not across it; a mark may be one.
    for stop, text in (("Ok", ""), ("kf", "Ok"), ("hmO", "Ok"), ("k[TOOL", "Ok"), ("[TOOL_CALLS]", "Ok"), ("f", "Ok[TOOL_CALLS]")):
        done = marked.chat("Hi", template=template, tools=TOOLS, stop=stop, **forced(marked, answer))
        assert (done.text, len(done.tool_calls)) == (text, stop in ("kf", "hmO", "k[TOOL")), stop
    early = marked.chat("Hi", template=template, tools=TOOLS, stop="hm", min_tokens=2, **forced(marked, answer))
    assert (early.text, early.reasoning) == ("Ok", "hm")


def test_harmony_with_control_tokens(marked):
    template = "{{ messages[-1].content }}{{ tools | tojson if tools }}<|start|>assistant{# <|channel|> <|message|> #}"
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    done = marked.chat("Hi", template=template, tools=TOOLS,
                       **forced(marked, thought + '<|channel|>commentary to=functions.f json<|message|>{"n": 1}<|call|>'))  # fmt: skip
    assert (done.text, done.reasoning, [(c.name, c.arguments) for c in done.tool_calls]) == ("", "Hm.", [F1])
    assert done.finish_reason == "tool_calls"
    final = forced(marked, thought + "<|channel|>final<|message|>Yes, I do.<|return|>")
    with marked.chat("Hi", template=template, stream=True, **final) as stream:
        chunks = list(stream)
    done = stream.result()
    assert (done.text, done.reasoning, done.finish_reason) == ("Yes, I do.", "Hm.", "stop")
    assert len([c for c in chunks if c.text]) > 2 and len([c for c in chunks if c.reasoning]) > 1


def test_the_command_shows_thinking_beside_the_answer(capsys):
    chunks = [ni.Chunk("", (1,), reasoning="Hm"), ni.Chunk("", (2,), reasoning=", so"), ni.Chunk("Yes", (3,)), ni.Chunk(".", (4,), "stop")]
    answering.show(chunks)
    assert capsys.readouterr() == ("Yes.\n", "Hm, so\n\n")
    answering.show(chunks, quiet=True)
    assert capsys.readouterr() == ("", "")
    answering.show(chunks[:2])
    assert capsys.readouterr() == ("", "Hm, so\n")


# ---- sampling that the file recommends ---------------------------------------------------------------------------------


def test_sampling_of_the_file(tmp_path):
    with ni.load(tiny(tmp_path, "llama", "Q8_0", sampling={"temp": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.5})) as model:
        wanted = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.5}
        assert model.chat_sampling == wanted
        with pytest.raises(TypeError):
            model.chat_sampling["top_k"] = 1

        def said(**kw):
            return model.chat("Hi", max_tokens=12, seed=3, **kw).token_ids

        own = ni.SamplingParams(**wanted, max_tokens=12, seed=3)
        assert said() == model.chat("Hi", own).token_ids == model.chat(["Hi"], max_tokens=12, seed=3)[0].token_ids
        with model.session() as session:
            assert session.chat("Hi", max_tokens=12, seed=3).token_ids == said()
        greedy = model.chat("Hi", ni.SamplingParams(max_tokens=12)).token_ids
        assert said(temperature=0.0, repetition_penalty=1.0) == greedy != said()
        prompt = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=True)
        assert model.generate(prompt, max_tokens=12).token_ids == greedy


def test_recommendations_that_make_no_sense_are_left_out(caplog):
    found = sampling_of_file({"general.sampling.temp": -1.0, "general.sampling.top_k": "many", "general.sampling.min_p": 0.05,
                              "general.sampling.mirostat": 1})  # fmt: skip
    assert found == {"min_p": 0.05}
    assert "general.sampling.temp of the file is left out: temperature = -1.0: must be at least 0" in caplog.text
    assert sampling_of_file({}) == {}
