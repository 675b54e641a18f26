"""TokenStream: one answer, computed while it is iterated."""

import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from ._core import Cancelled
from .serving.generation import Clock, Generation
from .results import Chunk, Completion
from .summary import counted

_REDRAW = 0.05  # seconds between two updates of what a notebook shows


class TokenStream(Iterator[Chunk]):
    """An iterator of `Chunk`; each ``next`` computes as many tokens as it takes to have new text.

    ``cancel`` may be called from any thread. Leaving a ``with`` block, or dropping the stream, cancels it too. Ctrl-C
    raises KeyboardInterrupt from ``next``; the stream is then cancelled, and ``result`` has what came before.
    Made by ``Model.stream``, ``Session.stream`` and ``chat(..., stream=True)``.
    """

    def __init__(self, sequence, ids, params, *, owns_sequence=False, reuse=True, reader=None):
        runtime = sequence.runtime
        room = runtime.n_ctx - len(ids) + 1  # the last token needs no place: it is never fed back
        self._generation = Generation(runtime.tokenizer, runtime.n_vocab, ids, params, room, reader)
        self._sequence, self._owns_sequence, self._runtime = sequence, owns_sequence, runtime
        self._ids, self._clock = ids, Clock()
        self._started = self._cancelled = False
        self._last = None  # a last chunk that nobody has seen yet
        self._running = threading.Lock()
        self._cached_tokens = sequence.begin(ids, self, reuse)
        self._turn = sequence.turn

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> Chunk:
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this stream is already being iterated, in another thread or further up the stack")
        try:
            return self._next()
        finally:
            self._running.release()

    def _next(self):
        if self._generation.finish_reason is not None:
            chunk, self._last = self._last, None
            if chunk is None:
                raise StopIteration
            return chunk
        try:
            chunk = None
            while chunk is None:
                chunk = self._end() if self._cancelled else self._step()
        except Cancelled:
            return self._end()
        except BaseException:
            self._end()
            raise
        if chunk.finish_reason is not None:
            self._release()
        return chunk

    def _step(self):
        """One more token; its Chunk, or None while there is no new text."""
        clock, start = self._clock, time.perf_counter()
        if self._started:
            logits = self._sequence.feed(self._generation.token_ids[-1], self)
            chunk = self._generation.choose(logits)
            clock.generation += time.perf_counter() - start
            return chunk
        for logits in self._sequence.prefill(self._ids, self._cached_tokens, self):
            clock.prompt = time.perf_counter() - start
            clock.prompt_tokens = self._sequence.n_past - self._cached_tokens
        self._started = True
        chunk = self._generation.choose(logits)
        clock.first_token = time.perf_counter() - start
        return chunk

    def _end(self):
        """Cancel what is not finished; the last chunk."""
        chunk = self._generation.cancel()
        self._release()
        return chunk

    def _release(self):
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            sequence.ended(self._turn, len(self._ids), self._generation.token_ids)
            if self._owns_sequence:
                sequence.close()

    def cancel(self) -> None:
        """End the answer, within 50 ms even while a step runs in another thread. A finished one stays as it is."""
        self._cancelled = True
        if self._running.acquire(blocking=False):
            try:
                if self._generation.finish_reason is None:
                    self._last = self._end()
            finally:
                self._running.release()
        else:
            self._runtime.cancel(self)

    close = cancel

    def result(self) -> Completion:
        """What there is so far.

        Returns
        -------
        Completion
            Its ``finish_reason`` is None while the stream has not ended.
        """
        return self._generation.completion(self._clock, self._cached_tokens)

    def finish(self) -> Completion:
        """Compute the rest without looking at the pieces.

        Returns
        -------
        Completion
        """
        with self:
            for _ in self:
                pass
        return self.result()

    def display(self) -> None:
        """Compute the rest and show the answer while it comes: in a notebook as Markdown, in place; elsewhere it is printed.

        ``result()`` has it afterwards; interrupting the cell leaves what came so far there, and on the screen.
        """
        from . import looks

        with self:
            if not looks.in_notebook():
                for chunk in self:
                    print(chunk, end="", flush=True)
                print()
                return
            from IPython.display import Markdown, display

            handle, shown = display(Markdown(""), display_id=True), 0.0
            try:
                for _ in self:
                    if time.monotonic() - shown >= _REDRAW:
                        handle.update(self)
                        shown = time.monotonic()
            finally:
                self.cancel()  # unless it has ended: so that what stays says how it did
                handle.update(self)

    def _repr_markdown_(self) -> str:
        return self.result()._repr_markdown_()

    @property
    def running(self) -> bool:
        """Whether a ``next`` is under way just now."""
        return self._running.locked()

    @property
    def cancelled(self) -> bool:
        """Whether someone asked for an early end."""
        return self._cancelled

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a TokenStream can be neither pickled nor copied: it is a computation under way. result() is what there is so far")

    def __enter__(self) -> "TokenStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self):
        if hasattr(self, "_turn"):  # else the constructor raised
            self._release()

    def __repr__(self) -> str:
        n, reason = len(self._generation.token_ids), self._generation.finish_reason
        return f"<TokenStream, {counted(n, 'token')}, {reason or 'unfinished'}>"
