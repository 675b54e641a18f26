"""What a file's keys say of rotary positions (arXiv:2104.09864): bases, frequency factors, and how positions are scaled."""

import math

import numpy as np

from ...errors import CorruptModel, UnsupportedModel

KINDS = ("none", "linear", "yarn", "longrope")


class Rotary:
    """Methods of `Hyperparameters`."""

    def rope(self, p, weights, a, *, scaled=True, local=None, local_base=None, beta_fast=32.0, log_multiplier=False):
        """The table that rotates `a`'s heads, by the file's base, factors and scaling: none, linear, YaRN (arXiv:2309.00071), or
        longrope (arXiv:2402.13753, by the plan's context); None for heads that are not rotated.

        Parameters
        ----------
        p, weights, a
            Plan, Catalog, Attention.
        scaled : bool
            False leaves the scaling out.
        local : bool, optional
            Where layers with a window may have a base of their own: whether the table is for these layers.
        local_base : float, optional
            That base where the file has no key: by default the other layers'.
        beta_fast : float
            Of YaRN where the file has no key.
        log_multiplier : bool
            The architecture's files have YaRN's mscale_all_dim in ``rope.scaling.yarn_log_multiplier``.
        """
        if not a.rope_dim:
            return None
        base, kind = self.float("rope.freq_base", default=10000.0, low=1), self.scaling()
        own = self.float("rope.freq_base_swa", default=local_base or base, low=1)
        if local is None and own != base:
            self.unsupported("rope.freq_base_swa", own, [f"{base:g}"])
        base = own if local else base
        factor = self.float("rope.scaling.attn_factor", default=1.0, low=1e-3)
        frequencies = self.divided(base ** (-2.0 * np.arange(a.rope_dim // 2) / a.rope_dim), weights.values("rope_freqs.weight"))
        if not scaled:
            kind, factor = "unscaled", 1.0
        elif "rope_factors_long.weight" in weights or kind == "longrope":
            kind, frequencies = self._longrope(p, weights, frequencies)
        elif kind == "yarn":
            frequencies, attention = self.yarn(frequencies, base, beta_fast, log_multiplier)
            factor *= attention
        elif kind == "linear":
            frequencies = frequencies / self.rope_scale()
        return p.rope_table(weights.constant(f"rope {a.rope_dim} {kind} {base}", frequencies), factor)

    def scaling(self):
        """The kind of scaling; a factor alone means linear."""
        kind = self.str("rope.scaling.type", default="linear")
        if kind not in KINDS:
            self.unsupported("rope.scaling.type", kind, KINDS)
        return kind

    def rope_scale(self):
        """The divisor of positions, 1 without scaling.  Old files call it scale_linear."""
        old = self.float("rope.scale_linear", default=1.0, low=1e-3)
        return 1.0 if self.scaling() == "none" else self.float("rope.scaling.factor", default=old, low=1e-3)

    def no_scaling(self):
        """Raise UnsupportedModel if positions are scaled, by whatever kind."""
        if self.scaling() not in ("none", "linear") or self.rope_scale() != 1.0:
            self.unsupported("rope.scaling.type", self.scaling(), ["none"])
        if self.float("rope.scaling.attn_factor", default=1.0) != 1.0:
            self.unsupported("rope.scaling.attn_factor", self.float("rope.scaling.attn_factor"), [1.0])

    def sections(self):
        """Whether pairs, then (i, i + n/2), turn by positions of their own for height and width of pictures: in text all are the same."""
        found = self.gguf.get(self.prefix + "rope.dimension_sections", list[int], default=())
        if len(found) > 3 and found[3] != 0:
            self.unsupported("rope.dimension_sections", found.tolist(), ["0 as the fourth"])
        return bool(np.any(found))

    def _longrope(self, p, weights, frequencies):
        """The kind for this context, and its frequencies.  What the attention factor is, files tell."""
        if self.rope_scale() != 1.0:
            self.unsupported("rope.scaling.factor", self.rope_scale(), ["1, with longrope"])
        short, long = (self._values(weights, f"rope_factors_{name}.weight") for name in ("short", "long"))
        is_long = p.n_ctx > self.int("rope.scaling.original_context_length", default=self.int("context_length"))
        return "long" if is_long else "short", self.divided(frequencies, long if is_long else short, "rope_factors_*.weight")

    def yarn(self, frequencies, base, beta_fast=32.0, log_multiplier=False):
        """YaRN's frequencies, and the factor on cosines and sines: pairs that turn often within the original context stay, those that
        turn seldom are slowed down by the factor of the scaling, with a ramp between them.

        Where the ramp begins and ends is rounded outwards to whole pairs, as in the published code.  (gpt-oss was trained without the
        rounding, of which its files tell nothing; llama.cpp rounds, too.)
        """
        if base == 1.0:
            self.refuse("rope.freq_base", base, "more than 1 with YaRN")
        scale, n_rot = self.float("rope.scaling.factor", low=1.0), 2 * len(frequencies)
        original = self.int("rope.scaling.original_context_length", default=self.int("context_length"))
        fast = self.float("rope.scaling.yarn_beta_fast", default=beta_fast, low=1e-3)
        slow = self.float("rope.scaling.yarn_beta_slow", default=1.0, low=1e-3)

        def pair(turns):
            return n_rot * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

        first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), n_rot - 1)
        slowed = np.clip((np.arange(n_rot // 2) - first) / (last - first or 1e-3), 0, 1)
        all_heads = self.float("rope.scaling.yarn_log_multiplier", default=0.0, low=0)
        if all_heads and not log_multiplier:
            self.unsupported("rope.scaling.yarn_log_multiplier", all_heads, [0.0])
        factor = (0.1 * math.log(scale) + 1) / (0.1 * all_heads * math.log(scale) + 1)
        self._check_yarn_factor(factor, scale)
        return frequencies * (1 - slowed) + frequencies / scale * slowed, factor

    def _check_yarn_factor(self, factor, scale):
        """llama.cpp ignores the key, transformers takes it as the factor: it must say what both mean.  Grok's is a factor on the factor."""
        given = self.float("rope.scaling.yarn_attn_factor", default=factor)
        wanted = 1.0 if self.prefix == "grok." else factor
        if abs(given - wanted) > 1e-3 * factor and given != factor:
            says = [f"{wanted:.6g}, which follows from the factor {scale:g}"]
            raise UnsupportedModel(self.prefix + "rope.scaling.yarn_attn_factor", given, says)

    def _values(self, weights, name):
        """Values of a tensor that must be there."""
        weights[name]
        return weights.values(name)

    def divided(self, frequencies, factors, name="rope_freqs.weight"):
        """Frequencies divided by a tensor's values, where there are any."""
        if factors is None:
            return frequencies
        if len(factors) != len(frequencies) or not (np.isfinite(factors) & (factors > 0)).all():
            raise CorruptModel(self.gguf.path, f"{name} = {factors[:4]} ..., {len(factors)} values; wanted a vector of "
                                               f"{len(frequencies)} positive numbers")
        return frequencies / factors
