"""Arm: the NEON tables in emulation, bit for bit against the scalar table and against this machine; the core compiles.

Runs cross/compare.c, natively on an Arm machine, elsewhere under QEMU's user mode, which executes the instructions but
says nothing about their speed.  Needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static there.
"""

import pathlib
import platform
import shutil

import pytest
from _ckernels import CSRC, SOURCES
from _compare import COMPARE, check_counts, link, native, run
from _objects import compile_all

ARM = platform.machine() == "aarch64"
CORE = sorted([*CSRC.glob("*.c"), *CSRC.glob("ops/*.c")])
# Emulated CPU -> the tables that it runs, of which the first is checked: no dot product; dot product; dot product and int8 matrix product.
CPUS = {"cortex-a72": ["scalar"], "neoverse-n1": ["neon", "scalar"], "max": ["neon_i8mm", "neon", "scalar"]}


@pytest.fixture(scope="module")
def compiler():
    """Name of a C compiler for Arm; skips where there is none."""
    name = "gcc" if ARM else "aarch64-linux-gnu-gcc"
    if not shutil.which(name):
        pytest.skip(f"{name} is missing: Debian's gcc-aarch64-linux-gnu and libc6-dev-arm64-cross have it")
    return name


@pytest.fixture(scope="module")
def emulator():
    """Path of QEMU's user mode for Arm; skips where there is none."""
    path = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not path:
        pytest.skip("qemu-aarch64 is missing: Debian's qemu-user-static has it")
    return path


@pytest.fixture(scope="module")
def arm_driver(compiler, emulator, tmp_path_factory):
    return link(compiler, compile_all(compiler, [*SOURCES, COMPARE]), tmp_path_factory.mktemp("aarch64"), "-static")


def test_every_table_of_this_machine_has_the_scalar_bits():
    tables, counts, _ = native()
    assert tables[-1] == "scalar"
    check_counts(tables, counts)


@pytest.mark.parametrize("cpu", CPUS)
def test_every_table_of_an_arm_cpu_has_the_bits_of_this_machine(cpu, arm_driver, emulator):
    """The CPU gets the tables it can run, no others (else it stops at an illegal instruction), with the same bits."""
    checked = CPUS[cpu][0]
    tables, counts, digest = run(emulator, "-cpu", cpu, arm_driver, checked)
    assert tables == CPUS[cpu]
    check_counts([checked], counts)
    assert checked != "scalar" or digest == native()[2]


def test_the_core_compiles_for_arm(compiler, tmp_path):
    """All of it: libnuma's headers, which cross compilers lack, say the same on every machine."""
    headers = [p for p in map(pathlib.Path, ("/usr/include/numa.h", "/usr/include/numaif.h")) if p.exists()]
    if len(headers) < 2:
        pytest.skip("libnuma's headers are missing: Debian's libnuma-dev has them")
    for header in [*headers, *pathlib.Path("/usr/include").glob("numacompat*.h")]:
        shutil.copy(header, tmp_path)
    compile_all(compiler, CORE, "-O1", "-fopenmp", "-isystem", str(tmp_path))
