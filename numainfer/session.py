"""Session: a sequence of tokens and its KV cache, kept between calls."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Unpack, overload

import numpy as np

from .arguments import integer
from .errors import ModelClosed
from .prompts import check_messages, split_prompts, to_ids
from .results import Completion
from .serving.sampling import SamplingParams, check_sampling, resolve_params
from .signatures import FloatArray, Messages, Prompt, Prompts, SamplingOptions, Tools
from .stream import TokenStream
from .summary import counted

if TYPE_CHECKING:
    from .model import Model

CHAT_PARAMETERS = ("tools", "stream")  # keywords of `chat` besides those of sampling
_OUT_BYTES = 64 << 20  # most bytes of logits or hidden states per step: a 262k vocabulary takes 1 MiB a row


def check_generate(sampling: Iterable[str], owner: str, own: tuple[str, ...] = ()) -> None:
    """Refuse unknown keywords of ``generate``; one that other libraries have leads to the verb it stands for."""
    if "stream" in sampling:
        raise TypeError(f"unknown parameter 'stream': {owner}.stream(prompt) gives the answer piece by piece")
    check_sampling(sampling, own)


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

    def __init__(self, model: Model) -> None:
        self._model, self._kv = model, None
        self._ids, self._n_past = [], 0
        self._stream, self._turn = None, 0  # a weak reference to the stream that works on the sequence; which one it is
        self._kv = model._new_kv()
        model._sessions.add(self)

    # ---- verbs -----------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...

    @overload
    def generate(
        self, prompt: Prompts, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> list[Completion]: ...

    def generate(
        self, prompt: Prompt | Prompts, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Completion | list[Completion]:
        """As ``Model.generate``, continuing from the common prefix; of a list, each from the one before.

        Returns
        -------
        Completion, or list of Completion
        """
        check_generate(sampling, "session")
        return self._generate(prompt, resolve_params(params, **sampling), reuse=True)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> TokenStream:
        """As ``Model.stream``, continuing from the common prefix.

        Returns
        -------
        TokenStream
        """
        return self._one_stream(prompt, resolve_params(params, **sampling), owned=False)

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: Literal[False] = False, **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: Literal[True], **sampling: Unpack[SamplingOptions]
    ) -> TokenStream: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: bool, **sampling: Unpack[SamplingOptions]
    ) -> Completion | TokenStream: ...  # fmt: skip

    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: bool = False, **sampling: Unpack[SamplingOptions]
    ) -> Completion | TokenStream:  # fmt: skip
        """As ``Model.chat``: give all messages so far; only what is new is computed.

        Returns
        -------
        Completion or TokenStream
        """
        check_sampling(sampling, CHAT_PARAMETERS)
        return self._chat(messages, resolve_params(params, **sampling), tools, stream, owned=False)

    def logits(self, ids: Prompt, *, all: bool = False) -> FloatArray:
        """As ``Model.logits``. With ``all`` every position is computed again.

        Returns
        -------
        float32 array (n_vocab,) or (n, n_vocab)
        """
        model = self._check_open()
        ids = to_ids("ids", ids, model.tokenizer, model.n_vocab, model.n_ctx)
        start = self._begin(ids, reuse=not all)
        if not all:
            for rows in self._prefill(ids, start):
                pass
            return rows
        out = np.empty((len(ids), model.n_vocab), np.float32)
        for at, rows in self._rows(ids):
            out[at : at + len(rows)] = rows
        return out

    def fork(self) -> Session:
        """A second session that starts where this one stands; the two go on independently.

        Returns
        -------
        Session
        """
        model = self._check_open()
        twin = Session.__new__(Session)
        twin._model, twin._kv, twin._stream, twin._turn = model, None, None, 0
        twin._ids, twin._n_past = list(self._ids), self._n_past
        twin._kv = model._copy_kv(self._memory(), self._n_past)
        model._sessions.add(twin)
        return twin

    def rewind(self, n: int) -> None:
        """Forget all but the first ``n`` tokens of ``ids``.

        Raises
        ------
        ValueError
            n is not from 0 to the number of tokens.
        """
        self._check_open()
        n = integer("n", n, 0, len(self._ids))
        self._end_stream()
        self._ids = self._ids[:n]
        self._n_past = min(self._n_past, n)

    @property
    def ids(self) -> list[int]:
        return list(self._ids)

    @property
    def n_past(self) -> int:
        return self._n_past

    @property
    def closed(self) -> bool:
        return self._kv is None

    def close(self) -> None:
        """Free the KV cache. Again, and after the model was closed, it does nothing."""
        kv, self._kv = self._kv, None
        if kv is not None:
            kv.close()

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self):
        if getattr(self, "_kv", None) is not None:
            self.close()

    def __repr__(self) -> str:
        return f"<Session, {counted(len(self._ids), 'token')}{', closed' if self.closed else ''}>"

    # ---- shared with Model -----------------------------------------------------------------------

    def _generate(self, prompt, params, reuse):
        model = self._check_open()
        prompts, is_list = split_prompts("prompt", prompt)
        names = [f"prompt[{i}]" if is_list else "prompt" for i in range(len(prompts))]
        batch = [to_ids(name, p, model.tokenizer, model.n_vocab, model.n_ctx) for name, p in zip(names, prompts)]
        done = []
        for ids in batch:
            if not reuse:
                self._n_past = 0
            done.append(self._run(TokenStream(self, ids, params, owns_session=False)))
        return done if is_list else done[0]

    def _one_stream(self, prompt, params, owned):
        model = self._check_open()
        prompts, is_list = split_prompts("prompt", prompt)
        if is_list:
            raise TypeError("prompt: found a list of prompts, wanted one: a str or token ids (generate takes lists)")
        ids = to_ids("prompt", prompts[0], model.tokenizer, model.n_vocab, model.n_ctx)
        return TokenStream(self, ids, params, owns_session=owned)

    def _chat(self, messages, params, tools, stream, owned):
        model = self._check_open()
        if not isinstance(stream, bool):
            raise TypeError(f"stream = {stream!r}: found {type(stream).__name__}, wanted True or False")
        messages = check_messages(messages, tools)
        ids = model.tokenizer.apply_chat_template(messages, tools=tools, tokenize=True)
        ids = to_ids("messages", ids, model.tokenizer, model.n_vocab, model.n_ctx)
        answer = TokenStream(self, ids, params, owns_session=owned)
        return answer if stream else self._run(answer)

    @staticmethod
    def _run(stream):
        with stream:
            for _ in stream:
                pass
        return stream.result()

    # ---- the sequence ----------------------------------------------------------------------------

    def _check_open(self):
        self._model._check_usable()
        self._memory()
        return self._model

    def _memory(self):
        """The KV cache; another thread may close the session between any two steps."""
        kv = self._kv
        if kv is None:
            self._model._check_usable()  # it is the model that was closed, if any
            raise ModelClosed("the session was closed")
        return kv

    def _end_stream(self):
        stream = self._stream and self._stream()
        if stream is not None:
            if stream.running:  # in another thread, or this is a call from inside its logits_processor
                raise RuntimeError("the session is busy: a stream of it is computing a token just now")
            stream.cancel()
        self._stream = None

    def _begin(self, ids, stream=None, reuse=True):
        """Make ``ids`` the sequence, for ``stream`` if given; how many of them the cache spares us to compute."""
        self._end_stream()
        self._stream = stream and weakref.ref(stream)
        self._turn += 1
        held = np.asarray(self._ids[: min(self._n_past, len(ids) - 1)], np.int32)  # the last gives the logits
        differ = np.flatnonzero(held != ids[: len(held)])
        self._n_past = 0 if not reuse else int(differ[0]) if len(differ) else len(held)
        self._ids = ids.tolist()
        return self._n_past

    def _ended(self, turn, n_prompt, token_ids):
        """The stream of that turn is over: its answer belongs to the sequence, unless a new turn has begun."""
        if turn == self._turn:
            self._ids = self._ids[:n_prompt] + token_ids
            self._stream = None

    def _prefill(self, ids, start, job=None):
        """Compute ids[start:]; yields after each step, None or at last the logits (n_vocab,) of the last position."""
        model, n = self._model, len(ids)
        for a in range(start, n, model.n_batch):
            b = min(a + model.n_batch, n)
            rows = model._step([(self._memory(), ids[a:b], a)], [b - a - 1] if b == n else [], job=job)
            self._n_past = b
            yield rows[0] if b == n else None

    def _rows(self, ids, hidden=False):
        """Compute all positions; yields (first position, float32 array (n, n_vocab or n_embd)) in order."""
        model = self._model
        width = model._engine.n_embd if hidden else model.n_vocab
        size = min(model.n_batch, max(_OUT_BYTES // (4 * width), 1))
        for a in range(0, len(ids), size):
            part = ids[a : a + size]
            rows = model._step([(self._memory(), part, a)], range(len(part)), hidden=hidden)
            self._n_past = a + len(part)
            yield a, rows

    def _logprobs(self, ids):
        """Log-probabilities of ids[1:], float64 (n - 1,)."""
        logprobs = np.empty(len(ids) - 1)
        for at, rows in self._rows(ids):
            for i, row in enumerate(rows[: len(logprobs) - at]):
                logprobs[at + i] = _log_softmax_at(row, ids[at + i + 1])
        return logprobs

    def _pooled(self, ids, pooling):
        """Hidden states over the ids, (n_embd,): their "mean", or the "last"."""
        total = 0.0
        for _, rows in self._rows(ids, hidden=True):
            total = rows.sum(axis=0, dtype=np.float64) + total if pooling == "mean" else rows[-1]
        return total / len(ids) if pooling == "mean" else total

    def _feed(self, token, job):
        """Compute the answer's next token; the logits (n_vocab,) after it."""
        at = self._n_past
        rows = self._model._step([(self._memory(), np.array([token], np.int32), at)], [0], job=job)
        self._ids[at:] = [token]  # fork, in the midst of a stream, copies what is computed
        self._n_past = at + 1
        return rows[0]


def _log_softmax_at(row, i):
    """Log-probability of token i, float; overwrites the logits."""
    top, wanted = row.max(), float(row[i])
    row -= top
    np.exp(row, out=row)
    return wanted - float(top) - float(np.log(row.sum(dtype=np.float64)))
