"""Builds and runs cross/compare.c, which compares all tables of kernels that a CPU runs, bit for bit, without Python."""

import functools
import pathlib
import subprocess
import tempfile

from _ckernels import CSRC, SOURCES, TYPES
from _objects import MACHINE, compile_all

CROSS = pathlib.Path(__file__).resolve().parent / "cross"
COMPARE = CROSS / "compare.c"
# (table, slot): the types that a table has no kernel of its own for (gather and gemm go together), of all tables.
EMPTY = {("scalar", "dot"): TYPES}
OTHERS = ("avx512", "avxvnni", "avx2", "neon_i8mm", "neon")
EMPTY |= {(table, "dot"): ("TQ1_0",) for table in OTHERS}
CHECKS = [*TYPES, "maps", "quantize", "rope", "storing", "attention", "recurrence"]


def link(compiler, objects, folder, *flags):
    """Links the driver; returns its path."""
    subprocess.run([compiler, *flags, "-o", str(folder / "compare"), *objects, "-lm"], check=True)
    return str(folder / "compare")


def run(*command):
    """Runs the driver; returns the tables' names, {(table, check): values compared} and the hash of scalar results.

    Asserts that the tables compiled in leave empty what EMPTY says.
    """
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *counts, last = (line.split() for line in done.stdout.splitlines())
    assert first[0] == "tables" and last[0] == "scalar"
    empty = {(words[0], words[2]): tuple(words[3:]) for words in counts if words[1] == "empty"}
    assert empty == {slot: EMPTY.get(slot, ()) for slot in empty}
    return first[1].split(","), {(words[0], words[1]): int(words[2]) for words in counts if words[1] != "empty"}, last[1]


def check_counts(tables, counts):
    """Asserts that every check compared something in every table."""
    assert list(counts) == [(table, check) for table in tables for check in CHECKS]
    assert all(n > 1000 for n in counts.values())


def native_objects():
    """Paths of the driver's objects for this machine: those of _ckernels.library(), and the driver's own."""
    return compile_all("gcc", [*SOURCES, COMPARE], *MACHINE, f"-I{CSRC}")


@functools.cache
def native():
    """What the driver says on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        return run(link("gcc", native_objects(), pathlib.Path(folder)))
