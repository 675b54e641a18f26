"""SamplingParams: what a caller may ask of the choice of tokens. Sampler: the choice itself, in csrc/sample.c."""

import dataclasses
import functools
import logging
import math
import numbers
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

import numpy as np

from .. import _core
from ..arguments import check_names, integer
from ..errors import NumaInferError
from .forms import choices, form_of, json_schema_text, source_text
from .masks import Form
from ..signatures import Drafts, FloatArray, JsonSchema, LogitsProcessor, SamplingOptions, TokenIds

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
    speculate : "prompt", Model or None
        Tokens are proposed as those that may come next, and one step checks several. "prompt": what followed the last
        tokens where they stood before, in the prompt or in the answer. A Model, much smaller and of the same vocabulary:
        what that one would say. The answer is the same bits; it comes sooner where it repeats much of its prompt, or
        where the two models agree. Nothing is proposed where that does not pay; ``timings.proposed`` and ``timings.accepted`` tell.

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
    speculate: Literal["prompt"] | Drafts | None = None

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

    if value is None or isinstance(value, str) and value == "prompt" or isinstance(getattr(value, "runtime", None), Runtime):
        return value
    raise ValueError(f'{name} = {value!r}: must be "prompt", a Model of the same vocabulary that drafts, or None')


def _optional_callable(name, value):
    if value is not None and not callable(value):
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted a callable f(token_ids, logits)")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The model's own log-probabilities at one position: natural logarithm, before penalties, temperature and cuts.

    Attributes
    ----------
    token_id : int
        The token that was chosen.
    logprob : float
        Its log-probability.
    rank : int
        1 for the most probable token; equal ones rank by id.
    top : tuple of (int, float)
        The most probable token ids and their log-probabilities, best first; as many as ``logprobs`` asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class _PerThread(threading.local):
    """Scratch memory for the vocabulary used last: samplers of one thread never run at the same time."""

    scratch = None

    def for_vocab(self, n_vocab):
        if self.scratch is None or self.scratch.n_vocab != n_vocab:
            self.scratch = _core.SampleScratch(n_vocab)
        return self.scratch


_per_thread = _PerThread()
scratch_of_thread = _per_thread.for_vocab


class Sampler:
    """Chooses the tokens of one sequence. Not for two threads at once.

    Parameters
    ----------
    params : SamplingParams
    n_vocab : int
        Number of logits.
    prompt_ids : sequence of int
        The prompt, for the repetition penalty.
    stop_ids : sequence of int
        Every id that ends this sequence (the model's own, unless ``ignore_eos``, and ``stop_token_ids``): not chosen
        before ``min_tokens``.
    form : Form or None
        What else the tokens must fit.
    max_tokens : int
        The sequence ends with so many; 0: never.

    Attributes
    ----------
    core : _core.Sampler
        What `_core.choose` takes, and `finish_reason` is a part of.
    token_ids : list of int
        Produced so far.
    seed : int
        The seed in use: ``params.seed`` or the one drawn for this sequence.
    special : bool
        Before and after each choice there is something to do in Python: `prepare` and `settle`.

    Raises
    ------
    ValueError
        A token id outside [0, n_vocab).
    """

    @_core.in_default_floats
    def __init__(
        self, params: SamplingParams, n_vocab: int, prompt_ids: TokenIds = (), stop_ids: Sequence[int] = (), form: Form | None = None,
        max_tokens: int = 0,
    ) -> None:  # fmt: skip
        self.params, self.n_vocab, self._form = params, n_vocab, form
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.special = form is not None or params.logits_processor is not None
        bias = params.logit_bias or {}
        self.core = _core.Sampler(
            n_vocab,
            _id_array("prompt", prompt_ids, n_vocab),
            _id_array("logit_bias", list(bias), n_vocab),
            np.fromiter(bias.values(), np.float32, len(bias)),
            _id_array("stop token", stop_ids, n_vocab),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            min_tokens=params.min_tokens,
            max_tokens=max_tokens,
            seed=self.seed,
        )
        self.core.holds = self.special
        if params.logprobs is not None:
            self.core.n_logprobs = params.logprobs

    @property
    def token_ids(self) -> list[int]:
        return self.core.token_ids

    def sample(self, logits: FloatArray) -> tuple[int, TokenLogprob | None]:
        """Chooses the next token and counts it.

        Parameters
        ----------
        logits : float32 array, shape (n_vocab,), C-contiguous, writable
            As the model gave them. Written to meanwhile, but the same again on return.

        Returns
        -------
        token_id : int
        logprob : TokenLogprob or None
            None unless ``params.logprobs`` is set.

        Raises
        ------
        NumaInferError
            A logit is NaN, or all are -inf, or the form allows nothing.
        TypeError, ValueError
            ``logits``, or what the logits processor returned, is not such an array.
        """
        self._check("logits", logits)
        given = self.prepare(logits) if self.special else None
        found = self._choose(logits, given)
        if self.core.holds:
            token, logprob, reason = self.settle(found, logits, given)
            self.core.publish(token, logprob, reason)
        elif found is not None:
            raise self.error(found)
        return self.token_ids[-1], self.logprob(-1)

    def prepare(self, logits):
        """What `_core.choose` is to be given for a row; parameters and errors as for `sample`.

        Returns
        -------
        (float32 array (n_vocab,) or None, uint32 array or None)
            Other logits, and the mask of the form.
        """
        instead, mask = None, None
        if self.params.logits_processor is not None:
            instead = self._processed(logits)
        if self._form is not None and self.params.temperature > 0:
            mask = self._form.mask()
        return instead, mask

    def settle(self, found, logits, given):
        """Takes in what `_core.choose` found.

        Parameters
        ----------
        found : tuple or int
        logits, given :
            The row that it chose from, and what `prepare` had for it, or None.

        Returns
        -------
        token, logprob, reason
            As `_core.Sampler.publish` takes them.

        Raises
        ------
        NumaInferError
            As for `sample`.
        """
        if not isinstance(found, tuple):
            raise self.error(found)
        form = self._form
        if form is not None:
            if given[1] is None and not form.allows(found[0]):  # of equal ones it is the lowest among those that are allowed, too
                found = self._choose(logits, (given[0], form.mask()))
                if not isinstance(found, tuple):
                    raise self.error(found)
            form.accept(found[0], ahead=self.params.temperature > 0)
        token, logprob = found
        reason = self.core.accept(token)
        return token, logprob, "stop" if form is not None and form.complete else reason

    def _choose(self, logits, given):
        given = None if given is None else {0: given}
        (found,) = _core.choose(None, scratch_of_thread(self.n_vocab), [self.core], logits[None], given=given)
        return found

    def accept(self, token_id: int) -> None:
        """Counts a token that was chosen elsewhere."""
        if self._form is not None:
            self._form.accept(token_id, ahead=self.params.temperature > 0)
        self.core.publish(token_id, None, self.core.accept(token_id))

    def logprob(self, i: int) -> TokenLogprob | None:
        """The log-probability of token i of ``token_ids``."""
        return None if self.params.logprobs is None else TokenLogprob(*self.core.logprobs[i])

    def distribution(self, logits: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`sample` would draw from.

        Parameters
        ----------
        logits : float32 array (n_vocab,)
            As for :meth:`sample`.

        Returns
        -------
        ids : int32 array (n,)
            Tokens with a chance, ascending.
        probs : float64 array (n,)
            Their probabilities; the sum is 1.
        """
        self._check("logits", logits)
        ids, probs = np.empty(self.n_vocab, np.int32), np.empty(self.n_vocab)
        if self.params.logits_processor is not None:
            logits = self._processed(logits)
        if self._form is not None:
            logits, unmasked = np.empty_like(logits), logits
            _core.mask_logits(unmasked, self._form.mask(), logits)
        n = self.core.distribution(logits, scratch_of_thread(self.n_vocab), ids, probs)
        if n < 0:
            raise self.error(n)
        return ids[:n].copy(), probs[:n].copy()

    def _processed(self, logits):
        result = self.params.logits_processor(tuple(self.token_ids), logits.copy())
        self._check("the result of logits_processor", result)
        return result

    def _check(self, name, logits):
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
            found = f"{logits.dtype} array" if isinstance(logits, np.ndarray) else type(logits).__name__
            raise TypeError(f"{name}: found {found}, wanted a float32 array of shape ({self.n_vocab},)")
        if logits.shape != (self.n_vocab,):
            raise ValueError(f"{name}: found shape {logits.shape}, wanted ({self.n_vocab},)")
        if not logits.flags.c_contiguous or not logits.flags.writeable:
            raise ValueError(f"{name}: found a read-only or strided array, wanted a contiguous, writable one")

    def error(self, code):
        """The exception for SAMPLE_NAN or SAMPLE_EMPTY."""
        position = len(self.token_ids)
        if code == _core.SAMPLE_NAN:
            return NumaInferError(f"logits of output token {position}: found NaN, wanted numbers")
        whose = "all" if self._form is None else "all that the answer's form allows"
        return NumaInferError(f"logits of output token {position}: {whose} are -inf, so no token can be chosen")


def _id_array(name, ids, n_vocab):
    array = np.asarray(ids, np.int64)
    bad = (array < 0) | (array >= n_vocab)
    if bad.any():
        raise ValueError(f"{name} id {array[bad][0]}: must be from 0 to {n_vocab - 1}")
    return array.astype(np.int32)
