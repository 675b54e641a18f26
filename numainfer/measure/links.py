"""What lies between the nodes: the distances that the firmware tells, and the bandwidth that workers find."""

from pathlib import Path

from ..machine.limits import online_nodes
from .machine import probing

_NODES = Path("/sys/devices/system/node")


def distances(numbers):
    """What the firmware says of nodes, by the system's numbers: 10 at home, more elsewhere.

    Returns
    -------
    list of list of int, or None
        A row for each number, in order; None where the system does not tell.
    """
    online, rows = online_nodes(), []
    try:
        for number in numbers:
            row = [int(word) for word in (_NODES / f"node{number}" / "distance").read_text().split()]
            rows.append([row[online.index(other)] for other in numbers])
    except (OSError, ValueError, IndexError):
        return None
    return rows


def read_matrix(threads=None, nodes=None):
    """Bytes per second that the workers of each node read from the memory of each.

    Parameters
    ----------
    threads, nodes :
        As for `placement.choose_workers`.

    Returns
    -------
    list of list of float
        A row for each reading node, in order; one node at a time.
    """
    with probing(threads, nodes) as probe:
        return [[probe.rate(i, j) for j in range(len(probe.teams))] for i in range(len(probe.teams))]
