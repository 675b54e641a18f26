"""What a model's tensors are to the plan, and how they get into the nodes' memory.

`Catalog` names the tensors that an architecture uses; `Replicas` packs them into one arena per node, by that node's own threads.
"""

import contextlib
import logging
import math
import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from .. import _core
from ..errors import CorruptModel, PlanError, UnsupportedModel

log = logging.getLogger("numainfer")
_ALIGN = 64
_BEHIND = 64 << 20  # bytes of the file that are packed before their pages are given back: that costs the same for few as for many


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix (N, K) of the file, or (E, N, K): one for each of E experts.

    Attributes
    ----------
    name, type : str
        Of the tensor.
    n, k : int
        Rows (of one expert) and values per row.
    experts : int
        E; 1 for a plain matrix.
    bias : Vector or None
        What is added to the finished rows: ``x.bias`` beside ``x.weight``; E * N values, expert after expert.
    path : str or None
        The file, None for a matrix of no file.
    tensor : str
        The file's tensor, if the matrix is some rows of it.
    first : int
        Of these rows, the first.
    make : callable or None
        ``make(bytes)`` of the file's tensor gives the matrix's bytes, where they are not rows of it as they stand.
    """

    name: str
    type: str
    n: int
    k: int
    experts: int = 1
    bias: "Vector | None" = None
    path: str | None = None
    tensor: str = ""
    first: int = 0
    make: object = None

    @property
    def in_file(self):
        """Name of the file's tensor that holds the rows."""
        return self.tensor or self.name

    @property
    def code(self):
        return FORMATS[self.type]["code"]

    @property
    def kind(self):
        return FORMATS[self.type]["kind"]

    @property
    def packed_bytes(self):
        """Of all experts."""
        return self.experts * _core.packed_bytes(self.code, self.n, self.k)

    @property
    def short_name(self):
        """``attn_q`` for ``blk.3.attn_q.weight``."""
        return self.name.replace(".weight", "").rpartition(".")[2]


@dataclass(frozen=True, eq=False)
class Vector:
    """n float32 values of the file (norms, biases), or a float64 constant that an architecture computed.

    Attributes
    ----------
    name : str
    values : ndarray (n,)
    bias : Vector or None
        Of a norm's weight: what is added behind it.
    path : str or None
        The file, None for a constant.
    """

    name: str
    values: np.ndarray
    bias: "Vector | None" = None
    path: str | None = None

    @property
    def n(self):
        return len(self.values)

    @property
    def packed_bytes(self):
        return self.values.nbytes


FORMATS = _core.formats()
# Tensors that cannot matter to text: of pictures, of sounds, of what makes them, and old files' tables of rotations.
_ELSEWHERE = re.compile(r"(v|a|mm|tts)\.|(blk\.\d+\.)?(attn_rot_embd|rotary_emb\.inv_freq|inv_freq)(\.weight)?$")


class Catalog:
    """Tensors of a GGUF file by name, and the record of which were asked for.

    A bias goes with its weight: if the file holds ``x.bias`` beside ``x.weight``, the latter's Matrix or Vector has it as `bias`,
    and the op that multiplies by the one adds the other.

    Parameters
    ----------
    gguf : GGUFFile
    """

    def __init__(self, gguf):
        self.gguf = gguf
        self.used, self._constants, self._parts, self._read = {}, {}, {}, set()
        self._longest = max((n for tensor in gguf.tensors.values() if len(tensor.shape) > 1 for n in tensor.shape), default=0)

    def __contains__(self, name):
        return name in self.gguf.tensors

    def __getitem__(self, name):
        """The Matrix or Vector called `name`.

        Raises
        ------
        CorruptModel
            The file has no such tensor, or a vector of a length that fits no matrix, or a bias that does not fit its weight.
        UnsupportedModel
            Its type or its number of dimensions is not supported.
        """
        if name not in self.used:
            tensor = self._tensor(name)
            if len(tensor.shape) == 1:
                self.used[name] = self._vector(name, self._bias(name, tensor.shape))
            elif len(tensor.shape) in (2, 3):
                experts, n, k = (1, *tensor.shape)[-3:]
                rows = tensor.shape[:-1]
                self.used[name] = Matrix(name, tensor.type, n, k, experts, self._bias(name, rows), self.gguf.paths[tensor.shard])
            else:
                raise UnsupportedModel(f"shape of tensor {name}", tensor.shape, ["(N,)", "(N, K)", "(E, N, K)"],
                                       f"The file is {tensor.path}")  # fmt: skip
        return self.used[name]

    def row(self, name):
        """The Matrix called `name`, of one row, whether the file holds (1, K) or (K,)."""
        tensor = self._tensor(name)
        if len(tensor.shape) != 1:
            return self[name]
        if name not in self.used:
            self.used[name] = Matrix(name, tensor.type, 1, tensor.shape[0], path=self.gguf.paths[tensor.shard])
        return self.used[name]

    def _tensor(self, name):
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            raise CorruptModel(self.gguf.path, f"tensor {name!r} is missing; architecture {self.gguf.architecture!r} needs it")
        if tensor.type not in FORMATS:
            raise UnsupportedModel(f"type of tensor {name}", tensor.type, FORMATS, f"The file is {tensor.path}")
        return tensor

    def _vector(self, name, bias=None):
        tensor = self._tensor(name)
        if len(tensor.shape) == 1 and tensor.shape[0] > self._longest:  # before its values fill the memory
            what = f"a vector of {tensor.shape[0]:,} values; the longest side of a matrix in the file is {self._longest:,}"
            raise CorruptModel(self.gguf.paths[tensor.shard], f"tensor {name!r} is {what}", tensor.offset)
        return Vector(name, _core.decode(FORMATS[tensor.type]["code"], tensor.data), bias, self.gguf.paths[tensor.shard])

    def _bias(self, name, shape):
        """The Vector that goes with a weight of so many rows; None if the file has none."""
        bias = name.removesuffix("weight") + "bias"
        if not name.endswith(".weight") or bias not in self:
            return None
        tensor = self._tensor(bias)
        if tensor.shape != tuple(shape):
            what = f"tensor {bias!r} has the shape {tensor.shape}, wanted {tuple(shape)}, a value for each row of {name}"
            raise CorruptModel(self.gguf.paths[tensor.shard], what, tensor.offset)
        return self._vector(bias)

    def get(self, name):
        """The tensor, or None if the file has none."""
        if name not in self:
            return None
        return self[name]

    def rows(self, name, *counts, biases=()):
        """The matrix called `name` in parts of so many rows each, from the first to the last; its bias goes along.

        biases : names of the parts' biases, which old files may have beside a matrix that has none.
        """
        whole = self[name]
        if not isinstance(whole, Matrix) or whole.experts != 1 or whole.n != sum(counts):
            found = f"{whole.n} values" if isinstance(whole, Vector) else f"{whole.experts * whole.n} rows"
            raise CorruptModel(whole.path, f"tensor {name!r} has {found}, wanted {sum(counts)} rows: {' + '.join(map(str, counts))}")
        parts = []
        for first, end in pairwise(accumulate(counts, initial=0)):
            rows, bias = f"[{first}:{end}]", whole.bias
            if (name + rows) not in self._parts:
                if bias is None and biases:
                    bias = self._bias(biases[len(parts)], (end - first,))
                elif bias is not None:
                    bias = Vector(bias.name + rows, np.ascontiguousarray(bias.values[first:end]), path=bias.path)
                    self._read.add(whole.bias.name)
                self._parts[name + rows] = replace(whole, name=name + rows, n=end - first, bias=bias, tensor=name, first=first)
            parts.append(self._parts[name + rows])
        return parts

    def split_heads(self, name, heads, keys):
        """The matrix called `name`, (heads * (keys + values), K), as matrices (heads, K, keys), transposed, and (heads, values, K).

        What is transposed is as exact as floats of the tensor's type, or halves if its type packs values along K.
        """
        whole = self[name]
        if not isinstance(whole, Matrix) or whole.experts != 1 or whole.n % heads or whole.n // heads <= keys:
            found = whole.n if isinstance(whole, Vector) or whole.experts == 1 else f"{whole.experts} x {whole.n}"
            raise CorruptModel(whole.path, f"tensor {name!r} has {found} rows, wanted {heads} times more than {keys}")
        if whole.bias is not None:
            raise UnsupportedModel(f"tensor {whole.bias.name}", whole.bias.n, ["none"], f"The file is {whole.path}")
        if (name + "[keys]") not in self._parts:
            shape, kind = (heads, whole.n // heads, whole.k), whole.type if whole.type in ("F32", "F16", "BF16") else "F16"
            common = {"experts": heads, "path": whole.path, "tensor": name}
            make = partial(_keys, shape, keys, whole.type), partial(_values, shape, keys)
            self._parts[name + "[keys]"] = Matrix(name + "[keys]", kind, whole.k, keys, make=make[0], **common)
            self._parts[name + "[values]"] = Matrix(name + "[values]", whole.type, shape[1] - keys, whole.k, make=make[1], **common)
        return self._parts[name + "[keys]"], self._parts[name + "[values]"]

    def flat(self, name):
        """The values of a tensor of any shape, row after row, as a Vector; None if the file has none."""
        if name not in self:
            return None
        if name not in self.used:
            tensor = self._tensor(name)
            self.used[name] = Vector(name, _core.decode(FORMATS[tensor.type]["code"], tensor.data), path=self.gguf.paths[tensor.shard])
        return self.used[name]

    def columns(self, name):
        """The values of a matrix, column after column, as a Vector."""
        if (name + "[columns]") not in self._parts:
            tensor = self._tensor(name)
            values = _core.decode(FORMATS[tensor.type]["code"], tensor.data).reshape(-1, tensor.shape[-1])
            self._parts[name + "[columns]"] = Vector(name, np.ascontiguousarray(values.T).ravel(), path=self.gguf.paths[tensor.shard])
        return self._parts[name + "[columns]"]

    def picked(self, name, rows):
        """Matrices of rows of the one called `name`, in another order than they stand in the file.

        rows : dict
            A word for each matrix, and its rows.
        """
        whole, count = self[name], max(int(picked.max()) for picked in rows.values()) + 1
        if not isinstance(whole, Matrix) or whole.experts != 1 or whole.n != count or whole.bias is not None:
            found = f"{whole.n} values" if isinstance(whole, Vector) else f"{whole.experts * whole.n} rows"
            raise CorruptModel(whole.path, f"tensor {name!r} has {found}, wanted {count} rows, without a bias")
        for word, picked in rows.items():
            key = f"{name}[{word}]"
            if key not in self._parts:
                self._parts[key] = replace(whole, name=key, n=len(picked), tensor=name, make=partial(_picked, whole.n, picked))
        return [self._parts[f"{name}[{word}]"] for word in rows]

    def values(self, name):
        """The values of a tensor that a plan is computed from, (n,) float32, or None if the file has none; no op needs to read it."""
        vector = self.get(name)
        if vector is None:
            return None
        self._read.add(name)
        if not isinstance(vector, Vector):
            raise CorruptModel(vector.path, f"tensor {name!r} is a matrix of {vector.n} x {vector.k} values, wanted a vector")
        return vector.values

    def blocks(self, n):
        """`block` of the first n layers."""
        return [self.block(i) for i in range(n)]

    def block(self, i):
        """Tensors of layer i as attributes: ``.attn_q`` is ``blk.<i>.attn_q.weight``."""
        return _Block(self, i)

    def skip(self, prefixes):
        """Do without the tensors whose names begin so; whether there are any."""
        skipped = [name for name in self.gguf.tensors if name.startswith(tuple(prefixes))]
        self._read.update(skipped)
        return bool(skipped)

    def constant(self, name, values):
        """A float64 vector that is not in the file; the first values given under a name stay."""
        return self._constants.setdefault(name, Vector(name, np.ascontiguousarray(values, np.float64)))

    def ones(self, n):
        """The weight of a norm that has none."""
        return self._constants.setdefault(f"{n} ones", Vector(f"{n} ones", np.ones(n, np.float32)))

    def check_all_used(self, weights):
        """Whether every tensor of the file is one of the `weights` that ops read, or its values were.

        Raises
        ------
        UnsupportedModel
            Nobody asked for a tensor: leaving it out would change the model.  (Those of pictures and sounds, and tables of rotations that
            can be computed, are named in a warning.)
        PlanError
            The architecture asked for a tensor and gave it to no op.
        """
        read = self._read.union(w.in_file if isinstance(w, Matrix) else w.name for w in weights)
        unused = [name for name in self.gguf.tensors if name not in read]
        spare = [name for name in unused if _ELSEWHERE.match(name)]
        unused = [name for name in unused if name not in spare]
        if spare:
            more = f" and {len(spare) - 3} more" if len(spare) > 3 else ""
            log.warning("%s: tensor %s%s is not of the model that makes text; numainfer does without", self.gguf.path, ", ".join(spare[:3]),
                        more)
        for name in unused:
            if name in self.used:
                raise PlanError(f"tensor {name} was asked for, but no op of {self.gguf.architecture!r} reads it")
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise UnsupportedModel("tensor", ", ".join(unused[:3]) + more,
                                   detail=f"numainfer's {self.gguf.architecture} does not use it, so results would be wrong. The file is "
                                          f"{self.gguf.path}")  # fmt: skip


def _keys(shape, keys, kind, data):
    """Bytes of the first `keys` rows of each head, transposed; halves if the type packs values along a row."""
    heads, rows, k = shape
    if kind in ("F32", "F16", "BF16"):  # whole values, whatever they mean
        values = data.view(np.uint32 if kind == "F32" else np.uint16)
    else:
        values = _core.decode(FORMATS[kind]["code"], data).astype(np.float16)
    return np.ascontiguousarray(values.reshape(heads, rows, k)[:, :keys].transpose(0, 2, 1))


def _picked(n, rows, data):
    """Bytes of rows of n, in their new order."""
    return np.ascontiguousarray(data.reshape(n, -1)[rows])


def _values(shape, keys, data):
    """Bytes of each head's rows behind the first `keys`."""
    return np.ascontiguousarray(data.reshape(shape[0], shape[1], -1)[:, keys:])


class _Block:
    def __init__(self, catalog, index):
        self.index, self._catalog, self._prefix = index, catalog, f"blk.{index}."

    def __getattr__(self, name):
        return self._catalog[f"{self._prefix}{name}.weight"]

    def get(self, name):
        """The tensor, or None if the file has none."""
        return self._catalog.get(f"{self._prefix}{name}.weight")

    def rows(self, name, *counts, biases=()):
        """The matrix in parts of so many rows, with the biases of such names where it has none of its own."""
        return self._catalog.rows(f"{self._prefix}{name}.weight", *counts, biases=[f"{self._prefix}{bias}.weight" for bias in biases])

    def split_heads(self, name, heads, keys):
        """The matrix as one for each head's keys, transposed, and one for each head's values."""
        return self._catalog.split_heads(f"{self._prefix}{name}.weight", heads, keys)

    @property
    def path(self):
        """Of the file."""
        return self._catalog.gguf.path

    def columns(self, name):
        """The values of a matrix, column after column, as a Vector."""
        return self._catalog.columns(f"{self._prefix}{name}.weight")

    def picked(self, name, rows):
        """Matrices of some rows each, in another order than the file's."""
        return self._catalog.picked(f"{self._prefix}{name}.weight", rows)

    def flat(self, name):
        """The tensor's values as a Vector, or None if the file has none."""
        return self._catalog.flat(f"{self._prefix}{name}.weight")

    def bias(self, name):
        """A bias that goes with no weight, ``<name>.bias`` or, in some files, ``<name>`` alone; None if the file has none."""
        return self._catalog.get(f"{self._prefix}{name}.bias") or self._catalog.get(f"{self._prefix}{name}")

    def row(self, name):
        """A matrix of one row, which files may hold as a vector."""
        return self._catalog.row(f"{self._prefix}{name}.weight")


def bytes_on_nodes(weights, n_nodes, policy, bounds=None):
    """Bytes of packed weights on each node, as `Replicas` of the same arguments hold them."""
    if policy == "interleave":
        return [-(-_lay_out(weights, {}, 0)[1] // n_nodes)] * n_nodes
    return [_lay_out(weights, bounds or {}, node)[1] for node in range(n_nodes)]


def copies_of(weights, n_nodes, policy, bounds=None):
    """Of each copy: where each weight's row group 0 would lie behind its beginning, {name: bytes}, and its size."""
    return [_lay_out(weights, bounds or {}, copy) for copy in range(1 if policy == "interleave" else n_nodes)]


def _lay_out(weights, bounds, node):
    """Of a node's copy: where each weight's row group 0 would lie behind its beginning, and its size; bounds: as of `Replicas`."""
    at, offsets = 0, {}
    for w in weights:
        first, size = 0, w.packed_bytes
        if w.name in bounds:
            group = _core.packed_bytes(w.code, 1, w.k)
            first = int(bounds[w.name][node]) * group
            size = w.experts * (int(bounds[w.name][node + 1]) * group - first)
        offsets[w.name] = at - first
        at += -(-size // _ALIGN) * _ALIGN
    return offsets, at


class Replicas:
    """Packed copies of weights: where each lies on each node.

    Parameters
    ----------
    weights : list of Matrix or Vector
        In the order they shall lie in memory.
    os_nodes : list of int
        System numbers of the nodes.
    policy : str
        "interleave": one copy, page by page over the nodes; else each node has its own memory, with a copy in it, but for `bounds`.
    bounds : dict
        Matrices of which a node holds its own rows alone: row groups (of each expert) where each node's rows begin and the last end,
        (n_nodes + 1,) by name of the matrix.
    open_arena : callable, optional
        ``open_arena(copy, bytes, nodes)`` returns the memory of a copy; by default an Arena of this process's own.

    Attributes
    ----------
    kept : KeptCopies or None
        Where they lie in shared memory, what is known of them (`keep`).
    """

    kept = None

    def __init__(self, weights, os_nodes, policy, bounds=None, open_arena=None):
        self.weights, self.n_nodes, self.policy = list(weights), len(os_nodes), policy
        self._bounds = bounds or {}
        laid_out = copies_of(self.weights, self.n_nodes, policy, bounds)
        self.offsets = [offsets for offsets, _ in laid_out]  # per copy: from the arena's start to the weight's row group 0
        self.arenas = []
        try:
            for copy, (_, size) in enumerate(laid_out):
                on = os_nodes if len(laid_out) < self.n_nodes else [os_nodes[copy]]
                self.arenas.append(open_arena(copy, size, on) if open_arena else _core.Arena(size, on, huge=True))
        except BaseException:
            self.close()
            raise

    def entry(self, w):
        """(code, n, k, addresses, bounds, experts) as the core takes them; code -1 for vectors."""
        addresses = [arena.address + offsets[w.name] for arena, offsets in zip(self.arenas, self.offsets)]
        addresses = addresses * self.n_nodes if len(addresses) < self.n_nodes else addresses
        code, n, k, experts = (w.code, w.n, w.k, w.experts) if isinstance(w, Matrix) else (-1, 1, w.n, 1)
        return code, n, k, addresses, self._bounds.get(w.name), experts

    def fill(self, team, gguf, progress=None):
        """Read the file once, in its order, and pack every weight on every node, by that node's own threads.

        Pages of the file are given back to the system behind the reader.  `progress(done, total)` counts bytes of the file.

        Raises
        ------
        CorruptModel
            The file was cut or written to while it was read, cannot be read, or ends in zeros.
        """
        gguf.check_complete()
        matrices = sorted((w for w in self.weights if isinstance(w, Matrix) and not w.make),
                          key=lambda w: (gguf.tensors[w.in_file].shard, gguf.tensors[w.in_file].offset, w.first))
        made = [w for w in self.weights if isinstance(w, Matrix) and w.make]
        vectors = [w for w in self.weights if isinstance(w, Vector)]
        nonzero = np.zeros(len(self.weights), np.uint8)
        reading = _Reading(gguf, matrices, nonzero, progress)
        with contextlib.ExitStack() as files:
            fds = {t.shard: files.enter_context(t.open()).fileno() for t in reading.last.values()}
            pieces = [(self.entry(w), (fds[t.shard], t.offset + w.first * row_bytes), row_bytes)
                      for w, t, row_bytes in zip(matrices, reading.tensors, reading.row_bytes)]
            made_bytes = [w.make(gguf.tensors[w.in_file].data) for w in made]
            pieces += [(self.entry(w), data.ctypes.data, data.nbytes // (w.experts * w.n)) for w, data in zip(made, made_bytes)]
            # Vectors last, for then the huge pages around them are there: each would cost one thread the clearing of such a page.
            pieces += [(self.entry(w), w.values.ctypes.data, w.packed_bytes) for w in vectors]
            reading.check()
            reading.end(team.fill(pieces, nonzero, reading.tick))

    def close(self):
        """Give the memory back."""
        for arena in self.arenas:
            arena.close()
        self.arenas = []


class _Reading:
    """What the caller's thread does while workers pack the file: reports, looks after the file, gives its pages back."""

    def __init__(self, gguf, matrices, nonzero, progress):
        self._gguf, self._nonzero, self._progress = gguf, nonzero, progress
        self.matrices, self.tensors = matrices, [gguf.tensors[w.in_file] for w in matrices]
        self.row_bytes = [t.n_bytes // math.prod(t.shape[:-1]) for t in self.tensors]
        self._before = [0, *accumulate(row * w.n * w.experts for row, w in zip(self.row_bytes, matrices))]
        self._seen, self._done, self._shard, self._released = 0, 0, 0, 0
        self.last = {t.shard: t for t in sorted(gguf.tensors.values(), key=lambda t: (t.shard, t.offset))}  # one of each shard

    def check(self):
        """Raise CorruptModel if a file became shorter than it was."""
        for tensor in self.last.values():
            tensor.check()

    def tick(self, piece, row):
        """All matrices before `piece`, and its rows before `row`, are packed."""
        seen = min(piece, len(self.tensors))
        self._seen, done = seen, self._before[seen]
        if seen < len(self.tensors):
            tensor = self.tensors[seen]
            done += row * self.row_bytes[seen]
            self._give_back(tensor, (self.matrices[seen].first + row) * self.row_bytes[seen])
        if done > self._done:
            self._done = done
            if self._progress:
                self._progress(done, self._before[-1])
        self.check()  # after the caller's turn, and often: someone may be writing the file

    def end(self, unreadable):
        """Everything is packed, but where the piece `unreadable` is not -1."""
        if unreadable >= 0:
            self.check()
            tensor = self.tensors[unreadable]
            raise CorruptModel(self._gguf.paths[tensor.shard], f"tensor {tensor.name!r}: not all of its {tensor.n_bytes} bytes can be "
                               "read from the disk", tensor.offset)
        self.tick(len(self._nonzero), 0)
        self._gguf.check_unchanged()
        zeros = [w.name for w, nonzero in zip(self.matrices, self._nonzero) if not nonzero]
        if zeros:
            more = f" and {len(zeros) - 3} more" if len(zeros) > 3 else ""
            log.warning("%s: all values of tensor %s%s are zero; the model runs, but is that meant?", self._gguf.path,
                        ", ".join(zeros[:3]), more)
        self._give_back_shards(len(self._gguf.paths))

    def _give_back(self, tensor, start):
        if tensor.shard > self._shard:
            self._give_back_shards(tensor.shard)
        if tensor.offset + start - self._released >= _BEHIND:
            tensor.release(self._released - tensor.offset, tensor.offset + start - self._released)
            self._released = tensor.offset + start

    def _give_back_shards(self, end):
        """Shards before `end`, whole: the page cache holds runs of pages that straddle the pieces, which only that drops."""
        for shard, last in self.last.items():
            if self._shard <= shard < end:
                last.release(-last.offset, last.offset + last.n_bytes)
        self._shard, self._released = end, 0
