"""One model as the server serves it: who is let in, what is under way, what is counted."""

import asyncio
import functools
import hashlib
import hmac
import time

from ..aio import AsyncTokenStream, embedding
from ..serving.lists import check_params
from ..serving.params import SamplingParams
from ..text.chat_template import ChatTemplate
from . import asked
from .fields import read_object
from .http import header
from .metrics import Metrics
from .refusals import Refusal, busy, of_request

_TOGETHER = 16  # texts of one request that are embedded at the same time; others' come between
DEFAULTS = {"temperature": 1.0}
"""Sampling where neither request nor file says anything: OpenAI's."""


compiled = functools.lru_cache(8)(ChatTemplate)


class Service:
    """A model, its limits, and the answers in the making.

    Parameters
    ----------
    model : Model
    names : list of str
        What clients may call it; the first is told them.
    limits : Limits
    api_key : str or None
        None: anybody may ask.

    Attributes
    ----------
    model, names, limits
    metrics : Metrics
    answers : set of Answer
        Those in the making.
    ending : bool
        The server was told to end, and takes nothing new.
    """

    most_prompts = 2048  # in one request: OpenAI's limit of inputs

    def __init__(self, model, names, limits, api_key=None):
        self.model, self.names, self.limits = model, list(names), limits
        self._key = None if api_key is None else hashlib.sha256(api_key.strip().encode("utf-8", "surrogateescape")).digest()
        self.answers, self.ending, self.loaded_at = set(), False, time.time()
        self._reading = 0
        self.metrics = Metrics(lambda: len(self.answers) - self._waiting(), self._waiting, self._kv_bytes)

    def _waiting(self):
        return self._reading + sum(not answer.begun for answer in self.answers)

    def _kv_bytes(self):
        return 0 if self.model.closed else sum(lane.kv_bytes for lane in self.model.stats().lanes)

    def check_key(self, scope):
        """Refuse who does not bring the key, in a time that does not tell how much of it was right."""
        if self._key is None:
            return
        kind, _, key = (header(scope, "authorization") or "").partition(" ")
        known = hmac.compare_digest(hashlib.sha256(key.strip().encode("latin-1")).digest(), self._key)
        if kind.lower() != "bearer" or not known:
            raise Refusal(401, "the API key is missing or wrong; wanted the header Authorization: Bearer KEY", "invalid_api_key",
                          headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    def check_open(self):
        """Refuse everybody while the server ends."""
        if self.ending:
            raise busy("the server is about to end", 5, 503, "shutting_down")

    def params(self, given):
        """The SamplingParams of a request, over OpenAI's defaults."""
        params = SamplingParams(**DEFAULTS | given)
        check_params(self.model.runtime, params)
        return params

    def template(self, tools):
        """The chat template that a conversation with, or without, these tools is written by; None: there is none."""
        templates = self.model.tokenizer.chat_templates
        source = templates.get("tool_use" if tools and "tool_use" in templates else "default")
        return compiled(source) if source else None

    def within(self, ids, name="messages"):
        """Ids of a prompt, if they are not more than the server takes."""
        return asked.check_length(ids, self.limits.prompt, name)

    def admit(self, n):
        """Refuse answers for which there is no place.

        Parameters
        ----------
        n : int
            How many begin now.
        """
        self.check_open()
        most, waiting = self.limits.waiting, self._waiting()
        if n > most:
            raise Refusal(400, f"the request asks for {n} answers, and this server lets {most} wait for their turn", "too_many_answers")
        if waiting + n > most:
            raise busy(f"{waiting} answers wait for their turn, and this server lets {most} wait; try again later", self.metrics.mean_wait)

    async def read(self, body, read):
        """``read(self, fields)`` of a body, in another thread: a long prompt holds nobody up. Meanwhile it counts as an answer that waits.

        Raises
        ------
        Refusal
        """

        def work():
            try:
                return read(self, read_object(body))
            except Exception as e:
                raise of_request(e) or e from e

        self.admit(1)
        self._reading += 1
        try:
            return await asyncio.to_thread(work)
        finally:
            self._reading -= 1

    def answer(self, ids, reader, params):
        """Begin an Answer; the caller closes it."""
        return Answer(self, AsyncTokenStream(self.model.runtime, params, prepared=(ids, reader)))

    async def embed(self, texts, pooling):
        """Embeddings of texts given as ids, list of float32 (n_embd,)."""
        self.admit(1)
        found = []
        async with Vectors(self):
            for i in range(0, len(texts), _TOGETHER):
                found += await asyncio.gather(*(embedding(self.model.runtime, ids, pooling) for ids in texts[i : i + _TOGETHER]))
        return found

    def end(self):
        """Take nothing new; what runs may go on for the limits' grace."""
        if not self.ending:
            self.ending = True
            asyncio.get_running_loop().call_later(self.limits.grace, self.cut)

    def cut(self):
        """End what still runs."""
        for answer in list(self.answers):
            answer.cut("end")


class Answer:
    """One answer in the making, counted.

    Attributes
    ----------
    begun : bool
        It has its first token.
    why_cut : str or None
        "time" or "end": the server ended it.
    """

    def __init__(self, service, stream):
        loop = asyncio.get_running_loop()
        self._service, self._stream, self._time = service, stream, loop.time
        self.begun, self.why_cut = False, None
        self._last = self._started = loop.time()
        self._timer = loop.call_later(service.limits.seconds, self.cut, "time")
        service.answers.add(self)

    def cut(self, why):
        """End it early: its last chunk says "cancelled"."""
        if self.why_cut is None:
            self.why_cut = why
            self._stream.cancel()

    def stop(self):
        """End it early, for it has what was wanted."""
        self._stream.cancel()

    def __aiter__(self):
        return self

    async def __anext__(self):
        chunk = await self._stream.__anext__()
        if chunk.token_ids:
            now, metrics = self._time(), self._service.metrics
            if self.begun:
                metrics.tokens(len(chunk.token_ids), now - self._last)
            else:
                self.begun = True
                metrics.first_token(now - self._started)
            self._last = now
        if chunk.finish_reason == "cancelled" and (self.why_cut == "end" or self.why_cut == "time" and not self.begun):
            raise _cut_off(self.why_cut, self._service.limits.seconds)
        return chunk

    def result(self):
        """The Completion, as far as it is."""
        return self._stream.result()

    async def aclose(self):
        """Free what it holds."""
        self._timer.cancel()
        try:
            await self._stream.aclose()
        finally:
            if self in self._service.answers:
                self._service.answers.discard(self)
                self._service.metrics.usage(self._stream.result().usage)


class Vectors:
    """A request for embeddings in the making: it counts as an answer that waits, and is cut off like one.

    Attributes
    ----------
    begun : bool
        Never: it has no tokens.
    """

    begun = False

    def __init__(self, service):
        self._service, self._why = service, "time"
        self._limit = asyncio.timeout(service.limits.seconds)

    def cut(self, why):
        """End it early."""
        self._why = why
        self._limit.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self):
        await self._limit.__aenter__()
        self._service.answers.add(self)

    async def __aexit__(self, *error):
        self._service.answers.discard(self)
        try:
            return await self._limit.__aexit__(*error)
        except TimeoutError:
            raise _cut_off(self._why, self._service.limits.seconds) from None


def _cut_off(why, seconds):
    """The Refusal of what was cut off before there was anything to tell."""
    if why == "end":
        return busy("the server is about to end, and this answer was not complete", 5, 503, "shutting_down")
    return busy(f"nothing to tell after {seconds} s: the server is busy, or the prompt is long", 5, 503, "time_limit")
