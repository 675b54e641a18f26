"""What a request asks for, read and checked: prompts as ids, how to sample, how to tell of it."""

import copy
import dataclasses
from typing import Any

from .. import verbs
from ..arguments import did_you_mean, integer
from ..prompts import split_prompts
from ..serving.forms import FORMS, response_form
from ..serving.params import MAX_LOGPROBS, SamplingParams
from ..text.chat_template import ROLES
from . import fields as of
from . import tools as of_tools
from .refusals import Refusal

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One request for answers.

    Attributes
    ----------
    prompts : list of (int32 array (n,), Reader or None)
    params : SamplingParams
    n : int
        Answers to each prompt.
    stream, usage : bool
        Whether it is a stream, and whether its last event tells the numbers of tokens.
    choice : Choice or None
        Of a chat: tools.
    one_call : bool
        Of a chat: the answer ends with its first call of a tool.
    """

    prompts: list[tuple[Any, Any]]
    params: SamplingParams
    n: int
    stream: bool
    usage: bool
    choice: Any = None
    one_call: bool = False

    def answers(self):
        """(ids, Reader or None, SamplingParams) of each answer, those to one prompt side by side; each with a seed of its own."""
        for ids, reader in self.prompts:
            for own in self.params.replace(n=self.n).each():
                yield ids, copy.deepcopy(reader), own  # a reader serves one answer


def chat(service, fields):
    """The Asked of a request to /v1/chat/completions.

    Raises
    ------
    Refusal, TypeError, ValueError, and what `Model.chat` raises of a conversation
    """
    of.check_fields(fields, of.CHAT)
    of.one_model(fields, service.names)
    if "messages" not in fields:
        raise ValueError("messages: is missing, wanted a list of messages")
    if not isinstance(fields["messages"], list):
        raise TypeError(f"messages: found {type(fields['messages']).__name__}, wanted a list of messages")
    choice = of_tools.read(fields)
    given = of.sampling(fields, None)
    given |= _chat_logprobs(fields)
    if choice.schema is not None:
        for name in ("response_format", *FORMS):
            if name in fields:
                raise ValueError(f"{name} and tool_choice: an answer has one form; wanted one of them")
        given["json_schema"] = choice.schema
    formed = response_form(fields.get("response_format"), given)
    if choice.tools and choice.schema is None and formed is not given:
        raise ValueError("tools and response_format: an answer in that form calls no tools; wanted one of them, or tool_choice = 'none'")
    params = service.params(verbs.chat_sampling(service.model.runtime, None, formed))
    messages, variables = [_plain(m) for m in fields["messages"]], _template_kwargs(fields)
    template = service.template(choice.tools)
    if template is not None:
        _check_used(template, messages, [*(["tools"] if choice.tools else []), *variables])
    ids, reader = verbs.conversation(service.model.runtime, messages, tools=choice.tools, chat_template_kwargs=variables)
    stream = of.flag(fields, "stream")
    one_call = not of.flag(fields, "parallel_tool_calls", True)
    return Asked(prompts=[(service.within(ids), None if choice.schema else reader)], params=params, n=of.choices(fields), stream=stream,
                 usage=of.include_usage(fields, stream), choice=choice, one_call=one_call)  # fmt: skip


def completion(service, fields):
    """The Asked of a request to /v1/completions.

    Raises
    ------
    Refusal, TypeError, ValueError
    """
    of.check_fields(fields, of.COMPLETION)
    of.one_model(fields, service.names)
    if "prompt" not in fields:
        raise ValueError("prompt: is missing, wanted a str, token ids, or a list of those")
    given = of.sampling(fields, 16)
    if "logprobs" in fields:
        given["logprobs"] = integer("logprobs", fields["logprobs"], 0, MAX_LOGPROBS)
    params = service.params(given)
    prompts, many = _texts(service, "prompt", fields["prompt"])
    stream = of.flag(fields, "stream")
    return Asked(prompts=[(ids, None) for ids in prompts], params=params, n=of.choices(fields), stream=stream,
                 usage=of.include_usage(fields, stream))  # fmt: skip


def embedding(service, fields):
    """(ids of each text, pooling, whether vectors are base64) of a request to /v1/embeddings.

    Raises
    ------
    Refusal, TypeError, ValueError
    """
    of.check_fields(fields, of.EMBEDDING)
    of.one_model(fields, service.names)
    if "input" not in fields:
        raise ValueError("input: is missing, wanted a str, token ids, or a list of those")
    form, pooling = fields.get("encoding_format", "float"), fields.get("pooling", "mean")
    if form not in ("float", "base64"):
        raise ValueError(f"encoding_format = {form!r}: wanted 'float' or 'base64'")
    if pooling not in ("mean", "last"):
        raise ValueError(f"pooling = {pooling!r}: wanted 'mean' or 'last'")
    width = service.model.runtime.n_embd
    if fields.get("dimensions", width) != width:
        raise ValueError(f"dimensions = {fields['dimensions']!r}: is not supported; this model's vectors have {width}")
    return _texts(service, "input", fields["input"])[0], pooling, form == "base64"


def _texts(service, name, given):
    """(list of ids, whether many were given)."""
    if not isinstance(given, (str, list)):
        raise TypeError(f"{name}: found {type(given).__name__}, wanted a str, token ids, or a list of those")
    prompts, many = split_prompts(name, given)
    if len(prompts) > service.most_prompts:
        raise ValueError(f"{name}: found {len(prompts)} of them, wanted at most {service.most_prompts} in a request")
    names = [f"{name}[{i}]" if many else name for i in range(len(prompts))]
    return [service.within(verbs.ids_of(service.model.runtime, n, p), n) for n, p in zip(names, prompts)], many


def _chat_logprobs(fields):
    top = fields.get("top_logprobs")
    if not of.flag(fields, "logprobs"):
        if top is not None:
            raise ValueError("top_logprobs: goes with logprobs = true")
        return {}
    return {"logprobs": integer("top_logprobs", 0 if top is None else top, 0, MAX_LOGPROBS)}


def _plain(message):
    """A message without fields that are null, as clients send answers back; a developer's is what templates call a system's."""
    if not isinstance(message, dict):
        return message
    message = {key: value for key, value in message.items() if value is not None or key == "content"}
    return message | {"role": "system"} if message.get("role") == "developer" else message


def _check_used(template, messages, names):
    """Refuse what the model's chat template would pass over; elsewhere that is a warning, which here nobody would read."""
    for name in names:
        if name not in template.variables:
            raise ValueError(f"{name}: the model's chat template does not use {name!r}, so that it would have no effect")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and not template.names_role(role):
            raise ValueError(f"messages[{i}]['role'] = {role!r}: {did_you_mean(role, ROLES)}")


def _template_kwargs(fields):
    given = fields.get("chat_template_kwargs", {})
    if not isinstance(given, dict):
        raise TypeError(f"chat_template_kwargs: found {type(given).__name__}, wanted an object")
    effort = fields.get("reasoning_effort")
    if effort is None:
        return given
    if effort not in EFFORTS:
        raise ValueError(f"reasoning_effort = {effort!r}: wanted one of {', '.join(EFFORTS)}")
    if "reasoning_effort" in given:
        raise ValueError("reasoning_effort: is given twice, in chat_template_kwargs, too")
    return given | {"reasoning_effort": effort}


def check_length(ids, most, name):
    """Ids, if they are not more than the server takes (None: as many as the context holds)."""
    if most is not None and len(ids) > most:
        raise Refusal(400, f"{name}: {len(ids)} tokens, but this server takes at most {most}", "context_length_exceeded", name)
    return ids
