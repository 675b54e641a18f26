"""The fields of a request: which there are, what they become, and what becomes of those that this server cannot honour.

A field has its effect, or it is refused by name; none is dropped in silence. The exceptions stand in `HARMLESS`: they could not
change an answer anywhere.
"""

import json

from ..arguments import check_names, integer
from .refusals import Refusal

# Fields of SamplingParams, by the names that OpenAI's interface and vLLM's additions to it give them.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop",
            "stop_token_ids", "ignore_eos", "min_tokens", "json_schema", "regex", "choice", "grammar", "speculate")  # fmt: skip
COMMON = ("model", "stream", "stream_options", "n", "max_tokens", "seed", "logit_bias", "logprobs", *SAMPLING)
CHAT = ("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format",
        "reasoning_effort", "chat_template_kwargs", *COMMON)  # fmt: skip
COMPLETION = ("prompt", "echo", "suffix", "best_of", *COMMON)
EMBEDDING = ("model", "input", "encoding_format", "dimensions", "pooling")

HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction")
"""Bookkeeping of OpenAI's own service, and hints that only make it faster."""

_MOST_CHOICES = 128  # OpenAI's limit of n
_MOST_STOPS = 64  # OpenAI's is 4
_ONLY = {  # fields of which one value is honoured, for it is what is done anyway
    "echo": (False, "the prompt is not given back with its answer"),
    "suffix": ("", "text is continued, not filled in"),
    "modalities": (["text"], "answers are text"),
    "verbosity": ("medium", "say in a message how long the answer should be"),
}
_NEVER = {
    "functions": "tools has taken its place",
    "function_call": "tool_choice has taken its place",
    "audio": "answers are text",
    "web_search_options": "this server searches no web",
    "logits_processor": "it is a function, which HTTP cannot carry",
}
_ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "guided_json": "response_format, or json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "structured_outputs": "response_format, json_schema, regex, choice and grammar ask for a form",
    "add_generation_prompt": "an answer is always asked for",
    "chat_template": "the file's own is used",
}


def read_object(body):
    """The JSON object of a request's body.

    Parameters
    ----------
    body : bytes

    Returns
    -------
    dict
        Without fields that are null, which is how clients say that they say nothing.

    Raises
    ------
    Refusal
    """
    try:
        found = json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as e:
        raise Refusal(400, f"the body is not UTF-8: found the byte 0x{body[e.start]:02X} at {e.start}", "invalid_json") from None
    except RecursionError:
        raise Refusal(400, "the body is JSON that is nested too deeply", "invalid_json") from None
    except ValueError as e:
        raise Refusal(400, f"the body is no JSON: {e}", "invalid_json") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"the body is JSON of a {type(found).__name__}, wanted an object", "invalid_json")
    return {name: value for name, value in found.items() if value is not None}


def _no_constant(name):
    raise ValueError(f"{name} is none of its numbers")


def check_fields(fields, known):
    """Refuse fields that are unknown, or known and not honoured.

    Raises
    ------
    TypeError, ValueError
    """
    for name, value in fields.items():
        if name in _NEVER:
            raise ValueError(f"{name}: is not supported: {_NEVER[name]}")
        if name in _ONLY and value != _ONLY[name][0]:
            raise ValueError(f"{name} = {_short(value)}: is not supported: {_ONLY[name][1]}")
    wrong = [name[:80] for name in fields if name not in known and name not in HARMLESS and name not in _ONLY]
    if wrong:
        check_names("field", wrong, known, _ELSEWHERE)


def one_model(fields, names):
    """Refuse a model that is not served."""
    model = fields.get("model", names[0])
    if model not in names:
        raise Refusal(404, f"model = {_short(model)}: this server has {names[0]!r}", "model_not_found", "model")


def sampling(fields, max_tokens):
    """Fields of SamplingParams out of those of a request; their values are checked where SamplingParams is made.

    Parameters
    ----------
    fields : dict
    max_tokens : int or None
        Where the request says nothing.

    Returns
    -------
    dict

    Raises
    ------
    TypeError, ValueError
    """
    found = {name: fields[name] for name in SAMPLING if name in fields}
    if isinstance(found.get("stop"), list) and len(found["stop"]) > _MOST_STOPS:  # each is looked for after every token
        raise ValueError(f"stop: found {len(found['stop'])} strings, wanted at most {_MOST_STOPS}")
    most = [integer(name, fields[name], 1) for name in ("max_tokens", "max_completion_tokens") if name in fields]
    if len(set(most)) == 2:
        raise ValueError(f"max_tokens and max_completion_tokens: found {most[0]} and {most[1]}, wanted one of them")
    found["max_tokens"] = most[0] if most else max_tokens
    if "seed" in fields:
        found["seed"] = integer("seed", fields["seed"], -(2**63), 2**64 - 1) % 2**64  # OpenAI's are signed
    if "logit_bias" in fields:
        found["logit_bias"] = _logit_bias(fields["logit_bias"])
    return found


def _logit_bias(value):
    if not isinstance(value, dict):
        raise TypeError(f"logit_bias: found {type(value).__name__}, wanted an object of token ids and numbers")
    for key in value:
        if not (key.isascii() and key.isdecimal() and len(key) < 11):
            raise ValueError(f"logit_bias: found the key {_short(key)}, wanted a token id")
    return {int(key): bias for key, bias in value.items()}


def flag(fields, name, default=False):
    """A field that is true or false."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise TypeError(f"{name} = {_short(value)}: found {type(value).__name__}, wanted true or false")
    return value


def choices(fields):
    """The number n of answers to each prompt."""
    n = integer("n", fields.get("n", 1), 1, _MOST_CHOICES)
    best_of = integer("best_of", fields.get("best_of", n), 1)
    if best_of != n:
        raise ValueError(f"best_of = {best_of}: is not supported beyond n = {n}: ask for that many answers, with logprobs, and choose")
    return n


def include_usage(fields, stream):
    """``stream_options.include_usage``."""
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise ValueError("stream_options: goes with stream = true")
    if not isinstance(options, dict):
        raise TypeError(f"stream_options: found {type(options).__name__}, wanted an object")
    check_names("field of stream_options", [name for name in options if name != "include_obfuscation"], ["include_usage"])
    return flag({k: v for k, v in options.items() if v is not None}, "include_usage")


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
