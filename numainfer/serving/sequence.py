"""Sequence: token ids and the KV cache of them, computed as far as it goes."""

import weakref

import numpy as np

from ..errors import ModelClosed


class Sequence:
    """What a session keeps.

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
    """

    def __init__(self, runtime, cache=None, ids=(), n_past=0):
        self.runtime, self._cache = runtime, None
        self.ids, self.n_past = list(ids), n_past
        self._request = None  # a weak reference to the request that works on it
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

    # ---- its request -------------------------------------------------------------------------------------------------

    def begin(self, ids, request, reuse):
        """Make ``ids`` the sequence, for a request; how many of them the cache spares us to compute.

        Parameters
        ----------
        ids : int32 array (n,)
        request : Request
        reuse : bool
            False: nothing is spared.
        """
        self.end_request()
        self._request = weakref.ref(request)
        held = np.asarray(self.ids[: min(self.n_past, len(ids) - 1)], np.int32)  # the last gives the logits
        differ = np.flatnonzero(held != ids[: len(held)])
        self.n_past = 0 if not reuse else self.cache.rewindable(int(differ[0]) if len(differ) else len(held))
        self.ids = ids.tolist()
        return self.n_past

    def grown(self, request):
        """A step has computed what the request says."""
        if self._request is not None and self._request() is request:
            n = request.at
            if n > len(self.ids):
                self.ids.extend(request.fed(len(self.ids), n))  # a fork, in the midst of a stream, copies what is computed
            self.n_past = n

    def ended(self, request, ids):
        """The request is over: these ids are the sequence, unless another request has begun."""
        if self._request is not None and self._request() is request:
            self.ids, self._request = ids, None

    def end_request(self):
        """Cancel the request that works on the sequence, and wait for its end.

        Raises
        ------
        RuntimeError
            Somebody waits for it.
        """
        request = self._request and self._request()
        if request is not None and not request.ended:
            if request.in_use.locked() or self.runtime.loop.is_mine():  # in another thread, or inside its logits_processor
                raise RuntimeError("the session is busy: a stream or another call of it is computing a token just now")
            request.cancel()
            request.join()
        self._request = None

    # ---- its length --------------------------------------------------------------------------------------------------

    def rewind(self, n):
        """Forget all but the first ``n`` ids."""
        self.end_request()
        self.n_past = self.cache.rewind(min(self.n_past, n))
        self.ids = self.ids[:n]

    def fork(self):
        """A Sequence that starts where this one stands."""
        while True:
            n, ids = self.n_past, list(self.ids)
            if n == self.n_past:  # else a stream went on in between
                if self._request is not None:
                    ids = ids[:n]  # which may have gone on since
                return Sequence(self.runtime, self.cache.copy(n), ids, n)
