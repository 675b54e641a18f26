"""Builds numainfer._core: one extension from Cython and C.  Everything else is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCES = [str(p) for folder in ("csrc", "csrc/ops", "csrc/formats", "csrc/isa") for p in sorted(Path(folder).glob("*.c"))]
HEADERS = [str(p) for p in sorted(Path("csrc").rglob("*")) if p.suffix in (".h", ".def")]

# The baseline runs on every x86-64 server; ISA files raise their own target.  No fused multiply-add but where the code says so,
# and nothing that would change the denormal mode of the importing process.
BASELINE = ["-march=x86-64-v2", "-mtune=generic"] if __import__("platform").machine() == "x86_64" else []
FLAGS = ["-std=gnu11", "-O3", "-g1", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Wno-unused-parameter"]

setup(
    ext_modules=cythonize(
        [Extension("numainfer._core", ["numainfer/_core.pyx", *SOURCES], depends=[*HEADERS, "numainfer/_sample.pxi"],
                   extra_compile_args=FLAGS + BASELINE, extra_link_args=["-fopenmp"], libraries=["numa", "m"])],
        compiler_directives={"language_level": 3},
    )
)
