"""An editable install compiles nothing that was built in place and is newer than its sources: `make` builds first, where it is seen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("newest, compiles", [("_core.abi3.so", False), ("_core.c", True)])
def test_an_editable_install_takes_what_was_built(newest, compiles, tmp_path):
    for name in ("csrc", "numainfer", "licenses"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / "numainfer" / "_core.abi3.so").write_bytes(b"built")
    (tmp_path / "numainfer" / "_core.c").touch()  # so that it is not written again
    ahead = (tmp_path / "numainfer" / "_core.c").stat().st_mtime + 10
    os.utime(tmp_path / "numainfer" / newest, (ahead, ahead))
    command = [sys.executable, "setup.py", "-q", "editable_wheel", "-d", "dist"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "CC": "false"}, capture_output=True, text=True, timeout=100)
    assert ("numainfer: compiling" in done.stderr) == compiles and (done.returncode != 0) == compiles, done.stderr
    if not compiles:
        assert list((tmp_path / "dist").glob("numainfer-*.whl")) and (tmp_path / "numainfer" / "_core.abi3.so").read_bytes() == b"built"
