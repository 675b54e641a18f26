"""Tables for CPUs that this one is not: every table of csrc/isa on any x86-64 CPU with AVX2, emulated by SIMDe.

SIMDe (Debian's libsimde-dev) defines the intrinsics of AVX-512, AVX-VNNI and NEON as C functions; cross/simde_x86.h and
simde_arm.h bring them in and add the few that its version lacks.  cross/compare.c then compares the tables, bit for bit.
"""

import re
import subprocess

import pytest
from _ckernels import CSRC, SOURCES
from _compare import COMPARE, CROSS, check_counts, link, native, native_objects, run
from _objects import FLAGS, MACHINE, WARNINGS, compile_all

TABLES = re.findall(r"^NI_ISA\((\w+)", (CSRC / "isa" / "isa.def").read_text(), re.MULTILINE)
EMULATED = [CSRC / "isa" / f"{name}.c" for name in TABLES if name != "scalar"]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """What the driver says of all tables, compiled for a CPU with AVX2 and nothing newer; skips where that cannot be."""
    probe = subprocess.run(["gcc", "-E", "-x", "c", "-"], input="#include <simde/simde-common.h>\n", text=True, capture_output=True,
                           check=False)  # fmt: skip
    if probe.returncode:
        pytest.skip("SIMDe is missing: Debian's libsimde-dev has it")
    if "avx2" not in native()[0]:
        pytest.skip("this CPU lacks AVX2, FMA or F16C: without a fused multiply-add SIMDe rounds twice")
    folder = tmp_path_factory.mktemp("simde")
    objects = compile_all("gcc", [p for p in [*SOURCES, COMPARE] if p not in EMULATED], "-O1", *MACHINE, "-DNI_SIMDE")
    for family in ("x86", "arm"):
        sources = [p for p in EMULATED if p.stem.startswith("neon") == (family == "arm")]
        objects += compile_all("gcc", sources, "-Og", "-march=x86-64-v3", "-DNI_SIMDE",
                               "-include", str(CROSS / f"simde_{family}.h"))  # fmt: skip
    return run(link("gcc", objects, folder))


def test_every_table_has_the_scalar_bits_in_emulation(emulated):
    tables, counts, digest = emulated
    assert tables == TABLES
    check_counts(tables, counts)
    assert digest == native()[2]


def test_avxvnni_has_the_scalar_bits_in_the_encoding_of_avx512(tmp_path):
    """vpdpbusd has two encodings: CPUs with AVX-512 VNNI run the compiled table if one is written for the other."""
    if "avx512" not in native()[0]:
        pytest.skip("this CPU lacks AVX-512 VNNI")
    source = CSRC / "isa" / "avxvnni.c"
    command = ["gcc", *FLAGS, *WARNINGS, *MACHINE, "-S", str(source), "-o", "-"]
    text, changed = re.subn(r"\{vex\}\s+(?=vpdpbusd\b)", "", subprocess.run(command, text=True, capture_output=True, check=True).stdout)
    assert changed > 100 and "{vex}" not in text
    assembly = tmp_path / "isa_avxvnni.s"
    assembly.write_text(text)
    subprocess.run(["gcc", "-c", str(assembly), "-o", str(tmp_path / "isa_avxvnni.o")], check=True)
    ours = {str(tmp_path / "isa_avxvnni.o"), *compile_all("gcc", [CSRC / "isa" / "isa.c"], *MACHINE, "-D__builtin_cpu_supports(feature)=1")}
    others = [p for p in native_objects() if "/isa_avxvnni-" not in p and "/isa_isa-" not in p]
    assert len(others) == len(native_objects()) - 2
    tables, counts, _ = run(link("gcc", [*ours, *others], tmp_path))
    assert "avxvnni" in tables
    check_counts(tables, counts)
