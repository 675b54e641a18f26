"""Drafts: a small model of the same vocabulary says what a large one may say next.

The lane's thread of the large model runs the small one's steps itself, between its own and for no request of the small one's: it waits for
a turn there like any other caller, holding none of its own, so that no two models can wait for each other. What goes wrong with
the draft (it was closed, there is no memory for its cache) costs the answer nothing: it goes on without.
"""

import logging
import time
import weakref

import numpy as np

from .._core import Cancelled
from ..errors import NumaInferError
from .modes import kv_budget

log = logging.getLogger("numainfer")

_READ = 128  # tokens of a prompt that it reads before a step of the large model
_BEGIN, _WEIGHT, _KEPT = 0.7, 4.0, 0.96  # how often a token comes true until we know, what that counts for, and for how long
_HOPELESS = 0.05  # nothing is drafted that comes true less often ...
_AGAIN = 256  # ... but after so many tokens without a draft it is tried again
_alike = weakref.WeakKeyDictionary()  # by tokenizer: those with which it has its vocabulary in common


def check_draft(runtime, draft):
    """Raise unless a model can draft for another.

    Parameters
    ----------
    runtime, draft : Runtime

    Raises
    ------
    ValueError
        It is the same model, its vocabulary differs, or its cache cannot go back.
    ModelClosed, ForkedProcess
    """
    draft.check()
    if draft is runtime:
        raise ValueError(f"speculate: the draft is the model {runtime.name} itself; wanted a much smaller one of the same vocabulary")
    own, other = runtime.tokenizer, draft.tokenizer
    if other not in _alike.setdefault(own, weakref.WeakSet()):
        differs = next((i for i in range(min(own.n_vocab, other.n_vocab)) if own.token_text(i) != other.token_text(i)), None)
        if differs is not None or own.n_vocab != other.n_vocab:
            found = (f"{other.n_vocab} tokens, not {own.n_vocab}" if differs is None else
                     f"token {differs} is {other.token_text(differs)!r}, not {own.token_text(differs)!r}")  # fmt: skip
            raise ValueError(f"speculate: the draft {draft.name} has another vocabulary than {runtime.name}: {found}; wanted the same")
        _alike[own].add(other)
    if not draft.engine.plan.kv.rewinds:
        raise ValueError(f"speculate: the draft {draft.name} has recurrent layers, whose state cannot go back behind tokens that were "
                         "proposed in vain; wanted a model without such")  # fmt: skip


class Draft:
    """What a small model expects of a sequence; used as `speculation.Lookup`.

    Parameters
    ----------
    runtime : Runtime
        Of the small model.
    learns_from : int
        Tokens of the prompt.
    most : int
        Positions that the sequence may come to have.
    gone : callable
        Whether nobody wants the answer any more: asked while the small model computes.

    Attributes
    ----------
    n : int
        Tokens taken in.
    cost : float
        Seconds that a proposal takes, of late.
    """

    def __init__(self, runtime, learns_from, most, gone):
        self._runtime, self._learns_from, self._most, self._gone = runtime, learns_from, min(most, runtime.n_ctx), gone
        self._ids, self._fed, self._cache = [], [], None  # _fed: what the cache is of
        self._proposal = []  # that was not compared yet
        self._hits, self._tries = _BEGIN * _WEIGHT, _WEIGHT
        self.cost, self._idle, self._lost = 0.0, 0, False

    @property
    def n(self):
        return len(self._ids)

    def extend(self, tokens):
        """Take in the tokens that come next."""
        for token in tokens:
            n = len(self._ids)
            if self._proposal:
                hit = self._proposal[0] == token
                self._proposal = self._proposal[1:] if hit else []
                self._hits, self._tries, self._idle = _KEPT * self._hits + hit, _KEPT * self._tries + 1, 0
            elif n >= self._learns_from:
                self._idle += 1
            if n < len(self._fed) and self._fed[n] != token:
                del self._fed[n:]
            self._ids.append(token)
        if self._idle >= _AGAIN:
            self._hits, self._tries, self._idle = _BEGIN * _WEIGHT, _WEIGHT, 0

    def chances(self, most):
        """As of `Lookup.chances`; nothing as long as the prompt is not read, of which this call reads a piece."""
        at_once = min(_READ, self._runtime.n_batch)
        most = min(most, self._runtime.n_ctx - len(self._ids), at_once)  # a window goes back no further than a step may go forward
        if self._lost or most <= 0:
            return []
        if len(self._ids) - len(self._fed) > at_once:
            self._step(self._ids[len(self._fed) :][:at_once], [])
            return []
        each = self._hits / self._tries
        found = [each**i for i in range(1, most + 1)]
        return [chance for chance in found if chance >= _HOPELESS]

    def propose(self, k):
        """What the small model would say next: at most k tokens, list of int; none if something went wrong."""
        found = []
        del self._fed[len(self._ids) - 1 :]  # after a step that was broken off the last token is in the cache already, and more
        feed = self._ids[len(self._fed) :]
        while len(found) < k:
            rows = self._step(feed, [len(feed) - 1])
            if rows is None:
                return []
            feed = [int(rows[0, : self._runtime.tokenizer.n_vocab].argmax())]
            found += feed
        self._proposal = found
        return found

    def _step(self, ids, rows):
        """Rows of logits of a step over ids behind those that were fed; None if there are none."""
        runtime, cache = self._runtime, self._cache  # which another thread may close, where the large model is closed
        try:
            if cache is None:
                if runtime.engine.plan.kv.bytes(self._most) > kv_budget(runtime, runtime.engine.lane):
                    raise MemoryError(f"no memory for its cache of {self._most} positions")
                self._cache = cache = runtime.new_cache()
            with runtime.turn(None, self._gone):
                start = time.perf_counter()
                out = runtime.run(None, [(cache, np.array(ids, np.int32), len(self._fed))], rows, look=self._gone)
        except Cancelled:
            return None
        except (NumaInferError, MemoryError, ValueError) as e:
            log.warning("an answer goes on without its draft %s: %s", runtime.name, e)
            self._lost = True
            self.close()
            return None
        if len(ids) <= 2:  # of the last token, or with the one before it, where all proposals came true
            seconds = time.perf_counter() - start
            self.cost = 0.8 * self.cost + 0.2 * seconds if self.cost else seconds
        self._fed += ids
        return out

    def close(self):
        """Free its cache."""
        cache, self._cache, self._lost = self._cache, None, True
        if cache is not None:
            cache.close()
