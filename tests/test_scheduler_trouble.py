"""Lists of prompts when something happens: bad prompts, errors, Ctrl-C, other threads, close, fork."""

import os
import pickle
import signal
import threading
import time
import traceback
import warnings

import pytest
from api_tools import force, interrupt_after
from scheduler_tools import LENGTHS, N, facts, one_by_one, prompts_of, spy_steps

import numainfer as ni
from numainfer.errors import CancelledWarning
from numainfer.serving import lists

SOON = 0.5  # seconds; 0.05 is promised, the rest is for a busy machine


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_one_bad_prompt_does_not_lose_the_others(load_tiny, mode):
    model = load_tiny(2, n_ctx=32)
    prompts = [[5, 6], list(range(3, 40)), [7], [N], [8, 9], []]
    done = model.generate(prompts, max_tokens=4, mode=mode)
    for i in (0, 2, 4):
        assert facts(done[i]) == facts(model.generate(prompts[i], max_tokens=4)) and done[i].error is None
    for i, error, says in ((1, ni.ContextOverflow, "prompt[1]: 37 tokens"), (3, ValueError, "prompt[3][0] = 285"),
                           (5, ValueError, "prompt[5]: is empty")):  # fmt: skip
        assert done[i].finish_reason == "error" and isinstance(done[i].error, error) and says in str(done[i].error)
        assert done[i].text == "" and done[i].token_ids == () and says in repr(done[i])
        assert done[i].to_dict()["error"].startswith(error.__name__)
        with pytest.raises(error):
            model.generate(prompts[i], max_tokens=4)
    assert [d.finish_reason for d in model.generate(["", ""])] == ["error"] * 2  # nothing is left to run


def test_a_processor_that_raises_ends_its_own_answer(load_tiny):
    model, prompts = load_tiny(2), prompts_of([3, 3, 3])
    params = [ni.SamplingParams(max_tokens=6, logits_processor=force(ids), ignore_eos=True, logprobs=0)
              for ids in ([40] * 6, [41, 42], [43] * 6)]  # the second has nothing to say to the third token
    done = model.generate(prompts, params)
    assert [d.token_ids for d in done] == [(40,) * 6, (41, 42), (43,) * 6]
    assert [d.finish_reason for d in done] == ["length", "error", "length"]
    assert isinstance(done[1].error, IndexError) and len(done[1].logprobs) == 2 and done[1].text


@pytest.mark.parametrize("call, error, says", [
    (lambda m: m.generate([]), ValueError, "empty list"),
    (lambda m: m.generate(["a"], on_interrupt="stop"), ValueError, "on_interrupt = 'stop': wanted one of raise, return"),
    (lambda m: m.generate(["a"], mode="fast"), ValueError, "mode = 'fast': wanted one of auto, latency, throughput"),
    (lambda m: m.generate("a", mode=1), TypeError, "mode"),
    (lambda m: m.generate(["a"], progress="yes"), TypeError, "progress"),
    (lambda m: m.generate(["a"], max_token=1), TypeError, "did you mean max_tokens"),
    (lambda m: m.generate(["a"], stop_token_ids=[N]), ValueError, "285"),
    (lambda m: m.generate(["a"], logit_bias={N: 1.0}), ValueError, "285"),
    (lambda m: m.generate(["a"], {"max_tokens": 1}), TypeError, "params: found dict"),
    (lambda m: m.generate(["a", "b"], [ni.SamplingParams()]), ValueError, "1 SamplingParams for 2 prompts"),
    (lambda m: m.generate(["a"], [None]), TypeError, r"params\[0\]: found NoneType"),
    (lambda m: m.generate("a", [ni.SamplingParams()]), TypeError, "params: found list"),
])  # fmt: skip
def test_what_is_wrong_with_the_call_raises(load_tiny, monkeypatch, call, error, says):
    model = load_tiny(1)
    steps = spy_steps(monkeypatch)
    with pytest.raises(error, match=says):
        call(model)
    assert steps == []


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_an_error_in_a_lane_reaches_the_caller(load_tiny, monkeypatch, mode):
    model, prompts = load_tiny(2), prompts_of(LENGTHS)
    wanted = one_by_one(model, prompts, max_tokens=6)
    count = iter(range(1000))

    def fail(lane, segments):
        if next(count) == 5:
            raise RuntimeError("the lane broke")

    with monkeypatch.context() as patch:
        spy_steps(patch, fail)
        with pytest.raises(RuntimeError, match="the lane broke"):
            model.generate(prompts, max_tokens=100, ignore_eos=True, mode=mode)
    assert [facts(d) for d in model.generate(prompts, max_tokens=6, mode=mode)] == wanted


def test_no_thread_left_for_a_lane(load_tiny, monkeypatch):
    model, real = load_tiny(2), threading.Thread.start

    def start(thread):
        if thread.name == "numainfer-lane-1":
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            model.generate(prompts_of(LENGTHS), max_tokens=200, ignore_eos=True, mode="throughput")
    assert model.generate([[5]], max_tokens=1, mode="throughput")[0].token_ids


def test_progress(load_tiny, capfd):
    model, seen = load_tiny(2), []
    model.generate([[5], [N], [6], [7]], max_tokens=5, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4) and seen == sorted(seen)
    model.generate([[5]] * 3, max_tokens=5)
    assert capfd.readouterr() == ("", "")
    model.generate([[5]] * 60, max_tokens=200, ignore_eos=True, progress=True)  # a bar appears after 0.2 s
    out, err = capfd.readouterr()
    assert out == "" and (not err or "Generating" in err and "tokens/s" in err)


def test_a_progress_callable_may_end_it(load_tiny):
    def refuse(done, total):
        if done >= 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load_tiny(2).generate([[5]] * 9, [ni.SamplingParams(max_tokens=1 + 9 * n, ignore_eos=True) for n in range(9)],
                         progress=refuse)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_ctrl_c_gives_what_there_is(load_tiny, mode):
    model = load_tiny(2, n_ctx=None)
    prompts = prompts_of([4] * 200)
    params = [ni.SamplingParams(max_tokens=1 if i % 2 else 250) for i in range(200)]
    model.generate(prompts[:4], max_tokens=1, mode=mode)  # teams are made
    with interrupt_after(0.15) as pressed, warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        done = model.generate(prompts, params, ignore_eos=True, logprobs=0, mode=mode, on_interrupt="return")
    if pressed and any(d.finish_reason == "cancelled" for d in done):
        assert time.perf_counter() - pressed[0] < SOON
    assert len(done) == 200 and {d.finish_reason for d in done} <= {"length", "cancelled"}
    for i in [i for i, d in enumerate(done) if 0 < len(d.token_ids) < 250][:20]:
        whole = model.generate(prompts[i], params[i], ignore_eos=True, logprobs=0)
        n = len(done[i].token_ids)
        assert done[i].token_ids == whole.token_ids[:n] and done[i].logprobs == whole.logprobs[:n]
        assert whole.text.startswith(done[i].text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_ctrl_c_in_long_prompts_of_a_real_model(smollm2):
    ids = smollm2.tokenizer.encode("All of this takes a while. " * 200)[:1200]
    with interrupt_after(0.4) as pressed, pytest.warns(CancelledWarning):
        done = smollm2.generate([ids] * 30, max_tokens=5, on_interrupt="return")
    assert time.perf_counter() - pressed[0] < SOON
    assert "cancelled" in {d.finish_reason for d in done} <= {"cancelled", "length"}
    assert done[-1].text == "" and done[-1].usage.prompt_tokens == 1200 and done[-1].timings.time_to_first_token is None
    assert smollm2.generate(["The capital of France is"], max_tokens=3)[0].text


def test_ctrl_c_raises_with_what_was_finished(load_tiny):
    model = load_tiny(1)
    params = [ni.SamplingParams(max_tokens=1)] * 3 + [ni.SamplingParams(max_tokens=None, ignore_eos=True)]

    def press(done, total):
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="interrupted: 1 of 4 prompts was cancelled") as caught:
        model.generate([[5]] * 4, params, progress=press, logits_processor=lambda ids, logits: time.sleep(0.005) or logits)
    assert [d.finish_reason for d in caught.value.completions] == ["length"] * 3 + ["cancelled"]
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ni.Interrupted) and again.completions == caught.value.completions and str(again) == str(caught.value)


@pytest.mark.parametrize("last, says", [(6, "interrupted: 3 of 8 prompts were"), (8, "interrupted: 1 of 8 prompts was")])
def test_ctrl_c_warns_once(load_tiny, last, says):
    model, started = load_tiny(1, n_batch=1), []

    def press(done, total):
        if done == last - 1 and not started:
            started.append(True)
            signal.raise_signal(signal.SIGINT)

    def wait(ids, logits):
        while not started:
            time.sleep(0.005)
        time.sleep(0.05)
        return logits

    quick, slow = ni.SamplingParams(max_tokens=1), ni.SamplingParams(max_tokens=200, ignore_eos=True, logits_processor=wait)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        done = model.generate([[5]] * 8, [quick] * (last - 1) + [slow] * (9 - last), progress=press,
                              on_interrupt="return")  # fmt: skip
    assert [d.finish_reason for d in done] == ["length"] * (last - 1) + ["cancelled"] * (9 - last)
    (warning,) = found
    assert warning.category is CancelledWarning and str(warning.message) == f"{says} cancelled" and warning.filename == __file__
    assert issubclass(CancelledWarning, RuntimeWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate([[5]] * 3, max_tokens=2)


def test_ctrl_c_again_raises(load_tiny):
    """A processor holds the loop up, so that nothing ends."""
    model, begun, go_on = load_tiny(1), threading.Event(), threading.Event()

    def hold(ids, logits):
        begun.set()
        go_on.wait(20)
        return logits

    def press(done, total):
        if begun.is_set():
            signal.raise_signal(signal.SIGINT)

    try:
        with interrupt_after(0.5), pytest.raises(KeyboardInterrupt) as caught:
            model.generate([[5], [6]], max_tokens=3, progress=press, logits_processor=hold)
        assert not isinstance(caught.value, ni.Interrupted)
    finally:
        go_on.set()


def test_other_threads_take_turns(load_tiny, monkeypatch):
    model, prompts = load_tiny(2), prompts_of([8] * 12)
    wanted = one_by_one(model, prompts, max_tokens=30, ignore_eos=True)
    steps, found, errors = spy_steps(monkeypatch), {}, []

    def work(name):
        try:
            if name == "stream":
                stream = model.stream(prompts[0], max_tokens=30, ignore_eos=True)
                list(stream)
                done = [stream.result()]
            else:
                done = model.generate(prompts, max_tokens=30, ignore_eos=True, mode=name[:-2])
            found[name] = [facts(d) for d in done]
        except BaseException as e:
            errors.append(e)

    names = ["throughput 1", "latency 1", "throughput 2", "stream"]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and errors == []
    assert found == {name: wanted if name != "stream" else wanted[:1] for name in names}
    whole = [step for step in steps if len(step[0]) == 2]
    for lane, _, start, end in steps:  # those of all nodes run alone
        others = [w for w in whole if not (w[3] <= start or end <= w[2]) and (lane, start) != (w[0], w[2])]
        assert others == []


def test_a_processor_may_use_the_model(load_tiny):
    model = load_tiny(2)

    def process(ids, logits):
        return model.logits([5, 6, *ids])

    wanted = model.generate([5, 6], max_tokens=5, ignore_eos=True).token_ids
    done = model.generate([[9], [10], [11]], max_tokens=5, logits_processor=process, ignore_eos=True, mode="throughput")
    assert [d.token_ids for d in done] == [wanted] * 3


@pytest.mark.parametrize("mode", ["latency", "throughput"])
@pytest.mark.parametrize("where", ["thread", "callable"])
def test_closing_ends_it(load_tiny, where, mode):
    model = load_tiny(2)
    if where == "thread":
        threading.Timer(0.2, model.close).start()
    with pytest.raises(ni.ModelClosed):
        for _ in range(1000):
            model.generate(prompts_of([50] * 30), max_tokens=200, ignore_eos=True, mode=mode,
                           progress=None if where == "thread" else lambda done, total: model.close())
    with pytest.raises(ni.ModelClosed):
        model.generate(["a"])


def test_fork_during_a_run(load_tiny):
    model, parent, children = load_tiny(2), os.getpid(), []

    def fork(done, total):
        if not children and os.getpid() == parent:
            children.append(os.fork())

    status = 1
    try:
        done = model.generate(prompts_of([9] * 10), max_tokens=40, ignore_eos=True, progress=fork)
    except ni.ForkedProcess:
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        if os.getpid() != parent:
            os._exit(status)
    assert all(len(d.token_ids) == 40 for d in done)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


def test_ctrl_c_between_a_piece_of_news_and_its_count(load_tiny, monkeypatch):
    real, lost = lists.wait_for, []

    def wait_for(*args):
        found = real(*args)
        if found is not None and not lost:
            lost.append(found)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(lists, "wait_for", wait_for)
    with pytest.raises(ni.Interrupted) as interrupted:
        load_tiny(1).generate([[5], [6]] * 40, max_tokens=5, ignore_eos=True)
    assert lost and len(interrupted.value.completions) == 80
    assert {c.usage.prompt_tokens for c in interrupted.value.completions} == {1}  # also of those that had not begun
