"""What several architectures share: hyperparameters out of the metadata, the residual stream, rotary frequencies."""

import math

import numpy as np

from ...errors import CorruptModel, UnsupportedModel
from ..plan import Attention


# Keys that other engines know, and the values under which a file means the same without them.
NEUTRAL = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
}


class Hyperparameters:
    """Typed access to the keys of one architecture: ``c.int("block_count")`` reads ``llama.block_count``."""

    def __init__(self, gguf):
        self.gguf, self.prefix = gguf, gguf.architecture + "."

    def int(self, key, default=None, low=1, high=1 << 24):
        """An integer in [low, high]; without a default the key must be there."""
        return self._number(key, int, default, low, high)

    def float(self, key, default=None, low=-math.inf, high=math.inf):
        """A finite number in [low, high]."""
        return self._number(key, float, default, low, high)

    def _number(self, key, kind, default, low, high):
        options = {} if default is None else {"default": default}
        value = self.gguf.get(self.prefix + key, kind, **options)
        if not (low <= value <= high and math.isfinite(value)):
            raise CorruptModel(self.gguf.path, f"{self.prefix}{key} = {value}; wanted a number from {low} to {high}")
        return value

    def str(self, key, default):
        """A string."""
        return self.gguf.get(self.prefix + key, str, default=default)

    def check_neutral(self):
        """Raise UnsupportedModel if a key asks for something that no architecture here does; leaving it out would change results."""
        for key, neutral in NEUTRAL.items():
            found = self.gguf.metadata.get(self.prefix + key, neutral[0])
            if found not in neutral:
                raise UnsupportedModel(self.prefix + key, found, neutral)

    def attention(self, *, neox, eps):
        """The Attention that most architectures mean, from their head counts and widths."""
        width, heads = self.int("embedding_length"), self.int("attention.head_count", high=4096)
        kv_heads = self.int("attention.head_count_kv", default=heads, high=4096)
        key = self.int("attention.key_length", default=max(width // heads, 1), high=65536)
        return Attention(heads, kv_heads, key, self.int("attention.value_length", default=key, high=65536),
                         self.int("rope.dimension_count", default=key, low=0, high=65536), neox,
                         scale=self.float("attention.scale", default=0.0, low=0) or 1.0 / math.sqrt(key), eps=eps)

    def rope_frequencies(self, n_rot, base, factors=None):
        """Radians per position of each rotated pair (arXiv:2104.09864): base^(-2i/n_rot), (n_rot/2,) float64.

        `factors`: divisors from ``rope_freqs.weight`` (Llama 3's long-context scaling).  Linear scaling divides all; other
        scaling types raise UnsupportedModel.
        """
        frequencies = base ** (-2.0 * np.arange(n_rot // 2) / n_rot)
        if factors is not None:
            values = getattr(factors, "values", np.empty(0))  # a matrix has none
            if len(values) != n_rot // 2 or not (np.isfinite(values) & (values > 0)).all():
                raise CorruptModel(self.gguf.path, f"{factors.name} = {values[:4]} ..., {factors.n} rows; wanted a vector of "
                                                   f"{n_rot // 2} positive numbers")
            frequencies = frequencies / factors.values
        return frequencies / self.rope_scale()

    def rope_scale(self):
        """The divisor of linear position scaling, 1 without it.  A factor alone means linear; old files call it scale_linear."""
        kind = self.str("rope.scaling.type", default="linear")
        if kind not in ("none", "linear"):
            raise UnsupportedModel(self.prefix + "rope.scaling.type", kind, ("none", "linear"))
        old = self.float("rope.scale_linear", default=1.0, low=1e-3)
        return self.float("rope.scaling.factor", default=old, low=1e-3) if kind == "linear" else 1.0


class Residual:
    """The residual stream.  What a block adds waits until the next norm, which does both in one pass.

    Parameters
    ----------
    plan : Plan
    x : Tensor
        The embedded tokens.
    eps : float
        Of every norm along the stream.
    """

    def __init__(self, plan, x, eps):
        self._plan, self._x, self._eps = plan, x, eps
        self._waiting = None, None

    def add(self, y, post=None):
        """x + y, or x + norm(y, post)."""
        self._waiting = y, post

    def norm(self, w, selected=False):
        """norm(x, w)."""
        y, post = self._waiting
        self._x, h = self._plan.norm(self._x, w, self._eps, y, post, selected)
        self._waiting = None, None
        return h


def embedding_matrix(c, weights):
    """``token_embd.weight`` (V, D)."""
    table, width = weights["token_embd.weight"], c.int("embedding_length")
    if getattr(table, "k", width) != width:
        raise CorruptModel(c.gguf.path, f"{table.name} has rows of {table.k} values, wanted {c.prefix}embedding_length = {width}")
    return table


def output_matrix(weights):
    """``output.weight``, or the embedding table where the two are tied: a row for every token that can be embedded."""
    table = weights["token_embd.weight"]
    output = weights.get("output.weight") or table
    if output.n != table.n:
        raise CorruptModel(weights.gguf.path, f"{output.name} has {output.n} rows, wanted {table.n}, as many as {table.name}")
    return output
