"""The loop: callers of every kind share its steps, join and leave between them, and none notices the others but by time."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from scheduler_tools import facts, one_by_one, prompts_of, spy_steps

import numainfer as ni
from numainfer._core import Cancelled
from numainfer.engine.engine import Lane
from numainfer.serving import lanes, loop, requests
from numainfer.serving.generation import Generation
from numainfer.serving.answer import AHEAD, Answer

SOON = 0.5  # seconds; 0.05 is promised, the rest is for a busy machine
LONG = {"max_tokens": None, "ignore_eos": True}


def eventually(true, seconds=10):
    """Whether something comes true."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    return true()


def in_threads(*works):
    """Run functions in a thread each; what they return, or raise."""
    found = [None] * len(works)

    def work(i):
        try:
            found[i] = works[i]()
        except BaseException as e:
            found[i] = e

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return found


def slowly(seconds):
    """A logits processor that takes its time."""
    return lambda token_ids, logits: time.sleep(seconds) or logits


def loop_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("numainfer-lane")]


def out(model):
    """Blocks of KV memory that somebody holds."""
    return sum(pool.n_out for pool in model.runtime.engine.caches.pools)


@pytest.mark.parametrize("nodes", [1, 2])
def test_callers_of_every_kind_share_steps(load_tiny, monkeypatch, nodes):
    model, prompts = load_tiny(nodes, n_ctx=None), prompts_of([9, 40, 3, 90, 17, 25])
    texts = [[5, 6, 7], [8, 9]]
    verbs = [
        lambda: facts(model.generate(prompts[0], max_tokens=60, ignore_eos=True)),
        lambda: facts(model.stream(prompts[1], max_tokens=60, ignore_eos=True).finish()),
        lambda: [facts(d) for d in model.generate(prompts[2:4], max_tokens=60, ignore_eos=True, mode="latency")],
        lambda: facts(model.session().generate(prompts[4], max_tokens=60, ignore_eos=True)),
        lambda: model.logits(prompts[5], all=True).tobytes(),
        lambda: model.logits(prompts[5]).tobytes(),
        lambda: model.score(prompts[5]).logprobs.tobytes(),
        lambda: model.embed(texts).tobytes(),
        lambda: "".join(str(chunk) for chunk in model.stream(prompts[1], max_tokens=60, ignore_eos=True)),
    ]
    wanted = [verb() for verb in verbs]
    together, real = [], Lane.step

    def step(lane, segments, rows, **options):
        together.append(len(segments))
        return real(lane, segments, rows, **options)

    monkeypatch.setattr(Lane, "step", step)
    for _ in range(3):
        assert in_threads(*verbs) == wanted
    assert max(together) >= 3
    assert eventually(lambda: out(model) == 0)


def test_a_stream_does_not_wait_for_long_prompts(load_tiny, monkeypatch):
    """Its token stands in each step, and of a prompt there is only as much as is read soon; without it a prompt has n_batch rows."""
    model, prompt = load_tiny(1, n_ctx=None, n_batch=64), prompts_of([200])[0]
    wanted, seen, real = model.generate(prompt, max_tokens=3), [], Lane.step

    def step(lane, segments, rows, **options):
        n = sum(len(s[1]) for s in segments)
        seen.append((len(segments), n))
        time.sleep(0.004 * n)  # as on a model whose tokens take 4 ms each
        return real(lane, segments, rows, **options)

    monkeypatch.setattr(Lane, "step", step)
    stream = model.stream([5, 6], **LONG)
    waits, got = [], []
    next(stream)
    caller = threading.Thread(target=lambda: got.append(model.generate(prompt, max_tokens=3)))
    caller.start()
    while caller.is_alive():
        start = time.perf_counter()
        next(stream)
        waits.append(time.perf_counter() - start)
    stream.cancel()
    caller.join()
    assert facts(got[0]) == facts(wanted)
    mixed = [n for segments, n in seen if segments == 2 and n > 2]
    assert mixed and max(mixed[3:]) <= 25 and sorted(waits)[-4] < 0.25
    seen.clear()
    model.generate(prompt, max_tokens=1)
    assert [n for _, n in seen] == [64, 64, 64, 8]


def test_the_first_piece_is_taken_before_the_next_step_begins(load_tiny, monkeypatch):
    """Workers on all CPUs would keep its reader from running for a whole step. Nobody waits for a reader who does not wait."""
    model, events, answers = load_tiny(1, n_ctx=None), [], []
    here, handed, second = threading.Event(), threading.Event(), threading.Event()
    step, take, wait_for = Lane.step, Generation.take, requests.wait_for

    class First:
        """The lock of an answer, which tells that somebody waits for the first piece to be taken."""

        def __init__(self, lock):
            self.locked, self.release, self._lock = lock.locked, lock.release, lock

        def acquire(self, timeout):
            handed.set()
            return self._lock.acquire(timeout=timeout)

    def own_step(*args, **options):
        assert here.wait(10)
        if not events:
            assert eventually(lambda: answers[0]._waits)
        else:  # that hands nothing over: the reader need not wait for it
            second.set()
            handed.set()
        events.append("step")
        return step(*args, **options)

    def own_take(generation):
        if len(generation.token_ids):
            second.wait(0.1)  # time enough for a step that waits for nobody
            events.append("piece")
        return take(generation)

    monkeypatch.setattr(Lane, "step", own_step)
    monkeypatch.setattr(Generation, "take", own_take)
    monkeypatch.setattr(requests, "wait_for", lambda *args: (wait_for(*args), handed.wait(10))[0])
    monkeypatch.setattr(lanes, "_HAND", 60)
    with model.stream([5, 6, 7], max_tokens=3, ignore_eos=True) as stream:
        answers.append(stream._request)
        answers[0]._first = First(answers[0]._first)
        here.set()
        assert len(list(stream)) >= 1
    assert events[:3] == ["step", "piece", "step"] and events.count("step") == 3
    handed.clear()
    late = Answer(model.runtime, np.array([5, 6, 7], np.int32), ni.SamplingParams(max_tokens=3, ignore_eos=True), ahead=AHEAD)
    late._first = First(late._first)
    monkeypatch.setattr(Lane, "step", step)
    model.runtime.submit(late)
    assert eventually(lambda: late.ended) and not handed.is_set()


@pytest.mark.parametrize("rows, seconds, wanted", [(512, 3.2, 11), (64, 0.035, 64), (32, 0.035, 64), (16, 8.0, 1)])
def test_the_pace_follows_what_steps_took(rows, seconds, wanted):
    pace = lanes._Pace(512)
    pace.took(rows, seconds)
    assert pace.rows == pytest.approx(wanted, abs=1)
    for _ in range(40):  # 5 ms a row, and 20 for the answers
        pace.took(0, 0.02)
        pace.took(pace.rows, 0.02 + 0.005 * pace.rows)
    assert 0.06 < 0.02 + 0.005 * pace.rows <= 0.075


def broken_off_when(monkeypatch, condition):
    """Steps of which the condition holds take two seconds, unless they are broken off; the list of those that were."""
    real, broken = Lane.step, []

    def step(lane, segments, rows, stop=None, **options):
        if condition(segments):
            end = time.monotonic() + 2
            while time.monotonic() < end:
                time.sleep(0.01)
                if stop():
                    broken.append(len(segments))
                    raise Cancelled
        return real(lane, segments, rows, stop=stop, **options)

    monkeypatch.setattr(Lane, "step", step)
    return broken


def test_cancelling_one_breaks_a_long_step_off_and_the_others_go_on(load_tiny, monkeypatch):
    model, prompts = load_tiny(1, n_ctx=None, n_batch=256), prompts_of([100, 120])
    wanted = facts(model.generate(prompts[0], max_tokens=4))
    lane = model.runtime.loop.lanes()[0]
    lane._pace = lanes._Pace(256)
    lane._pace.took(256, 3.0)
    broken = broken_off_when(monkeypatch, lambda segments: len(segments) == 2)
    gone = Answer(model.runtime, prompts[1], ni.SamplingParams())
    stays = Answer(model.runtime, prompts[0], ni.SamplingParams(max_tokens=4))
    model.runtime.submit(gone, stays)
    assert eventually(lambda: gone.cache is not None)
    time.sleep(0.05)
    start, cache = time.perf_counter(), gone.cache
    gone.cancel()
    assert eventually(lambda: gone.ended and not cache.n_blocks) and time.perf_counter() - start < SOON
    stays.join()
    assert broken == [2] and facts(stays.completion()) == wanted and gone.completion().finish_reason == "cancelled"


def test_of_two_steps_in_a_row_one_is_broken_off_at_most(load_tiny, monkeypatch):
    """Whoever cancels again and again does not keep others from going on."""
    model, prompts = load_tiny(1, n_ctx=None, n_batch=256), prompts_of([60] * 4)
    lane = model.runtime.loop.lanes()[0]
    lane._pace = lanes._Pace(256)
    lane._pace.took(256, 3.0)
    stays = Answer(model.runtime, prompts[0], ni.SamplingParams(max_tokens=2))
    others = [Answer(model.runtime, prompt, ni.SamplingParams()) for prompt in prompts[1:]]
    steps, real = [], Lane.step

    def step(lane, segments, rows, stop=None, **options):
        broke = False
        if len(segments) > 1:
            others.pop().cancel()
            end = time.monotonic() + 0.2
            while time.monotonic() < end and not (broke := stop()):
                time.sleep(0.01)
        steps.append((broke, sum(len(s[1]) for s in segments)))
        if broke:
            raise Cancelled
        return real(lane, segments, rows, stop=stop, **options)

    monkeypatch.setattr(Lane, "step", step)
    model.runtime.submit(stays, *others)
    stays.join()
    assert steps[0] == (True, 240) and not steps[1][0] and steps[1][1] < 30
    assert not any(a and b for (a, _), (b, _) in zip(steps, steps[1:]))


def test_a_stream_is_computed_a_little_ahead_and_no_further(load_tiny):
    model = load_tiny(1, n_ctx=None)
    wanted = model.generate([5, 6], max_tokens=100, ignore_eos=True)
    stream = model.stream([5, 6], max_tokens=100, ignore_eos=True)
    first = next(stream)
    assert eventually(lambda: stream._request.paused)
    assert AHEAD <= len(stream.result().token_ids) <= AHEAD + len(first.token_ids)
    assert eventually(lambda: not loop_threads())  # nobody computes, and nobody waits
    late = next(stream)
    assert len(late.token_ids) >= AHEAD - 1
    ids = [*first.token_ids, *late.token_ids, *(i for chunk in stream for i in chunk.token_ids)]
    assert tuple(ids) == wanted.token_ids == stream.result().token_ids


def test_idle_it_takes_no_time(load_tiny):
    model = load_tiny(1, n_ctx=None)
    stream = model.stream([5, 6], **LONG)  # not finished, and nobody reads it
    next(stream)
    assert eventually(lambda: not loop_threads())
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.01
    stream.cancel()


def test_memory_is_waited_for_in_order(load_tiny, monkeypatch):
    """A large one is not overtaken by small ones behind it, whoever sent them; abandoned streams hold nobody up for ever."""
    model = load_tiny(1, n_ctx=None)
    unit = model.plan.kv.bytes(1)
    monkeypatch.setattr(loop, "kv_budget", lambda runtime, lane: 0)
    order = []
    sent = [Answer(model.runtime, np.array([5, 6], np.int32), ni.SamplingParams(max_tokens=n, ignore_eos=True),
                   notify=lambda i=i: order.append(i)) for i, n in enumerate([3, 200, 2, 2])]  # fmt: skip
    model.runtime.submit(*sent)
    assert eventually(lambda: len(order) == 4) and order == [0, 1, 2, 3] and unit
    stream = model.stream([5], **LONG)
    next(stream)
    assert model.generate([6], max_tokens=2, ignore_eos=True).finish_reason == "length"
    stream.cancel()
    assert eventually(lambda: not model.runtime.loop._reserved)


def test_a_session_that_is_closed_ends_alone(load_tiny):
    model = load_tiny(1, n_ctx=None)
    session = model.session()

    def close(token_ids, logits):
        if len(token_ids) == 3:
            session.close()
        return logits

    def generate():
        return session.generate([7, 8], max_tokens=50, ignore_eos=True, logits_processor=close)

    found = in_threads(generate, lambda: model.generate([5], max_tokens=50, ignore_eos=True, logits_processor=slowly(0.002)))
    assert isinstance(found[0], ni.ModelClosed) and "session" in str(found[0]) and len(found[1].token_ids) == 50


def test_out_of_memory_ends_the_last_that_came(load_tiny, monkeypatch):
    model, real = load_tiny(1, n_ctx=None), Lane.step

    def step(lane, segments, rows, **options):
        if len(segments) > 1:
            raise ni.OutOfNodeMemory("no block")
        return real(lane, segments, rows, **options)

    monkeypatch.setattr(Lane, "step", step)
    done = model.generate([[5], [6], [7]], max_tokens=3, ignore_eos=True, mode="latency")
    assert [d.finish_reason for d in done] == ["length", "error", "error"] and isinstance(done[1].error, ni.OutOfNodeMemory)


def test_lanes_change_with_the_load(load_tiny, monkeypatch):
    """Few get all nodes together, many a node each; what was begun stays where it is."""
    model = load_tiny(2, n_ctx=None)
    model.runtime.step_seconds = {"latency": ((1, 1.0), (16, 8.0)), "throughput": ((1, 1.5), (16, 8.0))}
    wanted = model.generate([5, 6], max_tokens=250, ignore_eos=True)
    first = model.stream([5, 6], max_tokens=250, ignore_eos=True, logits_processor=slowly(0.002))
    next(first)
    many = model.generate([[7]] * 12, max_tokens=4, ignore_eos=True)
    assert {d.timings.mode for d in many} == {"throughput"}
    stats = model.stats()
    assert stats.mode == "throughput" and [lane.mode for lane in stats.lanes] == ["latency", "throughput", "throughput"]
    assert stats.lanes[0].sequences == 1 and stats.lanes[0].kv_bytes > 0 and sum(lane.tokens_per_second for lane in stats.lanes) > 0
    assert "waiting, mode throughput; node 0+1: 1 sequence, " in repr(stats) and stats._repr_html_().startswith("<table")
    assert stats.to_dict()["lanes"][0]["sequences"] == 1
    assert first.finish().timings.mode == "latency" and first.result().token_ids == wanted.token_ids
    assert model.generate([5], max_tokens=2).timings.mode == "latency"


def test_a_processor_may_use_the_model(load_tiny):
    model = load_tiny(2, n_ctx=None)
    wanted = model.generate([5, 6], max_tokens=5, ignore_eos=True).token_ids

    def process(ids, logits):
        one = model.generate([5, 6, *ids], max_tokens=1, ignore_eos=True, logprobs=0)
        (chunk,) = model.stream([5, 6, *ids], max_tokens=1, ignore_eos=True)
        two = model.generate([[5, 6, *ids]], max_tokens=1, ignore_eos=True)
        assert one.token_ids == chunk.token_ids == two[0].token_ids
        return model.logits([5, 6, *ids])

    assert model.generate([9], max_tokens=5, ignore_eos=True, logits_processor=process).token_ids == wanted
    params = [ni.SamplingParams(max_tokens=5, ignore_eos=True, logits_processor=own) for own in (None, process, None)]
    done = model.generate([[5, 6]] * 3, params, mode="latency")  # the others' logits stand where they stood
    assert [d.token_ids for d in done] == [wanted] * 3


def test_a_processor_may_end_its_own_stream(tiny_model):
    stream = tiny_model.stream([5], **LONG, logits_processor=lambda ids, logits: (len(ids) == 3 and stream.cancel()) or logits)
    assert list(stream)[-1].finish_reason == "cancelled" and len(stream.result().token_ids) <= 4


def test_a_processor_may_close_the_model(tiny_model):
    with pytest.raises(ni.ModelClosed):
        tiny_model.generate([5], **LONG, logits_processor=lambda ids, logits: (len(ids) == 3 and tiny_model.close()) or logits)


def test_who_leaves_the_model_to_the_loop_closes_it_there(tiny_path):
    """The last to hold it may be the loop's own thread."""
    for _ in range(10):
        model = ni.load(tiny_path)
        stream = model.stream([5, 6], **LONG)
        next(stream)
        team = model.runtime.engine.lane.team
        del model, stream
        gc.collect()
        assert eventually(lambda: closed(team))  # noqa: B023


def closed(team):
    try:
        return not len(team)
    except ValueError:
        return True


def test_notify(load_tiny):
    """After each step that brought something to a request that is taken piece by piece, and once at the end of any."""
    model, heard = load_tiny(1, n_ctx=None), []
    ids, params = np.array([5, 6], np.int32), ni.SamplingParams(max_tokens=10, ignore_eos=True)
    whole = Answer(model.runtime, ids, params, notify=lambda: heard.append(whole.ended))
    model.runtime.submit(whole)
    assert eventually(lambda: whole.ended) and eventually(lambda: heard == [True])
    heard.clear()
    # It must not raise; where it does, nobody suffers.
    pieces = Answer(model.runtime, ids, params, ahead=64, notify=lambda: heard.append(pieces.ended) or 1 / 0)
    model.runtime.submit(pieces)
    assert eventually(lambda: len(heard) == 10) and heard == [False] * 9 + [True]
    assert pieces.completion().token_ids == whole.completion().token_ids == pieces.take().token_ids
    cut = Answer(model.runtime, ids, ni.SamplingParams(**LONG), ahead=2, notify=lambda: None)
    model.runtime.submit(cut)
    assert eventually(lambda: cut.paused)
    cut.read_all()
    assert eventually(lambda: cut.ended) and cut.completion().finish_reason == "length"


def test_a_signal_at_any_moment_leaves_a_sound_loop(tiny_model):
    """What SIGINT does, by a timer whose moments sweep over all that the main thread does for a call."""

    def raise_it(*_):
        raise KeyboardInterrupt

    wanted, before, hits = tiny_model.generate([5, 6], max_tokens=6, ignore_eos=True).token_ids, signal.getsignal(signal.SIGALRM), 0
    verbs = (
        lambda: tiny_model.generate([5, 6], max_tokens=6, ignore_eos=True),
        lambda: tiny_model.stream([5, 6], max_tokens=6, ignore_eos=True).finish(),
        lambda: list(tiny_model.stream([5, 6], max_tokens=6, ignore_eos=True)),
        lambda: tiny_model.generate([[5, 6], [7]], max_tokens=6, ignore_eos=True),
        lambda: tiny_model.logits([5, 6], all=True),
    )
    signal.signal(signal.SIGALRM, raise_it)
    try:
        for i in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + i % 200 * 2e-5)
                for verb in verbs:
                    verb()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 200
    assert tiny_model.generate([5, 6], max_tokens=6, ignore_eos=True).token_ids == wanted
    gc.collect()
    assert eventually(lambda: out(tiny_model) == 0 and not tiny_model.runtime.loop._reserved and not loop_threads())


def test_many_short_ones_with_cancels(load_tiny):
    """bench/soak.py in small: every answer is the one computed alone, or its beginning, and no memory stays."""
    model = load_tiny(2, n_ctx=None)
    prompts = prompts_of([3, 9, 30, 70, 5, 14])
    params = [ni.SamplingParams(max_tokens=n, ignore_eos=True, temperature=t, seed=5) for n, t in ((1, 0), (12, 0), (40, 1.2))]
    wanted = {(i, j): model.generate(p, own).token_ids for i, p in enumerate(prompts) for j, own in enumerate(params)}
    wrong = []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(40):
            i, j, n = rng.randrange(6), rng.randrange(3), rng.choice([0, 1, 5, 99])
            kind = rng.randrange(3)
            if kind == 0:
                done = model.generate(prompts[i], params[j])
            elif kind == 1:
                done = model.generate([prompts[i]] * 3, params[j], mode=rng.choice(["auto", "latency", "throughput"]))[1]
            else:
                stream = model.stream(prompts[i], params[j])
                for _ in zip(range(n), stream):
                    pass
                if n < 99:
                    stream.cancel()
                done = stream.result()
                if rng.randrange(4) == 0:
                    del stream
            if done.finish_reason not in ("length", "cancelled") or done.token_ids != wanted[i, j][: len(done.token_ids)]:
                wrong.append((i, j, done))
            if done.finish_reason == "length" and done.token_ids != wanted[i, j]:
                wrong.append((i, j, done))

    assert in_threads(*(lambda seed=seed: work(seed) for seed in range(8))) == [None] * 8 and wrong == []
    gc.collect()
    assert eventually(lambda: out(model) == 0 and not model.runtime.loop._reserved and not model.runtime.loop._streams)


EXITS = """
import sys, threading, time
import numainfer as ni
model = ni.load(sys.argv[1])
stream = model.stream([5, 6], max_tokens=None, ignore_eos=True, logits_processor=lambda ids, logits: time.sleep(0.005) or logits)
next(stream)
def work():
    model.generate([[5, 6]] * 20, max_tokens=200, ignore_eos=True)
thread = threading.Thread(target=work, daemon=sys.argv[2] == "daemon")
thread.start()
time.sleep(0.1)
if sys.argv[2] == "fork":
    import os
    pid = os.fork()
    if pid == 0:
        try:
            model.generate([5])
        except ni.ForkedProcess:
            stream.cancel()
            sys.exit(0)
        sys.exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("end")
"""


@pytest.mark.parametrize("kind", ["daemon", "thread", "fork"])
def test_the_interpreter_ends_while_it_runs(tiny_path, kind):
    start = time.monotonic()
    got = subprocess.run([sys.executable, "-c", EXITS, str(tiny_path), kind], env=os.environ, capture_output=True, text=True, timeout=60)
    assert got.returncode == 0 and "end" in got.stdout and not got.stderr, got.stderr
    assert time.monotonic() - start < 30


def test_spied_steps_of_one_stream_have_one_row(load_tiny, monkeypatch):
    model = load_tiny(1, n_ctx=None)
    steps = spy_steps(monkeypatch)
    assert one_by_one(model, [[5, 6, 7]], max_tokens=5, ignore_eos=True)
    assert [step[1] for step in steps] == [3, 1, 1, 1, 1]
