"""Which CPU a worker gets: those that other teams hold come last, and neighbours are those that share an L3 cache.

Who holds what is known within the process by a table, and between processes by a lock per core (fcntl(2), `F_SETLK`) on a file in
shared memory. Such a lock goes with its process, however that ends, and no fork inherits it. Processes that do not see each other's
``/dev/shm`` (containers) do not know of each other; ``cpus=`` of ``load`` is for them.
"""

import contextlib
import fcntl
import functools
import logging
import os
import struct
import threading
import time
import weakref

from . import pages

LOCKS = "/dev/shm/numainfer-cpus"
OTHER_MODEL = "another model of this process"
_CHOOSING = 1 << 30  # the byte that is locked while a process chooses
_PATIENCE = 0.5  # seconds to wait for that: who holds it may have been stopped
_CPU = "/sys/devices/system/cpu/cpu{}"
_FLOCK = "hhqqi4x"  # struct flock on 64 bits: type, whence, start, length, process

log = logging.getLogger("numainfer")

_lock = threading.RLock()  # a signal handler may load a model
_holds = weakref.WeakSet()  # of an engine that was forgotten nothing is left here
_locked = set()  # cores whose byte this process has locked
_fd = None  # (descriptor, its file's identity); stays open: closing any descriptor of the file would give up all locks


def _after_fork():
    """The child has none of its parent's teams nor locks; the lock may be held by a thread that it does not have."""
    global _lock, _holds
    _lock, _holds = threading.RLock(), weakref.WeakSet()
    _locked.clear()


os.register_at_fork(after_in_child=_after_fork)


# ---- cores and caches -------------------------------------------------------------------------------------------------


def _first(text, otherwise):
    """The first number of a list such as "0-3,8"."""
    digits = text.partition(",")[0].partition("-")[0]
    return int(digits) if digits.isdecimal() else otherwise


@functools.cache
def core(cpu):
    """The first CPU of the physical core, which stands for it."""
    return _first(pages.read(f"{_CPU.format(cpu)}/topology/thread_siblings_list"), cpu)


def exists(cpu):
    """Whether the system has a CPU of this number."""
    return os.path.exists(_CPU.format(cpu))


@functools.cache
def domain(cpu):
    """The first CPU of those that share this one's L3 cache, which stands for it; -1 where the system does not tell."""
    for index in (3, 4, 2, 1, 0):  # 3 nearly everywhere
        cache = f"{_CPU.format(cpu)}/cache/index{index}"
        if pages.read(f"{cache}/level") == "3":
            return _first(pages.read(f"{cache}/shared_cpu_list"), -1)
    return -1


def domains(cpus):
    """`domain` of each, as a team takes them."""
    return [domain(cpu) for cpu in cpus]


def side_by_side(cpus):
    """CPUs of one node in the order of their caches."""
    return sorted(cpus, key=lambda cpu: (domain(cpu), cpu))


# ---- who holds them ---------------------------------------------------------------------------------------------------


def _identity(fd):
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _file():
    """Descriptor of the file of locks, None where there can be none."""
    global _fd
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if _fd is not None and _identity(_fd[0]) == _fd[1]:
            return _fd[0]
    except OSError:  # somebody closed what was not his, as daemons do
        pass
    try:
        try:
            fd = os.open(LOCKS, flags)
        except FileNotFoundError:
            fd = os.open(LOCKS, flags | os.O_CREAT, 0o666)
            os.fchmod(fd, 0o666)  # whatever the umask: it is for all users
        _fd = fd, _identity(fd)
    except OSError as e:
        log.debug("other processes are not told which CPUs are taken: %s", e)
        return None
    return fd


def _set(kind, byte):
    """Lock or unlock a byte; whether that was granted."""
    fd = _file()
    if fd is None:
        return False
    try:
        fcntl.lockf(fd, kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB, 1, byte)
    except OSError:
        return False
    return True


def _other_process(byte):
    """"process 123" if another one has locked the byte, else None."""
    fd = _file()
    if fd is None:
        return None
    try:
        asked = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError:
        return None
    kind, _, _, _, process = struct.unpack(_FLOCK, asked)
    if kind == fcntl.F_UNLCK:
        return None
    return f"process {process}" if process > 0 else "another process"  # one of another container has no number here


def _settle():
    """Lock the cores that are held, unlock those that are no longer.  Ctrl-C in its midst leaves no lock that `_locked` does not have."""
    wanted = {byte for hold in _holds for byte in hold.cores}
    for byte in _locked - wanted:
        _set(fcntl.LOCK_UN, byte)
        _locked.discard(byte)
    for byte in wanted - _locked:
        _locked.add(byte)
        _set(fcntl.LOCK_SH, byte)  # shared: who has to share a core holds it too


@contextlib.contextmanager
def choosing():
    """For one ``with`` in which CPUs are chosen and a `Hold` is made: no other thread or process does so meanwhile."""
    with _lock:
        _settle()
        end = time.monotonic() + _PATIENCE
        try:
            while not _set(fcntl.LOCK_EX, _CHOOSING) and _file() is not None and time.monotonic() < end:
                time.sleep(0.002)
            yield
        finally:
            _set(fcntl.LOCK_UN, _CHOOSING)  # granted or not: Ctrl-C may come between that and knowing it


def holders(cpus):
    """Who holds them: {cpu: [name, ...]}, without those that nobody holds."""
    with _lock:
        of_core = {}
        for hold in _holds:
            for byte in hold.cores:
                of_core.setdefault(byte, []).append(OTHER_MODEL)
        found = {}
        for cpu in cpus:
            byte = core(cpu)
            other = _other_process(byte)
            names = of_core.get(byte, []) + [other] * (other is not None)
            if names:
                found[cpu] = names
        return found


class Hold:
    """CPUs that a model's workers are pinned to, from `take` until `close` or until nobody has the hold any more.

    Made before anything is taken, so that whoever was interrupted while he took has something to close.
    """

    def __init__(self):
        self.cores = frozenset()

    def take(self, cpus):
        """No other model chooses them first from now on."""
        self.cores = frozenset(core(cpu) for cpu in cpus)
        with _lock:
            _holds.add(self)
            _settle()

    def close(self):
        """Others may have them."""
        with _lock:
            _holds.discard(self)
            _settle()


# ---- choosing ---------------------------------------------------------------------------------------------------------


def pick(cpus, count, held):
    """So many of a node's CPUs: those that nobody holds first, then those that the fewest do; side by side."""
    return side_by_side(sorted(cpus, key=lambda cpu: len(held.get(cpu, ())))[:count])


def story(first, taken, held):
    """Which CPUs were taken and why, in words: ``"CPU 1 (0 is held by another model of this process)"``; "" where nobody is in the way.

    Parameters
    ----------
    first : list of int
        CPUs that would have been taken had nobody held any.
    taken : list of int
    held : dict
        As `holders` has it.
    """
    said, taken = [], sorted(set(taken))
    for cpus, what in ((set(first).difference(taken), "held by"), (set(taken), "shared with")):
        groups = {}
        for cpu in sorted(cpus.intersection(held)):
            groups.setdefault(held[cpu][0], []).append(cpu)
        for name, group in groups.items():
            which = "" if group == taken else f"{ranges(group)} {'is' if len(group) == 1 else 'are'} "
            said.append(f"{which}{what} {name}")
    return f"{'CPU' if len(taken) == 1 else 'CPUs'} {ranges(taken)} ({', '.join(said)})" if said else ""


def ranges(numbers):
    """"0-3,8" for [0, 1, 2, 3, 8]."""
    parts, start = [], None
    for i, n in enumerate(numbers):
        start = n if start is None else start
        if i + 1 == len(numbers) or numbers[i + 1] != n + 1:
            parts.append(str(start) if start == n else f"{start}-{n}")
            start = None
    return ",".join(parts)
