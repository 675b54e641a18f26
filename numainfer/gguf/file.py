"""GGUF models on disk: metadata, and tensors as views of the mapped files; split models as one."""

import math
import mmap
import os
import re
import stat
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ..errors import CorruptModel, ModelClosed, ModelNotFound
from .header import REQUIRED, Header, Strings

__all__ = ["GGUFFile", "Strings", "Tensor"]

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


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
    _maps: list = field(repr=False, compare=False)

    @property
    def dims(self):
        """The shape in ggml's order, the contiguous dimension first."""
        return self.shape[::-1]

    @property
    def n_elements(self):
        return math.prod(self.shape)

    @property
    def data(self):
        """The stored bytes: a read-only uint8 view (n_bytes,) of the mapped file, which it keeps mapped."""
        if not self._maps:
            raise ModelClosed(f"tensor {self.name!r}: its file {self.path} is closed")
        return np.frombuffer(self._maps[self.shard], np.uint8, self.n_bytes, self.offset)

    def check(self):
        """Raise CorruptModel if the file has become too short for the data: reading it would be a SIGBUS."""
        size = self._maps[self.shard].size() if self._maps else 0
        if self.offset + self.n_bytes > size:
            raise CorruptModel(self.path, f"tensor {self.name!r} lies in bytes {self.offset} to {self.offset + self.n_bytes}, "
                                          f"but the file was cut to {size} bytes while it was read")  # fmt: skip

    def release(self, start, n_bytes):
        """Give the pages of data [start, start + n_bytes) back to the system: of the mapping, and of the page cache.

        The data stays readable; it comes from the disk again then.
        """
        first = (self.offset + start) // mmap.PAGESIZE * mmap.PAGESIZE
        end = (self.offset + start + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end <= first or not self._maps:
            return
        self._maps[self.shard].madvise(mmap.MADV_DONTNEED, first, end - first)
        try:
            file = open(self.path, "rb", buffering=0)  # an object closes itself, also where Ctrl-C comes before `with`
        except OSError:  # moved or deleted meanwhile: nothing to gain
            return
        with file:
            os.posix_fadvise(file.fileno(), first, end - first, os.POSIX_FADV_DONTNEED)


class GGUFFile:
    """A GGUF model, open for reading; all parts of it, if it is split.

    Parameters
    ----------
    path : str or os.PathLike
        The file, or any part ``NAME-00001-of-00003.gguf`` of a split model.

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

    Raises
    ------
    ModelNotFound
        No such file, not a regular file, not readable, or a part of a split model is missing.
    CorruptModel
        The file breaks the format; the message gives the byte offset.
    UnsupportedModel
        Another version or byte order, an unknown tensor type, a nested array, sizes beyond this reader's limits.

    Notes
    -----
    The data is mapped, not read: whoever shortens the file while it is open gets this process a SIGBUS.
    """

    def __init__(self, path):
        self._maps, self.files, self.paths, self.tensors = [], [], [], {}
        try:
            self._open(os.fsdecode(path))
        except BaseException:
            self.close()
            raise

    def _open(self, path):
        first = self._read(path)
        paths = _parts(path, first.get("split.count", int, default=0))
        if path == paths[0]:
            headers = [first] + [self._read(p) for p in paths[1:]]
        else:  # that was a later part, read for its split.count alone
            self._maps.pop().close()
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
                self.tensors[info.name] = Tensor(*info, header.path, shard, self._maps)
        self.metadata = MappingProxyType(self._first.metadata)
        self.version, self.alignment = self._first.version, self._first.alignment
        self.architecture = self.get("general.architecture", str)

    def _read(self, path):
        mapping, status = _map(path)
        self._maps.append(mapping)
        self.files.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return Header(path, mapping)

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
        """Unmap the files.  Views given out by ``Tensor.data`` stay valid: each keeps its file mapped."""
        while self._maps:
            try:
                self._maps.pop().close()
            except BufferError:  # a view lives; the mapping goes with the last one
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        parts = f", {len(self.paths)} parts" if len(self.paths) > 1 else ""
        return f"<GGUFFile {self.path}: {self.architecture}, {len(self.tensors)} tensors, {self.n_bytes} bytes{parts}>"


def _parts(path, count):
    """Paths of all parts of the model of which ``path`` is one and whose split.count is ``count``."""
    name = _SPLIT_NAME.fullmatch(path)
    if name is None:
        if count > 1:
            raise ModelNotFound(f"{path} is one of {count} parts, but its name does not end in "
                                f"-00001-of-{count:05}.gguf, so the others cannot be found")  # fmt: skip
        return [path]
    no, named = int(name["no"]), int(name["count"])
    if named != max(count, 1) or not 1 <= no <= named:
        raise CorruptModel(path, f"the name says part {no} of {named}, the metadata key split.count says {count}")
    paths = [f"{name['stem']}-{i:05}-of-{named:05}.gguf" for i in range(1, named + 1)]
    missing = [p for p in paths if not os.path.exists(p)]
    if missing:
        more = ", ..." if len(missing) > 5 else ""
        raise ModelNotFound(f"missing parts of a model of {named}: {', '.join(missing[:5])}{more}")
    return paths


def _map(path):
    """The whole file, mapped read-only, and its os.stat_result."""
    try:
        if "\0" in path:
            raise ModelNotFound(f"{path!r} has a NUL in it, so it names no file")
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ModelNotFound(f"{path} is a directory, wanted a GGUF file")
        if stat.S_ISREG(mode):
            # O_NONBLOCK: should a FIFO take the file's place now, opening it must not wait for a writer.
            with open(path, "rb", buffering=0, opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode):
                    if status.st_size == 0:
                        raise CorruptModel(path, "the file is empty, wanted a GGUF model", 0)
                    return mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ), status
        raise ModelNotFound(f"{path} is not a regular file but {stat.filemode(mode)}, wanted a GGUF file")
    except ModelNotFound:
        raise
    except OSError as e:
        raise ModelNotFound(f"{path} cannot be read: {e.strerror}") from e
