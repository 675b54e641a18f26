"""How fast workers read memory: the limit that decoding is measured against."""

from pathlib import Path

from .. import _core
from ..machine.limits import limits, node_memory

STREAMS = (1, 2, 3, 4)  # which number of read streams per thread is fastest depends on the machine
_LEAST = 512 << 20  # bytes per node: also where caches are small, far more than they hold


def read_rate(team, addresses, n_bytes, tries=1):
    """Bytes per second that a team reads, best of every number of read streams, each tried ``tries`` times.

    Parameters
    ----------
    team : _core.Team
    addresses : sequence of int
        Per node of the team, where its workers read; written to before, for memory never touched has no pages.
    n_bytes : int
        At each address.
    tries : int
    """
    return len(addresses) * n_bytes * 1e9 / min(team.read_time(addresses, n_bytes, s) for s in STREAMS * tries)


def probe_bytes(least, free, n_nodes):
    """Bytes per node to read: ``least``, more where the caches are large, but no more than a quarter of what is free.

    Parameters
    ----------
    least : int
    free : int or None
        Bytes free on the fullest node; None: not known.
    n_nodes : int
        Nodes that are measured; pretend nodes share one memory.
    """
    wanted = max(least, 4 * cache_bytes() // n_nodes)
    return max((wanted if free is None else min(wanted, free // (4 * n_nodes))) >> 20, 1) << 20


def least_free(free):
    """The least of some nodes' free bytes; None where none is known."""
    return min((n for n in free if n is not None), default=None)


def cache_bytes():
    """Bytes of all third-level caches of the machine; 0 where the system does not tell."""
    caches = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        try:
            size = (index / "size").read_text().strip()
            caches[(index / "shared_cpu_list").read_text()] = int(size.removesuffix("K")) << 10
        except (OSError, ValueError):
            return 0
    return sum(caches.values())


class ReadProbe:
    """Memory on each node of a model, to sample what the model's own workers can read of it.

    Close it, or use it in a ``with`` block: it holds half a gigabyte per node, more where the caches are large.

    Parameters
    ----------
    runtime : Runtime
    """

    def __init__(self, runtime):
        self._runtime, self._arenas, self._written = runtime, [], False
        nodes, memory = runtime.engine.nodes, limits().memory
        self._n_bytes = probe_bytes(_LEAST, least_free(node_memory(node, memory)[1] for node in nodes), len(nodes))
        try:
            for node in nodes:
                self._arenas.append(_core.Arena(self._n_bytes, [node], huge=True))
        except BaseException:
            self.close()
            raise

    def sample(self):
        """Bytes per second over all nodes, each worker reading from its own node; takes a fraction of a second."""
        addresses = [arena.address for arena in self._arenas]
        with self._runtime.turn():
            team = self._runtime.engine.lane.team
            if not self._written:
                team.read_time(addresses, self._n_bytes, 0)  # writes, as first touch by each node's own workers
                self._written = True
            return read_rate(team, addresses, self._n_bytes)

    def close(self):
        for arena in self._arenas:
            arena.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
