"""A server in a thread of the test's process, and clients: plain ones, and sockets that send what they like."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time

from numainfer.server.limits import Limits
from numainfer.server.running import Server, listen


class Served:
    """A running server.

    Attributes
    ----------
    model : Model
    port : int
    url : str
        Base of OpenAI's paths.
    server : Server
    """

    def __init__(self, model, port, server):
        self.model, self.port, self.server, self.url = model, port, server, f"http://127.0.0.1:{port}/v1"

    def ask(self, path, body=None, *, method=None, headers=None):
        """(status, headers, JSON or text) of one request; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            kind = {} if raw is None else {"Content-Type": "application/json"}
            connection.request(method or ("GET" if raw is None else "POST"), path, raw, kind | (headers or {}))
            reply = connection.getresponse()
            text = reply.read().decode()
            whole = json.loads(text) if reply.headers.get_content_type() == "application/json" else text
            return reply.status, dict(reply.headers), whole

    def refused(self, path, body, **more):
        """(status, message, code) of a request that gets an error, in OpenAI's form."""
        status, _, reply = self.ask(path, body, **more)
        error = reply["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"] and error["type"].endswith("_error"), reply
        return status, error["message"], error["code"]

    def connect(self):
        """A socket."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def metric(self, name):
        """A number of /metrics, labels and all in its name."""
        lines = self.ask("/metrics")[2].splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def idle(self, seconds=5):
        """Whether no answer is in the making, at the latest after so many seconds."""
        return eventually(lambda: not self.server.service.answers, seconds)


@contextlib.contextmanager
def serving(model, *, names=("tiny",), api_key=None, origins=(), **limits):
    """A `Served`, for one block; it ends within seconds."""
    listening = listen("127.0.0.1", 0)
    server = Server(model, listening, names, Limits(**{"grace": 0} | limits), api_key, origins)
    port, thread = listening.getsockname()[1], threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        assert server.wait_ready(20)
        yield Served(model, port, server)
    finally:
        server.end()
        thread.join(20)
        assert not thread.is_alive()


def eventually(condition, seconds=5):
    """Whether a condition comes true, at the latest after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def chat_request(text="hi", **more):
    """The body of a request for a greedy answer."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0} | more


def raw_post(path, body, length=None, headers=""):
    """Bytes of a POST."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def events(text):
    """What the events of a stream hold: JSON, and "[DONE]" at the end."""
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [e if e == "[DONE]" else json.loads(e) for e in found]


def open_files():
    """Number of this process's file descriptors."""
    return len(os.listdir("/proc/self/fd"))
