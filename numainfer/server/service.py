"""One model as the server serves it: who is let in, what is under way, what is counted."""

import asyncio
import functools
import hashlib
import hmac
import time

from ..aio import AsyncTokenStream, check_params, embedding
from ..serving.sampling import SamplingParams
from ..text.chat_template import ChatTemplate
from . import asked
from .http import header
from .metrics import Metrics
from .refusals import Refusal, busy

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
        self.metrics = Metrics(lambda: len(self.answers) - self._waiting(), self._waiting, self._kv_bytes)

    def _waiting(self):
        return sum(not answer.begun for answer in self.answers)

    def _kv_bytes(self):
        """Of all sequences' blocks; what several share counts once."""
        if self.model.closed:
            return 0
        caches = [cache for cache in list(self.model.runtime.engine.caches.alive) if not cache.closed]
        return sum({address: kind.block_bytes for cache in caches for kind, _, address, _ in cache.blocks()}.values())

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
        return check_params(self.model.runtime, SamplingParams(**DEFAULTS | given))

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
        waiting = self._waiting()
        if waiting + n > self.limits.waiting and (waiting or n > self.limits.waiting):
            raise busy(f"{waiting} answers wait for their turn, and this server lets {self.limits.waiting} wait; try again later",
                       self.metrics.mean_wait)  # fmt: skip

    def answer(self, ids, reader, params):
        """Begin an Answer; the caller closes it."""
        return Answer(self, AsyncTokenStream(self.model.runtime, params, prepared=(ids, reader)))

    async def embed(self, ids, pooling):
        """The embedding of one text, float32 (n_embd,)."""
        self.check_open()
        return await embedding(self.model.runtime, ids, pooling)

    def end(self):
        """Take nothing new; what runs may go on for the limits' grace."""
        if not self.ending:
            self.ending = True
            asyncio.get_running_loop().call_later(self.limits.grace, self.cut)

    def cut(self):
        """End what still runs."""
        for answer in self.answers:
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
            raise self._refusal()
        return chunk

    async def finish(self):
        """Wait for all of it.

        Returns
        -------
        Completion
        """
        async for _ in self:
            pass
        return self._stream.result()

    def result(self):
        """The Completion, as far as it is."""
        return self._stream.result()

    def _refusal(self):
        if self.why_cut == "end":
            return busy("the server is about to end, and this answer was not complete", 5, 503, "shutting_down")
        return busy(f"no token after {self._service.limits.seconds} s: the server is busy, or the prompt is long", 5, 503, "time_limit")

    async def aclose(self):
        """Free what it holds."""
        self._timer.cancel()
        try:
            await self._stream.aclose()
        finally:
            if self in self._service.answers:
                self._service.answers.discard(self)
                self._service.metrics.usage(self._stream.result().usage)
