"""Builds numainfer._core: one extension from Cython and C, for every CPython from 3.11 on.  Everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = [str(p) for folder in ("csrc", "csrc/ops", "csrc/formats", "csrc/isa") for p in sorted(Path(folder).glob("*.c"))]
BINDINGS = [str(p) for p in sorted(Path("numainfer").glob("*.pxi"))]
HEADERS = [str(p) for p in sorted(Path("csrc").rglob("*")) if p.suffix in (".h", ".def")]

# The baseline runs on every x86-64 server; ISA files raise their own target.  No fused multiply-add but where the code says so,
# and nothing that would change the denormal mode of the importing process.  Of whom it is built for, not of this machine: see Makefile.
BASELINE = ["-march=x86-64-v2", "-mtune=generic"] if sysconfig.get_platform().endswith("x86_64") else []
FLAGS = ["-std=gnu11", "-O3", "-g1", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Wno-unused-parameter"]
STABLE = 0x030B0000  # the oldest Python whose stable ABI has what the bindings need: buffers

NEEDED = {"Python.h": ("python3-dev", "python3-devel"), "numa.h": ("libnuma-dev", "numactl-devel")}


class Build(build_ext):
    """Looks for the headers first, for the compiler's own words would not say which package has them; then compiles on all CPUs."""

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
        for stale in Path("numainfer").glob("_core.cpython-*.so"):  # of builds before the stable ABI: Python would prefer it
            stale.unlink()
        if self.editable_mode:  # it builds in a new folder each time; what was built in place and is newer than its sources will do
            for extension in self.extensions:
                in_place, wanted = Path(self.get_ext_filename(extension.name)), Path(self.get_ext_fullpath(extension.name))
                if in_place.exists():
                    wanted.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(in_place, wanted)
        self.compiler.compile = self.compile
        super().build_extensions()

    def compile(self, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None, extra_postargs=None,
                depends=None):  # fmt: skip
        """The compiler's own `compile`, but many files at once, and saying which: alone it takes minutes in silence."""
        macros, objects, extra, options, build = self.compiler._setup_compile(
            output_dir, macros, include_dirs, sources, depends, extra_postargs)
        flags = self.compiler._get_cc_args(options, debug, extra_preargs)
        cpus = len(os.sched_getaffinity(0)) if self.parallel in (None, True) else int(self.parallel)
        began, done = time.monotonic(), 0

        def compiled(name):
            nonlocal done
            source, suffix = build[name]
            self.compiler._compile(name, source, suffix, flags, extra, options)
            done += 1
            print(f"[{done}/{len(build)}] {source}", file=sys.stderr, flush=True)

        print(f"numainfer: compiling {len(build)} files on {cpus} CPUs", file=sys.stderr, flush=True)
        # Those that take long first: nobody should wait for one of them at the end.
        ordered = sorted(build, key=lambda name: ("isa" not in name, -os.path.getsize(build[name][0])))
        with ThreadPoolExecutor(cpus) as pool:
            list(pool.map(compiled, ordered))
        print(f"numainfer: compiled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return objects


setup(
    cmdclass={"build_ext": Build},
    ext_modules=cythonize(
        [Extension("numainfer._core", ["numainfer/_core.pyx", *SOURCES], depends=[*HEADERS, *BINDINGS], py_limited_api=True,
                   define_macros=[("Py_LIMITED_API", hex(STABLE)), ("CYTHON_LIMITED_API", "1")],
                   extra_compile_args=FLAGS + BASELINE, extra_link_args=["-fopenmp"], libraries=["numa", "m"])],
        compiler_directives={"language_level": 3},
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
