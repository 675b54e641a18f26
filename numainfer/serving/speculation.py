"""Speculation: tokens that may come next are proposed, so that one step over the weights can give several.

A step over the last token and k proposed ones gives the logits behind each. Tokens are chosen from these rows in order, as ever, up to the
first that differs from the proposal (`choosing.choose_step`); so the answer is the same bits as without. How many tokens are proposed
follows from how often proposals came true, and from what steps took (`Costs`): both decide about speed alone.

Who proposes has the form of `Lookup`; `drafts.Draft` and `heads.Head` are others. `Lookup` proposes what followed the last tokens where
they stood before, in the prompt or in the answer: text that is edited, quoted or listed again. (Prompt lookup decoding; the check of
several tokens in one pass: Leviathan et al., "Fast inference from transformers via speculative decoding", 2023.)
"""

import collections
import math

from .drafts import Draft, check_draft
from .heads import Head

LEAST = 2  # tokens in a row that must have stood before
MOST = 15  # tokens that are proposed at once, for all sequences of a step together
BACK = 7  # ... and for a sequence with recurrent state, of which each leaves a copy: so many are reserved
FEW = 16  # with more sequences in a step nothing is proposed: rows cost too much then
_PLACES = 16  # where the last tokens stood before, the latest first, that are compared
_LONGEST = 32  # tokens before these places that are
AT_ONCE = 2048  # ids that are taken in before a step: 1 to 2 ms
_CLASSES = (0, 0, 0, 1, 2, 2, 3, 3, 3, 3)  # of agreements by their length; longer ones are the last class
_BEGIN = (0.15, 0.3, 0.5, 0.7, 0.85)  # how often, by class, a proposal comes true, until we know ...
_WEIGHT, _KEPT = 4.0, 0.96  # ... which counts like so many, and by how much what is known loses weight with each
_HOPELESS = 0.02  # proposals are not continued where they come true less often
_SAMPLES = 5  # of which the middle one counts, so that a step that somebody disturbed does not
_BARE = 64  # steps after which one without proposals is measured again
_FRESH = 1024  # steps that a measurement counts, less and less
_GUESS = 0.05  # of a step of the sequences' rows alone: what each row beyond those that were measured costs at least
_WORTH = 0.03  # logarithm of how much faster answers must become
_FIRST = 3  # rows of the first step that is tried


class Lookup:
    """Where the last tokens of a sequence stood before, and what followed them.

    Among the places where the last two stood that one counts which agrees with the end of the sequence for longest, of equal ones the
    latest. As long as what followed there comes, it stays that one, for all others' agreement grows no faster.

    Parameters
    ----------
    learns_from : int
        Tokens of the prompt: what comes later tells how often proposals come true.

    Attributes
    ----------
    n : int
        Tokens taken in.
    length : int
        For how many tokens the place agrees with the end; 0: there is none.
    cost : float
        Seconds that a proposal takes.
    """

    cost = 0.0

    def __init__(self, learns_from=0):
        self._ids, self._learns_from = [], learns_from
        self._last = {}  # by pair of tokens: the index behind the place where it stood last
        self._before = [0, 0]  # by such an index: that of the pair's place before, or 0
        self._at, self.length = 0, 0  # the token at this index is expected
        self._hits, self._tries = [p * _WEIGHT for p in _BEGIN], [_WEIGHT] * len(_BEGIN)

    @property
    def n(self):
        return len(self._ids)

    def extend(self, tokens):
        """Take in the tokens that come next.

        Parameters
        ----------
        tokens : list of int
        """
        ids, last, before = self._ids, self._last, self._before
        for i, token in enumerate(tokens, 1):
            if self.length:
                hit = ids[self._at] == token
                if len(ids) >= self._learns_from:
                    self._learn(hit)
                if hit:
                    self._at += 1
                    self.length += 1
                else:
                    self.length = 0
            ids.append(token)
            n = len(ids)
            if n < LEAST:
                continue
            pair = ids[-2], token
            before.append(last.get(pair, 0))
            last[pair] = n
            if not self.length and before[n] and (n >= self._learns_from or i == len(tokens)):
                self._find()

    def _find(self):
        ids, n = self._ids, len(self._ids)
        at = self._before[n]
        for _ in range(_PLACES):
            length, most = LEAST, min(at, _LONGEST)
            while length < most and ids[at - 1 - length] == ids[n - 1 - length]:
                length += 1
            if length > self.length:
                self._at, self.length = at, length
            at = self._before[at]
            if not at or self.length >= _LONGEST:
                break

    def _learn(self, hit):
        i = _class_of(self.length)
        self._hits[i] = _KEPT * self._hits[i] + hit
        self._tries[i] = _KEPT * self._tries[i] + 1

    def chances(self, most):
        """How probable it is that the first 1, 2, ... proposals, at most so many, all come true: list of float, falling."""
        found, chance = [], 1.0
        if self.length:
            for length in range(self.length, self.length + most):
                i = _class_of(length)
                chance *= self._hits[i] / self._tries[i]
                if chance < _HOPELESS:
                    break
                found.append(chance)
        return found

    def close(self):
        """Nothing is held."""

    def propose(self, k):
        """What may come next: k tokens, list of int. Behind the end what is expected there goes on."""
        found = self._ids[self._at : self._at + k]
        while len(found) < k:
            found.append(found[self._at + len(found) - len(self._ids)])
        return found


def _class_of(length):
    return _CLASSES[length] if length < len(_CLASSES) else len(_BEGIN) - 1


class Costs:
    """What a lane's steps took of late, by rows, and how many tokens are proposed with that."""

    def __init__(self):
        self._took, self._when, self._n = {}, {}, 0

    def took(self, rows, seconds):
        """A step of so many rows, none of a prompt, has taken so long."""
        self._n += 1
        if self._n - self._when.get(rows, 0) > _FRESH:
            self._took.pop(rows, None)
        self._took.setdefault(rows, collections.deque(maxlen=_SAMPLES)).append(seconds)
        self._when[rows] = self._n

    def seconds(self, first, most):
        """Seconds of steps of first, first + 1, ... rows, at most so many: list of float. Empty if the first must be measured.

        What was not measured of late lies on a line between what was. Beyond it rows are taken for half as dear, so that they are tried,
        but not many at once. The older a measurement, the less it says of what rows cost more than the first, so that they are tried again.
        """
        if self._n - self._when.get(first, -_BARE) >= _BARE:
            return []
        known = sorted(rows for rows, when in self._when.items() if rows >= first and self._n - when < _FRESH)
        middle = {rows: sorted(self._took[rows])[(len(self._took[rows]) - 1) // 2] for rows in known}
        base, points = middle[first], [(first, middle[first])]
        points += [(rows, base + (middle[rows] - base) * (1 - (self._n - self._when[rows]) / _FRESH)) for rows in known[1:]]
        found = [base]
        for (a, t_a), (b, t_b) in zip(points, points[1:]):
            found += [t_a + (t_b - t_a) * (rows - a) / (b - a) for rows in range(a + 1, b + 1)]
        tried, last = points[-1]
        each = max((last - base) / max(tried - first, 1) / 2, base * _GUESS)
        found += [last + each * i for i in range(1, max(tried, _FIRST))]
        return found[: most - first + 1]

    def allot(self, chances, costs, most):
        """How many tokens are proposed for each sequence: those by which the geometric mean of the speeds of all answers grows most.

        Speed is tokens per step by seconds per step, so an answer without proposals counts too: others' must be worth its wait.

        Parameters
        ----------
        chances : list of list of float
            Of each answer in the step, as of `Lookup.chances`.
        costs : list of float
            Seconds that each proposal takes before the step.
        most : int
            Rows that the step may have.

        Returns
        -------
        list of int
        """
        n_answers, counts = len(chances), [0] * len(chances)
        if not any(chances):
            return counts
        seconds = self.seconds(n_answers, min(most, n_answers + MOST))
        if not seconds:
            return counts
        gains = []
        for i, own in enumerate(chances):
            expected = 1.0
            for chance in own:
                gains.append((math.log1p(chance / expected), i))
                expected += chance
        gains.sort(reverse=True)  # of one sequence they fall, so they stay in order
        best, best_n, total, before = _WORTH, 0, 0.0, 0.0
        for n, ((gain, i), t) in enumerate(zip(gains, seconds[1:]), 1):
            total += gain
            before += costs[i]
            value = total - n_answers * math.log((before + t) / seconds[0])
            if value > best:
                best, best_n = value, n
        for _, i in gains[:best_n]:
            counts[i] += 1
        return counts


def check_speculation(runtime, wanted):
    """Raise, as `check_draft` does, where a model cannot draft for another; or where the model has no head of its own.

    Parameters
    ----------
    runtime : Runtime
    wanted : "prompt", "mtp", Model or None
    """
    if wanted == "mtp":
        if runtime.engine.plan.head is None:
            raise ValueError(f"speculate = 'mtp': the model {runtime.name} was loaded without the layer that predicts a further token; "
                             "load it with mtp=True, which says whether the file has one")  # fmt: skip
    elif wanted is not None and wanted != "prompt":
        check_draft(runtime, wanted.runtime)


def most_proposed(runtime):
    """Most tokens that are proposed at once for a sequence."""
    return MOST if runtime.engine.plan.kv.rewinds else BACK


def make_proposer(runtime, wanted, n_prompt, most, gone):
    """Who proposes tokens for an answer: a Lookup, a Head, a Draft, or None.

    Parameters
    ----------
    runtime, wanted :
        As for `check_speculation`.
    n_prompt, most : int
        Tokens of the prompt, and positions that the sequence may come to have.
    gone : callable
        Whether nobody wants the answer any more.
    """
    check_speculation(runtime, wanted)
    if wanted is None:
        return None
    if wanted == "mtp":
        return Head(n_prompt)
    return Lookup(n_prompt) if wanted == "prompt" else Draft(wanted.runtime, n_prompt, most, gone)
