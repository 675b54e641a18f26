"""The package on emulated machines with real NUMA nodes: one boot per machine, many checks in each (checks.py)."""

import json

import checks
import pytest
from boot import Machine
from counting import CPUS, count, model_path
from tiny_mixture import tiny_mixture
from tiny_models import tiny

from numainfer.gguf import sources

# Machine, what topology() shall say (node number -> CPUs), runs of checks. A check that cannot be undone has a process of its own.
MACHINES = {
    "two nodes": (
        Machine([(2, 640), (2, 640)]),
        {0: [0, 1], 1: [2, 3]},
        [["topology", "placements", "mixtures", "subset", "strays", "balancing", "too_big"], ["affinity"], ["cpuset_of_one_node"],
         ["cpuset_memory"], ["interleaved"], ["without_mbind"], ["as_in_docker"], ["kept"], ["memory"], ["memory_limit"], ["cpu_limit"]],
    ),
    "four nodes": (
        Machine([(1, 384)] * 4),
        {0: [0], 1: [1], 2: [2], 3: [3]},
        [["topology", "placements", "subset"], ["without_mbind"]],
    ),
    "a node without memory": (  # node 1 is nearer to node 2
        Machine([(1, 512), (1, 0), (1, 512)], distances={(0, 1): 30, (1, 2): 15}),
        {0: [0], 2: [1, 2]},
        [["topology", "placements", "affinity"]],
    ),
    "a node without CPUs": (
        Machine([(2, 512), (0, 512)]),
        {0: [0, 1]},
        [["topology", "placements"], ["memory_limit_of_version_1"]],
    ),
    "node numbers with a gap": (
        Machine([(1, 512), (0, 0), (1, 512)]),
        {0: [0], 2: [1]},
        [["topology", "placements", "subset", "strays"], ["as_in_docker"]],
    ),
    "unequal nodes with SMT": (
        Machine([(2, 384), (4, 640)], threads_per_core=2),
        {0: [0], 1: [2, 4]},
        [["topology", "placements", "mixtures"]],
    ),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Paths and host's bits of a model of 2 MB, of a mixture of 4 MB and of a real one."""
    folder = tmp_path_factory.mktemp("guest")
    paths = {"model": tiny(folder, "llama", "Q8_0", heads=8, kv_heads=4, layers=3, feed_forward=512),
             "mixture": tiny_mixture(folder), "big": sources.resolve("smollm2")}  # fmt: skip
    return {name: str(path) for name, path in paths.items()} | {"bits": {name: checks.host_bits(path) for name, path in paths.items()}}


@pytest.fixture(scope="module")
def reports(models):
    """Reports of a machine's checks, by name; it boots when first asked for."""
    known = {}

    def of(name):
        if name not in known:
            machine, cpus, runs = MACHINES[name]
            settings = json.dumps(models | {"cpus": cpus})
            failed = {"error": "the machine did not come to its end: see its first check"}
            known[name] = {check: failed for names in runs for check in names}
            for result in machine.run(*(["python", "tests/guest/checks.py", settings, *names] for names in runs), timeout=240):
                lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
                missing = [check for check in result.command[3:] if check not in {line["check"] for line in lines}]
                known[name] |= {line["check"]: line for line in lines}
                known[name] |= {check: {"error": f"ended with status {result.status}: {result.stderr}"} for check in missing}
            print(json.dumps({name: known[name]}, indent=1))
        return known[name]

    return of


@pytest.mark.parametrize(("machine", "check"), [(name, check) for name, (_, _, runs) in MACHINES.items() for run in runs for check in run])
def test_check(reports, machine, check):
    report = reports(machine)[check]
    assert not report["error"], report["error"]


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_what_crosses_the_link(mode):
    """A token of a 1 B model, all that process and kernel do included: no weight and no key or value comes from the other node, and
    little else does.  That is some hundred KB a token whatever the model's size, so that of a model of 100 MB it is a larger share."""
    windows, said = count(model_path("1b-q4_0"), "replicate", mode)
    token = windows["token"]
    print(json.dumps({mode: {"share": token.share(), "seconds": said["seconds"], "read": token.reads, "remote": token.remote_reads}},
                     indent=1))
    assert windows["control"].share("control") == 1.0, "the counter does not see what was read across the link"
    parts = len(said["nodes"]) if mode == "latency" else 1
    for node in said["nodes"]:  # each reads its part of its own copy
        assert token.reads[f"weights {node}"] >= 0.9 * said["weight_bytes"] / parts
    assert token.share("weights") == 0.0
    assert token.share("kv") == 0.0
    # No faster than a real core with the memory to itself, so that the kernel's part, which comes with time, is not too small.
    assert said["weight_bytes"] / parts / CPUS / said["seconds"] < 20e9
    assert token.share() <= {"latency": 0.01, "throughput": 0.001}[mode], token


@pytest.mark.parametrize(("policy", "mode"), [("replicate", "latency"), ("replicate", "throughput"), ("shard", "latency"),
                                              ("experts=shard,*=replicate", "latency")])  # fmt: skip
def test_no_expert_crosses_the_link(tmp_path, policy, mode):
    """A token of a mixture: no byte of the chosen experts comes from the other node, wherever the router sends it, nor of any other
    weight, but for the token's row of the embedding where that is cut."""
    windows, said = count(tiny_mixture(tmp_path, layers=4, width=512, expert_width=512, experts=16, used=4), policy, mode)
    token = windows["token"]
    print(json.dumps({f"{policy} {mode}": {"said": {key: said[key] for key in ("weight_bytes", "expert_bytes")}, "read": token.reads,
                                           "remote": token.remote_reads}}, indent=1))  # fmt: skip
    assert windows["control"].share("control") == 1.0, "the counter does not see what was read across the link"
    parts = len(said["nodes"]) if mode == "latency" else 1
    for node in said["nodes"]:
        assert token.reads[f"experts {node}"] >= 0.95 * said["expert_bytes"] / parts
        assert token.reads[f"weights {node}"] > 0
    assert token.share("experts") == 0.0
    remote = sum(n for name, n in token.remote_reads.items() if name.startswith("weights"))
    assert remote <= (512 // 32 * 34 if policy == "shard" else 0), token.remote_reads
