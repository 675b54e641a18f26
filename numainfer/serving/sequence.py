"""Sequence: token ids and the KV cache of them, computed as far as it goes."""

import weakref

import numpy as np

from .._core import in_default_floats
from ..errors import ModelClosed

_OUT_BYTES = 64 << 20  # most bytes of logits or hidden states per step: a 262k vocabulary takes 1 MiB a row


class Sequence:
    """What a session keeps, and one call of a model uses once.

    Parameters
    ----------
    runtime : Runtime
    cache : Cache, optional
        Of the ids, as far as ``n_past``; an empty one by default.
    ids : list of int
    n_past : int

    Attributes
    ----------
    runtime : Runtime
    ids : list of int
        The last prompt and the answer to it.
    n_past : int
        How many of ``ids`` the cache holds, from the first.
    turn : int
        Number of the prompt, for a stream to know whether it is still its own.
    """

    def __init__(self, runtime, cache=None, ids=(), n_past=0):
        self.runtime, self._cache = runtime, None
        self.ids, self.n_past, self.turn = list(ids), n_past, 0
        self._stream = None  # a weak reference to the stream that works on it
        self._cache = cache or runtime.new_cache()
        runtime.attach(self)

    def check(self):
        """Raise ModelClosed or ForkedProcess if nothing can be computed any more."""
        self.runtime.check()
        _ = self.cache

    @property
    def cache(self):
        """The KV cache; another thread may close the sequence between any two steps."""
        cache = self._cache
        if cache is None:
            self.runtime.check()  # it is the model that was closed, if any
            raise ModelClosed("the session was closed")
        return cache

    @property
    def closed(self):
        return self._cache is None

    def close(self):
        """Free the cache. Again, and after the model was closed, it does nothing."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def __del__(self):
        if getattr(self, "_cache", None) is not None:
            self.close()

    # ---- what it holds -----------------------------------------------------------------------------------------------

    def begin(self, ids, stream=None, reuse=True):
        """Make ``ids`` the sequence, for ``stream`` if given; how many of them the cache spares us to compute.

        Parameters
        ----------
        ids : int32 array (n,)
        stream : TokenStream or None
        reuse : bool
            False: nothing is spared.
        """
        self.end_stream()
        self._stream = stream and weakref.ref(stream)
        self.turn += 1
        held = np.asarray(self.ids[: min(self.n_past, len(ids) - 1)], np.int32)  # the last gives the logits
        differ = np.flatnonzero(held != ids[: len(held)])
        self.n_past = 0 if not reuse else self.cache.rewindable(int(differ[0]) if len(differ) else len(held))
        self.ids = ids.tolist()
        return self.n_past

    def ended(self, turn, n_prompt, token_ids):
        """The stream of that turn is over: its answer belongs to the sequence, unless a new turn has begun."""
        if turn == self.turn:
            self.ids = self.ids[:n_prompt] + token_ids
            self._stream = None

    def end_stream(self):
        """Cancel the stream that works on the sequence.

        Raises
        ------
        RuntimeError
            It is computing a token just now.
        """
        stream = self._stream and self._stream()
        if stream is not None:
            if stream.running:  # in another thread, or this is a call from inside its logits_processor
                raise RuntimeError("the session is busy: a stream of it is computing a token just now")
            stream.cancel()
        self._stream = None

    def rewind(self, n):
        """Forget all but the first ``n`` ids."""
        self.end_stream()
        self.n_past = self.cache.rewind(min(self.n_past, n))
        self.ids = self.ids[:n]

    def fork(self):
        """A Sequence that starts where this one stands."""
        n, ids = self.n_past, list(self.ids)  # now: while the copy waits for its turn, a stream in another thread goes on
        return Sequence(self.runtime, self.runtime.copy_cache(self.cache, n), ids, n)

    # ---- computing ---------------------------------------------------------------------------------------------------

    def prefill(self, ids, start, job=None):
        """Compute ids[start:]; yields after each step, None or at last the logits (n_vocab,) of the last position."""
        runtime, n = self.runtime, len(ids)
        for a in range(start, n, runtime.n_batch):
            b = min(a + runtime.n_batch, n)
            rows = runtime.step([(self.cache, ids[a:b], a)], [b - a - 1] if b == n else [], job=job)
            self.n_past = b
            yield rows[0] if b == n else None

    def feed(self, token, job):
        """Compute the answer's next token; the logits (n_vocab,) after it."""
        at = self.n_past
        rows = self.runtime.step([(self.cache, np.array([token], np.int32), at)], [0], job=job)
        self.ids[at:] = [token]  # fork, in the midst of a stream, copies what is computed
        self.n_past = at + 1
        return rows[0]

    def rows(self, ids, hidden=False):
        """Compute all positions; yields (first position, float32 array (n, n_vocab or n_embd)) in order."""
        runtime = self.runtime
        width = runtime.n_embd if hidden else runtime.n_vocab
        size = min(runtime.n_batch, max(_OUT_BYTES // (4 * width), 1))
        for a in range(0, len(ids), size):
            part = ids[a : a + size]
            rows = runtime.step([(self.cache, part, a)], range(len(part)), hidden=hidden)
            self.n_past = a + len(part)
            yield a, rows

    @in_default_floats
    def logprobs(self, ids):
        """Log-probabilities of ids[1:], float64 (n - 1,)."""
        logprobs = np.empty(len(ids) - 1)
        for at, rows in self.rows(ids):
            for i, row in enumerate(rows[: len(logprobs) - at]):
                logprobs[at + i] = _log_softmax_at(row, ids[at + i + 1])
        return logprobs

    @in_default_floats
    def pooled(self, ids, pooling):
        """Hidden states over the ids, (n_embd,) float32: their "mean", or the "last"."""
        total = 0.0
        for _, rows in self.rows(ids, hidden=True):
            total = rows.sum(axis=0, dtype=np.float64) + total if pooling == "mean" else rows[-1]
        return (total / len(ids)).astype(np.float32) if pooling == "mean" else total


def _log_softmax_at(row, i):
    """Log-probability of token i, float; overwrites the logits."""
    top, wanted = row.max(), float(row[i])
    row -= top
    np.exp(row, out=row)
    return wanted - float(top) - float(np.log(row.sum(dtype=np.float64)))
