"""The benchmark: what is timed and counted, the profile and its trace, and the command around them."""

import csv
import io
import json
import os
import signal
import statistics
import threading

import numpy as np
import pytest
from core_tools import logits, open_engine, pretend
from tiny_models import tiny

import numainfer as ni
from numainfer import _core
from numainfer.measure import bandwidth, benchmark, machine
from numainfer.measure.benchmark import GEN, PROMPT, Runner, Speed, Trial, bytes_per_token, measure
from numainfer.cli.main import main
from numainfer.engine.engine import Engine
from numainfer.measure.profiling import TRACED, profile, write_trace


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    monkeypatch.setattr(bandwidth, "_LEAST", 1 << 20)


def steps(monkeypatch, model):
    """A list that fills with (position, tokens, wanted rows) of every step of the model."""
    seen, step = [], model.runtime.step

    def record(segments, rows, **more):
        ((_, ids, pos0),) = segments
        seen.append((pos0, len(ids), list(rows)))
        return step(segments, rows, **more)

    monkeypatch.setattr(model.runtime, "step", record)
    return seen


# ---- what is timed -------------------------------------------------------------------------------


def test_statistics_of_a_speed():
    speed = Speed(Trial(GEN, 32, 100), (10.0, 20.0, 60.0), 10**9, (20e9, 80e9, 100e9))
    assert (speed.median, speed.mean, speed.deviation) == (20, 30, pytest.approx(statistics.stdev([10, 20, 60])))
    assert speed.gb_per_second == 20 and speed.share == 0.5, "of the pairs 0.5, 0.25, 0.6"
    assert str(speed.trial) == "tg32 @ d100" and str(Trial(PROMPT, 512)) == "pp512"
    prompt = Speed(Trial(PROMPT, 8), (5.0,))
    assert prompt.deviation == 0 and prompt.share is None and "bytes_per_token" not in prompt.to_dict()


def test_a_runner_warms_up_and_keeps_positions(tiny_path, monkeypatch):
    with ni.load(tiny_path, n_ctx=80, n_batch=16, threads=1) as model:
        seen = steps(monkeypatch, model)
        with Runner(model, [Trial(PROMPT, 20, 30), Trial(GEN, 3, 60)]) as runner:
            assert seen[:4] == [(0, 16, []), (16, 14, []), (30, 16, []), (46, 14, [])], "filled up to each depth"
            assert seen[4:] == [(30, 16, []), (46, 4, [3]), (60, 3, [2]), (30, 1, [0]), (31, 1, [0]), (32, 1, [0])], "warmed up"
            del seen[:]
            assert runner.run(Trial(PROMPT, 20, 30)) > 0
            assert seen == [(30, 16, []), (46, 4, [3])]
            del seen[:]
            told = []
            seconds = runner.run(Trial(GEN, 3, 60), lambda *step: told.append(step))
            assert seen == [(60, 1, [0]), (61, 1, [0]), (62, 1, [0])]
            assert [(a, b) for a, b, _ in told] == [(60, 61), (61, 62), (62, 63)] and sum(t for *_, t in told) == pytest.approx(seconds)


def test_repeats_do_not_change_the_cache(tiny_path):
    trials = [Trial(PROMPT, 20), Trial(GEN, 4, 10), Trial(GEN, 4, 40)]
    with ni.load(tiny_path, n_ctx=80, threads=1) as model, Runner(model, trials) as runner:
        found = []
        for _ in range(2):
            for trial in trials:
                runner.run(trial)
            found.append(model.runtime.step([(runner._caches[40], runner._ids[43:44], 43)], [0]))
        np.testing.assert_array_equal(*found)


def test_trials_take_turns_and_each_has_its_own_limit(tiny_model, monkeypatch):
    told, rates = [], iter([1e9, 2e9, 4e9, 8e9, 16e9, 32e9])
    monkeypatch.setattr(Runner, "run", lambda self, trial, after_step=None: told.append(str(trial)) or 2.0)
    monkeypatch.setattr(bandwidth.ReadProbe, "sample", lambda self: told.append("read") or next(rates))
    (prompt, one, two), limit = measure(tiny_model, [Trial(PROMPT, 8), Trial(GEN, 4), Trial(GEN, 2, 9)], 2)
    assert told[3:] == ["pp8", "read", "tg4", "read", "tg2 @ d9", "read"] * 2, "after warming up both depths, and decoding"
    assert prompt.samples == (4, 4) and one.samples == (2, 2) and two.samples == (1, 1) and prompt.limits == ()
    assert one.limits == (1.5e9, 12e9) and two.limits == (3e9, 24e9) and limit == 6e9


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_bytes_per_token(arch, tmp_path):
    """By hand: 1 kv-head of 32 + 32 halves; gemma3's second layer of two sees all, its first a window of 8."""
    with ni.load(tiny(tmp_path, arch, "Q8_0"), n_ctx=256) as model:
        weights, position = model.plan.bytes_per_token, (32 + 32) * 2
        alone = bytes_per_token(model, Trial(GEN, 1))
        deep = bytes_per_token(model, Trial(GEN, 3, 100))
    assert alone == pytest.approx(weights + 2 * position)
    assert deep == pytest.approx(weights + (102 + (102 if arch == "llama" else 8)) * position)


def test_what_does_not_fit_is_named(tiny_path):
    with ni.load(tiny_path, n_ctx=64) as model:
        with pytest.raises(ni.ContextOverflow, match=r"n_gen = 8 at depth 60, but the context holds n_ctx = 64"):
            measure(model, [Trial(PROMPT, 64), Trial(GEN, 8, 60)], 1)
        with pytest.raises(ni.ContextOverflow, match=r"n_prompt = 65, but"):
            ni.bench(model, 65, 1, 1)


# ---- the read limit ------------------------------------------------------------------------------


def test_one_way_to_measure_reading(monkeypatch, tiny_model):
    assert machine.read_rate is bandwidth.read_rate
    with bandwidth.ReadProbe(tiny_model.runtime) as probe:
        assert 1e8 < probe.sample() < 1e13

        class Team:
            def read_time(self, addresses, n_bytes, streams):
                return {1: 500, 2: 250, 3: 400, 4: 300}[streams]

        assert bandwidth.read_rate(Team(), [0, 0], 1000) == pytest.approx(2 * 1000 / 250e-9), "the best number of streams"
    tiny_model.close()
    with pytest.raises(ni.ModelClosed):
        bandwidth.ReadProbe(tiny_model.runtime)


def test_how_much_is_read(monkeypatch):
    monkeypatch.setattr(bandwidth, "cache_bytes", lambda: 1 << 30)
    assert bandwidth.probe_bytes(1 << 20, 1 << 40, 2) == 2 << 30, "four times a node's share of the caches"
    assert bandwidth.probe_bytes(8 << 30, 1 << 40, 2) == 8 << 30
    assert bandwidth.probe_bytes(8 << 30, 1 << 30, 2) == 128 << 20, "a quarter of what is free"
    assert bandwidth.probe_bytes(8 << 30, 0, 2) == 1 << 20


# ---- the core's clock ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_stamps_show_order_and_barriers(tiny_path, monkeypatch, workers):
    """On two pretend nodes: no one begins an op before those that its barrier waits for have ended all ops before it."""
    pretend(monkeypatch, 2, workers)
    with open_engine(tiny_path, n_ctx=64, placement="replicate") as engine:
        core, ops = engine.lane.core_plan(), engine.plan.ops
        with pytest.raises(ValueError, match="never switched on"):
            core.stamps()
        before = logits(engine, range(5))
        core.set_timing(True)
        core.times()
        timed = logits(engine, range(5))
        stamps, (op_ns, barrier_ns) = core.stamps(), core.times()
        np.testing.assert_array_equal(before, timed)
        assert stamps.shape == (2 * workers, 1 + 2 * len(ops)) and (np.diff(stamps, axis=1) >= 0).all() and stamps.min() > 0
        begin, end = stamps[:, 1::2], stamps[:, 2::2]
        np.testing.assert_array_equal(op_ns, end[0] - begin[0])
        np.testing.assert_array_equal(barrier_ns, begin[0] - np.append(stamps[0, 0], end[0, :-1]))
        node_of, levels = np.array(engine.node_of), set()
        for i, op in enumerate(ops):
            levels.add(op.barrier)
            for w in range(len(node_of)) if op.barrier else ():
                group = node_of == node_of[w] if op.barrier == 1 else node_of >= 0
                assert begin[w, i] >= end[group, i - 1].max(), (i, op.name, w)
        assert {1, 2} <= levels
        core.set_timing(False)
        logits(engine, range(3))
        np.testing.assert_array_equal(core.stamps(), stamps)
        assert not core.times()[0].any()
    with pytest.raises(ValueError, match="closed"):
        core.stamps()
    with pytest.raises(ValueError, match="closed"):
        core.set_timing(True)


# ---- the profile ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiled(tiny_path):
    with ni.load(tiny_path, n_ctx=64, n_batch=16) as model:
        yield profile(model, [Trial(PROMPT, 40), Trial(GEN, 12, 8)], 2), model.plan, model.runtime.engine


def test_a_profile_adds_up(profiled):
    found, plan, engine = profiled
    prompt, gen = found.stages
    assert found.bench.prompt is None and found.bench.read_limit > 1e8 and "pp" not in found.to_dict()
    for stage, steps in ((prompt, 3), (gen, 1)):
        assert sum(row.seconds for row in stage.rows) == pytest.approx(stage.seconds) and stage.seconds > 0
        assert all(row.seconds >= 0 for row in stage.rows)
        node, team = plan.barriers()
        calls = {row.name: row.calls for row in stage.rows}
        assert calls["outside the plan"] == pytest.approx(steps) and calls["attend"] == pytest.approx(2 * steps)
        assert calls["matmul attn_q attn_k attn_v"] == pytest.approx(2 * steps)
        assert calls.get("team barrier", 0) == pytest.approx(team * steps) and calls.get("node barrier", 0) == pytest.approx(node * steps)
        assert "barrier" not in calls and stage.rows[-1].name == "outside the plan"
        ops = [row.seconds for row in stage.rows if "barrier" not in row.name][:-1]
        assert ops == sorted(ops, reverse=True)
    per_row = sum(w.n * w.k for op in plan.ops if not op.selected for w in op.matrices)
    once = sum(w.n * w.k for op in plan.ops if op.selected for w in op.matrices)
    assert sum(row.bytes for row in gen.rows) == engine.bytes_per_token
    assert sum(row.macs for row in gen.rows) == per_row + once and sum(row.macs for row in prompt.rows) == 40 * per_row + once


def test_a_trace_can_be_read(profiled, tmp_path):
    found, plan, engine = profiled
    write_trace(tmp_path / "trace.json", [found, found])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {e["pid"] for e in events} == {1, 2}
    events = [e for e in events if e["pid"] == 1]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names[0] == "steps" and len(names) == 1 + engine.threads and "CPU" in names[engine.threads]
    spans = [e for e in events if e["ph"] == "X"]
    step_names = [e["name"] for e in spans if e["tid"] == 0]
    assert step_names[:3] == ["prefill 0 to 16", "prefill 16 to 32", "prefill 32 to 40"]
    assert step_names[3:] == [f"decode position {i}" for i in range(20 - TRACED, 20)]
    for track in range(1, 1 + engine.threads):
        own = [e for e in spans if e["tid"] == track]
        assert sum(e["cat"] == "op" for e in own) == len(plan.ops) * (3 + TRACED)
        assert sum(e["cat"] == "barrier" for e in own) == sum(plan.barriers()) * (3 + TRACED)
        for a, b in zip(own, own[1:]):
            assert 0 <= a["ts"] and a["ts"] + a["dur"] <= b["ts"] + 0.01, "one after the other, to ten nanoseconds"
    layers = {e["args"].get("layer") for e in spans if e["name"] == "matmul ffn_down"}
    assert layers == {0, 1}


def test_a_failed_profile_stops_the_clock(tiny_model, monkeypatch):
    monkeypatch.setattr(bandwidth.ReadProbe, "sample", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        profile(tiny_model, [Trial(GEN, 2)], 1)
    core = tiny_model.runtime.engine.lane.core_plan()
    core.times()
    tiny_model.logits([1, 2])
    assert not core.times()[0].any()


# ---- the command ---------------------------------------------------------------------------------


def bench(capsys, *args):
    assert main(["bench", *map(str, args), "-q", "-r", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_one_object_for_single_values(tiny_path, capsys):
    found = json.loads(bench(capsys, tiny_path, "-p", 20, "-n", 4, "-t", 1, "--json"))
    assert set(found) == {"model", "isa", "threads", "nodes", "placement", "pp", "tg", "read_limit_gb_per_second"}
    assert found["threads"] == 1 and found["pp"]["n"] == 20 and found["tg"]["n"] == 4 and found["isa"] == _core.isa()
    tg = found["tg"]
    assert tg["gb_per_second"] == pytest.approx(tg["tokens_per_second"] * tg["bytes_per_token"] / 1e9) and tg["share_of_read_limit"] > 0


def test_an_object_per_combination(tiny_path, capsys):
    found = json.loads(bench(capsys, tiny_path, "-p", "8,0", "-n", "2,3", "-n", 4, "-d", "0,5", "--json"))
    shown = {((f["pp"] or {}).get("n", 0), f["tg"]["n"], f["tg"]["depth"]) for f in found}
    assert shown == {(p, n, d) for p in (8, 0) for n in (2, 3, 4) for d in (0, 5)} and len(found) == 12


def test_several_models_and_threads_as_csv(tiny_path, capsys, monkeypatch):
    pretend(monkeypatch, 1, 2)
    out = bench(capsys, tiny_path, tiny_path, "-p", "8,16", "-n", 2, "-t", "1,2", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [r["test"] for r in rows[:3]] == ["pp8", "pp16", "tg2"] and [r["threads"] for r in rows] == [*"111222"] * 2
    for r in rows:
        assert float(r["tokens_per_second"]) > 0 and r["repeats"] == "1" and float(r["read_limit_gb_per_second"]) > 0
        assert (r["bytes_per_token"] == "") == (r["test"] != "tg2")


def test_the_table(tiny_path, capsys):
    lines = bench(capsys, tiny_path, "-p", 8, "-n", "2,3", "-d", 4).splitlines()
    assert [c.strip() for c in lines[0].strip("|").split("|")][:6] == ["model", "size", "params", "threads", "test", "tokens/s"]
    assert set(lines[1]) == set("|-: ") and len({len(line) for line in lines[:5]}) == 1
    assert [line.split("|")[5].strip() for line in lines[2:5]] == ["pp8 @ d4", "tg2 @ d4", "tg3 @ d4"]
    assert "±" in lines[2] and "%" in lines[3] and lines[5] == "" and "can read" in lines[6]


def test_the_profile_as_table_json_and_trace(tiny_path, tmp_path, capsys):
    args = (tiny_path, "-p", 8, "-n", 2, "--profile")
    lines = bench(capsys, *args, "--trace", tmp_path / "t.json").splitlines()
    shown = {tuple(cell.strip() for cell in line.split("|")[3:5]) for line in lines if "|" in line}
    assert {("pp8", "matmul ffn_down"), ("tg2", "matmul ffn_down"), ("tg2", "outside the plan"), ("tg2", "all of a token")} <= shown
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    stages = json.loads(bench(capsys, *args, "--json"))["stages"]
    assert [s["stage"] for s in stages] == ["prefill", "decode"]
    assert set(stages[0]["rows"][0]) == {"name", "calls", "seconds", "bytes", "macs"}
    rows = list(csv.DictReader(io.StringIO(bench(capsys, *args, "--csv"))))
    assert sum(float(r["share"]) for r in rows if r["stage"] == "decode") == pytest.approx(1)


def test_more_than_the_limit_is_explained(tiny_path, capsys, monkeypatch):
    monkeypatch.setattr(bandwidth.ReadProbe, "sample", lambda self: 1e3)
    for args in ((), ("--profile",)):
        for cache, why in ((0, "run again on a quiet machine"), (1 << 30, "fit in the caches")):
            monkeypatch.setattr(benchmark, "cache_bytes", lambda cache=cache: cache)
            lines = bench(capsys, tiny_path, "-p", 0, "-n", "2,3", *args).splitlines()
            assert sum(why in line for line in lines[lines.index(""):]) == 1
    with ni.load(tiny_path) as model:
        assert "fit in the caches" in repr(ni.bench(model, 8, 2, 1))
    monkeypatch.setattr(bandwidth.ReadProbe, "sample", lambda self: 1e15)
    for args in ((), ("--profile",)):
        assert "100% of the limit" not in bench(capsys, tiny_path, "-p", 0, "-n", 2, *args)


@pytest.mark.parametrize("share, told", [(0.99, False), (1.004, False), (1.006, True)])
def test_what_is_shown_as_100_percent_needs_no_words(share, told):
    assert (benchmark.above_limit(share, 1 << 60) is not None) == told


@pytest.fixture
def stop_after(monkeypatch):
    """``stop_after(n)``: Ctrl-C in place of the trial after the next n; warming up does not count."""
    real, left, counting = Runner.run, [0], [False]

    def init(self, *args):
        counting[0] = False
        real_init(self, *args)
        counting[0] = True

    def stopping(self, trial, *more):
        if counting[0]:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return real(self, trial, *more)

    real_init = Runner.__init__
    monkeypatch.setattr(Runner, "__init__", init)
    monkeypatch.setattr(Runner, "run", stopping)
    return lambda n: left.__setitem__(0, n)


def test_ctrl_c_shows_what_was_measured(tiny_path, capsys, stop_after):
    def bench(n, *args):
        stop_after(n)
        assert main(["bench", str(tiny_path), "-q", "-r", "2", "-p", "8", "-n", "2,3", *map(str, args)]) == 130
        return capsys.readouterr().out

    assert bench(0) == bench(0, "--json") == ""
    out = bench(4)
    assert [line.split("|")[5].strip() for line in out.splitlines() if line.startswith("|")][2:] == ["pp8", "tg2", "tg3"]
    assert "stopped by Ctrl-C, before all of 2 repeats" in out.splitlines()[-1] and "can read" in out
    assert [line.split("|")[5].strip() for line in bench(1).splitlines() if line.startswith("|")][2:] == ["pp8"]
    rows = list(csv.DictReader(io.StringIO(bench(4, "--csv"))))
    assert [(r["test"], r["repeats"]) for r in rows] == [("pp8", "2"), ("tg2", "1"), ("tg3", "1")]
    found = json.loads(bench(2, "--json"))  # a list, as of a run that ends
    assert [(f["pp"] and f["pp"]["n"], f["tg"] and f["tg"]["n"]) for f in found] == [(8, 2), (8, None)]
    assert all(f["read_limit_gb_per_second"] > 0 for f in found)
    found = json.loads(bench(7, "--json", tiny_path))  # six trials of the first model, one of the second
    assert [len(f["pp"]["samples"]) for f in found] == [2, 2, 1, 1]


def test_ctrl_c_between_a_trial_and_its_limit(tiny_model, monkeypatch):
    real, calls = bandwidth.ReadProbe.sample, []

    def sample(probe):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(probe)

    monkeypatch.setattr(bandwidth.ReadProbe, "sample", sample)
    with pytest.raises(benchmark.Stopped) as e:
        measure(tiny_model, [Trial(GEN, 2)], 3)  # samples: before, after; before, -
    (speed,), limit = e.value.found
    assert len(speed.samples) == len(speed.limits) == 1 and speed.share > 0 and limit > 0
    assert len(tiny_model.generate("ab", max_tokens=3, ignore_eos=True).token_ids) == 3


def test_ctrl_c_shows_what_was_profiled(tiny_path, tmp_path, capsys, stop_after):
    def profiled(n, *args):
        stop_after(n)
        assert main(["bench", str(tiny_path), "-q", "-r", "2", "-p", "8", "-n", "2", "--profile", *map(str, args)]) == 130
        return capsys.readouterr().out

    assert profiled(0) == ""
    out = profiled(1)
    assert "pp8" in out and "tg2" not in out and "stopped by Ctrl-C" in out
    rows = list(csv.DictReader(io.StringIO(profiled(3, "--csv"))))
    assert {r["stage"] for r in rows} == {"prefill", "decode"}
    found = json.loads(profiled(5, "--json", tiny_path, "--trace", tmp_path / "t.json"))
    assert [len(f["stages"]) for f in found] == [2, 1]
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_ctrl_c_in_the_middle_of_a_step(tiny_path, capsys, monkeypatch):
    real, calls = Runner.run, []

    def run(self, trial, *more):
        calls.append(trial)
        if len(calls) == 5:  # warming up takes two, the first repeat two
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            while True:
                real(self, trial, *more)
        return real(self, trial, *more)

    monkeypatch.setattr(Runner, "run", run)
    assert main(["bench", str(tiny_path), "-q", "-r", "2", "-p", "8", "-n", "2", "--csv"]) == 130
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(r["test"], r["repeats"]) for r in rows] == [("pp8", "1"), ("tg2", "1")]


@pytest.mark.parametrize("args, status, says", [
    (["-p", "128,x"], 2, "argument -p/--n-prompt: found 'x' in '128,x'"),
    (["-n", ""], 2, "argument -n/--n-gen: found ''"),
    (["-n", "1,,2"], 2, "argument -n/--n-gen: found ''"),
    (["-t", "1,-2"], 2, "argument -t/--threads: found '-2'"),
    (["-t", "0"], 2, "argument -t/--threads: found 0"),
    (["-d", "1.5"], 2, "argument -d/--depth: found '1.5'"),
    (["-p", "8,16,8"], 2, "argument --n-prompt: found 8 more than once"),
    (["-p", "0", "-n", "0"], 2, "--n-prompt and --n-gen are both 0"),
    (["-r", "0"], 2, "argument -r/--repeats: found 0"),
    (["--json", "--csv"], 2, "not allowed with"),
    (["--trace", "f"], 2, "--trace goes with --profile"),
    (["--profile", "--trace", "/no/such/folder/f"], 1, "/no/such/folder/f"),
    (["-p", "9999"], 1, "n_prompt = 9999"),
    (["-p", "8", "-n", "200", "-d", "100"], 1, "n_gen = 200 at depth 100"),
    (["-t", "100000"], 2, "threads"),
    (["no-such-model.gguf"], 1, "no-such-model.gguf"),
])  # fmt: skip
def test_bad_arguments_are_named(args, status, says, tiny_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.Runner, "run", lambda *_: pytest.fail("measured"))
    assert main(["bench", str(tiny_path), "-q", *args]) == status
    out, err = capsys.readouterr()
    assert says in err.splitlines()[-1] and out == "" and "Traceback" not in err


def test_teams_of_one_model_share_its_weights(tmp_path, capsys, monkeypatch):
    pretend(monkeypatch, 1, 2)
    filled, fill = [], Engine._fill
    monkeypatch.setattr(Engine, "_fill", lambda self, *a: filled.append(1) or fill(self, *a))
    found = json.loads(bench(capsys, tiny(tmp_path, "llama", "Q8_0"), "-p", 0, "-n", 2, "-t", "1,2", "--json"))
    assert [f["threads"] for f in found] == [1, 2] and len(filled) == 1
