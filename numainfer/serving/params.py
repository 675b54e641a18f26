"""SamplingParams: how tokens are to be chosen, checked; by what names; and what a file recommends."""

import dataclasses
import functools
import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

import numpy as np

from ..arguments import check_names, integer
from .forms import choices, form_of, json_schema_text, source_text
from ..signatures import Drafts, JsonSchema, LogitsProcessor, SamplingOptions

log = logging.getLogger("numainfer")

MAX_LOGPROBS = 20
"""Most alternatives per token that ``logprobs`` may ask for (vLLM's default limit)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Names, meanings and ranges are vLLM's; the default is greedy (but `chat` without ``params``
    begins with what the file recommends).

    Parameters
    ----------
    max_tokens : int or None
        Most tokens to produce, at least 1; None: as many as the context holds.
    temperature : float
        0: always the most probable token (top_k, top_p, min_p and seed then have no effect). Above 0: logits are
        divided by it.
    top_k : int
        Keep the k most probable tokens; 0 or -1: all.
    top_p : float
        Keep the most probable tokens whose mass first reaches top_p, in (0, 1]; 1: all.
    min_p : float
        Keep tokens at least min_p times as probable as the most probable one, in [0, 1]; 0: all.
    repetition_penalty : float
        Above 0. Logits of tokens in the prompt or the output are divided by it if positive, else multiplied.
    presence_penalty, frequency_penalty : float
        In [-2, 2]. Subtracted from the logit of a token in the output: once, and once per occurrence.
    seed : int or None
        In [0, 2**64). The same seed, prompt and parameters give the same tokens, whatever else runs; None (or -1): a
        new seed for each sequence.
    stop : str or sequence of str
        Strings that end the text; the text then ends before the string.
    stop_token_ids : sequence of int
        Token ids that end the sequence, besides the model's own.
    ignore_eos : bool
        Go on after the model's own end tokens.
    min_tokens : int
        Stop tokens are not chosen until this many tokens were produced.
    logprobs : int or None
        Report the log-probability of each token and this many of the most probable alternatives, 0 to 20. They are the
        model's own: before penalties, temperature and cuts.
    logit_bias : mapping of int to float, or None
        Token id to a number in [-100, 100] that is added to its logit.
    logits_processor : callable or None
        ``f(token_ids, logits) -> logits``: token_ids is the tuple of ids produced so far, logits a float32 array
        (n_vocab,) that may be changed; it must return such an array. Runs before bias, penalties and temperature.
    json_schema, regex, choice, grammar :
        The form of the answer, one of them at most: a JSON schema (dict, JSON text, or a pydantic class; kept as JSON
        text); a regular expression (Rust's, for the whole answer); a list of str, one of which is the answer; a grammar in
        llguidance's kind of Lark. End tokens come only where the form may end, and an answer that is whole and that nothing can
        follow ends at once, whatever ``min_tokens`` and ``ignore_eos`` say, with finish_reason "stop". All else keeps its
        meaning: ``max_tokens`` may cut the answer short. Needs ``pip install 'numainfer[grammar]'``.
    n : int
        Answers to each prompt, 1 to 1024; the prompt is computed once. More than one makes ``generate`` and ``chat`` return Completions,
        for a list all of its first prompt's before those of the second. With a seed answer i has the seed ``(seed + i) % 2**64``, so
        the first is that of ``n=1``.
    speculate : "prompt", "mtp", Model or None
        Tokens are proposed as those that may come next, and one step checks several. "prompt": what followed the last
        tokens where they stood before, in the prompt or in the answer. "mtp": what the layer predicts that some files have for this, of a
        model that was loaded with ``mtp=True``. A Model, much smaller and of the same vocabulary:
        what that one would say. The answer is the same bits; it comes sooner where it repeats much of its prompt, or
        where such predictions come true. Nothing is proposed where that does not pay; ``timings.proposed`` and ``timings.accepted`` tell.
        A model with recurrent layers checks at most 7 tokens at once, each of which takes memory of a state, and drafts for no other.

    Raises
    ------
    TypeError
        An unknown parameter (the message names the nearest known one) or a value of the wrong type.
    ValueError
        A value out of range. The message names parameter, found and wanted.
    """

    max_tokens: int | None = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    logits_processor: LogitsProcessor | None = None
    json_schema: JsonSchema | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    n: int = 1
    speculate: Literal["prompt", "mtp"] | Drafts | None = None

    def __post_init__(self) -> None:
        def put(name, check, *limits):
            object.__setattr__(self, name, check(name, getattr(self, name), *limits))

        put("max_tokens", _optional_integer, 1, 2**31 - 1)
        put("temperature", _real, 0.0, math.inf)
        put("top_k", integer, -1, 2**31 - 1)
        put("top_p", _real, 0.0, 1.0)
        put("min_p", _real, 0.0, 1.0)
        put("repetition_penalty", _real, 0.0, math.inf)
        put("presence_penalty", _real, -2.0, 2.0)
        put("frequency_penalty", _real, -2.0, 2.0)
        put("seed", _optional_integer, -1, 2**64 - 1)
        put("stop", _stop_strings)
        put("stop_token_ids", _token_ids)
        put("ignore_eos", _boolean)
        put("min_tokens", integer, 0, 2**31 - 1)
        put("logprobs", _optional_integer, 0, MAX_LOGPROBS)
        put("logit_bias", _logit_bias)
        put("logits_processor", _optional_callable)
        put("json_schema", json_schema_text)
        put("regex", source_text)
        put("choice", choices)
        put("grammar", source_text)
        put("n", integer, 1, 1024)
        put("speculate", _speculation)
        form_of(self)
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} = 0.0: must be above 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens = {self.min_tokens}: must be at most max_tokens = {self.max_tokens}")
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)

    def _changed(self):
        """What differs from the defaults, by name."""
        return [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    def __repr__(self) -> str:
        return f"SamplingParams({', '.join(f'{name}={value!r}' for name, value in self._changed())})"

    def _repr_html_(self) -> str:
        from .. import looks

        changed = [(name, repr(value)) for name, value in self._changed()]
        return looks.facts("SamplingParams" if changed else "SamplingParams: the defaults", changed)

    def replace(self, **changes: Unpack[SamplingOptions]) -> "SamplingParams":
        """A copy with these ``changes``, checked again.

        Returns
        -------
        SamplingParams
        """
        check_sampling(changes)
        return dataclasses.replace(self, **changes)


    def each(self) -> list["SamplingParams"]:
        """The parameters of each of the ``n`` answers, whose own n is 1.

        Returns
        -------
        list of SamplingParams
        """
        if self.n == 1:
            return [self]
        seeds = [None if self.seed is None else (self.seed + i) % 2**64 for i in range(self.n)]
        return [dataclasses.replace(self, n=1, seed=seed) for seed in seeds]


_generated_init = SamplingParams.__init__


@functools.wraps(_generated_init)
def _init(self, **parameters):
    check_sampling(parameters)  # the generated __init__ would not name the near miss
    _generated_init(self, **parameters)


SamplingParams.__init__ = _init  # type: ignore[method-assign]


def resolve_params(
    params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
) -> SamplingParams:
    """The parameters of a call ``generate(prompt, params, **sampling)``: ``params`` with the keywords laid over it.

    Parameters
    ----------
    params : SamplingParams or None
        None: the defaults.
    **sampling
        Fields of SamplingParams.

    Returns
    -------
    SamplingParams

    Raises
    ------
    TypeError, ValueError
        As SamplingParams; also if ``params`` is something else.
    """
    if params is None:
        return SamplingParams(**sampling)
    if not isinstance(params, SamplingParams):
        raise TypeError(f"params: found {type(params).__name__}, wanted SamplingParams or None")
    return params.replace(**sampling) if sampling else params


# Keys of GGUF, those of llama.cpp's samplers that are ours, too.
_OF_FILES = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def sampling_of_file(metadata: Mapping[str, object]) -> dict[str, float]:
    """The sampling that a file recommends.

    Parameters
    ----------
    metadata : mapping
        The file's key-value pairs.

    Returns
    -------
    dict
        Fields of SamplingParams. A value that is out of their range is left out, with a line in the log.
    """
    found = {}
    for field, key in _OF_FILES.items():
        value = metadata.get(key)
        if value is None:
            continue
        if isinstance(value, (float, np.floating)):
            value = float(f"{value:.7g}")  # 0.6, which the file holds as 0.60000002
        try:
            found[field] = getattr(SamplingParams(**{field: value}), field)  # type: ignore[arg-type]  # it checks them
        except (TypeError, ValueError) as e:
            log.warning("%s of the file is left out: %s", key, e)
    return found


# Names that other packages have for parameters of `generate` and `chat`.
_ELSEWHERE = {
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "sampling_params": "params",
    "generation_config": "params",
    "prompts": "prompt",
    "inputs": "prompt",
    "input_ids": "prompt",
    "prompt_token_ids": "prompt",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "min_new_tokens": "min_tokens",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "eos_token_id": "stop_token_ids",
    "logits_processors": "logits_processor",
    "top_logprobs": "logprobs",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "structured_outputs": "json_schema, regex, choice and grammar ask for a form",
    "guided_decoding": "json_schema, regex, choice and grammar ask for a form",
    "response_format": "chat takes it; elsewhere json_schema does the same",
    "response_model": "json_schema takes a pydantic class",
    "choices": "choice",
    "use_tqdm": "progress",
    "system": 'a message {"role": "system", "content": ...} before the others',
    "system_prompt": 'a message {"role": "system", "content": ...} before the others',
    "do_sample": "temperature above 0 samples, 0 is greedy",
    "num_beams": "there is no beam search",
    "num_return_sequences": "n",
    "use_beam_search": "there is no beam search",
    "model": "none: the model is the one whose method this is",
    "prompt": "chat takes messages, or a str, which is one message of the user",
    "chat_template": "chat takes it as template=",
    "enable_thinking": 'chat takes variables of the template as chat_template_kwargs={"enable_thinking": ...}',
    "thinking": 'chat takes variables of the template as chat_template_kwargs={"thinking": ...}',
    "reasoning_effort": 'chat takes variables of the template as chat_template_kwargs={"reasoning_effort": ...}',
    "documents": 'chat takes variables of the template as chat_template_kwargs={"documents": ...}',
    "functions": "chat takes tools=, a list of JSON schemas",
    "function_call": "none: regex or json_schema holds an answer to a call",
    "tool_choice": "none: regex or json_schema holds an answer to a call",
    "echo": "none: an answer does not repeat its prompt; score(text) has the probabilities of a text",
    "prompt_logprobs": "none: score(text) has the log-probabilities of a text",
    "images": "none: numainfer runs language models, which see no images",
    "streamer": "stream(prompt) gives the answer piece by piece",
    "callback": "stream(prompt) gives the answer piece by piece",
    "timeout": "none: stream(prompt) gives the answer piece by piece, and its cancel() ends it from any thread",
    "best_of": "there is no best_of: n=4 gives four answers, and with logprobs=0 the log-probabilities to choose by",
}


def check_sampling(given, others=()):
    """Raise TypeError if a keyword is no field of SamplingParams.

    Parameters
    ----------
    given : iterable of str
        Keywords that a call does not take itself.
    others : iterable of str
        Those that it does take: near misses of them count, too.
    """
    own = [field.name for field in dataclasses.fields(SamplingParams)]
    wrong = [name for name in given if name not in own]
    if wrong:
        check_names("parameter" if others else "sampling parameter", wrong, [*others, *own], _ELSEWHERE)


def _optional_integer(name, value, least, most):
    return None if value is None else integer(name, value, least, most)


def _real(name, value, least, most):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} = {value}: must be finite")
    if not least <= number <= most:
        limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} = {value}: must be {limits}")
    return number


def _boolean(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted True or False")
    return bool(value)


def _items(name, value, wanted):
    """The items of a sequence (not of a string), as a tuple; none for None."""
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)):
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted {wanted}")
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted {wanted}") from None


def _stop_strings(name, value):
    strings = (value,) if isinstance(value, str) else _items(name, value, "a str or a sequence of str")
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"{name} = {value!r}: found {type(string).__name__} {string!r}, wanted str")
        if not string:
            raise ValueError(
                f"{name} = {value!r}: an empty string would stop everywhere; wanted at least one character"
            )
    return strings


def _token_ids(name, value):
    ids = _items(name, value, "a sequence of int")
    return tuple(integer(f"{name}[{i}]", item, 0, 2**31 - 1) for i, item in enumerate(ids))


def _logit_bias(name, value):
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted a mapping of token id to number")
    return {
        integer(f"{name} key", token, 0, 2**31 - 1): _real(f"{name}[{token!r}]", bias, -100.0, 100.0)
        for token, bias in value.items()
    }


def _speculation(name, value):
    from .runtime import Runtime  # which stands above: it knows requests, and these sampling

    if value is None or isinstance(value, str) and value in ("prompt", "mtp") or isinstance(getattr(value, "runtime", None), Runtime):
        return value
    raise ValueError(f'{name} = {value!r}: must be "prompt", "mtp", a Model of the same vocabulary that drafts, or None')


def _optional_callable(name, value):
    if value is not None and not callable(value):
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted a callable f(token_ids, logits)")
    return value
