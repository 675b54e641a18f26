# Who may run a step of a model now.  In C, for Ctrl-C may raise between any two bytecodes of Python: between taking something and
# the ``try`` that would give it back, or in the midst of a Condition's own ``__enter__``.  Here signals are looked at in one place,
# where a thread waits.

cdef double _LOOK = 0.02  # seconds between two looks at whether waiting still makes sense


cdef class Turns:
    """The lock around steps: of all lanes (``with turns.of():``), or of one node's lane (``with turns.of(lane):``).

    Lanes of different nodes may be held at the same time; all lanes together exclude everything else, for their workers
    sit on the same CPUs. First come, first served, so that a loop of steps in one thread does not keep others waiting.

    A thread that holds a turn gets no other: it would wait for ever (a signal handler can come to that), so it raises.
    """
    cdef dict _holders  # lane, or None for all of them: thread
    cdef list _waiting  # in order of arrival

    def __init__(self):
        self._holders, self._waiting = {}, []

    @property
    def holders(self):
        """Lanes that are held; None for all of them."""
        return list(self._holders)

    @property
    def n_waiting(self):
        return len(self._waiting)

    def check(self):
        """Raise RuntimeError in a thread that holds a turn."""
        if get_ident() in self._holders.values():
            raise RuntimeError("this thread is in the midst of a step of the model: a signal handler can neither use nor close it "
                               "(TokenStream.cancel is fine)")

    def of(self, lane=None, look=None):
        """A turn of one lane, or of all, for one ``with``.

        Parameters
        ----------
        lane : Lane or None
        look : callable, or None
            Asked every 20 ms; once it says True, waiting ends with Cancelled.
        """
        return _Turn(self, lane, look)


@cython.no_gc_clear
cdef class _Turn:
    cdef Turns turns
    cdef object lane, look, thread, wake
    cdef bint held

    def __init__(self, Turns turns, lane, look):
        self.turns, self.lane, self.look, self.thread = turns, lane, look, get_ident()

    cdef bint excludes(self, lane):
        return self.lane is None or lane is None or lane is self.lane

    cdef bint is_next(self):
        cdef _Turn other
        for lane in self.turns._holders:
            if self.excludes(lane):
                return False
        for other in self.turns._waiting:
            if other is self:
                return True
            # An older one of the same thread waits further down the stack, below a signal handler: it does not count.
            if self.excludes(other.lane) and other.thread != self.thread:
                return False
        return True

    cdef wake_others(self):
        cdef _Turn other
        for other in list(self.turns._waiting):
            if other.wake.locked():
                other.wake.release()

    def __enter__(self):
        self.turns.check()
        if not self.turns._waiting and self.is_next():
            self.turns._holders[self.lane], self.held = self.thread, True
            return
        self.wake = allocate_lock()
        self.wake.acquire()
        self.turns._waiting.append(self)
        try:
            while not self.is_next():
                self.wake.acquire(True, -1 if self.look is None else _LOOK)  # signal handlers run here and may raise
                if self.look is not None and self.look():
                    raise Cancelled("the step was cancelled while it waited for its turn")
            self.turns._holders[self.lane], self.held = self.thread, True
        finally:
            self.turns._waiting.remove(self)
            if not self.held:
                self.wake_others()

    def __exit__(self, *_):
        self.leave()

    def __dealloc__(self):
        self.leave()  # Ctrl-C right behind __enter__, where Python looks for it there

    cdef leave(self):
        if self.held:
            self.held = False
            del self.turns._holders[self.lane]
            self.wake_others()
