"""The file's own head as a draft: the layer that predicts a further token (MTP) says what may come next.

It is a part of the model, in the same lanes and with the same cache; what its steps write behind the end of a sequence is taken back. It
was trained to predict one token further; what it says of its own proposals is worth less from token to token, so how often they come true
is counted by their place.
"""

import logging
import time

from .._core import Cancelled
from ..errors import NumaInferError

log = logging.getLogger("numainfer")

_BEGIN, _WEIGHT, _KEPT = (0.7, 0.5, 0.4, 0.3), 4.0, 0.97  # by place: how often a token comes true where those before it did, until we
# know, what that counts for, and for how long; later places are the last
_HOPELESS = 0.05  # nothing is proposed that comes true less often ...
_AGAIN = 256  # ... but after so many tokens without a proposal it is tried again


class Head:
    """What the head expects of a sequence; used as `speculation.Lookup`, but that `propose_all` has it propose.

    Parameters
    ----------
    learns_from : int
        Tokens of the prompt.

    Attributes
    ----------
    n : int
        Tokens taken in.
    last : int
        The last of them.
    cost : float
        Seconds that a proposal takes, of late.
    lost : bool
        It went wrong: nothing is proposed any more.
    """

    def __init__(self, learns_from):
        self._learns_from, self.n, self.last, self.cost, self.lost = learns_from, 0, 0, 0.0, False
        self._proposal, self._place, self._idle = [], 0, 0  # _proposal: what was not compared yet, and the place of its first
        self._forget()

    def _forget(self):
        self._hits, self._tries, self._idle = [p * _WEIGHT for p in _BEGIN], [_WEIGHT] * len(_BEGIN), 0

    def extend(self, tokens):
        """Take in the tokens that come next."""
        for token in tokens:
            if self._proposal:
                hit, place = self._proposal[0] == token, min(self._place, len(_BEGIN) - 1)
                self._hits[place] = _KEPT * self._hits[place] + hit
                self._tries[place] = _KEPT * self._tries[place] + 1
                self._proposal, self._place = (self._proposal[1:], self._place + 1) if hit else ([], 0)
                self._idle = 0
            elif self.n >= self._learns_from:
                self._idle += 1
            self.n, self.last = self.n + 1, token
        if self._idle >= _AGAIN:
            self._forget()

    def chances(self, most):
        """As of `Lookup.chances`."""
        found, chance = [], 1.0
        for i in range(0 if self.lost else most):
            place = min(i, len(_BEGIN) - 1)
            chance *= self._hits[place] / self._tries[place]
            if chance < _HOPELESS:
                break
            found.append(chance)
        return found

    def proposed(self, tokens, seconds):
        """These it proposed, in so many seconds each."""
        self._proposal, self._place = tokens, 0
        self.cost = 0.8 * self.cost + 0.2 * seconds if self.cost else seconds

    def close(self):
        """Nothing is held."""


def draft(runtime, lane, wanted, gone):
    """Have the heads of answers propose, together: the first token of all of them in one step, then the second.

    Parameters
    ----------
    runtime : Runtime
    lane : Lane or None
        The answers' own; None: that of all nodes.
    wanted : list of (Head, Cache, int, int)
        Of each its head, its cache, how many positions of that are computed, and how many tokens it is to propose, at least one.
    gone : callable
        Whether somebody does not want his answer any more: then nothing is proposed.

    Returns
    -------
    list of list of int
        What each proposes; the caches are as they were.
    """
    found, states = [[] for _ in wanted], [cache.hidden.before(at) for _, cache, at, _ in wanted]
    start, n_vocab = time.perf_counter(), runtime.tokenizer.n_vocab
    most = runtime.engine.plan.head.n_batch
    try:
        while any(len(own) < k for own, (*_, k) in zip(found, wanted)):
            going = [i for i, (*_, k) in enumerate(wanted) if len(found[i]) < k]
            for some in (going[i : i + most] for i in range(0, len(going), most)):
                segments = []
                for i in some:
                    head, cache, at, _ = wanted[i]
                    segments.append((cache, found[i][-1] if found[i] else head.last, at + len(found[i])))
                with runtime.turn(lane, gone):
                    logits, hidden = runtime.draft(lane, segments, [states[i] for i in some], gone)
                for i, row, state in zip(some, logits, hidden):
                    found[i].append(int(row[:n_vocab].argmax()))
                    states[i] = state
    except Cancelled:
        found = [[] for _ in wanted]
    except (NumaInferError, MemoryError) as e:
        log.warning("answers go on without the head of %s: %s", runtime.name, e)
        found = [[] for _ in wanted]
        for head, *_ in wanted:
            head.lost = True
    finally:
        for _, cache, at, _ in wanted:
            if not cache.closed:
                cache.rewind(at)
    each = (time.perf_counter() - start) / max(sum(map(len, found)), 1)
    for (head, *_), own in zip(wanted, found):
        if own:
            head.proposed(own, each)
    return found
