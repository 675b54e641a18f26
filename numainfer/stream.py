"""TokenStream: one answer, piece by piece."""

import dataclasses
import time
from collections.abc import Iterator
from typing import NoReturn

from .results import Chunk, Completion
from .serving.answer import AHEAD, Answer
from .summary import counted

_REDRAW = 0.05  # seconds between two updates of what a notebook shows


class TokenStream(Iterator[Chunk]):
    """An iterator of `Chunk`; each ``next`` waits for new text, and gives all that there is.

    The answer begins with the first ``next``, and is computed at most 16 tokens ahead of them. ``cancel`` may be called from any thread.
    Leaving a ``with`` block, or dropping the stream, cancels it too. Ctrl-C raises KeyboardInterrupt from ``next``; the stream is then
    cancelled, and ``result`` has what came before.
    Made by ``Model.stream``, ``Session.stream`` and ``chat(..., stream=True)``.
    """

    def __init__(self, runtime, ids, params, *, sequence=None, reader=None):
        self._request = Answer(runtime, ids, params, sequence=sequence, reader=reader, ahead=AHEAD)
        self._runtime, self._began, self._over = runtime, False, False

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> Chunk:
        if not self._request.in_use.acquire(blocking=False):
            raise RuntimeError("this stream is already being iterated, in another thread or further up the stack")
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException:
            self._over = True
            self._request.cancel()
            self._request.join()
            raise
        finally:
            self._request.in_use.release()

    def _next(self):
        request = self._request
        if self._over:
            raise StopIteration
        if not self._began and not request.cancelled:
            self._began = True
            self._runtime.submit(request)
        while True:
            ended = request.ended  # before the look: what comes between the two is found at the next
            chunk = request.take()
            if ended and request.error is not None:
                if chunk is None or not (chunk.text or chunk.reasoning or chunk.tool_calls):
                    raise request.error
                return dataclasses.replace(chunk, finish_reason=None)
            if chunk is not None:
                return chunk
            if ended:
                raise StopIteration
            self._runtime.check()
            request.wait()

    def cancel(self) -> None:
        """End the answer, within 50 ms even while a step runs. A finished one stays as it is."""
        self._request.cancel()
        self._request.join()

    close = cancel

    def result(self) -> Completion:
        """What there is so far.

        Returns
        -------
        Completion
            Its ``finish_reason`` is None while the stream has not ended.
        """
        return self._request.completion()

    def finish(self) -> Completion:
        """Compute the rest without looking at the pieces.

        Returns
        -------
        Completion
        """
        with self:
            self._request.read_all()
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
    def cancelled(self) -> bool:
        """Whether someone asked for an early end."""
        return self._request.cancelled

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a TokenStream can be neither pickled nor copied: it is a computation under way. result() is what there is so far")

    def __enter__(self) -> "TokenStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self):
        if hasattr(self, "_over"):  # else the constructor raised
            self._request.drop()

    def __repr__(self) -> str:
        done = self.result()
        return f"<TokenStream, {counted(len(done.token_ids), 'token')}, {done.finish_reason or 'unfinished'}>"
