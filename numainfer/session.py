"""Session: a sequence of tokens and its KV cache, kept between calls."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Unpack, overload

from . import verbs
from .arguments import integer
from .results import Completion, Completions
from .serving.forms import response_form
from .serving.params import SamplingParams, check_sampling, resolve_params
from .serving.sequence import Sequence
from .signatures import FloatArray, Messages, Prompt, Prompts, ResponseFormat, SamplingOptions, Tools
from .stream import TokenStream
from .summary import counted


class Session:
    """A conversation that remembers what was computed for it. Made by ``Model.session()``.

    The verbs are the model's, and like the model's they take the *whole* prompt or conversation each time. What the
    KV cache already holds of its beginning is not computed again: the longest common prefix counts, token by token, so
    a prompt that shares nothing just starts afresh. Results are the same bits as without a session.

    One call at a time. A new call ends a stream of the session that is not finished yet.

    Attributes
    ----------
    ids : list of int
        The sequence: the last prompt and the answer to it.
    n_past : int
        How many of ``ids`` the KV cache holds, from the first. (Not the last token of an answer: it was not fed back.)
    """

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence

    # ---- verbs -----------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...

    @overload
    def generate(
        self, prompt: Prompts, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Completions: ...

    def generate(
        self, prompt: Prompt | Prompts, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Completion | Completions:
        """As ``Model.generate``, continuing from the common prefix; of a list, each from the one before.

        Returns
        -------
        Completion, or Completions, a list of them
        """
        verbs.check_generate(sampling, "session")
        own = resolve_params(params, **sampling)
        self._sequence.check()
        return verbs.generate(self._sequence.runtime, prompt, own, self._sequence)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> TokenStream:
        """As ``Model.stream``, continuing from the common prefix.

        Returns
        -------
        TokenStream
        """
        own = resolve_params(params, **sampling)
        self._sequence.check()
        return verbs.stream(self._sequence.runtime, prompt, own, self._sequence)

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[False] = False,
        **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[True],
        **sampling: Unpack[SamplingOptions]
    ) -> TokenStream: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: bool,
        **sampling: Unpack[SamplingOptions]
    ) -> Completion | TokenStream: ...  # fmt: skip

    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: bool = False,
        **sampling: Unpack[SamplingOptions]
    ) -> Completion | TokenStream:  # fmt: skip
        """As ``Model.chat``: give all messages so far; only what is new is computed.

        Returns
        -------
        Completion or TokenStream
        """
        check_sampling(sampling, verbs.CHAT_PARAMETERS)
        sampling = verbs.chat_sampling(self._sequence.runtime, params, sampling)
        written = {"tools": tools, "template": template, "chat_template_kwargs": chat_template_kwargs}
        own = resolve_params(params, **response_form(response_format, sampling))
        self._sequence.check()
        return verbs.chat(self._sequence.runtime, messages, own, stream, written, self._sequence)

    def logits(self, ids: Prompt, *, all: bool = False) -> FloatArray:
        """As ``Model.logits``. With ``all`` every position is computed again.

        Returns
        -------
        float32 array (n_vocab,) or (n, n_vocab)
        """
        self._sequence.check()
        return verbs.logits(self._sequence.runtime, ids, all, self._sequence)

    def fork(self) -> Session:
        """A second session that starts where this one stands; the two go on independently.

        Returns
        -------
        Session
        """
        self._sequence.check()
        return Session(self._sequence.fork())

    def rewind(self, n: int) -> None:
        """Forget all but the first ``n`` tokens of ``ids``.

        Raises
        ------
        ValueError
            n is not from 0 to the number of tokens.
        """
        self._sequence.check()
        self._sequence.rewind(integer("n", n, 0, len(self._sequence.ids)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens and what was computed of them to a file, which ``Model.restore`` reads.

        The file is the same for every placement and number of nodes. It appears under its name when it is complete, in place of one that
        stood there. Of a session that streams it is what is computed by now.

        Parameters
        ----------
        path : str or os.PathLike

        Raises
        ------
        OSError
            The file cannot be written.
        ModelClosed, ForkedProcess
        ModelNotFound, CorruptModel
            The model's file is not there any more, or was changed: the saved file could not tell which model it is of.
        """
        from .serving import saved

        self._sequence.check()
        with contextlib.closing(self._sequence.fork()) as still:  # while its owner goes on
            saved.save(path, still.runtime.engine, still.cache, still.ids)

    @property
    def ids(self) -> list[int]:
        return list(self._sequence.ids)

    @property
    def n_past(self) -> int:
        return self._sequence.n_past

    @property
    def closed(self) -> bool:
        return self._sequence.closed

    def close(self) -> None:
        """Free the KV cache. Again, and after the model was closed, it does nothing."""
        self._sequence.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Session can be neither pickled nor copied: its memory is this process's. fork() makes a second one that "
                        "starts where this one stands")

    def __enter__(self) -> Session:
        self._sequence.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session, {counted(len(self._sequence.ids), 'token')}{', closed' if self.closed else ''}>"

    def _repr_html_(self) -> str:
        from . import looks

        title = f"Session{' (closed)' if self.closed else ''}: {counted(len(self.ids), 'token')}, {self.n_past} of them in the KV cache"
        text = self._sequence.runtime.tokenizer.decode(self.ids, skip_special_tokens=False)
        return looks.foldable(title, looks.preformatted(text))
