"""What each node's workers read from each node's memory."""

import dataclasses

from ..machine import topology as topologies
from ..machine.topology import Topology
from .machine import probing


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
    found = topologies.topology()
    return dataclasses.replace(found, bandwidth=tuple(map(tuple, read_matrix()))) if measure else found


def read_matrix(threads=None, nodes=None):
    """Bytes per second that the workers of each node read from the memory of each.

    Parameters
    ----------
    threads, nodes :
        As for `topology.choose_workers`.

    Returns
    -------
    list of list of float
        A row for each reading node, in order; one node at a time.
    """
    with probing(threads, nodes) as probe:
        return [[probe.rate(i, j) for j in range(len(probe.teams))] for i in range(len(probe.teams))]
