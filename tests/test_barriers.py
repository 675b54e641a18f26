"""Meeting points: nobody passes a barrier early, all leave together, and no line has many writers, however many workers there are."""

import subprocess
import time

import numpy as np
import pytest
from _ckernels import CSRC
from core_tools import CPUS, Sheet, open_team, python, rig, same_bits, team_shape

from numainfer import _core

MOST = 16

# ---- who meets where ---------------------------------------------------------------------------------------------------


def machine(n_nodes, workers, domain):
    """(nodes, domains) of a team of so many workers on each node, in L3 domains of so many."""
    nodes = [node for node in range(n_nodes) for _ in range(workers)]
    return nodes, [1000 * node + i // domain for node in range(n_nodes) for i in range(workers)]


@pytest.mark.parametrize("domain", [1, 2, 3, 4, 7, 8, 12, 16, 17, 24, 48, 96])
@pytest.mark.parametrize(("n_nodes", "workers"), [(2, 96), (1, 64), (4, 17), (8, 96), (17, 3), (40, 100), (1, 1), (300, 1)])
def test_no_line_has_many_writers(n_nodes, workers, domain):
    nodes, domains = machine(n_nodes, workers, domain)
    lines = _core.barrier_lines(nodes, domains)
    assert max(writers for _, _, writers in lines) <= MOST
    arrivals = [(node, writers) for what, node, writers in lines if what == "arrive"]
    # Every worker arrives once, and so does the last one of every point but of that where all are together.
    assert sum(writers for _, writers in arrivals) == len(nodes) + len(arrivals) - 1
    assert sum(writers for what, _, writers in lines if what == "job") == len(nodes)
    assert {node for node, _ in arrivals} >= set(range(n_nodes)) and (n_nodes > 1) == any(node < 0 for node, _ in arrivals)
    assert len(arrivals) <= len(nodes) / 2 + len(nodes) / MOST + 2 * n_nodes  # points pay


def arrivals(nodes, domains=None):
    return [(node, writers) for what, node, writers in _core.barrier_lines(nodes, domains) if what == "arrive"]


def test_levels():
    assert arrivals([0]) == [(0, 1)]
    assert arrivals([0, 0]) == [(0, 2)]  # one level where one is enough
    assert arrivals([0] * 16) == [(0, 16)]
    assert arrivals([0] * 17) == [(0, 8), (0, 9), (0, 2)]
    assert arrivals([0, 0, 1, 1]) == [(0, 2), (1, 2), (-1, 2)]
    assert arrivals(*machine(1, 6, 3)) == [(0, 3), (0, 3), (0, 2)]
    assert arrivals(*machine(1, 5, 4)) == [(0, 4), (0, 2)]  # who is alone in a domain goes straight to the node's point
    assert arrivals(*machine(2, 96, 8)) == [*[(0, 8)] * 12, (0, 12), *[(1, 8)] * 12, (1, 12), (-1, 2)]
    assert arrivals(*machine(2, 96, 48)) == [*[(0, 16)] * 6, (0, 6), *[(1, 16)] * 6, (1, 6), (-1, 2)]
    assert arrivals(*machine(1, 96, 96)) == [*[(0, 16)] * 6, (0, 6)]


def test_a_team_meets_as_was_told():
    cpus, nodes = team_shape(2, 5)
    domains = machine(2, 5, 2)[1]
    team = _core.Team(cpus, nodes, domains)
    assert team.barrier_lines() == _core.barrier_lines(nodes, domains)
    team.close()
    with pytest.raises(ValueError, match="the team is closed"):
        team.barrier_lines()
    with pytest.raises(ValueError, match="a domain for each of 10 workers; found 3"):
        _core.Team(cpus, nodes, domains[:3])
    for bad in ([], [0] * 5000):
        with pytest.raises(ValueError, match="wanted 1 to 4096 workers"):
            _core.barrier_lines(bad)


# ---- meeting -----------------------------------------------------------------------------------------------------------

HARNESS = r"""
#define _GNU_SOURCE
#include "team.h"
#include <sched.h>
#include <stdlib.h>
#include <time.h>

typedef struct {
    atomic_int *round;              /* per worker: how far it is */
    int *left;                      /* per worker: the round in which it was told to leave, 0: never */
    const int *nodes;
    int n, rounds, cancel_at, nap_every;
    atomic_int early;
} job_t;

static void meet(const ni_worker *me, void *arg) {
    job_t *j = arg;
    uint32_t x = 2654435761u * (uint32_t)(me->worker + 1);
    for (int r = 1; r <= j->rounds; r++) {
        x = x * 1664525u + 1013904223u;
        for (uint32_t i = x >> 28; i--;) sched_yield();
        if (j->nap_every && r % j->nap_every == 0 && (unsigned)me->worker == (x >> 8) % (unsigned)j->n)
            nanosleep(&(struct timespec){0, 2500000}, NULL);    /* longer than anybody spins */
        if (r == j->cancel_at && me->worker == j->n / 2) ni_team_cancel(me->team);
        atomic_store(&j->round[me->worker], r);
        int of_node = r % 3 == 1;
        if (of_node) ni_node_barrier(me);
        else if (ni_team_barrier(me)) { j->left[me->worker] = r; return; }
        for (int w = 0; w < j->n; w++)
            if ((!of_node || j->nodes[w] == me->node) && atomic_load(&j->round[w]) < r) atomic_fetch_add(&j->early, 1);
    }
}

/* Times that a worker saw another one that had not arrived, -1: there is no team; left: of the job that was cancelled. */
int play(const int *cpus, const int *nodes, const int *domains, int n, int n_nodes, int rounds, int cancel_at, int nap_every, int *left) {
    ni_status st;
    ni_team *t = ni_team_open(cpus, nodes, domains, n, n_nodes, &st);
    if (!t) return -1;
    job_t j = {.round = calloc((size_t)n, sizeof *j.round), .left = left, .nodes = nodes, .n = n, .rounds = rounds, .nap_every = nap_every};
    for (int job = 0; job < 3; job++) {     /* the one in the midst is cancelled, and leaves nothing behind */
        j.cancel_at = job == 1 ? cancel_at : 0;
        for (int w = 0; w < n; w++) atomic_store(&j.round[w], 0);
        if (ni_team_start(t, meet, &j, &st)) return -2;
        while (!ni_team_wait(t, 1000)) {}
        if (ni_team_cancelled(t) != (job == 1)) return -3;
    }
    j.cancel_at = j.nap_every = 0, j.rounds = 1 << 20;
    int *told = malloc(sizeof *told * (size_t)n);
    j.left = told;
    for (int job = 0; job < 25; job++) {    /* cancelled by this thread, whenever that may be */
        for (int w = 0; w < n; w++) atomic_store(&j.round[w], 0);
        if (ni_team_start(t, meet, &j, &st)) return -2;
        nanosleep(&(struct timespec){0, 1000000 + job * 137000}, NULL);
        ni_team_cancel(t);
        while (!ni_team_wait(t, 1000)) {}
        for (int w = 1; w < n; w++) if (told[w] != told[0]) return -4;
    }
    ni_team_close(t);
    free(j.round), free(told);
    return atomic_load(&j.early);
}
"""

PLAY = """if True:
    import ctypes, json, sys
    library, cpus, nodes, domains, rounds, cancel_at, nap = sys.argv[1], *map(json.loads, sys.argv[2:])
    n, ints = len(cpus), lambda values: (ctypes.c_int * len(values))(*values)
    left = ints([0] * n)
    print(ctypes.CDLL(library).play(ints(cpus), ints(nodes), ints(domains), n, max(nodes) + 1, rounds, cancel_at, nap, left), list(left))
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    folder = tmp_path_factory.mktemp("barriers")
    (folder / "play.c").write_text(HARNESS)
    sources = [f"{CSRC}/{name}.c" for name in ("team", "barrier", "floats", "numa")]
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-fopenmp", "-shared", "-fPIC", f"-I{CSRC}", str(folder / "play.c"), *sources,
                    "-lnuma", "-o", str(folder / "play.so")], check=True)  # fmt: skip
    return folder / "play.so"


@pytest.mark.parametrize(("n_nodes", "workers", "domain", "rounds"), [
    (1, 1, 1, 90), (1, 2, 2, 150), (2, 1, 1, 150), (1, 5, 2, 90), (2, 3, 3, 90), (2, 6, 2, 90), (3, 4, 1, 60), (2, 5, 4, 60),
    (1, 17, 17, 45), (2, 20, 3, 45), (17, 1, 1, 45), (1, 40, 1, 45),
])  # fmt: skip
def test_nobody_passes_early_and_all_leave_together(harness, n_nodes, workers, domain, rounds):
    nodes, domains = machine(n_nodes, workers, domain)
    cpus, cancel_at = team_shape(n_nodes, workers)[0], rounds // 2
    early, left = python(PLAY, harness, cpus, nodes, domains, rounds, cancel_at, max(rounds // 20, 5), timeout=240).split(" ", 1)
    assert early == "0"
    left = set(eval(left))
    assert len(left) == 1 and left <= {cancel_at, cancel_at + 1}, left  # that round, or the next where it was a node's barrier


@pytest.mark.parametrize(("n_nodes", "workers", "domain"), [(1, 4, 2), (2, 4, 2), (2, 6, 3), (3, 3, 1)])
def test_plans_run_on_teams_of_domains(tmp_path, n_nodes, workers, domain):
    rng = np.random.default_rng(8)
    sheet = Sheet(tmp_path / "sheet.gguf", {"x": rng.standard_normal((64, 128)), "w": rng.standard_normal((512, 128))})

    def build(p, s):
        p.logits(p.embed(s["x"]), s["w"])

    with open_team(1, 1) as team, rig(sheet, team, build) as r:
        wanted = r.run(np.arange(40))
    cpus, nodes = team_shape(n_nodes, workers)
    team = _core.Team(cpus, nodes, machine(n_nodes, workers, domain)[1])
    try:
        with rig(sheet, team, build) as r:
            for _ in range(20):
                same_bits(r.run(np.arange(40)), wanted)
    finally:
        team.close()
    sheet.close()


# ---- how long they spin ------------------------------------------------------------------------------------------------


def test_idle_workers_spin_by_the_clock():
    """For 0.2 ms after a job, whatever the CPU's pause takes, and then not at all."""
    if len(CPUS) < 2:
        pytest.skip("more workers than CPUs do not spin")
    with open_team(1, 2) as team:
        arena, used = _core.Arena(1 << 16), []
        for _ in range(40):
            time.sleep(0.003)
            before = time.process_time()
            team.read_time([arena.address], 1 << 16, 1)
            time.sleep(0.003)
            used.append((time.process_time() - before) / 2)
    # A worker that others keep from its CPU meanwhile spins for less of its own time; waking, the job and our own calls come on top.
    assert max(used) > 150e-6 and float(np.median(used)) < 600e-6, sorted(used)


def test_more_workers_than_cpus_never_spin():
    with open_team(1, 2 * len(CPUS)) as team:
        arena, used = _core.Arena(1 << 16), []
        for _ in range(40):
            time.sleep(0.003)
            before = time.process_time()
            team.read_time([arena.address], 1 << 16, 1)
            time.sleep(0.003)
            used.append((time.process_time() - before) / len(team))
    assert float(np.median(used)) < 120e-6, sorted(used)


# ---- CPU numbers -------------------------------------------------------------------------------------------------------

AFFINITY = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
/* Says what was asked for, and grants it. */
int sched_setaffinity(pid_t who, size_t bytes, const cpu_set_t *set) {
    long first = -1, count = 0;
    for (size_t i = 0; i < 8 * bytes; i++)
        if (CPU_ISSET_S(i, bytes, set)) { if (first < 0) first = (long)i; count++; }
    printf("CPU %ld alone: %d\n", first, count == 1);
    fflush(stdout);
    return 0;
}
"""


def test_cpu_numbers_past_1023(tmp_path):
    (tmp_path / "affinity.c").write_text(AFFINITY)
    library = tmp_path / "affinity.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(tmp_path / "affinity.c"), "-o", str(library)], check=True)
    asked = [5, 1023, 1024, 1500, 8191, (1 << 20) - 1]
    out = python(f"from numainfer import _core; _core.Team({asked}, [0] * {len(asked)}).close()", LD_PRELOAD=str(library))
    assert set(out.splitlines()) >= {f"CPU {cpu} alone: 1" for cpu in asked}
