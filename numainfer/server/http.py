"""Requests and replies, as ASGI has them."""

import asyncio
import json

from .refusals import Refusal

_DRAIN_SECONDS, _DRAIN_BYTES = 2, 64 << 20  # of a body that is too large: who is still sending does not read a reply


def header(scope, name):
    """The value of a request's header, str or None."""
    found = [value for key, value in scope["headers"] if key == name.encode()]
    return found[-1].decode("latin-1") if found else None


async def read_body(scope, receive, most, seconds):
    """The body of a request.

    Raises
    ------
    Refusal
        It is longer than ``most`` bytes (413), or is not here after so many seconds (408).
    """
    declared = header(scope, "content-length") or ""
    too_long = f"the body of the request is longer than the {most} bytes that this server takes"
    if declared.isdecimal() and int(declared) > most + _DRAIN_BYTES:
        raise Refusal(413, too_long, "body_too_large", headers={"Connection": "close"})
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds) as limit:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part, more = message.get("body", b""), message.get("more_body", False)
                if size <= most < size + len(part):
                    body.clear()
                    limit.reschedule(min(limit.when(), asyncio.get_running_loop().time() + _DRAIN_SECONDS))
                size += len(part)
                if size <= most:
                    body += part
                elif size > most + _DRAIN_BYTES:
                    break
    except TimeoutError:
        if size <= most:
            late = f"the request was not complete after {seconds} s"
            raise Refusal(408, late, "request_timeout", headers={"Connection": "close"}) from None
    if size > most:
        raise Refusal(413, too_long, "body_too_large", headers={"Connection": "close"})
    return bytes(body)


class Gone(Exception):
    """The client has left."""


async def while_connected(receive, work):
    """``await work``, which is cancelled when the client leaves.

    Raises
    ------
    Gone
        It has left.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.wait({task, watcher})
        if not task.cancelled():
            task.exception()  # looked at


async def _left(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


def to_json(value):
    """JSON as bytes. What is no Unicode (a client may have sent half a surrogate pair) becomes an escape of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class Reply:
    """The response to one request.

    Parameters
    ----------
    send : callable
        ASGI's.
    stall : float
        Seconds that the client may leave unread what it was sent.

    Attributes
    ----------
    status : int or None
        None while nothing was sent.
    """

    def __init__(self, send, stall):
        self._send, self._stall, self.status = send, stall, None

    async def whole(self, body, status=200, kind="application/json", headers=None):
        """Send all of it: bytes, or what becomes JSON."""
        body = body if isinstance(body, bytes) else to_json(body)
        await self._start(status, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})})
        await self._put({"type": "http.response.body", "body": body})

    async def refuse(self, refusal):
        """Say why there is no answer; in a stream that has begun, as its last event."""
        if self.status is None:
            await self.whole(refusal.to_dict(), refusal.status, headers=refusal.headers)
        else:
            await self.event(refusal.to_dict())
            await self.end()

    async def event(self, value):
        """Send a server-sent event: what becomes JSON, or bytes."""
        if self.status is None:
            await self._start(200, {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})
        data = value if isinstance(value, bytes) else to_json(value)
        await self._put({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})

    async def comment(self):
        """Send a line that clients skip: proxies see that the stream lives."""
        await self._put({"type": "http.response.body", "body": b": still working\n\n", "more_body": True})

    async def end(self):
        """End a stream of events."""
        await self._put({"type": "http.response.body", "body": b""})

    async def _start(self, status, headers):
        self.status = status
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": raw})

    async def _put(self, message):
        try:
            async with asyncio.timeout(self._stall):
                await self._send(message)
        except TimeoutError:
            raise Gone from None
