"""Replicas in shared memory, which outlive their process: the first user fills them, others attach (`machine.shared`)."""

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass

import numpy as np

from .. import _core
from ..errors import KeepError, NumaInferError, OutOfNodeMemory, PlacementError
from ..machine import pages, placement, shared
from ..summary import short_bytes
from .copies import Replicas, copies_of
from .weights import Matrix

PACKING = 1
"""Version of what stands in a copy. To be raised with every change of a format's packing; `tests/test_keep.py` says when."""
_STEP = 32 << 20  # bytes whose pages a thread takes at once

log = logging.getLogger("numainfer")


@dataclass(frozen=True)
class KeptCopies:
    """What is known of replicas in shared memory.

    Attributes
    ----------
    name : str
    verified, huge : list of float
        Of each copy, when it was filled: share of its bytes found where they belong, and in huge pages.
    bound : list of bool
        Whether the kernel accepted the binding.
    when : str
    filled : bool
        By this process.
    """

    name: str
    verified: list
    huge: list
    bound: list
    when: str
    filled: bool

    def describe(self):
        """In words, for `Placement`."""
        what = f"kept as {self.name!r}, {'filled' if self.filled else 'attached to; filled'} {self.when}"
        if min(self.huge) < 0.99:
            what += f"; {min(self.huge):.0%} in huge pages ({shared.huge_story()})"
        return what


class Share:
    """One user's part in kept replicas; as `store.Share`."""

    def __init__(self, replicas):
        self.replicas = replicas

    def close(self):
        """Unmap them; they stay where they are."""
        if self.replicas is not None:
            self.replicas.close()
        self.replicas = None


class Keeper:
    """Finds or makes the kept copies of a model.

    What is stale under the name, of a file that changed since or of another version of numainfer, is removed at once.

    Parameters
    ----------
    name : str
    gguf : GGUFFile
    model : str
        The model's name, for people.

    Raises
    ------
    KeepError
        No shared memory, or not this user's.
    """

    def __init__(self, name, gguf, model):
        self.name, self._gguf, self._model = name, gguf, model
        self._files = [[os.path.realpath(path), *identity] for path, identity in zip(gguf.paths, gguf.files)]
        self._version = [_version(), PACKING]
        self._folder = shared.Folder(create=True)
        try:
            self._folder.sweep()
            with self._folder.locked(name):
                self._kept = self._current()
        except BaseException:
            self.close()
            raise

    def _current(self):
        """What is kept under the name, of this model; a stale one is removed.  Raises KeepError if it is another model."""
        kept = self._folder.read(self.name)
        if kept is None:
            return None
        about = kept.about
        if about["version"] == self._version and about["files"] == self._files:
            return kept
        if about["version"] is not None and not {file[0] for file in about["files"]}.intersection(file[0] for file in self._files):
            raise KeepError(f"keep = {self.name!r}: that name holds another model, {about['model']} ({about['files'][0][0]}); take another "
                            f"name, or drop it first: numainfer keep --drop {self.name}")  # fmt: skip
        why = "the file changed" if about["version"] == self._version else "another version of numainfer packed it"
        log.warning("keep = %r: %s since it was kept; it is filled again", self.name, why)
        self._folder.remove(self.name)
        return None

    def layout(self, weights, nodes, policy, bounds):
        """All that the bytes and their places depend on, beside the file: a dict for `holds` and `share`."""
        what = hashlib.blake2b(digest_size=16)
        for w in weights:
            matrix = (w.type, w.n, w.k, w.experts, w.in_file, w.first) if isinstance(w, Matrix) else (w.n, str(w.values.dtype))
            what.update(repr((w.name, matrix)).encode())
            if not isinstance(w, Matrix):
                what.update(np.ascontiguousarray(w.values))  # constants may depend on the context
        copies = copies_of(weights, len(nodes), policy, bounds)
        what.update(json.dumps([[list(map(int, offsets.values())), size] for offsets, size in copies]).encode())
        sizes = [-(-max(size, 1) // pages.HUGE) * pages.HUGE for _, size in copies]
        return {"policy": policy, "nodes": list(nodes), "layout": what.hexdigest(), "sizes": sizes}

    def holds(self, layout):
        """Whether what is kept is this."""
        return self._kept is not None and all(self._kept.about[key] == value for key, value in layout.items())

    def share(self, layout, weights, bounds, labels, cpus, fill, strict, progress=None):
        """A Share of Replicas: attached to, or filled and published.

        Parameters
        ----------
        layout : dict
            By `layout`.
        weights, bounds :
            As of `Replicas`.
        labels : list of int
            The nodes' numbers as people see them.
        cpus : list of list of int
            The workers' CPUs on each node.
        fill : callable
            ``fill(replicas, progress)`` packs the file into them.
        strict : bool
            Raise PlacementError, and publish nothing, if pages lie wrong.
        progress : callable, optional
            ``progress(done, total)``: bytes of pages taken and of the file read, of both together.

        Raises
        ------
        KeepError
            The name holds the model in another form.
        OutOfNodeMemory
            Shared memory is full; nothing was begun.
        """
        with self._folder.locked(self.name):
            self._kept = self._current()  # another process may have filled it meanwhile
            if self._kept is not None:
                self._check_form(layout, labels, [len(own) for own in cpus])
                return Share(self._attach(layout, weights, bounds))
            shared.check_room(self.name, sum(layout["sizes"]))
            try:
                return Share(self._fill(layout, weights, bounds, labels, cpus, fill, strict, progress))
            except OSError as e:
                if isinstance(e, NumaInferError):
                    raise
                raise KeepError(f"keep = {self.name!r}: {shared.path()}: {e.strerror or e}") from e

    def _check_form(self, layout, labels, threads):
        if self.holds(layout):
            return
        about, more = self._kept.about, ""
        found, wanted = (f"placement {policy!r} on nodes {', '.join(map(str, nodes))}"
                         for policy, nodes in ((about["policy"], about["labels"]), (layout["policy"], labels)))  # fmt: skip
        before = about.get("threads", threads)
        if found == wanted and before != threads:
            found, wanted = f"{found} for {_counts(before)} on them", _counts(threads)
            more = f", or attach with threads = {sum(before)}"
        elif found == wanted:
            found, wanted = f"{found} for another n_ctx", "this form"
        raise KeepError(f"keep = {self.name!r}: that name holds {found}; wanted {wanted}. Take another name, or drop it first: "
                        f"numainfer keep --drop {self.name}{more}")  # fmt: skip

    def _attach(self, layout, weights, bounds):
        about = self._kept.about
        fds = self._folder.open_copies(self.name, layout["sizes"])
        try:
            replicas = Replicas(weights, layout["nodes"], layout["policy"], bounds,
                                lambda copy, size, on: _core.Arena(layout["sizes"][copy], fd=fds[copy], write=False))  # fmt: skip
        finally:
            shared.close_all(fds)
        replicas.kept = KeptCopies(self.name, about["verified"], about["huge"], about["bound"], about["when"], False)
        return replicas

    def _fill(self, layout, weights, bounds, labels, cpus, fill, strict, progress):
        sizes, policy, replicas, fds = layout["sizes"], layout["policy"], None, []
        try:
            fds = self._folder.create(self.name, sizes)
            replicas = Replicas(weights, layout["nodes"], policy, bounds,
                                lambda copy, size, on: _core.Arena(sizes[copy], on, fd=fds[copy]))  # fmt: skip
            spread = len(cpus) if policy == "interleave" else 1
            taken = sum(arena.bytes for arena in replicas.arenas)
            whole = taken + replicas.read_bytes(self._gguf)
            _populate(self.name, replicas.arenas, fds, [sum(cpus, [])] if policy == "interleave" else cpus, spread,
                      progress and (lambda done: progress(done, whole)))
            fill(replicas, progress and (lambda done, _: progress(taken + done, whole)))
            verified = _verify(replicas.arenas, layout["nodes"], policy, strict)
            huge = [share / max(total, 1) for total, share in pages.resident(replicas.arenas)]
            for arena in replicas.arenas:
                arena.seal()
            about = layout | {"version": self._version, "files": self._files, "model": self._model, "labels": labels, "huge": huge,
                              "threads": [len(own) for own in cpus],
                              "verified": verified, "bound": [arena.bound for arena in replicas.arenas],
                              "when": time.strftime("%Y-%m-%d %H:%M:%S")}  # fmt: skip
            self._folder.publish(self.name, about)
        except BaseException:
            if replicas is not None:
                replicas.close()
            self._folder.discard(self.name)
            raise
        finally:
            shared.close_all(fds)
        replicas.kept = KeptCopies(self.name, verified, huge, about["bound"], about["when"], True)
        return replicas

    def close(self):
        self._folder.close()


def _counts(threads):
    """"2 and 1 threads" of those on each node."""
    return " and ".join(map(str, threads)) + (" thread" if threads == [1] else " threads")


def _version():
    from .. import __version__

    return __version__


def _verify(arenas, nodes, policy, strict):
    """Share of each copy's bytes that lies where it belongs, strays moved first; None where the kernel does not tell."""
    shares = []
    for i, (arena, huge) in enumerate(zip(arenas, pages.all_huge(arenas))):
        own = set(nodes) if policy == "interleave" else {nodes[i]}
        found, _ = placement.look_up(arena, -1 if policy == "interleave" else nodes[i], huge)
        shares.append(None if found is None else float(sum(found[n] for n in own) / max(found.sum(), 1)))
        if strict and shares[-1] is not None and shares[-1] < 1:
            raise PlacementError(f"{found.sum() - sum(found[n] for n in own)} bytes of copy {i} lie on other nodes and could not be moved; "
                                 "nothing is kept")  # fmt: skip
    return shares


def _populate(name, arenas, fds, cpus, spread, report):
    """Take all pages, by threads on the CPUs of each copy's node: what does not fit is told here, and by no SIGBUS later.

    ``report(bytes taken)`` is called by this thread, or None.
    """
    errors, stop, taken = [], threading.Event(), []

    def work(arena, fd, cpu, slices):
        with contextlib.suppress(OSError):  # refused, binding places them
            os.sched_setaffinity(0, {cpu})
        for at in slices:
            if errors or stop.is_set():
                return
            error = arena.populate(fd, at, min(_STEP, arena.bytes - at), spread)
            if error:
                errors.append(error)
            taken.append(min(_STEP, arena.bytes - at))

    threads = []
    for arena, fd, own in zip(arenas, fds, cpus):
        slices = iter(range(0, arena.bytes, _STEP))  # shared: whoever is free takes the next
        threads += [threading.Thread(target=work, args=(arena, fd, cpu, slices), name="numainfer-keep") for cpu in own]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.05)  # Ctrl-C is heard between
                if report and taken:
                    report(sum(taken))
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if errors:
        raise OutOfNodeMemory(f"keep = {name!r}: the system has not {short_bytes(sum(arena.bytes for arena in arenas))} of shared memory "
                              f"({os.strerror(errors[0])}): {shared.SHM} has {short_bytes(shared.room() or 0)} free, and the nodes or the "
                              "control group may have less; nothing is kept")  # fmt: skip
