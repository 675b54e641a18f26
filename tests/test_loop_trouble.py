"""The loop when something happens that is nobody's wish: threads that do not start, processors that exit, signals that others get."""

import signal
import threading
import time

import numpy as np
import pytest
from scheduler_tools import facts, prompts_of, spy_steps
from test_loop import LONG, eventually, out, slowly

import numainfer as ni
from numainfer.engine.engine import Engine, Lane
from numainfer.serving.generation import Generation
from numainfer.serving.answer import Answer


def test_a_call_for_which_no_thread_starts_is_given_up(load_tiny, monkeypatch):
    """It raises, and nobody computes it later."""
    model, real = load_tiny(1, n_ctx=None), threading.Thread.start

    def start(thread):
        if thread.name == "numainfer-lane-0":
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for call in (lambda: model.generate([5], **LONG), lambda: model.generate([[5], [6]], **LONG),
                     lambda: next(model.stream([5], **LONG))):  # fmt: skip
            with pytest.raises(RuntimeError, match="new thread"):
                call()
        request = Answer(model.runtime, np.array([5], np.int32), ni.SamplingParams(**LONG))
        with pytest.raises(RuntimeError, match="new thread"):
            model.runtime.submit(request)
        assert request.cancelled
    steps = spy_steps(monkeypatch)
    assert len(model.generate([7], max_tokens=3, ignore_eos=True).token_ids) == 3
    assert eventually(lambda: out(model) == 0 and not model.runtime.loop._reserved) and len(steps) == 3


def test_one_that_has_ended_is_not_begun(load_tiny):
    """It may have ended on its way to the loop."""
    model = load_tiny(1, n_ctx=None)
    ended, other = (Answer(model.runtime, np.array([5], np.int32), ni.SamplingParams(max_tokens=2)) for _ in range(2))
    ended.end()
    model.runtime.submit(ended, other)
    other.join()
    assert ended.cache is None and ended.completion().finish_reason == "cancelled" and not model.runtime.loop._reserved


def test_one_that_a_processor_began_is_cancelled(load_tiny):
    """From another thread, while the loop's own thread computes it for the processor."""
    model, inner = load_tiny(1, n_ctx=None), []

    def process(token_ids, logits):
        if not inner:
            inner.append(Answer(model.runtime, np.array([6], np.int32), ni.SamplingParams(**LONG, logits_processor=slowly(0.01))))
            model.runtime.submit(inner[0])
        return logits

    def cancel():
        assert eventually(lambda: inner and inner[0].generation is not None and len(inner[0].generation.token_ids) > 2)
        inner[0].cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    start = time.monotonic()
    assert len(model.generate([5], max_tokens=2, ignore_eos=True, logits_processor=process).token_ids) == 2
    canceller.join()
    assert time.monotonic() - start < 2 and inner[0].completion().finish_reason == "cancelled"


def test_a_processor_that_exits_ends_the_answers_of_its_step(load_tiny):
    """Not those whose prompts are read, nor those that come."""
    model, prompt = load_tiny(1, n_ctx=None, n_batch=4), prompts_of([200])[0]
    wanted = facts(model.generate(prompt, max_tokens=3))

    def leave(token_ids, logits):
        if len(token_ids) == 3:
            raise SystemExit("enough")
        return logits

    leaves = Answer(model.runtime, np.array([5], np.int32), ni.SamplingParams(**LONG, logits_processor=leave))
    stays = Answer(model.runtime, prompt, ni.SamplingParams(max_tokens=3))
    model.runtime.submit(leaves, stays)
    leaves.join()
    assert isinstance(leaves.error, SystemExit) and not stays.ended
    stays.join()
    assert facts(stays.completion()) == wanted


def test_a_signal_that_another_thread_was_given_ends_the_wait(tiny_model):
    """The kernel gives it to any thread that does not block it, and only the main thread runs its handler."""

    def handle(*_):
        raise KeyboardInterrupt

    over, before = threading.Event(), signal.signal(signal.SIGALRM, handle)
    other = threading.Thread(target=over.wait, args=(20,))
    other.start()  # whose mask has it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            tiny_model.generate([5], **LONG, logits_processor=slowly(0.02))
        assert time.monotonic() - start < 2  # of five
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGALRM, before)
        over.set()
        other.join()


def test_a_processor_cannot_use_the_session_of_its_stream(load_tiny):
    """Also while nobody waits for the stream: it is computed ahead."""
    model, told = load_tiny(1, n_ctx=None), []
    with model.session() as session:

        def process(token_ids, logits):
            if len(token_ids) == 5:
                try:
                    session.generate([7], max_tokens=1)
                except RuntimeError as e:
                    told.append(str(e))
            return logits

        stream = session.stream([5, 6], max_tokens=12, ignore_eos=True, logits_processor=process)
        next(stream)
        assert eventually(lambda: told)
        assert "the session is busy" in told[0] and len(stream.finish().token_ids) == 12


def test_a_sessions_next_call_waits_until_no_step_works_on_it(load_tiny, monkeypatch):
    """A stream of it that is cancelled in the midst of a long step has not ended before the step has."""
    model, long = load_tiny(1, n_ctx=None), prompts_of([200])[0]
    wanted = facts(model.generate(long[:100], max_tokens=3))
    begun = threading.Event()
    spy_steps(monkeypatch, lambda lane, segments: (begun.set(), time.sleep(0.1)))
    with model.session() as session:
        stream = session.stream(long, max_tokens=3)
        stream._request.in_use.acquire()
        model.runtime.submit(stream._request)
        assert begun.wait(10)
        stream._request.in_use.release()
        assert facts(session.generate(long[:100], max_tokens=3))[:3] == wanted[:3]
        assert stream.result().finish_reason == "cancelled" and session.n_past == 102


def test_the_last_token_is_told_with_the_reason(load_tiny, monkeypatch):
    """Whoever looks while another thread chooses sees the reason first: with one all tokens are there."""
    model = load_tiny(1, n_ctx=None)
    generation = Generation(model.tokenizer, model.n_vocab, np.array([5], np.int32), ni.SamplingParams(max_tokens=2, ignore_eos=True), 9)
    logits = np.zeros(model.n_vocab, np.float32)
    logits[40] = 1
    generation.choose(logits)
    reason = Generation.finish_reason.fget

    def late(self):
        if len(self.token_ids) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(Generation, "finish_reason", property(reason))
                self.sampler.sample(logits)
        return reason(self)

    for look in (lambda: generation.take().token_ids, lambda: generation.completion(Answer(
            model.runtime, np.array([5], np.int32), ni.SamplingParams()).clock, 0).token_ids[1:]):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(Generation, "finish_reason", property(late))
            assert look() == (40,)
        del generation.token_ids[1:]
        generation.sampler.core.finish_reason = None


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_no_step_begins_in_a_model_that_is_being_closed(load_tiny, monkeypatch, mode):
    """Who waited for his turn while the model was closed has it before the memory is given back: it is not his any more."""
    model, real, late, begun = load_tiny(2, n_ctx=None), Lane.step, [], threading.Event()
    runtime, close = model.runtime, Engine.close
    monkeypatch.setattr(Engine, "close", lambda engine: (time.sleep(0.1), close(engine)))

    def step(lane, *args, **options):
        if runtime.closed:
            late.append(lane.nodes)
        begun.set()
        return real(lane, *args, **options)

    monkeypatch.setattr(Lane, "step", step)
    closer = threading.Thread(target=lambda: begun.wait(10) and model.close())
    closer.start()
    with pytest.raises(ni.ModelClosed):
        model.generate(prompts_of([50] * 16), **LONG, mode=mode)
    closer.join()
    assert late == []
