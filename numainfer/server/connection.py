"""Connections: Uvicorn's, but a client has only so long for what it owes us before anybody works on its request."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """One connection.

    Uvicorn waits for ever for the rest of a request's head, and of a body whose request was answered before it was there. A body that
    somebody reads has a limit there (`http.read_body`), and connections without a request have Uvicorn's own.

    Parameters
    ----------
    seconds : float
        From its first byte, or from the beginning of the connection, to the end of a head.
    **options
        Of Uvicorn's.
    """

    def __init__(self, seconds, **options):
        super().__init__(**options)
        self._seconds, self._owed = seconds, None

    def connection_made(self, transport):
        super().connection_made(transport)
        self._look()

    def data_received(self, data):
        super().data_received(data)
        self._look()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        self._forget()

    def _look(self):
        """Begin to wait, or go on, while something is owed; else no more."""
        if self.conn.their_state is h11.IDLE or self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            if self._owed is None:
                self._owed = self.loop.call_later(self._seconds, self.timeout_keep_alive_handler)
        else:
            self._forget()

    def _forget(self):
        if self._owed is not None:
            self._owed.cancel()
            self._owed = None
