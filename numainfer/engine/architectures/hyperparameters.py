"""What a file's keys say, read with their types and limits, by the names that they have behind ``<architecture>.``."""

import math

import numpy as np

from ...errors import CorruptModel, UnsupportedModel
from ..ops import Attention
from .experts import GATINGS, Experts
from .rotary import Rotary

# Keys that other engines know, and the values under which a file means the same without them.
NEUTRAL = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.temperature_scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.dimension_sections": ((), (0, 0, 0, 0)),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "router_logit_softcapping": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "moe_every_n_layers": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.value_scale": (0.0, 1.0),
    "attention.rope_pattern": ((),),
    "num_loops": (0, 1),
}
PER_LAYER = ("swiglu_clamp_exp", "swiglu_clamp_shexp")  # neutral where all values are 0
MIXTURE = ("expert_count",)  # what architectures with experts heed


class Hyperparameters(Rotary):
    """Typed access to the keys of one architecture: ``c.int("block_count")`` reads ``llama.block_count``."""

    def __init__(self, gguf):
        self.gguf, self.prefix = gguf, gguf.architecture + "."

    def int(self, key, default=None, low=1, high=1 << 24, layer=None):
        """An integer in [low, high]; without a default the key must be there.  The file may have one for each layer: that of `layer`, or,
        without, one and the same."""
        return self._number(key, int, default, low, high, layer)

    def float(self, key, default=None, low=-math.inf, high=math.inf, layer=None):
        """A finite number in [low, high]; `layer` as of `int`."""
        return self._number(key, float, default, low, high, layer)

    def _number(self, key, kind, default, low, high, layer=None):
        options = {} if default is None else {"default": default}
        if isinstance(self.gguf.metadata.get(self.prefix + key), np.ndarray):
            values = self.gguf.get(self.prefix + key, list[kind])
            if len(values) <= (layer or 0):
                self.refuse(key, f"{len(values)} values", "one per layer")
            if layer is None and (values != values[0]).any():
                raise UnsupportedModel(self.prefix + key, values.tolist(), ["one value for all layers"])
            value = kind(values[layer or 0])
        else:
            value = self.gguf.get(self.prefix + key, kind, **options)
        if not (low <= value <= high and math.isfinite(value)):
            self.refuse(key, value, f"a number from {low} to {high}")
        return value

    def str(self, key, default):
        """A string."""
        return self.gguf.get(self.prefix + key, str, default=default)

    def check_neutral(self, *heeded):
        """Raise UnsupportedModel if a key asks for something that the architecture does not do; leaving it out would change results.

        `heeded`: keys whose values it does take into account.
        """
        for key, neutral in NEUTRAL.items():
            if key in heeded:
                continue
            found = self.gguf.metadata.get(self.prefix + key, neutral[0])
            found = tuple(found.tolist()) if isinstance(found, np.ndarray) else found
            if found not in neutral:
                self.unsupported(key, found, neutral)
        for key in PER_LAYER:
            found = self.gguf.metadata.get(self.prefix + key, 0.0)
            if key not in heeded and np.any(np.asarray(found) != 0.0):
                self.unsupported(key, found, [0.0])

    def bool(self, key, default):
        """True or False."""
        return self.gguf.get(self.prefix + key, bool, default=default)

    def rms_eps(self):
        """What is added to the mean of squares."""
        return self.float("attention.layer_norm_rms_epsilon", low=0, high=1)

    def experts(self, gating="softmax", normed=True):
        """The Experts that the keys describe; `gating` and `normed` are what the architecture does where its file has no key."""
        code = self.int("expert_gating_func", default=0, low=0)
        if code and code not in GATINGS:
            self.unsupported("expert_gating_func", code, GATINGS)
        groups = self.int("expert_group_count", default=1, low=0, high=64) or 1
        return Experts(self, GATINGS.get(code, gating), self.bool("expert_weights_norm", normed),
                       self.float("expert_weights_scale", default=0.0) or 1.0, groups,
                       self.int("expert_group_used_count", high=groups) if groups > 1 else 1)

    def shared_experts(self):
        """Whether keys say that every token meets some experts beside those that it chooses."""
        return self.int("expert_shared_count", default=self.int("expert_shared_feed_forward_length", default=0, low=0), low=0) > 0

    def attention(self, *, neox, eps, layer=None, turned=True):
        """The Attention that most architectures mean, from their head counts and widths; counts may be those of a layer.

        ``turned=False``: no values of a head are rotated, whatever the keys say.
        """
        width, heads = self.int("embedding_length"), self.int("attention.head_count", high=4096, layer=layer)
        kv_heads = self.int("attention.head_count_kv", default=heads, high=4096, layer=layer)
        key, value = (self.int(f"attention.{name}_length", default=max(width // heads, 1), high=65536) for name in ("key", "value"))
        rotated = self.int("rope.dimension_count", default=key, low=0, high=65536) if turned else 0
        if heads % kv_heads:
            self.refuse("attention.head_count", heads, f"a multiple of {self.prefix}attention.head_count_kv = {kv_heads}")
        if rotated % 2 or rotated > key:
            self.refuse("rope.dimension_count", rotated, f"an even number up to {self.prefix}attention.key_length = {key}")
        for name, found in (("attention.key_length", key), ("attention.value_length", value), ("rope.dimension_count", rotated)):
            own = self.int(name + "_swa", default=found, low=0)
            if own != found and (turned and (layer is None or name[0] == "a")):
                self.unsupported(name + "_swa", own, [found])
        return Attention(heads, kv_heads, key, value, rotated, neox,
                         scale=self.float("attention.scale", default=0.0, low=0) or 1.0 / math.sqrt(key), eps=eps)

    def windowed(self, period, first=False):
        """Which layers see a window alone: ``attention.sliding_window_pattern`` has a flag per layer, or a period, whose last (or first)
        sees all; a period of 0 means a window in all."""
        key, blocks = "attention.sliding_window_pattern", self.int("block_count", high=4096)
        pattern = self.gguf.get(self.prefix + key, default=period)
        if isinstance(pattern, np.ndarray):
            if len(pattern) != blocks:
                self.refuse(key, f"{len(pattern)} values", f"{blocks}, one per layer")
            return [bool(flag) for flag in pattern]
        period = self.int(key, default=period, low=0)
        return [not period or (i if first else i + 1) % period != 0 for i in range(blocks)]

    def refuse(self, key, found, wanted):
        """Raise CorruptModel over a key's value."""
        raise CorruptModel(self.gguf.path, f"{self.prefix}{key} = {found}; wanted {wanted}")

    def unsupported(self, key, found, supported):
        """Raise UnsupportedModel over a key's value."""
        raise UnsupportedModel(self.prefix + key, found, supported, f"The file is {self.gguf.path}")
