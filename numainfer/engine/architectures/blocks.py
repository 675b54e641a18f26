"""What several architectures share: hyperparameters out of the metadata, the residual stream, rotary frequencies, experts."""

import logging
import math
from dataclasses import dataclass

import numpy as np

from ...errors import CorruptModel, UnsupportedModel
from ..ops import Attention

log = logging.getLogger("numainfer")

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
    "rope.scaling.attn_factor": (1.0,),
    "rope.dimension_sections": ((), (0, 0, 0, 0)),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "nextn_predict_layers": (0,),
    "router_logit_softcapping": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "moe_every_n_layers": (0, 1),
}
PER_LAYER = ("swiglu_clamp_exp", "swiglu_clamp_shexp")  # neutral where all values are 0
MIXTURE = ("expert_count", "nextn_predict_layers")  # what architectures with experts heed
GATINGS = {1: "softmax", 2: "sigmoid", 3: "chosen", 4: "sqrtsoftplus"}  # expert_gating_func, as `Plan.route` names it


class Hyperparameters:
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

    def yarn_frequencies(self, n_rot):
        """As `rope` has them with YaRN, without its factor."""
        base = self.float("rope.freq_base", default=10000.0, low=1)
        return self._yarn(self._frequencies(n_rot, base), base)[0]

    def experts(self, gating="softmax", normed=True):
        """The Experts that the keys describe; `gating` and `normed` are what the architecture does where its file has no key."""
        code = self.int("expert_gating_func", default=0, low=0)
        if code and code not in GATINGS:
            raise UnsupportedModel(self.prefix + "expert_gating_func", code, GATINGS)
        groups = self.int("expert_group_count", default=1, low=0, high=64) or 1
        return Experts(self, self.int("expert_used_count"), GATINGS.get(code, gating), self.bool("expert_weights_norm", normed),
                       self.float("expert_weights_scale", default=0.0) or 1.0, groups,
                       self.int("expert_group_used_count", high=groups) if groups > 1 else 1)

    def shared_experts(self):
        """Whether keys say that every token meets some experts beside those that it chooses."""
        return any(self.int(key, default=0, low=0) for key in ("expert_shared_count", "expert_shared_feed_forward_length"))

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
        return Attention(heads, kv_heads, key, value, rotated, neox,
                         scale=self.float("attention.scale", default=0.0, low=0) or 1.0 / math.sqrt(key), eps=eps)

    def windowed(self, blocks, period, first=False):
        """Which layers see a window alone: ``attention.sliding_window_pattern`` has a flag per layer, or a period, whose last (or first)
        sees all."""
        key = "attention.sliding_window_pattern"
        pattern = self.gguf.get(self.prefix + key, default=period)
        if isinstance(pattern, np.ndarray):
            if len(pattern) != blocks:
                self.refuse(key, f"{len(pattern)} values", f"{blocks}, one per layer")
            return [bool(flag) for flag in pattern]
        period = self.int(key, default=period)
        return [(i if first else i + 1) % period != 0 for i in range(blocks)]

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
        frequencies = self._divided(self._frequencies(n_rot, base), factors)
        return frequencies / self.rope_scale()

    def rope(self, p, weights, a, scaled=True, local=None):
        """The table that rotates `a`'s heads, by the file's base, factors and scaling: none, linear, YaRN (arXiv:2309.00071), or
        longrope (arXiv:2402.13753); None for heads that are not rotated.  ``scaled=False`` leaves the scaling out.  Where layers with a
        window have a base of their own, `local` says for which layers the table is."""
        if not a.rope_dim:
            return None
        base, kind = self.float("rope.freq_base", default=10000.0, low=1), self.str("rope.scaling.type", default="linear")
        longrope = "rope_factors_long.weight" in weights or kind == "longrope"
        local_base = self.float("rope.freq_base_swa", default=base, low=1)
        base, one = (base, base) if local is None else (local_base, local_base) if local else (base, local_base)
        for key, wanted in (("rope.freq_base_swa", one), ("rope.scaling.factor" if longrope else "rope.scaling.attn_factor", 1.0)):
            found = self.float(key, default=wanted)
            if found != wanted:
                raise UnsupportedModel(self.prefix + key, found, [f"{wanted:g}"])
        factors, factor = weights.values("rope_freqs.weight"), 1.0
        if longrope:
            short, long = (_vector(weights, f"rope_factors_{name}.weight") for name in ("short", "long"))
            is_long = p.n_ctx > self.int("rope.scaling.original_context_length", default=self.int("context_length"))
            kind, factors = ("long", long) if is_long else ("short", short)
            frequencies = self._divided(self._frequencies(a.rope_dim, base), factors, "rope_factors_*.weight")
            factor = self.float("rope.scaling.attn_factor", default=1.0, low=1e-3)
        elif not scaled:
            kind, frequencies = "unscaled", self._divided(self._frequencies(a.rope_dim, base), factors)
        elif kind == "yarn":
            frequencies, factor = self._yarn(self._divided(self._frequencies(a.rope_dim, base), factors), base)
        else:
            frequencies = self.rope_frequencies(a.rope_dim, base, factors)
        return p.rope_table(weights.constant(f"rope {a.rope_dim} {kind} {base}", frequencies), factor)

    def _yarn(self, frequencies, base):
        """YaRN's frequencies, and the factor on cosines and sines: pairs that turn often within the original context stay, those that
        turn seldom are slowed down by the factor of the scaling, with a ramp between them.

        Where the ramp begins and ends is rounded outwards to whole pairs, as in the published code.
        """
        if base == 1.0:
            self.refuse("rope.freq_base", base, "more than 1 with YaRN")
        scale, n_rot = self.float("rope.scaling.factor", low=1.0), 2 * len(frequencies)
        original = self.int("rope.scaling.original_context_length", default=self.int("context_length"))
        fast = self.float("rope.scaling.yarn_beta_fast", default=32.0, low=1e-3)
        slow = self.float("rope.scaling.yarn_beta_slow", default=1.0, low=1e-3)

        def pair(turns):
            return n_rot * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

        first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), n_rot - 1)
        slowed = np.clip((np.arange(n_rot // 2) - first) / max(last - first, 1e-3), 0, 1)
        all_heads = self.float("rope.scaling.yarn_log_multiplier", default=0.0, low=0)
        factor = (0.1 * math.log(scale) + 1) / (0.1 * all_heads * math.log(scale) + 1)
        given = self.float("rope.scaling.yarn_attn_factor", default=factor)
        if abs(given - factor) > 1e-3 * factor:  # llama.cpp ignores it, transformers takes it as the factor
            wanted = [f"{factor:.6g}, which follows from the factor {scale:g}"]
            raise UnsupportedModel(self.prefix + "rope.scaling.yarn_attn_factor", given, wanted)
        return frequencies * (1 - slowed) + frequencies / scale * slowed, factor

    @staticmethod
    def _frequencies(n_rot, base):
        return base ** (-2.0 * np.arange(n_rot // 2) / n_rot)

    def _divided(self, frequencies, factors, name="rope_freqs.weight"):
        if factors is None:
            return frequencies
        if len(factors) != len(frequencies) or not (np.isfinite(factors) & (factors > 0)).all():
            raise CorruptModel(self.gguf.path, f"{name} = {factors[:4]} ..., {len(factors)} values; wanted a vector of "
                                               f"{len(frequencies)} positive numbers")
        return frequencies / factors

    def rope_scale(self):
        """The divisor of linear position scaling, 1 without it.  A factor alone means linear; old files call it scale_linear."""
        kind = self.str("rope.scaling.type", default="linear")
        if kind not in ("none", "linear"):
            self.unsupported("rope.scaling.type", kind, ("none", "linear"))
        old = self.float("rope.scale_linear", default=1.0, low=1e-3)
        return self.float("rope.scaling.factor", default=old, low=1e-3) if kind == "linear" else 1.0


@dataclass(frozen=True)
class Experts:
    """How tokens choose experts, and how these are weighed (arXiv:1701.06538; groups and the bias for choosing: arXiv:2412.19437).

    Attributes
    ----------
    c : Hyperparameters
    used : int
        Experts of a token.
    gating : str
        As `Plan.route` has it, and so for the rest.
    normed : bool
    scale : float
    groups, groups_used : int
    """

    c: Hyperparameters
    used: int
    gating: str
    normed: bool
    scale: float
    groups: int
    groups_used: int

    def route(self, p, h, w, matrices):
        """(ids, weights) of a layer's router, for such matrices of its experts."""
        router = w.ffn_gate_inp
        for matrix in matrices:
            found = getattr(matrix, "experts", 1)
            if found != router.n:
                says = f"{matrix.name} has {found} experts, wanted {router.n}, one for each row of {router.name}"
                raise CorruptModel(self.c.gguf.path, says)
        if router.n % self.groups:
            self.c.refuse("expert_group_count", self.groups, f"a divisor of the {router.n} experts")
        most = router.n // self.groups * self.groups_used
        if self.used > most:
            self.c.refuse("expert_used_count", self.used, f"at most {most}")
        return p.route(p.score(h, router), self.used, gating=self.gating, bias=w.bias("exp_probs_b"), normed=self.normed, scale=self.scale,
                       groups=self.groups, groups_used=self.groups_used)


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

    def value(self):
        """The sum so far, for an architecture whose blocks read it without a norm."""
        while self._waiting:
            self._x = self._plan.add(self._x, **self._next(), eps=self._eps, layer=self._layer)
        return self._x

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


def _vector(weights, name):
    """Values of a tensor that must be there."""
    weights[name]
    return weights.values(name)


def begin(p, weights, *, neox, heeds=(), layer_norm=False, scale=1.0, positions=None):
    """What most forward passes begin with: (hyperparameters, attention's shape, residual stream with the embedded tokens).

    Parameters
    ----------
    neox : bool
        Of `Attention`.
    heeds : tuple of str
        Keys of `NEUTRAL` that the architecture takes into account.
    layer_norm : bool
        The stream's norms are LayerNorms.
    scale : float
        Factor on the embedding.
    positions : Matrix, optional
        Embedding of positions, where there is one instead of rotations.
    """
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*heeds)
    eps = c.float(f"attention.layer_norm_{'' if layer_norm else 'rms_'}epsilon", low=0, high=1)
    a = c.attention(neox=neox, eps=eps, turned=positions is None)
    return c, a, Residual(p, p.embed(embedding_matrix(c, weights), scale, positions), eps, layer=layer_norm)


def layers(c, weights):
    """The tensors of each layer."""
    return weights.blocks(c.int("block_count", high=4096))


def end(p, weights, x, **more):
    """The last norm and the logits, with what `Plan.logits` takes besides."""
    p.logits(x.norm(weights["output_norm.weight"], selected=True), output_matrix(weights), **more)


def attention(p, h, w, a, rope, scale=1.0, **norms):
    """attn_output of attention over h; q, k and v by three matrices or by one whose rows they share."""
    q, k, v = project(p, h, w, a)
    return p.matmul(p.attend(q, k, v, a, rope, **norms), w.attn_output, scale=scale)


def project(p, h, w, a):
    """q, k, v."""
    if w.get("attn_qkv") is None:
        return p.matmul(h, w.attn_q, w.attn_k, w.attn_v)
    return p.matmul(h, *w.rows("attn_qkv", a.heads * a.key_length, a.kv_heads * a.key_length, a.kv_heads * a.value_length))


def gated(p, h, w, activation="silu", scale=1.0):
    """W_down (activation(W_gate h) * W_up h) (arXiv:2002.05202); gate and up may be halves of ``ffn_up``."""
    if w.get("ffn_gate") is None:
        gate, up = p.matmul(h, *w.rows("ffn_up", *[w.ffn_up.n // 2] * 2))
    else:
        gate, up = p.matmul(h, w.ffn_gate, w.ffn_up)
    return p.matmul(p.gated(gate, up, activation), w.ffn_down, scale=scale)


def plain(p, h, w, activation, constants=()):
    """W_down activation(W_up h)."""
    return p.matmul(p.activate(p.matmul(h, w.ffn_up), activation, constants), w.ffn_down)


def trunk(c, weights):
    """As `layers`, without those that only predict further tokens (MTP), which are the last: they are skipped, and said to be."""
    blocks, more = c.int("block_count", high=4096), c.int("nextn_predict_layers", default=0, low=0, high=4096)
    if more >= blocks:
        c.refuse("nextn_predict_layers", more, f"fewer than {c.prefix}block_count = {blocks}")
    if weights.skip([f"blk.{i}." for i in range(blocks - more, blocks)]):
        log.info("%s: its last %d layers predict further tokens (MTP); numainfer does without them", c.gguf.path, more)
    return weights.blocks(blocks - more)


def wide_norm_attention(p, h, w, a, rope):
    """As `attention`, but q and k are normed over all heads together."""
    q, k, v = p.matmul(h, w.attn_q, w.attn_k, w.attn_v)
    return p.matmul(p.attend(p.normed(q, w.attn_q_norm, a.eps), p.normed(k, w.attn_k_norm, a.eps), v, a, rope), w.attn_output)


def shared_expert(p, h, w, activation="silu", **how):
    """What every token adds to what its chosen experts say."""
    gate, up = p.matmul(h, w.ffn_gate_shexp, w.ffn_up_shexp)
    return p.matmul(p.gated(gate, up, activation, **how), w.ffn_down_shexp)


def mixture(p, h, w, e, shared=None, gate=None, scale=1.0, **how):
    """Feed-forward networks of the chosen experts, weighed and summed, plus `shared`, times sigmoid(gate) where there is one.

    Parameters
    ----------
    p : Plan
    h : Tensor
    w : _Block
        Tensors of the layer; gate and up may be one tensor, ``ffn_gate_up_exps``.
    e : Experts
    shared, gate : Tensor, optional
    scale : float
        Factor on all of it.
    how : dict
        For `Plan.gated`.
    """
    fused = w.get("ffn_gate_up_exps")
    into, out = [fused] if fused else [w.ffn_gate_exps, w.ffn_up_exps], w.ffn_down_exps
    ids, weights = e.route(p, h, w, [*into, out])
    pair = p.matmul_grouped(h, ids, *into)
    a = p.gated(*([pair, None] if fused else pair), **({"activation": "silu"} | how))
    return p.mix(p.matmul_grouped(a, ids, out), weights, also=shared, gate=gate, scale=scale)


def network(p, h, w, e, i, scale=1.0):
    """Layer i: a plain network in the leading layers and between those with experts; else a mixture, with what experts are shared."""
    c = e.c
    step = c.int("interleave_moe_layer_step", default=1)
    if i < c.int("leading_dense_block_count", default=0, low=0) or (i + 1) % step:
        return gated(p, h, w, scale=scale)
    return mixture(p, h, w, e, shared=shared_expert(p, h, w) if c.shared_experts() else None, scale=scale)
