"""The planner: what it says of memory is what loading takes, and its formula is the one that docs/numa.md writes down."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from core_tools import open_engine, pretend

from numainfer.measure import capacity, machine
from numainfer.measure.capacity import POLICIES, Demand, demand, forecast, step_seconds
from numainfer.cli.main import main
from numainfer.gguf.file import GGUFFile, Tensor
from numainfer.measure.machine import Machine, Site, measure, parse_machine, survey
from numainfer.gguf.sources import resolve

DOCS = Path(__file__).resolve().parent.parent / "docs" / "numa.md"
TWO = "2x32c,256GB,300GB/s,link=90GB/s"

# Round numbers: a token reads 1 GB, does 10^9 multiply-adds, and has 1 MB of keys and values per position.
MODEL = Demand(weights=1_100_000_000, whole=100_000_000, read=10**9, macs=10**9, n_ctx=1001, kv_bytes=1_001_000_000,
               kv_layers=((10**6, 0, 0),), activations=50_000_000, exchange=9_000_000, node_barriers=100, team_barriers=200,
               alone_barriers=400)  # fmt: skip


@pytest.mark.parametrize("text, wanted", [
    (TWO, (2, 32, 256e9, 300e9, 90e9, 2e-6, None)),
    ("1x8c,64GiB,40.5GB/s", (1, 8, 64 * 2**30, 40.5e9, None, 2e-6, None)),
    (" 4X16C, 1TB , 200 gb/s, barrier=500ns, macs=1.5T, link=30GB/s", (4, 16, 1e12, 200e9, 30e9, 5e-7, 1.5e12)),
    ("2x1c,512mb,900mB/s,LINK=1gB/s,barrier=3US", (2, 1, 512e6, 900e6, 1e9, 3e-6, None)),
    ("2x1c,512MB,900MB/s,link=1GB/s,barrier=3µs", (2, 1, 512e6, 900e6, 1e9, 3e-6, None)),
])  # fmt: skip
def test_descriptions_of_machines(text, wanted):
    m = parse_machine(text)
    n, cores, memory, read, link, barrier, macs = wanted
    assert [s.number for s in m.sites] == list(range(n)) and m.source == "given" and m.measured
    for s in m.sites:
        assert (s.cores, s.total, s.free, s.read, s.macs) == (cores, memory, memory, read, macs)
    assert (m.link, m.barrier) == (link, pytest.approx(barrier)) and m.node_barrier == m.barrier
    again = parse_machine(str(m))
    assert again.link == m.link and again.barrier == pytest.approx(m.barrier)
    assert all(a.cores == b.cores and a.read == b.read and a.macs == b.macs and abs(a.total - b.total) < 0.01 * b.total
               for a, b in zip(again.sites, m.sites))  # fmt: skip


@pytest.mark.parametrize("text, found, wanted", [
    ("", "''", "nodes and cores"),
    ("2x32", "'2x32'", "2x32c"),
    ("0x32c,256GB,300GB/s", "'0x32c'", "nodes and cores"),
    ("2x0c,256GB,300GB/s,link=9GB/s", "'2x0c'", "nodes and cores"),
    ("2x32c", "''", "memory and read bandwidth"),
    ("2x32c,256GB", "'256GB'", "memory and read bandwidth"),
    ("2x32c,256GB,300GB/s,90GB/s", "'256GB,300GB/s,90GB/s'", "memory and read bandwidth"),
    ("2x32c,256,300GB/s,link=90GB/s", "'256'", "bytes of memory"),
    ("2x32c,0GB,300GB/s,link=90GB/s", "'0GB'", "bytes of memory"),
    ("2x32c,256GB,300GB,link=90GB/s", "'300GB'", "read bandwidth"),
    ("2x32c,256GB,-3GB/s,link=90GB/s", "'-3GB/s'", "read bandwidth"),
    ("2x32c,256GB,300GB/s", "no link=", "link=90GB/s"),
    ("2x32c,256GB,300GB/s,link=90", "'link=90'", "link=90GB/s"),
    ("2x32c,256GB,300GB/s,link=9GB/s,link=9GB/s", "'link=9GB/s'", "once"),
    ("2x32c,256GB,300GB/s,lnik=9GB/s", "'lnik=9GB/s'", "link=RATE"),
    ("2x32c,link=9GB/s,256GB,300GB/s", "'256GB'", "at the end"),
    ("2x32c,256GB,300GB/s,link=9GB/s,barrier=2", "'barrier=2'", "2us"),
    ("2x32c,256GB,300GB/s,link=9GB/s,macs=2GB", "'macs=2GB'", "macs=2.5T"),
    ("2x32c,256GB,300GB/s,link=9GB/s,macs=2.6", "'macs=2.6'", "in K, M, G or T"),
    ("2x32c,256GB,300GB/s,link=9GB/s,macs=2Ti", "'macs=2Ti'", "in K, M, G or T"),
    ("2x32c,256GB,300GB/s,link=90Gb/s", "'link=90Gb/s'", "link=90GB/s, with B for bytes: Gb are bits"),
    ("2x32c,256GB,300 Gb/s,link=90GB/s", "'300 Gb/s'", "Gb are bits"),
    ("2x32c,256Gib,300GB/s,link=90GB/s", "'256Gib'", "256GB, with B for bytes: Gib are bits"),
    ("2x32c,256GB,300Gbit/s,link=90GB/s", "'300Gbit/s'", "300GB/s"),
    ("1x32c,256GB,300GB/s,link=90GB/s", "'link=90GB/s'", "no link= with one node"),
    ("macs=2T", "'macs=2T'", "at the beginning"),
    (f"1x1c,{'9' * 400}GB,1GB/s", "GB'", "bytes of memory"),
    (f"1x1c,{'9' * 30}GB,1GB/s", "GB'", "bytes of memory"),
    (f"1x1c,1GB,1GB/s,barrier={'9' * 400}us", "us'", "barrier=2us"),
    ("1x1c,1GB,1GB/s,barrier=2u\u017f", "'barrier=2u", "barrier=2us"),  # a letter that re takes for an s
])  # fmt: skip
def test_bad_descriptions_say_what_is_wrong(text, found, wanted):
    with pytest.raises(ValueError) as e:
        parse_machine(text)
    assert found in str(e.value) and wanted in str(e.value) and machine.GRAMMAR in str(e.value)


@pytest.mark.parametrize("n_bytes, shown", [(999.7e9, "1TB"), (999.4e9, "999GB"), (1.5e15, "1500TB"), (270_582_939_648, "271GB")])
def test_sizes_stay_in_the_grammar(n_bytes, shown):
    m = Machine((Site(0, 4, int(n_bytes), int(n_bytes), n_bytes),), None, 1e-6, 1e-6)
    assert f",{shown},{shown}/s" in str(m) and parse_machine(str(m)).sites[0].read == pytest.approx(n_bytes, rel=0.005)


def two(**changes):
    """Two nodes of 100 GB/s, link 30 GB/s, barriers of 2 and 1 us."""
    sites = tuple(Site(i, 8, 10**10, 10**10, 100e9) for i in range(2))
    return replace(Machine(sites, 30e9, 2e-6, 1e-6), **changes)


def test_the_formula_by_hand():
    sync = 9e6 / 2 / 30e9 + 200 * 2e-6 + 100 * 1e-6
    assert step_seconds(MODEL, two(), "replicate", [0, 1]) == pytest.approx(0.005 + sync)
    assert step_seconds(MODEL, two(), "shard", [0, 1]) == pytest.approx(0.005 + sync)
    # Of each node's half of the rows, half comes over the link.
    assert step_seconds(MODEL, two(), "interleave", [0, 1]) == pytest.approx(0.25e9 / 30e9 + sync)
    assert step_seconds(MODEL, two(link=200e9), "interleave", [0, 1]) == pytest.approx(0.005 + 9e6 / 2 / 200e9 + 5e-4)
    assert step_seconds(MODEL, two(), "local", [0]) == pytest.approx(0.010 + 400 * 1e-6)
    # 1000 positions: another GB, half on each node.
    assert step_seconds(MODEL, two(), "shard", [0, 1], past=1000) == pytest.approx(0.010 + sync)
    # Four sequences read the weights once, exchange four times as much.
    assert step_seconds(MODEL, two(), "shard", [0, 1], 4) == pytest.approx(0.005 + 4 * 9e6 / 2 / 30e9 + 5e-4)


def test_arithmetic_takes_over_where_it_is_slower():
    m = two(sites=tuple(replace(s, macs=1e12) for s in two().sites))
    assert step_seconds(MODEL, m, "local", [0], 5) == pytest.approx(0.010 + 4e-4)
    assert step_seconds(MODEL, m, "local", [0], 20) == pytest.approx(0.020 + 4e-4)
    f = forecast(MODEL, m, "replicate")
    assert f.sequences == 32  # 16 per node
    assert f.apart == pytest.approx(2 * 16 / (0.016 + 4e-4))
    assert f.together == pytest.approx(32 / (0.016 + 32 * 9e6 / 2 / 30e9 + 5e-4))


def test_the_slowest_node_sets_the_pace():
    """Rows are cut by workers: a node of the same memory with three times the workers reads three times as much."""
    sites = (Site(0, 24, 10**10, 10**10, 100e9), Site(1, 8, 10**10, 10**10, 100e9))
    assert step_seconds(MODEL, two(sites=sites), "shard", [0, 1]) == pytest.approx(0.0075 + 9e6 / 2 / 30e9 + 5e-4)
    first, second = forecast(MODEL, two(sites=sites), "shard").nodes
    assert (first.weights, second.weights) == (850_000_000, 350_000_000)  # the vectors are on both


def test_needs_of_the_policies():
    need = {p: forecast(MODEL, two(), p).nodes for p in POLICIES}
    assert [n.weights for n in need["replicate"]] == [1_100_000_000] * 2
    assert [n.weights for n in need["shard"]] == [600_000_000] * 2
    assert [n.weights for n in need["interleave"]] == [550_000_000] * 2
    assert [(n.weights, n.kv) for n in need["local"]] == [(1_100_000_000, 1_001_000_000)]
    for n in need["shard"]:
        assert n.need == 600_000_000 + 500_500_000 + 50_000_000 and n.room == 9_500_000_000 and n.fits
    tight = two(sites=(two().sites[0], replace(two().sites[1], free=2 * 10**9)))
    fits = {p: [n.fits for n in forecast(MODEL, tight, p).nodes] for p in POLICIES}
    assert fits == {"replicate": [True, False], "shard": [True, True], "interleave": [True, True], "local": [True]}
    assert not forecast(MODEL, tight, "replicate").fits
    shared = two(sites=tuple(replace(s, number=0, free=3 * 10**9) for s in two().sites))  # pretend nodes: one memory
    assert [n.room for n in forecast(MODEL, shared, "replicate").nodes] == [(3 * 10**9 - 5 * 10**8) // 2] * 2


def test_throughput_counts_every_sequence_once():
    f = forecast(MODEL, two(), "replicate", 3)
    assert f.apart == pytest.approx(3 / 0.0104) and f.together == pytest.approx(3 * f.first, rel=0.2)
    assert forecast(MODEL, two(), "replicate", 1).apart == pytest.approx(1 / 0.0104)  # the other node has nothing to do
    assert forecast(MODEL, two(), "shard").apart is None


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
@pytest.mark.parametrize("policy", ["replicate", "shard", "interleave", "local"])
def test_the_plan_is_what_loading_takes(monkeypatch, name, policy):
    pretend(monkeypatch, 2, 2)
    with GGUFFile(resolve(name)) as file:
        need = demand(file, 2, 300)
    with open_engine(resolve(name), n_ctx=300, placement=policy) as engine:
        wanted, found = forecast(need, survey(), policy).nodes, engine.placement.nodes
        assert len(wanted) == len(found)
        for w, f in zip(wanted, found):
            assert f.weights == pytest.approx(w.weights, rel=0.01)
        assert need.read == engine.bytes_per_token and need.kv_bytes == engine.plan.kv_bytes
        if policy != "local":  # a plan for one node
            assert need.activations == sum(engine.plan.arena_bytes)


def test_no_weights_are_read(monkeypatch):
    read, data = [], Tensor.data

    def watched(tensor):
        read.append(tensor)
        return data.fget(tensor)

    monkeypatch.setattr(Tensor, "data", property(watched))
    with GGUFFile(resolve("smollm2")) as file:
        demand(file, 2, 300)
    assert read and all(len(t.shape) == 1 for t in read)


def test_windows_bound_what_a_token_reads():
    with GGUFFile(resolve("gemma3")) as file:
        need = demand(file, 1)
    per_position = 1 * (256 + 256) * 2
    assert need.kv_read(100) == 18 * per_position * 100
    assert need.kv_read(10_000) == per_position * (15 * 512 + 3 * 10_000)
    assert need.n_ctx == 32768


def test_measuring(monkeypatch):
    here = measure(1)
    assert here.source == "measured" and here.measured and here.link is None and here.sites[0].cores == 1
    assert 1e8 < here.sites[0].read < 1e13 and 1e8 < here.sites[0].macs < 1e14 and 0 < here.node_barrier < 1e-3
    assert parse_machine(str(here)).sites[0].read == pytest.approx(here.sites[0].read, rel=0.01)
    pretend(monkeypatch, 2, 1)
    here = measure(weight_type="Q8_0")
    assert len(here.sites) == 2 and 1e8 < here.link < 1e13 and here.barrier > 0


@pytest.mark.parametrize("n", [0, -3])
def test_no_barriers_are_no_measurement(n):
    from core_tools import open_team

    with open_team() as team, pytest.raises(ValueError, match=f"{n} barriers were asked for"):
        team.barrier_time(n)


# ---- the commands ------------------------------------------------------------------------------------------------------


def run(capsys, *args, status=0):
    assert main([str(a) for a in args]) == status
    return capsys.readouterr()


def test_info_plans_for_another_machine(capsys):
    out = run(capsys, "info", "smollm2", "--topology", TWO, "-c", 4096).out
    for policy in POLICIES:
        assert len(re.findall(rf"^{policy} ", out, re.MULTILINE)) == 2  # memory, and speed
    assert "256GB,300GB/s,link=90GB/s,barrier=2us" in out and "4096 tokens" in out and "2 together" in out
    plan = json.loads(run(capsys, "info", "smollm2", "--topology", f"{TWO},macs=2T", "-s", 8, "-c", 4096, "--json").out)["plan"]
    found = {p["policy"]: p for p in plan["placements"]}
    assert set(found) == set(POLICIES) and plan["machine"]["link"] == 90e9 and plan["demand"]["n_ctx"] == 4096
    assert found["replicate"]["sequences"] == 8 and found["replicate"]["apart"] > found["local"]["together"]
    assert found["replicate"]["first"] == found["shard"]["first"] > found["interleave"]["first"]
    assert found["shard"]["nodes"][0]["weights"] < 0.51 * found["replicate"]["nodes"][0]["weights"]


def test_without_macs_many_sequences_are_not_spoken_of(capsys):
    def last(*args):
        out = run(capsys, "info", "smollm2", "--topology", *args).out
        return re.search(r"(\d+) together", out)[1], out.splitlines()[-1]

    together, line = last(TWO)
    assert together == "2" and "more than one sequence per node is not shown" in line and "macs=" in line
    together, line = last(TWO, "-s", 64)
    assert together == "64" and "looks too fast" in line and "macs=" in line
    together, line = last(f"{TWO},macs=2.6T")
    assert together == "32" and "macs" not in line
    shown = " ".join(run(capsys, "info", "--help").out.split())
    assert "16 per node; 1 per node with a --topology without macs=" in shown


def test_info_of_this_machine(capsys, monkeypatch):
    out = run(capsys, "info", "smollm2", "--no-measure").out
    assert "any" in out and "tokens/s" not in out
    out = run(capsys, "info", "smollm2", "-t", 1, "-c", 512).out
    assert "tokens/s" in out and "measured 1x1c" in out
    pretend(monkeypatch, 2, 1)
    out = run(capsys, "info", "smollm2", "--no-measure").out
    assert "replicate   each" in out


def test_info_tells_about_files_that_it_cannot_plan(tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba9")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = run(capsys, "info", tmp_path / "x.gguf").out
    assert "mamba9" in out and "unsupported" in out
    found = json.loads(run(capsys, "info", tmp_path / "x.gguf", "--json").out)
    assert found["plan"] is None and "mamba9" in found["unsupported"]


@pytest.mark.parametrize("args, says", [
    (["info", "smollm2", "--topology", "2x32c"], "memory and read bandwidth"),
    (["info", "smollm2", "--topology", TWO, "-t", 2], "--topology"),
    (["info", "smollm2", "-c", 0], "--ctx 0"),
    (["info", "smollm2", "--sequences", -1], "--sequences -1"),
    (["info", "smollm2", "--nodes", "a"], "--nodes 'a'"),
    (["topology", "-t", 1], "--measure"),
])  # fmt: skip
def test_wrong_usage(capsys, args, says):
    assert says in run(capsys, *args, status=2).err.splitlines()[-1]


def test_topology_measures(capsys):
    out = run(capsys, "topology", "--measure", "-t", 1).out.splitlines()
    assert parse_machine(out[-1]).sites[0].cores == 1  # ready for info --topology
    found = json.loads(run(capsys, "topology", "--json").out)
    assert found["source"] == "not measured" and found["sites"][0]["cores"] >= 1


def test_the_examples_of_the_docs():
    found = re.findall(r"```python\n([^`]*)```\s+```text\n([^`]*)```", DOCS.read_text())
    assert len(found) == 2
    for code, wanted in found:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, DOCS.name, "exec"), {})  # noqa: S102 - our own page
        assert out.getvalue().split() == wanted.split()
    assert capacity.RESERVE == 0.05  # which the page tells
