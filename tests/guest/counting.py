"""Bytes read and written, by CPU and page, of a token decoded in the two-node machine: what crosses the link, and what it was.

``python tests/guest/counting.py [--llama.cpp] [MODEL ...]`` prints CSV, of numainfer's or llama.cpp's tokens; lines of totals go to
stderr.
"""

import csv
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from boot import CACHE, HERE, REPOSITORY, GuestError, Machine, prepare

RECORD = np.dtype([("cpu", "u4"), ("page", "u4"), ("read", "u8"), ("written", "u8")])
CPUS = 2  # per node
PAGES_PER_MB = 256
SLOW = 125  # an emulated CPU that is watched reads 40 MB of weights a second; by a clock that is so much slower, 5 GB
OURS = (("replicate", "latency"), ("replicate", "throughput"), ("shard", "latency"), ("interleave", "latency"))
LLAMA_CPP = (("none", "cold"), ("none", "warm"), ("distribute", "cold"), ("distribute", "warm"))


@dataclass
class Traffic:
    """Bytes of one window of counting.

    Attributes
    ----------
    reads, remote_reads, writes, remote_writes : dict of str to int
        By what the memory is for; remote: of a page on another node than the CPU's. "kernel" is all memory that is not the process's.
    """

    reads: dict
    remote_reads: dict
    writes: dict
    remote_writes: dict

    def share(self, kind=""):
        """Remote bytes read over all bytes read, of memory whose name begins with `kind`; "": of all, the kernel's too."""
        chosen = [name for name in self.reads if name.startswith(kind)]
        return sum(self.remote_reads.get(name, 0) for name in chosen) / max(sum(self.reads[name] for name in chosen), 1)


def build_plugin():
    """Compile plugin/remote.c; returns the library's path."""
    prepare()
    library = CACHE / "remote.so"
    command = ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden", "-o", library, HERE / "plugin" / "remote.c"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise GuestError(f"the plugin does not compile:\n{done.stderr}")
    return library


def count(model, *how, engine="numainfer", timeout=500):
    """{"control": Traffic, "token": Traffic} of a token, and what count.py said; how: its other words."""
    nodes = [(CPUS, max(512, 400 + (Path(model).stat().st_size >> 20) * 11 // 10))] * 2
    total, library = sum(mb for _, mb in nodes), build_plugin()
    with tempfile.TemporaryDirectory(prefix="numainfer-counts-") as folder:
        # Of the clocks left, the PM timer is the one that CPUs do not queue for.
        machine = Machine(nodes, plugin=[f"{library},out={folder},mb={total},slow={SLOW}"], slow_clock=library,
                          kernel_args="numa_balancing=disable clocksource=acpi_pm")
        result, = machine.run(["python", "tests/guest/count.py", engine, str(model), *how], timeout=timeout)
        said = json.loads(result.check().stdout)
        found = [np.fromfile(Path(folder, f"{i}.counts"), RECORD) for i in range(len(said["regions"]))]
    place = _addresses(found[0], said, nodes)
    return {name: _traffic(place(records), regions, nodes) for (name, regions), records in zip(said["regions"].items(), found)}, said


def _addresses(control, said, nodes):
    """How the plugin's page numbers become the guest's.

    QEMU 7.2 adds a memory backend's offset twice (its place among all blocks, and in the machine): the second node's memory seems to
    begin at twice its address. The control window read known pages of every node, so only the right reading finds them.
    """
    starts = np.cumsum([0] + [mb * PAGES_PER_MB for _, mb in nodes])

    def once(records):
        return records[records["page"] < starts[-1]]

    def twice(records):
        parts = []
        for first, last in zip(starts, starts[1:]):
            part = records[(records["page"] >= 2 * first) & (records["page"] < first + last)].copy()
            part["page"] -= np.uint32(first)
            parts.append(part)
        return np.concatenate(parts)

    wanted, seen = said["control_bytes"] * len(nodes), []
    for place in (twice, once):
        traffic = _traffic(place(control), said["regions"]["control"], nodes)
        if wanted <= traffic.reads.get("control", 0) <= 1.01 * wanted:
            return place
        seen.append(traffic.reads)
    raise GuestError(f"the control read {wanted} bytes; the counts show {' or '.join(map(str, seen))}")


def _traffic(records, regions, nodes):
    """Sums of records whose pages are the guest's."""
    names = ["kernel", *regions]
    owner = np.zeros(sum(mb for _, mb in nodes) * PAGES_PER_MB, int)
    for i, name in reversed(list(enumerate(names[1:], 1))):  # the first name that claims a page has it
        for first, number in regions[name]:
            owner[first:first + number] = i
    node_of_page = np.repeat(range(len(nodes)), [mb * PAGES_PER_MB for _, mb in nodes])
    node_of_cpu = np.repeat(range(len(nodes)), [cpus for cpus, _ in nodes])
    remote = node_of_page[records["page"]] != node_of_cpu[records["cpu"]]
    kinds = owner[records["page"]]

    def by_name(what, chosen):
        sums = np.bincount(kinds[chosen], records[what][chosen].astype(float), len(names))
        return {name: int(n) for name, n in zip(names, sums) if n}

    return Traffic(by_name("read", kinds >= 0), by_name("read", remote), by_name("written", kinds >= 0), by_name("written", remote))


def model_path(name):
    """Path of a model; random ones of ``bench/models.py``, such as "1b-q4_0", are written on first use."""
    if str(REPOSITORY / "bench") not in sys.path:
        sys.path.append(str(REPOSITORY / "bench"))
    from models import find_model

    return find_model(name)


def main(*words):
    engine, ways = ("llama.cpp", LLAMA_CPP) if "--llama.cpp" in words else ("numainfer", OURS)
    models = [word for word in words if not word.startswith("-")]
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["engine", "model", "placement", "mode", "memory", "read", "read_remote", "written", "written_remote"])
    for model in models or ("smollm2",):  # or "1b-q4_0": what is read besides weights does not grow with them
        path = model_path(model)
        for way in ways:
            windows, said = count(path, *way, engine=engine)
            token = windows["token"]
            for name in sorted(token.reads, key=token.reads.get, reverse=True):
                table.writerow([engine, path.name, *way, name, token.reads[name], token.remote_reads.get(name, 0),
                                token.writes.get(name, 0), token.remote_writes.get(name, 0)])
            table.writerow([engine, path.name, *way, "all", *(sum(part.values()) for part in (
                token.reads, token.remote_reads, token.writes, token.remote_writes))])
            print(f"{model} {' '.join(way)}: {token.share():.3%} of {sum(token.reads.values())} bytes came from the other node, in "
                  f"{said['seconds'] * 1000:.0f} ms of the guest's clock", file=sys.stderr)
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
