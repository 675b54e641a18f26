"""The server's process: a socket, Uvicorn over it, signals."""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import threading

import uvicorn

from .app import application
from .connection import Connection
from .limits import Limits
from .service import Service

log = logging.getLogger("numainfer")

_KEEP_ALIVE = 30  # seconds that a connection may stay without a request
_MOST_HEADERS = 64 << 10


def listen(host, port):
    """A socket bound to an address: what is wrong with it shows before a model is loaded.

    Parameters
    ----------
    host : str
        A name or an address, IPv4 or IPv6.
    port : int
        0: a free one.

    Raises
    ------
    OSError
        The message names host and port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
        return found  # nobody can connect before the server listens
    except OSError as e:
        raise OSError(f"cannot listen on {host} port {port}: {e.strerror or e}") from None


def url_of(listening):
    """The URL of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Uvicorn(uvicorn.Server):
    def capture_signals(self):
        return contextlib.nullcontext()  # Server has its own way with them


class Server:
    """A model behind a socket.

    Parameters
    ----------
    model : Model
    listening : socket
        As `listen` gives it; closed at the end.
    names : list of str
        What clients may call the model.
    limits : Limits, optional
    api_key : str or None
    origins : sequence of str
        Of web pages that may use the server.
    """

    def __init__(self, model, listening, names, limits=None, api_key=None, origins=()):
        self._model, self._socket, self._names, self._limits = model, listening, names, limits or Limits()
        self._api_key, self._origins = api_key, origins
        self._loop = self._uvicorn = self._service = None
        self._ready, self._end_asked = threading.Event(), False

    def run(self):
        """Serve until SIGTERM, SIGINT (where this is the main thread) or `end`; then answers may go on for the limits' grace."""
        asyncio.run(self._serve())

    def end(self):
        """End it, from any thread; `run` returns when the answers in the making have ended."""
        self._end_asked = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._end)

    def wait_ready(self, seconds):
        """Wait until it takes requests; whether it does."""
        return self._ready.wait(seconds)

    @property
    def service(self):
        """What it serves, once it is ready."""
        return self._service

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._service = Service(self._model, self._names, self._limits, self._api_key)
        config = uvicorn.Config(application(self._service, self._origins), loop="asyncio", ws="none", lifespan="off",
                                http=functools.partial(Connection, self._limits.stall), log_config=None, log_level="critical",
                                access_log=False, server_header=False, timeout_keep_alive=_KEEP_ALIVE,
                                h11_max_incomplete_event_size=_MOST_HEADERS, timeout_graceful_shutdown=self._limits.grace + 5)  # fmt: skip
        self._uvicorn = _Uvicorn(config)
        handled = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        for number in handled:
            self._loop.add_signal_handler(number, self._signalled)
        try:
            if self._end_asked:
                self._end()
            self._loop.call_soon(self._ready.set)
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            for number in handled:
                self._loop.remove_signal_handler(number)

    def _signalled(self):
        if self._service.ending:  # again: nobody wants to wait any more
            self._service.cut()
        self._end()

    def _end(self):
        self._service.end()
        self._uvicorn.should_exit = True
