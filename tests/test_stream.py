"""Streams: text piece by piece, and every way to end early."""

import contextlib
import gc
import shutil
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from api_tools import force, forced, interrupt_after

import numainfer as ni
from numainfer._core import Cancelled
from numainfer.engine.engine import Lane


@contextlib.contextmanager
def at_alarm(handle):
    """Call a signal handler once, half a second later, in the midst of what the main thread does."""
    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def eventually(true):
    """Whether something comes true, which on a busy machine takes its time."""
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    return true()


PROMPT = "The capital of France is"
SOON = 0.5  # seconds; 0.05 is promised, the rest is for a busy machine


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.2, "seed": 5, "logprobs": 1}, {"stop": [" the", "France"]}])
def test_a_stream_adds_up_to_generate(smollm2, sampling):
    whole = smollm2.generate(PROMPT, max_tokens=30, **sampling)
    stream = smollm2.stream(PROMPT, max_tokens=30, **sampling)
    assert stream.result().finish_reason is None and stream.result().text == ""
    chunks = list(stream)
    done = stream.result()
    assert "".join(map(str, chunks)) == done.text == whole.text
    assert tuple(i for c in chunks for i in c.token_ids) == done.token_ids == whole.token_ids
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
    assert all(c.text for c in chunks[:-1])
    assert done.logprobs == whole.logprobs
    if done.logprobs is not None:
        assert tuple(p for c in chunks for p in c.logprobs) == done.logprobs
    assert list(stream) == [] and repr(stream)


def test_it_is_lazy(smollm2):
    started = time.perf_counter()
    stream = smollm2.stream(PROMPT, max_tokens=10**6)
    assert time.perf_counter() - started < SOON and stream.result().token_ids == ()
    next(stream)
    so_far = stream.result()
    assert so_far.finish_reason is None and len(so_far.token_ids) >= 1 and so_far.text
    stream.cancel()


def test_never_half_a_character(smollm2):
    text = "naïve 日本語 👩‍👩‍👧 🇫🇷 ﷽ done"
    chunks = list(smollm2.stream(PROMPT, **forced(smollm2, text)))
    assert "".join(map(str, chunks)) == text
    assert not any("\ufffd" in c.text for c in chunks)
    assert any(len(c.token_ids) > 1 for c in chunks)


def test_a_character_that_stays_incomplete_is_marked(smollm2):
    ids = smollm2.tokenizer.encode("hi 𓀀")[:-1]
    done = smollm2.generate(PROMPT, logits_processor=force(ids), max_tokens=len(ids))
    assert done.text == smollm2.tokenizer.decode(ids) and done.text.endswith("\ufffd")


def test_stop_strings_are_held_back(smollm2):
    text = "one two <STOP three <STOP> four"
    seen = ""
    stream = smollm2.stream(PROMPT, **forced(smollm2, text, stop="<STOP>"))
    for chunk in stream:
        seen += chunk.text
        assert "one two <STOP three ".startswith(seen)
    assert seen == "one two <STOP three " and stream.result().finish_reason == "stop"
    held = smollm2.stream(PROMPT, **forced(smollm2, "ends with <STO", stop="<STOP>"))
    assert "".join(map(str, held)) == "ends with <STO"  # nothing more comes, so it is no stop string


def test_cancel_lets_go_what_was_held_back(smollm2):
    ids = smollm2.tokenizer.encode("a <STO x y z", add_special_tokens=False)
    stop = smollm2.tokenizer.encode("a <STO", add_special_tokens=False)
    process, reached, go_on = force(ids), threading.Event(), threading.Event()

    def hold(token_ids, logits):
        if len(token_ids) == len(stop):
            reached.set()
            go_on.wait(20)
        return process(token_ids, logits)

    stream = smollm2.stream(PROMPT, logits_processor=hold, max_tokens=len(ids), stop="<STO xxx")
    next(stream)
    assert reached.wait(20)
    shown, timer = stream.result().text, threading.Timer(0.1, go_on.set)
    timer.start()
    stream.cancel()
    timer.join()
    assert stream.result().text.startswith("a <STO") and len(shown) < len("a <STO")


def test_two_streams_in_turns(smollm2):
    a, b = smollm2.stream(PROMPT, max_tokens=12), smollm2.stream("Once upon a time", max_tokens=12)
    texts = ["", ""]
    alive = [0, 1]
    while alive:
        for i in list(alive):
            chunk = next((a, b)[i], None)
            if chunk is None:
                alive.remove(i)
            else:
                texts[i] += chunk.text
    assert texts == [smollm2.generate(p, max_tokens=12).text for p in (PROMPT, "Once upon a time")]


# ---- ending early --------------------------------------------------------------------------------


def test_cancel_between_two_chunks(smollm2):
    stream = smollm2.stream(PROMPT, max_tokens=1000)
    first = next(stream)
    stream.cancel()
    rest = list(stream)
    assert [c.finish_reason for c in rest] == ["cancelled"]
    done = stream.result()
    assert done.finish_reason == "cancelled" and done.token_ids[: len(first.token_ids)] == first.token_ids
    stream.cancel()
    assert stream.result() == done


def test_cancel_of_a_finished_stream_changes_nothing(smollm2):
    stream = smollm2.stream(PROMPT, max_tokens=2)
    list(stream)
    stream.cancel()
    assert stream.result().finish_reason == "length"


def test_cancel_before_the_start(smollm2):
    stream = smollm2.stream(PROMPT)
    stream.cancel()
    assert stream.result().finish_reason == "cancelled" and stream.result().token_ids == ()
    assert [c.finish_reason for c in stream] == ["cancelled"]


def test_cancel_from_another_thread_while_it_generates(smollm2):
    stream = smollm2.stream(PROMPT, max_tokens=None, ignore_eos=True)
    moment = []
    timer = threading.Timer(0.3, lambda: (moment.append(time.perf_counter()), stream.cancel()))
    timer.start()
    chunks = list(stream)
    ended = time.perf_counter()
    timer.join()
    assert ended - moment[0] < SOON
    assert chunks[-1].finish_reason == stream.result().finish_reason == "cancelled"
    assert 0 < len(stream.result().token_ids) < smollm2.n_ctx - 10


@pytest.fixture(scope="module")
def slow():
    """A model and a prompt whose steps take seconds, so that ending early shows."""
    with ni.load("gemma3", n_ctx=8192, n_batch=2048, prefix_cache=0) as model:
        yield model, np.random.default_rng(0).integers(10, 200000, 8000)


def test_cancel_from_another_thread_during_the_prompt(slow):
    model, ids = slow
    stream = model.stream(ids)
    moment = []
    timer = threading.Timer(0.5, lambda: (moment.append(time.perf_counter()), stream.cancel()))
    timer.start()
    chunks = list(stream)
    ended = time.perf_counter()
    timer.join()
    assert ended - moment[0] < SOON
    assert [c.finish_reason for c in chunks] == ["cancelled"] and stream.result().token_ids == ()
    assert model.generate(PROMPT, max_tokens=1).token_ids


def test_cancel_ends_the_wait_for_a_turn_and_not_another_ones_step(slow):
    model, ids = slow
    ids = ids[:1000]
    wanted = model.generate(ids, max_tokens=1)
    for _ in range(5):  # where this thread has to wait for a CPU, the step may be over before: that says nothing
        found, waiting = [], model.stream(ids)
        first = threading.Thread(target=lambda found=found: found.append(model.stream(ids, max_tokens=1).finish()))
        first.start()
        while first.is_alive() and not model.runtime._turns.holders:  # a step runs
            time.sleep(0.001)
        timer = threading.Timer(0.05, waiting.cancel)
        timer.start()
        assert [c.finish_reason for c in waiting] == ["cancelled"]
        meanwhile = first.is_alive()
        first.join()
        timer.join()
        assert (found[0].token_ids, found[0].finish_reason) == (wanted.token_ids, "length")
        if meanwhile:
            return
    pytest.fail("all steps were over before")


def test_cancel_just_before_a_step(slow, monkeypatch):
    model, ids = slow
    stream, real, broken_off = model.stream(ids), Lane.step, []

    def step(lane, *args, **options):
        stream.cancel()  # the workers do not have the step yet
        try:
            return real(lane, *args, **options)
        except Cancelled:
            broken_off.append(True)
            raise

    monkeypatch.setattr(Lane, "step", step)
    assert [c.finish_reason for c in stream] == ["cancelled"] and eventually(lambda: broken_off == [True])


def test_ctrl_c_during_the_prompt(slow):
    model, ids = slow
    with interrupt_after(0.5) as pressed, pytest.raises(KeyboardInterrupt):
        model.generate(ids)
    assert time.perf_counter() - pressed[0] < SOON
    assert model.generate(PROMPT, max_tokens=1).token_ids


def test_ctrl_c_while_loading(smollm2, tmp_path):
    wanted = smollm2.logits([1, 2, 3])
    own = shutil.copy(smollm2.path, tmp_path)  # a second load of the same file would find its weights in place

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ni.load(own, progress=interrupt)
    with ni.load(own, n_ctx=64) as model:
        assert np.array_equal(model.logits([1, 2, 3]), wanted)


def test_ctrl_c_in_a_stream_keeps_what_it_had(smollm2):
    wanted = smollm2.generate(PROMPT, max_tokens=40, ignore_eos=True)
    stream, chunks = smollm2.stream(PROMPT, max_tokens=None, ignore_eos=True), []
    with interrupt_after(0.3) as pressed, pytest.raises(KeyboardInterrupt):
        chunks.extend(stream)
    assert time.perf_counter() - pressed[0] < SOON
    done = stream.result()
    assert done.finish_reason == "cancelled" and len(done.token_ids) > 0
    n = min(len(done.token_ids), 40)
    assert done.token_ids[:n] == wanted.token_ids[:n]
    assert done.text.startswith("".join(map(str, chunks))) and chunks
    assert list(stream) == []


def test_ctrl_c_in_generate_leaves_a_sound_model_and_session(smollm2):
    wanted = smollm2.generate(PROMPT, max_tokens=8).token_ids
    with smollm2.session() as session:
        with interrupt_after(0.3) as pressed, pytest.raises(KeyboardInterrupt):
            session.generate(PROMPT, max_tokens=None, ignore_eos=True)
        assert time.perf_counter() - pressed[0] < SOON
        assert session.generate(PROMPT, max_tokens=8).token_ids == wanted
    assert smollm2.generate(PROMPT, max_tokens=8).token_ids == wanted


def test_signal_handlers_may_cancel_and_use_the_model(smollm2):
    wanted, seen = smollm2.logits([1]), []
    stream = smollm2.stream(PROMPT, max_tokens=None, ignore_eos=True)

    def handle(*_):
        seen.append(smollm2.logits([1]))
        stream.cancel()

    with at_alarm(handle):
        chunks = list(stream)
    assert chunks[-1].finish_reason == "cancelled" and np.array_equal(seen[0], wanted)
    assert smollm2.generate(PROMPT, max_tokens=1).token_ids


def test_a_signal_handler_may_close_the_model(tiny_model):
    stream = tiny_model.stream([5, 6], max_tokens=None, ignore_eos=True, logits_processor=lambda ids, logits: time.sleep(0.01) or logits)
    with at_alarm(lambda *_: tiny_model.close()), pytest.raises(ni.ModelClosed):
        list(stream)


def test_in_the_midst_of_a_measured_step_a_signal_handler_cannot_use_the_model(tiny_model):
    """It would wait for the step below it on the stack."""
    seen = []

    def handle(*_):
        for verb in (lambda: tiny_model.logits([1]), tiny_model.close):
            try:
                verb()
            except RuntimeError as e:
                seen.append(str(e))

    with at_alarm(handle), tiny_model.runtime.turn():
        while len(seen) < 2:
            time.sleep(0.01)
    assert all("signal handler" in text for text in seen)
    assert tiny_model.generate([5], max_tokens=1).token_ids


def test_an_error_in_a_processor_reaches_the_caller(smollm2):
    def fail(token_ids, logits):
        if len(token_ids) == 2:
            raise ZeroDivisionError("mine")
        return logits

    stream = smollm2.stream(PROMPT, logits_processor=fail)
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(stream)
    assert len(stream.result().token_ids) == 2 and stream.result().finish_reason == "cancelled"


def test_leaving_the_block_ends_it(smollm2):
    with smollm2.stream(PROMPT, max_tokens=100) as stream:
        next(stream)
        kv = stream._request.cache
    assert stream.result().finish_reason == "cancelled" and eventually(lambda: not kv.n_blocks)


@pytest.mark.parametrize("started", [False, True])
def test_an_abandoned_stream_frees_its_cache(smollm2, started):
    stream = smollm2.stream(PROMPT, max_tokens=100)
    if started:
        next(stream)
    kv, request = stream._request.cache, weakref.ref(stream._request)
    assert (kv is not None) == started
    del stream
    gc.collect()
    assert eventually(lambda: request() is None and (kv is None or not kv.n_blocks))


def test_a_paused_stream_frees_its_cache_too(smollm2):
    """Nobody computes it when it is dropped."""
    stream = smollm2.stream(PROMPT, max_tokens=1000, ignore_eos=True)
    next(stream)
    request, kv = weakref.ref(stream._request), stream._request.cache
    assert eventually(lambda: request().paused)
    del stream
    assert request() is None and not kv.n_blocks


def test_a_finished_stream_holds_no_cache(smollm2):
    stream = smollm2.stream(PROMPT, max_tokens=2)
    next(stream)
    kv = stream._request.cache
    list(stream)
    assert stream._request.cache is None and (kv is None or not kv.n_blocks)


def test_one_consumer_at_a_time(smollm2):
    stream = None

    def meddle(token_ids, logits):
        next(stream)

    stream = smollm2.stream(PROMPT, logits_processor=meddle)
    with pytest.raises(RuntimeError, match="already being iterated"):
        next(stream)
