"""Lists of prompts: the same bits as one by one, in order, whatever happens to some of them or to the run."""

import os
import threading
import time
import traceback

import numpy as np
import pytest
from api_tools import force, interrupt_after
from tiny_models import tiny

import numainfer as ni
from numainfer import scheduler
from numainfer._core import Cancelled
from numainfer.crew import Crew
from numainfer.engine import Lane
from numainfer.turns import Turns

SOON = 0.5  # seconds; 0.05 is promised, the rest is for a busy machine
N = 285  # vocabulary of the tiny llama
TEXTS = ["the rest", "a", "on and on and on", "to the end of it", "it is", "red and the", "in"]
LENGTHS = (1, 40, 3, 200, 17, 1, 90, 5, 64, 130, 2, 33)
MODES = ("latency", "throughput", "auto")


def prompts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, N, n).astype(np.int32) for n in lengths]


def facts(done):
    """What must not depend on the company."""
    return done.text, done.token_ids, done.finish_reason, done.logprobs, done.usage


def one_by_one(model, prompts, params=None, **sampling):
    params = params if isinstance(params, list) else [params] * len(prompts)
    return [facts(model.generate(p, own, **sampling)) for p, own in zip(prompts, params)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scheduler")
    return {"llama": tiny(folder, "llama", "Q8_0"), "gemma3": tiny(folder, "gemma3", "Q4_0", heads=4, kv_heads=2)}


@pytest.fixture
def load(paths, monkeypatch):
    """``load(fake nodes, name, ...)``; the test must leave no thread and no KV memory."""
    models, caches = [], []

    def load(nodes=1, name="llama", **options):
        monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
        model = ni.load(paths[name], **options)
        models.append(model)
        make = model._engine.new_kv

        def new_kv():
            caches.append(make())
            return caches[-1]

        model._engine.new_kv = new_kv
        return model

    yield load
    for thread in threading.enumerate():
        if thread.name.startswith("numainfer-lane"):
            thread.join(1)
            assert not thread.is_alive()
    assert [kv for kv in caches if kv.address] == []
    for model in models:
        model.close()


def spy_steps(monkeypatch, before=lambda lane, segments: None):
    """Record (lane's nodes, rows, start, end) of every step; ``before`` is called first."""
    steps, real = [], Lane.step

    def step(lane, segments, out_rows, **options):
        before(lane, segments)
        start = time.perf_counter()
        out = real(lane, segments, out_rows, **options)
        steps.append((tuple(lane.nodes), sum(len(s[1]) for s in segments), start, time.perf_counter()))
        return out

    monkeypatch.setattr(Lane, "step", step)
    return steps


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_company_changes_nothing(load, name, nodes):
    model, prompts = load(nodes, name), prompts_of(LENGTHS)
    for sampling in ({}, {"temperature": 1.3, "seed": 7, "logprobs": 2, "top_p": 0.9}, {"repetition_penalty": 1.3}):
        wanted = one_by_one(model, prompts, max_tokens=20, **sampling)
        for mode in MODES:
            assert [facts(d) for d in model.generate(prompts, max_tokens=20, mode=mode, **sampling)] == wanted


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
def test_every_placement_and_mode(load, placement):
    wanted = one_by_one(load(1), prompts_of(LENGTHS), max_tokens=8)
    model = load(2, placement=placement)
    for mode in MODES:
        assert [facts(d) for d in model.generate(prompts_of(LENGTHS), max_tokens=8, mode=mode)] == wanted
    assert len(model._engine.node_lanes()) == (2 if placement == "replicate" else 1)


@pytest.mark.parametrize("n_batch", [1, 3, 16])
def test_prompts_in_chunks_mixed_with_answers(load, monkeypatch, n_batch):
    model, prompts = load(2, n_batch=n_batch), prompts_of(LENGTHS)
    wanted = one_by_one(model, prompts, max_tokens=9, ignore_eos=True)
    steps = spy_steps(monkeypatch)
    for mode in ("latency", "throughput"):
        assert [facts(d) for d in model.generate(prompts, max_tokens=9, ignore_eos=True, mode=mode)] == wanted
    rows = [step[1] for step in steps]
    assert max(rows) == n_batch and sum(rows) == 2 * (sum(LENGTHS) + 8 * len(LENGTHS))


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_a_hundred_short_ones(load, monkeypatch, mode):
    model, prompts = load(2), prompts_of(1 + i % 5 for i in range(100))
    steps = spy_steps(monkeypatch)
    done = model.generate(prompts, max_tokens=4, ignore_eos=True, mode=mode)
    assert len(steps) < 40 and {step[0] for step in steps} == ({(0, 1)} if mode == "latency" else {(0,), (1,)})
    assert [facts(d) for d in done] == one_by_one(model, prompts, max_tokens=4, ignore_eos=True)


def test_a_real_model(monkeypatch):
    prompts = ["The capital of France is", "2 + 2 =", "Once upon a time", "Dear", "Water boils at", "def f(x):"]
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with ni.load("smollm2", n_ctx=256) as model:
        wanted = one_by_one(model, prompts, max_tokens=8, stop=[" the", "4"])
        for mode in ("latency", "throughput"):
            assert [facts(d) for d in model.generate(prompts, max_tokens=8, stop=[" the", "4"], mode=mode)] == wanted
    assert any("Paris" in text for text, *_ in wanted) and any(reason == "stop" for _, _, reason, *_ in wanted)


def test_a_list_of_one_is_a_list(load):
    model = load(2)
    for mode in MODES:
        (done,) = model.generate(["the rest"], max_tokens=5, mode=mode)
        assert facts(done) == facts(model.generate("the rest", max_tokens=5, mode=mode))


def test_parameters_for_each_prompt(load):
    model, prompts = load(2), prompts_of(LENGTHS)
    params = [ni.SamplingParams(max_tokens=1 + i, temperature=i % 3, seed=i, logprobs=i % 2 or None) for i in range(12)]
    done = model.generate(prompts, params, ignore_eos=True)
    assert [facts(d) for d in done] == one_by_one(model, prompts, params, ignore_eos=True)
    assert [len(d.token_ids) for d in done] == list(range(1, 13))
    assert {len(d.token_ids) for d in model.generate(prompts, params, max_tokens=2, ignore_eos=True)} == {2}


def test_a_seed_repeats_and_none_does_not(load):
    model = load(2)
    prompts = [[7, 8, 9]] * 6
    seeded = model.generate(prompts, temperature=2.0, seed=3, max_tokens=12, ignore_eos=True)
    assert len({d.token_ids for d in seeded}) == 1
    assert len({d.token_ids for d in model.generate(prompts, temperature=2.0, max_tokens=12, ignore_eos=True)}) > 1


def test_answers_end_where_the_context_does(load):
    model = load(2, n_ctx=32)
    prompts = prompts_of([32, 31, 5, 20])
    done = model.generate(prompts, max_tokens=None, ignore_eos=True)
    assert [len(d.token_ids) for d in done] == [1, 2, 28, 13] and {d.finish_reason for d in done} == {"length"}
    assert [facts(d) for d in done] == one_by_one(model, prompts, max_tokens=None, ignore_eos=True)


def test_timings(load):
    done = load(1).generate(prompts_of([5, 9]), max_tokens=4, ignore_eos=True)
    for d, n in zip(done, [5, 9]):
        t = d.timings
        assert t.prompt_tokens == n and t.generated_tokens == 3 and t.generation_seconds > 0
        assert 0 < t.prompt_seconds <= t.time_to_first_token


# ---- errors of some, errors of all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_one_bad_prompt_does_not_lose_the_others(load, mode):
    model = load(2, n_ctx=32)
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


def test_a_processor_that_raises_ends_its_own_answer(load):
    model, prompts = load(2), prompts_of([3, 3, 3])
    params = [ni.SamplingParams(max_tokens=6, logits_processor=force(ids), ignore_eos=True, logprobs=0)
              for ids in ([40] * 6, [41, 42], [43] * 6)]  # the second has nothing to say to the third token
    done = model.generate(prompts, params)
    assert [d.token_ids for d in done] == [(40,) * 6, (41, 42), (43,) * 6]
    assert [d.finish_reason for d in done] == ["length", "error", "length"]
    assert isinstance(done[1].error, IndexError) and len(done[1].logprobs) == 2 and done[1].text


@pytest.mark.parametrize("call, error, says", [
    (lambda m: m.generate([]), ValueError, "empty list"),
    (lambda m: m.generate(["a", 1]), TypeError, "mixes int and str"),
    (lambda m: m.generate([[1], [True]]), TypeError, r"prompt\[1\]\[0\] = True"),
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
def test_what_is_wrong_with_the_call_raises(load, monkeypatch, call, error, says):
    model = load(1)
    steps = spy_steps(monkeypatch)
    with pytest.raises(error, match=says):
        call(model)
    assert steps == []


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_an_error_in_a_lane_reaches_the_caller(load, monkeypatch, mode):
    model, prompts = load(2), prompts_of(LENGTHS)
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


def test_no_thread_left_for_a_lane(load, monkeypatch):
    model, real = load(2), threading.Thread.start

    def start(thread):
        if thread.name == "numainfer-lane-1":
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            model.generate(prompts_of(LENGTHS), max_tokens=200, ignore_eos=True, mode="throughput")
    assert model.generate([[5]], max_tokens=1, mode="throughput")[0].token_ids


# ---- memory and lanes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_memory_for_caches_is_bounded(load, monkeypatch, mode):
    model = load(2, n_ctx=256)
    chunk = 256 * model.placement.kv_bytes_per_token  # what each of these sequences reserves
    monkeypatch.setattr(scheduler, "kv_budget", lambda model, lane: int(3.5 * chunk))
    seen = []
    spy_steps(monkeypatch, lambda lane, segments: seen.append(len(segments)))
    prompts = prompts_of([9] * 20)
    assert all(len(d.token_ids) == 5 for d in model.generate(prompts, max_tokens=5, ignore_eos=True, mode=mode))
    assert max(seen) == 3
    monkeypatch.setattr(scheduler, "kv_budget", lambda model, lane: 0)  # alone each may have what there is
    seen.clear()
    assert all(len(d.token_ids) == 5 for d in model.generate(prompts, max_tokens=5, ignore_eos=True, mode=mode))
    assert set(seen) == {1}


def test_the_budget_is_what_the_nodes_have_free(load, monkeypatch):
    model = load(2)
    monkeypatch.setattr(scheduler, "node_memory", lambda node: (1000, 550))
    lanes = model._engine.node_lanes()  # two pretend nodes share (550 - 5 % of 1000) bytes
    assert [scheduler.kv_budget(model, lane) for lane in lanes] == [250, 250]
    assert scheduler.kv_budget(model, model._engine.lane) == 500
    monkeypatch.setattr(scheduler, "node_memory", lambda node: (10**6, 450))
    assert scheduler.kv_budget(model, lanes[0]) == 0


def test_at_most_so_many_share_a_step(load, monkeypatch):
    model, seen = load(1), []
    monkeypatch.setattr(scheduler, "MAX_ACTIVE", 5)
    spy_steps(monkeypatch, lambda lane, segments: seen.append(len(segments)))
    model.generate(prompts_of([2] * 23), max_tokens=3, ignore_eos=True)
    assert max(seen) == 5


def test_node_lanes_run_at_the_same_time(load, monkeypatch):
    """Every lane's first step waits within the step for the other lane's."""
    model, meet, met = load(2), threading.Barrier(2), set()

    def wait(lane, segments):
        if lane not in met:
            met.add(lane)
            meet.wait(10)

    spy_steps(monkeypatch, wait)
    model.generate(prompts_of([4] * 8), max_tokens=4, mode="throughput")
    assert len(met) == 2


def test_lanes_share_the_work(load, monkeypatch):
    model = load(2)
    steps = spy_steps(monkeypatch)
    model.generate(prompts_of([10] * 16), max_tokens=6, ignore_eos=True, mode="throughput")
    rows = [sum(step[1] for step in steps if step[0] == (node,)) for node in (0, 1)]
    assert sum(rows) == 16 * 15 and min(rows) >= 0.25 * sum(rows)


def test_auto_measures_once_and_chooses(load, monkeypatch):
    model, measured = load(2), []

    def measure(model, lanes, crew):
        measured.append(len(lanes))
        return ((1, 1.0), (16, 16.0)) if lanes == [None] else ((1, 1.9), (16, 2.0))

    monkeypatch.setattr(scheduler, "_measure", measure)
    steps = spy_steps(monkeypatch)

    def lanes(n):
        steps.clear()
        model.generate(prompts_of([2] * n), max_tokens=2, ignore_eos=True)
        return {step[0] for step in steps}

    assert lanes(1) == {(0, 1)} and measured == []
    assert lanes(2) <= {(0,), (1,)} and lanes(30) == {(0,), (1,)} and measured == [1, 2]  # 1.9 s for 2 rows, not 2 s
    model._step_seconds["throughput"] = ((1, 2.1), (16, 40.0))
    assert lanes(2) == {(0, 1)}


def test_the_measurement_is_of_steps(load, monkeypatch):
    model = load(2)
    steps = spy_steps(monkeypatch)
    model.generate(prompts_of([2, 2]), max_tokens=1)
    (a, t_a), (b, t_b) = model._step_seconds["throughput"]
    assert (a, b) == (1, 16) and 0 < t_a and 0 < t_b
    assert t_b in [pytest.approx(step[3] - step[2], rel=0.5) for step in steps if step[1] == 16 and len(step[0]) == 1]


# ---- progress, Ctrl-C ------------------------------------------------------------------------------------------------


def test_progress(load, capfd):
    model, seen = load(2), []
    model.generate([[5], [N], [6], [7]], max_tokens=5, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4) and seen == sorted(seen)
    model.generate([[5]] * 3, max_tokens=5)
    assert capfd.readouterr() == ("", "")
    model.generate([[5]] * 60, max_tokens=200, ignore_eos=True, progress=True)  # a bar appears after 0.2 s
    out, err = capfd.readouterr()
    assert out == "" and (not err or "Generating" in err and "tokens/s" in err)


def test_a_progress_callable_may_end_it(load):
    def refuse(done, total):
        if done >= 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load(2).generate([[5]] * 9, [ni.SamplingParams(max_tokens=1 + 9 * n, ignore_eos=True) for n in range(9)],
                         progress=refuse)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_ctrl_c_gives_what_there_is(load, mode):
    model = load(2, n_ctx=None)
    prompts = prompts_of([4] * 200)
    params = [ni.SamplingParams(max_tokens=1 if i % 2 else 250) for i in range(200)]
    model.generate(prompts[:4], max_tokens=1, mode=mode)  # teams are made
    with interrupt_after(0.15) as pressed:
        done = model.generate(prompts, params, ignore_eos=True, logprobs=0, mode=mode)
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
    with interrupt_after(0.4) as pressed:
        done = smollm2.generate([ids] * 30, max_tokens=5)
    assert time.perf_counter() - pressed[0] < SOON
    assert "cancelled" in {d.finish_reason for d in done} <= {"cancelled", "length"}
    assert done[-1].text == "" and done[-1].usage.prompt_tokens == 1200 and done[-1].timings.time_to_first_token is None
    assert smollm2.generate(["The capital of France is"], max_tokens=3)[0].text


def test_ctrl_c_again_raises():
    class Model:
        _pid = os.getpid()

        def _check_process(self):
            pass

        def _cancel(self, job):
            pass

    crew, go_on = Crew(Model()), threading.Event()
    with interrupt_after(0.1), interrupt_after(0.3), pytest.raises(KeyboardInterrupt):
        crew.run([lambda: go_on.wait(20)], lambda: None)
    assert crew.cancelled and crew.working == 1
    go_on.set()


# ---- others at the same time -----------------------------------------------------------------------------------------


def test_other_threads_take_turns(load, monkeypatch):
    model, prompts = load(2), prompts_of([8] * 12)
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


def test_a_processor_may_use_the_model(load):
    model = load(2)

    def process(ids, logits):
        return model.logits([5, 6, *ids])

    wanted = model.generate([5, 6], max_tokens=5, ignore_eos=True).token_ids
    done = model.generate([[9], [10], [11]], max_tokens=5, logits_processor=process, ignore_eos=True, mode="throughput")
    assert [d.token_ids for d in done] == [wanted] * 3


@pytest.mark.parametrize("mode", ["latency", "throughput"])
@pytest.mark.parametrize("where", ["thread", "callable"])
def test_closing_ends_it(load, where, mode):
    model = load(2)
    if where == "thread":
        threading.Timer(0.2, model.close).start()
    with pytest.raises(ni.ModelClosed):
        for _ in range(1000):
            model.generate(prompts_of([50] * 30), max_tokens=200, ignore_eos=True, mode=mode,
                           progress=None if where == "thread" else lambda done, total: model.close())
    with pytest.raises(ni.ModelClosed):
        model.generate(["a"])


def test_fork_during_a_run(load):
    model, parent, children = load(2), os.getpid(), []

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


# ---- turns -----------------------------------------------------------------------------------------------------------


def test_turns_come_in_order_of_arrival():
    turns, order = Turns(), []

    def work(name, lane):
        with turns.of(lane):
            order.append(name)

    threads = []
    with turns:
        for i, lane in enumerate(["a", None, "a", "b", None]):
            threads.append(threading.Thread(target=work, args=(i, lane)))
            threads[-1].start()
            deadline = time.monotonic() + 10
            while len(turns._tickets) <= i and time.monotonic() < deadline:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order.index(0) < order.index(1) < min(order.index(2), order.index(3)) and order[-1] == 4
    assert turns._holders == {} and turns._tickets == []


def test_lanes_exclude_themselves_and_the_whole():
    turns = Turns()

    def free(lane):
        got = []

        class Job:
            @property
            def cancelled(self):
                return True

        def work():
            try:
                with turns.of(lane, Job()):
                    got.append(True)
            except Cancelled:
                got.append(False)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        return got[0]

    with turns.of("a"):
        assert free("b") and not free("a") and not free(None)
        with pytest.raises(RuntimeError, match="midst of a step"), turns:
            pass
    with turns:
        assert not free("a") and not free(None)
    assert free("a") and free(None)
