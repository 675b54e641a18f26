"""Ops of compressed attention: methods of `Plan`."""

from .. import _core
from ..errors import PlanError
from .ops import PER_NODE, Attention


class Compressing:
    """Methods of `Plan`."""

    def compress(self, kv, gate, bias, norm, ratio, eps, *, overlaps=False, window, frequencies=None, factor=1.0, first=0, indexes=False,
                 chosen=0):  # fmt: skip
        """Makes one row of every `ratio` positions, and keeps it: what `attend` and `index` take as `rows`.

        A column of a row is a sum over its positions of their kv, weighed by the softmax of gate + bias; it is normed, and rotated as the
        first of the positions (DeepSeek V4).

        Parameters
        ----------
        kv, gate : Tensor
            (T, W): W is the width E of a row; with `overlaps` 2 E: a position counts in the row behind its own with its first half, in its
            own with the second.
        bias : Vector
            (ratio * W,) for the first position of a row, the second, ...
        norm : Vector or None
            (E,); None: rows are as they are.
        ratio : int
            A divisor of the positions of a chunk.
        eps : float
            Of the norm.
        window : int
            Positions of which kv and gate are kept: at least those that a row is made of.
        frequencies : Vector, optional
            (n_rot / 2,) radians per position of the values from `first` on, by pairs (2 i, 2 i + 1).
        factor : float
            On cosines and sines.
        indexes : bool
            Rows are an indexer's keys.
        chosen : int
            So many are read by a token, or chosen by the indexer; 0: all.
        """
        width, n_rot = kv.width // (2 if overlaps else 1), 0 if frequencies is None else 2 * frequencies.n
        if _core.CHUNK % ratio or (indexes and _core.CHUNK // ratio % 16) or window < ratio * (2 if overlaps else 1):
            raise PlanError(f"compress: rows of {ratio} positions in a window of {window}; wanted a divisor of {_core.CHUNK}, at most 16 "
                            "for an indexer, and a window of all positions that a row is made of")
        self._check("compress", "kv", kv, width * (2 if overlaps else 1))
        self._check("compress", "gate", gate, kv.width)
        self._is_vector("compress", "bias", bias, ratio * kv.width)
        if norm is not None:
            self._is_vector("compress", "norm", norm, width)
        if n_rot + first > width:
            raise PlanError(f"compress: {n_rot} values from {first} on are rotated, of {width}")
        ring = self.kv.add(1, 0, 2 * kv.width, window, kv_type="f32", readers=0)
        found, rows = self.kv.add_rows(width, ratio, chosen, indexes), self._memory("rows")
        a = Attention(1, 1, width, 2 * kv.width, n_rot, False, 1.0, rope_first=first)
        ints = self._attention_ints(a, frequencies, int(not indexes), None)
        self._add("compress", [kv, gate, rows], [bias, norm, frequencies], ints, (eps, factor), cache=ring, rows=found)
        self._compressed[rows] = found
        return rows

    def turn(self, x, table, heads, first, neox=False):
        """Values of each head from `first` on, as many as the table (T, n_rot) has angles for, turned back: (T, D), one copy per node."""
        self._check("turn", "x", x, x.width)
        self._check("turn", "table", table, table.width)
        if x.width % heads or first + table.width > x.width // heads:
            raise PlanError(f"turn: {table.width} values from {first} on, of {heads} heads in {x.width}; wanted heads of equal width, "
                            "and them within each")
        out = self._tensor("turned", x.width, PER_NODE)
        return self._add("turn", [self._near(x), table, out], [], (heads, first, table.width, int(neox)))
