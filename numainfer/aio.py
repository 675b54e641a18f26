"""The verbs of a model for asyncio: answers that are awaited, or read as they come.

No thread belongs to a request. The loop that runs the model's steps calls back after a step that brought something new; a
`_Bell` passes that on to the event loop, once for all requests of a step. Text is made where it is read, in the event loop.
Prompts are rendered and tokenized in asyncio's own small pool of threads, so that a long one holds nobody up.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from . import verbs
from .errors import ForkedProcess, ModelClosed
from .prompts import split_prompts
from .results import Chunk, Completion, Completions
from .serving.forms import response_form
from .serving.generation import not_begun
from .serving.lists import check_params, params_each
from .serving.answer import AHEAD, Answer
from .serving.requests import Rows
from .serving.params import SamplingParams, check_sampling, resolve_params
from .signatures import Conversations, Messages, Prompt, Prompts, ResponseFormat, SamplingOptions, Tools
from .text.messages import split_conversations

if TYPE_CHECKING:
    from .serving.runtime import Runtime


class _Bell:
    """Wakes readers in one event loop, from any thread: one call into the loop for all that became ready meanwhile."""

    def __init__(self, loop):
        self._loop, self._ready, self._rung = weakref.ref(loop), collections.deque(), False

    def ring(self, event):
        """Set an asyncio.Event of the loop; False where the loop was closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():  # perhaps before it woke those that were rung for
            return False
        self._ready.append(event)
        if not self._rung:
            self._rung = True
            try:
                loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # it was closed just now
                return False
        return True

    def _wake(self):
        self._rung = False  # first: who comes from now on rings again
        while self._ready:
            self._ready.popleft().set()


_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell] = weakref.WeakKeyDictionary()
_bells_lock = threading.Lock()


def _bell():
    """The bell of the event loop that runs."""
    loop = asyncio.get_running_loop()
    with _bells_lock:
        found = _bells.get(loop)
        if found is None:
            found = _bells[loop] = _Bell(loop)
        return found


Prepared = tuple[NDArray[np.int32], Any]
"""A prompt's ids, and the Reader of its answer or None."""
Prepare = Callable[[], Prepared]
"""Called in a thread of asyncio's pool."""


class AsyncTokenStream(AsyncIterator[Chunk]):
    """One answer piece by piece, for ``async for``; each piece is a `Chunk` with all that is new since the last.

    The answer is computed at most 16 tokens ahead of its reader. ``cancel``, cancelling the task that reads, leaving an ``async with``
    block and dropping the stream end it within 50 ms. Made by ``Model.astream`` and ``Model.achat(..., stream=True)``.
    """

    def __init__(
        self, runtime: Runtime, params: SamplingParams, prepare: Prepare | None = None, *, prepared: Prepared | None = None,
        ahead: int | None = AHEAD
    ) -> None:  # fmt: skip
        self._runtime, self._params, self._ahead = runtime, params, ahead
        self._prepare, self._prepared = prepare, prepared
        self._request: Answer | None = None
        self._bell = self._news = None
        self._reading = self._cancelled = False

    def __aiter__(self) -> AsyncTokenStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._reading:
            raise RuntimeError("this stream is already being read, by another task")
        self._reading = True
        try:
            return await self._next()
        except StopAsyncIteration:
            raise
        except BaseException:
            self.cancel()
            raise
        finally:
            self._reading = False

    async def _next(self):
        await self.start()
        if self._request is None:  # cancelled before it began
            raise StopAsyncIteration
        while True:
            self._news.clear()
            ended = self._request.ended  # before the look: what comes between the two is found at the next
            chunk = self._request.take()
            if ended and self._request.error is not None:
                if chunk is None or not chunk.token_ids:
                    self._raise()
                return dataclasses.replace(chunk, finish_reason=None)  # what came before the error
            if chunk is not None:
                return chunk
            if ended:
                raise StopAsyncIteration
            await self._wait()

    async def _wait(self):
        """Wait for news, which come to the event loop where the stream began."""
        if _bell() is not self._bell:
            raise RuntimeError("this stream began in another event loop: read, finish or close it there")
        await self._news.wait()

    def _raise(self):
        """Raise, once, what ended the answer early."""
        error, self._request.error = self._request.error, None
        if error is not None:
            raise error

    def _prepared_now(self):
        check_params(self._runtime, self._params)
        return self._prepare()

    async def _get_ready(self):
        """Render and tokenize the prompt, unless that is done: what is wrong with it is raised here."""
        if self._prepared is None:
            self._prepared = await asyncio.to_thread(self._prepared_now)

    def _try_ready(self):
        """The same in this thread; what is wrong with the prompt is returned."""
        try:
            self._prepared = self._prepared_now()
        except (TypeError, ValueError) as e:
            return e
        return None

    async def start(self) -> None:
        """Hand the prompt to the model, unless that is done; by default the first piece that is wanted does."""
        if self._request is not None or self._cancelled:
            return
        await self._get_ready()
        if self._request is None and not self._cancelled:
            ids, reader = self._prepared
            self._bell, self._news = _bell(), asyncio.Event()
            notify = _Notify(self._bell, self._news)
            request = Answer(self._runtime, ids, self._params, reader=reader, ahead=self._ahead, notify=notify)
            notify.request = weakref.ref(request)
            self._runtime.submit(request)
            self._request = request

    def cancel(self) -> None:
        """End the answer, from any thread; the last chunk says "cancelled". A finished one stays as it is."""
        self._cancelled = True
        if self._request is not None:
            self._request.cancel()

    async def aclose(self) -> None:
        """Cancel it, unless it has ended, and wait until its memory is free."""
        self.cancel()
        await self._end()

    async def _end(self):
        while self._request is not None and not self._request.ended:
            self._news.clear()
            if not self._request.ended:
                await self._wait()

    async def finish(self) -> Completion:
        """Wait for the rest without looking at the pieces.

        Returns
        -------
        Completion
        """
        try:
            await self.start()
            if self._request is not None:
                self._request.read_all()
                await self._end()
                self._raise()
        except BaseException:
            self.cancel()
            raise
        return self.result()

    def result(self) -> Completion:
        """What there is so far.

        Returns
        -------
        Completion
            Its ``finish_reason`` is None while the stream has not ended.
        """
        if self._request is None:
            n = 0 if self._prepared is None else len(self._prepared[0])
            return not_begun(self._params, n, "cancelled" if self._cancelled else None)
        return self._request.completion()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an AsyncTokenStream can be neither pickled nor copied: it is a computation under way. result() is what there is "
                        "so far")  # fmt: skip

    async def __aenter__(self) -> AsyncTokenStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self):
        if getattr(self, "_request", None) is not None:
            self._request.drop()

    def __repr__(self) -> str:
        return f"<AsyncTokenStream, {'not begun' if self._request is None else repr(self.result())}>"


class _Notify:
    """What the model's loop calls when a request has something new; it holds no stream, so that a dropped one ends."""

    def __init__(self, bell, news):
        self._bell, self._news, self.request = bell, news, None

    def __call__(self):
        if not self._bell.ring(self._news):
            request = self.request and self.request()
            if request is not None and not request.ended:
                request.cancel()  # nobody will read it


class AsyncVerbs:
    """The part of `Model` that is for asyncio."""

    runtime: Runtime

    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...

    @overload
    async def agenerate(
        self, prompt: Prompts, params: SamplingParams | Sequence[SamplingParams] | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Completions: ...

    async def agenerate(
        self, prompt: Prompt | Prompts, params: SamplingParams | Sequence[SamplingParams] | None = None,
        **sampling: Unpack[SamplingOptions]
    ) -> Completion | Completions:  # fmt: skip
        """`generate` for asyncio: other tasks run meanwhile, and share the model's steps with their own answers.

        Parameters
        ----------
        prompt, params, **sampling
            As for `generate`.

        Returns
        -------
        Completion, or Completions for a list and for ``n`` above 1
            The same bits as from `generate`.

        Raises
        ------
        TypeError, ValueError, ContextOverflow, ModelClosed, ForkedProcess
            As for `generate`.
        asyncio.CancelledError
            The task was cancelled: within 50 ms the answer's memory is free.
        """
        verbs.check_generate(sampling, "model")
        self.runtime.check()
        prompts, is_list = split_prompts("prompt", prompt)
        if not is_list:
            own = resolve_params(params, **sampling)  # type: ignore[arg-type]  # it refuses a list
            if own.n == 1:
                return await self._ids_stream("prompt", prompts[0], own, None).finish()
            return await _finish_all([self._ids_stream("prompt", prompts[0], one, None) for one in own.each()], tell=False)
        each = await asyncio.to_thread(params_each, self.runtime, params, len(prompts), sampling)
        return await _finish_all([self._ids_stream(f"prompt[{i}]", p, one, None)
                                  for i, (p, own) in enumerate(zip(prompts, each)) for one in own.each()])  # fmt: skip

    def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> AsyncTokenStream:
        """`stream` for asyncio: ``async for chunk in model.astream(prompt)``; parameters and errors as for `stream`.

        Returns
        -------
        AsyncTokenStream
            It begins when the first piece is wanted; what is wrong with the prompt is raised then.
        """
        verbs.check_generate(sampling, "model")
        self.runtime.check()
        prompts, is_list = split_prompts("prompt", prompt)
        if is_list:
            raise TypeError("prompt: found a list of prompts, wanted one: a str or token ids (agenerate takes lists)")
        return self._ids_stream("prompt", prompts[0], resolve_params(params, **sampling), AHEAD)

    def _ids_stream(self, name, prompt, params, ahead):
        return AsyncTokenStream(self.runtime, params, lambda: (verbs.ids_of(self.runtime, name, prompt), None), ahead=ahead)

    @overload
    async def achat(  # type: ignore[overload-overlap]
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[False] = False, **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...  # fmt: skip

    @overload
    async def achat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[True], **sampling: Unpack[SamplingOptions]
    ) -> AsyncTokenStream: ...  # fmt: skip

    @overload
    async def achat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: bool, **sampling: Unpack[SamplingOptions]
    ) -> Completion | AsyncTokenStream: ...  # fmt: skip

    @overload
    async def achat(
        self, messages: Conversations, params: SamplingParams | Sequence[SamplingParams] | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[False] = False, **sampling: Unpack[SamplingOptions]
    ) -> Completions: ...  # fmt: skip

    async def achat(
        self, messages: Messages | Conversations, params: SamplingParams | Sequence[SamplingParams] | None = None, *,
        tools: Tools | None = None, template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: bool = False, **sampling: Unpack[SamplingOptions]
    ) -> Completion | AsyncTokenStream | Completions:  # fmt: skip
        """`chat` for asyncio; parameters and errors as for `chat`.

        Returns
        -------
        Completion; with ``stream`` an AsyncTokenStream, whose prompt is ready; Completions for a list of conversations, and for ``n``
        above 1
        """
        check_sampling(sampling, verbs.CHAT_PARAMETERS)
        if not isinstance(stream, bool):
            raise TypeError(f"stream = {stream!r}: found {type(stream).__name__}, wanted True or False")
        self.runtime.check()
        sampling = response_form(response_format, verbs.chat_sampling(self.runtime, params, sampling))
        written = {"tools": tools, "template": template, "chat_template_kwargs": chat_template_kwargs}
        conversations, is_list = split_conversations(messages)

        def answer(name, conversation, own, ahead):
            prepare = lambda: verbs.conversation(self.runtime, conversation, name=name, **written)  # noqa: E731
            return AsyncTokenStream(self.runtime, own, prepare, ahead=ahead)

        if is_list:
            if stream:
                raise TypeError("stream: found a list of conversations, wanted one; a list gives a list of Completion")
            each = await asyncio.to_thread(params_each, self.runtime, params, len(conversations), sampling)
            return await _finish_all([answer(f"messages[{i}]", c, one, None)
                                      for i, (c, own) in enumerate(zip(conversations, each)) for one in own.each()])  # fmt: skip
        own = resolve_params(params, **sampling)  # type: ignore[arg-type]  # it refuses a list
        if own.n > 1 and not stream:
            return await _finish_all([answer("messages", conversations[0], one, None) for one in own.each()], tell=False)
        made = answer("messages", conversations[0], own, AHEAD if stream else None)
        if not stream:
            return await made.finish()
        await made._get_ready()
        return made


async def _finish_all(streams, tell=True):
    """Completions of all; what is wrong with one of them is its own (``tell``), or is raised."""

    def prepare_all():
        return [stream._try_ready() for stream in streams]

    errors = await asyncio.to_thread(prepare_all)

    async def one(stream, error):
        try:
            if error is not None:
                raise error
            return await stream.finish()
        except (ModelClosed, ForkedProcess):
            raise
        except Exception as e:
            if not tell:
                raise
            done = stream.result()
            return dataclasses.replace(done, finish_reason="error", error=e)

    tasks = [asyncio.ensure_future(one(stream, error)) for stream, error in zip(streams, errors)]
    try:
        return Completions(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # one failed with what is wrong for all, or this task was cancelled
            task.cancel()


async def embedding(runtime: Runtime, ids: NDArray[np.int32], pooling: str) -> NDArray[np.float32]:
    """Hidden states over the ids of one text, float32 (n_embd,), with the bits of `Model.embed`; cancelled as an answer is.

    Parameters
    ----------
    runtime : Runtime
    ids : int32 array (n,)
    pooling : {"mean", "last"}
    """
    news = asyncio.Event()
    notify = _Notify(_bell(), news)
    request = Rows(runtime, ids, all=pooling == "mean", hidden=True, notify=notify)
    notify.request = weakref.ref(request)
    total = np.zeros(runtime.n_embd)
    try:
        runtime.submit(request)
        while True:
            news.clear()
            ended = request.ended
            part = request.take()
            if part is not None:
                if pooling == "last":
                    total = part[1][-1]
                else:
                    verbs.add_rows(total, part[1])
            elif ended:
                break
            else:
                await news.wait()
    except BaseException:
        request.cancel()
        raise
    if request.error is not None:
        raise request.error
    return (total if pooling == "last" else total / len(ids)).astype(np.float32)
