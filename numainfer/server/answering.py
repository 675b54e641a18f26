"""From what was asked to the reply: answers made side by side, told whole or as they come."""

import asyncio
import contextlib
import dataclasses

from . import shapes
from .refusals import of_answer

QUIET = 15
"""Seconds without an event after which a comment tells clients and proxies that the stream lives."""


async def answer(service, wanted, shape, reply):
    """Answer a request.

    Parameters
    ----------
    service : Service
    wanted : Asked
    shape : Shape
    reply : Reply

    Raises
    ------
    Refusal
        There is no answer.
    """
    parts = list(wanted.answers())
    service.admit(len(parts))
    answers = []
    try:
        for part in parts:
            answers.append(service.answer(*part))
        await (_stream if wanted.stream else _whole)(wanted, shape, reply, answers)
    finally:
        for made in answers:
            made.stop()
        for made in answers:
            await made.aclose()


async def _whole(wanted, shape, reply, answers):
    async def complete(made):
        async for chunk in made:
            if wanted.one_call and chunk.tool_calls:
                made.stop()
        return made.result()

    done = await _all(complete(made) for made in answers)
    told = [_told(wanted, i, completion) for i, completion in enumerate(done)]
    choices = [shape.choice(i, completion, _reason(completion)) for i, completion in enumerate(told)]
    await reply.whole(shape.whole(choices, _counts(wanted, answers)))


async def _stream(wanted, shape, reply, answers):
    more = {"usage": None} if wanted.usage else {}
    firsts = [first for i in range(len(answers)) if (first := shape.first(i)) is not None]
    for first in firsts:
        await reply.event(shape.piece([first], **more))
    n_calls, held = [0] * len(answers), [[] for _ in answers]
    async for i, chunk in _merged(answers):
        if chunk is None:
            if reply.status is not None:
                await reply.comment()
            continue
        if wanted.choice is not None and wanted.choice.schema is not None:
            # A call in JSON is told when it is whole.
            held[i].append(chunk)
            if chunk.finish_reason is None:
                continue
            chunk = _joined(held[i])
            chunk = _told(wanted, i, chunk)
        reason = chunk.finish_reason and _reason(chunk, n_calls[i])
        if wanted.one_call and chunk.tool_calls:
            chunk, reason = dataclasses.replace(chunk, tool_calls=chunk.tool_calls[: max(0, 1 - n_calls[i])]), None
            answers[i].stop()
        await reply.event(shape.piece([shape.delta(i, chunk, n_calls[i], reason)], **more))
        n_calls[i] += len(chunk.tool_calls)
    if wanted.usage:
        await reply.event(shape.piece([], usage=_counts(wanted, answers)))
    await reply.event(b"[DONE]")
    await reply.end()


def _told(wanted, i, done):
    """A Completion or a Chunk as it is told: where a call was demanded, its text is one."""
    if wanted.choice is not None and wanted.choice.schema is not None:
        call = wanted.choice.call(done.text, wanted.prompts[0][0])
        if call is not None:
            done = dataclasses.replace(done, text="", tool_calls=(call,))
    if wanted.one_call and len(done.tool_calls) > 1:
        done = dataclasses.replace(done, tool_calls=done.tool_calls[:1])
    return done


def _joined(chunks):
    """One Chunk of many."""
    logprobs = None if chunks[-1].logprobs is None else [p for c in chunks for p in c.logprobs]
    return dataclasses.replace(chunks[-1], text="".join(c.text for c in chunks), logprobs=logprobs,
                               token_ids=tuple(t for c in chunks for t in c.token_ids))  # fmt: skip


def _reason(done, n_calls=0):
    """The finish_reason in OpenAI's words, which know no other limits than "length"."""
    if (done.tool_calls or n_calls) and done.finish_reason in ("stop", "cancelled", "tool_calls"):
        return "tool_calls"
    return "length" if done.finish_reason == "cancelled" else done.finish_reason


def _counts(wanted, answers):
    each = [made.result().usage for made in answers]
    return shapes.usage(each[:: wanted.n], each)


async def _all(works):
    """Results of all, or the first error; then the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        raise
    except Exception as e:
        raise of_answer(e) from e
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _merged(answers):
    """(number of the answer, Chunk) as they come; (0, None) when nothing came for `QUIET` seconds.

    An answer's next chunk is asked for when its last was taken: who does not read holds up his own answers alone.
    """
    pending = {asyncio.ensure_future(anext(made)): i for i, made in enumerate(answers)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, timeout=QUIET, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                yield 0, None
            for task in done:
                i = pending.pop(task)
                try:
                    chunk = task.result()
                except StopAsyncIteration:
                    continue
                except Exception as e:
                    raise of_answer(e) from e
                yield i, chunk
                pending[asyncio.ensure_future(anext(answers[i]))] = i
    finally:
        for task in pending:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if pending:
                await asyncio.wait(pending)
