"""bench/barrier.py runs, and what it measures behaves as barriers do."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from core_tools import open_team

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "barrier.py"


def test_the_script(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--repeats", "2", "--csv", tmp_path / "b.csv"], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "b.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["barrier"] for r in rows} == {"team", "node"} and rows[0]["threads"] == "1"
    assert all(0 < float(r["best_ns"]) <= float(r["median_ns"]) for r in rows)


@pytest.mark.parametrize("nodes, workers", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_more_barriers_take_longer(nodes, workers):
    with open_team(nodes, workers) as team:
        for whole in (True, False):
            few, many = (min(team.barrier_time(n, whole) for _ in range(3)) for n in (10, 1000))
            assert 0 < few < many
