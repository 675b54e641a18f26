"""A model of the Hugging Face hub that is not here yet: its header can be read before any of its weights are downloaded."""

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

from ..errors import CorruptModel, ModelNotFound, NumaInferError

log = logging.getLogger("numainfer")
_MOST_AHEAD = 4 << 20  # bytes of a vector; longer ones are read when they are asked for
_CONNECTIONS = 16
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HubModel:
    """A model in a repository.

    Parameters
    ----------
    repo : str
        ``org/name``.
    names : list of str
        Its parts' names in the repository, the first one first.
    """

    def __init__(self, repo, names):
        self.repo, self.names = repo, names

    def __str__(self):
        return f"{self.repo}/{self.names[0]}"

    def open(self):
        """The model, read over the network: the header now, of the tensors what is asked for.

        Returns
        -------
        GGUFFile

        Raises
        ------
        ModelNotFound
            The hub cannot be asked, or gives no part of a file alone.
        CorruptModel, UnsupportedModel
            As `GGUFFile`.
        """
        from .file import GGUFFile

        parts = []

        def part(path):
            parts.append(_RemotePart(self.repo, path.removeprefix(f"{self.repo}/"), path))
            return parts[-1]

        gguf = GGUFFile(str(self), SimpleNamespace(open=part, exists=lambda path: path.removeprefix(f"{self.repo}/") in self.names))
        for shard, part in enumerate(parts):
            part.soon = [(t.offset, t.n_bytes) for t in gguf.tensors.values()
                         if t.shard == shard and len(t.shape) == 1 and t.n_bytes <= _MOST_AHEAD]  # fmt: skip
        return gguf

    def download(self, check=None):
        """Path of the first part, downloaded into the hub's cache.

        Parameters
        ----------
        check : callable, optional
            ``check(gguf)`` is called with the model as `open` gives it, before anything is downloaded; what it raises ends it.

        Raises
        ------
        ModelNotFound
        CorruptModel, UnsupportedModel
            The header says already that it cannot be loaded.
        """
        from huggingface_hub import hf_hub_download

        if check is not None:
            try:
                with self.open() as gguf:
                    check(gguf)
            except ModelNotFound as e:  # a mirror may have no ranges: what is wrong with the file is then told once it is here
                log.info("the header of %s was not read before the download: %s", self, e)
        try:
            return [Path(hf_hub_download(self.repo, name)) for name in self.names][0]
        except Exception as e:  # noqa: BLE001 - see of_the_network
            raise _not_reached(f"{self} cannot be downloaded", e) from e


class _RemotePart:
    """One file of a repository, as `file.GGUFFile` reads one of the disk.

    Attributes
    ----------
    soon : list of (int, int)
        Offsets and lengths that will be asked for one by one once any of them is: they are then read together.
    """

    def __init__(self, repo, name, path):
        from huggingface_hub import hf_hub_url

        self.path, self.url, self.soon, self._have = path, hf_hub_url(repo, name), [], {}
        first, size = self._get(0, 1 << 20)
        self._have[0] = first
        self.status = SimpleNamespace(st_dev=0, st_ino=0, st_size=size, st_mtime_ns=0, st_ctime_ns=0)

    def read(self, offset, n_bytes, what):
        """Bytes of the file; raises as the one of a file on disk, and ModelNotFound where the network fails."""
        if (offset, n_bytes) in self.soon:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                found = pool.map(lambda where: self._get(*where)[0], self.soon)
                self._have |= {start: data for (start, _), data in zip(self.soon, found)}
            self.soon = []
        for start in (offset, 0):
            have = self._have.get(start, b"")
            if offset + n_bytes <= start + len(have):
                return have[offset - start : offset - start + n_bytes]
        data, size = self._get(offset, n_bytes)
        if len(data) != n_bytes:
            end = offset + n_bytes
            raise CorruptModel(self.path, f"{what} lies in bytes {offset} to {end}, but the hub's file has {size} bytes", offset)
        return data

    def _get(self, offset, n_bytes):
        """At most so many bytes of the file, and the whole file's size."""
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        try:
            headers = build_hf_headers() | {"Range": f"bytes={offset}-{offset + n_bytes - 1}", "Accept-Encoding": "identity"}
            reply = http_backoff("GET", self.url, headers=headers, timeout=30, max_retries=2)
            hf_raise_for_status(reply)
        except Exception as e:  # noqa: BLE001 - see of_the_network
            raise _not_reached(f"the header of {self.path} cannot be read", e) from e
        found = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != offset:
            raise ModelNotFound(f"the hub at {self.url} gives no parts of files (status {reply.status_code}); "
                                "wanted the header alone")  # fmt: skip
        return reply.content, int(found[3])

    def close(self):
        self._have.clear()


def _not_reached(what, error):
    """The exception to raise for one that the hub's client raised: ModelNotFound if it is of the network, else the error itself."""
    if isinstance(error, NumaInferError) or not of_the_network(error):
        return error
    return ModelNotFound(f"{what}: {why(error)}")


def why(error):
    """The first line of what the hub's client says."""
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def of_the_network(error):
    """Whether the hub's client raised it, or a library below it; not a signal handler in the midst of them.

    The client changed its HTTP library twice, each with exceptions of its own, so that their names would say too little.
    """
    if type(error).__module__ != "builtins":
        return True
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    return module in sys.stdlib_module_names or module in ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests",
                                                           "urllib3", "anyio", "h11", "hf_xet", "certifi")  # fmt: skip
