"""What each node's cores read from each node's memory."""

import dataclasses

from .. import _core
from .bandwidth import least_free, probe_bytes, read_rate
from ..machine import placement
from ..machine.cpus import domains
from ..machine.placement import Topology

_READ_BYTES = 128 << 20  # per node at least
_TRIES = 3


def topology(measure: bool = False) -> Topology:
    """The nodes, cores and memory that this process may use, within its CPU affinity and cpuset.

    Parameters
    ----------
    measure : bool
        Find ``bandwidth`` too: some tenths of a second for each pair of nodes, in which nothing else should run.

    Returns
    -------
    Topology

    Raises
    ------
    ValueError
        NUMAINFER_FAKE_NODES is not a number from 1 to 64.
    """
    if not isinstance(measure, bool):
        raise TypeError(f"measure = {measure!r}: found {type(measure).__name__}, wanted True or False")
    found = placement.topology()
    return dataclasses.replace(found, bandwidth=bandwidth(found)) if measure else found


def bandwidth(found):
    """Bytes per second from each node's memory to all of a node's cores, one pair at a time, best of a few tries; as in Topology."""
    n_bytes, arenas, teams = probe_bytes(_READ_BYTES, least_free(node.free for node in found.nodes), len(found.nodes)), [], []
    try:
        for node in found.nodes:
            teams.append(_core.Team(node.cpus, [0] * len(node.cpus), domains(node.cpus)))
            arenas.append(_core.Arena(n_bytes, [node.number], huge=True))
            teams[-1].read_time([arenas[-1].address], n_bytes, 0)  # writes: first touch by the node's own workers
        return tuple(tuple(read_rate(team, [arena.address], n_bytes, _TRIES) for arena in arenas) for team in teams)
    finally:
        for thing in (*arenas, *teams):
            thing.close()
