"""Lists of prompts: the same bits as one by one, in order, in bounded memory, on every lane."""

import os
import threading

import pytest
from scheduler_tools import LENGTHS, N, facts, one_by_one, prompts_of, spy_steps, start_together

import numainfer as ni
from numainfer.machine import topology as topologies
from numainfer.machine.limits import Allowance, Limits
from numainfer.serving import lanes, loop, modes

MODES = modes.MODES


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_company_changes_nothing(load_tiny, name, nodes):
    model, prompts = load_tiny(nodes, name), prompts_of(LENGTHS)
    for sampling in ({}, {"temperature": 1.3, "seed": 7, "logprobs": 2, "top_p": 0.9}, {"repetition_penalty": 1.3}):
        wanted = one_by_one(model, prompts, max_tokens=20, **sampling)
        for mode in MODES:
            assert [facts(d) for d in model.generate(prompts, max_tokens=20, mode=mode, **sampling)] == wanted


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
def test_every_placement_and_mode(load_tiny, placement):
    wanted = one_by_one(load_tiny(1), prompts_of(LENGTHS), max_tokens=8)
    model = load_tiny(2, placement=placement)
    for mode in MODES:
        if mode == "throughput" and placement in ("shard", "interleave"):
            continue
        assert [facts(d) for d in model.generate(prompts_of(LENGTHS), max_tokens=8, mode=mode)] == wanted
    assert len(model.runtime.engine.node_lanes()) == (2 if placement == "replicate" else 1)


@pytest.mark.parametrize("placement", ["shard", "interleave"])
def test_lanes_need_copies(load_tiny, monkeypatch, placement):
    model, steps = load_tiny(2, placement=placement), spy_steps(monkeypatch)
    says = f"mode = 'throughput': .* own copy .* {placement} on 2 pretend nodes.* placement='replicate', or leave mode to 'auto'"
    with pytest.raises(ValueError, match=says):
        model.generate(["a", "b"], mode="throughput")
    assert steps == []


@pytest.mark.parametrize("n_batch", [1, 3, 16])
def test_prompts_in_chunks_mixed_with_answers(load_tiny, monkeypatch, n_batch):
    model, prompts = load_tiny(2, n_batch=n_batch), prompts_of(LENGTHS)
    wanted = one_by_one(model, prompts, max_tokens=9, ignore_eos=True)
    steps = spy_steps(monkeypatch)
    for mode in ("latency", "throughput"):
        assert [facts(d) for d in model.generate(prompts, max_tokens=9, ignore_eos=True, mode=mode)] == wanted
    rows = [step[1] for step in steps]
    assert max(rows) == n_batch and sum(rows) == 2 * (sum(LENGTHS) + 8 * len(LENGTHS))


@pytest.mark.parametrize("mode, lanes", [("latency", {(0, 1)}), ("throughput", {(0,), (1,)})])
def test_a_hundred_short_ones(load_tiny, monkeypatch, mode, lanes):
    model, prompts = load_tiny(2), prompts_of(1 + i % 5 for i in range(100))
    with monkeypatch.context() as patch:
        steps = spy_steps(patch, start_together(len(lanes)))
        done = model.generate(prompts, max_tokens=4, ignore_eos=True, mode=mode)
    assert len(steps) < 40 and {step[0] for step in steps} == lanes
    assert [facts(d) for d in done] == one_by_one(model, prompts, max_tokens=4, ignore_eos=True)


def test_a_real_model(monkeypatch):
    prompts = ["The capital of France is", "2 + 2 =", "Once upon a time", "Dear", "Water boils at", "def f(x):"]
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with ni.load("smollm2", n_ctx=256) as model:
        wanted = one_by_one(model, prompts, max_tokens=8, stop=[" the", "4"])
        for mode in ("latency", "throughput"):
            assert [facts(d) for d in model.generate(prompts, max_tokens=8, stop=[" the", "4"], mode=mode)] == wanted
    assert any("Paris" in text for text, *_ in wanted) and any(reason == "stop" for _, _, reason, *_ in wanted)


def test_a_list_of_one_is_a_list(load_tiny):
    model = load_tiny(2)
    for mode in MODES:
        (done,) = model.generate(["the rest"], max_tokens=5, mode=mode)
        assert facts(done) == facts(model.generate("the rest", max_tokens=5, mode=mode))


def test_parameters_for_each_prompt(load_tiny):
    model, prompts = load_tiny(2), prompts_of(LENGTHS)
    params = [ni.SamplingParams(max_tokens=1 + i, temperature=i % 3, seed=i, logprobs=i % 2 or None) for i in range(12)]
    done = model.generate(prompts, params, ignore_eos=True)
    assert [facts(d) for d in done] == one_by_one(model, prompts, params, ignore_eos=True)
    assert [len(d.token_ids) for d in done] == list(range(1, 13))
    assert {len(d.token_ids) for d in model.generate(prompts, params, max_tokens=2, ignore_eos=True)} == {2}


def test_a_seed_repeats_and_none_does_not(load_tiny):
    model = load_tiny(2)
    prompts = [[7, 8, 9]] * 6
    seeded = model.generate(prompts, temperature=2.0, seed=3, max_tokens=12, ignore_eos=True)
    assert len({d.token_ids for d in seeded}) == 1
    assert len({d.token_ids for d in model.generate(prompts, temperature=2.0, max_tokens=12, ignore_eos=True)}) > 1


def test_answers_end_where_the_context_does(load_tiny):
    model = load_tiny(2, n_ctx=32)
    prompts = prompts_of([32, 31, 5, 20])
    done = model.generate(prompts, max_tokens=None, ignore_eos=True)
    assert [len(d.token_ids) for d in done] == [1, 2, 28, 13] and {d.finish_reason for d in done} == {"length"}
    assert [facts(d) for d in done] == one_by_one(model, prompts, max_tokens=None, ignore_eos=True)


def test_timings(load_tiny):
    done = load_tiny(1).generate(prompts_of([5, 9]), max_tokens=4, ignore_eos=True)
    for d, n in zip(done, [5, 9]):
        t = d.timings
        assert t.prompt_tokens == n and t.generated_tokens == 3 and t.generation_seconds > 0
        assert 0 < t.prompt_seconds <= t.time_to_first_token


def test_timings_tell_the_mode(load_tiny, monkeypatch):
    def modes(model, prompts, **options):
        done = model.generate(prompts, max_tokens=30, ignore_eos=True, **options)  # so long that both lanes begin before one ends
        return [d.timings.mode for d in done]

    model = load_tiny(2)
    assert modes(model, ["a", "b"], mode="latency") == ["latency"] * 2
    assert modes(model, [[5], [N], [6]], mode="throughput") == ["throughput", None, "throughput"]
    assert modes(model, ["a"]) == ["latency"]
    rates = {"latency": ((1, 1.0), (16, 1.0)), "throughput": ((1, 9.0), (16, 9.0))}
    model.runtime.step_seconds = rates
    assert modes(model, ["a", "b"]) == ["latency"] * 2
    model.runtime.step_seconds = dict(zip(rates, reversed(rates.values())))
    assert modes(model, ["a", "b"]) == ["throughput"] * 2
    assert modes(load_tiny(1), ["a", "b"]) == ["latency"] * 2  # there are no lanes to choose
    one = model.generate("a", max_tokens=2)
    assert one.timings.mode == "latency" and one.to_dict()["timings"]["mode"] == "latency"
    assert model.session().generate("a", max_tokens=2).timings.mode == "latency"


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_memory_for_caches_is_bounded(load_tiny, monkeypatch, mode):
    model = load_tiny(2, n_ctx=256)
    chunk = model.plan.kv.bytes(13)  # what each of these sequences reserves
    monkeypatch.setattr(loop, "kv_budget", lambda runtime, lane: int(3.5 * chunk) - held(lane))

    def held(lane):
        return sum(chunk for request in model.runtime.loop._reserved if request.held_bytes and request.lane.lane is lane)

    seen = []
    spy_steps(monkeypatch, lambda lane, segments: seen.append(len(segments)))
    prompts = prompts_of([9] * 20)
    assert all(len(d.token_ids) == 5 for d in model.generate(prompts, max_tokens=5, ignore_eos=True, mode=mode))
    assert max(seen) == 3
    monkeypatch.setattr(loop, "kv_budget", lambda runtime, lane: 0)  # alone each may have what there is
    seen.clear()
    assert all(len(d.token_ids) == 5 for d in model.generate(prompts, max_tokens=5, ignore_eos=True, mode=mode))
    assert set(seen) == {1}


def test_the_budget_is_what_the_nodes_have_free(load_tiny, monkeypatch):
    model = load_tiny(2)
    monkeypatch.setattr(modes, "limits", Limits)
    monkeypatch.setattr(modes, "node_memory", lambda node: (1000, 550))
    of_nodes = model.runtime.engine.node_lanes()  # two pretend nodes share (550 - 5 % of 1000) bytes
    assert [modes.kv_budget(model.runtime, lane) for lane in of_nodes] == [250, 250]
    assert modes.kv_budget(model.runtime, model.runtime.engine.lane) == 500
    monkeypatch.setattr(modes, "limits", lambda: Limits(memory=Allowance(1000, 150, "memory.max")))  # less 5 % of it
    assert [modes.kv_budget(model.runtime, lane) for lane in of_nodes] == [50, 50]  # for both together
    assert modes.kv_budget(model.runtime, model.runtime.engine.lane) == 100
    monkeypatch.setattr(modes, "node_memory", lambda node: (None, None))
    assert modes.kv_budget(model.runtime, of_nodes[0]) == 50
    monkeypatch.setattr(modes, "limits", Limits)
    assert modes.kv_budget(model.runtime, of_nodes[0]) > 1 << 60  # nothing is known, nothing binds
    monkeypatch.setattr(modes, "node_memory", lambda node: (10**6, 450))
    assert modes.kv_budget(model.runtime, of_nodes[0]) == 0


def test_at_most_so_many_share_a_step(load_tiny, monkeypatch):
    model, seen = load_tiny(1), []
    monkeypatch.setattr(lanes, "MAX_ACTIVE", 5)
    spy_steps(monkeypatch, lambda lane, segments: seen.append(len(segments)))
    model.generate(prompts_of([2] * 23), max_tokens=3, ignore_eos=True)
    assert max(seen) == 5


def test_node_lanes_run_at_the_same_time(load_tiny, monkeypatch):
    """Every lane's first step waits within the step for the other lane's."""
    model, meet, met = load_tiny(2), threading.Barrier(2), set()

    def wait(lane, segments):
        if lane not in met:
            met.add(lane)
            meet.wait(10)

    spy_steps(monkeypatch, wait)
    model.generate(prompts_of([4] * 8), max_tokens=4, mode="throughput")
    assert len(met) == 2


def test_a_lanes_thread_stays_with_its_workers(load_tiny, monkeypatch):
    """A pretend node has no CPUs of its own in the system's lists, so that the workers' are what is left."""
    monkeypatch.setattr(topologies, "node_cpus", lambda number: set())
    model, found, mine = load_tiny(2), set(), os.sched_getaffinity(0)

    def look(token_ids, logits):
        found.add(frozenset(os.sched_getaffinity(0)))
        return logits

    model.generate(prompts_of([4] * 8), max_tokens=2, mode="throughput", logits_processor=look)
    # One lane may have done it all before the other came.
    assert found and found <= {frozenset(lane.team.cpus()) for lane in model.runtime.engine.node_lanes()}
    assert os.sched_getaffinity(0) == mine
    found.clear()
    model.generate(prompts_of([4] * 8), max_tokens=2, mode="latency", logits_processor=look)
    assert found == {frozenset(mine)}


def test_lanes_share_the_work(load_tiny, monkeypatch):
    model = load_tiny(2)
    steps = spy_steps(monkeypatch, start_together(2))
    model.generate(prompts_of([10] * 16), max_tokens=6, ignore_eos=True, mode="throughput")
    rows = [sum(step[1] for step in steps if step[0] == (node,)) for node in (0, 1)]
    assert sum(rows) == 16 * 15 and min(rows) >= 0.25 * sum(rows)


def test_auto_measures_once_and_chooses(load_tiny, monkeypatch):
    model, measured = load_tiny(2), []

    def measure(model, lanes):
        measured.append(len(lanes))
        return ((1, 1.0), (16, 16.0)) if lanes == [None] else ((1, 1.9), (16, 2.0))

    monkeypatch.setattr(loop, "measure", measure)
    steps = spy_steps(monkeypatch)

    def used(n):  # one lane may do it all before the other comes
        steps.clear()
        model.generate(prompts_of([2] * n), max_tokens=30, ignore_eos=True)
        return {step[0] for step in steps}

    assert used(1) == {(0, 1)} and measured == []
    assert used(2) <= {(0,), (1,)} and used(30) <= {(0,), (1,)} and measured == [1, 2]  # 1.9 s for 2 rows, not 2 s
    model.runtime.step_seconds["throughput"] = ((1, 2.1), (16, 40.0))
    assert used(2) == {(0, 1)}


def test_the_measurement_is_of_steps(load_tiny, monkeypatch):
    model = load_tiny(2)
    steps = spy_steps(monkeypatch)
    model.generate(prompts_of([2, 2]), max_tokens=1)
    (a, t_a), (b, t_b) = model.runtime.step_seconds["throughput"]
    assert (a, b) == (1, 16) and 0 < t_a and 0 < t_b
    assert t_b in [pytest.approx(step[3] - step[2], rel=0.5) for step in steps if step[1] == 16 and len(step[0]) == 1]
