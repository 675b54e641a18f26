"""Objects that live in a process of their own.

Two engines in one process disturb each other: OpenMP pools spin, BLAS pools wake, pinning is inherited. So each one
that is measured gets a child process, and the parent only talks to it through a pipe.
"""

import importlib
import os
import pickle
import struct
import subprocess
import sys
import traceback
from pathlib import Path

_HERE = Path(__file__).resolve().parent


class WorkerError(RuntimeError):
    """What failed in the child, with the child's traceback."""


class Worker:
    """A proxy of ``target(*args, **kwargs)`` in a child process; its methods are called by name.

    Parameters
    ----------
    target : str
        "module:Class", the module being importable from this folder.
    env : dict of str, optional
        Environment variables of the child, on top of ours.
    root : path-like, optional
        Another checkout of this project, built in place: the child runs there.
    python : path-like, optional
        The interpreter of another environment, which has NumPy and what the target needs.

    Notes
    -----
    Arguments and results are pickled. What the child's libraries print goes nowhere.
    """

    def __init__(self, target, *args, env=None, root=None, python=None, **kwargs):
        script = Path(root, "bench", "worker.py") if root else __file__
        self._child = subprocess.Popen(
            [python or sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}
        )
        self._target = target
        try:
            self.call("__init__", target, args, kwargs)
        except BaseException:
            self.close()
            raise

    def call(self, method, *args, **kwargs):
        """Run a method in the child and return its result; WorkerError carries what it raised."""
        try:
            _send(self._child.stdin, (method, args, kwargs))
            ok, result = _receive(self._child.stdout)
        except (BrokenPipeError, EOFError) as error:
            code = self._child.wait()
            raise WorkerError(f"{self._target}.{method}: the worker process died with exit code {code}") from error
        if not ok:
            raise WorkerError(f"{self._target}.{method} failed in the worker process:\n{result}")
        return result

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.call(name, *args, **kwargs)

    def cpu_seconds(self):
        """Processor time that the child has used so far, all its threads."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        """End the child and wait for it."""
        self._child.stdin.close()
        try:
            self._child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _send(pipe, message):
    data = pickle.dumps(message, protocol=5)
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe):
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError("pipe closed")
    return pickle.loads(pipe.read(struct.unpack("<Q", head)[0]))


def _serve():
    """Child: answer calls until standard input ends. Files 1 and 2 go to the null device, native code included."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.path[:0] = [str(_HERE), str(_HERE.parent)]
    thing = None
    while True:
        try:
            method, args, kwargs = _receive(inbox)
        except EOFError:
            return
        try:
            if method == "__init__":
                module, _, name = args[0].partition(":")
                thing, result = getattr(importlib.import_module(module), name)(*args[1], **args[2]), None
            else:
                result = getattr(thing, method)(*args, **kwargs)
            reply = (True, result)
        except Exception:  # noqa: BLE001  whatever it was, the parent must hear of it
            reply = (False, traceback.format_exc())
        _send(outbox, reply)


if __name__ == "__main__":
    _serve()
