"""What a caller may give as a prompt or as messages, made into token ids or refused."""

import operator
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

import numpy as np

from .errors import ContextOverflow

_WANTED = "a str, token ids, or a list of those"


def split_prompts(name, prompt):
    """One prompt or many?

    Parameters
    ----------
    name : str
        What errors call it.
    prompt : str, sequence of int, or iterable of those
        Any iterable but a mapping or a set will do, NumPy arrays too.

    Returns
    -------
    prompts : list of str, or list of sequences of int
    is_list : bool
        Whether many were given.

    Raises
    ------
    TypeError
        Another type; a table.
    ValueError
        An empty list: it says neither.
    """
    if isinstance(prompt, str):
        return [prompt], False
    if isinstance(prompt, (bytes, bytearray, memoryview, Mapping, AbstractSet)) or not isinstance(prompt, Iterable):
        raise TypeError(f"{name}: found {type(prompt).__name__}, wanted {_WANTED}")
    if isinstance(prompt, np.ndarray) and prompt.ndim == 0:
        raise TypeError(f"{name}: found an array without dimensions, wanted {_WANTED}")
    if hasattr(prompt, "columns"):  # iterating a table gives its columns' names
        raise TypeError(f"{name}: found a {type(prompt).__name__}, wanted {_WANTED}: pass one of its columns, such as table['text']")
    items = prompt if isinstance(prompt, (list, tuple, np.ndarray)) else list(prompt)
    if len(items) == 0:
        raise ValueError(f"{name}: found an empty {type(prompt).__name__}, wanted {_WANTED}")
    if any(_is_prompt(item) for item in items):
        return list(items), True  # what is no prompt among them will be refused by its place
    return [items], False  # ids, or what check_ids will refuse by name


def _is_prompt(item):
    return isinstance(item, (str, list, tuple)) or isinstance(item, np.ndarray) and item.ndim > 0


def check_ids(name, ids, n_vocab):
    """Token ids as the engine wants them.

    Returns
    -------
    int32 array (n,)

    Raises
    ------
    TypeError
        Not integers (bool is none), or not one-dimensional.
    ValueError
        An id outside [0, n_vocab).
    """
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TypeError(f"{name}: found a {ids.dtype} array of shape {ids.shape}, wanted integers of shape (n,)")
        values = ids
    else:
        if isinstance(ids, (str, bytes, Mapping, AbstractSet)) or not isinstance(ids, Iterable):
            raise TypeError(f"{name}: found {type(ids).__name__}, wanted a str or a sequence of token ids")
        values = [_id(name, i, item) for i, item in enumerate(ids)]
        if values and not 0 <= min(values) <= max(values) < n_vocab:  # before NumPy, whose ints overflow
            at = next(i for i, value in enumerate(values) if not 0 <= value < n_vocab)
            raise ValueError(f"{name}[{at}] = {values[at]}: wanted a token id from 0 to {n_vocab - 1}")
        return np.array(values, np.int32)
    bad = np.flatnonzero((values < 0) | (values >= n_vocab))
    if len(bad):
        raise ValueError(f"{name}[{bad[0]}] = {values[bad[0]]}: wanted a token id from 0 to {n_vocab - 1}")
    return values.astype(np.int32)


def _id(name, i, item):
    if isinstance(item, (bool, np.bool_)):
        raise TypeError(f"{name}[{i}] = {item!r}: found a bool, wanted a token id")
    try:
        return operator.index(item)
    except TypeError:
        raise TypeError(f"{name}[{i}] = {item!r}: found {type(item).__name__}, wanted a token id") from None


def to_ids(name, prompt, tokenizer, n_vocab, n_ctx):
    """One prompt's token ids: a str with the model's special tokens, ids as they are.

    Returns
    -------
    int32 array (n,), 1 <= n <= n_ctx
        With one BOS where the model wants one, also if the text begins with its text.

    Raises
    ------
    ValueError
        Empty. (An empty str is fine for a model whose tokenizer adds a BOS.)
    ContextOverflow
        More than n_ctx ids.
    """
    if isinstance(prompt, str):
        check_unicode(name, prompt)
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if isinstance(prompt, str) and tokenizer.add_bos and ids[:2] == [tokenizer.bos_token_id] * 2:
        ids = ids[1:]  # the text brought its own, as a rendered chat template does
    ids = check_ids(name, ids, n_vocab)
    if len(ids) == 0:
        why = ", and this model's tokenizer adds no BOS" if isinstance(prompt, str) else ""
        raise ValueError(f"{name}: is empty{why}; wanted at least one token")
    if len(ids) > n_ctx:
        raise ContextOverflow(f"{name}: {len(ids)} tokens, but the context holds n_ctx = {n_ctx}")
    return ids


def check_messages(messages, tools):
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
        raise TypeError(f"messages: found {type(messages).__name__}, "
                        'wanted a list of dicts like {"role": "user", "content": "Hello"}')  # fmt: skip
    if not messages:
        raise ValueError("messages: found an empty list, wanted at least one message")
    for i, message in enumerate(messages):
        _check_message(f"messages[{i}]", message)
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
        raise TypeError(f"{name}: found {type(message).__name__}, wanted a dict with role and content")
    if "role" not in message:
        raise ValueError(f"{name}: has no 'role', found the keys {sorted(map(str, message))}")
    if not isinstance(message["role"], str):
        raise TypeError(f"{name}['role']: found {type(message['role']).__name__}, wanted str")
    content = message.get("content")
    if content is None:
        if not message.get("tool_calls"):
            raise ValueError(f"{name}: has no 'content', found the keys {sorted(map(str, message))}")
    elif not isinstance(content, (str, list, tuple)):
        raise TypeError(f"{name}['content']: found {type(content).__name__}, wanted str or a list of parts")
    elif isinstance(content, str):
        check_unicode(f"{name}['content']", content)
    else:
        for i, part in enumerate(content):
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                check_unicode(f"{name}['content'][{i}]['text']", part["text"])
