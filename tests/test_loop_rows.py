"""Whose rows stand in a step, where there is no room for all: nobody waits for ever, and who came first goes first."""

import threading

import numpy as np
import pytest
from scheduler_tools import facts, prompts_of, spy_steps, start_together
from test_loop import LONG, eventually, in_threads

import numainfer as ni
from numainfer.engine.engine import Lane
from numainfer.serving import lanes, loop
from numainfer.serving.modes import faster
from numainfer.serving.answer import Answer
from numainfer.serving.requests import Rows
from numainfer.serving.speculation import MOST, Costs


def answer(model, ids, ahead=None, **sampling):
    return Answer(model.runtime, np.array(ids, np.int32), ni.SamplingParams(**sampling), ahead=ahead, notify=lambda: None)


def whose(monkeypatch, before=lambda: None):
    """Of every step the caches of its segments, each with how many rows it has."""
    steps, real = [], Lane.step

    def step(lane, segments, rows, **options):
        before()
        steps.append([(cache, len(ids)) for cache, ids, _ in segments])
        return real(lane, segments, rows, **options)

    monkeypatch.setattr(Lane, "step", step)
    return steps


def test_hidden_states_and_answers_alternate(load_tiny, monkeypatch):
    """Their rows stand in no step together, and neither kind waits until the other has ended."""
    model = load_tiny(1, n_ctx=None, n_batch=8)
    steps, kinds, run = threading.Event(), [], model.runtime.run

    def running(lane, segments, rows, *, hidden=False, **options):
        steps.wait(10)
        kinds.append(hidden)
        return run(lane, segments, rows, hidden=hidden, **options)

    monkeypatch.setattr(model.runtime, "run", running)
    texts, tokens = Rows(model.runtime, prompts_of([200])[0], hidden=True, notify=lambda: None), answer(model, [5], max_tokens=15)
    model.runtime.submit(texts, tokens)
    steps.set()
    texts.join()
    tokens.join()
    assert len(kinds) == 25 + 15 and kinds[:30] == [True, False] * 15 or kinds[:30] == [False, True] * 15
    assert len(tokens.completion().token_ids) == 15


def paused_streams(model, n):
    """Answers whose readers do not come, as far as they are computed."""
    found = [answer(model, [5 + i], ahead=4, **LONG) for i in range(n)]
    for one in found:
        model.runtime.submit(one)
        assert eventually(lambda: one.paused)  # noqa: B023
    return found


def test_more_streams_go_on_than_a_step_has_rows_for(load_tiny, monkeypatch):
    """They were begun one after the other, and are read at the same time: each has a row in one of three steps."""
    model = load_tiny(1, n_ctx=None, n_batch=2)
    streams = paused_streams(model, 5)
    wanted = [model.generate([5 + i], max_tokens=30, ignore_eos=True).token_ids for i in range(5)]
    gate = threading.Event()
    steps = whose(monkeypatch, lambda: gate.wait(10))
    first = answer(model, [9], max_tokens=2, ignore_eos=True)
    model.runtime.submit(first)  # while its step waits all the others come
    for stream in streams:
        stream.read_all()
    gate.set()
    assert eventually(lambda: len(steps) > 12)
    for stream in streams:
        stream.cancel()
        stream.join()
    caches = [{cache for cache, _ in step} for step in steps[1:12]]
    assert all(len(set().union(*caches[i : i + 3])) >= 5 for i in range(2, 8)) and max(map(len, caches)) <= 2
    assert all(stream.completion().token_ids[:4] == want[:4] for stream, want in zip(streams, wanted))


def test_streams_leave_a_row_to_who_reads_his_prompt(load_tiny, monkeypatch):
    model = load_tiny(1, n_ctx=None, n_batch=2)
    streams = paused_streams(model, 4)
    gate = threading.Event()
    steps = whose(monkeypatch, lambda: gate.wait(10))
    reads = answer(model, prompts_of([20])[0], max_tokens=1)
    model.runtime.submit(reads)
    assert eventually(lambda: reads.cache is not None)
    for stream in streams:
        stream.read_all()
    gate.set()
    reads.join()
    assert reads.generation.finish_reason == "length" and len(steps) <= 24 and all(len(step) == 2 for step in steps[2:])
    for stream in streams:
        stream.cancel()
        stream.join()


def test_who_waits_for_anothers_prompt_holds_up_nobody_behind(load_tiny, monkeypatch):
    model, long = load_tiny(1, n_ctx=None, n_batch=64), prompts_of([200])[0]
    rows = Rows(model.runtime, long, all=True, notify=lambda: None)
    rows._size = 8
    steps = whose(monkeypatch)
    waits, other = answer(model, [*long, 7], max_tokens=2), answer(model, [5, 6, 7], max_tokens=2)
    model.runtime.submit(rows, waits, other)
    other.join()
    assert rows.at == 8 and [n for _, n in steps[0]] == [8, 3]
    waits.join()
    assert rows.paused and rows.at == 8  # whose reader does not come: who waited for it does no longer
    rows.cancel()
    assert facts(waits.completion())[:3] == facts(model.generate([*long, 7], max_tokens=2))[:3]


def test_out_of_memory_ends_who_came_last_wherever_it_stands(load_tiny, monkeypatch):
    """An answer that came later than one whose prompt is still read stands before it in a step."""
    model, real, gate = load_tiny(1, n_ctx=None, n_batch=64), Lane.step, threading.Event()

    def step(lane, segments, rows, **options):
        gate.wait(10)
        if len(segments) == 2 and segments[0][2] > 20:
            raise ni.OutOfNodeMemory("no block")
        return real(lane, segments, rows, **options)

    monkeypatch.setattr(Lane, "step", step)
    first, second = answer(model, prompts_of([240])[0], max_tokens=3), answer(model, [5] * 20, max_tokens=40, ignore_eos=True)
    model.runtime.loop.lanes()[0]._broke_off = True
    model.runtime.submit(first)
    model.runtime.submit(second)
    gate.set()
    first.join()
    second.join()
    assert first.error is None and isinstance(second.error, ni.OutOfNodeMemory)


def test_what_steps_cost_is_not_learnt_from_prompts(load_tiny, monkeypatch):
    """They say nothing of what a proposed token costs."""
    model, rows = load_tiny(1, n_ctx=None, n_batch=32), []
    monkeypatch.setattr(Costs, "took", lambda self, n, seconds: rows.append(n))
    model.generate(prompts_of([9, 40]), max_tokens=4, ignore_eos=True, speculate="prompt")
    model.logits(prompts_of([20])[0])
    assert len(rows) > 2 and max(rows) <= 2 + MOST


@pytest.mark.parametrize("together, apart, n, lanes, n_batch, now, wanted", [
    (((1, 1.0), (16, 16.0)), ((1, 1.0), (16, 16.0)), 2, 2, 512, "latency", "throughput"),  # a row each in the time of one, not of two
    (((1, 1.0), (16, 16.0)), ((1, 1.6), (16, 25.6)), 3, 2, 512, "latency", "latency"),  # two in one of the lanes
    (((1, 1.0), (16, 1.0)), ((1, 1.0), (16, 1.0)), 4, 2, 512, "latency", "latency"),  # as good: they stay together
    (((1, 1.0), (16, 1.0)), ((1, 0.95), (16, 0.95)), 4, 2, 512, "latency", "throughput"),
    (((1, 1.0), (16, 1.0)), ((1, 1.05), (16, 1.05)), 4, 2, 512, "latency", "latency"),
    (((1, 1.0), (16, 1.0)), ((1, 1.05), (16, 1.05)), 4, 2, 512, "throughput", "throughput"),  # for so little they do not change
    (((1, 1.0), (16, 1.0)), ((1, 1.2), (16, 1.2)), 4, 2, 512, "throughput", "latency"),
    (((1, 1.0), (16, 1.0)), ((1, 1.3), (16, 1.3)), 9, 4, 512, "latency", "latency"),  # three lanes of three and one that idles: nine in all
    (((1, 1.0), (16, 1.0)), ((1, 1.5), (16, 1.5)), 64, 2, 16, "latency", "throughput"),  # a step has sixteen rows at most
    (((1, 1.0), (1, 1.0)), ((1, 1.5), (1, 1.5)), 64, 2, 1, "latency", "throughput"),
])  # fmt: skip
def test_which_lanes_are_faster(together, apart, n, lanes, n_batch, now, wanted):
    assert faster({"latency": together, "throughput": apart}, n, lanes, n_batch, now) == wanted


def test_who_takes_what_it_asked_of_steps_in_order(load_tiny, monkeypatch):
    """Requests of different modes begin in order of arrival where a lane may take them all."""
    model, begun, start = load_tiny(1, n_ctx=None), [], Answer.start
    monkeypatch.setattr(Answer, "start", lambda self, *args: (begun.append(len(self.ids)), start(self, *args))[1])
    monkeypatch.setattr(loop, "kv_budget", lambda runtime, lane: 0)  # one at a time
    modes = ["throughput", "latency", "auto", "latency", "throughput", "auto"]
    ids = np.full(10, 5, np.int32)
    requests = [Answer(model.runtime, ids[: i + 1], ni.SamplingParams(max_tokens=2), mode=mode, notify=lambda: None)
                for i, mode in enumerate(modes)]  # fmt: skip
    for request in requests:
        model.runtime.loop._came.put([request])
        request.arrived = len(begun) + len(request.ids) * 1e-3
    model.runtime.loop.lanes()[0].wake()
    for request in requests:
        request.join()
    assert begun == [1, 2, 3, 4, 5, 6]


def test_a_short_answer_beside_a_long_list_has_its_share(load_tiny, monkeypatch):
    """First come, first served: behind a list nobody waits longer than for those before it."""
    model = load_tiny(1, n_ctx=None)
    steps = spy_steps(monkeypatch)
    found = in_threads(lambda: model.generate([[5]] * 100, max_tokens=20, ignore_eos=True),
                       lambda: eventually(lambda: len(steps) > 3) and model.generate([6], max_tokens=3, ignore_eos=True))  # fmt: skip
    assert {d.finish_reason for d in found[0]} == {"length"} and found[1].finish_reason == "length"
    assert found[1].timings.time_to_first_token < 5


def test_who_waits_while_streams_pause_has_all_nodes(load_tiny, monkeypatch):
    """A stream that nobody reads leaves the load so small that all nodes together are the faster; their lane, which found that others
    were to have what waits, and sleeps, must hear of it from those."""
    model = load_tiny(2, n_ctx=None)
    model.runtime.step_seconds = {"latency": ((2, 1.0), (3, 100.0)), "throughput": ((1, 4.0), (2, 4.0))}  # of three: nodes
    monkeypatch.setattr(lanes, "MAX_ACTIVE", 1)
    steps = spy_steps(monkeypatch, before=start_together(2))
    streams, waits = [answer(model, [5, 6], ahead=2, **LONG) for _ in range(2)], answer(model, [7], max_tokens=2, ignore_eos=True)
    model.runtime.submit(*streams, waits)
    try:
        assert eventually(lambda: waits.ended)
        assert [s.lane.whole for s in streams] == [False, False] and waits.lane.whole and waits.completion().timings.mode == "latency"
        assert {nodes for nodes, *_ in steps} == {(0,), (1,), (0, 1)}
    finally:
        for request in (*streams, waits):
            request.cancel()


def test_a_step_does_not_wait_for_a_lane_that_sorts_in(load_tiny, monkeypatch):
    """The other lane may measure meanwhile, whose steps wait for this one's end."""
    model, real, said = load_tiny(1, n_ctx=None), Lane.step, []
    first, second = (answer(model, ids, max_tokens=2, ignore_eos=True) for ids in ([5, 6], [7]))

    def step(lane, segments, rows, stop=None, **options):
        if not said:
            model.runtime.loop._came.put([second])
            with model.runtime.loop._lock:
                looks = threading.Thread(target=lambda: said.append(stop()))
                looks.start()
                looks.join(10)
                said.append(looks.is_alive())
            looks.join()
        return real(lane, segments, rows, stop=stop, **options)

    monkeypatch.setattr(Lane, "step", step)
    model.runtime.submit(first)
    first.join()
    second.join()
    assert said == [False, False] and first.error is None and len(second.completion().token_ids) == 2
