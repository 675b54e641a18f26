"""Whole forward passes from a GGUF file in NumPy, weights decoded exactly.

Plain, they are what the model means. With ``as_we_do`` they round where numainfer rounds on purpose (activations to 8
bits in front of quantised matrices, keys and values to float16) and nowhere else. That is a sharper test for models of
few layers only: over many layers a last bit that flips one rounding grows until two such runs are as far from each
other as from exact arithmetic.

The files say what a model is; where a key is missing, the values here are the ones llama.cpp assumes.
"""

import struct

import gguf
import numpy as np
import reference as ref
from file_types import data_of


class _Reader(gguf.GGUFReader):
    """``GGUFReader`` without its one view per element of long arrays: a 262k vocabulary takes 0.2 s instead of 10."""

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        head = self.data[orig_offs : orig_offs + 12].tobytes()
        item, count = gguf.GGUFValueType(int.from_bytes(head[:4], "little")), int.from_bytes(head[4:], "little")
        if count < 256 or item == gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        if item == gguf.GGUFValueType.STRING:
            size = self._strings_size(orig_offs + 12, count)
        else:
            size = count * np.dtype(self.gguf_scalar_to_np[item]).itemsize
        return 12 + size, [self.data[orig_offs : orig_offs + 12 + size]], [], [raw_type, item]

    def _strings_size(self, start, count):
        view, offset = memoryview(self.data), start
        for _ in range(count):
            offset += 8 + struct.unpack_from("<Q", view, offset)[0]
        return offset - start


class ReferenceModel:
    """A model as pure arithmetic.

    Parameters
    ----------
    path : str or Path
        GGUF file (or files: the parts of a split model) of architecture ``llama`` or ``gemma3``.
    dtype : numpy dtype
        float32 for measuring real models, float64 for testing ops.
    as_we_do : bool
        Round activations, keys and values as numainfer does.

    Attributes
    ----------
    n_vocab, n_layer, n_head, n_kv, n_embd, width, context : int
    weights : dict of str to ndarray
        Decoded tensors by their names in the file.
    """

    def __init__(self, *paths, dtype=np.float32, as_we_do=False):
        readers = [_Reader(path) for path in paths]
        self.meta = {k: f.contents() for k, f in readers[0].fields.items() if f.data and not k.startswith("tokenizer.")}
        self.dtype, self._as_we_do = np.dtype(dtype), as_we_do
        self._floats = {t.name for r in readers for t in r.tensors if t.tensor_type.name in ("F32", "F16", "BF16")}
        self.weights = {t.name: ref.dequantise(data_of(r, t), t.tensor_type, dtype) for r in readers for t in r.tensors}
        self.arch = self.meta["general.architecture"]
        if self.arch not in _FORWARD:
            raise NotImplementedError(f"general.architecture = {self.arch!r}; the reference has {sorted(_FORWARD)}")
        self.n_layer, self.n_head = self.get("block_count"), self.get("attention.head_count")
        self.n_embd, self.context = self.get("embedding_length"), self.get("context_length")
        self.n_kv = self.get("attention.head_count_kv", self.n_head)
        self.width = self.get("attention.key_length", self.n_embd // self.n_head)
        self.eps = self.get("attention.layer_norm_rms_epsilon")
        self.n_vocab = len(self.weights["token_embd.weight"])
        self.rope = self._rope()

    def get(self, key, *default):
        """Value of ``<architecture>.<key>``; KeyError where it is missing and no default is given."""
        name = f"{self.arch}.{key}"
        return self.meta.get(name, *default) if default else self.meta[name]

    def _rope(self):
        kind = self.get("rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise NotImplementedError(f"rope.scaling.type = {kind!r}; the reference has none and linear")
        factor = self.get("rope.scaling.factor", self.get("rope.scale_linear", 0.0)) or 1.0
        return {
            "base": self.get("rope.freq_base", 10000.0),
            "freq_scale": 1.0 / factor,
            "factors": self.weights.get("rope_freqs.weight"),
            "n_rot": self.get("rope.dimension_count", self.width),
        }

    def logits(self, ids):
        """Logits of the token after each of ``ids``, ndarray (n, n_vocab)."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.ndim != 1 or not ids.size or ids.min() < 0 or ids.max() >= self.n_vocab:
            raise ValueError(f"logits: wanted a non-empty list of ids below {self.n_vocab}, found {ids}")
        return _FORWARD[self.arch](self, ids)

    def project(self, x, name, heads=None):
        """x (n, K) through matrix ``name`` (with its bias, if any); cut into heads if told."""
        exact = not self._as_we_do or f"{name}.weight" in self._floats
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        y = (ref.matmul if exact else ref.matmul_q8)(x, weight, bias)
        return y if heads is None else y.reshape(len(x), heads, -1)

    def norm(self, x, name):
        """RMS norm of x over its last axis with weight ``name``."""
        return ref.rmsnorm(x, self.weights[f"{name}.weight"], self.eps)

    def attend(self, q, k, v, scale, window=0):
        """Causal attention as (n, H * E)."""
        if self._as_we_do:
            k, v = (x.astype(np.float16).astype(self.dtype) for x in (k, v))
        return ref.attention(q, k, v, scale, window=window).reshape(len(q), -1)

    def head(self, x):
        """Last norm and output matrix, which is the embedding table where the file has no ``output.weight``."""
        return self.project(self.norm(x, "output_norm"), "output" if "output.weight" in self.weights else "token_embd")


def _llama(m, ids):
    """Llama 1 to 3, SmolLM2, Mistral.  Source: arXiv:2302.13971, arXiv:2407.21783."""
    at = np.arange(len(ids))
    x = ref.embed(m.weights["token_embd.weight"], ids)
    for b in (f"blk.{i}." for i in range(m.n_layer)):
        h = m.norm(x, b + "attn_norm")
        q = ref.rope(m.project(h, b + "attn_q", m.n_head), at, "norm", **m.rope)
        k = ref.rope(m.project(h, b + "attn_k", m.n_kv), at, "norm", **m.rope)
        v = m.project(h, b + "attn_v", m.n_kv)
        a = m.attend(q, k, v, m.get("attention.scale", 0.0) or None)
        x = x + m.project(a, b + "attn_output")
        h = m.norm(x, b + "ffn_norm")
        h = ref.silu_mul(m.project(h, b + "ffn_gate"), m.project(h, b + "ffn_up"))
        x = x + m.project(h, b + "ffn_down")
    return m.head(x)


def _gemma3(m, ids):
    """Gemma 3 (text).  Source: arXiv:2503.19786. The norms' weights in the file already hold the + 1."""
    at = np.arange(len(ids))
    window, period = m.get("attention.sliding_window", 0), m.get("attention.sliding_window_pattern", 6)
    # Local layers neither stretch their positions nor share the global base; the latter is missing in older files.
    local = dict(m.rope, base=m.get("rope.freq_base_swa", 10000.0), freq_scale=1.0)
    # The 27B (62 layers) scales by its width per head, 168, not by the head's own 128.
    scale = (m.n_embd / m.n_head if m.n_layer == 62 else m.width) ** -0.5
    cap = m.get("final_logit_softcapping", 0.0)
    x = ref.embed(m.weights["token_embd.weight"], ids) * m.dtype.type(np.sqrt(m.n_embd))
    for i in range(m.n_layer):
        b, slides = f"blk.{i}.", window > 0 and i % period != period - 1
        rope = local if slides else m.rope
        h = m.norm(x, b + "attn_norm")
        q = ref.rope(m.norm(m.project(h, b + "attn_q", m.n_head), b + "attn_q_norm"), at, "neox", **rope)
        k = ref.rope(m.norm(m.project(h, b + "attn_k", m.n_kv), b + "attn_k_norm"), at, "neox", **rope)
        v = m.project(h, b + "attn_v", m.n_kv)
        a = m.attend(q, k, v, scale, window if slides else 0)
        x = x + m.norm(m.project(a, b + "attn_output"), b + "post_attention_norm")
        h = m.norm(x, b + "ffn_norm")
        h = ref.gelu_mul(m.project(h, b + "ffn_gate"), m.project(h, b + "ffn_up"))
        x = x + m.norm(m.project(h, b + "ffn_down"), b + "post_ffw_norm")
    logits = m.head(x)
    return ref.softcap(logits, m.dtype.type(cap)) if cap else logits


_FORWARD = {"llama": _llama, "gemma3": _gemma3}
