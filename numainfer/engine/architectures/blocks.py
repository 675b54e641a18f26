"""What architecture files are written with: the residual stream, attention, feed-forward networks."""

import logging

from ...errors import CorruptModel
from .experts import mixture, shared_expert
from .hyperparameters import MIXTURE, PER_LAYER, Hyperparameters

log = logging.getLogger("numainfer")


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

    def norm(self, w, selected=False, kept=True):
        """norm(x, w): of all that was added so far; not `kept`: the stream ends there."""
        while len(self._waiting) > 2:  # more than the op takes
            self._x = self._plan.add(self._x, **self._next(), eps=self._eps, layer=self._layer)
        self._x, h = self._plan.norm(self._x, w, self._eps, selected=selected, layer=self._layer, kept=kept, **self._next())
        return h

    def value(self):
        """The sum so far, for an architecture whose blocks read it without a norm."""
        while self._waiting:
            self._x = self._plan.add(self._x, **self._next(), eps=self._eps, layer=self._layer)
        return self._x

    def scale(self, factor):
        """The stream so far, times a factor."""
        self._x = self._plan.mix(self.value(), None, scale=factor)

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


def begin(p, weights, *, neox, heeds=(), layer_norm=False, scale=1.0, positions=None):
    """What most forward passes begin with: (hyperparameters, attention's shape, residual stream with the embedded tokens).

    Parameters
    ----------
    neox : bool
        Of `Attention`.
    heeds : tuple of str
        Keys of `NEUTRAL` that the architecture takes into account.
    layer_norm : bool or "rms"
        The stream's norms are LayerNorms; "rms": with the key of RMS norms.
    scale : float
        Factor on the embedding.
    positions : Matrix, optional
        Embedding of positions, where there is one instead of rotations.
    """
    c = Hyperparameters(weights.gguf)
    c.check_neutral(*heeds)
    eps = c.float(f"attention.layer_norm_{'' if layer_norm is True else 'rms_'}epsilon", low=0, high=1)
    a = c.attention(neox=neox, eps=eps, turned=positions is None)
    return c, a, Residual(p, p.embed(embedding_matrix(c, weights), scale, positions), eps, layer=bool(layer_norm))


def layers(c, weights):
    """The tensors of each layer, without the last ones that only predict further tokens (MTP): they are skipped, and said to be, but for
    the first of them where it is wanted (`nextn.py`)."""
    blocks, more = layer_counts(c)
    if weights.skip([f"blk.{i}." for i in range(blocks + weights.mtp, blocks + more)]):
        log.info("%s: its last %d layers predict further tokens (MTP); numainfer does without %s", c.gguf.path, more,
                 "all but the first" if weights.mtp else "them")
    return weights.blocks(blocks)


def layer_counts(c):
    """Layers of the model, and behind them those that only predict further tokens."""
    blocks, more = c.int("block_count", high=4096), c.int("nextn_predict_layers", default=0, low=0, high=4096)
    if more >= blocks:
        c.refuse("nextn_predict_layers", more, f"fewer than {c.prefix}block_count = {blocks}")
    return blocks - more, more


def end(p, weights, x, **more):
    """The last norm and the logits, with what `Plan.logits` takes besides."""
    p.logits(x.norm(weights["output_norm.weight"], selected=True), output_matrix(weights), **more)


def attention(p, h, w, a, rope, scale=1.0, **norms):
    """attn_output of attention over h; q, k and v by three matrices or by one whose rows they share."""
    q, k, v = project(p, h, w, a)
    return p.matmul(p.attend(q, k, v, a, rope, **norms), w.attn_output, scale=scale)


def head_norm_attention(p, h, w, a, rope):
    """As `attention`, but where there are norms of q and k, they are LayerNorms with weights (heads, width) of each head's own."""
    q, k, v = project(p, h, w, a)
    if w.flat("attn_q_norm"):
        q = p.normed_heads(q, w.flat("attn_q_norm"), a.eps, a.heads)
    if w.flat("attn_k_norm"):
        k = p.normed_heads(k, w.flat("attn_k_norm"), a.eps, a.kv_heads)
    return p.matmul(p.attend(q, k, v, a, rope), w.attn_output)


def project(p, h, w, a):
    """q, k, v, with their biases, where there are any."""
    return p.matmul(h, *(w.attn_q, w.attn_k, w.attn_v) if w.get("attn_qkv") is None else _parts(w, a))


def _parts(w, a):
    """The rows of ``attn_qkv``."""
    counts = a.heads * a.key_length, a.kv_heads * a.key_length, a.kv_heads * a.value_length
    return w.rows("attn_qkv", *counts, biases=("attn_q", "attn_k", "attn_v"))


def keep(p, h, w, a, rope, **norms):
    """The keys and values of `attention` alone, for a head's plan."""
    k, v = p.matmul(h, *(w.attn_k, w.attn_v) if w.get("attn_qkv") is None else _parts(w, a)[1:])
    p.keep(k, v, a, rope, **norms)


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


def wide_norm_attention(p, h, w, a, rope):
    """As `attention`, but q and k are normed over all heads together."""
    q, k, v = project(p, h, w, a)
    return p.matmul(p.attend(p.normed(q, w.attn_q_norm, a.eps), p.normed(k, w.attn_k_norm, a.eps), v, a, rope), w.attn_output)


def network(p, h, w, e, i, scale=1.0):
    """Layer i: a plain network in the leading layers and between those with experts; else a mixture, with what experts are shared."""
    c = e.c
    step = c.int("interleave_moe_layer_step", default=1)
    if i < c.int("leading_dense_block_count", default=0, low=0) or (i + 1) % step:
        return gated(p, h, w, scale=scale)
    shared = shared_expert(p, h, w) if c.shared_experts() or w.get("ffn_up_shexp") else None
    return mixture(p, h, w, e, shared=shared, scale=scale)


__all__ = [
    "MIXTURE", "PER_LAYER", "Hyperparameters", "Residual", "attention", "begin", "embedding_matrix", "end", "gated",
    "head_norm_attention", "keep", "layer_counts", "layers", "mixture", "network", "output_matrix", "plain", "project", "shared_expert",
    "wide_norm_attention",
]  # fmt: skip
