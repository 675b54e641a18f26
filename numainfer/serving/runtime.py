"""Runtime: a loaded model as those see it who run its steps."""

import os
import weakref
from typing import NoReturn

from .._core import Cancelled, Turns
from ..errors import ForkedProcess, ModelClosed
from .loop import Loop
from .prefix import Prefixes


_living = weakref.WeakValueDictionary()  # every Runtime, by its id


def free_prefixes():
    """Let all models of this process forget what they remember of sequences; bytes that are free by that."""
    others = [ref() for ref in _living.valuerefs()]
    return sum(other.prefixes.reclaim() for other in others if other is not None and not other.forked)


class Runtime:
    """What computes steps, whose turn it is, and whether the model can still be used.

    Sessions, streams, lists and benchmarks hold it; so does Model, which is a face over it. The last of them to go closes it.

    Parameters
    ----------
    engine : Engine
    tokenizer : Tokenizer
    name : str
        What errors call the model.
    chat_sampling : dict
        Sampling that the file recommends, fields of SamplingParams: for `chat` where the caller says nothing.

    Attributes
    ----------
    tokenizer : Tokenizer
    name : str
    chat_sampling : dict
    n_ctx, n_batch : int
        Most tokens of a sequence, and of a step.
    n_vocab, n_embd : int
        Width of a row of logits, and of a hidden state.
    step_seconds : dict or None
        What a step takes in each mode; the loop measures it once.
    loop : Loop
        Of all requests.
    prefixes : Prefixes
        What is remembered of sequences.
    """

    def __init__(self, engine, tokenizer, name, chat_sampling=None):
        self._pid, self._closing = os.getpid(), False
        self._users = weakref.WeakSet()  # closed with the model
        self._turns = Turns()  # around each step
        self.step_seconds = None
        self.tokenizer, self.name, self.chat_sampling = tokenizer, name, chat_sampling or {}
        self.n_ctx, self.n_batch, self.n_vocab, self.n_embd = engine.n_ctx, engine.n_batch, engine.n_vocab, engine.n_embd
        self.loop, self.prefixes = Loop(self), engine.caches.kept or Prefixes(engine.caches, 0)
        self._engine = engine  # what Ctrl-C leaves half made before has nothing to close
        self._let_others_rest()

    # ---- may it be used? ---------------------------------------------------------------------------------------------

    @property
    def engine(self):
        """The engine, if it can be used here and now.

        Raises
        ------
        ModelClosed, ForkedProcess
        """
        self.check_process()
        engine = self._engine
        if engine is None:
            raise ModelClosed(f"the model {self.name} was closed")
        return engine

    def check(self):
        """Raise ModelClosed or ForkedProcess if the model cannot be used here and now."""
        _ = self.engine

    def check_process(self):
        """Raise ForkedProcess in a fork of the process that loaded the model."""
        if self.forked:
            raise ForkedProcess(
                f"the model {self.name} was loaded in process {self._pid}; this one, {os.getpid()}, is a fork of it "
                "and has none of its threads. Load the model after the fork, or start processes with the 'spawn' method"
            )

    @property
    def forked(self):
        """Whether this process is a fork of the one that loaded the model."""
        return os.getpid() != self._pid

    @property
    def closed(self):
        return self._engine is None

    # ---- loaded again ------------------------------------------------------------------------------------------------

    def _let_others_rest(self):
        """Idle models that share this one's weights keep no threads: a notebook holds one for every time that its cell was run."""
        for ref in _living.valuerefs():
            other = ref()
            if other is not None and other.shares_weights(self._engine):
                other.rest()
        _living[id(self)] = self

    def shares_weights(self, engine):
        """Whether this model's weights are also an engine's."""
        own = self._engine
        return own is not None and own.replicas is engine.replicas

    def rest(self):
        """End threads and free what is only for steps, which the next one takes a few milliseconds to make again; but not while there is
        something to compute."""
        if self.forked or self._turns.holders or self._turns.n_waiting:
            return
        with self._turns.of():
            if self._engine is not None and not self.loop.busy:
                self._engine.rest()

    # ---- steps -------------------------------------------------------------------------------------------------------

    def submit(self, *requests):
        """Have requests computed by the loop, in this order.

        Raises
        ------
        ModelClosed, ForkedProcess
        RuntimeError
            This thread is in the midst of a step of its own, which the loop would wait for.
        """
        self.check()
        self._turns.check()
        self.loop.submit(requests)

    def turn(self, lane=None, look=None):
        """The right to use the workers of one lane, or of all (None), for one ``with``: see `Turns.of`."""
        return self._turns.of(lane, look)

    def run(self, lane, segments, rows, *, hidden=False, look=None, out=None):
        """``Lane.step`` of one node's lane, or of all nodes (None), for who has its turn.

        Parameters
        ----------
        segments, rows, hidden, out :
            As for `Lane.step`.
        look : callable, optional
            Asked every 10 ms; once it says True the step is cancelled.

        Raises
        ------
        Cancelled
        ModelClosed, ForkedProcess
        """
        engine = self.engine  # which may have been closed while the turn was waited for
        lane = lane or engine.lane
        try:
            return lane.step(segments, rows, hidden=hidden, out=out,
                             stop=lambda: self._closing or look is not None and look())
        except Cancelled:
            if self._closing:
                raise ModelClosed(f"the model {self.name} was closed while a step ran") from None
            raise

    def draft(self, lane, segments, before, look=None):
        """``Lane.draft``, as `run` does ``Lane.step``."""
        lane = lane or self.engine.lane
        try:
            return lane.draft(segments, before, stop=lambda: self._closing or look is not None and look())
        except Cancelled:
            if self._closing:
                raise ModelClosed(f"the model {self.name} was closed while a step ran") from None
            raise

    def step(self, segments, rows, *, hidden=False, lane=None):
        """`run`, when its turn has come: for measurements, in the calling thread and beside the loop."""
        self.check()
        with self._turns.of(lane):
            return self.run(lane, segments, rows, hidden=hidden)

    def new_cache(self):
        """A KV cache for one sequence."""
        return self.engine.new_kv()

    def copy_cache(self, cache, n):
        """A cache that begins with the first ``n`` positions of another."""
        self.check()
        return cache.copy(n)

    def node_lanes(self):
        """A lane per node, ready to run."""
        with self._turns.of():  # teams and plans are made once, and not by two threads
            lanes = self.engine.node_lanes()
            for lane in lanes:
                lane.core_plan()
        return lanes

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"the model {self.name} can be neither pickled nor copied: its weights and threads are this process's. Load it in the other "
            "process; a second load in this one shares the weights"
        )

    # ---- the end -----------------------------------------------------------------------------------------------------

    def attach(self, user):
        """Let ``user.close()`` be called when the model is closed; it is not kept alive by that."""
        self._users.add(user)

    def close(self):
        """Free weights, caches and threads; who still holds the runtime gets ModelClosed from then on."""
        if self._engine is None:
            return
        if self.forked:  # the threads are not here, and who holds the lock may not be either
            engine, self._engine = self._engine, None
        else:
            self._turns.check()
            self._closing = True
            if self._turns.holders:
                self._engine.cancel()
            with self._turns.of():
                engine, self._engine = self._engine, None
        for user in list(self._users):
            user.close()
        if engine is not None:
            for cache in list(engine.caches.alive):  # those of requests
                cache.close()
            engine.close()
        if not self.forked:
            self.loop.wake_all()

    def __del__(self):
        if getattr(self, "_engine", None) is not None:
            self.close()
