"""GGUF models on disk: metadata, and where the tensors lie; split models as one.

Files are read, never mapped: whoever shortens a file that is mapped ends the process that reads there with SIGBUS.
"""

import hashlib
import logging
import math
import os
import re
import stat
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace

import numpy as np

from ..errors import CorruptModel, ModelClosed, ModelNotFound
from .header import REQUIRED, Header, Strings

__all__ = ["GGUFFile", "Strings", "Tensor"]

log = logging.getLogger("numainfer")
_PAGE = os.sysconf("SC_PAGESIZE")
_BLOCK = 1 << 20  # bytes
_SAMPLES = 64  # pages of each part's data that `digest` reads
_SPLIT_NAME = re.compile(r"(?P<stem>.*-)(?P<no>\d{5})(?P<of>-of-)(?P<count>\d{5})(?P<end>\.gguf)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies and how it is stored.

    Attributes
    ----------
    name : str
        As in the file, such as ``blk.0.attn_q.weight``.
    shape : tuple of int
        NumPy's order, rows first: a matrix that maps K inputs to N outputs is (N, K).  A scalar's is ().
    type : str
        Name of the GGML type: ``F32``, ``Q4_K``, ...
    offset : int
        Byte offset of the data in the file ``path``.
    n_bytes : int
        Length of the data.
    path : str
        The file, one part of a split model.
    shard : int
        Index of that file in ``GGUFFile.paths``.
    """

    name: str
    shape: tuple
    type: str
    offset: int
    n_bytes: int
    path: str
    shard: int
    _parts: list = field(repr=False, compare=False)

    @property
    def dims(self):
        """The shape in ggml's order, the contiguous dimension first."""
        return self.shape[::-1]

    @property
    def n_elements(self):
        return math.prod(self.shape)

    @property
    def data(self):
        """The stored bytes, read from the file now: a read-only uint8 array (n_bytes,)."""
        return np.frombuffer(self._part().read(self.offset, self.n_bytes, f"tensor {self.name!r}"), np.uint8)

    def open(self):
        """A descriptor of the file, as a file object of the caller's own: it outlives `GGUFFile.close`."""
        return os.fdopen(os.dup(self._part().fd), "rb", buffering=0)

    def check(self):
        """Raise CorruptModel if the file has become too short for the data."""
        size = os.fstat(self._part().fd).st_size
        if self.offset + self.n_bytes > size:
            raise CorruptModel(self.path, f"tensor {self.name!r} lies in bytes {self.offset} to {self.offset + self.n_bytes}, "
                                          f"but the file was cut to {size} bytes while it was read", self.offset)  # fmt: skip

    def release(self, start, n_bytes):
        """Give the pages of data [start, start + n_bytes) in the system's page cache back.  The data comes from the disk again then."""
        first, end = ((self.offset + at) // _PAGE * _PAGE for at in (start, start + n_bytes))
        if end > first and self._parts:
            os.posix_fadvise(self._part().fd, first, end - first, os.POSIX_FADV_DONTNEED)

    def zeros_at_end(self):
        """How many bytes at the data's end are zero: n_bytes if all are."""
        zeros, part = 0, self._part()
        while zeros < self.n_bytes:
            n = min(self.n_bytes - zeros, _BLOCK if zeros else _PAGE)
            block = part.read(self.offset + self.n_bytes - zeros - n, n, f"tensor {self.name!r}")
            if np.frombuffer(block, np.uint8).any():
                return zeros + n - len(block.rstrip(b"\0"))
            zeros += n
        return zeros

    def _part(self):
        if not self._parts:
            raise ModelClosed(f"tensor {self.name!r}: its file {self.path} is closed")
        return self._parts[self.shard]


class GGUFFile:
    """A GGUF model, open for reading; all parts of it, if it is split.

    Parameters
    ----------
    path : str or os.PathLike
        The file, or any part ``NAME-00001-of-00003.gguf`` of a split model.
    source : object, optional
        Where it lies, if not on a disk (`hub.HubModel`): ``open(path)`` gives what reads as `_Part` does, ``exists(path)`` a bool.

    Attributes
    ----------
    metadata : Mapping[str, int | float | bool | str | numpy.ndarray | Strings]
        Read-only; of the first part, if split.  It outlives ``close``.
    tensors : dict[str, Tensor]
        By name, in file order.
    architecture : str
        The value of ``general.architecture``.
    version, alignment : int
        Of the first part.
    path, paths : str, list of str
        The first part, all parts.
    files : list of tuple
        Of each part, as it was when it was opened: device, inode, bytes, times of the last change of its data and of its inode.
    n_bytes : int
        Bytes of all tensors' data.
    on_disk : bool
        Whether it is here, and not read over a network.

    Raises
    ------
    ModelNotFound
        No such file, not a regular file, not readable, or a part of a split model is missing.
    CorruptModel
        The file breaks the format; the message gives the byte offset.
    UnsupportedModel
        Another version or byte order, an unknown tensor type, a nested array, sizes beyond this reader's limits.
    """

    def __init__(self, path, source=None):
        self._parts, self.files, self.paths, self.tensors = [], [], [], {}
        self.on_disk = source is None
        self._source = source or SimpleNamespace(open=_Part, exists=os.path.exists)
        try:
            self._open(os.fsdecode(path))
        except BaseException:
            self.close()
            raise

    def _open(self, path):
        first = self._read(path)
        paths = _parts(path, first.get("split.count", int, default=0), self._source.exists)
        if path == paths[0]:
            headers = [first] + [self._read(p) for p in paths[1:]]
        else:  # that was a later part, read for its split.count alone
            self._parts.pop().close()
            self.files.clear()
            headers = [self._read(p) for p in paths]
        self.paths, self._first = paths, headers[0]
        for shard, header in enumerate(headers):
            if len(paths) > 1:
                header.expect("split.no", shard)
                header.expect("split.count", len(paths))
                header.expect("split.tensors.count", sum(len(h.tensors) for h in headers))
            for info in header.tensors:
                if info.name in self.tensors:
                    raise CorruptModel(header.path, f"tensor {info.name!r:.99} is in {self.tensors[info.name].path} too")
                self.tensors[info.name] = Tensor(*info, header.path, shard, self._parts)
        self.metadata = MappingProxyType(self._first.metadata)
        self.version, self.alignment = self._first.version, self._first.alignment
        self.architecture = self.get("general.architecture", str)

    def _read(self, path):
        part = self._source.open(path)
        self._parts.append(part)
        status = part.status
        self.files.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return Header(path, status.st_size, part.read)

    def check_unchanged(self):
        """Raise CorruptModel if somebody wrote to a part since it was opened: what was read then may be of two models."""
        for path, (*inode, size, written, _) in zip(self.paths, self.files):
            try:
                status = os.stat(path)
            except OSError:  # moved or deleted: its bytes are what they were
                continue
            if [status.st_dev, status.st_ino] == inode and (status.st_size, status.st_mtime_ns) != (size, written):
                raise CorruptModel(path, f"the file was written to while it was read: it had {size} bytes and has {status.st_size}; "
                                         "wanted no change since it was opened")  # fmt: skip

    def digest(self):
        """What the model is, wherever it lies: a hexadecimal digest of all headers, of the parts' sizes and of samples of their data.

        Files that differ in other bytes of their data alone have the same one.
        """
        found = hashlib.blake2b(digest_size=16)
        for shard, (part, (_, _, size, *_)) in enumerate(zip(self._parts, self.files)):
            data = min([tensor.offset for tensor in self.tensors.values() if tensor.shard == shard], default=size)
            found.update(size.to_bytes(8, "little"))
            for at in range(0, data, _BLOCK):
                found.update(part.read(at, min(_BLOCK, data - at), "the header"))
            for at in sorted({data + (size - data) * i // _SAMPLES for i in range(_SAMPLES)}):
                found.update(part.read(at, min(_PAGE, size - at), "the data"))
        return found.hexdigest()

    def check_complete(self):
        """Raise CorruptModel if a part's data ends in zeros from some matrix on: a download that did not get there.

        Zeros at the end of a matrix alone may be padding (rows of a vocabulary), and a vector may well be zero.  They are logged
        where they take a megabyte.
        """
        for shard in range(len(self.paths)):
            for tensor in sorted((t for t in self.tensors.values() if t.shard == shard), key=lambda t: -t.offset):
                zeros = tensor.zeros_at_end()
                if zeros == tensor.n_bytes and len(tensor.shape) > 1:
                    raise CorruptModel(tensor.path, f"tensor {tensor.name!r}: all of its {zeros} bytes are zero, and so is all that "
                                       "follows in the file, as where a download was not finished; wanted weights. Download it again",
                                       tensor.offset)  # fmt: skip
                if zeros < tensor.n_bytes:
                    if zeros >= _BLOCK:
                        log.warning("%s: the data ends in %d bytes of zeros, from the midst of tensor %r on; if it is not a padded "
                                    "vocabulary, the download was not finished", tensor.path, zeros, tensor.name)
                    break

    @property
    def path(self):
        return self.paths[0]

    @property
    def n_bytes(self):
        return sum(t.n_bytes for t in self.tensors.values())

    def get(self, key, type=None, default=REQUIRED):
        """Metadata value of ``key``, checked.

        Parameters
        ----------
        key : str
        type : type or tuple of types, optional
            ``int``, ``float`` (integers pass, as float), ``bool``, ``str``; ``list[int]``, ``list[float]``,
            ``list[bool]`` for a NumPy array of that kind, ``list[str]`` for `Strings`.  None: anything.
        default : object, optional
            Given back, unchecked, where the key is missing.

        Raises
        ------
        CorruptModel
            The key is missing and has no default, or its value is of another type.
        """
        return self._first.get(key, type, default)

    def close(self):
        """Close the files.  What ``Tensor.data`` gave stays valid."""
        while self._parts:
            self._parts.pop().close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        parts = f", {len(self.paths)} parts" if len(self.paths) > 1 else ""
        return f"<GGUFFile {self.path}: {self.architecture}, {len(self.tensors)} tensors, {self.n_bytes} bytes{parts}>"


def _parts(path, count, exists):
    """Paths of all parts of the model of which ``path`` is one and whose split.count is ``count``."""
    if count <= 1:
        return [path]  # whole, whatever its name says: parts that were merged into one often keep the first one's
    name = _SPLIT_NAME.fullmatch(path)
    if name is None:
        raise ModelNotFound(f"{path} is one of {count} parts, but its name does not end in "
                            f"-00001-of-{count:05}.gguf, so the others cannot be found")  # fmt: skip
    no, named = int(name["no"]), int(name["count"])
    if named != count or not 1 <= no <= named:
        raise CorruptModel(path, f"the name says part {no} of {named}, the metadata key split.count says {count}")
    paths = [f"{name['stem']}{i:05}{name['of']}{name['count']}{name['end']}" for i in range(1, named + 1)]
    missing = [p for p in paths if not exists(p)]
    if missing:
        more = ", ..." if len(missing) > 5 else ""
        raise ModelNotFound(f"missing parts of a model of {named}: {', '.join(missing[:5])}{more}")
    return paths


class _Part:
    """One file of a model, open for reading; ``status``: its os.stat_result as it was opened."""

    def __init__(self, path):
        self.path = path
        try:
            self._open(path)
        except ModelNotFound:
            raise
        except OSError as e:
            raise ModelNotFound(f"{path} cannot be read: {e.strerror}") from e

    def _open(self, path):
        if "\0" in path:
            raise ModelNotFound(f"{path!r} has a NUL in it, so it names no file")
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ModelNotFound(f"{path} is a directory, wanted a GGUF file")
        if stat.S_ISREG(mode):
            # O_NONBLOCK: should a FIFO take the file's place now, opening it must not wait for a writer.
            self._file = open(path, "rb", buffering=0, opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK))
            self.status = os.fstat(self.fd)
            if stat.S_ISREG(self.status.st_mode):
                if self.status.st_size == 0:
                    raise CorruptModel(path, "the file is empty, wanted a GGUF model", 0)
                return
        raise ModelNotFound(f"{path} is not a regular file but {stat.filemode(mode)}, wanted a GGUF file")

    @property
    def fd(self):
        return self._file.fileno()

    def read(self, offset, n_bytes, what):
        """Bytes of the file; raises CorruptModel where they are there no longer, or the disk cannot give them."""
        pieces, at, end = [], offset, offset + n_bytes
        while at < end:
            try:
                pieces.append(os.pread(self.fd, end - at, at))
            except OSError as e:
                raise CorruptModel(self.path, f"{what} cannot be read: {e.strerror}", at) from e
            if not pieces[-1]:
                raise CorruptModel(self.path, f"{what} lies in bytes {offset} to {end}, but the file was cut to "
                                              f"{os.fstat(self.fd).st_size} bytes while it was read", at)  # fmt: skip
            at += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self):
        self._file.close()
