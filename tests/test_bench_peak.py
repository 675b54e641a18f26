"""bench/peak.py runs, and no kernel or model is faster than the peak that it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS.parent / "bench" / "peak.py"
# A C compiler that finds again what it compiled in an earlier run.
COMPILER = f"""#!{sys.executable}
import pathlib, subprocess, sys
sys.path.insert(0, {str(TESTS)!r})
import _objects
_objects.WARNINGS.clear()
words, to = sys.argv[1:], sys.argv.index("-o")
flags = [w for w in words[: to - 1] + words[to + 1 :] if not w.endswith(".c") and not w.startswith("-l")]
made = _objects.compile_all("cc", [pathlib.Path(w) for w in words if w.endswith(".c")], *flags)
subprocess.run(["cc", "-o", words[to], *made, *(w for w in words if w.startswith("-l"))], check=True)
"""


@pytest.fixture(autouse=True)
def compiler(tmp_path, monkeypatch):
    path = tmp_path / "cc"
    path.write_text(COMPILER)
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


def run(*words):
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300, check=False)


def rows(text):
    """(name, numbers) of each line of results."""
    found = re.findall(r"^(\S+)((?: +[\d.]+)+) +[v\dw]", text, re.MULTILINE)
    return [(name, [float(n) for n in numbers.split()]) for name, numbers in found]


def test_kernels_and_models_beside_the_peak(tiny_path):
    done = run("Q4_0", "Q8_0", "F16", "-r", "1", "-t", "1", "-p", "16", "--model", tiny_path)
    if "x86-64" in done.stderr:
        pytest.skip("the peak loops are for x86-64 with AVX2")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    kinds = [(name, numbers) for name, numbers in found if len(numbers) == 3]
    models = [numbers for _, numbers in found if len(numbers) == 2]
    assert {name for name, _ in kinds} == {"Q4_0", "Q8_0", "F16"} and len(kinds) == 3 * len(models)
    for name, (peak, kernel, share) in kinds:
        assert 0 < kernel and 0 < peak and share == pytest.approx(kernel / peak, abs=0.02), name
    assert all(0 <= share < 1 for _, share in models)  # of a model so small, on a busy machine, nothing is left of two digits


@pytest.mark.parametrize("words, wanted", [
    (["Q9_0"], "Q9_0 is not a weight type"), (["--isa", "mmx"], "--isa mmx: this CPU runs"), (["-r", "0"], "--rounds 0"),
    (["--k", "100"], "--k 100"),
])  # fmt: skip
def test_what_cannot_be_measured_is_named(words, wanted):
    done = run(*words)
    assert done.returncode == 2 and (wanted in done.stderr or "x86-64 with AVX2 only" in done.stderr)
