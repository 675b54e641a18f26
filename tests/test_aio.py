"""asyncio: the same answers as without, cancelling, readers that are slow, many at once."""

import asyncio
import gc
import threading
import time

import numpy as np
import pytest

import numainfer as ni
from numainfer import aio

LONG = {"max_tokens": 200, "ignore_eos": True}


def in_use(model):
    """Sequences that hold KV memory."""
    return [cache for cache in list(model.runtime.engine.caches.alive) if not cache.closed and cache.n_blocks]


async def soon(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


def same(a, b):
    return (a.text, a.token_ids, a.finish_reason, a.logprobs) == (b.text, b.token_ids, b.finish_reason, b.logprobs)


def test_answers_are_those_of_generate(tiny_model):
    params = ni.SamplingParams(temperature=0.9, seed=3, max_tokens=12, logprobs=2)

    async def work():
        one = await tiny_model.agenerate("the rain", params)
        many = await tiny_model.agenerate(["the rain", "in", [5, 6, 7]], params, max_tokens=7)
        each = await tiny_model.agenerate(["a", "b"], [params, params.replace(temperature=0.0)])
        return one, many, each

    one, many, each = asyncio.run(work())
    assert same(one, tiny_model.generate("the rain", params)) and one.usage.completion_tokens == 12
    assert isinstance(many, ni.Completions) and len(many) == 3
    assert all(same(a, b) for a, b in zip(many, tiny_model.generate(["the rain", "in", [5, 6, 7]], params, max_tokens=7)))
    assert same(each[1], tiny_model.generate("b", params, temperature=0.0))


def test_n_answers_to_a_prompt(tiny_model):
    params = ni.SamplingParams(temperature=0.9, seed=3, max_tokens=6, n=3)

    async def work():
        with pytest.raises(ValueError, match="n = 3"):
            await anext(tiny_model.astream("the", params))
        with pytest.raises(ni.ContextOverflow):
            await tiny_model.agenerate([5] * 300, params)
        return [await tiny_model.agenerate("the", params), await tiny_model.agenerate(["the", "in"], params),
                await tiny_model.achat("the", params), await tiny_model.achat(["the", "in"], params)]  # fmt: skip

    expected = [tiny_model.generate("the", params), tiny_model.generate(["the", "in"], params), tiny_model.chat("the", params),
                tiny_model.chat(["the", "in"], params)]  # fmt: skip
    found = asyncio.run(work())
    assert [len(f) for f in found] == [3, 6, 3, 6] and all(same(a, b) for f, e in zip(found, expected) for a, b in zip(f, e))


def test_a_stream_brings_the_answer_in_pieces(tiny_model):
    async def work():
        stream = tiny_model.astream("the", temperature=1, seed=1, logprobs=1, **LONG)
        chunks = [chunk async for chunk in stream]
        assert [c async for c in stream] == []
        return chunks, stream.result()

    chunks, done = asyncio.run(work())
    expected = tiny_model.generate("the", temperature=1, seed=1, logprobs=1, **LONG)
    assert same(done, expected) and "".join(c.text for c in chunks) == expected.text
    assert sum((c.token_ids for c in chunks), ()) == expected.token_ids and sum((c.logprobs for c in chunks), ()) == expected.logprobs
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1) and chunks[-1].finish_reason == "length"


def test_chat_whole_streamed_and_of_a_list(tiny_model):
    messages = [{"role": "user", "content": "the rain"}]

    async def work():
        whole = await tiny_model.achat(messages, max_tokens=9)
        text = ""
        async with await tiny_model.achat(messages, max_tokens=9, stream=True) as stream:
            async for chunk in stream:
                text += chunk.text
        return whole, text, await tiny_model.achat([messages, "in"], max_tokens=4)

    whole, text, many = asyncio.run(work())
    assert same(whole, tiny_model.chat(messages, max_tokens=9)) and text == whole.text
    assert all(same(a, b) for a, b in zip(many, tiny_model.chat([messages, "in"], max_tokens=4)))


def test_many_at_once_are_each_as_alone(tiny_model):
    prompts = [f"prompt {i}" for i in range(12)]
    params = [ni.SamplingParams(temperature=1, seed=i, max_tokens=5 + i) for i in range(12)]

    async def read(prompt, own):
        return "".join([chunk.text async for chunk in tiny_model.astream(prompt, own)])

    async def work():
        return await asyncio.gather(*map(read, prompts, params))

    assert asyncio.run(work()) == [tiny_model.generate(p, own).text for p, own in zip(prompts, params)]


def test_other_tasks_run_meanwhile(tiny_model):
    async def work():
        ticks, answer = 0, asyncio.ensure_future(tiny_model.agenerate("the", **LONG))
        while not answer.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks

    assert asyncio.run(work()) > 10


def test_wrong_use_is_refused_where_it_happens(tiny_model):
    async def work():
        with pytest.raises(TypeError, match="max_tokns.*max_tokens"):
            await tiny_model.agenerate("a", max_tokns=3)
        with pytest.raises(TypeError, match="list of prompts"):
            tiny_model.astream(["a", "b"])
        with pytest.raises(TypeError, match="stream"):
            await tiny_model.achat([["a"], ["b"]], stream=True)
        with pytest.raises(TypeError, match="wanted True or False"):
            await tiny_model.achat("a", stream=1)
        with pytest.raises(ni.ContextOverflow, match="300 tokens"):
            await tiny_model.agenerate([5] * 300)
        with pytest.raises(ValueError, match="must be from 0 to 284"):
            await tiny_model.agenerate("a", stop_token_ids=[10**6])
        with pytest.raises(ValueError, match="2 SamplingParams for 1 prompts"):
            await tiny_model.agenerate(["a"], [ni.SamplingParams()] * 2)
        stream = tiny_model.astream([5] * 300)
        with pytest.raises(ni.ContextOverflow):
            await anext(stream)
        with pytest.raises(ValueError, match="role"):
            await tiny_model.achat([{"content": "a"}], stream=True)
        done = await tiny_model.agenerate(["a", "", [5] * 300], max_tokens=2)
        return [(d.finish_reason, type(d.error)) for d in done]

    assert asyncio.run(work()) == [("length", type(None)), ("error", ValueError), ("error", ni.ContextOverflow)]


def test_what_a_logits_processor_raises_ends_its_answer_alone(tiny_model):
    def broken(ids, logits):
        if len(ids) == 3:
            raise KeyError("mine")
        return logits

    async def work():
        good = asyncio.ensure_future(tiny_model.agenerate("a", max_tokens=20))
        with pytest.raises(KeyError, match="mine"):
            await tiny_model.agenerate("a", logits_processor=broken)
        stream, pieces = tiny_model.astream("a", logits_processor=broken), 0
        with pytest.raises(KeyError, match="mine"):
            async for _ in stream:
                pieces += 1
        return await good, pieces, [c async for c in stream]

    good, pieces, after = asyncio.run(work())
    assert asyncio.run(reasons_before_an_error(tiny_model, broken)) == {None}
    assert same(good, tiny_model.generate("a", max_tokens=20)) and pieces <= 3 and after == []


async def reasons_before_an_error(model, broken):
    """The finish_reasons of what a stream brings before its error."""
    found = set()
    with pytest.raises(KeyError):
        async for chunk in model.astream("a", logits_processor=broken):
            found.add(chunk.finish_reason)
            await asyncio.sleep(0.1)  # meanwhile it has failed
    return found


def test_embeddings_have_the_bits_of_embed(tiny_path):
    with ni.load(tiny_path, n_batch=16) as model:
        ids = np.array(model.tokenizer.encode("the rain in Spain " * 5), np.int32)
        for pooling in ("mean", "last"):
            found = asyncio.run(aio.embedding(model.runtime, ids, pooling))
            assert found.dtype == np.float32 and np.array_equal(found, model.embed(ids, pooling=pooling))


def test_a_cancelled_embedding_ends(tiny_path):
    async def work(model):
        task = asyncio.ensure_future(aio.embedding(model.runtime, np.full(250, 5, np.int32), "mean"))
        await soon(lambda: in_use(model))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await soon(lambda: not in_use(model))

    with ni.load(tiny_path, n_batch=1) as model:
        asyncio.run(work(model))


@pytest.mark.parametrize("how", ["task", "break", "cancel", "aclose", "with", "timeout", "dropped", "finish"])
def test_who_leaves_frees_the_memory_at_once(tiny_model, how):
    async def leave():
        stream = tiny_model.astream("the", temperature=1, seed=2, max_tokens=None, ignore_eos=True)
        first = await anext(stream)
        assert first.finish_reason is None and in_use(tiny_model)
        if how == "task":
            task = asyncio.ensure_future(drain(stream))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "finish":
            task = asyncio.ensure_future(stream.finish())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "break":
            async for _ in stream:
                break
            del stream
        elif how == "cancel":
            stream.cancel()
            rest = [c async for c in stream]
            assert rest[-1].finish_reason == stream.result().finish_reason == "cancelled"
        elif how == "aclose":
            await stream.aclose()
            assert stream.result().finish_reason == "cancelled"
        elif how == "with":
            async with stream:
                pass
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await drain(stream)
        else:
            del stream
            gc.collect()
        start = time.monotonic()
        await soon(lambda: not in_use(tiny_model))
        taken, held = time.monotonic() - start, locals().get("stream")
        assert held is None or held.result().finish_reason == "cancelled"
        return taken

    async def work():
        taken = await leave()
        assert taken < 1  # 50 ms on a machine that does nothing else
        return await tiny_model.agenerate("the", max_tokens=3)

    assert same(asyncio.run(work()), tiny_model.generate("the", max_tokens=3))


async def drain(stream):
    async for _ in stream:
        pass


def test_cancelling_agenerate_frees_all_of_a_list(tiny_model):
    async def work():
        task = asyncio.ensure_future(tiny_model.agenerate(["a", "b", "c"], max_tokens=None, ignore_eos=True))
        await soon(lambda: in_use(tiny_model))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await soon(lambda: not in_use(tiny_model))

    asyncio.run(work())


def test_a_slow_reader_is_not_run_away_from(tiny_model):
    async def work():
        stream = tiny_model.astream("the", temperature=1, seed=2, max_tokens=200, ignore_eos=True)
        await anext(stream)
        await asyncio.sleep(0.3)  # all 200 would take a tenth of that
        ahead = len(stream.result().token_ids)
        assert 1 < ahead <= aio.AHEAD + 8
        assert same(await tiny_model.agenerate("in", max_tokens=5), tiny_model.generate("in", max_tokens=5))  # others go on
        rest = [c async for c in stream]
        return rest, stream.result()

    rest, done = asyncio.run(work())
    assert same(done, tiny_model.generate("the", temperature=1, seed=2, max_tokens=200, ignore_eos=True)) and rest


def test_no_thread_per_request(tiny_model):
    async def work():
        streams = [tiny_model.astream("the", temperature=1, seed=i, max_tokens=None, ignore_eos=True) for i in range(24)]
        await anext(streams[0])
        before = threading.active_count()
        await asyncio.gather(*(anext(s) for s in streams[1:]))
        more = threading.active_count() - before
        for s in streams:
            await s.aclose()
        return more

    assert asyncio.run(work()) <= 8  # of asyncio's pool, which tokenizes


def test_one_reader_at_a_time(tiny_model):
    async def work():
        stream = tiny_model.astream("the", **LONG)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        await first
        await stream.aclose()

    asyncio.run(work())


def test_an_event_loop_that_ends_leaves_nothing(tiny_model, caplog):
    async def forget(ahead):
        streams = [aio.AsyncTokenStream(tiny_model.runtime, ni.SamplingParams(max_tokens=None, ignore_eos=True),
                                        prepared=(np.array([5 + i], np.int32), None), ahead=ahead) for i in range(3)]  # fmt: skip
        for stream in streams:
            await stream.start()
        return streams

    def freed():
        end = time.monotonic() + 5
        while not all(stream.result().finish_reason for stream in kept) and time.monotonic() < end:
            time.sleep(0.005)
        return not in_use(tiny_model) and {stream.result().finish_reason for stream in kept} == {"cancelled"}

    kept = asyncio.run(forget(10_000))  # its loop is closed now; nobody can read on, though somebody holds them
    assert freed()
    kept = asyncio.run(forget(4))  # these wait for their reader
    for stream in kept:
        stream.cancel()
    assert freed() and not caplog.records
    assert asyncio.run(tiny_model.agenerate("in", max_tokens=3)).text == tiny_model.generate("in", max_tokens=3).text


def test_a_stream_belongs_to_its_event_loop(tiny_model):
    async def begin():
        stream = tiny_model.astream("the", max_tokens=None, ignore_eos=True)
        await anext(stream)
        return stream

    async def go_on(stream):
        try:
            async with asyncio.timeout(10):
                async for _ in stream:  # what lies there can be read
                    pass
        except RuntimeError as e:
            assert "another event loop" in str(e)
        else:  # it was ended already
            assert stream.result().finish_reason == "cancelled"
        await soon(lambda: not in_use(tiny_model))

    for _ in range(5):
        asyncio.run(go_on(asyncio.run(begin())))


def test_a_stream_that_is_cancelled_before_it_begins(tiny_model):
    async def work():
        stream = tiny_model.astream([5] * 300)
        stream.cancel()
        assert [c async for c in stream] == [] and stream.result().finish_reason == "cancelled" == (await stream.finish()).finish_reason
        await stream.aclose()
        assert repr(stream) == "<AsyncTokenStream, not begun>"

    asyncio.run(work())


def test_closing_the_model_ends_what_is_awaited(tiny_model):
    async def work():
        stream = tiny_model.astream("the", max_tokens=None, ignore_eos=True)
        await anext(stream)
        await asyncio.to_thread(tiny_model.close)
        with pytest.raises(ni.ModelClosed):
            async for _ in stream:
                pass
        with pytest.raises(ni.ModelClosed):
            await tiny_model.agenerate("a")

    asyncio.run(work())


def test_a_form_holds(smollm2):
    async def work():
        return await smollm2.achat("Which color has the sky?", response_format={"type": "json_object"}, max_tokens=30)

    assert same(asyncio.run(work()), smollm2.chat("Which color has the sky?", response_format={"type": "json_object"}, max_tokens=30))
