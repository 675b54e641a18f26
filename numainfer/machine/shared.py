"""Models that stay in shared memory: a folder per user, in it a folder per model, which is complete or not there.

``/dev/shm/numainfer-keep-UID`` (mode 0700) holds, for a model kept as NAME, the folder ``NAME`` with a file for each node's copy
(mode 0600) and ``about.json``. While it is filled the folder is called ``NAME.filling``; renaming it is the last thing that is done.
Whoever fills, attaches or drops holds a lock (flock(2)) on ``NAME.lock``, which goes with its process, however that ends: a
``NAME.filling`` whose lock is free is what a dead process left, and is removed. Users need no lock: memory that is dropped lives until
the last one has gone.
"""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from . import pages
from ..errors import KeepError, OutOfNodeMemory
from ..summary import short_bytes

SHM = "/dev/shm"
ABOUT = "about.json"
_FILLING, _LOCK = ".filling", ".lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WAIT = 0.02  # seconds between two looks at a lock
_PATIENCE = 1.0  # seconds until that is worth a word
_THP = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

log = logging.getLogger("numainfer")
_held = {}  # descriptors of locks that this process holds: (folder's path and name, thread)


def _after_fork():
    """A lock is its file's description's, which the child shares: it would hold it for its parent."""
    for fd in list(_held):
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)


def check_name(value):
    """The name, if it is one; else TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"keep: found {type(value).__name__}, wanted a name (a str), such as 'llama'")
    if not _NAME.fullmatch(value) or value.endswith((_FILLING, _LOCK)):
        raise ValueError(f"keep = {value!r}: wanted a name of 1 to 64 letters, digits, '.', '_' and '-' that begins with a letter or a "
                         f"digit and ends neither in {_FILLING} nor in {_LOCK}")  # fmt: skip
    return value


def path():
    """Of the user's folder."""
    return f"{SHM}/numainfer-keep-{os.geteuid()}"


def mount():
    """(type, options) of the file system at `SHM`."""
    best, real = ("", "none", ""), os.path.realpath(SHM)
    for line in pages.read("/proc/self/mountinfo").splitlines():
        words = line.split()
        if "-" in words[6:]:
            point, (kind, _, options) = words[4], (words[words.index("-", 6) + 1 :] + ["", "", ""])[:3]
            if os.path.commonpath((real, point)) == point and len(point) >= len(best[0]):
                best = point, kind, options
    return best[1:]


def huge_story():
    """Why shared memory may have no huge pages, and how to have them."""
    chosen = re.search(r"\[(\w+)\]", pages.read(_THP))
    option = re.search(r"huge=\w+", mount()[1])
    cure = f"echo advise > {_THP}" if chosen and chosen[1] == "deny" else f"mount -o remount,huge=advise {SHM}"
    return (f"shmem_enabled is {chosen[1] if chosen else 'missing'}, {SHM} has {option[0] if option else 'huge=never'}; "
            f"to have huge pages: {cure}")  # fmt: skip


def room():
    """Bytes that the file system at `SHM` has left; None if it has no limit of its own."""
    found = os.statvfs(SHM)
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def check_room(name, n_bytes):
    """Raise OutOfNodeMemory if there is no room for so many bytes."""
    free = room()
    if free is not None and free < n_bytes:
        raise OutOfNodeMemory(f"keep = {name!r}: {SHM} has {short_bytes(free)} free ({free} bytes), need {short_bytes(n_bytes)} ({n_bytes} "
                              f"bytes); drop what is kept there (numainfer keep --list), or enlarge it: mount -o remount,size=SIZE {SHM}, "
                              "in a container docker run --shm-size SIZE")  # fmt: skip


def _open_own(folder, name, folder_fd, kind=0):
    """Descriptor of a file, or with O_DIRECTORY of a folder, that is this user's alone; else KeepError, or FileNotFoundError."""
    what, mode, is_kind = f"{folder}/{name}", 0o700 if kind else 0o600, stat.S_ISDIR if kind else stat.S_ISREG
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | kind
    try:
        fd = os.open(what if folder_fd is None else name, flags, dir_fd=folder_fd)
    except FileNotFoundError:
        raise
    except OSError as e:  # a symbolic link, for one
        raise KeepError(f"{what} cannot be opened: {e.strerror}; it is not what numainfer made: remove it") from e
    status = os.fstat(fd)
    if not is_kind(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != mode:
        os.close(fd)
        raise KeepError(f"{what} is {stat.filemode(status.st_mode)} of user {status.st_uid}, wanted {mode:04o} of user {os.geteuid()}: "
                        "it is not used, for somebody else could read or write it; remove it")  # fmt: skip
    return fd


@dataclass(frozen=True)
class Kept:
    """A model that is kept: its name, and what its ``about.json`` says."""

    name: str
    about: dict

    @property
    def paths(self):
        """The model's files, without symbolic links."""
        return [file[0] for file in self.about["files"]]

    @property
    def n_bytes(self):
        return sum(self.about["sizes"])

    def users(self):
        """Numbers of this user's processes that have it in their memory; those of other containers are not seen."""
        found, inside = [], f"{path()}/{self.name}/"
        for process in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                own = Path("/proc", process)
                if own.stat().st_uid == os.geteuid() and inside in own.joinpath("maps").read_text(errors="replace"):
                    found.append(int(process))
        return sorted(found)

    def to_dict(self):
        """What a script wants to know."""
        about = self.about
        return {"name": self.name, "model": about["model"], "paths": self.paths, "placement": about["policy"],
                "nodes": about["labels"], "n_bytes": about["sizes"], "huge": about["huge"], "verified": about["verified"],
                "when": about["when"], "users": self.users()}  # fmt: skip

    @property
    def where(self):
        """``"shard on nodes 0,1"``."""
        labels = self.about["labels"]
        return f"{self.about['policy']} on {'node' if len(labels) == 1 else 'nodes'} {','.join(map(str, labels))}"

    def row(self):
        """(name, model, bytes of each copy, placement, when, users) as text."""
        each, users = " + ".join(map(short_bytes, self.about["sizes"])), ",".join(map(str, self.users()))
        return self.name, self.about["model"], each, self.where, self.about["when"], users or "nobody"

    def describe(self):
        """A line."""
        return f"as {self.name!r}, {short_bytes(self.n_bytes)}, {self.where}, since {self.about['when']}"


class Folder:
    """The user's folder, open; to be used in a ``with``.

    Parameters
    ----------
    create : bool
        Make it if it is not there; else `fd` is None then, and nothing is kept.

    Raises
    ------
    KeepError
        There is no shared memory, it is not in memory, or the folder is not this user's alone.
    """

    def __init__(self, create=False):
        self.fd = None
        if not os.path.isdir(SHM):
            raise KeepError(f"there is no {SHM}: nothing can be kept; mount it: mount -t tmpfs tmpfs {SHM}")
        if create and mount()[0] not in ("tmpfs", "none"):  # none: /proc is hidden
            raise KeepError(f"{SHM} is of type {mount()[0]}, wanted tmpfs: what is kept must lie in memory; mount -t tmpfs tmpfs {SHM}")
        if create:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path(), 0o700)
            except OSError as e:
                raise KeepError(f"{path()} cannot be made: {e.strerror}") from e
        with contextlib.suppress(FileNotFoundError):
            self.fd = _open_own(*os.path.split(path()), None, os.O_DIRECTORY)

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- looking ---------------------------------------------------------------------------------

    def read(self, name):
        """What is kept under a name: Kept, or None; a record that cannot be understood is of no version that we know."""
        try:
            inside = self._open(name)
        except FileNotFoundError:
            return None
        try:
            with open(_open_own(f"{path()}/{name}", ABOUT, inside)) as file:
                return Kept(name, json.load(file))
        except (FileNotFoundError, ValueError):
            return Kept(name, {"version": None, "files": [], "sizes": [], "model": "unknown", "policy": "unknown", "labels": [], "huge": [],
                               "verified": [], "when": "unknown"})  # fmt: skip
        finally:
            os.close(inside)

    def listing(self):
        """All that is kept, by name; what dead processes left is removed."""
        if self.fd is None:
            return []
        self.sweep()
        names = sorted(n for n in os.listdir(self.fd) if not n.endswith((_FILLING, _LOCK)))
        return [kept for kept in map(self.read, names) if kept]

    def open_copies(self, name, sizes):
        """Descriptors of the files of a kept model, one for each copy, of such sizes."""
        inside, fds = self._open(name), []
        try:
            for i, size in enumerate(sizes):
                fds.append(_open_own(f"{path()}/{name}", f"copy-{i}", inside))
                status, what = os.fstat(fds[-1]), f"{path()}/{name}/copy-{i}"
                if status.st_size != size or status.st_blocks * 512 < size:  # whoever read there would get SIGBUS, or zeros
                    raise KeepError(f"{what} has {status.st_size} bytes, {status.st_blocks * 512} of them in memory, wanted {size}: "
                                    f"somebody cut it; numainfer keep --drop {name}")  # fmt: skip
            return fds
        except BaseException:
            close_all(fds)
            raise
        finally:
            os.close(inside)

    def _open(self, name):
        return _open_own(path(), name, self.fd, os.O_DIRECTORY)

    # ---- changing --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, name, wait=True):
        """For one ``with`` in which nobody else fills, attaches to or drops the name; a process that died holds nothing.

        Raises BlockingIOError where somebody does and `wait` is False, RuntimeError where this thread does.
        """
        key, tell = (path(), name), time.monotonic() + _PATIENCE
        if (key, threading.get_ident()) in _held.values():
            raise RuntimeError("this thread is in the midst of loading the same kept model: neither the progress callback nor a signal "
                               "handler can load it too")  # fmt: skip
        while True:
            fd = os.open(name + _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
            _held[fd] = None  # of nobody yet, but a forked child closes it
            try:
                while not _try_lock(fd):
                    if not wait:
                        raise BlockingIOError(errno.EAGAIN, f"{name} is being filled or attached to by process {_owner(fd)}")
                    if time.monotonic() > tell:
                        log.warning("keep = %r: waiting for process %s, which fills it", name, _owner(fd))
                        tell = math.inf
                    time.sleep(_WAIT)
                if self._is_lock(fd, name):  # else who had it took it away
                    _held[fd] = key, threading.get_ident()
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, str(os.getpid()).encode(), 0)
                    try:
                        yield
                    finally:
                        if fd in _held:
                            os.ftruncate(fd, 0)
                            if not self._there(name):
                                os.unlink(name + _LOCK, dir_fd=self.fd)
                    return
            finally:
                if fd in _held:
                    del _held[fd]
                    os.close(fd)

    def _is_lock(self, fd, name):
        try:
            return os.path.samestat(os.stat(name + _LOCK, dir_fd=self.fd), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _there(self, name):
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def sweep(self):
        """Remove what processes left that died while they filled."""
        entries = os.listdir(self.fd)
        for name in sorted({entry.removesuffix(end) for entry in entries for end in (_FILLING, _LOCK) if entry.endswith(end)}):
            if name + _FILLING in entries or name not in entries:
                with contextlib.suppress(BlockingIOError, RuntimeError), self.locked(name, wait=False):  # at its end a lock of nothing goes
                    if self._there(name + _FILLING):
                        log.info("keep = %r: a process died while it filled it; what it left is removed", name)
                        self._remove(name + _FILLING)

    def create(self, name, sizes):
        """Files for a model's copies, not published yet: their descriptors.  The name is locked."""
        filling, fds = name + _FILLING, []
        self._remove(filling)
        os.mkdir(filling, 0o700, dir_fd=self.fd)
        inside = self._open(filling)
        try:
            for i, size in enumerate(sizes):
                fds.append(os.open(f"copy-{i}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=inside))
                os.ftruncate(fds[-1], size)
            return fds
        except BaseException:
            close_all(fds)
            raise
        finally:
            os.close(inside)

    def publish(self, name, about):
        """What `create` made is complete: from now on it is there."""
        filling = name + _FILLING
        inside = self._open(filling)
        try:
            fd = os.open(ABOUT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=inside)
            with open(fd, "w") as file:
                json.dump(about, file)
        finally:
            os.close(inside)
        os.rename(filling, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def discard(self, name):
        """Remove what `create` made."""
        self._remove(name + _FILLING)

    def remove(self, name):
        """Remove what is kept, at once and whole; who uses it keeps the memory.  The name is locked."""
        self._remove(name + _FILLING)
        os.rename(name, name + _FILLING, src_dir_fd=self.fd, dst_dir_fd=self.fd)  # killed now, it is swept
        self._remove(name + _FILLING)

    def _remove(self, entry):
        try:
            inside = self._open(entry)
        except FileNotFoundError:
            return
        try:
            for file in os.listdir(inside):
                os.unlink(file, dir_fd=inside)
        finally:
            os.close(inside)
        os.rmdir(entry, dir_fd=self.fd)


def close_all(fds):
    """Close descriptors; the list is empty then."""
    while fds:
        os.close(fds.pop())


def _try_lock(fd):
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(fd):
    return os.pread(fd, 20, 0).decode(errors="replace") or "unknown"


def kept_models():
    """All that this user keeps: list of Kept."""
    with Folder() as folder:
        return folder.listing()


def drop(name):
    """Remove a kept model; processes that use it go on, and the last of them frees the memory.  Returns what it was.

    Raises
    ------
    KeepError
        Nothing of that name is kept, or somebody is filling it.
    """
    check_name(name)
    with Folder() as folder:
        if folder.fd is not None:
            try:
                with folder.locked(name, wait=False):
                    kept = folder.read(name)
                    if kept:
                        folder.remove(name)
                        return kept
            except BlockingIOError as e:
                raise KeepError(f"{e.strerror}; wait, or end that process") from None
        names = ", ".join(kept.name for kept in folder.listing())
    raise KeepError(f"nothing is kept as {name!r}; there is {names or 'nothing'}")
