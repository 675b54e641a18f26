"""What the checks ask the guest's kernel, past the package under test: where pages lie, who may run where, what is refused."""

import contextlib
import ctypes
import hashlib
import mmap
import os
import struct
from pathlib import Path

import numpy as np

NODES = Path("/sys/devices/system/node")
PAGE = mmap.PAGESIZE
START, STOP = 0x4E554D01, 0x4E554D02  # plugin/remote.c


def numbers(text):
    """[0, 1, 4] for "0-1,4"."""
    parts = (part.partition("-") for part in text.strip().split(",") if part)
    return [n for first, _, last in parts for n in range(int(first), int(last or first) + 1)]


def node_numbers():
    return numbers((NODES / "online").read_text())


def meminfo(node, key):
    """Bytes of one line of a node's meminfo."""
    for line in (NODES / f"node{node}" / "meminfo").read_text().splitlines():
        _, _, name, count, *_ = line.split()
        if name == f"{key}:":
            return int(count) * 1024
    raise KeyError(key)


def anonymous():
    """Bytes of anonymous memory in use, by node."""
    return {node: meminfo(node, "AnonPages") for node in node_numbers()}


def frames(address, n_bytes):
    """Physical page numbers of a range of this process's memory, 0 where no page is; needs root (pagemap: see proc(5))."""
    first, last = address // PAGE, -(-(address + n_bytes) // PAGE)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(first * 8)
        entries = np.frombuffer(file.read((last - first) * 8), np.uint64)
    present = entries >> np.uint64(63) == 1
    return np.where(present, entries & np.uint64((1 << 55) - 1), np.uint64(0)).astype(np.int64)


def node_of_frames(found):
    """Nodes of physical page numbers, by the system's list of each node's memory blocks; -1 for page 0."""
    block = int(Path("/sys/devices/system/memory/block_size_bytes").read_text(), 16) // PAGE
    owner = {int(link.name[6:]): node for node in node_numbers() for link in (NODES / f"node{node}").glob("memory[0-9]*")}
    table = np.full(max(owner) + 1, -1)
    table[list(owner)] = list(owner.values())
    return np.where(found > 0, table[found // block], -1)


def pages_by_node(address, n_bytes):
    """{node: pages}, by pagemap; pages not touched are left out."""
    nodes, counts = np.unique(node_of_frames(frames(address, n_bytes)), return_counts=True)
    return {int(node): int(count) for node, count in zip(nodes, counts) if node >= 0}


def numa_maps(address, n_bytes):
    """{node: pages} of the mappings that begin in a range, by numa_maps."""
    total = {}
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        start, *words = line.split()
        if address <= int(start, 16) < address + n_bytes:
            for word in words:
                if word[0] == "N" and "=" in word:
                    node, count = word[1:].split("=")
                    total[int(node)] = total.get(int(node), 0) + int(count)
    return total


def pinned_threads():
    """CPUs of this process's threads that may run on one CPU only, sorted."""
    allowed = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            allowed.append(os.sched_getaffinity(int(task.name)))
    return sorted(cpu for cpus in allowed if len(cpus) == 1 for cpu in cpus)


def digest(arrays):
    """A short name for the bits of arrays, which are not kept: of a real vocabulary's logits the copies would be counted as the model's."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()[:16]


def refuse(*syscalls):
    """From now on these system calls fail in this process with EPERM (seccomp(2), filters: a classic BPF program)."""
    table = {"mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239, "migrate_pages": 256, "move_pages": 279}  # x86-64
    load_number, equal, answer = (0x20, 0, 0, 0), 0x15, 0x06
    allow, deny = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
    program = [load_number]
    program += [(equal, len(syscalls) - i, 0, table[name]) for i, name in enumerate(syscalls)]
    program += [(answer, 0, 0, allow), (answer, 0, 0, deny)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)), 16)
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, mode_filter, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def control_group(controller, settings, version=2):
    """Move this process into a new control group, within another that has these settings ({file: text}); returns the outer one's folder."""
    root = Path(f"/tmp/cgroup{'' if version == 2 else f'-{controller}'}")
    root.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    kind, options = (b"cgroup2", None) if version == 2 else (b"cgroup", controller.encode())
    if not (root / "cgroup.procs").exists() and libc.mount(b"none", bytes(root), kind, 0, options):
        raise OSError(ctypes.get_errno(), f"mount {kind.decode()}")
    group = root / f"numainfer-{os.getpid()}"
    (group / "inner").mkdir(parents=True)
    for folder in (root, group) if version == 2 else ():
        (folder / "cgroup.subtree_control").write_text(f"+{controller}")
    for name, text in settings.items():
        (group / name).write_text(text)
    (group / "inner" / "cgroup.procs").write_text(str(os.getpid()))
    return group


def cpuset(cpus, mems):
    """Move this process into a new control group with these CPUs and memory nodes (control groups v2)."""
    control_group("cpuset", {"cpuset.cpus": cpus, "cpuset.mems": mems})


class Markers:
    """The no-ops that tell plugin/remote.c to start and to stop counting; without the plugin they do nothing."""

    def __init__(self):
        self._code = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        for i, number in enumerate((START, STOP)):
            self._code[i * 16:i * 16 + 9] = bytes((0x0F, 0x1F, 0x84, 0x00)) + struct.pack("<I", number) + b"\xc3"
        self.start, self.stop = (ctypes.CFUNCTYPE(None)(base + i * 16) for i in range(2))
