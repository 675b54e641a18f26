"""``bench --report``: the page has what was measured and what was predicted, and is written whatever happens."""

import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from numainfer.cli import report
from numainfer.cli.main import main
from numainfer.errors import OutOfNodeMemory
from numainfer.machine import topology as topologies
from numainfer.measure.links import read_matrix

SMALL = ["-p", "8", "-n", "4", "-r", "2", "-c", "64", "-q"]


def tables(page):
    """Rows of cells of every table in Markdown, without the line below its head."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        assert rows[1] == ["---"] * len(rows[0]) and all(len(row) == len(rows[0]) for row in rows), rows
        found.append([rows[0], *rows[2:]])
    return found


def test_a_page_of_two_nodes(tiny_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    path = tmp_path / "page.md"
    assert main(["bench", str(tiny_path), "--report", str(path), *SMALL]) == 0
    assert capsys.readouterr().out == ""
    page = path.read_text()
    system, nodes, rates, far, speeds = tables(page)
    assert {"CPU", "kernels", "system", "nodes"} <= {row[0] for row in system}
    assert [row[0] for row in nodes] == ["node", "0", "1"] and [row[1] for row in nodes[1:]] == ["1", "1"]
    assert rates[0] == ["node", "from 0", "from 1"] and all(float(cell) > 0 for row in rates[1:] for cell in row[1:])
    assert far == [["node", "0", "1"], ["0", "10", "10"], ["1", "10", "10"]]
    assert [row[0] for row in speeds[1::2]] == ["replicate", "shard", "interleave", "local"]
    for prompt, gen in zip(speeds[1::2], speeds[2::2]):
        count = "1" if gen[0] == "local" else "2"  # of nodes, and of threads
        assert prompt[3] == "pp8" and gen[3] == "tg4" and prompt[:3] == gen[:3] == [prompt[0], count, count]
        assert prompt[6:] == [""] * 4 and float(prompt[4]) > 0
        assert int(gen[9][:-1]) == pytest.approx(100 * float(gen[4]) / float(gen[8]), abs=1)
    assert "pretended (NUMAINFER_FAKE_NODES)" in page and re.search(r"`2x1c,.*link=.*barrier=.*macs=.*`", page)
    assert page.count("verified") > 3 and "found on it: 100.0%" in page
    for name in (os.uname().nodename, str(tmp_path), str(tiny_path.parent)):
        assert name not in page


def test_threads_and_what_does_not_run(tiny_path, tmp_path, monkeypatch):
    path, load = tmp_path / "page.md", report.load

    def full(args, source, **more):
        if more["threads"] == 1:
            raise OutOfNodeMemory("node 0 has no room")
        return load(args, source, **more)

    monkeypatch.setattr(report, "load", full)
    assert main(["bench", str(tiny_path), "--report", str(path), *SMALL, "-t", "2,1"]) == 0
    page = path.read_text()
    (speeds,) = (table for table in tables(page) if "tokens/s" in table[0])
    assert [row[2:4] for row in speeds[1:]] == [["2", "pp8"], ["2", "tg4"]] and "GB/s that the workers" not in page
    assert "* auto on all nodes, 1 threads: node 0 has no room" in page


@pytest.mark.parametrize("nodes, cores, more, wanted", [
    (1, 8, {}, [("auto", None, None), ("auto", None, 4), ("auto", None, 2)]),
    (1, 1, {}, [("auto", None, None)]),
    (2, 32, {}, [("replicate", None, None), ("shard", None, None), ("replicate", None, 32), ("replicate", None, 16), ("local", [0], None)]),
    (8, 2, {}, [("replicate", None, None), ("shard", None, None), ("replicate", None, 8), ("replicate", [0, 1, 2, 3], None),
                ("local", [0], None)]),
    (2, 32, {"placement": "shard"}, [("shard", None, None), ("shard", None, 32), ("shard", None, 16)]),
    (2, 32, {"threads": [64, 8], "nodes": "0,1"}, [("replicate", [0, 1], 64), ("shard", [0, 1], 64), ("replicate", [0, 1], 8),
                                                   ("local", [0], None)]),
])  # fmt: skip
def test_what_is_run(nodes, cores, more, wanted):
    there = [SimpleNamespace(label=i, cpus=range(cores)) for i in range(nodes)]
    args = SimpleNamespace(placement=more.get("placement", "auto"), nodes=more.get("nodes"))
    need = SimpleNamespace(policies=lambda: ("replicate", "shard", "local"))
    assert report._plan(args, {"threads": more.get("threads", [None])}, need, there) == wanted


@pytest.mark.parametrize("more, says", [
    (["smollm2"], "--report is of one model"),
    (["--profile"], "--report is of one model"),
    (["--json"], "not allowed with argument"),
])  # fmt: skip
def test_what_does_not_go_with_a_page(tiny_path, tmp_path, more, says, capsys):
    assert main(["bench", str(tiny_path), *more, "--report", str(tmp_path / "page.md")]) == 2
    assert says in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_told_of_first(tiny_path, tmp_path, capsys):
    assert main(["bench", str(tiny_path), "--report", str(tmp_path / "no" / "page.md")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_ctrl_c_leaves_a_page(tiny_path, tmp_path):
    path = tmp_path / "page.md"
    process = subprocess.Popen([sys.executable, "-m", "numainfer", "bench", tiny_path, "--report", path, "-p", "8", "-n", "4", "-c", "64",
                                "-r", "100000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    while "threads" not in process.stderr.readline():
        pass
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert "## Nodes and links" in path.read_text() and re.search(r"\| pp8 \| [\d.]+ \|", path.read_text())


def test_distances(monkeypatch):
    rows = {0: "10 12 21 21", 1: "12 10 21 21", 4: "21 21 10 12", 5: "21 21 12 10"}
    monkeypatch.setattr(topologies.pages, "read", lambda path: rows.get(int(re.search(r"node(\d+)/distance", path)[1]), ""))
    monkeypatch.setattr(topologies, "online_nodes", lambda: [0, 1, 4, 5])

    def of(*numbers):
        return topologies.distances([topologies.Node(number, (number,), None, None) for number in numbers])

    assert of(4, 0) == ((10, 21), (21, 10)) and of(0, 1, 5)[0] == (10, 12, 21)
    assert of(7) == ()
    rows[0] = "10"
    assert of(0, 1) == ()


def test_rates_between_nodes(monkeypatch):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    rates = read_matrix(2)
    assert len(rates) == 2 and all(len(row) == 2 and min(row) > 1e8 for row in rates)
    assert [len(row) for row in read_matrix(None, [1])] == [1]
