"""Placement policies: what each node holds of a model, in words; and which of them "auto" takes.

A policy is a word for all weights, or one for each *group* of them: ``{"experts": "shard", "*": "replicate"}``, which is the same as
``"experts=shard,*=replicate"``.  The package's own form is the string, as `canonical` writes it.
"""

import re
from collections.abc import Mapping

from ..arguments import did_you_mean
from ..errors import OutOfNodeMemory
from ..summary import short_bytes
from .limits import RESERVE, spare

POLICIES = ("auto", "replicate", "shard", "interleave", "local")
MIXED = ("replicate", "shard")  # what groups may have: a node's part of either lies in its own memory
EXPERTS, REST = "experts", "*"
GROUPS = (EXPERTS, REST)
HYBRID = "experts=shard,*=replicate"


def canonical(value):
    """The policy that a user means, as the package writes it: one of `POLICIES`, or ``"experts=shard,*=replicate"``.

    Parameters
    ----------
    value : str or mapping of str to str
        One of `POLICIES`; or for every group of `GROUPS` one of `MIXED`, "*" being all that no other group names, as a mapping or as
        ``"GROUP=POLICY,..."``.

    Raises
    ------
    TypeError, ValueError
        Naming what is wrong, and what was wanted.
    """
    if not isinstance(value, (str, Mapping)):
        raise TypeError(f"placement = {value!r}: found {type(value).__name__}, wanted a str, or a dict such as {by_group(HYBRID)}")
    if isinstance(value, str) and "=" not in value:
        return _word(value, value.strip(), POLICIES, f", or a policy for each group of weights, such as {HYBRID!r}")
    return _text(_checked(value, value.items() if isinstance(value, Mapping) else _pairs(value)))


def _word(value, word, known, more="", group=None):
    if word in known:
        return word
    near = did_you_mean(word, known) if isinstance(word, str) else ""
    of = "" if group is None else f": {group!r} has {word!r}"
    raise ValueError(f"placement = {value!r}{of}; wanted one of {', '.join(known)}{more}" + (f"; {near}" if near.startswith("did") else ""))


def _pairs(text):
    for part in text.split(","):
        found = re.fullmatch(r"\s*([^=\s]+)\s*=\s*([^=\s]+)\s*", part)
        if not found:
            raise ValueError(f"placement = {text!r}: found {part.strip()!r}, wanted GROUP=POLICY with commas between them, such as "
                             f"{HYBRID!r}")  # fmt: skip
        yield found[1], found[2]


def _checked(value, pairs):
    """{group: policy} of what was given."""
    found = {}
    for group, word in pairs:
        if group not in GROUPS:
            near = did_you_mean(group, GROUPS) if isinstance(group, str) else f"known are {', '.join(GROUPS)}"
            raise ValueError(f"placement = {value!r}: there is no group {group!r} of weights; {near}")
        if group in found:
            raise ValueError(f"placement = {value!r}: group {group!r} stands there twice")
        found[group] = _word(value, word, MIXED, ": others are for all weights together" if word in POLICIES else "", group)
    if REST not in found:
        raise ValueError(f"placement = {value!r} says nothing of the other weights; add {REST!r}, such as {HYBRID!r}")
    return found


def _text(groups):
    """One word where all groups have the same."""
    words = set(groups.values())
    return words.pop() if len(words) == 1 else ",".join(f"{group}={groups[group]}" for group in GROUPS if group in groups)


def by_group(policy):
    """{group: word} of a policy in the package's form; of a single word {"*": word}."""
    return dict(part.split("=") for part in policy.split(",")) if "=" in policy else {REST: policy}


def of_group(policy, group):
    """What a policy says of a group."""
    found = by_group(policy)
    return found.get(group, found[REST])


def without(policy, group):
    """The same policy for a model that has no weights of the group."""
    return _text({name: word for name, word in by_group(policy).items() if name != group})


def cuts(policy):
    """Whether some weights have only a part of their rows on a node, so that no node can work by itself."""
    return "shard" in by_group(policy).values()


def choose_policy(asked, chosen, need, other_bytes, standing=(), limit=None):
    """Policy and reason.

    Parameters
    ----------
    asked : str
        In the package's form.
    chosen : sequence of Node
    need : dict of str to sequence of int
        By policy: bytes of weights on each node.  "auto" takes the first that fits of replicate, `HYBRID` and shard, as far as they are
        there; of the last two rather one that stands.
    other_bytes : int
        On each node, beside them.
    standing : collection of str
        Policies whose copies are in memory already, for another model of this process.
    limit : Allowance, optional
        Of the control group, for all nodes together.

    Raises
    ------
    OutOfNodeMemory
        No policy that was asked for fits; nothing has been allocated.
    """
    reason = ""
    if len(chosen) == 1 and asked != "local":
        asked, reason = "local", "one node: every policy is the same single copy"

    def lacking(policy):
        """What does not fit: a line for the control group, or one per node."""
        each = [(0 if policy in standing else n) + other_bytes for n in need[policy]]
        if limit is not None and sum(each) > limit.spare:
            return [f"control group allows {size(limit.total)} ({limit.file}): need {size(sum(each))}, free {size(limit.spare)}"]
        # Pretend nodes share the memory of the real one.
        needs = [sum(n for n, other in zip(each, chosen) if other.number == node.number) for node in chosen]
        rooms = [spare(node.total, node.free) for node in chosen]
        if all(room is None or n <= room for n, room in zip(needs, rooms)):
            return []
        return [f"node {node.label}: need {size(n)}, free {size(room)}" for node, n, room in zip(chosen, needs, rooms)]

    if asked == "auto":
        unknown = [n.label for n in chosen if n.free is None]
        if unknown:
            asked, reason = "shard", f"one copy in all, for the system does not tell how much memory node {unknown[0]} has"
        else:
            asked, reason = _automatic(need, standing, lacking)
    lines = lacking(asked)
    if lines:
        raise OutOfNodeMemory(f"placement {asked!r} does not fit (with {RESERVE:.0%} kept free): {'; '.join(lines)}")
    return asked, reason


def _automatic(need, standing, lacking):
    """The policy of "auto", which may not fit, and why."""
    whole = max(need["replicate"])
    if not lacking("replicate"):
        return "replicate", f"every node has room for its own {size(whole)}"
    reason = f"no room for {size(whole)} on every node"
    if HYBRID not in need:
        return "shard", reason
    if "shard" in standing and HYBRID not in standing and not lacking("shard"):
        return "shard", f"{reason}; such a copy stands already"
    mixed = size(max(need[HYBRID]))
    if lacking(HYBRID):
        return "shard", f"{reason}, nor for {mixed} with the experts cut"
    return HYBRID, f"{reason}, but for {mixed}, its rows of the experts and all else"


def size(n):
    """Bytes as text."""
    return "unknown" if n is None else short_bytes(n)
