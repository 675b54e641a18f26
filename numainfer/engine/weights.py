"""What a model's tensors are to the plan: `Catalog` gives those that an architecture uses, by name, and sees that none is left."""

import logging
import math
import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from .. import _core
from ..errors import CorruptModel, PlanError, UnsupportedModel
from .memory import round_up

log = logging.getLogger("numainfer")


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
    """n float32 values of the file (norms, biases), int32 ids of it, or a constant, mostly of float64, that an architecture computed.

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
    mtp : bool
        The layer that predicts a further token is wanted.
    """

    def __init__(self, gguf, mtp=False):
        self.gguf, self.mtp = gguf, mtp
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
            values = _core.decode(FORMATS[tensor.type]["code"], tensor.data, math.prod(tensor.shape[:-1]))
            self.used[name] = Vector(name, values, path=self.gguf.paths[tensor.shard])
        return self.used[name]

    def columns(self, name):
        """The values of a matrix, column after column, as a Vector."""
        if (name + "[columns]") not in self._parts:
            tensor = self._tensor(name)
            values = _core.decode(FORMATS[tensor.type]["code"], tensor.data, math.prod(tensor.shape[:-1])).reshape(-1, tensor.shape[-1])
            self._parts[name + "[columns]"] = Vector(name, np.ascontiguousarray(values.T).ravel(), path=self.gguf.paths[tensor.shard])
        return self._parts[name + "[columns]"]

    def in_blocks(self, name, n, k, lanes=16, rows=4):
        """The values of a matrix (n, k), transposed in blocks of so many of its rows, as a Vector: [n / lanes][k][lanes].

        What is missing of the last block, and of a multiple of `rows` values of k, is 0.
        """
        key = f"{name}[blocks]"
        if key not in self._parts:
            tensor = self._tensor(name)
            if tensor.shape != (n, k):
                what = f"tensor {name!r} has the shape {tensor.shape}, wanted {(n, k)}"
                raise CorruptModel(self.gguf.paths[tensor.shard], what, tensor.offset)
            values = np.zeros((round_up(n, lanes), round_up(k, rows)), np.float32)
            values[:n, :k] = _core.decode(FORMATS[tensor.type]["code"], tensor.data, n).reshape(n, k)
            blocks = values.reshape(-1, lanes, values.shape[1]).transpose(0, 2, 1)
            self._parts[key] = Vector(name, np.ascontiguousarray(blocks).ravel(), path=self.gguf.paths[tensor.shard])
        return self._parts[key]

    def ids(self, name, width, below):
        """The values of a tensor of int32, row after row, as a Vector of int32: for each token that can be embedded `width` numbers from 0
        to below - 1."""
        if name not in self.used:
            tensor = self.gguf.tensors.get(name) or self._tensor(name)  # which raises
            path = self.gguf.paths[tensor.shard]
            if tensor.type != "I32":
                raise UnsupportedModel(f"type of tensor {name}", tensor.type, ["I32"], f"The file is {tensor.path}")
            wanted = self["token_embd.weight"].n, width
            if tensor.shape != wanted:
                raise CorruptModel(path, f"tensor {name!r} has the shape {tensor.shape}, wanted {wanted}", tensor.offset)
            values = tensor.data.view("<i4").astype(np.int32)
            if values.size and not 0 <= values.min() <= values.max() < below:
                found = f"numbers from {values.min()} to {values.max()}, wanted 0 to {below - 1}"
                raise CorruptModel(path, f"tensor {name!r} holds {found}", tensor.offset)
            self.used[name] = Vector(name, values, path=path)
        return self.used[name]

    def stacked(self, name, experts):
        """The matrix called `name` as so many of equal size, whether the file holds (experts, N, K) or (experts * N, K)."""
        whole = self[name]
        fits = isinstance(whole, Matrix) and whole.experts in (1, experts) and whole.experts * whole.n % experts == 0
        if not fits or whole.bias is not None:
            found = f"{whole.n} values" if isinstance(whole, Vector) else f"{whole.experts * whole.n} rows"
            raise CorruptModel(whole.path, f"tensor {name!r} has {found}, wanted {experts} matrices, without a bias")
        self.used[name] = replace(whole, n=whole.experts * whole.n // experts, experts=experts)
        return self.used[name]

    def repeated(self, name, times, factor=1):
        """The values of a tensor of any shape as a Vector, each times a factor, and so many times, one behind the other."""
        key, values = f"{name}[x{times}, {factor}]", self.flat(name)
        if values is None:
            return self[name]  # raises
        if key not in self._parts:
            self._parts[key] = replace(values, values=np.repeat(values.values * np.float32(factor), times))
        return self._parts[key]

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

    def constant(self, name, values, kind=np.float64):
        """A vector that is not in the file; the first values given under a name stay."""
        return self._constants.setdefault(name, Vector(name, np.ascontiguousarray(values, kind)))

    def ones(self, n):
        """The weight of a norm that has none."""
        return self.constant(f"{n} ones", np.ones(n), np.float32)

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
        values = _core.decode(FORMATS[kind]["code"], data, heads * rows).astype(np.float16)
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

    def in_blocks(self, name, n, k):
        """The values of a matrix (n, k) whose name need not end in ``.weight``, as `Plan.scan` takes them."""
        return self._catalog.in_blocks(f"{self._prefix}{name}", n, k)

    def repeated(self, name, times, factor=1):
        """The values of a tensor whose name need not end in ``.weight``, each times a factor, and so many times."""
        return self._catalog.repeated(f"{self._prefix}{name}", times, factor)

    def picked(self, name, rows):
        """Matrices of some rows each, in another order than the file's."""
        return self._catalog.picked(f"{self._prefix}{name}.weight", rows)

    def flat(self, name):
        """The tensor's values as a Vector, or None if the file has none."""
        return self._catalog.flat(f"{self._prefix}{name}.weight")

    def ids(self, name, width, below):
        """The tensor's numbers, of int32: so many for each token."""
        return self._catalog.ids(f"{self._prefix}{name}.weight", width, below)

    def stacked(self, name, experts):
        """The matrix as so many of equal size."""
        return self._catalog.stacked(f"{self._prefix}{name}.weight", experts)

    def bias(self, name):
        """A bias that goes with no weight, ``<name>.bias`` or, in some files, ``<name>`` alone; None if the file has none."""
        return self._catalog.get(f"{self._prefix}{name}.bias") or self._catalog.get(f"{self._prefix}{name}")

    def exactly(self, name):
        """The tensor of that name, which need not end in ``.weight``; it must be there."""
        return self._catalog[f"{self._prefix}{name}"]

    def either(self, name):
        """``<name>.weight``, or ``<name>`` alone, as some files call it; it must be there."""
        found = self._catalog.get(f"{self._prefix}{name}")
        return getattr(self, name) if found is None else found

    def flatly(self, name):
        """As `exactly`, the values of a tensor of any shape as a Vector."""
        return self._catalog.flat(f"{self._prefix}{name}") or self.exactly(name)

    def row(self, name):
        """A matrix of one row, which files may hold as a vector."""
        return self._catalog.row(f"{self._prefix}{name}.weight")
