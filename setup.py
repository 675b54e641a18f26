"""Builds numainfer._core: one extension from Cython and C.  Everything else is in pyproject.toml."""

import subprocess
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = [str(p) for folder in ("csrc", "csrc/ops", "csrc/formats", "csrc/isa") for p in sorted(Path(folder).glob("*.c"))]
BINDINGS = [str(p) for p in sorted(Path("numainfer").glob("*.pxi"))]
HEADERS = [str(p) for p in sorted(Path("csrc").rglob("*")) if p.suffix in (".h", ".def")]

# The baseline runs on every x86-64 server; ISA files raise their own target.  No fused multiply-add but where the code says so,
# and nothing that would change the denormal mode of the importing process.
BASELINE = ["-march=x86-64-v2", "-mtune=generic"] if __import__("platform").machine() == "x86_64" else []
FLAGS = ["-std=gnu11", "-O3", "-g1", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Wno-unused-parameter"]

NEEDED = {"Python.h": ("python3-dev", "python3-devel"), "numa.h": ("libnuma-dev", "numactl-devel")}


class Build(build_ext):
    """Looks for the headers first: the compiler's own words would not say which package has them."""

    def build_extensions(self):
        for header, (debian, fedora) in NEEDED.items():
            command = [*self.compiler.compiler_so, *(f"-I{folder}" for folder in self.include_dirs), "-E", "-x", "c", "-"]
            try:
                found = subprocess.run(command, input=f"#include <{header}>\n", capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise SystemExit(f"numainfer is built by a C compiler, and {command[0]} was not found: install the package gcc") from None
            if found.returncode and f"{header}:" in found.stderr:
                raise SystemExit(f"numainfer needs the C header {header}, which was not found: install the package {debian} "
                                 f"(Debian, Ubuntu) or {fedora} (Fedora)")
        super().build_extensions()


setup(
    cmdclass={"build_ext": Build},
    ext_modules=cythonize(
        [Extension("numainfer._core", ["numainfer/_core.pyx", *SOURCES], depends=[*HEADERS, *BINDINGS],
                   extra_compile_args=FLAGS + BASELINE, extra_link_args=["-fopenmp"], libraries=["numa", "m"])],
        compiler_directives={"language_level": 3},
    )
)
