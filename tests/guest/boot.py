"""A machine with NUMA nodes, emulated: QEMU (no KVM needed) boots a Debian kernel over this machine's own files.

``Machine([(2, 640), (2, 640)]).run(["python", "-c", "..."])`` boots two nodes of two CPUs and 640 MB each, runs the command there as
root, powers off and returns what it printed. The guest sees the host's files at the same paths, read-only, with changes
kept in its memory; nothing that it does reaches the host but its output.

``python tests/guest/boot.py --prepare`` only installs and downloads what a boot needs.
"""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CACHE = REPOSITORY / ".cache" / "guest"
PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "gcc": "gcc"}
# In the order of their dependence.
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "netfs", "fscache",
           "9pnet", "9pnet_virtio", "9p", "overlay")
CPU_MODEL = "max,vendor=GenuineIntel"  # AVX2, FMA, F16C, no AVX-512; under this name Linux believes in SMT siblings


class GuestError(RuntimeError):
    """The machine did not boot, or did not come to its end; the message ends with the console's last lines."""


@dataclass
class Result:
    """What one command did in the guest."""

    command: tuple
    status: int
    stdout: str
    stderr: str

    def check(self):
        """Itself, or AssertionError with all that the command said."""
        assert self.status == 0, f"{shlex.join(self.command)}: exit status {self.status}\n{self.stdout}\n{self.stderr}"
        return self


class Machine:
    """An emulated machine.

    Parameters
    ----------
    nodes : list of (cpus, megabytes)
        One per node; either may be 0. One node may have both 0: the firmware tells Linux of it, so it has a number, but
        it never comes up, so node numbers have a gap. CPUs are numbered node by node.
    distances : dict of (int, int) to int, optional
        Distance between two nodes, both ways; 20 where not given.
    threads_per_core : int
        SMT siblings; CPUs of a node must divide by it.
    kernel_args : str
        More words for the kernel's command line.
    plugin : list of str, optional
        ``-plugin`` arguments of QEMU, one string each.
    slow_clock : str, optional
        A library to load before QEMU's own, which tells QEMU the time; the machine then has no clock but QEMU's: no TSC.
    """

    def __init__(self, nodes, *, distances=None, threads_per_core=1, kernel_args="", plugin=(), slow_clock=None):
        self.nodes, self.distances, self.kernel_args, self.plugin = list(nodes), dict(distances or {}), kernel_args, plugin
        self.slow_clock = slow_clock
        self.threads = threads_per_core
        if sum(mb for _, mb in nodes) > 3000 or any(cpus % threads_per_core for cpus, _ in nodes) or self.nodes.count((0, 0)) > 1:
            raise ValueError(f"nodes = {nodes}: wanted at most 3000 MB together (below the hole for PCI), whole cores, "
                             "and no more than one node without CPUs and memory")

    def run(self, *commands, timeout=300, boot_timeout=120, env=None):
        """Boot, run commands one after another, power off.

        Parameters
        ----------
        *commands : list of str
            In the repository's root; ``"python"`` stands for the Python that runs here.
        timeout : float
            Seconds for each command.
        boot_timeout : float
            Seconds for the rest.
        env : dict, optional

        Returns
        -------
        list of Result

        Raises
        ------
        GuestError
        """
        with tempfile.TemporaryDirectory(prefix="numainfer-guest-") as folder:
            share, console = Path(folder, "share"), Path(folder, "console")
            share.mkdir()
            for i, command in enumerate(commands):
                Path(share, f"{i:02}.job").write_text(_script(command, env))
                Path(share, f"{i:02}.limit").write_text(f"{timeout:g}")
            self._boot(share, console, boot_timeout + timeout * len(commands))
            return [self._result(share, console, i, command) for i, command in enumerate(commands)]

    def _boot(self, share, console, timeout):
        # The caller's priority is too good for an emulator that shares its machine.
        preload = {"LD_PRELOAD": str(self.slow_clock)} if self.slow_clock else {}
        process = subprocess.Popen(["nice", "-n", "19", *self.command(share, console)], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | preload)
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise GuestError(f"the guest was still running after {timeout:g} s\n{_tail(console)}") from None
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise GuestError(f"QEMU ended with status {process.returncode}: {said}\n{_tail(console)}")

    def _result(self, share, console, i, command):
        status = Path(share, f"{i:02}.status")
        if not status.exists():
            raise GuestError(f"the guest ended without running {shlex.join(command)}\n{_tail(console)}")
        texts = [Path(share, f"{i:02}.{end}").read_text(errors="replace") for end in ("out", "err")]
        return Result(tuple(command), int(status.read_text()), *texts)

    def _left_out(self):
        """The kernel's word for not using the CPU of the node with nothing; its APIC id is its number here."""
        gap = self.nodes.index((0, 0)) if (0, 0) in self.nodes else None
        return "" if gap is None else f"disable_cpu_apicid={sum(cpus for cpus, _ in self.nodes[:gap])}"

    def command(self, share, console):
        """QEMU's command line.

        CPUs take turns in one thread: README.md says why.
        """
        kernel, initramfs = prepare()
        cpu = CPU_MODEL + (",-tsc" if self.slow_clock else "")  # QEMU takes it from the host's
        line = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=single", "-cpu", cpu, "-nodefaults",
                "-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{console}", "-kernel", str(kernel),
                "-initrd", str(initramfs), "-append",
                f"console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off no_timer_check {self._left_out()} {self.kernel_args}",
                "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
                "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
                "-fsdev", f"local,id=share,path={share},security_model=none",
                "-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]
        line += ["-m", f"{sum(mb for _, mb in self.nodes)}M"]
        # One socket per core; a node that Linux shall not see has one that its kernel is told to leave alone.
        owners = [i for i, (cpus, mb) in enumerate(self.nodes) for _ in range(cpus // self.threads or not mb)]
        line += ["-smp", f"{len(owners) * self.threads},sockets={len(owners)},cores=1,threads={self.threads}"]
        for i, (_, mb) in enumerate(self.nodes):
            if mb:
                line += ["-object", f"memory-backend-ram,id=m{i},size={mb}M"]
            line += ["-numa", f"node,nodeid={i}" + (f",memdev=m{i}" if mb else "")]
        for socket, node in enumerate(owners):
            line += ["-numa", f"cpu,node-id={node},socket-id={socket}"]
        for a, b in itertools.combinations(range(len(self.nodes)), 2):
            line += ["-numa", f"dist,src={a},dst={b},val={self.distances.get((a, b), 20)}"]
        for plugin in self.plugin:
            line += ["-plugin", plugin]
        return line


def _numpy_avx2():
    """NumPy's names for AVX2: QEMU 7.2 reads the masked-out lanes of a vpmaskmov too, so at a mapping's end NumPy's sort is a segfault."""
    from numpy._core._multiarray_umath import __cpu_dispatch__

    return [name for name in __cpu_dispatch__ if name in ("X86_V3", "AVX2", "FMA3")]


def _script(command, env):
    words = [sys.executable if word == "python" else word for word in command]
    names = {"HOME": "/root", "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1",
             "PYTHONFAULTHANDLER": "1", "NPY_DISABLE_CPU_FEATURES": " ".join(_numpy_avx2()),
             "PYTHONPATH": f"{REPOSITORY}:{HERE.parent}", **(env or {})}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in names.items())
    return f"{exports}cd {shlex.quote(str(REPOSITORY))} && exec {shlex.join(words)}\n"


def _tail(console, lines=25):
    text = console.read_text(errors="replace") if console.exists() else ""
    return "console:\n" + "\n".join(text.splitlines()[-lines:])


def prepare():
    """Paths of kernel and initramfs; installs packages (as root) and downloads the kernel where they are missing."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    kernels = sorted(CACHE.glob("kernel/boot/vmlinuz-*"))
    if missing or not kernels:
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        _call(*sudo, "apt-get", "update", "-qq")
    if missing:
        _call(*sudo, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing)
    if not kernels:
        _fetch_kernel()
        kernels = sorted(CACHE.glob("kernel/boot/vmlinuz-*"))
    initramfs = CACHE / "initramfs"
    _write_initramfs(initramfs)
    return kernels[-1], initramfs


def _call(*command, **more):
    """Run a command that must work, with its words in the error if not."""
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        raise GuestError(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def _fetch_kernel():
    CACHE.mkdir(parents=True, exist_ok=True)
    depends = _call("apt-cache", "depends", "linux-image-amd64").split()
    package = next(word for word in depends if word.startswith("linux-image-") and word.endswith("-amd64") and word != "linux-image-amd64")
    _call("apt-get", "download", "-qq", package, cwd=CACHE)
    archive = max(CACHE.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    _call("dpkg", "-x", str(archive), str(CACHE / "kernel"))
    archive.unlink()


def _write_initramfs(path):
    """Busybox, the modules and init.sh as an uncompressed "newc" archive of cpio (kernel: driver-api/early-userspace/buffer-format)."""
    found = {file.stem: file for file in CACHE.glob("kernel/lib/modules/**/*.ko") if file.stem in MODULES}
    order = [name for name in MODULES if name in found]  # one that is missing is built in
    files = {"init": HERE.joinpath("init.sh").read_bytes(), "bin": None, "bin/busybox": Path(shutil.which("busybox")).read_bytes(),
             "modules": None, "modules/order": "\n".join(order).encode()}
    files |= {f"modules/{name}.ko": found[name].read_bytes() for name in order}
    archive = bytearray()
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        mode = 0o40755 if data is None else 0o100755
        data = data or b""
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += data
        archive += bytes(-len(archive) % 4)
    if not path.exists() or path.read_bytes() != archive:
        path.write_bytes(archive)


if __name__ == "__main__":
    if sys.argv[1:] == ["--prepare"]:
        print(*prepare())
    else:
        begin = time.monotonic()
        for result in Machine([(2, 512), (2, 512)]).run(sys.argv[1:] or ["numactl", "--hardware"]):
            print(result.stdout, result.stderr, f"status {result.status} after {time.monotonic() - begin:.0f} s", sep="\n")
