"""What the verbs of a model give back: plain values that outlive the model."""

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arguments import unknown_attribute
from .summary import counted, short_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """A token's log-probability at one position: the model's own, before penalties, temperature and cuts.

    Attributes
    ----------
    token_id : int
    text : str
        What the token stands for; U+FFFD in place of bytes that are only part of a character.
    logprob : float
        Natural logarithm.
    rank : int
        1 for the most probable token.
    top : tuple of Logprob
        The most probable tokens there, best first, as many as ``logprobs`` asked for; their own ``top`` is empty.
    """

    token_id: int
    text: str
    logprob: float
    rank: int
    top: tuple["Logprob", ...] = ()

    def _repr_html_(self) -> str:
        return Logprobs([self])._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        plain: dict[str, Any] = {"token_id": self.token_id, "text": self.text, "logprob": self.logprob, "rank": self.rank}
        return plain | ({"top": [t.to_dict() for t in self.top]} if self.top else {})


class Logprobs(tuple[Logprob, ...]):
    """The Logprobs of an answer's tokens: a tuple that a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from . import looks

        return looks.logprobs(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens.

    Attributes
    ----------
    prompt_tokens : int
    completion_tokens : int
        Produced, the end token included.
    cached_tokens : int
        Of the prompt, those that were not computed for it: a session had them, or another sequence began in the same way.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def _repr_html_(self) -> str:
        from . import looks

        cached = f", {self.cached_tokens} of them found" if self.cached_tokens else ""
        return looks.facts("Usage", [("prompt", counted(self.prompt_tokens, "token") + cached),
                                     ("answer", counted(self.completion_tokens, "token"))])  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds; time that a stream's consumer spends between chunks does not count.

    Of a list of prompts: the steps that the answer took part in, each counted whole, though others shared it.

    Attributes
    ----------
    prompt_tokens : int
        Prompt tokens that were computed (and not found in the KV cache).
    prompt_seconds : float
        Computing them.
    generated_tokens : int
        Tokens after the first, whose logits come with the prompt.
    generation_seconds : float
        Computing and choosing those.
    time_to_first_token : float or None
        From the call (of a stream: its first ``next``) to the first token, waiting for others included; None: no token.
    mode : str or None
        "latency": all nodes worked on it together; "throughput": one node by itself, beside the others (on one node the
        two are the same, and "auto" counts as "latency"). None: a prompt of a list that was not begun.
    proposed, accepted : int
        Tokens that were proposed, where ``speculate`` asks for it, and those of them that the answer went on with: each of these saved a
        step.
    """

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float
    time_to_first_token: float | None
    mode: str | None = None
    proposed: int = 0
    accepted: int = 0

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """None where nothing was computed."""
        return _rate(self.prompt_tokens, self.prompt_seconds)

    @property
    def generation_tokens_per_second(self) -> float | None:
        """None where nothing was generated after the first token."""
        return _rate(self.generated_tokens, self.generation_seconds)

    def _repr_html_(self) -> str:
        from . import looks

        def took(n, seconds, rate):
            return f"{counted(n, 'token')} in {seconds:.3f} s{'' if rate is None else f', {rate:.1f} tokens/s'}"

        first = self.time_to_first_token
        pairs = [("first token", "none" if first is None else f"after {first:.3f} s"),
                 ("prompt", took(self.prompt_tokens, self.prompt_seconds, self.prompt_tokens_per_second)),
                 ("after the first", took(self.generated_tokens, self.generation_seconds, self.generation_tokens_per_second)),
                 ("mode", self.mode), ("proposed", f"{self.proposed}, accepted {self.accepted}" if self.proposed else None)]  # fmt: skip
        return looks.facts("Timings", [(name, value) for name, value in pairs if value is not None])


def _rate(n, seconds):
    return n / seconds if n and seconds > 0 else None


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants called.

    Attributes
    ----------
    id : str
        The model's own, if it gave one; else nine characters, the same for the same prompt and the same place in its answer.
    name : str
        As the model wrote it: whether there is such a tool is the caller's to see.
    arguments : dict
    """

    id: str
    name: str
    arguments: dict[str, Any] = dataclasses.field(hash=False)

    def _repr_markdown_(self) -> str:
        from . import looks

        return looks.call(self)

    def to_dict(self) -> dict[str, Any]:
        """As in OpenAI's messages: the arguments are JSON in a str."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}


_ELSEWHERE = {  # attributes of other packages' answers, and what stands for them here
    "choices": "a Completion is one answer; its text is .text",
    "outputs": "a Completion is one answer; its text is .text",
    "message": "the answer's text is .text; to_message() makes a message of it",
    "content": "the answer's text is .text",
    "prompt_token_ids": "the number of the prompt's tokens is .usage.prompt_tokens",
    "cumulative_logprob": "sum(p.logprob for p in completion.logprobs)",
    "generated_text": "the answer's text is .text",
    "reasoning_content": "what the model thought is .reasoning",
    "function_call": "calls of tools are .tool_calls",
    "stop_reason": "why it ended is .finish_reason",
    "tokens": "the tokens are .token_ids",
} | {name: "a Completion is no str; str(completion) is its text" for name in dir(str) if not name.startswith("_")}


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Completion:
    """A finished (or interrupted) answer; ``str()`` is its text.

    Attributes
    ----------
    text : str
        Without end tokens and without the stop string; of ``chat`` what is for the user, without thinking and calls of tools.
    token_ids : tuple of int
        Everything that was produced: also the end token, also tokens of the stop string, of thinking and of calls.
    finish_reason : str or None
        "stop": an end token or a stop string; "tool_calls": the same, and there are some; "length": max_tokens are reached or
        the context is full; "cancelled"; "error": of a list of prompts, the one that failed; None: a stream that still runs.
    logprobs : tuple of Logprob, or None
        One for each of ``token_ids``, if ``logprobs`` was asked for.
    usage : Usage
    timings : Timings
    error : Exception or None
        With finish_reason "error": what a call with this prompt alone would have raised.
    reasoning : str or None
        Of ``chat``: what the model thought before it answered.
    tool_calls : tuple of ToolCall
        Of ``chat`` with ``tools``.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    logprobs: tuple[Logprob, ...] | None
    usage: Usage
    timings: Timings
    error: Exception | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def __str__(self) -> str:
        return self.text

    if not TYPE_CHECKING:  # a checker that saw it would take any name for known

        def __getattr__(self, name):
            unknown_attribute(self, name, _ELSEWHERE)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"<Completion, error: {type(self.error).__name__}: {self.error}>"
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        calls = "".join(f", calls {call.name}" for call in self.tool_calls)
        return f"<Completion {text!r}{calls}, {counted(len(self.token_ids), 'token')}, {self.finish_reason or 'unfinished'}>"

    def to_message(self) -> dict[str, Any]:
        """The answer as a message of a conversation, for the next ``chat``: ``role``, ``content`` and, where there are such,
        ``reasoning_content`` and ``tool_calls`` in OpenAI's form."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message

    def _repr_markdown_(self) -> str:
        from . import looks

        return looks.answer(self)

    def to_dict(self) -> dict[str, Any]:
        """A dict that ``json`` can write, the rates included."""
        timings = dataclasses.asdict(self.timings)
        timings["prompt_tokens_per_second"] = self.timings.prompt_tokens_per_second
        timings["generation_tokens_per_second"] = self.timings.generation_tokens_per_second
        plain: dict[str, Any] = {"text": self.text, "token_ids": list(self.token_ids), "finish_reason": self.finish_reason}
        if self.reasoning is not None:
            plain["reasoning"] = self.reasoning
        if self.tool_calls:
            plain["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.logprobs is not None:
            plain["logprobs"] = [p.to_dict() for p in self.logprobs]
        if self.error is not None:
            plain["error"] = f"{type(self.error).__name__}: {self.error}"
        return plain | {"usage": dataclasses.asdict(self.usage), "timings": timings}


class Completions(list[Completion]):
    """The answers to a list of prompts, in order: a list that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from . import looks

        return looks.answers(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream; ``str()`` is its text. All chunks but the last have some text, thinking or call.

    Attributes
    ----------
    text : str
        Whole characters that no stop string, thinking or call can claim any more.
    token_ids : tuple of int
        Tokens produced since the previous chunk.
    finish_reason : str or None
        In the last chunk, as in Completion; else None.
    logprobs : tuple of Logprob, or None
        One for each of ``token_ids``, if asked for.
    reasoning : str
        The next piece of the model's thinking, as text.
    tool_calls : tuple of ToolCall
        Those that became complete.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    logprobs: tuple[Logprob, ...] | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True, slots=True)
class LaneStats:
    """What a lane of workers does just now.

    Attributes
    ----------
    nodes : tuple of str
        Whose workers they are.
    mode : str
        "latency": all nodes together; "throughput": one by itself.
    sequences : int
        That have begun and not ended.
    paused : int
        Of those, how many are computed no further until somebody reads what there is.
    tokens_per_second : float
        Of all its answers, in the last seconds.
    kv_bytes : int
        KV memory of its sequences, about.
    proposed, accepted : int
        By speculation, of all answers so far.
    """

    nodes: tuple[str, ...]
    mode: str
    sequences: int
    paused: int
    tokens_per_second: float
    kv_bytes: int
    proposed: int = 0
    accepted: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PrefixStats:
    """What is kept of sequences for others that begin in the same way, and what they found, since the model was loaded.

    Attributes
    ----------
    bytes, most_bytes : int
        KV memory that it takes, blocks included that sequences share which go on; and its bound, ``prefix_cache`` of `load`.
    sequences, hits : int
        That began, and those of them that found some of their beginning.
    tokens : int
        That those did not compute.
    """

    bytes: int
    most_bytes: int
    sequences: int
    hits: int
    tokens: int


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Stats:
    """What a model computes just now. Made by ``Model.stats()``.

    Attributes
    ----------
    lanes : tuple of LaneStats
        That of all nodes; and those of single nodes, once they have been used.
    waiting : int
        Sequences that have not begun.
    mode : str
        Where the next that may choose will go: "latency" or "throughput".
    prefixes : PrefixStats
    """

    lanes: tuple[LaneStats, ...]
    waiting: int
    mode: str
    prefixes: PrefixStats

    def __repr__(self) -> str:
        lanes = "; ".join(f"node {'+'.join(lane.nodes)}: {counted(lane.sequences, 'sequence')}, {lane.tokens_per_second:.1f} tokens/s, "
                          f"KV {short_bytes(lane.kv_bytes)}" for lane in self.lanes)  # fmt: skip
        p = self.prefixes
        found = f"; prefixes {short_bytes(p.bytes)}, found by {p.hits} of {counted(p.sequences, 'sequence')}"
        return f"<Stats, {self.waiting} waiting, mode {self.mode}; {lanes}{found}>"

    def _repr_html_(self) -> str:
        from . import looks

        head = ("nodes", "mode", "sequences", "paused", "tokens/s", "KV memory")
        rows = [(" + ".join(lane.nodes), lane.mode, lane.sequences, lane.paused, f"{lane.tokens_per_second:.1f}",
                 short_bytes(lane.kv_bytes)) for lane in self.lanes]  # fmt: skip
        p = self.prefixes
        found = f"prefixes: {short_bytes(p.bytes)} of at most {short_bytes(p.most_bytes)}; found by {p.hits} of {p.sequences}"
        return looks.Html(looks.table(head, rows, left=(0, 1)) + f"<p>{self.waiting} waiting; mode {self.mode}; {found}</p>")

    def to_dict(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, repr=False, eq=False)
class Score:
    """How probable a text is to the model.

    Attributes
    ----------
    token_ids : int32 array (n,)
    logprobs : float64 array (n - 1,)
        ``logprobs[i]``: natural log-probability of token ``i + 1`` after those before it. The first has none.
    texts : tuple of str
        What each token adds to the text: nothing where a character is not complete yet.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float64]
    texts: tuple[str, ...] = ()

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood in nats per token."""
        return -float(self.logprobs.mean())

    @property
    def perplexity(self) -> float:
        """exp(nll); inf where that overflows."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf

    def __repr__(self) -> str:
        return f"<Score of {counted(len(self.token_ids), 'token')}: nll {self.nll:.4f}, perplexity {self.perplexity:.4g}>"

    def _repr_html_(self) -> str:
        from . import looks

        return looks.scored(repr(self).strip("<>"), self.texts, self.logprobs)
