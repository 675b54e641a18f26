"""Conversations: what a caller may give as messages, checked, and as a chat template reads them."""

import json
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet


def split_conversations(messages):
    """One conversation or many?

    Parameters
    ----------
    messages : str, list of dict, or an iterable of those
        A column of a table will do, as `prompts.split_prompts` takes one.

    Returns
    -------
    conversations : list
    is_list : bool
        Whether many were given; one that is none is left to `check_messages`.

    Raises
    ------
    TypeError
        A table.
    """
    if hasattr(messages, "columns"):  # iterating a table gives its columns' names
        raise TypeError(f"messages: found a {type(messages).__name__}, wanted a str, a list of dicts, or a list of those: pass one of its "
                        "columns, such as table['text']")  # fmt: skip
    if isinstance(messages, (str, bytes, Mapping, AbstractSet)) or not isinstance(messages, Iterable) or getattr(messages, "ndim", 1) == 0:
        return [messages], False
    items = list(messages)
    whole = [isinstance(item, (str, list, tuple)) for item in items]
    many = any(whole) and (whole[0] or not any(isinstance(item, Mapping) for item in items))
    return (items, True) if many else ([items], False)


def check_messages(messages, tools, name="messages"):
    """A conversation as the chat template wants it.

    Parameters
    ----------
    messages : str or list of dict
        A str is one message of the user.
    tools : list of dict or None

    Returns
    -------
    list of dict

    Raises
    ------
    TypeError, ValueError
        The message tells which one, what was found and what was wanted.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"{name}: found {type(messages).__name__}, "
                        'wanted a list of dicts like {"role": "user", "content": "Hello"}')  # fmt: skip
    if not messages:
        raise ValueError(f"{name}: found an empty list, wanted at least one message")
    for i, message in enumerate(messages):
        _check_message(f"{name}[{i}]", message)
    if tools is not None:
        if not isinstance(tools, (list, tuple)):
            raise TypeError(f"tools: found {type(tools).__name__}, wanted a list of dicts (JSON schemas) or None")
        for i, tool in enumerate(tools):
            if not isinstance(tool, Mapping):
                raise TypeError(f"tools[{i}]: found {type(tool).__name__}, wanted a dict (JSON schema)")
    return [dict(message) for message in messages]


def check_unicode(name, text):
    """Raise ValueError if the str holds a lone surrogate, which no UTF-8 has."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"{name} holds the lone surrogate U+{ord(text[e.start]):04X} at index {e.start}; "
                         "wanted valid Unicode") from None  # fmt: skip


def _check_message(name, message):
    if not isinstance(message, Mapping):
        raise TypeError(f"{name}: found {type(message).__name__}, wanted a dict with role and content{_made(message)}")
    if "role" not in message:
        raise ValueError(f"{name}: has no 'role', found the keys {sorted(map(str, message))}")
    if not isinstance(message["role"], str):
        raise TypeError(f"{name}['role']: found {type(message['role']).__name__}, wanted str")
    content = message.get("content")
    if content is None:
        if not message.get("tool_calls"):
            raise ValueError(f"{name}: has no 'content', found the keys {sorted(map(str, message))}")
    elif isinstance(content, str):
        check_unicode(f"{name}['content']", content)
    elif isinstance(content, (list, tuple)):
        for i, part in enumerate(content):
            _check_part(f"{name}['content'][{i}]", part)
    else:
        raise TypeError(f"{name}['content']: found {type(content).__name__}, wanted str or a list of parts{_made(content)}")


def _made(answer):
    """The end of a message where an answer, a Completion, stands in place of a message."""
    return "; to_message() makes a message of an answer" if hasattr(answer, "to_message") else ""


def _check_part(name, part):
    if isinstance(part, str):
        return check_unicode(name, part)
    if not isinstance(part, Mapping):
        raise TypeError(f'{name}: found {type(part).__name__}, wanted a dict like {{"type": "text", "text": "Hello"}}')
    if part.get("type", "text") != "text":
        raise ValueError(f"{name}['type'] = {part['type']!r}: wanted 'text'; numainfer runs language models, which see no images and hear "
                         "no sound")
    if not isinstance(part.get("text"), str):
        raise TypeError(f"{name}['text']: found {type(part.get('text')).__name__}, wanted str")
    check_unicode(f"{name}['text']", part["text"])


def plain_messages(messages, parts, thinking=False):
    """Messages as a template reads them, where clients of OpenAI's interface send other forms.

    Parameters
    ----------
    messages : list of dict
        As `check_messages` gives them.
    parts : bool
        Whether the template reads contents that are lists of parts; else their texts are joined, a line each.
    thinking : bool
        Whether it calls ``thinking`` what others call ``reasoning_content`` (gpt-oss, which takes it beside calls only if there
        is no content).

    Returns
    -------
    list of dict
        Without a content of None; arguments of tool calls as dicts, not as the JSON that answers bring them in.
    """
    plain = []
    for message in messages:
        content = message.get("content")
        if content is None:
            content = ""
        elif not isinstance(content, str):
            content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
            content = content if parts else "\n".join(part["text"] for part in content)
        message = message | {"content": content}
        if thinking and message.get("reasoning_content") and not (content and message.get("tool_calls")):
            message = {"thinking": message["reasoning_content"]} | message
        if isinstance(message.get("tool_calls"), (list, tuple)):
            message["tool_calls"] = [_with_arguments(call) for call in message["tool_calls"]]
        plain.append(message)
    return plain


def _with_arguments(call):
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call

