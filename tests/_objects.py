"""C files to objects, each compiled once: objects are kept in the temporary folder and found again by what went into them.

What goes in is the text that the preprocessor makes of a file, the flags, and the compiler with its version. Tests that want the same
object share it, within a run and from one run to the next; objects that nobody wanted for a week are deleted.
"""

import functools
import hashlib
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = ["-O2", "-std=gnu11", "-fPIC", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
MACHINE = ["-march=x86-64-v2"] if platform.machine() in ("x86_64", "AMD64") else []
_WEEK = 7 * 24 * 3600


@functools.cache
def _store():
    """The folder; one of our own where the name is taken by somebody else."""
    folder = pathlib.Path(tempfile.gettempdir()) / f"numainfer-objects-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return pathlib.Path(tempfile.mkdtemp(prefix="numainfer-objects-"))
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > _WEEK:
            path.unlink(missing_ok=True)
    return folder


@functools.cache
def _version(compiler):
    return subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout


def _what_matters(command):
    """The command without the options that name folders of headers and headers: the preprocessor's text holds what they bring."""
    words, found = iter(command), []
    for word in words:
        if word in ("-isystem", "-include"):
            next(words)
        elif not word.startswith("-I"):
            found.append(word)
    return found


def compile_one(compiler, source, *flags):
    """Path of the object of a C file, which must not be changed; AssertionError with the compiler's words if it does not compile."""
    command = [compiler, *FLAGS, *WARNINGS, *flags]
    text = subprocess.run([*command, "-E", "-P", str(source)], capture_output=True, check=False)
    assert text.returncode == 0, f"{compiler} {source.name}:\n{text.stderr.decode()}"
    key = hashlib.sha256(b"\0".join([_version(compiler), *map(os.fsencode, _what_matters(command)), text.stdout])).hexdigest()[:32]
    folder = source.parent.name if source.is_relative_to(ROOT) else "made"  # in a folder whose name is another each time
    found = _store() / f"{folder}_{source.stem}-{key}.o"
    if found.exists():
        os.utime(found)
        return str(found)
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder) / found.name
        done = subprocess.run([*command, "-c", str(source), "-o", str(made)], text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{compiler} {source.name}:\n{done.stderr}"
        kept = found.with_suffix(f".{os.getpid()}")
        kept.write_bytes(made.read_bytes())
        kept.replace(found)
    return str(found)


def compile_all(compiler, sources, *flags):
    """The objects' paths, compiled in parallel."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda source: compile_one(compiler, source, *flags), sources))
