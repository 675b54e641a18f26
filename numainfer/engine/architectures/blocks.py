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
            self.refuse(key, value, f"a number from {low} to {high}")
        return value

    def str(self, key, default):
        """A string."""
        return self.gguf.get(self.prefix + key, str, default=default)

    def check_neutral(self):
        """Raise UnsupportedModel if a key asks for something that no architecture here does; leaving it out would change results."""
        for key, neutral in NEUTRAL.items():
            found = self.gguf.metadata.get(self.prefix + key, neutral[0])
            if found not in neutral:
                self.unsupported(key, found, neutral)

    def attention(self, *, neox, eps):
        """The Attention that most architectures mean, from their head counts and widths."""
        width, heads = self.int("embedding_length"), self.int("attention.head_count", high=4096)
        kv_heads = self.int("attention.head_count_kv", default=heads, high=4096)
        key = self.int("attention.key_length", default=max(width // heads, 1), high=65536)
        value = self.int("attention.value_length", default=key, high=65536)
        rotated = self.int("rope.dimension_count", default=key, low=0, high=65536)
        if heads % kv_heads:
            self.refuse("attention.head_count", heads, f"a multiple of {self.prefix}attention.head_count_kv = {kv_heads}")
        for name, found in (("key_length", key), ("value_length", value)):
            if found % 16:
                self.unsupported(f"attention.{name}", found, ["multiples of 16"])
        if rotated % 2 or rotated > key:
            self.refuse("rope.dimension_count", rotated, f"an even number up to {self.prefix}attention.key_length = {key}")
        return Attention(heads, kv_heads, key, value, rotated, neox,
                         scale=self.float("attention.scale", default=0.0, low=0) or 1.0 / math.sqrt(key), eps=eps)

    def refuse(self, key, found, wanted):
        """Raise CorruptModel over a key's value."""
        raise CorruptModel(self.gguf.path, f"{self.prefix}{key} = {found}; wanted {wanted}")

    def unsupported(self, key, found, supported):
        """Raise UnsupportedModel over a key's value."""
        raise UnsupportedModel(self.prefix + key, found, supported, f"The file is {self.gguf.path}")

    def rope_frequencies(self, n_rot, base, factors=None):
        """Radians per position of each rotated pair (arXiv:2104.09864): base^(-2i/n_rot), (n_rot/2,) float64.

        `factors`: divisors, the values of ``rope_freqs.weight`` (Llama 3's long-context scaling).  Linear scaling divides all;
        other scaling types raise UnsupportedModel.
        """
        frequencies = base ** (-2.0 * np.arange(n_rot // 2) / n_rot)
        if factors is not None:
            if len(factors) != n_rot // 2 or not (np.isfinite(factors) & (factors > 0)).all():
                raise CorruptModel(self.gguf.path, f"rope_freqs.weight = {factors[:4]} ..., {len(factors)} values; wanted a vector of "
                                                   f"{n_rot // 2} positive numbers")
            frequencies = frequencies / factors
        return frequencies / self.rope_scale()

    def rope_scale(self):
        """The divisor of linear position scaling, 1 without it.  A factor alone means linear; old files call it scale_linear."""
        kind = self.str("rope.scaling.type", default="linear")
        if kind not in ("none", "linear"):
            self.unsupported("rope.scaling.type", kind, ("none", "linear"))
        old = self.float("rope.scale_linear", default=1.0, low=1e-3)
        return self.float("rope.scaling.factor", default=old, low=1e-3) if kind == "linear" else 1.0


class Residual:
    """The residual stream.  What blocks add waits until the next norm, which does all in one pass.

    Parameters
    ----------
    plan : Plan
    x : Tensor
        The embedded tokens.
    eps : float
        Of every norm along the stream.
    layer : bool
        The norms are LayerNorms instead of RMS norms.
    """

    def __init__(self, plan, x, eps, layer=False):
        self._plan, self._x, self._eps, self._layer = plan, x, eps, layer
        self._waiting = []  # (y, post)

    def add(self, y, post=None):
        """x + y, or x + norm(y, post); sums are taken in the order of the calls."""
        self._waiting.append((y, post))

    def norm(self, w, selected=False):
        """norm(x, w): of all that was added so far."""
        while len(self._waiting) > 2:  # more than the op takes
            self._x = self._plan.add(self._x, **self._next(), eps=self._eps, layer=self._layer)
        self._x, h = self._plan.norm(self._x, w, self._eps, selected=selected, layer=self._layer, **self._next())
        return h

    def _next(self):
        """The first two that wait, as the plan's operands."""
        waiting, self._waiting = self._waiting[:2], self._waiting[2:]
        return {name: value for pair, names in zip(waiting, (("y", "post"), ("z", "z_post"))) for name, value in zip(names, pair)}


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
