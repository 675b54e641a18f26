"""Types of what the public functions take, for type checkers; nothing here runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
TokenIds: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]
Prompt: TypeAlias = str | TokenIds
Prompts: TypeAlias = Iterable[str] | Iterable[Sequence[int]] | Iterable[NDArray[np.integer[Any]]]
Conversation: TypeAlias = Sequence[Mapping[str, Any]]
Messages: TypeAlias = str | Conversation
Conversations: TypeAlias = Iterable[str] | Iterable[Conversation]
Tools: TypeAlias = Sequence[Mapping[str, Any]]
Progress: TypeAlias = bool | Callable[[int, int], object] | None
LogitsProcessor: TypeAlias = Callable[[tuple[int, ...], FloatArray], FloatArray]
JsonSchema: TypeAlias = Mapping[str, Any] | str | type[Any]
ResponseFormat: TypeAlias = type[Any] | Mapping[str, Any]


class Drafts(Protocol):
    """A Model."""

    @property
    def runtime(self) -> Any: ...


class SamplingOptions(TypedDict, total=False):
    """Fields of `SamplingParams` as keywords of a call."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    min_tokens: int
    logprobs: int | None
    logit_bias: Mapping[int, float] | None
    logits_processor: LogitsProcessor | None
    json_schema: JsonSchema | None
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None
    n: int
    speculate: Literal["prompt", "mtp"] | Drafts | None
