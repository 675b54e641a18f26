"""Chat templates as models bring them, most of all that are known: they render, and what they write of thinking and calls is read back."""

import os
import warnings

import pytest
from vectors import templates

from numainfer.text.answers import reader_for
from numainfer.text.chat_template import ChatTemplate
from numainfer.text.messages import plain_messages

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {
    "type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "c"}, "days": {"type": "integer", "description": "n"},
        "detail": {"type": "object", "description": "o", "properties": {"wind": {"type": "boolean", "description": "w"}}}}}}}]  # fmt: skip
ASKED = ("get_weather", {"city": 'São "Paulo"', "days": 3, "detail": {"wind": True}})
USER = {"role": "user", "content": "Hi"}
CALL = {"role": "assistant", "content": "", "reasoning_content": "Hm so.",
        "tool_calls": [{"type": "function", "id": "abcdefghi", "function": {"name": ASKED[0], "arguments": ASKED[1]}}]}  # fmt: skip
# No calls in them, or none of these.
SILENT = {"HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "google-gemma-2-2b-it",
          "ibm-granite-granite-3.3-2B-Instruct", "llama-cpp-deepseek-r1", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct",
          "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"}  # fmt: skip
# Want names or keys of their own, or arguments as text.
OTHER = {"CohereForAI-c4ai-command-r-plus-tool_use", "fireworks-ai-llama-3-firefunction-v2", "meetkai-functionary-medium-v3.2"}
UNREAD = {"muse-glimmer"}


@pytest.fixture(scope="module")
def sources():
    found = templates()
    if not found and os.environ.get("NUMAINFER_VOCABS"):
        pytest.skip("NUMAINFER_VOCABS holds no templates")
    return found


def said(source):
    """(prompt, what the template writes behind it of an answer with a call)."""
    template = ChatTemplate(source)

    def render(messages, last):
        plain = plain_messages(messages, template.reads_parts, "message.thinking" in source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return template.render(plain, tools=TOOLS, bos_token="<bos>", eos_token="<eos>", add_generation_prompt=last)

    prompt, whole = render([USER], True), render([USER, CALL], False)
    prompt = os.path.commonprefix([prompt, whole])
    if prompt.rfind("<") > prompt.rfind(">"):  # not in the midst of a mark
        prompt = prompt[: prompt.rfind("<")]
    return prompt, whole[len(prompt) :]


def test_calls_that_templates_write_are_read_back(sources):
    assert len(sources) > 60
    failed = []
    for name, source in sources.items():
        if name in SILENT | OTHER | UNREAD:
            continue
        prompt, answer = said(source)
        reader = reader_for(source, prompt, TOOLS, b"")
        calls, thought = (), ""
        for piece in [*answer, None]:  # a character at a time
            found = reader.flush() if piece is None else reader.feed(piece)
            calls, thought = calls + found.calls, thought + found.reasoning
        thoughts = ("Hm so.",) if "Hm so." in answer else ("", "Hm so.")  # in some the prompt ends in the midst of it
        if [(call.name, call.arguments) for call in calls] != [ASKED] or thought not in thoughts:
            failed.append((name, calls, thought, answer))
    assert not failed


def test_all_templates_compile_and_most_render(sources):
    for name, source in sources.items():
        template = ChatTemplate(source)
        if name not in OTHER:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tools = TOOLS if name.endswith("tool_use") else None
                assert "Hi" in template.render([USER], tools=tools, bos_token="<bos>", eos_token="<eos>")
