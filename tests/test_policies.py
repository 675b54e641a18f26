"""Policies for groups of weights: what they are called, which of them "auto" takes, what lies where, and that no bit depends on it."""

import logging
import re

import numpy as np
import pytest
from core_tools import logits, open_engine, pretend, python, same_bits
from hollow_gguf import deepseek_v3
from test_mixture_models import model as archs_model, quantise
from tiny_mixture import tiny_mixture
from tiny_models import tiny

import numainfer as ni
from numainfer.cli.main import main
from numainfer.engine import store, weights
from numainfer.gguf.file import GGUFFile
from numainfer.machine.limits import Allowance
from numainfer.machine.topology import Node
from numainfer.machine.policies import GROUPS, HYBRID, by_group, canonical, choose_policy, cuts, of_group, without
from numainfer.measure.capacity import demand, forecast
from numainfer.measure.machine import parse_machine, survey

GB, OTHER = 10**9, "experts=replicate,*=shard"
IDS = np.random.default_rng(3).integers(3, 280, 70).astype(np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_mixture(tmp_path_factory.mktemp("policies"), "Q4_K")


@pytest.fixture(scope="module")
def wanted(path):
    with open_engine(path, threads=1) as engine:
        return logits(engine, IDS)


# ---- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "meant"), [
    ("auto", "auto"), (" shard ", "shard"), (HYBRID, HYBRID), (" * = replicate, experts =shard", HYBRID),
    ({"experts": "shard", "*": "replicate"}, HYBRID), ({"*": "replicate", "experts": "shard"}, HYBRID), ({"*": "shard"}, "shard"),
    ({"experts": "shard", "*": "shard"}, "shard"), ("experts=replicate,*=replicate", "replicate"), ("*=shard", "shard"),
    ({"experts": "replicate", "*": "shard"}, OTHER),
])  # fmt: skip
def test_policies_have_one_form(given, meant):
    found = canonical(given)
    assert found == meant == canonical(found) == canonical(by_group(found)) if "*" in found else found == meant


@pytest.mark.parametrize(("given", "error", "says"), [
    (3, TypeError, "placement = 3: found int, wanted a str, or a dict such as {'experts': 'shard', '*': 'replicate'}"),
    (None, TypeError, "found NoneType"), (["shard"], TypeError, "found list"),
    ("sharded", ValueError, "placement = 'sharded'; wanted one of auto, replicate, shard, interleave, local, or a policy for each group of "
                            "weights, such as 'experts=shard,*=replicate'; did you mean shard?"),
    ("", ValueError, "placement = ''; wanted one of auto"), ("hybrid", ValueError, "such as 'experts=shard,*=replicate'"),
    ({"expert": "shard", "*": "replicate"}, ValueError, "there is no group 'expert' of weights; did you mean experts?"),
    ({"rest": "shard", "*": "shard"}, ValueError, "there is no group 'rest' of weights; known are experts, *"),
    ({7: "shard"}, ValueError, "there is no group 7 of weights; known are experts, *"),
    ({"experts": "shrad", "*": "replicate"}, ValueError, "'experts' has 'shrad'; wanted one of replicate, shard; did you mean shard?"),
    ({"experts": ["shard"], "*": "replicate"}, ValueError, "'experts' has ['shard']; wanted one of replicate, shard"),
    ({"experts": None, "*": "replicate"}, ValueError, "'experts' has None; wanted one of replicate, shard"),
    ({"experts": "interleave", "*": "shard"}, ValueError, "'experts' has 'interleave'; wanted one of replicate, shard: others are for all"),
    ({"*": "auto"}, ValueError, "'*' has 'auto'; wanted one of replicate, shard: others are for all weights together"),
    ({"experts": "shard"}, ValueError, "says nothing of the other weights; add '*'"), ({}, ValueError, "says nothing of the other weights"),
    ("experts=shard", ValueError, "says nothing of the other weights; add '*'"),
    ("experts=shard,", ValueError, "found '', wanted GROUP=POLICY with commas between them"),
    ("experts=shard;*=replicate", ValueError, "found 'experts=shard;*=replicate', wanted GROUP=POLICY"),
    ("experts=shard,*", ValueError, "found '*', wanted GROUP=POLICY"),
    ("experts=shard,*=replicate,*=shard", ValueError, "group '*' stands there twice"),
    ("=shard,*=shard", ValueError, "found '=shard'"),
])  # fmt: skip
def test_what_is_no_policy_is_told_and_what_was_meant(path, given, error, says):
    with pytest.raises(error, match=re.escape(says)):
        canonical(given)
    with pytest.raises(error, match=re.escape(says)):
        ni.load(path, placement=given)


def test_what_a_policy_says_of_a_group():
    assert GROUPS == ("experts", "*")
    assert [of_group(HYBRID, group) for group in GROUPS] == ["shard", "replicate"]
    assert [of_group("local", group) for group in GROUPS] == ["local"] * 2
    assert without(HYBRID, "experts") == "replicate" and without(OTHER, "experts") == "shard" and without("auto", "experts") == "auto"
    assert [cuts(policy) for policy in (HYBRID, OTHER, "shard", "replicate", "interleave", "local")] == [True] * 3 + [False] * 3


# ---- the choice --------------------------------------------------------------------------------------------------------


def nodes(*free):
    return [Node(i, (i,), 100 * GB, n) for i, n in enumerate(free)]


def choose(free, standing=(), limit=None, asked="auto"):
    """60 GB of weights, 50 of them experts', for two nodes with so many GB free; 5 % of 100 GB stay free."""
    need = {"replicate": [60 * GB] * 2, HYBRID: [35 * GB] * 2, "shard": [30 * GB] * 2}
    return choose_policy(asked, nodes(*(n * GB for n in free)), need, 0, standing, limit)


def test_auto_replicates_else_cuts_experts_else_everything():
    assert choose((65, 65)) == ("replicate", "every node has room for its own 60.0 GB")
    assert choose((65, 64)) == (HYBRID, "no room for 60.0 GB on every node, but for 35.0 GB, its rows of the experts and all else")
    assert choose((40, 40))[0] == HYBRID
    assert choose((99, 39)) == ("shard", "no room for 60.0 GB on every node, nor for 35.0 GB with the experts cut")
    with pytest.raises(ni.OutOfNodeMemory, match="'shard' does not fit .*node 1: need 30.0 GB, free 29.0 GB"):
        choose((99, 34))
    group = Allowance(100 * GB, 75 * GB, "memory.max")  # 70 to be had
    assert choose((99, 99), limit=group)[0] == HYBRID
    assert choose((99, 99), limit=Allowance(100 * GB, 74 * GB, "memory.max"))[0] == "shard"
    with pytest.raises(ni.OutOfNodeMemory, match=re.escape(repr(HYBRID)) + " does not fit .*need 35.0 GB, free 34.0 GB"):
        choose((39, 99), asked=HYBRID)


def test_auto_takes_copies_that_stand_before_it_makes_others():
    assert choose((6, 6), {"replicate"})[0] == "replicate"
    assert choose((6, 6), {HYBRID})[0] == HYBRID
    assert choose((41, 41), {"shard"}) == ("shard", "no room for 60.0 GB on every node; such a copy stands already")
    assert choose((41, 41), {"shard", HYBRID})[0] == HYBRID
    assert choose((99, 99), {"shard"})[0] == "replicate"
    unequal = choose_policy("auto", nodes(30 * GB, 60 * GB), {"replicate": [60 * GB] * 2, "shard": [20 * GB, 40 * GB]}, 0)
    assert unequal[0] == "shard"  # a node needs its own part, which follows its workers


# ---- loaded ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1), (2, (1, 2)), (3, 1)], ids=str)
@pytest.mark.parametrize("policy", ["replicate", "shard", HYBRID, OTHER, "interleave"])
def test_same_bits_in_every_policy(path, wanted, monkeypatch, policy, shape):
    pretend(monkeypatch, *shape)
    with open_engine(path, placement=policy) as engine:
        assert engine.placement.policy == policy
        for chunks in (None, [1], [40, 1, 1, 13]):
            same_bits(logits(engine, IDS, chunks), wanted)


@pytest.mark.parametrize("name", ["deepseek2", "gpt-oss", "qwen2moe"])
def test_same_bits_with_latent_attention_shared_experts_and_biases(tmp_path, monkeypatch, name):
    path = archs_model(tmp_path, name, edit=quantise)
    ids = IDS[:40] % 128
    with open_engine(path, threads=1) as engine:
        wanted = logits(engine, ids)
    for shape in ((2, 1), (3, (2, 1, 1))):
        pretend(monkeypatch, *shape)
        for policy in ("replicate", "shard", HYBRID, OTHER):
            with open_engine(path, placement=policy) as engine:
                same_bits(logits(engine, ids), wanted, policy)
                same_bits(logits(engine, ids[:9], [1]), wanted[:9], policy)


def rows_of(engine, w, node):
    """The row groups of a matrix that a node holds, in the addresses that the core is given."""
    bounds = engine.replicas.entry(w)[4]
    return (0, -(-w.n // 16)) if bounds is None else (bounds[node], bounds[node + 1])


def test_what_lies_where(path, monkeypatch):
    """Of matrices that a router chooses among each node holds its rows; of all others, the router among them, everything."""
    pretend(monkeypatch, 2, (1, 3))
    with open_engine(path, placement={"experts": "shard", "*": "replicate"}) as engine:
        experts = {w.name for w in engine.plan.weights if "_exps" in w.name}
        assert len(experts) == 6 and experts == {w.name for w in engine.plan.experts}
        whole, part = 0, [0, 0]
        for w in engine.plan.weights:
            if w.name not in experts:
                assert getattr(w, "experts", 1) == 1 and engine.replicas.entry(w)[4] is None
                whole += -(-w.packed_bytes // 64) * 64
                continue
            groups = -(-w.n // 16)
            for node, (first, end) in enumerate(((0, groups // 4), (groups // 4, groups))):
                assert rows_of(engine, w, node) == (first, end)
                part[node] += w.packed_bytes * (end - first) // groups
        for node, arena, own in zip(engine.placement.nodes, engine.replicas.arenas, part):
            assert node.experts == own and whole + own <= arena.bytes < whole + own + 4096 and node.weights == arena.bytes
        assert engine.placement.policies == {"experts": "shard", "*": "replicate"}
        shown = str(engine.placement).splitlines()
        assert shown[0].startswith(f"{HYBRID} on 2 pretend nodes;") and shown[1].split()[2:6] == ["cores", "CPUs", "weights", "experts"]
        assert "<th>experts</th>" in engine.placement._repr_html_()


def test_heads_of_latent_attention_are_not_experts(tmp_path, monkeypatch):
    pretend(monkeypatch, 2, 1)
    with open_engine(archs_model(tmp_path, "deepseek2"), placement=HYBRID) as engine:
        names = {w.name for w in engine.plan.experts}
        assert names and all("_exps" in name for name in names)
        heads = [w for w in engine.plan.weights if "attn_k_b" in w.name or "attn_v_b" in w.name]
        assert heads and all(w.experts == 4 and engine.replicas.entry(w)[4] is None for w in heads)


def test_a_model_without_experts_has_the_policy_of_the_rest(tmp_path, monkeypatch):
    pretend(monkeypatch, 2, 1)
    path = tiny(tmp_path, "llama", "Q8_0")
    with open_engine(path, placement=HYBRID) as a, open_engine(path, placement="replicate") as b, open_engine(path, placement=OTHER) as c:
        assert a.placement.policy == "replicate" and c.placement.policy == "shard" and a.replicas is b.replicas
        assert "experts" not in str(a.placement)


def test_one_node_has_one_policy(path, wanted):
    with open_engine(path, threads=1, nodes=[0], placement=HYBRID) as engine:
        assert engine.placement.policy == "local" and engine.placement.reason.startswith("one node")
        same_bits(logits(engine, IDS), wanted)


def test_loads_share_copies_of_the_same_policy_alone(path, wanted, monkeypatch):
    pretend(monkeypatch, 2, 1)
    others = set(store._entries)
    with open_engine(path, placement=HYBRID) as a:
        with open_engine(path, placement={"*": "replicate", "experts": "shard"}, n_ctx=64) as b:
            assert b.replicas is a.replicas
        for policy in ("replicate", "shard", OTHER, "interleave"):
            with open_engine(path, placement=policy) as c:
                assert c.replicas is not a.replicas
                same_bits(logits(c, IDS[:20]), wanted[:20])
        same_bits(logits(a, IDS[:20]), wanted[:20])
        with open_engine(path, placement="auto") as d:
            assert d.placement.policy == "replicate"  # there is room
        arenas = a.replicas.arenas
    assert set(store._entries) == others and all(arena.address == 0 for arena in arenas)


def free_for(monkeypatch, path, policy):
    """Nodes with room for the policy and hardly more; the log's words are of no importance."""
    from numainfer.machine import topology as topologies

    pretend(monkeypatch, 2, 1)
    with open_engine(path, n_ctx=64, n_batch=8, placement=policy) as engine:
        # Both lie in one real memory; the cache of a chunk; 5 % kept free.
        need = sum(arena.bytes for arena in engine.replicas.arenas) + 2 * sum(engine.plan.arena_bytes) + engine.plan.kv.bytes(64)
    total = int((need + (200 << 10)) / 0.95)
    shown = tuple(Node(n.number, n.cpus, total, total, n.pretend) for n in topologies.topology().nodes)
    monkeypatch.setattr(topologies, "topology", lambda: topologies.Topology(shown, 2))


def test_auto_on_nodes_of_any_size(path, wanted, monkeypatch, caplog):
    said = {"replicate": "every node has room", HYBRID: "its rows of the experts and all else", "shard": "nor for"}
    for policy, why in said.items():
        free_for(monkeypatch, path, policy)
        caplog.clear()
        with caplog.at_level(logging.INFO, "numainfer"), open_engine(path, n_ctx=64, n_batch=8) as engine:
            assert engine.placement.policy == policy and why in engine.placement.reason
            assert any(f"placement {policy}: " in record.getMessage() and why in record.getMessage() for record in caplog.records)
            assert str(engine.placement).startswith(f"{policy} on 2 pretend nodes (")
            same_bits(logits(engine, IDS[:20]), wanted[:20])
            with open_engine(path, n_ctx=64, n_batch=8) as again:  # for which there is no room but beside the first one's
                assert again.replicas is engine.replicas


def test_lists_run_in_one_team(path, monkeypatch):
    """No node can work by itself: "auto" does not try, and "throughput" is told so; answers are those of other policies."""
    pretend(monkeypatch, 2, 1)
    prompts = [IDS[:9], IDS[9:20], IDS[20:24], IDS[24:60]]

    def answers(policy, mode="auto"):
        with ni.load(path, placement=policy, n_ctx=128, threads=2) as model:
            found = model.generate(prompts, max_tokens=6, mode=mode, ignore_eos=True)
            return [one.token_ids for one in found], {one.timings.mode for one in found}

    (wanted, _), (found, modes) = answers("replicate", "throughput"), answers(HYBRID)
    assert found == wanted and modes == {"latency"} and answers(HYBRID, "latency")[0] == wanted
    with ni.load(path, placement=HYBRID, n_ctx=128) as model:
        says = f"the placement is {re.escape(HYBRID)} on 2 pretend nodes: of some weights one copy in all. Load with placement='replicate'"
        with pytest.raises(ValueError, match=says):
            model.generate(prompts, max_tokens=2, mode="throughput")
        assert len(model.runtime.engine.node_lanes()) == 1


def test_the_command_takes_policies_by_group(path, capsys, monkeypatch):
    pretend(monkeypatch, 2, 1)
    seen = []
    monkeypatch.setattr("numainfer.engine.engine.choose_policy", lambda asked, *more: seen.append(asked) or choose_policy(asked, *more))
    assert main(["run", str(path), "the", "-n", "2", "--placement", HYBRID, "-q"]) == 0 and seen == [HYBRID]
    for wrong, says in (("expert=shard,*=replicate", "did you mean experts?"), ("experts=shard", "says nothing of the other weights")):
        assert main(["run", str(path), "the", "--placement", wrong]) == 2
        assert says in capsys.readouterr().err


# ---- planned -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["replicate", "shard", HYBRID, OTHER, "interleave"])
@pytest.mark.parametrize("name", ["mixture", "deepseek2"])
def test_the_plan_is_what_loading_takes(path, tmp_path, monkeypatch, name, policy):
    """The router, whole on every node, too; one of many experts shows it."""
    pretend(monkeypatch, 2, (1, 3))
    path = path if name == "mixture" else archs_model(tmp_path, "deepseek2")
    with GGUFFile(path) as file:
        need = demand(file, 2, 64)
    with open_engine(path, n_ctx=64, placement=policy) as engine:
        plan = engine.plan
        assert need.whole == sum(w.packed_bytes for w in plan.weights if not hasattr(w, "experts") or "ffn_gate_inp" in w.name)
        assert need.experts == sum(w.packed_bytes for w in plan.weights if "_exps" in w.name)
        for planned, found in zip(forecast(need, survey(), policy).nodes, engine.placement.nodes):
            assert found.weights == pytest.approx(planned.weights, rel=0.01, abs=4096 + 64 * len(plan.weights))


def test_bytes_that_many_tokens_read(path):
    with GGUFFile(path) as file:
        need = demand(file, 2, 64)
    (experts, used, size), = need.choices
    assert (experts, used, size) == (8, 3, need.experts // 8)
    assert need.weights_read(1) == pytest.approx(need.read)
    rng, n = np.random.default_rng(1), 4  # drawn, not computed
    drawn = [len(set(np.concatenate([rng.permutation(experts)[:used] for _ in range(n)]))) for _ in range(4000)]
    assert need.weights_read(n) == pytest.approx(need.read + (np.mean(drawn) - used) * size, rel=0.01)
    assert need.weights_read(1000) == pytest.approx(need.read + 5 * size)


def test_copies_of_experts_by_the_model(tmp_path):
    """What docs/numa.md says: for one sequence no policy that cuts or copies is ahead, for a few each, a team per node is level."""
    with GGUFFile(deepseek_v3(tmp_path / "m.gguf", vocabulary=1024)) as file:
        need = demand(file, 2, 4096)
    machine = parse_machine("2x96c,768GB,400GB/s,link=120GB/s,macs=10T")
    found = {policy: forecast(need, machine, policy, 4) for policy in need.policies()}
    assert found["replicate"].first == found["shard"].first == found[HYBRID].first > found["interleave"].first
    assert found[HYBRID].apart is None and found["replicate"].apart is not None
    held = {policy: found[policy].nodes[0].weights for policy in found}
    assert held["shard"] < held[HYBRID] < 0.53 * held["replicate"]


TOPOLOGY = "2x96c,768GB,400GB/s,link=120GB/s"


def test_info_of_a_model_of_671_billion(tmp_path):
    """By its header alone, within time and memory that a terminal may ask for."""
    path = deepseek_v3(tmp_path / "671b.gguf")
    assert path.stat().st_size > 400e9 and path.stat().st_blocks * 512 < 16e6
    out = python("""if True:
        import resource, subprocess, sys, time
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "numainfer", "info", *sys.argv[1:]], check=True)
        print("seconds", time.monotonic() - begin, "KiB", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    """, path, "--topology", TOPOLOGY)  # fmt: skip
    seconds, kib = re.search(r"seconds (\S+) KiB (\S+)", out).groups()
    assert float(seconds) < 4 and int(kib) * 1024 < 300e6  # 2 s on a quiet machine
    for policy in ("replicate", HYBRID, "shard", "interleave", "local"):
        assert len(re.findall(rf"^{re.escape(policy)} ", out, re.MULTILINE)) == 2  # bytes on a node, and speed
    assert "671.0B" in out and "layers 3-60: 6.5 GB to 7.5 GB each" in out and "a token reads 8 of 256" in out
    assert re.search(r"4096 tokens: .*, 163840 tokens: ", out)


def test_info_of_a_file_that_does_not_run(tmp_path, capsys, monkeypatch):
    """Sizes by type, in all and by layer; what is missing."""
    more = [("blk.3.other.weight", "TQ1_0", (256, 8))]
    monkeypatch.setattr(weights, "FORMATS", {name: of for name, of in weights.FORMATS.items() if name != "TQ1_0"})
    path = deepseek_v3(tmp_path / "m.gguf", layers=6, vocabulary=512, architecture="deepseek9", more=more)
    assert main(["info", str(path), "--topology", TOPOLOGY]) == 0
    out = capsys.readouterr().out
    for text in ("Q4_K 1", "Q6_K ", "TQ1_0 432 B", "layers 0-2: ", "layer 3: ", "layers 4-5: ", "outside of layers: ",
                 "general.architecture = 'deepseek9' is not supported", "types that it cannot multiply by: TQ1_0"):  # fmt: skip
        assert text in out, text


def test_a_file_of_holes_is_not_loaded(tmp_path):
    path = deepseek_v3(tmp_path / "m.gguf", layers=3, dense=2, width=256, heads=2, experts=16, expert_width=256, vocabulary=512)
    with pytest.raises(ni.CorruptModel, match="are zero, and so is all that follows in the file, as where a download was not finished"):
        ni.load(path, n_ctx=64)


# ---- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [HYBRID, "shard", "replicate"])
def test_loading_needs_no_second_copy(tmp_path_factory, policy):
    """At its peak a load has what stays, and some MB of buffers, however large the file is."""
    folder = tmp_path_factory.getbasetemp() / "large"
    folder.mkdir(exist_ok=True)
    path = folder / "tiny-mixture-Q4_K.gguf"
    if not path.exists():
        tiny_mixture(folder, "Q4_K", layers=2, width=512, experts=64, expert_width=2048)
    out = python("""if True:
        import os, sys
        from pathlib import Path
        from core_tools import open_engine
        os.environ["NUMAINFER_FAKE_NODES"] = "2"

        def status(key):
            return 1024 * int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)))

        def opened():
            return open_engine(sys.argv[1], placement=sys.argv[2], threads=2, n_ctx=64, n_batch=4)

        with open_engine(sys.argv[3], placement="shard", threads=2, n_ctx=64):  # all that has to be imported
            pass
        before = status("VmRSS")
        with opened() as engine:
            print(status("VmHWM") - before, status("VmRSS") - before, sum(arena.bytes for arena in engine.replicas.arenas))
    """, path, policy, tiny(tmp_path_factory.mktemp("first"), "llama", "Q8_0"))  # fmt: skip
    peak, after, held = map(int, out.split())
    assert path.stat().st_size > 100e6 and held > (1.9 if policy == "replicate" else 1) * path.stat().st_size
    assert held <= after + (1 << 20) and peak < held + 40e6, (peak, after, held)
